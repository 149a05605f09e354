"""Readers of labelled posts: CoNLL (raw and the authors' archives), JSONL, WikiDiverse; and of posts without labels.

A row is {"id", "image_id", "tokens", "ner_tags"} with BIO tags as strings, and "knowledge_text" or "knowledge_image"
where the file holds knowledge. Bad input raises ValueError (or FileNotFoundError) that names file and line.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from .conll import looks_like_conll, read_conll
from .rows import (
    KNOWLEDGE_COLUMNS,
    Row,
    are_numbers,
    as_bio,
    check_object,
    check_string,
    check_tag,
    check_words,
    joined_words,
    read_image_id,
    read_knowledge,
)
from .tagging import Span, spans_to_bio
from .text_files import BLANK, json_items, read_text, text_lines
from .words import DEFAULT_STYLE, align_spans, split_words

logger = logging.getLogger(__name__)


def _character_spans(item: Row, text: str, where: str, types: Sequence[str] | None) -> list[tuple[int, int, str]]:
    spans = []
    for span in item["spans"] if isinstance(item["spans"], list) else [item["spans"]]:
        if isinstance(span, dict):
            span = [span.get("start"), span.get("end"), span.get("type", span.get("label"))]
        if not (isinstance(span, list) and len(span) == 3 and are_numbers(span[:2]) and isinstance(span[2], str)):
            raise ValueError(
                f'{where}: a span should be [start, end, type] or {{"start", "end", "type"}}, in characters.'
            )
        start, end, type_ = span
        if not 0 <= start < end <= len(text):
            raise ValueError(f"{where}: span [{start}, {end}] is empty or outside the text of {len(text)} characters.")
        check_tag(f"B-{type_}", where, types)
        spans.append((start, end, type_))
    return spans


class SpanCounts:
    """Mentions that the word splitter could not follow; reported once a file."""

    def __init__(self) -> None:
        self.mentions = self.crossing = self.dropped = self.differing = 0

    def align(self, words: Sequence[tuple[str, int, int]], spans: Sequence[tuple[int, int, str]]) -> list[Span]:
        aligned = align_spans(words, spans)
        self.mentions += len(spans)
        self.crossing += aligned.crossing
        self.dropped += aligned.dropped
        return aligned.spans

    def tags(self, text: str, spans: Sequence[tuple[int, int, str]], style: str) -> tuple[list[str], list[str]]:
        words = split_words(text, style)
        return [word.word for word in words], spans_to_bio(self.align(words, spans), len(words))

    def report(self, path: Path) -> None:
        for count, what in (
            (self.crossing, "begin or end inside a word and were widened to it"),
            (self.dropped, "overlap a longer one or hold no word and were dropped"),
            (self.differing, "are spelt otherwise than the text at their offsets, which were believed"),
        ):
            if count:
                logger.warning("%s: %d of %d mentions %s.", path, count, self.mentions, what)


def read_jsonl(
    path: str | Path,
    types: Sequence[str] | None = None,
    style: str = DEFAULT_STYLE,
    id_prefix: str | None = None,
) -> list[Row]:
    """Read one JSON object a line: "tokens" with "ner_tags" (or "tags"), or "text" with "spans".

    Spans are `[start, end, type]` or {"start", "end", "type" or "label"} in characters, end exclusive; one that begins
    or ends inside a word is widened to the word, and counted in a warning. Optional: "id", "image_id" (or "image"),
    "knowledge_text", "knowledge_image" (ranked lists of {"title", "text", "score"}).

    Args:
        path: the file; one JSON list of such objects does as well.
        types: entity types that may occur; default: any.
        style: how "text" is split into words, see `words.split_words`.
        id_prefix: of the ids `<prefix>-<index>` of rows without one; default: the file's name.

    Raises:
        ValueError: a line that is not JSON, a missing field, an unknown label, not one label for each word, relation
            data; names file and line.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    prefix = path.stem if id_prefix is None else id_prefix
    counts = SpanCounts()
    rows: list[Row] = []
    for where, value in json_items(path):
        item = check_object(value, where, '"tokens" and "ner_tags", or "text" and "spans"')
        tags_key = "ner_tags" if "ner_tags" in item else "tags"
        if "tokens" in item and tags_key in item:
            tokens, tags = check_words(item["tokens"], where), item[tags_key]
            if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
                raise ValueError(f'{where}: "{tags_key}" should be a list of names such as "O" and "B-PER".')
            if len(tags) != len(tokens):
                raise ValueError(
                    f"{where}: {len(tokens)} tokens but {len(tags)} labels; give one label for each token."
                )
            for tag in tags:
                check_tag(tag, where, types)
            tags = as_bio(tags)
        elif "text" in item and "spans" in item:
            text = check_string(item["text"], where)
            tokens, tags = counts.tags(text, _character_spans(item, text, where, types), style)
            if not tokens:
                raise ValueError(f'{where}: "text" holds no word.')
        else:
            missing = '"ner_tags"' if "tokens" in item else '"spans"' if "text" in item else '"tokens"'
            raise ValueError(f'{where}: no {missing}; a row has "tokens" and "ner_tags", or "text" and "spans".')
        name = item.get("id")
        rows.append(
            {
                "id": f"{prefix}-{len(rows)}" if name is None else str(name),
                "image_id": read_image_id(item),
                "tokens": tokens,
                "ner_tags": tags,
                **read_knowledge(item, where),
            }
        )
    counts.report(path)
    for column in KNOWLEDGE_COLUMNS:
        if any(column in row for row in rows):
            for row in rows:
                row.setdefault(column, [])
    return rows


