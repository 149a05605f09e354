"""What lies damaged in a cache is noticed, said with the file's name, and computed again: no run ends for it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from hostile_files import DAMAGES, damage

from image_knowledge import make as make_images
from image_knowledge import write_corpus
from knowledge_rows import ARTICLES, make, posts, random_rows
from modeling_more.knowledge import (
    BM25Retriever,
    EntityRetriever,
    ImageEncoder,
    KnowledgeCorpus,
    attach_text_knowledge,
    text_index,
)
from modeling_more.knowledge.corpus_tables import open_shard, write_stream
from modeling_more.knowledge.dense import SentenceEncoder
from modeling_more.knowledge.vectors import embed_in_shards
from ner_runs import ROOT, write_jsonl


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with articles, a cache of their corpus and indexes, and of what was found for posts."""
    folder = tmp_path_factory.mktemp("built")
    corpus = KnowledgeCorpus.from_files(write_jsonl(folder / "k.jsonl", random_rows(1)), folder / "cache")
    retriever = EntityRetriever.from_corpus(corpus)
    attach_text_knowledge(posts("w1 w2", "w3"), retriever, cache_dir=folder / "cache")
    return folder


def found(folder: Path) -> tuple[object, ...]:
    """Everything that a run gets from the cache: a corpus, both indexes, the knowledge of posts."""
    corpus = KnowledgeCorpus.from_files(folder / "k.jsonl", folder / "cache")
    retriever = EntityRetriever.from_corpus(corpus)
    attached, _ = attach_text_knowledge(posts("w1 w2", "w3"), retriever, cache_dir=folder / "cache")
    return corpus.fingerprint, list(corpus.table), retriever.search(["w1 w2\x1fT5"]), attached.to_list()


FILES = [
    "corpora/*/paragraphs.arrow", "corpora/*/sentences.arrow", "corpora/*/knowledge.json",
    "corpora/*/bm25/data.csc.index.npy", "corpora/*/bm25/indices.csc.index.npy", "corpora/*/bm25/vocab.index.json",
    "corpora/*/bm25/index.json", "corpora/*/bm25_titles/article_start.npy", "corpora/*/bm25_titles/index.json",
    "corpora/*/bm25_titles/indptr.csc.index.npy", "attach/*.arrow",
]  # fmt: skip


@pytest.mark.parametrize("pattern", FILES)
def test_damage_in_the_cache_of_a_corpus_is_mended(
    pattern: str, built: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(built, tmp_path / "run"))
    expected = found(folder)
    for how, change in DAMAGES.items():
        (file,) = (folder / "cache").glob(pattern)
        damage(file, change)
        caplog.clear()
        assert found(folder) == expected, how
        told = [record.message for record in caplog.records if "again" in record.message]
        assert any(file.parent.name in message for message in told), (how, caplog.text)
        caplog.clear()
        assert found(folder) == expected and "again" not in caplog.text, how
    assert not list(folder.rglob("*.tmp"))


def test_a_corpus_that_was_loaded_is_mended_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved = make(tmp_path, ARTICLES).corpus.save_pretrained(tmp_path / "saved")
    expected = list(KnowledgeCorpus.from_pretrained(saved, tmp_path / "new").table)
    for change in DAMAGES.values():
        (file,) = (tmp_path / "new").glob("corpora/*/paragraphs.arrow")
        damage(file, change)
        assert list(KnowledgeCorpus.from_pretrained(saved, tmp_path / "new").table) == expected
    assert caplog.text.count("it is built again") == len(DAMAGES)


def test_embeddings_are_made_again_where_they_are_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[tuple[int, int]] = []

    def embed(first: int, last: int) -> np.ndarray:
        calls.append((first, last))
        return np.arange(first * 8, last * 8, dtype=np.float32).reshape(-1, 8)

    def rows() -> list[list[float]]:
        return embed_in_shards(tmp_path, "vectors", 50, 8, embed, 20)["embedding"][:]

    expected = rows()
    second = sorted(tmp_path.glob("vectors-*.arrow"))[1]
    for change in DAMAGES.values():
        damage(second, change)
        calls.clear()
        caplog.clear()
        assert rows() == expected and calls == [(20, 40)]
        assert f"{second} is damaged: its rows are embedded again" in caplog.text
    calls.clear()
    assert rows() == expected and not calls


def test_a_whole_file_of_other_rows_or_columns_is_made_again(tmp_path: Path) -> None:
    features = Features({"a": Value("int32")})
    file = tmp_path / "shard.arrow"
    write_stream(file, features, Dataset.from_dict({"a": [1, 2]}, features).data.to_batches())
    assert open_shard(file, features, 2, "") is not None  # one of the time before digests
    assert open_shard(file, features, 3, "") is None
    assert open_shard(file, Features({"a": Value("int64")}), 2, "") is None
    assert open_shard(file, Features({"b": Value("int32")}), 2, "") is None


