"""Read tables: CSV, TSV and Parquet whose columns are named as the fields of a JSON object are."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from ..parquet import parquet_batches
from ..posts import Row
from .conll import looks_like_conll
from .rows import HIDDEN
from .text_files import LINE_END, check_file, check_size, json_value, literal_value, read_text, text_lines

WORDS = ("tokens", "token", "ner_tags", "tags")
LISTS = {*WORDS, "spans", "entities", "head", "h", "tail", "t", "offsets", "knowledge_text", "knowledge_image"}
POSTS = {"text", "tokens", "token"}  # columns of which a table has one
COLUMNS = {*LISTS, "text", "id", "image_id", "img_id", "image", "relation"}
_SEPARATORS = {".csv": ",;\t", ".tsv": "\t", ".tab": "\t"}  # the usual one first
_BLANKS = re.compile("[ \t\r\n]+")  # a no-break space may be a word
_BATCH = 1000
#: bytes of rows that any Parquet file may have, as all are kept; a larger one may unpack to so many times its size
_KEPT, _EXPANSION = 1 << 25, 50
_QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*"(?=[\t\r\n]|\Z)')  # a cell in quotes, between tabs or ends of lines
_PLAIN = re.compile(r"[^\t\r\n]*")
_MANY = 20  # rows of one word each that are no posts


class Table(NamedTuple):
    """The rows of a table, and the names of the classes in columns that store them as numbers."""

    items: Iterator[tuple[str, Row]]  # (place, row); a cell without a value is None
    names: dict[str, list[str]]


def open_table(path: Path) -> Table | None:
    """Return the rows of a file that is a table; None of another (a .csv or .tsv may hold words and tags).

    The first line of CSV and TSV names the columns; a cell with a comma (or tab), a quote or a line end stands in
    quotes. Where tabs part the cells, a quote is text unless the whole cell is quoted. Lists are JSON, or what Python
    prints of a list; words and tags may also be parted by blanks.

    Raises:
        ValueError: for no column of posts, no rows, a row of another length than the header, or one word a row.
    """
    check_file(path)
    with path.open("rb") as file:
        if path.suffix.lower() == ".parquet" or file.read(4) == b"PAR1":
            return _parquet(path)
    separators = _SEPARATORS.get(path.suffix.lower())
    if separators is None:
        return None
    text = read_text(path)
    headers = {separator: _header(text, separator) for separator in separators}
    separator = next((one for one, names in headers.items() if {"text", "tokens"} & set(names)), None)
    # a header is no word and tag, whatever stands below
    if looks_like_conll(text if separator is None else next(line for _, line in text_lines(text) if line.strip())):
        return None
    if separator is None:
        raise ValueError(f"{path}, line 1: {_lacking(headers[separators[0]])}.")
    return Table(_rows(path, text, separator), {})


def _lacking(columns: Sequence[str]) -> str:
    return f"no column text or tokens, but {', '.join(columns)}"


def _header(text: str, separator: str) -> list[str]:
    first = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
    return [name.strip().lower() for name in first]


def _rows(path: Path, text: str, separator: str) -> Iterator[tuple[str, Row]]:
    records = _tab_records(path, text) if separator == "\t" else _comma_records(path, text, separator)
    columns = [name.strip().lower() for name in next(records)[1]]
    if twice := [name for name in COLUMNS if columns.count(name) > 1]:
        raise ValueError(f"{path}, line 1: two columns are named {twice[0]}.")
    found, single = 0, "tokens" in columns and bool({"ner_tags", "tags"} & set(columns))
    parted = any(re.fullmatch(r"sent(ence)?([ _]?(id|no|nr|number|#))?:?", name) for name in columns)
    blank = False
    for number, cells in records:
        where = f"{path}, line {number}"
        if not cells:
            blank = found > 0
            continue
        parted = parted or blank  # rows stand above and below it
        if len(cells) != len(columns):
            raise ValueError(
                f"{where}: {len(cells)} columns where the header has {len(columns)}; a cell that holds the separator "
                "stands in quotes."
            )
        found += 1
        row = {name: _value(name, cell, where) for name, cell in zip(columns, cells, strict=True)}
        if single:
            tags = row.get("ner_tags") or row.get("tags") or []
            single = len(row["tokens"] or "") == 1 and not cells[columns.index("tokens")].lstrip().startswith("[")
            parted = parted or str(tags[0] if tags else "")[:2] in ("I-", "E-", "M-")  # goes on from the row before
        yield where, row
    if not found:
        raise ValueError(f"{path}: no rows below the header.")
    if single and found > 1 and (parted or found > _MANY):
        raise ValueError(f"{path}: each row holds one word; a table has one post a row, and a CoNLL file no header.")


def _comma_records(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Read (number of its first line, cells) of each record of CSV; a blank line has no cells."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            yield number, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            where = f"{path}, line {number}"
            if "field limit" in str(error):
                limit = csv.field_size_limit()
                raise ValueError(f"{where}: a cell of more than {limit} characters; is a quote not closed?") from None
            raise ValueError(f"{where}: no CSV ({error}); a quote within a quoted cell is doubled.") from None


def _tab_records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Read records as `_comma_records` does, with cells between tabs.

    Raises:
        ValueError: when a quoted cell takes in lines that have as many cells as the header.
    """
    position, number, width = 0, 1, 0
    while position < len(text):
        start, cells, more = position, [], True
        while more:
            quoted = _QUOTED.match(text, position)
            plain = _PLAIN.match(text, position)
            position = (quoted or plain).end()  # type: ignore[union-attr]
            cells.append(quoted.group()[1:-1].replace('""', '"') if quoted else plain.group())  # type: ignore[union-attr]
            more = text.startswith("\t", position)
            position += more
        lines = [line for _, line in text_lines(text[start:position])]
        width = width or len(cells)
        if len(lines) > 1 and all(line.count("\t") + 1 == width for line in lines):
            raise ValueError(
                f"{path}, line {number}: a quoted cell goes on to line {number + len(lines) - 1}, whose lines look "
                "like rows of their own; double the quotes that are text, and put the cell in quotes."
            )
        yield number, [] if position == start else cells
        number += len(lines)
        position = LINE_END.match(text, position).end() if position < len(text) else position  # type: ignore[union-attr]


