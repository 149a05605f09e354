"""Readers of relation data: MNRE's own lines, the authors' marked form, JSONL; and of pairs to be classified.

A row is {"id", "image_id", "tokens", "head", "tail", "relation"}; head (the subject) and tail (the object) are spans
[start, end] of words, end exclusive. "knowledge_text" or "knowledge_image" stand where the file holds knowledge. Bad
input raises ValueError (or FileNotFoundError) that names file and line.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from .columns import ColumnLine, column_lines, split_columns
from .conll import END_OF_POST, KNOWLEDGE_TAG, MARKERS, TAG, looks_like_conll
from .formats import SpanCounts
from .rows import (
    KNOWLEDGE_COLUMNS,
    Row,
    archive_entry,
    are_numbers,
    check_string,
    check_words,
    joined_words,
    read_image_id,
    read_knowledge,
)
from .text_files import BLANK, json_items, read_text, text_lines
from .words import DEFAULT_STYLE, split_words

ENTITY_DATA = "this is entity data, use run_ner.py"
NONE = "None"  # the class of pairs without a relation

_LABELLED = '"tokens" (or "text"), "head", "tail" and "relation"'
_TAG = re.compile(TAG)
_ENTITY_COLUMNS = {"ner_tags", "tags", "spans"}


def read_relations(
    path: str | Path,
    labels: Sequence[str] | None = None,
    style: str = DEFAULT_STYLE,
    knowledge_column: str = "knowledge_text",
    id_prefix: str | None = None,
    columns: Sequence[int] | None = None,
) -> list[Row]:
    """Read a file of labelled pairs in any of the forms below, told apart by its content.

    - MNRE: one Python literal a line, {'token', 'h': {'name', 'pos'}, 't', 'img_id', 'relation'}.
    - JSONL: "tokens" with "head" and "tail" in words, or "text" with both in characters, end exclusive; a span is
      `[start, end]`, {"start", "end"} or {"pos": [start, end]}. MNRE's names of the fields do as well. A span that
      begins or ends inside a word is widened to the word, and counted in a warning.
    - marked: lines of a word and its label, as CoNLL has them (`read_conll`), with `<E>`, `</E>`, `<O>`, `</O>` as
      words; the relation stands on the line of the first marker, knowledge is labelled X.

    Args:
        labels: relations that may occur; default: any.
        style: how "text" is split into words.
        knowledge_column: where the knowledge of the marked form goes.
        id_prefix: of the ids `<prefix>-<index>` of rows without one; default: the file's name.
        columns: of the marked form, see `read_conll`.

    Raises:
        ValueError: another form, an unknown relation, a span outside the post; names file and line.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    prefix = path.stem if id_prefix is None else id_prefix
    rows: list[Row] = []
    counts = SpanCounts()
    for where, item in _items(path, knowledge_column, columns):
        if "relation" not in item:
            reason = ENTITY_DATA if _ENTITY_COLUMNS & item.keys() else f'no "relation"; a row has {_LABELLED}'
            raise ValueError(f"{where}: {reason}.")
        item.pop("entities", None)  # of the whole post: this row is about two of them
        row = _pair(item, where, style, counts)
        relation = item["relation"]
        if not isinstance(relation, str) or not relation:
            raise ValueError(f'{where}: "relation" should be a name, like "{NONE}".')
        if labels is not None and relation not in labels:
            raise ValueError(f"{where}: unknown relation {relation!r}; the relations are {', '.join(labels)}.")
        rows.append({"id": item.get("id", f"{prefix}-{len(rows)}"), **row, "relation": relation})
    counts.report(path)
    return _with_equal_columns(rows)


