"""Corpora of knowledge: files of every format, what is counted, saving and loading."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from knowledge_rows import ARTICLES, make, random_rows
from modeling_more.knowledge import (
    BM25Retriever,
    KnowledgeCorpus,
    corpus_builder,
    load_knowledge,
)
from modeling_more.knowledge import corpus as corpus_module
from modeling_more.knowledge.articles import split_paragraphs, split_sentences
from ner_runs import write_jsonl


def test_paragraphs_and_sentences() -> None:
    assert split_paragraphs(" one\n\n\ntwo \r\nthree\n \n") == ["one", "two", "three"]
    text = "It was founded by Dr. K. Lund in the U.S. in 1990, e.g. in Oslo.  Zürich 東京 came later! Really?"
    sentences = [text[start:end] for start, end in split_sentences(text)]
    assert sentences[0] == "It was founded by Dr. K. Lund in the U.S. in 1990, e.g. in Oslo."
    assert sentences[1] == "Zürich 東京 came later!"
    assert all(sentence == sentence.strip() and re.search(r"\w", sentence) for sentence in sentences)
    assert split_sentences("… !") == []


def test_corpus_rows_and_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus = KnowledgeCorpus.from_files(write_jsonl(tmp_path / "k.jsonl", ARTICLES), tmp_path / "cache")
    assert (corpus.info.articles, corpus.info.empty) == (4, 1)
    assert "1 of 4 knowledge articles have no text" in caplog.text
    assert (corpus.info.paragraphs, corpus.info.sentences, len(corpus)) == (5, 8, 8)
    assert corpus[1] == {
        "id": "a1",
        "title": "Acme",
        "key": "It was founded by Dr. K. Lund in 1990.",
        "value": "Acme is a company in Oslo. It was founded by Dr. K. Lund in 1990.",
    }
    assert list(corpus.keys()) == [corpus[row]["key"] for row in range(len(corpus))]
    assert [corpus.table[row] for row in range(8)] == [corpus[row] for row in range(8)]
    assert corpus.table[:8]["key"] == list(corpus.keys())
    assert corpus[7]["key"] == "東京 is far away."
    with pytest.raises(IndexError):
        corpus[8]


def test_ids_that_stand_twice_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Within a file, across files, across corpora, and again when the corpus is opened or loaded."""
    other = {"id": "a2", "title": "Paris", "text": "Paris is a city."}
    one, two = write_jsonl(tmp_path / "one.jsonl", [*ARTICLES, other]), write_jsonl(tmp_path / "two.jsonl", [other])
    for time in range(2):
        caplog.clear()
        corpus = KnowledgeCorpus.from_files(one, tmp_path / "cache")
        assert corpus.info.repeated_ids == 1
        assert "1 of 5 knowledge articles have the id of an earlier one" in caplog.text
        assert (f"{one}, line 5: the id 'a2' is that of an earlier article" in caplog.text) == (time == 0)
    folder = corpus.save_pretrained(tmp_path / "saved", index=False)
    assert "1 with the id of an earlier one" in (folder / "README.md").read_text()
    caplog.clear()
    loaded = KnowledgeCorpus.from_pretrained(folder, tmp_path / "elsewhere")
    assert loaded.info == corpus.info and "have the id of an earlier one" in caplog.text

    good = write_jsonl(tmp_path / "good.jsonl", ARTICLES)
    for specs, repeated in (([good, two], 1), ([good, good], 3), ([good], 0)):
        caplog.clear()
        info = load_knowledge(specs, tmp_path / "cache").info
        assert info.repeated_ids == repeated, specs
        assert ("have the id of an earlier one" in caplog.text) == bool(repeated)
    parts = [KnowledgeCorpus.from_files(file, tmp_path / "cache") for file in (good, two, two)]
    caplog.clear()
    assert KnowledgeCorpus.concatenate(parts[:2], tmp_path / "cache").info.repeated_ids == 1
    assert "1 of 5 knowledge articles have the id of an earlier one" in caplog.text
    assert KnowledgeCorpus.concatenate(parts, tmp_path / "cache").info.repeated_ids == 2


