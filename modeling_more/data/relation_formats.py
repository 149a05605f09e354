"""Read relations from MNRE's lines, the authors' marked form, JSONL and tables, and pairs to be classified.

A row is {"id", "image_id", "tokens", "head", "tail", "relation"}; head (the subject) and tail (the object) are spans
[start, end] of words, end exclusive; the relation is None where it is hidden. "text" and "offsets" stand where the
post was text, "knowledge_text" or "knowledge_image" where the file holds knowledge. Bad input raises ValueError (or
FileNotFoundError) that names file and line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ..naming import nearest
from ..posts import (
    PAIR_FIELDS,
    Row,
    SpanCounts,
    given_words,
    joined_words,
    pair_spans,
    read_image_id,
    read_knowledge,
    read_name,
    words_with_offsets,
)
from ..words import DEFAULT_SPLITTER
from .columns import ColumnLine, column_lines, split_columns
from .conll import END_OF_POST, KNOWLEDGE_TAG, MARKERS, TAG, looks_like_conll
from .rows import archive_entry, checked_rows, clean_label, name_of
from .tables import open_table
from .text_files import filled_lines, json_items, literal_value, read_text

ENTITY_DATA = "this is entity data, use run_ner.py"
NONE = "None"  # the class of pairs without a relation

_TAG = re.compile(TAG)
_ENTITY_COLUMNS = {"ner_tags", "tags", "spans"}


def read_relations(
    path: str | Path,
    labels: Sequence[str] | None = None,
    splitter: str = DEFAULT_SPLITTER,
    knowledge_column: str = "knowledge_text",
    id_prefix: str | None = None,
    columns: Sequence[int] | None = None,
) -> list[Row]:
    """Read a file of labelled pairs in any of the forms below, told apart by its content.

    - MNRE: one Python literal a line, {'token', 'h': {'name', 'pos'}, 't', 'img_id', 'relation'}.
    - JSONL: "tokens" with "head" and "tail" in words, or "text" with both in characters, end exclusive; a span is
      `[start, end]`, {"start", "end"} or {"pos": [start, end]}. MNRE's names of the fields do as well. A span that
      begins or ends inside a word is widened to the word, and counted in a warning.
    - tables: CSV, TSV and Parquet whose columns have those names.
    - marked: lines of a word and its label, as CoNLL has them (`read_conll`), with `<E>`, `</E>`, `<O>`, `</O>` as
      words; the relation stands on the line of the first marker, knowledge is labelled X.

    White space around a relation is dropped; where all are hidden (null or -1), those of the rows are None. Rows of
    text keep it, with the offsets of their words.

    Args:
        labels: relations that may occur; default: any.
        knowledge_column: where the knowledge of the marked form goes.
        id_prefix: prefix of the ids `<prefix>-<index>` of rows without one; default: the file's name.
        columns: columns of the marked form, see `read_conll`.

    Raises:
        ValueError: for another form, a relation that is unknown or has white space within, a span outside the post,
            hidden relations beside others, or half a surrogate pair.
    """
    path = Path(path)
    prefix = path.stem if id_prefix is None else id_prefix
    items, names = _items(path, knowledge_column, columns)

    def check(item: Any, where: str, counts: SpanCounts) -> Row:
        return check_pair(item, where, splitter, labels, names, counts)

    return checked_rows(items, check, path, f"{prefix}-", "relation")


def holds_pairs(path: str | Path, columns: Sequence[int] | None = None) -> bool:
    """Return whether the first row of a file is a pair of entities, rather than a post with its entities.

    A file that can't be read as pairs is none: reading it as posts tells what is wrong with it.

    Raises:
        FileNotFoundError: there is no such file.
    """
    try:
        _, item = next(_items(Path(path), "knowledge_text", columns)[0])
    except (ValueError, StopIteration):
        return False
    told = {key for key, value in item.items() if value is not None} if isinstance(item, dict) else set()
    spans = bool({"head", "h", "tail", "t"} & told)
    return spans and "relation" in item if _ENTITY_COLUMNS & told else spans or "relation" in told


def check_pair(
    item: Any,
    where: str,
    splitter: str = DEFAULT_SPLITTER,
    labels: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    counts: SpanCounts | None = None,
) -> Row:
    """Check a labelled pair of any source and return its row.

    Args:
        item: "tokens" (or "text"), "head", "tail" and "relation", which may be hidden (-1 or null).
        names, counts: see `check_post`.
        labels: relations that may occur; default: any.

    Returns:
        {"id" (None where the item has none), "image_id", "tokens", "head", "tail", "relation" (None where it is
        hidden)}, "text" and "offsets" where there is a text, and the knowledge columns that the item holds.
    """
    item = _check_item(item, where)
    if "relation" not in item:
        reason = ENTITY_DATA if _ENTITY_COLUMNS & item.keys() else f'no "relation"; a row has {PAIR_FIELDS}'
        raise ValueError(f"{where}: {reason}.")
    # entities are those of the whole post: this row is about two of them
    row = _pair({**item, "entities": None}, where, splitter, counts or SpanCounts())
    relation = name_of(item["relation"], names, where)
    if relation is not None:
        relation = clean_label(relation, where) if isinstance(relation, str) else ""
        if not relation:
            raise ValueError(f'{where}: "relation" should be a name, like "{NONE}".')
        if labels is not None and relation not in labels:
            near = nearest(relation, labels) or "."
            raise ValueError(f"{where}: unknown relation {relation!r}; the relations are {', '.join(labels)}{near}")
    return {**row, "relation": relation}


def read_pairs(
    path: str | Path,
    splitter: str = DEFAULT_SPLITTER,
    knowledge_column: str = "knowledge_text",
    columns: Sequence[int] | None = None,
) -> list[Row]:
    """Read pairs without relations, to be classified: the forms of `read_relations`, labels not needed.

    A row may give "entities", a list of spans, instead of "head" and "tail": all ordered pairs of them are meant. So
    the predictions of run_ner.py can be read. Rows are {"id", "image_id", "tokens", "text", "offsets", "head", "tail"}
    or with "entities", and the knowledge columns that the file holds; spans are words.

    Args:
        knowledge_column, columns: see `read_relations`.
    """
    path = Path(path)
    rows: list[Row] = []
    counts = SpanCounts()
    for where, value in _items(path, knowledge_column, columns)[0]:
        item = {key: one for key, one in _check_item(value, where).items() if one is not None}
        if _ENTITY_COLUMNS & item.keys() and not {"entities", "head", "h"} & item.keys():
            raise ValueError(f"{where}: {ENTITY_DATA}.")
        row = _pair(item, where, splitter, counts, may_be_empty=True)
        row = {**row, **joined_words(row["tokens"]), **{key: row[key] for key in ("text", "offsets") if key in row}}
        rows.append({**row, "id": row["id"] or f"{path.stem}-{len(rows)}"})
    counts.report(path)
    return rows


def _pair(item: Row, where: str, splitter: str, counts: SpanCounts, may_be_empty: bool = False) -> Row:
    """Return the row of an item without its relation."""
    given = given_words(item) is not None
    if not given and item.get("text") is None:
        raise ValueError(f'{where}: no "tokens"; a row has {PAIR_FIELDS}.')
    words = counts.words(item, where, splitter, may_be_empty)
    if given:
        spans = pair_spans(item, None, len(words["tokens"]), where)
    else:
        spans = pair_spans(item, words_with_offsets(words), len(words["text"]), where, counts)
    row = {"id": read_name(item, ("id",), where), "image_id": read_image_id(item, where)}
    return {**row, **words, **spans, **read_knowledge(item, where)}


def _items(
    path: Path, knowledge_column: str, columns: Sequence[int] | None
) -> tuple[Iterator[tuple[str, Any]], list[str] | None]:
    """Return (place, item) of each row of any form, and the names of relations that are given by number."""
    if table := open_table(path):
        return table.items, table.names.get("relation")
    text = read_text(path)
    if not text.lstrip().startswith(("{", "[")) or re.match(r"\S+\t", text.lstrip()):
        return _marked(path, text, knowledge_column, columns), None
    if re.match(r"\s*\{\s*'", text):
        return _literals(path, text), None
    return json_items(path), None


def _check_item(item: Any, where: str) -> Row:
    if isinstance(item, list) and len(item) >= 4 and isinstance(item[3], list):  # as WikiDiverse
        raise ValueError(f"{where}: {ENTITY_DATA}.")
    if not isinstance(item, dict):
        raise ValueError(f"{where}: a {type(item).__name__}; a row is an object with {PAIR_FIELDS}.")
    return item


def _literals(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Read MNRE's lines: Python literals, never evaluated as code."""
    for where, line in filled_lines(path, text):
        try:
            yield where, literal_value(line, where)
        except SyntaxError:
            raise ValueError(f"{where}: no Python literal such as {{'token': […], 'h': {{'pos': …}}, …}}.") from None


