"""The index over a corpus's images: exact and approximate, saved, shared, killed, on the Hub."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from hub_server import local_hub
from image_knowledge import make, run, write_corpus
from modeling_more.knowledge import ImageEncoder, ImageRetriever, KnowledgeCorpus
from modeling_more.knowledge import image as image_module
from pictures import noise


def test_exact_search_equals_brute_force(tmp_path: Path, encoder: ImageEncoder) -> None:
    retriever = make(tmp_path, encoder)
    keys = encoder.embed([noise(number) for number in range(11)])
    queries = [noise(number).rotate(5) for number in range(11)]
    products = encoder.embed(queries) @ keys.T
    for top_k in (1, 4, 11, 50):
        for row, entries in enumerate(retriever.search(queries, top_k)):
            best = np.argsort(-products[row], kind="stable")[:top_k]
            assert [entry["source"] for entry in entries] == [f"Q{n}" for n in best]
            assert np.allclose([entry["score"] for entry in entries], products[row][best], atol=1e-6)
    entry = retriever.search([noise(3)], 1)[0][0]
    assert entry.pop("score") == pytest.approx(1, abs=1e-5)
    told = {"title": "T3", "text": "Thing 3 is one.", "source": "Q3", "match_start": 0, "match_end": 0}
    told["scale"] = 1.0  # a cosine
    assert entry == told | {"image": 3}  # its row in the corpus's table of images
    found = retriever.search([None, noise(3), None], 2)
    assert found[0] == found[2] == [] and found[1][0]["source"] == "Q3"
    assert retriever.search([]) == []
    with pytest.raises(ValueError, match="At least one result"):
        retriever.search([noise(3)], 0)


def test_one_entry_an_article(tmp_path: Path, encoder: ImageEncoder) -> None:
    more = [{"id": "Q0", "title": "T0", "text": "Thing 0 is one.", "image": f"{n}.png"} for n in range(1, 9)]
    more += [{"id": "R1", "title": "T1", "text": "Thing 1 is one.", "image": "10.png"}]  # the same of another source
    corpus = KnowledgeCorpus.from_files(write_corpus(tmp_path / "k", 11, more), tmp_path / "cache")
    assert corpus.info.images == 20
    retriever = ImageRetriever.from_corpus(corpus, encoder)
    for top_k in (1, 3, 11, 30):
        for entries in retriever.search([noise(number) for number in range(11)], top_k):
            assert len({entry["title"] for entry in entries}) == len(entries) == min(top_k, 11)


@pytest.mark.parametrize("factory", ["IVF4,Flat", "HNSW8", "IVF2,PQ4x3", "PCA8,IVF2,Flat"])
def test_approximate_indices(tmp_path: Path, encoder: ImageEncoder, factory: str) -> None:
    retriever = make(tmp_path, encoder, string_factory=factory)
    assert retriever.factory == factory
    queries = [noise(number) for number in range(11)]
    found = [[entry["source"] for entry in entries] for entries in retriever.search(queries, 3)]
    assert all(len(set(row)) == 3 for row in found)
    if "PQ" not in factory and "PCA" not in factory:  # those keep less than the vectors
        assert [row[0] for row in found] == [f"Q{number}" for number in range(11)]
    exact = make(tmp_path, encoder)
    assert exact.fingerprint != retriever.fingerprint  # and the vectors were not computed again
    narrow = make(tmp_path, encoder, string_factory="IVF4,Flat", search_parameters="nprobe=1")
    assert "nprobe=1" in narrow.fingerprint


def test_bad_indices_are_named(tmp_path: Path, encoder: ImageEncoder, towers: dict[str, str]) -> None:
    retriever = make(tmp_path, encoder)
    corpus, folder = retriever.corpus, retriever.index_dir
    with pytest.raises(ValueError, match="can't build 'IVF,nonsense' over 11 vectors of 24 numbers"):
        make(tmp_path, encoder, string_factory="IVF,nonsense")
    with pytest.raises(ValueError, match="can't be searched with 'nonsense=1'"):
        make(tmp_path, encoder, search_parameters="nonsense=1")
    with pytest.raises(FileNotFoundError, match="holds no image index"):
        ImageRetriever(corpus, encoder, tmp_path)
    with pytest.raises(ValueError, match=f"is of encoder {encoder.fingerprint}, not"):
        ImageRetriever(corpus, ImageEncoder(towers["clip bare"]), folder)
    other = KnowledgeCorpus.from_files(write_corpus(tmp_path / "less", 10), tmp_path / "cache")
    with pytest.raises(ValueError, match="is of images .*build it again"):
        ImageRetriever(other, encoder, folder)
    text = tmp_path / "text.jsonl"
    text.write_text('{"id": "1", "title": "T", "text": "Words."}\n')
    with pytest.raises(ValueError, match="has no images"):
        ImageRetriever.from_corpus(KnowledgeCorpus.from_files(text, tmp_path / "cache"), encoder)
    smaller = ImageRetriever.from_corpus(other, encoder).index_dir
    content = (folder / "index.faiss").read_bytes()
    (folder / "index.faiss").write_bytes((smaller / "index.faiss").read_bytes())
    damages = {"holds 10 vectors of 24 numbers, it must hold 11": None, "is not a FAISS index": content[:100]}
    for told, damaged in damages.items():
        if damaged is not None:
            (folder / "index.faiss").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"index\.faiss is not the file that was written here"):
            ImageRetriever(corpus, encoder, folder)
        meta = json.loads((folder / "image_index.json").read_text())
        older = {name: value for name, value in meta.items() if name != "files"}  # one of the time before digests
        (folder / "image_index.json").write_text(json.dumps(older))
        with pytest.raises(ValueError, match=told):
            ImageRetriever(corpus, encoder, folder)
        (folder / "image_index.json").write_text(json.dumps(meta))
    (folder / "index.faiss").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks its file index\.faiss"):
        ImageRetriever(corpus, encoder, folder)


def test_a_saved_corpus_carries_its_image_indices(
    tmp_path: Path, encoder: ImageEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = make(tmp_path, encoder)
    make(tmp_path, encoder, string_factory="HNSW8")
    folder = retriever.corpus.save_pretrained(tmp_path / "saved")
    loaded = KnowledgeCorpus.from_pretrained(folder, tmp_path / "new cache")
    monkeypatch.setattr(image_module, "embed_in_shards", None)  # the saved indices must do
    again = ImageRetriever.from_corpus(loaded, encoder)
    assert again.index_dir.parent == folder / "faiss" and again.fingerprint == retriever.fingerprint
    queries = [noise(number).rotate(4) for number in range(11)]
    assert again.search(queries) == retriever.search(queries)
    assert ImageRetriever.from_corpus(loaded, encoder, string_factory="HNSW8").factory == "HNSW8"
    card = (folder / "README.md").read_text()
    assert "HNSW8, images embedded by `clip`" in card and str(tmp_path) not in card
    saved_again = loaded.save_pretrained(tmp_path / "again")
    assert len(list(saved_again.glob("faiss/*/index.faiss"))) == 2
    assert not list(saved_again.glob("faiss/**/*.arrow"))
    (exact,) = saved_again.glob("faiss/*-Flat")
    shutil.rmtree(exact)  # what is published of a large corpus: the approximate index alone
    large = KnowledgeCorpus.from_pretrained(saved_again, tmp_path / "new cache")
    assert ImageRetriever.from_corpus(large, encoder).factory == "HNSW8"
    retriever.save(tmp_path / "copy")
    assert ImageRetriever(loaded, encoder, tmp_path / "copy").search(queries) == retriever.search(queries)


KILLED = """
import os, signal, sys
from modeling_more.knowledge import ImageEncoder, ImageRetriever, KnowledgeCorpus