def test_articles_without_ids_are_numbered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bare = [{key: row[key] for key in ("title", "text")} for row in ARTICLES]
    empty = [{"id": value, **row} for value, row in zip((None, "", " ", None), bare, strict=True)]
    pq.write_table(pa.Table.from_pylist(bare), tmp_path / "bare.parquet")
    sources = [write_jsonl(tmp_path / "bare.jsonl", bare), write_jsonl(tmp_path / "empty.jsonl", empty)]
    for file in (*sources, tmp_path / "bare.parquet"):
        caplog.clear()
        corpus = KnowledgeCorpus.from_files(file, tmp_path / "cache")
        assert corpus.paragraphs["id"][:] == ["article-1"] * 2 + ["article-2"] * 2 + ["article-4"]
        assert f"{file}: its articles have no id, they are numbered from article-1" in caplog.text
        assert caplog.text.count("are numbered") == 1 and corpus.info.repeated_ids == 0
    named = write_jsonl(tmp_path / "named.jsonl", ARTICLES)
    caplog.clear()
    corpus = KnowledgeCorpus.from_files([named, *sources], tmp_path / "cache")  # each number once
    assert corpus.paragraphs["id"][5:] == [f"article-{number}" for number in (5, 5, 6, 6, 8, 9, 9, 10, 10, 12)]
    assert "numbered from article-5" in caplog.text and "numbered from article-9" in caplog.text
    for rows, message in (
        ([ARTICLES[0], bare[1]], r"mixed\.jsonl, line 2: no id, while the articles before it have one"),
        ([bare[0], ARTICLES[1]], r"mixed\.jsonl, line 2: an id, while the articles before it have none"),
    ):
        with pytest.raises(ValueError, match=message):
            KnowledgeCorpus.from_files(write_jsonl(tmp_path / "mixed.jsonl", rows), tmp_path / "cache")


def test_articles_without_text_and_image_are_counted_in_parquet_too(tmp_path: Path) -> None:
    features = Features({name: Value("string") for name in ("id", "title", "text")} | {"image": ImageFeature()})
    picture = Image.new("RGB", (20, 20), "red")
    rows = [("a", "A", "Some text.", None), ("b", "B", "", picture), ("c", "C", "", None), ("d", "D", "", None)]
    data = Dataset.from_list([dict(zip(features, row, strict=True)) for row in rows], features)
    data.to_parquet(str(tmp_path / "k.parquet"))
    info = KnowledgeCorpus.from_files(tmp_path / "k.parquet", tmp_path / "cache").info
    assert (info.articles, info.empty, info.images, info.paragraphs) == (4, 2, 1, 1)


def test_title_in_key_changes_keys_and_fingerprint(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "k.jsonl", ARTICLES)
    plain = KnowledgeCorpus.from_files(file, tmp_path / "cache")
    titled = KnowledgeCorpus.from_files(file, tmp_path / "cache", title_in_key=True)
    assert titled[2]["key"] == "Acme Its anvils are heavy." and plain[2]["key"] == "Its anvils are heavy."
    assert titled.fingerprint != plain.fingerprint
    with pytest.raises(ValueError, match="build all alike"):
        KnowledgeCorpus.concatenate([plain, titled], tmp_path / "cache")


def test_every_format_gives_the_same_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(0)
    plain = write_jsonl(tmp_path / "k.jsonl", rows)
    zipped = tmp_path / "k.jsonl.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    parquet = tmp_path / "k.parquet"
    pq.write_table(pa.Table.from_pylist([{**row, "aliases": ["x"]} for row in rows]), parquet)
    halves = [write_jsonl(tmp_path / "1.jsonl", rows[:20]), write_jsonl(tmp_path / "2.jsonl", rows[20:])]
    for module in (corpus_module, corpus_builder):
        monkeypatch.setattr(module, "_BATCH", 7)  # many record batches, unlike ones
    made = [KnowledgeCorpus.from_files(f, tmp_path / "cache") for f in (plain, zipped, parquet, halves)]
    monkeypatch.undo()
    made.append(KnowledgeCorpus.from_files([*halves], tmp_path / "other cache"))
    parts = [KnowledgeCorpus.from_files(half, tmp_path / "cache") for half in halves]
    made.append(KnowledgeCorpus.concatenate(parts, tmp_path / "cache"))
    assert len({corpus.fingerprint for corpus in made}) == 1
    assert all(list(corpus.keys()) == list(made[0].keys()) for corpus in made)
    changed = KnowledgeCorpus.from_files(write_jsonl(tmp_path / "3.jsonl", rows[1:]), tmp_path / "cache")
    assert changed.fingerprint != made[0].fingerprint


