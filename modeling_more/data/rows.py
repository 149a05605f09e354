"""Check the labels of rows of files, tables and data sets; `posts` checks the posts themselves.

`where` names the place of a row in the errors (ValueError, one sentence).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..naming import nearest
from ..posts import KNOWLEDGE_COLUMNS, Row, SpanCounts, check_string, joined_words
from ..tagging import spans_to_bio, split_tag, tags_to_spans
from .text_files import RELATION_DATA

HIDDEN = -1  # what a ClassLabel holds where a label is not told

# what looks like nothing at all though its category is that of letters or marks: fillers, selectors, an empty pattern
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_BLANKS = ("Cc", "Cf", "Zs", "Zl", "Zp")  # controls, formats, white space of any script
_JOINERS = "\u200c\u200d"


def clean_label(label: str, where: str) -> str:
    """Return a label without the white space around it, with which it would be another one; within it is an error."""
    if label.isascii() and label.isprintable() and " " not in label:
        return label
    found = check_string(label, where, "a label")
    seen = [place for place, character in enumerate(found) if not _is_blank(character)]
    found = found[seen[0] : seen[-1] + 1] if seen else ""
    if any(_is_blank(one) and not _joins(found, place) for place, one in enumerate(found)):
        told = "has white space within; write it in one, like creative-work."
        raise ValueError(f"{where}: the label {found!r:.80} {told}")
    return found


def _is_blank(character: str) -> bool:
    """Return whether nothing is seen of a character: a label with it looks like one without."""
    return unicodedata.category(character) in _BLANKS or _UNSEEN.match(character) is not None


def _joins(label: str, place: int) -> bool:
    """Return whether a joiner stands between letters, as in Persian or Hindi."""
    beside = label[place - 1] + label[place + 1]
    return label[place] in _JOINERS and all(unicodedata.category(one)[0] in "LM" for one in beside)


def check_object(item: Any, where: str, needed: str) -> Row:
    """Return the item where it is an object of the entity task."""
    if not isinstance(item, dict):
        raise ValueError(f"{where}: a {type(item).__name__}; a row is an object with {needed}.")
    if "relation" in item and {"h", "t", "head", "tail"} & item.keys():
        raise ValueError(f"{where}: {RELATION_DATA}.")
    return item


def check_tag(tag: str, where: str, types: Sequence[str] | None) -> str:
    """Return a tag without the white space around it: O, or one of [BIES]- and a type, one of `types` if given."""
    tag = clean_label(tag, where)
    try:
        _, type_ = split_tag(tag)
    except ValueError:
        if tag.startswith("/"):
            raise ValueError(f"{where}: {RELATION_DATA}.") from None
        expected = f"B- or I- and one of {', '.join(types)}" if types else "B- or I- and a type, like B-PER"
        raise ValueError(f"{where}: unknown label {tag!r:.80}; a label is O, or {expected}.") from None
    if types is not None and type_ and type_ not in types:
        near = nearest(type_, types) or "."
        raise ValueError(f"{where}: unknown label {tag!r:.80}; the types are {', '.join(types)}{near}")
    return tag


def name_of(value: Any, names: Sequence[str] | None, where: str) -> Any:
    """Return the name of a label that is given by number; None where it is hidden (-1, also as a string, or null).

    `names` are those of a ClassLabel; a number that no class has is an error.
    """
    if isinstance(value, str) and value.strip() == str(HIDDEN):  # a number that became a string with a column
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if value == HIDDEN:
        return None
    if names is None:
        return value
    if not 0 <= value < len(names):
        raise ValueError(
            f"{where}: the label {value} is none of the {len(names)} classes {', '.join(names)}; {HIDDEN} hides one."
        )
    return None if names[value] == str(HIDDEN) else names[value]  # a class that was made of such strings


def check_tags(
    value: Any,
    length: int,
    where: str,
    types: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    column: str = "ner_tags",
) -> list[str] | None:
    """Return the tags of a post in BIO; None where they are hidden, all -1 or null.

    There must be `length` of them, one for each word; some can't be hidden and others not. `types` and `names` are as
    of `check_tag` and `name_of`.
    """
    if value is None:
        return None
    value = value.tolist() if hasattr(value, "tolist") else value
    no_names = f'{where}: "{column}" should be a list of names such as "O" and "B-PER".'
    if not isinstance(value, list | tuple):
        raise ValueError(no_names)
    if len(value) != length:
        raise ValueError(f"{where}: {length} tokens but {len(value)} labels; give one label for each token.")
    tags = [name_of(one, names, where) for one in value]
    if all(tag is None for tag in tags):
        return None
    if None in tags:
        raise ValueError(
            f"{where}: {tags.count(None)} of {length} words have no label ({HIDDEN} or null), the others have one; "
            "label all words of a post, or none."
        )
    if not all(isinstance(tag, str) for tag in tags):
        raise ValueError(no_names)
    return as_bio([check_tag(tag, where, types) for tag in tags])


def as_bio(tags: list[str]) -> list[str]:
    """Return BIO as it stands (stray I- too), and BIOES as BIO."""
    if any(tag[0] in "ES" for tag in tags):
        return spans_to_bio(tags_to_spans(tags), len(tags))
    return tags


def check_labelled(rows: Sequence[Row], places: Sequence[str], column: str) -> None:
    """Raise ValueError where some rows of a split have no label and others have."""
    without = [place for row, place in zip(rows, places, strict=True) if row[column] is None]
    if without and len(without) < len(rows):
        raise ValueError(
            f"{without[0]}: no label ({HIDDEN} or null), as in {len(without)} of {len(rows)} rows; a split has labels "
            "in all rows, or in none, and is then predicted but not scored."
        )


def archive_entry(text: str) -> Row:
    """Return the knowledge of a post in the authors' archives: one entry, without title or rank."""
    told = {"title": "", "text": text, "source": "archive"}
    return {**told, "score": 0.0, "scale": 0.0, "match_start": 0, "match_end": 0}


def checked_rows(
    items: Iterable[tuple[str, Any]],
    check: Callable[[Any, str, SpanCounts], Row],
    source: str | Path,
    prefix: str,
    label: str,
    columns: Collection[str] = (),
) -> list[Row]:
    """Return (place, item) pairs as the rows that `check` makes of them; those without ids are numbered from 0.

    Args:
        source: name of the whole, for warnings.
        label: column that all rows must have, or none.
        columns: knowledge columns that the rows get even if none holds any.
    """
    rows: list[Row] = []
    places: list[str] = []
    counts = SpanCounts()
    for where, item in items:
        row = check(item, where, counts)
        rows.append({**row, "id": row["id"] or f"{prefix}{len(rows)}"})
        places.append(where)
    counts.report(source)
    check_labelled(rows, places, label)
    return with_equal_columns(rows, columns)


def with_equal_columns(rows: list[Row], columns: Collection[str] = ()) -> list[Row]:
    """Give all rows the columns that one has: no knowledge where there is none, words joined by blanks as text."""
    for column in KNOWLEDGE_COLUMNS:
        if column in columns or any(column in row for row in rows):
            for row in rows:
                row.setdefault(column, [])
    if any("text" in row for row in rows):
        for row in rows:
            if "text" not in row:
                row |= joined_words(row["tokens"])
    return rows