class Killed(ImageEncoder):
    calls = 0
    def embed(self, images):
        Killed.calls += 1
        if Killed.calls == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed(images)

tower, folder, index = sys.argv[1:]
ImageRetriever.from_corpus(KnowledgeCorpus(folder), Killed(tower, batch_size=4), index, shard_rows=2)
"""


def test_a_killed_embedding_continues_with_the_same_index(
    tmp_path: Path, encoder: ImageEncoder, towers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = make(tmp_path, encoder, index_dir=tmp_path / "unbroken", shard_rows=2)
    process = run(KILLED, towers["clip"], unbroken.corpus.folder, tmp_path / "broken")
    _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error
    shards = sorted((tmp_path / "broken" / "embeddings").glob("*.arrow"))
    assert len(shards) == 3
    shards[1].write_bytes(shards[1].read_bytes()[:100])  # and one was damaged since
    calls: list[int] = []
    embed = encoder.embed
    monkeypatch.setattr(encoder, "embed", lambda images: calls.append(len(images)) or embed(images))
    continued = make(tmp_path, encoder, index_dir=tmp_path / "broken", shard_rows=2)
    assert calls == [2, 2, 2, 1]  # the damaged one, and those from the fourth on
    files = [next(path.glob("*/index.faiss")).read_bytes() for path in (tmp_path / "broken", tmp_path / "unbroken")]
    assert files[0] == files[1]
    assert continued.search([noise(2)]) == unbroken.search([noise(2)])
    assert not list(tmp_path.glob("broken/**/*.lock")) + list(tmp_path.glob("broken/**/*.tmp*"))


SHARED = """
import sys, time
from modeling_more.knowledge import ImageEncoder, ImageRetriever, KnowledgeCorpus

