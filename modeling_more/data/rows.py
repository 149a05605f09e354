"""What makes a row: the one check that rows of files, tables, data sets and `predict()` go through.

An item is what a source holds: a line of JSON, a row of a table or of a data set, a post that the library is called
with. `where` names its place, for the errors (ValueError, one sentence).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from ..naming import nearest
from ..tagging import spans_to_bio, split_tag, tags_to_spans
from ..words import split_words
from .text_files import RELATION_DATA

Row = dict[str, Any]

KNOWLEDGE_COLUMNS = ("knowledge_text", "knowledge_image")
HIDDEN = -1  # what a ClassLabel holds where a label is not told

# what looks like nothing at all though its category is that of letters or marks: fillers, selectors, an empty pattern
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_BLANKS = ("Cc", "Cf", "Zs", "Zl", "Zp")  # controls, formats, white space of any script
_JOINERS = "\u200c\u200d"


# --- strings


def check_string(value: Any, where: str, what: str = '"text"') -> str:
    """Return the value where it is a string of whole characters; JSON can hold half a surrogate pair."""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {what} should be a string.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{where}: {what} holds half a surrogate pair, which is no character; write all of it or leave it out."
        ) from None
    return value


def clean_label(label: str, where: str) -> str:
    """Return a label without the white space around it, with which it would be another one; within it is an error."""
    if label.isascii() and label.isprintable() and " " not in label:
        return label
    found = check_string(label, where, "a label")
    seen = [place for place, character in enumerate(found) if not _is_blank(character)]
    found = found[seen[0] : seen[-1] + 1] if seen else ""
    if any(_is_blank(one) and not _joins(found, place) for place, one in enumerate(found)):
        raise ValueError(f"{where}: the label {found!r} has white space within; write it in one, like creative-work.")
    return found


def _is_blank(character: str) -> bool:
    """Whether nothing is seen of a character: a label with it looks like one without."""
    return unicodedata.category(character) in _BLANKS or _UNSEEN.match(character) is not None


def _joins(label: str, place: int) -> bool:
    """Whether a joiner stands between letters, as in Persian or Hindi."""
    beside = label[place - 1] + label[place + 1]
    return label[place] in _JOINERS and all(unicodedata.category(one)[0] in "LM" for one in beside)


def read_name(item: Mapping[str, Any], keys: Sequence[str], where: str) -> str | None:
    """Return the first name under one of these keys; None where there is none. A number is taken for its digits."""
    for key in keys:
        value = item.get(key)
        if isinstance(value, Mapping) and "path" in value:  # a picture as `datasets` holds it
            value = value["path"]
        if isinstance(value, float) and value.is_integer():  # a column of a frame in which some are missing
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if value is None or value == "" or value != value:
            continue
        if not isinstance(value, str):
            raise ValueError(f'{where}: "{key}" should be a string or a whole number, not {type(value).__name__}.')
        return check_string(value, where, f'"{key}"')
    return None


def read_image_id(item: Mapping[str, Any], where: str) -> str | None:
    """Return the name of the post's image."""
    return read_name(item, ("image_id", "img_id", "image"), where)


# --- words


def check_object(item: Any, where: str, needed: str) -> Row:
    """Return the item where it is an object of the entity task."""
    if not isinstance(item, dict):
        raise ValueError(f"{where}: a {type(item).__name__}; a row is an object with {needed}.")
    if "relation" in item and {"h", "t", "head", "tail"} & item.keys():
        raise ValueError(f"{where}: {RELATION_DATA}.")
    return item


def check_words(value: Any, where: str, may_be_empty: bool = False) -> list[str]:
    """Return the words as a list; a string is none, whatever its letters."""
    if hasattr(value, "tolist"):  # an array
        value = value.tolist()
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) and word for word in value):
        raise ValueError(f'{where}: "tokens" should be a list of words, none of them empty.')
    if not value and not may_be_empty:
        raise ValueError(f'{where}: "tokens" is empty; a post has at least one word.')
    check_string("".join(value), where, '"tokens"')
    return list(value)


