"""Files that are too large, too deep or of other types: one sentence with file and place, and little memory."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_more.data.entity_formats import read_labelled, read_posts
from modeling_more.data.relation_formats import read_pairs, read_relations
from modeling_more.data.text_files import MAX_LINE, MAX_LITERAL
from modeling_more.foreign import MAX_LINE_BYTES
from modeling_more.knowledge import KnowledgeCorpus
from modeling_more.knowledge.articles import read_articles
from modeling_more.knowledge.captions import read_captions
from modeling_more.knowledge.entities import read_predictions

ROOT = Path(__file__).resolve().parents[2]
READERS: tuple[Callable[..., Any], ...] = (read_labelled, read_posts, read_relations, read_pairs)


def sentence(read: Callable[..., Any], *arguments: Any) -> str:
    """The error, which is of the kinds that scripts turn into one line."""
    with pytest.raises((ValueError, OSError)) as caught:
        found = read(*arguments)
        if found is not None:
            list(found)
    told = str(caught.value)
    assert "\n" not in told and len(told) < 400, told
    return told


LONG = "a " * (MAX_LINE // 2 + 1)
LINES = {
    "a.conll": f"Ada\tO\n{LONG}\tO\n",
    "a.txt": f"Ada sings\n{LONG}\n",
    "b.txt": f"[\tO\n{LONG}\tO\n",
    "a.jsonl": '{"tokens": ["a"], "ner_tags": ["O"]}\n' + json.dumps({"text": LONG, "spans": []}) + "\n",
    "b.jsonl": '["a", "", "", []]\n["b", "", "", []]\n["' + LONG + '", "", "", []]\n',
    "a.csv": f"text,spans\nAda,[]\n{LONG},[]\n",
    "a.tsv": f"text\tspans\nAda\t[]\n{LONG}\t[]\n",
    "mnre.txt": "{'token': ['a', 'b'], 'h': {'pos': [0, 1]}, 't': {'pos': [1, 2]}, 'relation': '/a'}\n"
    + "{'token': ['"
    + LONG
    + "']}\n",
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_is_too_long_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(LINES[name])
    for read in READERS:
        told = sentence(read, path)
        assert str(path) in told
        if read is read_posts:
            assert "line 2" in told or "line 3" in told, told


def test_an_item_of_a_list_and_a_row_of_a_table_are_as_long_as_a_line(tmp_path: Path) -> None:
    items = [{"text": "Ada", "spans": []}, {"text": LONG, "spans": []}]
    (tmp_path / "a.json").write_text(json.dumps(items))
    assert "a.json, item 2: 2097154 characters or words in one row, at most 2097152" in sentence(
        read_posts, tmp_path / "a.json"
    )
    pq.write_table(pa.Table.from_pylist(items), tmp_path / "a.parquet")
    assert "a.parquet, row 2: 2097154 characters" in sentence(read_posts, tmp_path / "a.parquet")
    many = [{"text": "Ada " * 500, "spans": []}] * 1100  # a file that is one long line of short posts is none
    (tmp_path / "b.json").write_text(json.dumps(many))
    assert (tmp_path / "b.json").stat().st_size > MAX_LINE and len(read_posts(tmp_path / "b.json")) == 1100


MEMORY = """
import resource, sys
from pathlib import Path
from modeling_more.data.entity_formats import read_posts
from modeling_more.knowledge.articles import read_articles
from modeling_more.knowledge.captions import read_captions
readers = {"k.jsonl.gz": lambda path: list(read_articles([path])), "c.txt": read_captions}
readers |= dict.fromkeys(sys.argv[2:], read_posts)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, read in readers.items():
    try:
        read(Path(sys.argv[1]) / name)
    except ValueError as error:
        print(error)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kilobytes are counted")
