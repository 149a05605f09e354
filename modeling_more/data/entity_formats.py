"""Read posts with labels from CoNLL (raw and the authors' archives), JSONL, tables and WikiDiverse, and without them.

A row is {"id", "image_id", "tokens", "ner_tags"} with BIO tags as strings (None where they are hidden), with "text"
and "offsets" where the post was text, and "knowledge_text" or "knowledge_image" where the file holds knowledge. Bad
input raises ValueError (or FileNotFoundError) that names file and line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..posts import (
    KNOWLEDGE_COLUMNS,
    Row,
    SpanCounts,
    are_numbers,
    check_string,
    joined_words,
    read_image_id,
    read_knowledge,
    read_name,
    read_words,
    words_with_offsets,
)
from ..tagging import spans_to_bio
from ..words import DEFAULT_SPLITTER
from .columns import check_text, unlabelled_columns
from .conll import looks_like_conll, read_conll
from .rows import check_object, check_tag, check_tags, checked_rows, clean_label
from .tables import open_table
from .text_files import BLANK, json_items, read_text, text_lines

_COLUMN_FILES = (".conll", ".conllu", ".conllx", ".iob", ".iob2", ".bio", ".bioes")
_MARKED = re.compile(r"\s*</?[EO]>[ \t]")  # begins relation data


def _character_spans(value: Any, text: str, where: str, types: Sequence[str] | None) -> list[tuple[int, int, str]]:
    spans = []
    for span in value if isinstance(value, list) else [value]:
        if isinstance(span, dict):
            span = [span.get("start"), span.get("end"), span.get("type", span.get("label"))]
        if not (isinstance(span, list) and len(span) == 3 and are_numbers(span[:2]) and isinstance(span[2], str)):
            raise ValueError(
                f'{where}: a span should be [start, end, type] or {{"start", "end", "type"}}, in characters.'
            )
        start, end, type_ = span
        if not 0 <= start < end <= len(text):
            raise ValueError(f"{where}: span [{start}, {end}] is empty or outside the text of {len(text)} characters.")
        type_ = clean_label(type_, where)
        check_tag(f"B-{type_}", where, types)
        spans.append((start, end, type_))
    return spans


def check_post(
    item: Row,
    where: str,
    splitter: str = DEFAULT_SPLITTER,
    types: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    counts: SpanCounts | None = None,
) -> Row:
    """Check a labelled post of any source and return its row.

    Args:
        item: "tokens" with "ner_tags" (or "tags"), or "text" with "spans"; labels may be hidden (-1 or null).
        types: entity types that may occur; default: any.
        names: names of the class labels that are given by number.
        counts: where mentions and texts that could not be followed are counted.

    Returns:
        {"id" (None where the item has none), "image_id", "tokens", "ner_tags" (None where they are hidden)}, "text"
        and "offsets" where there is a text, and the knowledge columns that the item holds.
    """
    counts = counts or SpanCounts()
    item = check_object(item, where, '"tokens" and "ner_tags", or "text" and "spans"')
    # where a set has several columns of labels, those of this row are in the one that is not null
    tags_key = "tags" if item.get("ner_tags") is None and ("ner_tags" not in item or "tags" in item) else "ner_tags"
    spans_given = item.get("text") is not None and item.get("spans") is not None
    tags: list[str] | None = None
    if item.get("tokens") is not None and tags_key in item and (item[tags_key] is not None or not spans_given):
        words = counts.words(item, where, splitter)
        tags = check_tags(item[tags_key], len(words["tokens"]), where, types, names, tags_key)
    elif item.get("text") is not None and "spans" in item:
        words = counts.words({"text": item["text"]}, where, splitter)
        if item["spans"] is not None:
            spans = _character_spans(item["spans"], words["text"], where, types)
            tags = spans_to_bio(counts.align(words_with_offsets(words), spans), len(words["tokens"]))
    else:
        given = "tokens" if item.get("tokens") is not None else "text" if item.get("text") is not None else ""
        missing = {"tokens": "ner_tags", "text": "spans"}.get(given, "tokens")
        raise ValueError(f'{where}: no "{missing}"; a row has "tokens" and "ner_tags", or "text" and "spans".')
    tokens = words.pop("tokens")
    row = {"id": read_name(item, ("id",), where), "image_id": read_image_id(item, where), "tokens": tokens}
    return {**row, "ner_tags": tags, **words, **read_knowledge(item, where)}


def read_items(
    path: Path,
    items: Iterator[tuple[str, Any]],
    types: Sequence[str] | None = None,
    splitter: str = DEFAULT_SPLITTER,
    id_prefix: str | None = None,
    names: Sequence[str] | None = None,
) -> list[Row]:
    """Read labelled posts from (place, item) pairs, see `check_post`; rows without ids are numbered from 0."""
    prefix = path.stem if id_prefix is None else id_prefix

    def check(item: Any, where: str, counts: SpanCounts) -> Row:
        return check_post(item, where, splitter, types, names, counts)

    return checked_rows(items, check, path, f"{prefix}-", "ner_tags")


def read_jsonl(
    path: str | Path,
    types: Sequence[str] | None = None,
    splitter: str = DEFAULT_SPLITTER,
    id_prefix: str | None = None,
) -> list[Row]:
    """Read one JSON object a line: "tokens" with "ner_tags" (or "tags"), or "text" with "spans".

    Spans are `[start, end, type]` or {"start", "end", "type" or "label"} in characters, end exclusive; one that begins
    or ends inside a word is widened to the word, and counted in a warning. Optional: "id", "image_id" (or "image"),
    "knowledge_text", "knowledge_image" (ranked lists of {"title", "text", "score"}).

    White space around a label is dropped. Where the labels of all rows are hidden (null, or -1 for each word), those
    of the rows are None. Rows of text keep it, with the offsets of their words.

    Args:
        path: the file; one JSON list of such objects does as well.
        types: entity types that may occur; default: any.
        splitter: how "text" is split into words, see `words.split_words`.
        id_prefix: prefix of the ids `<prefix>-<index>` of rows without one; default: the file's name.

    Raises:
        ValueError: for a line that is not JSON, a missing field, a label that is unknown or has white space within,
            not one label for each word, hidden labels beside others, half a surrogate pair, or relation data.
    """
    path = Path(path)
    return read_items(path, json_items(path), types, splitter, id_prefix)


# --- WikiDiverse


def wikidiverse_image(url: str) -> str:
    """Return the file name of a WikiDiverse image: md5 of the URL's last part, and its suffix, .svg as .png."""
    name = url.split("/")[-1]
    suffix = Path(name).suffix
    return hashlib.md5(name.encode()).hexdigest() + {".svg": ".png", ".SVG": ".png"}.get(suffix, suffix)


