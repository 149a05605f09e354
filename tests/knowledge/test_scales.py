"""What the scores of an entry can reach at most, its scale, against brute force; and entries of before without one."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from knowledge_rows import LAKE_ARTICLES, bm25_scores, make, posts, random_rows
from modeling_more.data.sources import load_source
from modeling_more.data.tasks import ENTITIES
from modeling_more.knowledge import DenseRetriever, FusedRetriever, KnowledgeCorpus, attach_text_knowledge
from modeling_more.knowledge.entities import EntityRetriever, entity_query
from ner_runs import write_jsonl

QUERIES = ["w1 w2", "W1, w2; w2 w2 w30 unknown", "w0 w0 w7 w9 w3", "unknown words", "w24 w1 w24 w5", ""]


def idf_sum(texts: list[str], query: str) -> float:
    """METHOD's idf of each of the query's words that a text has, summed in float64, with repeats."""
    docs = [set(re.findall(r"\w+", text.lower())) for text in texts]
    total = 0.0
    for word in re.findall(r"\w+", query.lower()):
        holding = sum(word in doc for doc in docs)
        total += math.log(1 + (len(docs) - holding + 0.5) / (holding + 0.5)) if holding else 0.0
    return total


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_scale_of_bm25_is_the_idf_of_the_query(tmp_path: Path, seed: int) -> None:
    retriever = make(tmp_path, random_rows(seed))
    keys = list(retriever.corpus.keys())
    for query, entries in zip(QUERIES, retriever.search(QUERIES, 1000), strict=True):
        known = idf_sum(keys, query)
        assert all(entry["scale"] == pytest.approx(known, rel=1e-6) for entry in entries)
        assert bool(entries) == (known > 0)
        assert all(0 < entry["score"] <= entry["scale"] for entry in entries)
        assert max([entry["score"] for entry in entries], default=0.0) == pytest.approx(
            bm25_scores(keys, query).max(), rel=1e-5
        )


def test_no_smaller_number_is_a_scale(tmp_path: Path) -> None:
    """A sentence of nothing but the query comes as near as one likes, where others are as long."""
    lines = [" ".join([word] * 2000) for word in ("anvil", "harbour", "phone", "lake")]
    retriever = make(tmp_path, [{"id": word[:4], "title": "", "text": word} for word in lines])
    (entry,) = retriever.search(["anvil anvil"], 1)[0]
    assert 0.999 * entry["scale"] < entry["score"] < entry["scale"]


def test_titles_count_twice(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "lake.jsonl", LAKE_ARTICLES)
    corpus = KnowledgeCorpus.from_files(file, tmp_path / "cache")
    retriever = EntityRetriever.from_corpus(corpus)
    keys, titles = list(corpus.keys()), [article["title"] for article in LAKE_ARTICLES]
    pairs = [("Ada met Charles by the sea", ["Lake Constance", "Oslo Oslo"]), ("the sea", []), ("…", ["Oslo"])]
    for (text, entities), entries in zip(
        pairs, retriever.search([entity_query(*pair) for pair in pairs], 100), strict=True
    ):
        known = idf_sum(keys, text) + 2 * idf_sum(titles, " ".join(entities))
        assert entries and all(entry["scale"] == pytest.approx(known, rel=1e-6) for entry in entries)
        assert all(0 < entry["score"] <= entry["scale"] for entry in entries)


def test_cosines_and_fused_ranks(tmp_path: Path, tiny_encoder: Any) -> None:
    lexical = make(tmp_path, LAKE_ARTICLES)
    dense = DenseRetriever.from_corpus(lexical.corpus, tiny_encoder("bert"))
    queries = ["Oslo lies by the sea", "Ada"]
    cosines = [entry for entries in dense.search(queries, 100) for entry in entries]
    assert {entry["scale"] for entry in cosines} == {1.0} and all(e["score"] <= 1 + 1e-5 for e in cosines)
    for retrievers in ([lexical], [lexical, dense], [lexical, lexical, dense]):
        fused = FusedRetriever(retrievers, k=9)
        entries = [entry for found in fused.search(queries, 100) for entry in found]
        assert all(entry["scale"] == pytest.approx(len(retrievers) / 10) for entry in entries)
        assert all(entry["score"] <= entry["scale"] for entry in entries)
    (first,) = FusedRetriever([lexical, lexical]).search(queries[:1], 1)[0]
    assert first["score"] == first["scale"]  # found first by all of them


class _WithoutScale:
    """A retriever of the user's own, who knows of no scale."""

    fingerprint = "own"

    def search(self, queries: list[str], top_k: int = 10) -> list[list[dict[str, Any]]]:
        entry = {"title": "T", "text": "x y", "score": 2.0, "source": "", "match_start": 0, "match_end": 0}
        return [[entry][:top_k] for _ in queries]


def test_attached_entries_have_it(tmp_path: Path) -> None:
    retriever = make(tmp_path, LAKE_ARTICLES)
    attached, _ = attach_text_knowledge(posts("by the sea"), retriever, cache_dir=tmp_path / "cache")
    (entries,) = attached["knowledge_text"]
    assert entries == retriever.search(["by the sea"])[0]  # to the last bit, as it is searched post by post
    attached, _ = attach_text_knowledge(posts("by the sea"), _WithoutScale(), cache_dir=tmp_path / "cache")
    assert [entry["scale"] for entry in attached["knowledge_text"][0]] == [0.0]


def test_shards_of_before_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retriever = make(tmp_path, LAKE_ARTICLES)
    monkeypatch.setattr("modeling_more.knowledge.attach.ATTACH_VERSION", 2)
    attach_text_knowledge(posts("by the sea"), retriever, cache_dir=tmp_path / "cache")
    monkeypatch.undo()
    _, report = attach_text_knowledge(posts("by the sea"), retriever, cache_dir=tmp_path / "cache")
    assert report.cached == 0
    _, report = attach_text_knowledge(posts("by the sea"), retriever, cache_dir=tmp_path / "cache")
    assert report.cached == 1


def test_data_sets_with_and_without_it_load(tmp_path: Path) -> None:
    """Those published before have none."""
    entry = {"title": "Oslo", "text": "Oslo is a city.", "score": 2.5, "source": "a", "match_start": 0, "match_end": 4}
    for name, more, expected in (("before", {}, 0.0), ("now", {"scale": np.float32(3.5)}, 3.5)):
        for split in ("train", "validation"):
            rows = [{"tokens": ["in", "Oslo"], "ner_tags": ["O", "B-LOC"], "knowledge_text": [entry | more]}] * 2
            file = tmp_path / name / "text" / f"{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            Dataset.from_list(rows).to_parquet(file)
        (tmp_path / name / "README.md").write_text(
            "---\nconfigs:\n- config_name: text\n  data_files:\n"
            + "".join(f"  - split: {s}\n    path: text/{s}-*\n" for s in ("train", "validation"))
            + "---\n"
        )
        source = load_source(ENTITIES, str(tmp_path / name), retrieval="text", cache_dir=str(tmp_path / "hf"))
        assert source.rows["train"][1]["knowledge_text"] == [{**entry, "scale": expected}]