def test_a_line_that_unpacks_to_more_is_not_read_on(tmp_path: Path) -> None:
    """A packed line took three times its length, a line of posts sixty times."""
    with gzip.open(tmp_path / "k.jsonl.gz", "wb", compresslevel=1) as stream:
        stream.write(b'{"id": "1", "title": "T", "text": "x"}\n{"text": "')
        for _ in range(200):
            stream.write(b"a" * 1_000_000)
    (tmp_path / "c.txt").write_bytes(b"1.jpg :a man\n2.jpg :" + b"a" * 200_000_000)
    posts = {
        "p.jsonl": b'{"id": "1"}\n\n{"id": "2", "text": "',
        "p.txt": b"\r".join([b"a b"] * 600_000) + b"\r",
        "p.json": b'\n[{"text": "',
        "p.csv": b"text,spans\r\nAda,[]\r\n",
    }
    for name, begin in posts.items():
        (tmp_path / name).write_bytes(begin)
        os.truncate(tmp_path / name, 300_000_000)  # of zeros, which take no place on the disk
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), *posts],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    packed, first, captions, second, *found = done.stdout.splitlines()
    assert f"k.jsonl.gz, line 2: a line of more than {MAX_LINE_BYTES} bytes" in packed and int(first) < 60_000
    assert "c.txt, line 2: a line of more than" in captions and int(second) < 60_000
    for (name, line), told, memory in zip(
        {"p.jsonl": 3, "p.txt": 600_001, "p.json": 2, "p.csv": 3}.items(), found[::2], found[1::2], strict=True
    ):
        assert f"{name}, line {line}: more than {MAX_LINE} characters in one line" in told and int(memory) < 60_000


def test_other_lines_of_words_have_limits_too(tmp_path: Path) -> None:
    big = "a" * MAX_LINE_BYTES
    for name, read in (
        ("k.jsonl", lambda path: read_articles([path])),
        ("p.jsonl", lambda path: read_predictions([path])),
    ):
        (tmp_path / name).write_text(json.dumps({"id": "1", "title": "T", "text": big, "entities": []}) + "\n")
        assert f"{name}, line 1: a line of more than {MAX_LINE_BYTES} bytes" in sentence(read, tmp_path / name)
    (tmp_path / "k.jsonl").write_text(json.dumps({"id": "1", "title": "T", "text": "A b. " * 1_500_000}) + "\n")
    assert len(list(read_articles([tmp_path / "k.jsonl"]))) == 1


DEEP = "[" * 100_000
NUMBER = "1" * 5000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"tokens": ["a"], "ner_tags": ["O"], "x": ' + DEEP + "}", "nested too deeply"),
        ('{"tokens": ["a"], "ner_tags": ["O"], "x": ' + NUMBER + "}", "digits"),
        ('{"tokens": ["a"], "ner_tags": ["O"], "tokens": ["b"]}', "two entries 'tokens'"),
        ('{"tokens": ["a"], "ner_tags": ["O"], "knowledge_text": [{"text": "x", "score": [1]}]}', "ranked list"),
        ('{"tokens": ["a"], "ner_tags": ["O"], "knowledge_text": [{"text": "x", "score": 1e999}]}', "ranked list"),
        ('{"tokens": ["a"], "ner_tags": ["O"], "knowledge_text": [{"text": "x", "match_end": 1e300}]}', "ranked list"),
        ('{"tokens": ["a"], "ner_tags": ["O"], "id": Infinity}', '"id" should be'),
        ('{"tokens": ["\\ud800"], "ner_tags": ["O"]}', "half a surrogate pair"),
        ('{"text": "a", "spans": [[0, ' + "9" * 40 + ', "PER"]]}', "outside the text"),
        ('{"text": "a", "spans": [[-Infinity, NaN, "PER"]]}', "a span should be"),
    ],
)
def test_odd_json_is_one_sentence(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"tokens": ["a"], "ner_tags": ["O"]}}\n{line}\n')
    told = sentence(read_labelled, path)
    assert "a.jsonl, line 2" in told and message in told
    (tmp_path / "a.json").write_text(f"[{line}]")
    assert message in sentence(read_labelled, tmp_path / "a.json")


def test_odd_json_elsewhere_is_one_sentence(tmp_path: Path) -> None:
    for value, message in ((DEEP, "nested too deeply"), (NUMBER, "digits"), ('1, "id": 2', "two entries 'id'")):
        (tmp_path / "a.csv").write_text('tokens,ner_tags\n"' + value.replace('"', '""') + '",O\n')
        if value == DEEP:
            assert f"a.csv, line 2: {message}" in sentence(read_labelled, tmp_path / "a.csv").replace("is ", "")
        (tmp_path / "k.jsonl").write_text(f'{{"title": "T", "text": "x", "id": {value}}}\n')
        assert f"k.jsonl, line 1: not JSON ({message}" in sentence(
            lambda: KnowledgeCorpus.from_files(tmp_path / "k.jsonl", tmp_path / "cache")
        ).replace("is nested", "nested").replace("an object has ", "").replace(
            "Exceeds the limit (4300 digits)", "digits"
        )
        (tmp_path / "c.jsonl").write_text(f'{{"image_id": "T", "caption": "x", "id": {value}}}\n')
        assert "c.jsonl, line 1: not JSON" in sentence(read_captions, tmp_path / "c.jsonl")