def read_words(item: Mapping[str, Any], where: str, style: str, may_be_empty: bool = False) -> Row:
    """Return the words of an item and, where it has one, its text with the place of each word.

    Args:
        style: how text is split into words, see `words.split_words`.
        may_be_empty: whether a post without a word will do, as it does in prediction.

    Returns:
        {"tokens"} or {"tokens", "text", "offsets"}, offsets being [start, end] of each word in text, in characters. A
        text in which the item's "tokens" do not stand one after the other, or not at its "offsets", is left out.
    """
    tokens, text = given_words(item), item.get("text")
    if text is not None:
        check_string(text, where)
    if tokens is None:
        if text is None:
            raise ValueError(f'{where}: no "text"; a post has "text" or "tokens".')
        words = split_words(text, style)
        if not words and not may_be_empty:
            raise ValueError(f'{where}: "text" holds no word.')
        return {"tokens": [w.word for w in words], "text": text, "offsets": [[w.start, w.end] for w in words]}
    tokens = check_words(tokens, where, may_be_empty)
    if text is None:
        return {"tokens": tokens}
    offsets = word_offsets(tokens, text)
    if item.get("offsets") is not None:
        offsets = _check_offsets(item["offsets"], tokens, text, where)
    return {"tokens": tokens} if offsets is None else {"tokens": tokens, "text": text, "offsets": offsets}


def given_words(item: Mapping[str, Any]) -> Any:
    """Return what the item holds as its words; None where it goes by its text.

    Tokens that are objects beside a text, as annotation tools write them, are no words.
    """
    tokens = item.get("token") if item.get("tokens") is None else item["tokens"]
    objects = False
    if isinstance(tokens, list | tuple) and tokens:
        objects = all(isinstance(token, Mapping) for token in tokens)
    return None if objects and item.get("text") is not None else tokens


def _check_offsets(value: Any, tokens: Sequence[str], text: str, where: str) -> list[list[int]] | None:
    """The offsets as a list; None where the words do not stand there, one after the other."""
    value = value.tolist() if hasattr(value, "tolist") else value

    def good(pair: Any) -> bool:
        numbers = isinstance(pair, list | tuple) and len(pair) == 2 and are_numbers(pair)
        return numbers and 0 <= pair[0] <= pair[1] <= len(text)

    if not isinstance(value, list | tuple) or len(value) != len(tokens) or not all(map(good, value)):
        raise ValueError(f'{where}: "offsets" should be a list of [start, end] in "text", one for each of "tokens".')
    ends = [0, *(end for _, end in value)]
    fit = all(
        begin >= last and text[begin:end] == word
        for (begin, end), word, last in zip(value, tokens, ends[:-1], strict=True)
    )
    return [list(pair) for pair in value] if fit else None


def word_offsets(tokens: Sequence[str], text: str) -> list[list[int]] | None:
    """Return [start, end] of each word in a text; None where more than white space stands between the words."""
    offsets: list[list[int]] = []
    end = 0
    for word in tokens:
        start = text.find(word, end)
        if start < 0 or text[end:start].strip():
            return None
        end = start + len(word)
        offsets.append([start, end])
    return None if text[end:].strip() else offsets


def joined_words(tokens: list[str]) -> Row:
    """Return the words with a text that is the words joined by blanks, and the place of each in it."""
    offsets, start = [], 0
    for word in tokens:
        offsets.append([start, start + len(word)])
        start += len(word) + 1
    return {"tokens": tokens, "text": " ".join(tokens), "offsets": offsets}


def are_numbers(values: Sequence[Any]) -> bool:
    """Whether all values are whole numbers."""
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)


# --- labels


def check_tag(tag: str, where: str, types: Sequence[str] | None) -> str:
    """Return a tag without the white space around it: O, or one of [BIES]- and a type, one of `types` if given."""
    tag = clean_label(tag, where)
    try:
        _, type_ = split_tag(tag)
    except ValueError:
        if tag.startswith("/"):
            raise ValueError(f"{where}: {RELATION_DATA}.") from None
        expected = f"B- or I- and one of {', '.join(types)}" if types else "B- or I- and a type, like B-PER"
        raise ValueError(f"{where}: unknown label {tag!r}; a label is O, or {expected}.") from None
    if types is not None and type_ and type_ not in types:
        near = nearest(type_, types) or "."
        raise ValueError(f"{where}: unknown label {tag!r}; the types are {', '.join(types)}{near}")
    return tag