def read_wikidiverse(
    path: str | Path,
    types: Sequence[str] | None = None,
    splitter: str = DEFAULT_SPLITTER,
    id_prefix: str | None = None,
) -> list[Row]:
    """Read WikiDiverse: JSON rows [sentence, image_url, topic, [[mention, type, start, end, entity_url], …]].

    Offsets are characters, end exclusive. Mentions that cross word borders are widened, and counted in a warning.
    """
    path = Path(path)
    prefix = path.stem if id_prefix is None else id_prefix

    def check(value: Any, where: str, counts: SpanCounts) -> Row:
        item = _wikidiverse_item(value, where)
        row = check_post(item, where, splitter, types, None, counts)
        counts.differing += sum(item["text"][m[2] : m[3]] != m[0] for m in value[3])
        return row

    return checked_rows(json_items(path), check, path, f"{prefix}-", "ner_tags")


def _wikidiverse_item(value: Any, where: str) -> Row:
    """Return a row of WikiDiverse as JSONL has it."""
    if not (isinstance(value, list) and len(value) >= 4 and isinstance(value[0], str) and isinstance(value[3], list)):
        raise ValueError(
            f"{where}: a row should be [sentence, image_url, topic, [[mention, type, start, end, url], …]]."
        )
    text, url, mentions = value[0], value[1], value[3]
    for mention in mentions:
        if not isinstance(mention, list) or len(mention) < 4:
            raise ValueError(f"{where}: a mention should be [mention, type, start, end, entity_url].")
    named = isinstance(url, str) and url
    return {
        "text": text,
        "image_id": wikidiverse_image(check_string(url, where, "the image's address")) if named else None,
        "spans": [[start, end, type_] for _, type_, start, end, *_ in mentions],
    }