class Slow(ImageEncoder):
    calls = 0
    def embed(self, images):
        Slow.calls += 1
        time.sleep(0.3)
        return super().embed(images)

tower, folder, index = sys.argv[1:]
ImageRetriever.from_corpus(KnowledgeCorpus(folder), Slow(tower, batch_size=4), index, shard_rows=1)
print(Slow.calls)
"""


def test_processes_share_the_embedding(tmp_path: Path, encoder: ImageEncoder, towers: dict[str, str]) -> None:
    alone = make(tmp_path, encoder, index_dir=tmp_path / "alone", shard_rows=1)
    arguments = towers["clip"], alone.corpus.folder, tmp_path / "shared"
    processes = [run(SHARED, *arguments, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum(int(output) for output, _ in outputs) == 11, outputs  # each image once
    files = [next(path.glob("*/index.faiss")).read_bytes() for path in (tmp_path / "shared", tmp_path / "alone")]
    assert files[0] == files[1]


PUSHED = """
import sys
from pathlib import Path
from modeling_more.knowledge import ImageEncoder, ImageRetriever, KnowledgeCorpus, load_knowledge

tower, file, cache, new_cache = sys.argv[1:]
encoder = ImageEncoder(tower)
built = KnowledgeCorpus.from_files(file, cache)
queries = [Path(file).parent / f"{number}.png" for number in range(11)]
found = ImageRetriever.from_corpus(built, encoder).search(queries)
built.push_to_hub("ORG/pictures", license="cc0-1.0", date="20231101")
loaded = load_knowledge(["ORG/pictures"], new_cache)
assert loaded.info == built.info
retriever = ImageRetriever.from_corpus(loaded, encoder)
assert "snapshots" in str(retriever.index_dir), retriever.index_dir
assert retriever.search(queries) == found
"""


def test_push_to_hub_and_load_again(tmp_path: Path, towers: dict[str, str]) -> None:
    file = write_corpus(tmp_path / "k")
    with local_hub(tmp_path / "hub") as hub:
        process = run(PUSHED, towers["clip"], file, tmp_path / "cache", tmp_path / "new", **hub.env)
        _, error = process.communicate()
        assert process.returncode == 0, error
        names = hub.files("ORG/pictures", "dataset")
    assert any(name.endswith("index.faiss") for name in names) and "bm25/index.json" in names
    assert any(name.startswith("images/train-") for name in names)
    assert not any(name.endswith(".arrow") or name.endswith(".lock") for name in names)