def name_of(value: Any, names: Sequence[str] | None, where: str) -> Any:
    """Return the name of a label that is given by number; None where it is hidden (-1, also as a string, or null).

    Args:
        names: of a ClassLabel; None where the source has none.

    Raises:
        ValueError: a number that no class has.
    """
    if isinstance(value, str) and value.strip() == str(HIDDEN):  # a number that became a string with a column
        return None
    if value is None or isinstance(value, bool) or not isinstance(value, int):
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

    Args:
        length: words of the post.
        types, names: see `check_tag` and `name_of`.

    Raises:
        ValueError: not one tag for each word, no tag, some hidden beside others.
    """
    if value is None:
        return None
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, list | tuple):
        raise ValueError(f'{where}: "{column}" should be a list of names such as "O" and "B-PER".')
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
        raise ValueError(f'{where}: "{column}" should be a list of names such as "O" and "B-PER".')
    return as_bio([check_tag(tag, where, types) for tag in tags])


def as_bio(tags: list[str]) -> list[str]:
    """BIO stays as it stands (stray I- too); BIOES becomes BIO."""
    if any(tag[0] in "ES" for tag in tags):
        return spans_to_bio(tags_to_spans(tags), len(tags))
    return tags


def check_labelled(rows: Sequence[Row], places: Sequence[str], column: str) -> None:
    """Raise ValueError, which names the first one, where some rows of a split have no label and others have."""
    without = [place for row, place in zip(rows, places, strict=True) if row[column] is None]
    if without and len(without) < len(rows):
        raise ValueError(
            f"{without[0]}: no label ({HIDDEN} or null), as in {len(without)} of {len(rows)} rows; a split has labels "
            "in all rows, or in none, and is then predicted but not scored."
        )


# --- knowledge


def archive_entry(text: str) -> Row:
    """Knowledge of the authors' archives: one entry a post, without title or rank."""
    return {"title": "", "text": text, "score": 0.0, "source": "archive", "match_start": 0, "match_end": 0}


def read_knowledge(item: Mapping[str, Any], where: str, columns: Sequence[str] = KNOWLEDGE_COLUMNS) -> Row:
    """Return the item's knowledge columns, every entry with all the fields of the stored form."""
    return {column: check_entries(item[column], column, where) for column in columns if item.get(column) is not None}


def check_entries(entries: Any, column: str, where: str) -> list[Row]:
    """Return a ranked list of entries with all the fields of the stored form; only their text must be there."""
    if not isinstance(entries, list | tuple) or not all(map(_is_entry, entries)):
        raise ValueError(f'{where}: "{column}" should be a ranked list of objects {{"title", "text", "score"}}.')
    return [
        {
            "title": check_string(entry.get("title") or "", where, f'a title of "{column}"'),
            "text": check_string(entry["text"], where, f'"{column}"'),
            "score": float(_number(entry, "score")),
            "source": check_string(entry.get("source") or "", where, f'a source of "{column}"'),
            "match_start": int(_number(entry, "match_start")),
            "match_end": int(_number(entry, "match_end")),
        }
        for entry in entries
    ]


def _number(entry: Mapping[str, Any], name: str) -> Any:
    """A number of an entry; 0 where it is missing, as null or as a frame has it."""
    value = entry.get(name)
    return 0 if value is None or value != value else value


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("text"), str):
        return False
    strings = (entry.get(name) for name in ("title", "source"))
    numbers = (_number(entry, name) for name in ("score", "match_start", "match_end"))
    return all(value is None or isinstance(value, str) for value in strings) and all(
        hasattr(value, "__float__") and math.isfinite(value) for value in numbers
    )


# --- all rows of a file


def with_equal_columns(rows: list[Row]) -> list[Row]:
    """Give all rows the columns that one has: no knowledge where there is none, words joined by blanks as text."""
    for column in KNOWLEDGE_COLUMNS:
        if any(column in row for row in rows):
            for row in rows:
                row.setdefault(column, [])
    if any("text" in row for row in rows):
        for row in rows:
            if "text" not in row:
                row |= joined_words(row["tokens"])
    return rows