@pytest.mark.parametrize(
    "literal", ["-" * 100_000 + "1", "(" * 100_000, "1+" * 50_000 + "1", "{'token': {[]: 1}}", "[" * 150, NUMBER]
)
def test_expressions_of_mnre_are_small_literals(tmp_path: Path, literal: str) -> None:
    path = tmp_path / "a.txt"
    good = "{'token': ['a', 'b'], 'h': {'pos': [0, 1]}, 't': {'pos': [1, 2]}, 'relation': '/a'}\n"
    path.write_text(good + "{'token': " + literal + "}\n")
    assert "a.txt, line 2: no Python literal such as" in sentence(read_relations, path)
    path.write_text(good + "{'token': '" + "a" * MAX_LITERAL + "'}\n")
    assert f"a.txt, line 2: a Python literal of 131085 characters, at most {MAX_LITERAL} are read; write JSON" in (
        sentence(read_relations, path)
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"id": ["1"], "title": ["T"], "text": [3]}, "the column text is of type int64, it should hold strings"),
        ({"id": ["1"], "title": [["T"]], "text": ["x"]}, "the column title is of type list<"),
        ({"id": [1.5], "title": ["T"], "text": ["x"]}, "the column id is of type double"),
        ({"id": ["1"], "title": ["T"], "text": [b"\xff"]}, "the column text is of type binary"),
    ],
)
def test_a_corpus_of_other_types_is_named(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "k.parquet")
    told = sentence(KnowledgeCorpus.from_files, tmp_path / "k.parquet", tmp_path / "cache")
    assert "k.parquet: " in told and message in told


@pytest.mark.parametrize(
    "column",
    [
        pa.array([3]),
        pa.array([b"\xff"]),
        pa.array([[["a"]]]),
        pa.array([{"a": 1}]),
        pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        pa.array([1.5]),
        pa.array([True]),
        pa.array([0], pa.timestamp("s")),
        pa.array([0], pa.duration("s")),
        pa.array([None], pa.null()),
    ],
    ids=lambda column: str(column.type),
)
def test_posts_of_other_types_are_named(tmp_path: Path, column: pa.Array) -> None:
    base = {
        "id": pa.array(["1"]),
        "tokens": pa.array([["a", "b"]]),
        "ner_tags": pa.array([["O", "O"]]),
        "head": pa.array([[0, 1]]),
        "tail": pa.array([[1, 2]]),
        "relation": pa.array(["/a"]),
        "knowledge_text": pa.array([[{"text": "x", "score": 1.0}]]),
        "image_id": pa.array(["i"]),
        "text": pa.array(["a b"]),
        "spans": pa.array([[{"start": 0, "end": 1, "type": "PER"}]]),
    }
    for name in base:
        pq.write_table(pa.table({**base, name: column}), tmp_path / "a.parquet")
        for read in READERS:
            try:
                read(tmp_path / "a.parquet")
            except ValueError as error:
                assert "a.parquet" in str(error), (name, read, error)


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    rows = [{"id": str(n), "title": f"T{n}", "text": f"Thing {n} is one.", "spans": []} for n in range(2000)]
    path = tmp_path / "k.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd", row_group_size=100)
    content = bytearray(path.read_bytes())
    content[2000:2300] = bytes(300)
    path.write_bytes(content)
    for read in (read_posts, lambda file: list(read_articles([file]))):
        assert "k.parquet" in sentence(read, path)


def test_a_table_is_read_in_small_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows stand in one group."""
    rows = [{"id": str(n), "title": f"T{n}", "text": "x" * 40_000} for n in range(400)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "k.parquet", use_dictionary=False)
    sizes: list[int] = []
    monkeypatch.setattr("modeling_more.parquet._ROWS_BYTES", 1_000_000)
    batches = pq.ParquetFile.iter_batches

    def counted(file: Any, size: int, **which: Any) -> Any:
        sizes.append(size)
        return batches(file, size, **which)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    assert len(list(read_articles([tmp_path / "k.parquet"]))) == 400
    assert sizes == [1, 24]  # the first row tells of dictionaries
    sizes.clear()
    assert len(read_posts(tmp_path / "k.parquet")) == 400 and sizes == [1, 24]


def test_devices_and_pipes_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in (tmp_path / "pipe.jsonl", Path("/dev/zero")):
        for read in READERS:
            assert "device, pipe or socket" in sentence(read, path)