def read_pairs(
    path: str | Path,
    style: str = DEFAULT_STYLE,
    knowledge_column: str = "knowledge_text",
    columns: Sequence[int] | None = None,
) -> list[Row]:
    """Read pairs without relations, to be classified: the forms of `read_relations`, labels not needed.

    A row may give "entities", a list of spans, instead of "head" and "tail": all ordered pairs of them are meant. So
    the predictions of run_ner.py can be read. Rows are {"id", "image_id", "tokens", "text", "offsets", "head", "tail"}
    or with "entities", and the knowledge columns that the file holds; spans are words.

    Args:
        style: how "text" is split into words.
        knowledge_column: where the knowledge of the marked form goes.
        columns: of the marked form, see `read_conll`.

    Raises:
        ValueError: a row without words or spans; names file and line.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    rows: list[Row] = []
    counts = SpanCounts()
    for where, item in _items(path, knowledge_column, columns):
        if _ENTITY_COLUMNS & item.keys() and not {"entities", "head", "h"} & item.keys():
            raise ValueError(f"{where}: {ENTITY_DATA}.")
        name = item.get("id", f"{path.stem}-{len(rows)}")
        rows.append({"id": name, **_pair(item, where, style, counts, with_text=True)})
    counts.report(path)
    return rows


def pair_spans(
    item: Row,
    words: Sequence[tuple[str, int, int]] | None,
    length: int,
    where: str,
    counts: SpanCounts | None = None,
) -> Row:
    """ "head" and "tail", or else "entities", of an item as spans of words.

    Args:
        words: (word, start, end) where the item's spans are characters; None where they are words already.
        length: of the post, in words or characters.
        counts: of the spans that were widened to words.

    Raises:
        ValueError: spans are missing, malformed, outside the post, equal, or hold no word.
    """
    counts = counts or SpanCounts()
    if item.get("entities") is not None and all(item.get(name) is None for name in ("head", "h", "tail", "t")):
        if not isinstance(item["entities"], list):
            raise ValueError(f'{where}: "entities" should be a list of spans.')
        found = [_span(span, "entities", words, length, where, counts) for span in item["entities"]]
        twice = next((span for place, span in enumerate(found) if span in found[:place]), None)
        if twice is not None:
            raise ValueError(f'{where}: two of "entities" are the same words {twice}; give each once.')
        return {"entities": found}
    spans = {}
    for name, short in (("head", "h"), ("tail", "t")):
        value = item.get(name, item.get(short))
        if value is None:
            raise ValueError(f'{where}: no "{name}"; a row has {_LABELLED}.')
        spans[name] = _span(value, name, words, length, where, counts)
    if spans["head"] == spans["tail"]:
        raise ValueError(f"{where}: head and tail are the same words {spans['head']}.")
    return spans


def _pair(item: Row, where: str, style: str, counts: SpanCounts, with_text: bool = False) -> Row:
    if "tokens" in item or "token" in item:
        tokens = check_words(item.get("tokens", item.get("token")), where)
        spans = pair_spans(item, None, len(tokens), where)
        text = joined_words(tokens) if with_text else Row(tokens=tokens)
    elif "text" in item:
        raw = check_string(item["text"], where)
        words = split_words(raw, style)
        spans = pair_spans(item, words, len(raw), where, counts)
        text = Row(tokens=[word.word for word in words])
        if with_text:
            text |= {"text": raw, "offsets": [[word.start, word.end] for word in words]}
    else:
        raise ValueError(f'{where}: no "tokens"; a row has {_LABELLED}.')
    if "img_id" in item:
        item = {**item, "image_id": item["img_id"]}
    return {"image_id": read_image_id(item), **text, **spans, **read_knowledge(item, where)}


def _span(
    value: Any,
    name: str,
    words: Sequence[tuple[str, int, int]] | None,
    length: int,
    where: str,
    counts: SpanCounts,
) -> list[int]:
    if isinstance(value, dict):
        if words is not None and "char_start" in value:  # a predicted entity, whose start and end are words
            value = [value["char_start"], value.get("char_end")]
        else:
            value = value.get("pos", [value.get("start"), value.get("end")])
    if not isinstance(value, list | tuple) or len(value) < 2 or not are_numbers(value[:2]):
        raise ValueError(f'{where}: a span of "{name}" should be [start, end], end exclusive.')
    start, end = value[:2]
    unit = "words" if words is None else "characters"
    if not 0 <= start < end <= length:
        raise ValueError(f'{where}: "{name}" [{start}, {end}] is empty or outside the post of {length} {unit}.')
    if words is None:
        return [start, end]
    aligned = counts.align(words, [(start, end, name)])
    if not aligned:
        raise ValueError(f'{where}: "{name}" [{start}, {end}] holds no word.')
    return [aligned[0].start, aligned[0].end]


def _items(path: Path, knowledge_column: str, columns: Sequence[int] | None) -> Iterator[tuple[str, Row]]:
    """(place, item) of each row, whatever the form."""
    text = read_text(path)
    if not text.lstrip().startswith(("{", "[")) or re.match(r"\S+\t", text.lstrip()):
        yield from _marked(path, text, knowledge_column, columns)
        return
    if re.match(r"\s*\{\s*'", text):
        items: Iterator[tuple[str, Any]] = _literals(path, text)
    else:
        items = json_items(path)
    for where, item in items:
        if isinstance(item, list) and len(item) >= 4 and isinstance(item[3], list):  # as WikiDiverse
            raise ValueError(f"{where}: {ENTITY_DATA}.")
        if not isinstance(item, dict):
            raise ValueError(f"{where}: a {type(item).__name__}; a row is an object with {_LABELLED}.")
        if item.get("id") is not None:
            item = {**item, "id": str(item["id"])}
        yield where, {key: value for key, value in item.items() if value is not None}


def _literals(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """MNRE's lines: Python literals, never evaluated as code."""
    for number, line in text_lines(text):
        if not line.strip(BLANK):
            continue
        where = f"{path}, line {number}"
        try:
            yield where, ast.literal_eval(line)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"{where}: no Python literal such as {{'token': […], 'h': {{'pos': …}}, …}}.") from None


def _marked(path: Path, text: str, knowledge_column: str, columns: Sequence[int] | None) -> Iterator[tuple[str, Row]]:
    """The authors' form: markers are words of their own, one post a block of lines."""
    filled = [(number, line) for number, line in text_lines(text) if line.strip(BLANK)]
    if not any(MARKERS & set(split_columns(line)) for _, line in filled):
        where = f"{path}, line {filled[0][0]}"
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


def _with_equal_columns(rows: list[Row]) -> list[Row]:
    for column in KNOWLEDGE_COLUMNS:
        if any(column in row for row in rows):
            for row in rows:
                row.setdefault(column, [])
    return rows
