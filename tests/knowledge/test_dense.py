"""Retrieval by sentence embeddings, and the fusion of rankings, against brute force."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knowledge_rows import LAKE_ARTICLES
from modeling_more.knowledge import KnowledgeCorpus
from modeling_more.knowledge import dense as dense_module
from modeling_more.knowledge.dense import DenseRetriever, FusedRetriever, SentenceEncoder
from modeling_more.knowledge.vectors import INDEX_FILE
from ner_runs import write_jsonl


@pytest.fixture
def corpus(tmp_path: Path) -> KnowledgeCorpus:
    return KnowledgeCorpus.from_files(write_jsonl(tmp_path / "wiki.jsonl", LAKE_ARTICLES), tmp_path / "cache")


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Callable[[str], str]) -> SentenceEncoder:
    return SentenceEncoder(tiny_encoder("bert"), batch_size=3)


def brute_force(corpus: KnowledgeCorpus, encoder: SentenceEncoder, query: str) -> list[tuple[float, str, int]]:
    """(score, paragraph, start of the match) of every distinct paragraph, best first."""
    keys = np.concatenate([encoder.embed([key]) for key in corpus.keys()])
    found: dict[tuple[str, str], tuple[float, str, int]] = {}
    for row, score in enumerate((keys @ encoder.embed([query])[0]).tolist()):
        _, title, text = corpus.paragraph(int(corpus.sentence_paragraph[row]))
        if (title, text) not in found or score > found[title, text][0] + 1e-6:
            found[title, text] = score, text, int(corpus.sentence_start[row])
    return sorted(found.values(), key=lambda one: -one[0])


def test_embeddings_do_not_depend_on_the_batch(encoder: SentenceEncoder) -> None:
    texts = ["Oslo", "Ada met Charles Babbage in London and in Oslo .", "", "A town .", "snowing " * 400]
    together = encoder.embed(texts)
    assert together.shape == (5, encoder.dimension) and together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.allclose(together, np.concatenate([encoder.embed([text]) for text in texts]), atol=1e-5)
    assert encoder.embed([]).shape == (0, encoder.dimension)
    import torch

    inputs = encoder.tokenizer(texts[1], return_tensors="pt")
    with torch.no_grad():
        mean = encoder.model(**inputs).last_hidden_state[0].mean(dim=0)  # no padding here: a plain mean
    assert np.allclose(together[1], (mean / mean.norm()).numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["roberta", "modernbert"])
def test_other_encoders(kind: str, tiny_encoder: Callable[[str], str], encoder: SentenceEncoder) -> None:
    other = SentenceEncoder(tiny_encoder(kind))
    assert other.fingerprint == SentenceEncoder(tiny_encoder(kind)).fingerprint != encoder.fingerprint
    assert other.embed(["Oslo", "Ada met Charles in London ."]).shape == (2, other.dimension)


def test_dense_search_equals_brute_force(corpus: KnowledgeCorpus, encoder: SentenceEncoder) -> None:
    retriever = DenseRetriever.from_corpus(corpus, encoder)
    queries = ["Oslo lies by the sea", "Who makes phones ?", "…", "a town in Germany"]
    results = retriever.search(queries, top_k=100)
    assert results[2] == []  # no word
    for query, entries in zip(queries, results, strict=True):
        for entry, (score, text, start) in zip(entries, brute_force(corpus, encoder, query), strict=False):
            assert entry["score"] == pytest.approx(score, abs=1e-5)
            assert (entry["text"], entry["match_start"]) == (text, start)
    assert {len(entries) for entries in results} == {0, corpus.info.paragraphs}
    few = retriever.search(queries, top_k=2)  # fetches on past the sentences of one paragraph
    assert [[e["text"] for e in r] for r in few] == [[e["text"] for e in r[:2]] for r in results]
    with pytest.raises(ValueError, match="At least one"):
        retriever.search(["Oslo"], top_k=0)


def test_dense_index_is_saved_and_checked(corpus: KnowledgeCorpus, encoder: SentenceEncoder, tmp_path: Path) -> None:
    retriever = DenseRetriever.from_corpus(corpus, encoder, tmp_path / "index")
    expected = retriever.search(["Oslo by the sea"])
    retriever.save(tmp_path / "saved")
    again = DenseRetriever(corpus, encoder, tmp_path / "saved")
    assert again.search(["Oslo by the sea"]) == expected and again.fingerprint == retriever.fingerprint
    other = KnowledgeCorpus.from_files(write_jsonl(tmp_path / "o.jsonl", LAKE_ARTICLES[::-1]), tmp_path / "cache")
    with pytest.raises(ValueError, match="is of corpus"):
        DenseRetriever(other, encoder, tmp_path / "saved")
    with pytest.raises(ValueError, match="is of encoder"):
        DenseRetriever(corpus, SentenceEncoder(encoder.name, max_length=5), tmp_path / "saved")
    index = tmp_path / "saved" / INDEX_FILE
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(ValueError, match="its digest differs"):
        DenseRetriever(corpus, encoder, tmp_path / "saved")
    index.unlink()
    with pytest.raises(FileNotFoundError, match=INDEX_FILE):
        DenseRetriever(corpus, encoder, tmp_path / "saved")
    with pytest.raises(FileNotFoundError, match="no dense index"):
        DenseRetriever(corpus, encoder, tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SentenceEncoder(tmp_path / "nowhere")


def test_sentences_that_are_too_long_are_counted(
    corpus: KnowledgeCorpus, encoder: SentenceEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = SentenceEncoder(encoder.name, max_length=7)
    lengths = [len(short.tokenizer(key)["input_ids"]) for key in corpus.keys()]
    dense_module.embed_corpus(corpus, short, tmp_path / "e")
    count = sum(length >= 7 for length in lengths)
    assert 0 < count < len(corpus) and f"{count} sentences are read up to 7 sub-tokens" in caplog.text


def test_approximate_indexes(corpus: KnowledgeCorpus, encoder: SentenceEncoder, tmp_path: Path) -> None:
    exact = DenseRetriever.from_corpus(corpus, encoder, tmp_path / "index")
    expected = exact.search(["Oslo by the sea"], 3)
    for factory, parameters in (("HNSW8", "efSearch=64"), ("IVF2,Flat", "nprobe=2")):
        found = DenseRetriever.from_corpus(corpus, encoder, tmp_path / "index", factory, parameters)
        assert [e["text"] for e in found.search(["Oslo by the sea"], 3)[0]] == [e["text"] for e in expected[0]]
        assert found.fingerprint != exact.fingerprint
    one_list = DenseRetriever.from_corpus(corpus, encoder, tmp_path / "index", "IVF2,Flat", "nprobe=1")
    assert (
        0 < len(one_list.search(["Oslo by the sea"], 100)[0]) <= corpus.info.paragraphs
    )  # ends, though some are short
    with pytest.raises(ValueError, match="FAISS can't build 'Nonsense'"):
        DenseRetriever.from_corpus(corpus, encoder, tmp_path / "index", "Nonsense")


KILLED = """
import os, signal, sys
from modeling_more.knowledge import KnowledgeCorpus
from modeling_more.knowledge import dense

