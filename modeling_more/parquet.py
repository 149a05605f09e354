"""Read Parquet that others made in parts that fit into memory, whatever its dictionaries and lists unpack to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MAX_VALUES = 1 << 25  # of a column in a row group: one row may have all of them
_ROWS_BYTES = 64_000_000  # of rows of a table that are read at once
_LISTS_BYTES = 1 << 28  # of lists in these rows


def parquet_batches(path: Path, columns: Sequence[str], most: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet file, at most `most` at once, and fewer where they may take more than some 64 MB.

    The file's sizes don't tell: a text may stand in it once, in a dictionary, and be meant in millions of rows.

    Args:
        columns: names of columns, or paths of fields in them, with dots.

    Raises:
        ValueError: there are too many values in a row group, or too many bytes in lists; it names the row group.
        ArrowException, OSError: the file is damaged.
    """
    file = pq.ParquetFile(path)
    places = [
        place
        for place in range(len(file.schema))
        if any(f"{file.schema.column(place).path}.".startswith(f"{name}.") for name in columns)
    ]
    leaves = [file.schema.column(place) for place in places]
    for number in range(file.num_row_groups):
        where = f"{path}, row group {number}"
        # columns that are damaged end the process where they are asked for, but raise an error where they are opened
        list(file.reader.iter_batches(0, [number], places))
        group = file.metadata.row_group(number)
        chunks = [group.column(place) for place in places]
        counts = [max(1, group.num_rows, chunk.num_values) for chunk in chunks]
        if (values := max(counts, default=0)) > MAX_VALUES:
            raise ValueError(
                f"{where}: {values} values in a column, at most {MAX_VALUES} are read; write smaller ones."
            )
        texts = [
            leaf.path
            for leaf, chunk in zip(leaves, chunks, strict=True)
            if leaf.physical_type == "BYTE_ARRAY" and not any("DELTA" in kind for kind in chunk.encodings)
        ]  # of the others Arrow makes no dictionaries
        coded = pq.ParquetFile(path, metadata=file.metadata, read_dictionary=texts)
        paths = [leaf.path for leaf in leaves]
        first = next(coded.iter_batches(1, row_groups=[number], columns=paths, use_threads=False), None)
        if first is None:
            continue
        sizes = [
            count * _longest(value, leaf, chunk)
            for count, value, leaf, chunk in zip(counts, _leaves(first.columns), leaves, chunks, strict=True)
        ]
        lists = sum(size for size, leaf in zip(sizes, leaves, strict=True) if leaf.max_repetition_level)
        stored = sum(chunk.total_uncompressed_size for chunk in chunks)
        at_once = max(1, min(most, _ROWS_BYTES * max(1, group.num_rows) // max(1, stored, sum(sizes))))
        batches = file.iter_batches(at_once, row_groups=[number], columns=columns)
        if lists <= _LISTS_BYTES:
            yield from batches
            continue
        for batch in coded.iter_batches(at_once, row_groups=[number], columns=columns):  # one row may hold them all
            if (size := sum(map(_unpacked, _leaves(batch.columns)))) > _LISTS_BYTES:
                raise ValueError(
                    f"{where}: {size} bytes in lists of {len(batch)} rows, at most {_LISTS_BYTES} are read."
                )
            yield next(batches)


def _leaves(columns: Sequence[pa.Array]) -> Iterator[pa.Array]:
    """Yield the columns that hold the values of columns, in the order in which Parquet has them."""
    for column in columns:
        array = column.storage if isinstance(column, pa.ExtensionArray) else column
        if not pa.types.is_nested(array.type):
            yield array
        else:
            yield from _leaves(array.flatten() if pa.types.is_struct(array.type) else [array.flatten()])


def _longest(first: pa.Array, leaf: Any, chunk: Any) -> int:
    """Return the bytes that each value of a column may have though they stand in the file only once.

    With the first row all of the dictionary is read, unless the dictionary is for later rows only.
    """
    if leaf.physical_type != "BYTE_ARRAY":
        return max(0, leaf.length)
    known = pa.types.is_dictionary(first.type)
    longest = pc.max(pc.binary_length(first.dictionary)).as_py() or 0 if known else 0
    repeats = chunk.has_dictionary_page or "DELTA_BYTE_ARRAY" in chunk.encodings
    if (known and len(first.dictionary) > 1) or leaf.max_repetition_level or not repeats:  # lists have long levels
        return longest
    return max(longest, chunk.total_uncompressed_size)


def _unpacked(values: pa.Array) -> int:
    """Return the bytes of values once they no longer stand in a dictionary."""
    if not pa.types.is_dictionary(values.type):
        return values.nbytes
    return pc.sum(pc.take(pc.binary_length(values.dictionary), values.indices)).as_py() or 0