def test_an_image_index_in_the_cache_is_built_again(
    tmp_path: Path, encoder: ImageEncoder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = make_images(tmp_path, encoder)
    vectors = encoder.embed([write_corpus(tmp_path / "k").parent / "3.png"])
    expected = retriever.search_vectors(vectors)
    monkeypatch.setattr(encoder, "embed", None)  # the embeddings are still there
    for name in ("index.faiss", "image_index.json"):
        for change in DAMAGES.values():
            damage(retriever.index_dir / name, change)
            caplog.clear()
            assert make_images(tmp_path, encoder).search_vectors(vectors) == expected
            assert "it is built again" in caplog.text and str(retriever.index_dir) in caplog.text


@pytest.mark.parametrize("how", DAMAGES)
def test_parts_of_an_index_are_read_whole_or_made_again(how: str, tmp_path: Path) -> None:
    part = text_index._Part(np.array([0, 1, 0], np.int32), np.array([1, 2], np.int32), ["a", "b"])
    file = tmp_path / "part.npz"
    text_index._write_part(file, part)
    again = text_index._read_part(file, 2, 0)
    assert again is not None and again.new == part.new and (again.words == part.words).all()
    assert text_index._read_part(file, 3, 0) is None  # of other texts
    for words, lengths in (([0, 5, 0], [1, 2]), ([0, -1, 0], [1, 2]), ([0, 1, 0], [1, 1]), ([0, 1, 0], [4, -1])):
        text_index._write_part(
            file, text_index._Part(np.array(words, np.int32), np.array(lengths, np.int32), part.new)
        )
        assert text_index._read_part(file, 2, 0) is None
    text_index._write_part(file, part)
    damage(file, DAMAGES[how])
    assert text_index._read_part(file, 2, 0) is None


def test_parts_that_a_killed_builder_left_beside_a_whole_index_go(tmp_path: Path) -> None:
    retriever = make(tmp_path, random_rows(1))
    parts = retriever.corpus.folder / ".bm25.parts"
    parts.mkdir()
    (parts / "x.npz").write_bytes(b"")
    BM25Retriever.from_corpus(retriever.corpus)
    assert not parts.exists()


FINGERPRINT = """
import sys
from modeling_more.knowledge.dense import SentenceEncoder
encoder = SentenceEncoder(sys.argv[1], device="cpu")
print(encoder.fingerprint, encoder.embed(["Oslo lies by the sea."]).round(4).tolist())
"""


def test_an_encoder_without_a_pooler_is_the_same_in_every_process(
    tiny_encoder: Callable[[str], str], tmp_path: Path
) -> None:
    from transformers import AutoModel, AutoTokenizer

    source = tiny_encoder("bert")
    AutoModel.from_pretrained(source, add_pooling_layer=False).save_pretrained(tmp_path / "bare")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "bare")
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", FINGERPRINT, str(tmp_path / "bare")]
    runs = [
        subprocess.run(command, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout and len(runs[0].stdout.split()[0]) == 32
    whole = SentenceEncoder(source, device="cpu")
    assert np.allclose(whole.embed(["Oslo"]), SentenceEncoder(tmp_path / "bare", device="cpu").embed(["Oslo"]))


def test_an_encoder_that_lacks_weights_is_an_error(tiny_encoder: Callable[[str], str], tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(tiny_encoder("bert"))
    kept = {name: weight for name, weight in model.state_dict().items() if "layer.1.attention" not in name}
    model.save_pretrained(tmp_path / "cut", state_dict=kept)
    AutoTokenizer.from_pretrained(tiny_encoder("bert")).save_pretrained(tmp_path / "cut")
    with pytest.raises(FileNotFoundError, match=r"cut lacks weights: encoder\.layer\.1\.attention"):
        SentenceEncoder(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(FileNotFoundError, match=r"cut can't be loaded"):
        SentenceEncoder(tmp_path / "cut")
    torch.manual_seed(0)


FULL = """
import resource, sys
from datasets import Dataset
from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus, attach_text_knowledge

source, cache = sys.argv[1:]
retriever = BM25Retriever.from_corpus(KnowledgeCorpus.from_files(source, cache))
posts = Dataset.from_dict({"id": [str(n) for n in range(99)], "tokens": [["w1", "w2", f"w{n}"] for n in range(99)]})
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, -1))  # no file may be larger
try:
    attach_text_knowledge(posts, retriever, cache_dir=cache)
except OSError as error:
    raise SystemExit(f"error: {error}")
"""


def test_a_disk_that_is_full_at_attaching_names_the_file(tmp_path):
    source, cache = write_jsonl(tmp_path / "k.jsonl", random_rows(1)), tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(source), str(cache)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    (file,) = re.findall(r"File too large: '(.*)'$", said)
    assert Path(file).is_relative_to(cache) and file.endswith(".arrow")
    assert not list(Path(file).parent.glob("*.arrow")) and not list(cache.rglob("*.tmp"))