def _marked(path: Path, text: str, knowledge_column: str, columns: Sequence[int] | None) -> Iterator[tuple[str, Row]]:
    """Read the authors' form: one post a block of lines, in which markers are words of their own."""
    filled = list(filled_lines(path, text))
    if not any(MARKERS & set(split_columns(line)) for _, line in filled):
        where = filled[0][0]
        if looks_like_conll(text, columns):
            raise ValueError(f"{where}: {ENTITY_DATA}.")
        raise ValueError(f"{where}: a line is a word, a tab and a label, and <E>, </E>, <O>, </O> are words.")
    lines, _ = column_lines(path, text, columns)
    for is_post, post in groupby(lines, lambda line: line.kind != "blank"):
        if is_post:
            block = list(post)
            yield f"{path}, line {block[0].number}", _unmark(path, block, knowledge_column)


def _unmark(path: Path, block: Sequence[ColumnLine], knowledge_column: str) -> Row:
    tokens: list[str] = []
    knowledge: list[str] | None = None
    places: dict[str, int] = {}
    item: Row = {}
    for number, kind, word, label in block:
        where = f"{path}, line {number}"
        if kind == "image":
            item["image_id"] = word
        elif label == KNOWLEDGE_TAG:
            knowledge = knowledge or []
            if word != END_OF_POST:
                knowledge.append(word)
        elif word in MARKERS:
            if word in places:
                raise ValueError(f"{where}: a second {word} in one post.")
            places[word] = len(tokens)
            if not _TAG.fullmatch(label):
                if "relation" in item:
                    raise ValueError(f"{where}: a second relation {label!r} in one post.")
                item["relation"] = label
        elif not _TAG.fullmatch(label):
            raise ValueError(f"{where}: the relation {label!r} stands beside a word; it belongs to the first marker.")
        else:
            tokens.append(word)
    where = f"{path}, line {block[0][0]}"
    missing = [marker for marker in ("<E>", "</E>", "<O>", "</O>") if marker not in places]
    if missing:
        raise ValueError(f"{where}: the post lacks {', '.join(missing)}.")
    item |= {"tokens": tokens, "head": [places["<E>"], places["</E>"]], "tail": [places["<O>"], places["</O>"]]}
    if knowledge is not None:
        item[knowledge_column] = [archive_entry(" ".join(knowledge))] if knowledge else []
    return item