# --- any of them


def read_labelled(
    path: str | Path,
    types: Sequence[str] | None = None,
    splitter: str = DEFAULT_SPLITTER,
    knowledge_column: str = "knowledge_text",
    id_prefix: str | None = None,
    columns: Sequence[int] | None = None,
) -> list[Row]:
    """Read a file of labelled posts in any of the formats above, or a table of them (`open_table`).

    CSV, TSV and Parquet are known by their names, the others by the first characters of their content. `columns` is
    for CoNLL, see `read_conll`.
    """
    path = Path(path)
    if table := open_table(path):
        names = table.names.get("ner_tags") or table.names.get("tags")
        return read_items(path, table.items, types, splitter, id_prefix, names)
    text = read_text(path)
    if not _looks_like_json(path, text):
        return read_conll(path, types, knowledge_column, id_prefix, columns)
    if _looks_like_wikidiverse(text):
        return read_wikidiverse(path, types, splitter, id_prefix)
    return read_jsonl(path, types, splitter, id_prefix)


def _looks_like_json(path: Path, text: str) -> bool:
    suffix = path.suffix.lower()
    if suffix in (".json", ".jsonl", ".conll"):
        return suffix != ".conll"
    return re.match(r"""\s*(\{\s*["']|\[\s*[\[{"])""", text) is not None and not looks_like_conll(text)


def _looks_like_wikidiverse(text: str) -> bool:
    return re.match(r'\s*\[\s*\[|\s*\["', text) is not None


def read_posts(
    path: str | Path,
    splitter: str = DEFAULT_SPLITTER,
    knowledge_column: str = "knowledge_text",
    columns: Sequence[int] | None = None,
) -> list[Row]:
    """Read posts without labels, to be tagged: whatever `read_labelled` reads, or text with one post a line.

    Rows are {"id", "image_id", "tokens", "text", "offsets"} and the knowledge columns that the file has; offsets are
    [start, end] of each word in text. Posts given as words get the words joined by spaces as text. Labels are not
    read, and CoNLL need not have them. A post without a word (empty, or white space only) is a row without tokens; in
    a file of lines a blank line is no post, and the n-th line has the id `<file>-n`, counted from 1.

    Args:
        knowledge_column, columns: see `read_conll`.

    Raises:
        ValueError: for an empty file, a row that is no post, half a surrogate pair, or columns of words without labels
            in a file whose name is not .conll and the like (unless `columns` names them).
    """
    path = Path(path)
    counts = SpanCounts()
    rows: list[Row] = []
    table = open_table(path)
    content = "" if table else read_text(path)
    if table or _looks_like_json(path, content):
        wikidiverse = not table and _looks_like_wikidiverse(content)
        for where, value in table.items if table else json_items(path):
            item = _wikidiverse_item(value, where) if wikidiverse else check_object(value, where, '"text" or "tokens"')
            row = counts.words(item, where, splitter, may_be_empty=True)
            name = read_name(item, ("id",), where) or f"{path.stem}-{len(rows)}"
            row = {"id": name, "image_id": read_image_id(item, where), **joined_words(row["tokens"]), **row}
            rows.append({**row, **read_knowledge(item, where)})
        counts.report(path)
        return rows
    suffix = path.suffix.lower()
    if suffix == ".ann":
        raise ValueError(f"{path}: .ann holds spans without their text; give the .txt that lies beside it.")
    labelled = looks_like_conll(content, columns) or _MARKED.match(content) is not None
    if labelled or suffix in _COLUMN_FILES or (columns is not None and unlabelled_columns(content)):
        for post in read_conll(path, knowledge_column=knowledge_column, columns=columns, labelled=labelled):
            knowledge = {column: post[column] for column in KNOWLEDGE_COLUMNS if column in post}
            rows.append({"id": post["id"], "image_id": post["image_id"], **joined_words(post["tokens"]), **knowledge})
        return rows
    check_text(path, content)
    for number, line in text_lines(content):
        if line.strip(BLANK):
            words = read_words({"text": line}, f"{path}, line {number}", splitter, may_be_empty=True)
            rows.append({"id": f"{path.stem}-{number}", "image_id": None, **words})
    if not rows:
        raise ValueError(f"{path}: the file is empty; it should hold at least one post.")
    return rows