def _value(column: str, cell: str, where: str) -> Any:
    """Return a cell as JSON would hold it."""
    if column == "text":
        return cell
    cell = cell.strip()
    if not cell or column not in COLUMNS:
        return None
    if column == "relation" and cell == str(HIDDEN):
        return HIDDEN
    if column not in LISTS:
        return cell
    if cell[0] not in "[{":
        return [HIDDEN if part == str(HIDDEN) else part for part in _BLANKS.split(cell)] if column in WORDS else cell
    try:
        return json_value(cell, where)
    except ValueError as error:
        if "not JSON (" not in str(error):  # JSON that is nested too deeply, or has a number that is none
            raise
    try:
        value = literal_value(cell, where)
    except SyntaxError:
        value = None
    if repr(value) != cell:  # 'a' 'b' without a comma, as numpy prints words, would be read as one
        raise ValueError(f'{where}: "{column}" begins like a list and is none; write JSON, like ["Ada", "sings"].')
    return value


def _parquet(path: Path) -> Table:
    if not path.stat().st_size:
        raise ValueError(f"{path}: the file is empty; it should hold at least one post.")
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last for names of columns
        raise ValueError(f"{path}: not a Parquet file that can be read ({error}).") from None
    schema = file.schema_arrow
    if not POSTS & set(schema.names):
        raise ValueError(f"{path}: {_lacking(schema.names)}.")
    if not file.metadata.num_rows:
        raise ValueError(f"{path}: the table has no rows.")
    columns = [name for name in schema.names if name in COLUMNS]
    # of a picture only the name is read
    with_path = "image" in columns and pa.types.is_struct(schema.field("image").type)
    if with_path and schema.field("image").type.get_field_index("path") >= 0:
        columns[columns.index("image")] = "image.path"
    return Table(_parquet_rows(path, columns), _class_columns(schema))


def stored_classes(path: Path) -> dict[str, list[str]]:
    """Return the names of the classes in each column of a Parquet file; none of another file."""
    return _class_columns(pq.read_schema(path)) if path.suffix.lower() == ".parquet" else {}


def _class_columns(schema: pa.Schema) -> dict[str, list[str]]:
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    try:
        features = Features.from_arrow_schema(schema)
    except (ValueError, TypeError, KeyError):  # of another version
        return {}
    return {name: found for name, feature in features.items() if (found := class_names(feature)) is not None}


def class_names(feature: Any) -> list[str] | None:
    """Return the names of a ClassLabel, or of a list of such; None of another feature."""
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return None if names is None else list(names)


def _parquet_rows(path: Path, columns: list[str]) -> Iterator[tuple[str, Row]]:
    number = kept = 0
    most = max(_KEPT, _EXPANSION * path.stat().st_size)
    try:
        for batch in parquet_batches(path, columns, _BATCH):
            kept += batch.nbytes
            if kept > most:
                raise ValueError(
                    f"{path}, after row {number}: {kept} bytes of rows in a file of {path.stat().st_size}, at most "
                    f"{most} are read: it repeats itself too often; write JSONL."
                )
            for place in range(len(batch)):
                number += 1
                where = f"{path}, row {number}"
                [row] = batch.slice(place, 1).to_pylist()
                check_size(row, where)
                yield where, row
    except UnicodeDecodeError:
        raise ValueError(f"{path}, row {number}: a string is not UTF-8 text.") from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}, after row {number}: the file is damaged ({error}).") from None