# --- WikiDiverse


def wikidiverse_image(url: str) -> str:
    """File name of a WikiDiverse image: md5 of the URL's last part and its suffix, .svg as .png."""
    name = url.split("/")[-1]
    suffix = Path(name).suffix
    return hashlib.md5(name.encode()).hexdigest() + {".svg": ".png", ".SVG": ".png"}.get(suffix, suffix)


def read_wikidiverse(
    path: str | Path,
    types: Sequence[str] | None = None,
    style: str = DEFAULT_STYLE,
    id_prefix: str | None = None,
) -> list[Row]:
    """Read WikiDiverse: JSON rows [sentence, image_url, topic, [[mention, type, start, end, entity_url], …]].

    Offsets are characters, end exclusive. Mentions that cross word borders are widened, and counted in a warning.

    Raises:
        ValueError: a row of another form, offsets outside the sentence; names file and row.
    """
    path = Path(path)
    prefix = path.stem if id_prefix is None else id_prefix
    counts = SpanCounts()
    rows: list[Row] = []
    for where, item in json_items(path):
        if not (isinstance(item, list) and len(item) >= 4 and isinstance(item[0], str) and isinstance(item[3], list)):
            raise ValueError(
                f"{where}: a row should be [sentence, image_url, topic, [[mention, type, start, end, url], …]]."
            )
        text, url, mentions = item[0], item[1], item[3]
        for mention in mentions:
            if not isinstance(mention, list) or len(mention) < 4:
                raise ValueError(f"{where}: a mention should be [mention, type, start, end, entity_url].")
        spans = _character_spans({"spans": [[m[2], m[3], m[1]] for m in mentions]}, text, where, types)
        counts.differing += sum(text[start:end] != m[0] for (start, end, _), m in zip(spans, mentions, strict=True))
        tokens, tags = counts.tags(text, spans, style)
        if not tokens:
            raise ValueError(f"{where}: the sentence holds no word.")
        rows.append(
            {
                "id": f"{prefix}-{len(rows)}",
                "image_id": wikidiverse_image(url) if isinstance(url, str) and url else None,
                "tokens": tokens,
                "ner_tags": tags,
            }
        )
    counts.report(path)
    return rows


# --- any of them


def read_labelled(
    path: str | Path,
    types: Sequence[str] | None = None,
    style: str = DEFAULT_STYLE,
    knowledge_column: str = "knowledge_text",
    id_prefix: str | None = None,
    columns: Sequence[int] | None = None,
) -> list[Row]:
    """Read a file of labelled posts in any of the formats above, told apart by the first character of its content.

    `columns` is for CoNLL, see `read_conll`.
    """
    path = Path(path)
    text = read_text(path)
    if not _looks_like_json(path, text):
        return read_conll(path, types, knowledge_column, id_prefix, columns)
    if re.match(r'\s*\[\s*\[|\s*\["', text):
        return read_wikidiverse(path, types, style, id_prefix)
    return read_jsonl(path, types, style, id_prefix)


def _looks_like_json(path: Path, text: str) -> bool:
    if path.suffix in (".json", ".jsonl", ".conll"):
        return path.suffix != ".conll"
    return re.match(r"""\s*(\{\s*["']|\[\s*[\[{"])""", text) is not None and not looks_like_conll(text)


def read_posts(
    path: str | Path,
    style: str = DEFAULT_STYLE,
    knowledge_column: str = "knowledge_text",
    columns: Sequence[int] | None = None,
) -> list[Row]:
    """Read posts without labels, to be tagged: JSONL with "text" or "tokens", CoNLL, or text with one post a line.

    Rows are {"id", "image_id", "tokens", "text", "offsets"} and the knowledge columns that the file has; offsets are
    [start, end] of each word in text. Posts given as words get the words joined by spaces as text. Labels are not
    read.

    Args:
        style: how "text" is split into words.
        knowledge_column: where the knowledge of an archive (label X) goes.
        columns: of CoNLL, see `read_conll`.

    Raises:
        ValueError: empty file, a row without words; names file and line.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    content = read_text(path)
    rows: list[Row] = []
    if _looks_like_json(path, content):
        for where, value in json_items(path):
            item = check_object(value, where, '"text" or "tokens"')
            if "tokens" in item:
                row = joined_words(check_words(item["tokens"], where))
            elif "text" in item:
                row = _with_words(check_string(item["text"], where), style, where)
            else:
                raise ValueError(f'{where}: no "text"; a post has "text" or "tokens".')
            name = item.get("id")
            row = {
                "id": f"{path.stem}-{len(rows)}" if name is None else str(name),
                "image_id": read_image_id(item),
                **row,
            }
            rows.append({**row, **read_knowledge(item, where)})
        return rows
    if path.suffix == ".conll" or looks_like_conll(content, columns):
        for post in read_conll(path, knowledge_column=knowledge_column, columns=columns):
            knowledge = {column: post[column] for column in KNOWLEDGE_COLUMNS if column in post}
            row = {"id": post["id"], "image_id": post["image_id"], **joined_words(post["tokens"]), **knowledge}
            rows.append(row)
        return rows
    for number, line in text_lines(content):
        if line.strip(BLANK):
            post = _with_words(line, style, f"{path}, line {number}")
            rows.append({"id": f"{path.stem}-{len(rows)}", "image_id": None, **post})
    return rows


def _with_words(text: str, style: str, where: str) -> Row:
    words = split_words(text, style)
    if not words:
        raise ValueError(f"{where}: the post holds no word.")
    return {"tokens": [w.word for w in words], "text": text, "offsets": [[w.start, w.end] for w in words]}
