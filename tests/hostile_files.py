"""Damage files as disks and strangers do: cut them, turn a bit, or write another content with fitting digests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from modeling_more.files import file_digest
from modeling_more.knowledge.corpus_builder import PARAGRAPHS, SENTENCES
from modeling_more.knowledge.table_checks import tables_fingerprint

Damage = Callable[[bytes], bytes]


def flip(content: bytes) -> bytes:
    """Turn one bit in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES: dict[str, Damage] = {
    "emptied": lambda content: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "a bit turned": flip,
    "something else": lambda content: b"something else",
}


def damage(file: Path, how: Damage) -> None:
    """Put the damaged content in the file's place: who has mapped the old file keeps it."""
    content = how(file.read_bytes())
    file.unlink()
    file.write_bytes(content)


def with_fitting_digests(folder: Path, meta_file: str = "index.json") -> None:
    """Write the digests of an index's files as they are now, as a stranger does who knows the format."""
    meta = json.loads((folder / meta_file).read_text())
    meta["files"] = {name: file_digest(folder / name) for name in meta["files"]}
    (folder / meta_file).write_text(json.dumps(meta))


def rewrite_saved(folder: Path, table: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a table of a saved corpus, with digests, fingerprint and numbers of rows that fit.

    Args:
        change: is given the columns and returns an Arrow table.
    """
    meta = json.loads((folder / "knowledge.json").read_text())
    (file,) = (folder / table).iterdir()
    pq.write_table(change(pq.read_table(file).to_pydict()), file)
    tables = {name: pq.read_table(next((folder / name).iterdir())) for name in ("paragraphs", "sentences")}
    schemas = {"paragraphs": PARAGRAPHS, "sentences": SENTENCES}
    try:
        cast = [tables[name].select(schema.names).cast(schema) for name, schema in schemas.items()]
        meta["fingerprint"] = tables_fingerprint(*cast, meta["title_in_key"], "")
    except (KeyError, ValueError, TypeError, pa.ArrowException):  # of other types: no fingerprint fits
        pass
    meta |= {name: len(found) for name, found in tables.items()}
    meta["files"][f"{table}/{file.name}"] = file_digest(file)
    (folder / "knowledge.json").write_text(json.dumps(meta))


def numbers(rows: int) -> Dataset:
    """A table of so many rows to search vectors for."""
    return Dataset.from_dict({"row": list(range(rows))})
