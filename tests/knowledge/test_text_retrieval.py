"""BM25 against brute force, and attaching what it finds to posts."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from knowledge_rows import ARTICLES, bm25_scores, make, posts, random_rows
from modeling_more.knowledge import (
    KNOWLEDGE_FEATURE,
    AttachReport,
    BM25Retriever,
    attach_text_knowledge,
    load_knowledge,
    text_index,
    title_recall,
)
from modeling_more.knowledge import attach as attach_module
from modeling_more.knowledge.leakage import search_without_leaks


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bm25_equals_brute_force(tmp_path: Path, seed: int) -> None:
    retriever = make(tmp_path, random_rows(seed))
    corpus = retriever.corpus
    keys = list(corpus.keys())
    queries = ["w1", "W1, w2; w2 w2 w30 unknown", "w0 w0 w7 w9 w3", "unknown words", "", "…", "w24 w1 w24 w5"]
    for top_k in (1, 3, 10, 1000):
        rows, scores = retriever.search_paragraphs(queries, top_k)
        for number, query in enumerate(queries):
            exact = bm25_scores(keys, query)
            best: dict[int, float] = {}  # the best sentence of each paragraph
            for row in np.flatnonzero(exact > 0):
                paragraph = int(corpus.sentence_paragraph[row])
                best[paragraph] = max(best.get(paragraph, 0), exact[row])
            expected = sorted(best.values(), reverse=True)[:top_k]
            found = [row for row in rows[number].tolist() if row >= 0]
            assert len(found) == len(expected)
            assert len({int(corpus.sentence_paragraph[row]) for row in found}) == len(found)
            np.testing.assert_allclose(scores[number][: len(found)], expected, rtol=1e-5)
            np.testing.assert_allclose(exact[found], expected, rtol=1e-5)  # the rows have the scores they claim


def test_repeats_in_the_query_count(tmp_path: Path) -> None:
    retriever = make(tmp_path, ARTICLES)
    once, twice = retriever.search(["harbour", "harbour harbour"], 1)
    assert once[0]["text"] == "Oslo has a harbour."
    assert twice[0]["score"] == pytest.approx(2 * once[0]["score"], rel=1e-6)
    assert retriever.search(["nowhere"], 3) == [[]]
    assert retriever.search([], 3) == []


def test_ties_are_ordered_by_row_whatever_is_asked_for(tmp_path: Path) -> None:
    retriever = make(tmp_path, random_rows(4, articles=300, vocabulary=6))
    queries = ["w0 w1", "w2", "w3 w3 w0"]
    everything, scores = retriever.search_paragraphs(queries, 10_000)
    for row in range(len(queries)):
        valid = everything[row] >= 0
        order = np.lexsort((everything[row][valid], -scores[row][valid]))
        assert order.tolist() == list(range(valid.sum()))
        assert len(set(scores[row][valid].tolist())) < valid.sum() / 2  # there are ties to settle
    for k in (1, 2, 5, 10, 33, 100):
        np.testing.assert_array_equal(retriever.search_paragraphs(queries, k)[0], everything[:, :k])


def test_batches_and_threads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retriever = make(tmp_path, random_rows(5))
    rng = random.Random(0)
    queries = [" ".join(f"w{rng.randrange(30)}" for _ in range(rng.randrange(9))) for _ in range(57)]
    whole = retriever.search(queries)
    assert whole == [retriever.search([query])[0] for query in queries]
    threaded = BM25Retriever(retriever.corpus, retriever.index_dir, n_threads=3)
    assert threaded.search(queries) == whole
    monkeypatch.setattr("modeling_more.knowledge.text._BATCH", 10)
    assert retriever.search(queries) == whole


def test_fetches_on_until_k_distinct_values(tmp_path: Path) -> None:
    # the thirty best sentences stand in one paragraph, and that paragraph is in the corpus seven times
    crowd = " ".join(["Anvil anvil."] * 30)
    rows = [{"id": f"c{n}", "title": "Crowd", "text": crowd} for n in range(7)]
    rows += [
        {"id": f"r{n}", "title": f"R{n}", "text": f"An anvil stands beside harbour number {n}."} for n in range(4)
    ]
    retriever = make(tmp_path, rows)
    found = retriever.search(["anvil"], 4)[0]
    assert [entry["title"] for entry in found] == ["Crowd", "R0", "R1", "R2"]
    assert [entry["title"] for entry in retriever.search(["anvil"], 10)[0]] == ["Crowd", "R0", "R1", "R2", "R3"]


def test_entries_name_the_matched_sentence(tmp_path: Path) -> None:
    entry = make(tmp_path, ARTICLES).search(["the sea"], 2)[0][0]
    assert entry["source"] == "a2" and entry["title"] == "Oslo"
    assert entry["text"][entry["match_start"] : entry["match_end"]] == "Oslo lies by the sea."


# ---------------------------------------------------------------- attaching


def test_attach_adds_the_column_and_counts(tmp_path: Path) -> None:
    retriever = make(tmp_path, ARTICLES)
    splits = DatasetDict({"train": posts("Oslo again", "nothing here"), "test": posts("by the sea", "東京 !", "…")})
    attached, report = attach_text_knowledge(splits, retriever, top_k=2, cache_dir=tmp_path / "cache", shard_size=2)
    assert report == AttachReport(posts=5, entries=5, without_knowledge=2, dropped_as_leak=0, cached=0)
    assert attached["train"].features["knowledge_text"] == KNOWLEDGE_FEATURE
    assert attached["train"].features["ner_tags"] == splits["train"].features["ner_tags"]
    assert attached["test"].column_names == ["tokens", "ner_tags", "knowledge_text"]
    assert attached["test"]["tokens"] == splits["test"]["tokens"]
    texts = ["by the sea", "東京 !", "…"]
    assert [[e["text"] for e in row] for row in attached["test"]["knowledge_text"]] == [
        [e["text"] for e in found] for found in retriever.search(texts, 2)
    ]
    again, report = attach_text_knowledge(splits, retriever, top_k=2, cache_dir=tmp_path / "cache", shard_size=2)
    assert report == AttachReport(posts=5, entries=5, without_knowledge=2, dropped_as_leak=0, cached=5)
    assert again["test"].to_list() == attached["test"].to_list()
    _, report = attach_text_knowledge(splits, retriever, top_k=1, cache_dir=tmp_path / "cache", shard_size=2)
    assert report.cached == 0  # other settings, other results
    with pytest.raises(ValueError, match="have a column knowledge_text already"):
        attach_text_knowledge(attached, retriever, cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match="no column tokens"):
        attach_text_knowledge(splits["train"].remove_columns("tokens"), retriever, cache_dir=tmp_path / "cache")


def test_attach_follows_selected_and_shuffled_rows(tmp_path: Path) -> None:
    retriever = make(tmp_path, ARTICLES)
    rows = posts("Oslo", "anvils", "東京", "harbour").shuffle(seed=3).select([2, 0, 3])
    attached, _ = attach_text_knowledge(rows, retriever, top_k=1, cache_dir=tmp_path / "cache")
    for row in attached:
        assert row["knowledge_text"] == retriever.search([" ".join(row["tokens"])], 1)[0]
    empty, report = attach_text_knowledge(rows.select([]), retriever, cache_dir=tmp_path / "cache")
    assert report == AttachReport() and empty.features["knowledge_text"] == KNOWLEDGE_FEATURE


def test_permuted_labels_change_no_entry(tmp_path: Path) -> None:
    retriever = make(tmp_path, ARTICLES)
    texts = ("Oslo by the sea", "anvils of Acme today")
    one, _ = attach_text_knowledge(posts(*texts), retriever, cache_dir=tmp_path / "1")
    other = posts(*texts, tags=[[1, 2, 0, 1], [0, 1, 1, 2]])
    permuted, report = attach_text_knowledge(other, retriever, cache_dir=tmp_path / "2")
    assert permuted["knowledge_text"][:] == one["knowledge_text"][:] and report.cached == 0
    seen: list[set[str]] = []

    def query(row: dict[str, Any]) -> str:
        seen.append(set(row))
        return "Oslo"

    asked, _ = attach_text_knowledge(other, retriever, cache_dir=tmp_path / "2", query=query)
    assert seen == [{"tokens"}, {"tokens"}]  # a query function can't see the labels either
    assert asked["knowledge_text"][0] == asked["knowledge_text"][1] != []


def test_leaks_are_dropped_counted_and_replaced(tmp_path: Path) -> None:
    long = "Rivera scored twice as Northfield beat Eastbrook last night"
    rows = [
        {"id": "1", "title": "Copy", "text": f"As was said: {long.upper()}! It was cold."},  # holds the whole post
        {"id": "2", "title": "Short", "text": "Rivera scored"},  # equals the short post
        {"id": "3", "title": "Part", "text": "Rivera scored once."},  # holds the short post, which is not a leak
        {
            "id": "4",
            "title": "Rest",
            "text": "Rivera plays for Northfield twice a week, night by night.",
        },
    ]
    retriever = make(tmp_path, rows)
    dataset = posts(f"{long} !", "rivera scored .", "Northfield")
    attached, report = attach_text_knowledge(dataset, retriever, top_k=2, cache_dir=tmp_path / "cache")
    titles = [[entry["title"] for entry in row] for row in attached["knowledge_text"]]
    assert "Copy" not in titles[0] and len(titles[0]) == 2  # the guard does not shorten the list
    assert "Short" not in titles[1] and "Part" in titles[1] and len(titles[1]) == 2
    assert len(titles[2]) == 2
    assert report.dropped_as_leak == 2
    kept, dropped = search_without_leaks(retriever.search, [long], [long], 10)
    assert len(kept[0]) == 3 and dropped == [1]
    assert retriever.search([long], 2, posts=[long])[0] == kept[0][:2]
    with pytest.raises(ValueError, match="one query per post"):
        search_without_leaks(retriever.search, ["a"], [], 10)


KILLED = """
import os, signal, sys
from datasets import load_from_disk
from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus, attach_text_knowledge