def test_a_corpus_is_built_once_and_again_when_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_jsonl(tmp_path / "k.jsonl", ARTICLES)
    first = KnowledgeCorpus.from_files(file, tmp_path / "cache")
    calls = []
    build = corpus_builder.build_from_articles
    monkeypatch.setattr(corpus_module, "build_from_articles", lambda *args: calls.append(1) or build(*args))
    assert KnowledgeCorpus.from_files(file, tmp_path / "cache").fingerprint == first.fingerprint
    assert not calls
    write_jsonl(file, ARTICLES[:2])
    assert KnowledgeCorpus.from_files(file, tmp_path / "cache").fingerprint != first.fingerprint
    assert calls


# without a time: the workers of a test run must agree on the names of the tests
CUT_GZIP = gzip.compress(b'{"id": "1"' * 99, mtime=0)[:-9]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("k.jsonl", b'{"id": "1", "title": "T", "text": "x"}\nnot json\n', r"k\.jsonl, line 2: not JSON"),
        ("k.jsonl", b'{"id": "1", "title": "T", "text": "x"}\n[1]\n', r"k\.jsonl, line 2: not a JSON object"),
        ("k.jsonl", b'\n{"id": "1", "text": "x"}\n', r"k\.jsonl, line 2: the column title is missing"),
        ("k.jsonl", b'{"id": "1", "title": "T", "text": 3}\n', r"k\.jsonl, line 1: text is int, not a string"),
        ("k.jsonl", b'{"id": "1", "title": "T", "text": "\\ud800"}\n', r"k\.jsonl, line 1: text holds half"),
        ("k.jsonl", b'{"id": "1", "title": "T", "text": "\xff"}\n', r"k\.jsonl, line 1: not UTF-8"),
        ("k.jsonl", b"", r"k\.jsonl holds no text"),
        ("k.jsonl", b'{"id": "1", "title": "T", "text": null}\n', r"k\.jsonl holds no text"),
        ("k.jsonl.gz", b"not gzip", r"k\.jsonl\.gz, after line 0: the file is damaged"),
        ("k.jsonl.gz", CUT_GZIP, r"k\.jsonl\.gz, after line 0: the file is damaged"),
        ("k.parquet", b"not parquet", r"k\.parquet is not a Parquet file"),
        ("k.csv", b"id,title,text", r"k\.csv is of an unknown kind"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        KnowledgeCorpus.from_files(tmp_path / name, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.arrow"))  # nothing half-built stays


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.jsonl does not exist"):
        KnowledgeCorpus.from_files(tmp_path / "none.jsonl", tmp_path / "cache")
    pq.write_table(pa.table({"id": ["1"], "text": ["x"]}), tmp_path / "k.parquet")
    with pytest.raises(ValueError, match="lacks the column title"):
        load_knowledge([str(tmp_path / "k.parquet")], tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="holds no knowledge corpus"):
        load_knowledge([str(tmp_path)], tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="neither a folder nor a data set repository"):
        load_knowledge(["no/such/folder"], tmp_path / "cache")


# ---------------------------------------------------------------- saving


def test_saved_corpus_loads_with_equal_rows_and_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retriever = make(tmp_path, random_rows(1))
    monkeypatch.setattr(corpus_module, "_SHARD_BYTES", 2000)  # several Parquet files
    folder = retriever.corpus.save_pretrained(tmp_path / "saved", license="cc-by-sa-4.0")
    assert len(list((folder / "paragraphs").iterdir())) > 1
    loaded = KnowledgeCorpus.from_pretrained(folder, tmp_path / "new cache")
    assert loaded.info == retriever.corpus.info
    assert list(loaded.table) == list(retriever.corpus.table)
    smaller = make(tmp_path, random_rows(2, articles=5)).corpus
    monkeypatch.setattr("modeling_more.knowledge.corpus.build_index", None)  # the saved index must do
    again = BM25Retriever.from_corpus(loaded)
    assert again.index_dir == folder / "bm25"
    assert again.search(["w1 w2 w2 w9"]) == retriever.search(["w1 w2 w2 w9"])
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "license: cc-by-sa-4.0" in card and loaded.fingerprint in card
    published = load_dataset(str(folder), "paragraphs", split="train", cache_dir=str(tmp_path / "datasets"))
    assert published.to_list() == loaded.paragraphs.to_list()
    smaller.save_pretrained(folder)  # saving over it replaces all of it
    assert KnowledgeCorpus.from_pretrained(folder, tmp_path / "new cache").info == smaller.info


def test_changed_files_of_a_saved_corpus_are_an_error(tmp_path: Path) -> None:
    corpus = make(tmp_path, random_rows(1)).corpus
    folder = corpus.save_pretrained(tmp_path / "saved")
    file = next((folder / "paragraphs").iterdir())
    table = pq.read_table(file)
    values = ["changed", *table.column("value").to_pylist()[1:]]
    pq.write_table(table.set_column(2, "value", pa.array(values)), file)
    with pytest.raises(ValueError, match="its digest differs"):
        KnowledgeCorpus.from_pretrained(folder, tmp_path / "cache")
    meta = json.loads((folder / "knowledge.json").read_text())
    meta["files"][f"paragraphs/{file.name}"] = corpus_module.file_digest(file)  # a forger who knows the file digests
    (folder / "knowledge.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="the digest differs"):
        KnowledgeCorpus.from_pretrained(folder, tmp_path / "cache")
    (folder / "knowledge.json").write_text(json.dumps({**meta, "sentences": 3}))
    with pytest.raises(ValueError, match="names"):
        KnowledgeCorpus.from_pretrained(folder, tmp_path / "cache")
    file.unlink()
    with pytest.raises(FileNotFoundError, match="lacks its file"):
        KnowledgeCorpus.from_pretrained(folder, tmp_path / "cache")


def test_index_of_another_corpus_is_an_error(tmp_path: Path) -> None:
    one, other = make(tmp_path, random_rows(1)), make(tmp_path, random_rows(2))
    with pytest.raises(ValueError, match="build it again"):
        BM25Retriever(one.corpus, other.index_dir)
    with pytest.raises(FileNotFoundError, match="holds no BM25 index"):
        BM25Retriever(one.corpus, tmp_path)


def test_index_and_corpus_are_memory_mapped(tmp_path: Path) -> None:
    retriever = make(tmp_path, random_rows(1))
    for name in ("data", "indices", "indptr"):
        assert isinstance(retriever.index.scores[name], np.memmap)
        assert np.shares_memory(getattr(retriever, f"_{name}"), retriever.index.scores[name])
    assert retriever.corpus.sentence_paragraph.base is not None  # a view, not a copy
    assert retriever._data.dtype == np.float32


def test_load_knowledge_joins_files_and_folders(tmp_path: Path) -> None:
    rows = random_rows(3)
    whole = load_knowledge([str(write_jsonl(tmp_path / "all.jsonl", rows))], tmp_path / "cache")
    files = [write_jsonl(tmp_path / f"{n}.jsonl", rows[n * 20 : n * 20 + 20]) for n in range(3)]
    saved = KnowledgeCorpus.from_files(files[1], tmp_path / "cache").save_pretrained(tmp_path / "saved", index=False)
    mixed = load_knowledge([str(files[0]), str(saved), str(files[2])], tmp_path / "cache")
    assert mixed.fingerprint == whole.fingerprint
    alone = load_knowledge([str(saved)], tmp_path / "cache")
    assert alone.fingerprint == KnowledgeCorpus.from_files(files[1], tmp_path / "cache").fingerprint


# ---------------------------------------------------------------- the Hub

PUSHED = """
import json, sys
from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus, load_knowledge

file, cache, new_cache = sys.argv[1:]
built = KnowledgeCorpus.from_files(file, cache)
found = BM25Retriever.from_corpus(built).search(["w1 w2 w2", "w3 w9"])
url = built.push_to_hub("ORG/facts", license="cc0-1.0")
assert "ORG/facts" in url, url
loaded = load_knowledge(["ORG/facts"], new_cache)
assert loaded.fingerprint == built.fingerprint and list(loaded.table) == list(built.table)
retriever = BM25Retriever.from_corpus(loaded)
assert "snapshots" in str(retriever.index_dir), retriever.index_dir
assert retriever.search(["w1 w2 w2", "w3 w9"]) == found
try:
    load_knowledge(["ORG/none"], new_cache)
except FileNotFoundError as error:
    assert "ORG/none is neither" in str(error), error
else:
    raise SystemExit("a missing repository went unnoticed")
"""


def test_push_to_hub_and_load_again(tmp_path: Path) -> None:
    from hub_server import local_hub

    file = write_jsonl(tmp_path / "k.jsonl", random_rows(7))
    root = str(Path(__file__).resolve().parents[2])
    with local_hub(tmp_path / "hub") as hub:
        command = [sys.executable, "-c", PUSHED, str(file), str(tmp_path / "cache"), str(tmp_path / "new")]
        run = subprocess.run(
            command, cwd=root, env={**hub.env, "PYTHONPATH": root}, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        assert {"README.md", "knowledge.json", "bm25/index.json"} <= set(hub.files("ORG/facts", "dataset"))
