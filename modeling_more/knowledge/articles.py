"""Read articles from files and split them into paragraphs and sentences."""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import sentencex

from ..foreign import line_objects, require_regular
from ..parquet import parquet_batches
from .pictures import ImageError, named_file

logger = logging.getLogger(__name__)

COLUMNS = ("id", "title", "text")
NEEDED = ("title", "text")
SUFFIXES = (".jsonl", ".gz", ".parquet")
_BATCH = 10_000  # rows read at once, if they are small
_IMAGE_BATCH = 200  # rows with images read at once, if they are small
_LINE_BREAKS = re.compile(r"[\r\n]+")
_WORD = re.compile(r"\w")


class Article(NamedTuple):
    """A row of a knowledge file; `lead` and `image` need such columns."""

    id: str
    title: str
    text: str
    lead: str | None = None  # what an image of the article stands for; default: the whole text
    image: Path | dict[str, Any] | ImageError | None = None  # {"bytes", "path"}, or a file; or why it is neither
    where: str = ""  # file and line


def kind_of(file: Path) -> str:
    name = file.name.lower()
    for ending, kind in ((".jsonl", "jsonl"), (".jsonl.gz", "jsonl.gz"), (".parquet", "parquet")):
        if name.endswith(ending):
            return kind
    raise ValueError(f"The knowledge file {file} is of an unknown kind: .jsonl, .jsonl.gz and .parquet are read.")


def read_articles(
    files: Iterable[Path], images: bool = False, image_dirs: Sequence[str | Path] = ()
) -> Iterator[Article]:
    """Read the articles of files in their order.

    Articles of a file without ids are numbered over all files (`article-1` and so on), which is logged.

    A row names its image by a path in the folder of its file, or by an absolute one in a folder of `image_dirs`; where
    the path leads elsewhere, also by a link, `image` is an ImageError.

    Args:
        images: read the images in Parquet files; else `image` is an empty dict where there is one.
        image_dirs: folders that the user named for images.

    Raises:
        ValueError: a file or row that can't be read, articles with and without ids in one file; names file and line.
    """
    number = 0
    for file in files:
        with_ids: bool | None = None
        for row, line in _read_parquet(file, images) if kind_of(file) == "parquet" else _read_jsonl(file):
            number += 1
            has_id = row.get("id") is not None and str(row["id"]).strip() != ""
            if with_ids is None and not has_id and not images:  # the images are read after the texts
                logger.warning("%s: its articles have no id, they are numbered from article-%d.", file, number)
            if with_ids not in (None, has_id):
                told = "no id, while the articles before it have one"
                told = told if with_ids else "an id, while the articles before it have none"
                raise ValueError(f"{file}, {line}: {told}; give all articles of a file one, or none.")
            with_ids = has_id
            yield _article(row if has_id else {**row, "id": f"article-{number}"}, file, line, image_dirs)


def _read_jsonl(file: Path) -> Iterator[tuple[dict[str, Any], str]]:
    for where, row in line_objects(file):
        yield row, where.removeprefix(f"{file}, ")


def _read_parquet(file: Path, images: bool) -> Iterator[tuple[dict[str, Any], str]]:
    try:
        parquet = pq.ParquetFile(require_regular(file))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last for names of columns
        raise ValueError(f"{file} is not a Parquet file ({error}).") from None
    schema = parquet.schema_arrow
    if missing := [column for column in NEEDED if column not in schema.names]:
        raise ValueError(f"{file} lacks the column {missing[0]}: title and text are required.")
    columns = [name for name in schema.names if name in {*COLUMNS, "lead"}]
    for name in columns:
        kind = schema.field(name).type
        if not (_is_text(kind) or (name == "id" and pa.types.is_integer(kind))):
            raise ValueError(f"{file}: the column {name} is of type {kind}, it should hold strings.")
    if "image" in schema.names:
        # the path tells which rows have an image, without reading all the bytes
        kind = schema.field("image").type
        with_path = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
        columns.append("image.path" if with_path and not images else "image")
    number = 0
    try:
        for batch in parquet_batches(file, columns, _IMAGE_BATCH if "image" in columns else _BATCH):
            for row in batch.to_pylist():
                number += 1
                if not images and row.get("image") is not None:
                    row["image"] = {}
                yield row, f"row {number}"
    except UnicodeDecodeError:
        raise ValueError(f"{file}, after row {number}: a string is not UTF-8 text.") from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}, after row {number}: the file is damaged ({error}).") from None


def _is_text(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(test(inner) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null))


def _article(row: dict[str, Any], file: Path, line: str, image_dirs: Sequence[str | Path]) -> Article:
    where = f"{file}, {line}"
    fields = []
    for column in (*COLUMNS, "lead"):
        if column == "lead" and row.get("lead") is None:
            break
        if column not in row:
            raise ValueError(f"{where}: the column {column} is missing; title and text are required.")
        value = row[column]
        if column == "text" and value is None:
            value = ""
        if column == "id" and isinstance(value, int):
            value = str(value)
        if not isinstance(value, str):
            raise ValueError(f"{where}: {column} is {type(value).__name__}, not a string.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{where}: {column} holds half a surrogate pair, which is no character.") from None
        fields.append(value)
    lead = fields[3] if len(fields) > 3 else None
    return Article(fields[0], fields[1], fields[2], lead, _image(row.get("image"), file, where, image_dirs), where)


def _image(
    value: Any, file: Path, where: str, image_dirs: Sequence[str | Path]
) -> Path | dict[str, Any] | ImageError | None:
    """Return an image as its file or as {"bytes", "path"}; paths start from the knowledge file's folder."""
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if isinstance(value, dict) and (not value or value.get("bytes") is not None):
        return value
    path = value.get("path") if isinstance(value, dict) else value
    if path is None or path == "":
        return None
    if not isinstance(path, str):
        raise ValueError(f"{where}: image is {type(path).__name__}, neither a path nor {{bytes, path}}.")
    try:
        return named_file(path, file.resolve().parent, *image_dirs)
    except ImageError as error:
        return error


def split_paragraphs(text: str) -> list[str]:
    """Split a text at its line breaks and drop blank paragraphs."""
    return [part.strip() for part in _LINE_BREAKS.split(text) if part.strip()]


def split_sentences(paragraph: str, language: str = "en") -> list[tuple[int, int]]:
    """Return (start, end) of each sentence that holds a word, without the white space around it."""
    spans, position = [], 0
    for sentence in sentencex.segment(language, paragraph):
        bare = sentence.strip()
        start = paragraph.find(bare, position)
        if start < 0:  # a splitter that changes characters would shift every offset after it
            return [(0, len(paragraph))] if _WORD.search(paragraph) else []
        position = start + len(bare)
        if _WORD.search(bare):
            spans.append((start, position))
    return spans