class Killed(BM25Retriever):
    calls = 0
    def search(self, queries, top_k=10, posts=None):
        Killed.calls += 1
        if Killed.calls == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().search(queries, top_k, posts)

folder, index, cache, dataset = sys.argv[1:]
retriever = Killed(KnowledgeCorpus(folder), index)
attach_text_knowledge(load_from_disk(dataset), retriever, cache_dir=cache, shard_size=5)
"""


def test_a_killed_run_continues_with_the_same_result(tmp_path: Path) -> None:
    retriever = make(tmp_path, random_rows(6))
    rng = random.Random(0)
    dataset = posts(*(" ".join(f"w{rng.randrange(30)}" for _ in range(6)) for _ in range(33)))
    dataset.save_to_disk(tmp_path / "posts")
    unbroken, _ = attach_text_knowledge(dataset, retriever, cache_dir=tmp_path / "unbroken", shard_size=5)
    arguments = [retriever.corpus.folder, retriever.index_dir, tmp_path / "broken", tmp_path / "posts"]
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", KILLED, *map(str, arguments)]
    run = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": root}, capture_output=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    continued, report = attach_text_knowledge(dataset, retriever, cache_dir=tmp_path / "broken", shard_size=5)
    assert report.cached == 15 and report.posts == 33
    assert continued.to_list() == unbroken.to_list()


KILLED_BUILD = """
import os, signal, sys
from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus, text_index

