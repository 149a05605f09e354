"""Small Parquet files that unpack to gigabytes: read in pieces, or refused, in little memory."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_bombs import Column, one_list, repeated, write

from modeling_more.data.entity_formats import read_posts
from modeling_more.parquet import parquet_batches

ROOT = Path(__file__).resolve().parents[2]
LONG = b"Ada sings " * 80_000
MEMORY = """
import resource, sys
from pathlib import Path
from modeling_more.data.tables import open_table
from modeling_more.knowledge.articles import read_articles
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for kind, name in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        rows = open_table(Path(name)).items if kind == "posts" else read_articles([Path(name)])
        print(sum(1 for _ in rows), "rows of", name)
    except ValueError as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
TEXT = [Column("title", repeated(b"x", 2_000)), Column("text", repeated(LONG, 2_000))]
BOMBS = {
    "text": (TEXT, 2_000),
    "list": ([Column("tokens", one_list(b"Ada", 10**8), lists=True)], 1),
    "long": ([Column("tokens", one_list(LONG, 2_000), lists=True)], 1),
}


EXPECTED = [
    ("text", "articles", "2000 rows of"),
    ("text", "posts", "it repeats itself too often"),
    ("list", "posts", "row group 0: 100000000 values in a column, at most"),
    ("long", "posts", "row group 0: 1600000000 bytes in lists of 1 rows, at most"),
]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kilobytes are counted")
def test_little_memory_is_taken(tmp_path: Path) -> None:
    files = {bomb: write(tmp_path / f"{bomb}.parquet", *BOMBS[bomb]) for bomb in BOMBS}
    assert all(file.stat().st_size < 1_000_000 for file in files.values())
    asked = [word for bomb, what, _ in EXPECTED for word in (what, str(files[bomb]))]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *asked],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *said, memory = done.stdout.splitlines()
    for (bomb, _, told), line in zip(EXPECTED, said, strict=True):
        assert told in line and f"{bomb}.parquet" in line, line
    assert int(memory) < 800_000


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", None])
def test_every_honest_encoding_is_read(tmp_path: Path, encoding: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the lists are so large that they are looked at before they are unpacked."""
    rows = [
        {"text": f"Ada sings {n}", "tokens": ["Ada", f"s{n}"], "spans": [{"start": n, "type": None}], "n": None}
        for n in range(3000)
    ]
    schema = pa.schema([
        ("text", pa.string_view() if encoding is None else pa.large_string()), ("tokens", pa.list_(pa.string())),
        ("spans", pa.list_(pa.struct([("start", pa.int32()), ("type", pa.string())]))), ("n", pa.list_(pa.string())),
    ])  # fmt: skip
    texts = {} if encoding is None else {"text": encoding, "tokens.list.element": encoding}
    pq.write_table(
        pa.Table.from_pylist(rows, schema), tmp_path / "a.parquet", use_dictionary=not texts,
        column_encoding=texts or None, row_group_size=1700,
    )  # fmt: skip
    for most in (1 << 28, 9_000):
        monkeypatch.setattr("modeling_more.parquet._LISTS_BYTES", most)
        found = [
            row for part in parquet_batches(tmp_path / "a.parquet", schema.names, 200) for row in part.to_pylist()
        ]
        assert found == rows


def test_a_list_within_limits_is_read(tmp_path: Path) -> None:
    [row] = read_posts(write(tmp_path / "a.parquet", [Column("tokens", one_list(b"Ada", 3), lists=True)], 1))
    assert row["tokens"] == ["Ada"] * 3