class Killed(dense.SentenceEncoder):
    calls = 0
    def embed(self, texts):
        Killed.calls += 1
        if Killed.calls == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed(texts)

folder, encoder, index = sys.argv[1:]
dense._SHARD_ROWS = 4
dense.DenseRetriever.from_corpus(KnowledgeCorpus(folder), Killed(encoder, batch_size=3), index)
"""


def test_a_killed_embedding_continues_with_the_same_result(
    corpus: KnowledgeCorpus, encoder: SentenceEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense_module, "_SHARD_ROWS", 4)
    unbroken = DenseRetriever.from_corpus(corpus, encoder, tmp_path / "unbroken")
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", KILLED, str(corpus.folder), encoder.name, str(tmp_path / "broken")]
    run = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": root}, capture_output=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    embedded: list[int] = []
    embed = encoder.embed
    monkeypatch.setattr(encoder, "embed", lambda texts: embedded.append(len(texts)) or embed(texts))
    continued = DenseRetriever.from_corpus(corpus, encoder, tmp_path / "broken")
    assert sum(embedded) == len(corpus) - 8  # two shards stood already
    indexes = [retriever.index_dir / INDEX_FILE for retriever in (unbroken, continued)]
    assert indexes[0].read_bytes() == indexes[1].read_bytes()
    assert not list((tmp_path / "broken").rglob("*.tmp*"))


def test_damaged_shards_are_made_again(
    corpus: KnowledgeCorpus, encoder: SentenceEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense_module, "_SHARD_ROWS", 4)
    whole = dense_module.embed_corpus(corpus, encoder, tmp_path / "e").with_format("numpy")[:]["embedding"]
    assert np.allclose(whole, encoder.embed(list(corpus.keys())), atol=1e-5)
    files = sorted((tmp_path / "e").glob("*.arrow"))
    files[0].write_bytes(files[0].read_bytes()[:50])
    files[1].unlink()
    made: list[str] = []
    embed = encoder.embed
    monkeypatch.setattr(encoder, "embed", lambda texts: made.append(texts[0]) or embed(texts))
    again = dense_module.embed_corpus(corpus, encoder, tmp_path / "e").with_format("numpy")[:]["embedding"]
    assert np.array_equal(whole, again)
    assert made == [corpus[0]["key"], corpus[4]["key"]]


class Ranking:
    """A retriever with one fixed ranking."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.fingerprint = " ".join(texts)

    def search(self, queries: Any, top_k: int = 10) -> list[list[dict[str, Any]]]:
        return [[{"title": "", "text": text, "score": 9.0, "source": self.fingerprint} for text in self.texts]] * len(
            queries
        )


def test_reciprocal_rank_fusion() -> None:
    fused = FusedRetriever([Ranking("a", "b", "c"), Ranking("d", "c")])
    (entries,) = fused.search(["x"], top_k=3)
    assert [entry["text"] for entry in entries] == ["c", "a", "d"]
    assert [entry["score"] for entry in entries] == pytest.approx([1 / 63 + 1 / 62, 1 / 61, 1 / 61])
    assert entries[0]["source"] == "d c"  # from the ranking that has it higher
    assert fused.fingerprint != FusedRetriever([Ranking("a", "b", "c")]).fingerprint
    (kept,) = fused.search(["x"], top_k=2, posts=["c"])
    assert [entry["text"] for entry in kept] == ["a", "d"]  # the entry that is the post is dropped and replaced
    with pytest.raises(ValueError, match="No retriever"):
        FusedRetriever([])
