"""Corpora that a stranger wrote: types, bounds and names are checked, and nothing outside the folder is opened."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_files import rewrite_saved

from knowledge_rows import ARTICLES
from modeling_more.files import file_digest
from modeling_more.knowledge import KnowledgeCorpus, corpus_builder
from modeling_more.knowledge.corpus_tables import write_stream
from ner_runs import write_jsonl


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    corpus = KnowledgeCorpus.from_files(write_jsonl(tmp_path / "k.jsonl", ARTICLES), tmp_path / "cache")
    return corpus.save_pretrained(tmp_path / "saved", index=False)


def put(column: str, row: int, value: object) -> Callable[[dict[str, Any]], pa.Table]:
    def change(columns: dict[str, Any]) -> pa.Table:
        columns[column][row] = value
        return pa.table(columns)

    return change


def retyped(column: str, kind: pa.DataType) -> Callable[[dict[str, Any]], pa.Table]:
    def change(columns: dict[str, Any]) -> pa.Table:
        return pa.table({**columns, column: pa.array([None] * len(columns[column]), kind)})

    return change


def without(column: str) -> Callable[[dict[str, Any]], pa.Table]:
    return lambda columns: pa.table({name: values for name, values in columns.items() if name != column})


def not_utf8(columns: dict[str, Any]) -> pa.Table:
    raw = pa.array([value.encode()[:-1] + b"\xff" for value in columns["value"]], pa.binary())
    return pa.table({**columns, "value": pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())})


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], pa.Table], str]] = {
    "a paragraph below 0": ("sentences", put("paragraph", 0, -1), "a sentence stands in none of the 5 paragraphs"),
    "a paragraph too many": ("sentences", put("paragraph", -1, 5), "a sentence stands in none of the 5 paragraphs"),
    "another order": ("sentences", put("paragraph", 0, 4), "not in the order of the paragraphs"),
    "a start below 0": ("sentences", put("start", 2, -3), "row 2: characters -3 to"),
    "an end past the text": ("sentences", put("end", 2, 10**6), "row 2: characters 0 to 1000000"),
    "an end before the start": ("sentences", put("end", 1, 0), r"row 1: characters \d+ to 0"),
    "a number that is too large": ("sentences", put("end", 2, 2**40), r"parquet can't be read as the Parquet"),
    "no number": ("sentences", put("end", 2, None), "its column end lacks values"),
    "no text": ("paragraphs", put("value", 2, None), "its column value lacks values"),
    "not UTF-8": ("paragraphs", not_utf8, r"(?i)utf-?8"),
    "fractions": ("sentences", retyped("start", pa.float64()), "its column start is of type double, it must be int32"),
    "lists": ("paragraphs", retyped("value", pa.list_(pa.string())), "its column value is of type list"),
    "bytes": ("paragraphs", retyped("title", pa.binary()), "its column title is of type binary, it must be string"),
    "a column less": ("paragraphs", without("title"), "lacks the column title"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_that_no_corpus_has_are_named(case: str, saved: Path, tmp_path: Path) -> None:
    table, change, told = TABLES[case]
    rewrite_saved(saved, table, change)
    with pytest.raises(ValueError, match=told) as error:
        KnowledgeCorpus.from_pretrained(saved, tmp_path / "new")
    assert table in str(error.value) and len(str(error.value).splitlines()) == 1


def test_larger_types_of_the_same_kind_are_read(saved: Path, tmp_path: Path) -> None:
    rewrite_saved(
        saved, "sentences", lambda columns: pa.table({n: pa.array(v, pa.int64()) for n, v in columns.items()})
    )
    rewrite_saved(
        saved, "paragraphs", lambda columns: pa.table({n: pa.array(v, pa.large_string()) for n, v in columns.items()})
    )
    assert (
        KnowledgeCorpus.from_pretrained(saved, tmp_path / "new")[1]["key"] == "It was founded by Dr. K. Lund in 1990."
    )


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 100 + b"PAR1", b"no parquet"])
def test_parquet_that_is_none_is_named(content: bytes, saved: Path, tmp_path: Path) -> None:
    (file,) = (saved / "paragraphs").iterdir()
    file.write_bytes(content)
    meta = json.loads((saved / "knowledge.json").read_text())
    meta["files"][f"paragraphs/{file.name}"] = file_digest(file)
    (saved / "knowledge.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=r"paragraphs.*parquet can't be read as the Parquet of a corpus"):
        KnowledgeCorpus.from_pretrained(saved, tmp_path / "new")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fingerprint": "../../../elsewhere"}, "is no fingerprint"),
        ({"fingerprint": 3}, "must be of type str"),
        ({"paragraphs": "5"}, "must be of type int"),
        ({"paragraphs": [1]}, "must be of type int"),
        ({"paragraphs": -5}, "paragraphs is -5"),
        ({"articles": 10**30}, "articles is 1000"),
        ({"articles": float("inf")}, "must be of type int"),
        ({"sentences": 10**9}, "sentences and 0 images, its knowledge.json names 5, 1000000000"),
        ({"title_in_key": 1}, "must be of type bool"),
        ({"language": None}, "must be of type str"),
        ({"format_version": 99}, "is of format 99"),
        ({"files": {"../private.parquet": "0"}}, "is no file of a corpus"),
        ({"files": {"/etc/passwd": "0"}}, "is no file of a corpus"),
        ({"files": {"paragraphs/../../private.parquet": "0"}}, "is no file of a corpus"),
        ({"files": {"notes.txt": "0"}}, "is no file of a corpus"),
        ({"files": {"paragraphs/a.parquet": 5}}, "is no file of a corpus"),
        ({"files": ["paragraphs/a.parquet"]}, "names no files"),
        ({"files": {}}, "names no files"),
    ],
)
def test_descriptions_that_no_corpus_has_are_named(
    changes: dict[str, Any], told: str, saved: Path, tmp_path: Path
) -> None:
    meta = json.loads((saved / "knowledge.json").read_text())
    (saved / "knowledge.json").write_text(json.dumps({**meta, **changes}))
    with pytest.raises(ValueError, match=told) as error:
        KnowledgeCorpus.from_pretrained(saved, tmp_path / "cache dir" / "new")
    assert "knowledge.json" in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
    "content", [b"[1]", b"[" * 100_000, b'{"a": ', b"\xff", b"null", b'{"fingerprint": 1' + b"0" * 9000]
)
def test_descriptions_that_are_no_objects_are_named(content: bytes, saved: Path, tmp_path: Path) -> None:
    (saved / "knowledge.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"knowledge\.json does not describe a knowledge corpus") as error:
        KnowledgeCorpus.from_pretrained(saved, tmp_path / "new")
    assert len(str(error.value)) < 600


def test_a_link_out_of_the_folder_is_not_followed(saved: Path, tmp_path: Path) -> None:
    (file,) = (saved / "paragraphs").iterdir()
    private = tmp_path / "private.parquet"
    file.rename(private)
    file.symlink_to(private)
    with pytest.raises(ValueError, match="leads out of"):
        KnowledgeCorpus.from_pretrained(saved, tmp_path / "new")


def test_tables_in_arrow_are_checked_too(tmp_path: Path) -> None:
    """Whoever copies a cache may get one of a stranger."""
    corpus = KnowledgeCorpus.from_files(write_jsonl(tmp_path / "k.jsonl", ARTICLES), tmp_path / "cache")
    file = corpus.folder / "sentences.arrow"
    whole = file.read_bytes()
    for column, values, told in (
        ("start", pa.array([-1] * 8, pa.int32()), r"row 0: characters -1 to"),
        ("start", pa.array([0] * 8, pa.int32()), "the digest differs"),
        ("start", pa.array([0.0] * 8), "its column start is of type double, it must be int32"),
        ("start", pa.array(["0"] * 8), "its column start is of type string, it must be int32"),
    ):
        table = pa.table(
            {n: values if n == column else corpus.sentences.data.column(n) for n in ("paragraph", "start", "end")}
        )
        file.unlink()
        write_stream(file, table.schema, table.combine_chunks().to_batches())
        with pytest.raises(ValueError, match=told):
            KnowledgeCorpus(corpus.folder, cache_dir=tmp_path / "cache")
    file.write_bytes(whole)
    assert len(KnowledgeCorpus(corpus.folder, cache_dir=tmp_path / "cache")) == 8


def test_parquet_is_read_in_pieces(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_builder, "_BATCH", 2)
    corpus = KnowledgeCorpus.from_pretrained(saved, tmp_path / "new")
    assert corpus.paragraphs.to_list() == pq.read_table(next((saved / "paragraphs").iterdir())).to_pylist()