def split(text, calls=[]):
    calls.append(text)
    if len(calls) == 25:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(text)

whole, text_index.split_text, text_index._PART_ROWS = text_index.split_text, split, 10
BM25Retriever.from_corpus(KnowledgeCorpus(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.parametrize("damaged", [False, True])
def test_a_killed_build_of_the_index_continues_with_the_same_result(
    damaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unbroken = make(tmp_path, random_rows(6))
    corpus = unbroken.corpus
    assert len(corpus) > 40
    index, parts = tmp_path / "index" / "bm25", tmp_path / "index" / ".bm25.parts"
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", KILLED_BUILD, str(corpus.folder), str(index)]
    run = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": root}, capture_output=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    assert not index.exists()
    first, _ = sorted(parts.glob("*.npz"))
    if damaged:
        first.write_bytes(b"something else")

    split: list[str] = []
    whole = text_index.split_text
    monkeypatch.setattr(text_index, "_PART_ROWS", 10)
    monkeypatch.setattr(text_index, "split_text", lambda text: split.append(text) or whole(text))
    continued = BM25Retriever.from_corpus(corpus, index)
    assert split == [*(corpus.keys(0, 10) if damaged else ()), *corpus.keys(20)]
    for name in ("data", "indices", "indptr"):
        assert np.array_equal(continued.index.scores[name], unbroken.index.scores[name])
    assert list(continued.vocabulary.items()) == list(unbroken.vocabulary.items())
    assert not parts.exists() and ("is damaged" in caplog.text) == damaged


def test_a_damaged_shard_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    retriever = make(tmp_path, ARTICLES)
    first, _ = attach_text_knowledge(posts("Oslo", "sea"), retriever, cache_dir=tmp_path / "cache")
    expected = first.to_list()
    (shard,) = (tmp_path / "cache" / "attach").glob("*.arrow")
    content = shard.read_bytes()
    shard.unlink()
    for damaged in (content[: len(content) // 2], b"", b"something else"):
        shard.write_bytes(damaged)
        again, report = attach_text_knowledge(posts("Oslo", "sea"), retriever, cache_dir=tmp_path / "cache")
        assert again.to_list() == expected and report.cached == 0
        del again
        shard.unlink()
    assert "is damaged" in caplog.text
    assert not list((tmp_path / "cache" / "attach").glob("*.tmp*"))
    assert attach_module._open(shard, 2) is None


# ---------------------------------------------------------------- real data


def test_title_recall_counts_occurrences() -> None:
    entry = {"text": "", "score": 1.0, "source": "", "match_start": 0, "match_end": 0}
    dataset = posts("Oslo and New York", "New York", tags=[[1, 0, 1, 2], [1, 2]])
    dataset = dataset.add_column("knowledge_text", [[{"title": "Oslo (city)", **entry}], []])
    score = title_recall(dataset, ["Oslo (ship)", "New York"])
    assert score == (1, 3) and score.recall == pytest.approx(1 / 3)


def test_title_recall_on_real_posts(shared_data: Path, tmp_path: Path) -> None:
    from modeling_more.data.conll import read_conll

    names = ("fb15k_descriptions", "codex_wiki", "factbook_countries")
    corpus = load_knowledge([str(shared_data / "knowledge" / f"{name}.jsonl.gz") for name in names], tmp_path)
    assert (corpus.info.articles, corpus.info.empty) == (14951 + 2034 + 254, 90)
    rows = read_conll(shared_data / "twitter2017" / "test.txt")
    dataset = Dataset.from_dict({name: [row[name] for row in rows] for name in ("tokens", "ner_tags")})
    retriever = BM25Retriever.from_corpus(corpus)
    attached, report = attach_text_knowledge(dataset, retriever, cache_dir=tmp_path)
    assert (report.posts, report.entries, report.without_knowledge) == (723, 7230, 0)
    found, mentions = title_recall(attached, corpus.paragraphs["title"])
    assert mentions == 413
    assert found / mentions >= 0.60
