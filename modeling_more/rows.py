"""What makes a row: the checks that every source's words, labels, spans and knowledge go through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .tagging import spans_to_bio, split_tag, tags_to_spans
from .text_files import RELATION_DATA

Row = dict[str, Any]

KNOWLEDGE_COLUMNS = ("knowledge_text", "knowledge_image")


def check_tag(tag: str, where: str, types: Sequence[str] | None) -> None:
    try:
        _, type_ = split_tag(tag)
    except ValueError:
        if tag.startswith("/"):
            raise ValueError(f"{where}: {RELATION_DATA}.") from None
        expected = f"B- or I- and one of {', '.join(types)}" if types else "B- or I- and a type, like B-PER"
        raise ValueError(f"{where}: unknown label {tag!r}; a label is O, or {expected}.") from None
    if types is not None and type_ and type_ not in types:
        raise ValueError(f"{where}: unknown label {tag!r}; the types are {', '.join(types)}.")


def as_bio(tags: list[str]) -> list[str]:
    """BIO stays as it stands (stray I- too); BIOES becomes BIO."""
    if any(tag[0] in "ES" for tag in tags):
        return spans_to_bio(tags_to_spans(tags), len(tags))
    return tags


def archive_entry(text: str) -> Row:
    """Knowledge of the authors' archives: one entry a post, without title or rank."""
    return {"title": "", "text": text, "score": 0.0, "source": "archive", "match_start": 0, "match_end": 0}


def check_object(item: Any, where: str, needed: str) -> Row:
    if not isinstance(item, dict):
        raise ValueError(f"{where}: a {type(item).__name__}; a row is an object with {needed}.")
    if "relation" in item and {"h", "t", "head", "tail"} & item.keys():
        raise ValueError(f"{where}: {RELATION_DATA}.")
    return item


def check_words(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(word, str) and word for word in value):
        raise ValueError(f'{where}: "tokens" should be a list of words, none of them empty.')
    if not value:
        raise ValueError(f'{where}: "tokens" is empty; a post has at least one word.')
    return value


def check_string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f'{where}: "text" should be a string.')
    return value


def read_knowledge(item: Row, where: str) -> Row:
    """The row's knowledge columns, every entry with all the fields of the stored form."""
    found: Row = {}
    for column in KNOWLEDGE_COLUMNS:
        if item.get(column) is None:
            continue
        entries = item[column]
        if not isinstance(entries, list) or not all(
            isinstance(e, dict) and isinstance(e.get("text"), str) for e in entries
        ):
            raise ValueError(f'{where}: "{column}" should be a ranked list of objects {{"title", "text", "score"}}.')
        found[column] = [
            {
                "title": str(entry.get("title") or ""),
                "text": entry["text"],
                "score": float(entry.get("score") or 0.0),
                "source": str(entry.get("source") or ""),
                "match_start": int(entry.get("match_start") or 0),
                "match_end": int(entry.get("match_end") or 0),
            }
            for entry in entries
        ]
    return found


def read_image_id(item: Row) -> str | None:
    for key in ("image_id", "image"):
        if isinstance(item.get(key), str | int):
            return str(item[key])
    return None


def are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)


def joined_words(tokens: list[str]) -> Row:
    offsets, start = [], 0
    for word in tokens:
        offsets.append([start, start + len(word)])
        start += len(word) + 1
    return {"tokens": tokens, "text": " ".join(tokens), "offsets": offsets}
