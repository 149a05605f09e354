"""Write Parquet files page by page, as no honest writer does."""

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

REQUIRED, REPEATED, TEXT = 0, 2, 6
PLAIN, RLE, BY_NUMBER = 0, 3, 8


class I32(int):
    """A number of 32 bits, where another is of 64."""


class Page(NamedTuple):
    """A page of data, or of the dictionary's values."""

    content: bytes
    values: int
    encoding: int = PLAIN
    dictionary: bool = False


class Column(NamedTuple):
    """A column of texts, or of lists of texts."""

    name: str
    pages: Sequence[Page]
    lists: bool = False


def varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def record(fields: dict[int, Any]) -> bytes:
    """Encode a record of Thrift's compact protocol."""
    found, last = b"", 0
    for number, value in sorted(fields.items()):
        kind, content = _encoded(value)
        found += bytes([number - last << 4 | kind]) + content
        last = number
    return found + b"\0"


def _encoded(value: Any) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return (1 if value else 2), b""
    if isinstance(value, int):
        return (5 if isinstance(value, I32) else 6), varint(value << 1 ^ value >> 63 if value < 0 else value << 1)
    if isinstance(value, bytes):
        return 8, varint(len(value)) + value
    if isinstance(value, dict):
        return 12, record(value)
    kinds = {_encoded(one)[0] for one in value}
    return 9, bytes([0xF0 | (kinds.pop() if kinds else 5)]) + varint(len(value)) + b"".join(
        _encoded(one)[1] for one in value
    )


def text(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def run(count: int, value: int) -> bytes:
    """Encode a value of one bit (or none) that is repeated, as levels and numbers of a dictionary are."""
    return varint(count << 1) + bytes([value])


def levels(*runs: bytes) -> bytes:
    return text(b"".join(runs))


def repeated(value: bytes, rows: int) -> list[Page]:
    """Pages of a text that all rows have."""
    return [Page(text(value), 1, dictionary=True), Page(b"\1" + run(rows, 0), rows, BY_NUMBER)]


def one_list(value: bytes, entries: int) -> list[Page]:
    """Pages of one row that holds a list of equal texts."""
    content = levels(run(1, 0), run(entries - 1, 1)) + levels(run(entries, 1)) + b"\1" + run(entries, 0)
    return [Page(text(value), 1, dictionary=True), Page(content, entries, BY_NUMBER)]


def write(path: Path, columns: Sequence[Column], rows: int) -> Path:
    """Write a file of one row group."""
    stream = io.BytesIO(b"PAR1")
    stream.seek(0, 2)
    chunks, schema = [], [{4: b"schema", 5: I32(len(columns))}]
    for column in columns:
        start, data = stream.tell(), 0
        for page in column.pages:
            size = I32(len(page.content))
            data = data or stream.tell() * (not page.dictionary)
            about = {1: I32(page.values), 2: I32(page.encoding)}
            if not page.dictionary:
                about |= {3: I32(RLE), 4: I32(RLE)}
            head = {1: I32(2 if page.dictionary else 0), 2: size, 3: size}
            stream.write(record({**head, 7 if page.dictionary else 5: about}) + page.content)
        values = sum(page.values for page in column.pages if not page.dictionary)
        name = column.name.encode()
        kind: dict[int, Any] = {1: I32(TEXT), 3: I32(REQUIRED), 6: I32(0)}
        meta = {
            1: I32(TEXT), 2: [I32(page.encoding) for page in column.pages], 4: I32(0),
            3: [name, b"list", b"element"] if column.lists else [name],
            5: values,
            6: stream.tell() - start, 7: stream.tell() - start, 9: data,
        }  # fmt: skip
        if column.pages[0].dictionary:
            meta[11] = start
        chunks.append({2: start, 3: meta})
        if column.lists:
            schema += [
                {3: I32(REQUIRED), 4: name, 5: I32(1), 6: I32(3)},
                {3: I32(REPEATED), 4: b"list", 5: I32(1)},
                {**kind, 4: b"element"},
            ]
        else:
            schema.append({**kind, 4: name})
    groups = [{1: chunks, 2: stream.tell(), 3: rows}]
    end = record({1: I32(1), 2: schema, 3: rows, 4: groups})
    stream.write(end + struct.pack("<I", len(end)) + b"PAR1")
    path.write_bytes(stream.getvalue())
    return path
