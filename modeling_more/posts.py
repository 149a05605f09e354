"""Check what a post is, wherever it comes from: its text, words, spans, image and knowledge.

An item is what a source holds: a line of JSON, a row of a table or of a data set, a post given to the library. `where`
names its place in the errors (ValueError, one sentence).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from .tagging import Span
from .words import align_spans, split_words

MAX_WORDS = 100_000  # of a post; a model reads them in windows, at its own speed
MAX_PAIRS = 10_000  # of the entities of a post

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Posts = list[Row]

KNOWLEDGE_COLUMNS = ("knowledge_text", "knowledge_image")
# what the types that they are stored in can hold; a scale is what a score can reach at most
_LIMITS = {
    "score": (-3.4e38, 3.4e38), "scale": (0, 3.4e38), "match_start": (-(2**31 - 1), 2**31 - 1),
    "match_end": (-(2**31 - 1), 2**31 - 1),
}  # fmt: skip
PAIR_FIELDS = '"tokens" (or "text"), "head", "tail" and "relation"'


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


def read_words(item: Mapping[str, Any], where: str, splitter: str, may_be_empty: bool = False) -> Row:
    """Return the words of an item and, where it has one, its text with the place of each word.

    Args:
        may_be_empty: whether a post without a word will do, as in prediction.

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
        words = split_words(text, splitter)
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
    objects = isinstance(tokens, list | tuple) and tokens and all(isinstance(token, Mapping) for token in tokens)
    return None if objects and item.get("text") is not None else tokens


def check_words(value: Any, where: str, may_be_empty: bool = False) -> list[str]:
    """Return the words as a list of strings, none of them empty; a string by itself is no list."""
    if hasattr(value, "tolist"):  # an array
        value = value.tolist()
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) and word for word in value):
        raise ValueError(f'{where}: "tokens" should be a list of words, none of them empty.')
    if not value and not may_be_empty:
        raise ValueError(f'{where}: "tokens" is empty; a post has at least one word.')
    check_string("".join(value), where, '"tokens"')
    return list(value)


def _check_offsets(value: Any, tokens: Sequence[str], text: str, where: str) -> list[list[int]] | None:
    """Return the offsets as a list; None where the words do not stand there, one after the other."""
    value = value.tolist() if hasattr(value, "tolist") else value

    def good(pair: Any) -> bool:
        numbers = isinstance(pair, list | tuple) and len(pair) == 2 and are_numbers(pair)
        return numbers and 0 <= pair[0] <= pair[1] <= len(text)

    if not isinstance(value, list | tuple) or len(value) != len(tokens) or not all(map(good, value)):
        raise ValueError(f'{where}: "offsets" should be a list of [start, end] in "text", one for each of "tokens".')
    last = 0
    for (begin, end), word in zip(value, tokens, strict=True):
        if begin < last or text[begin:end] != word:
            return None
        last = end
    return [list(pair) for pair in value]


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
    """Return whether all values are whole numbers."""
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)


def words_with_offsets(row: Row) -> list[tuple[str, int, int]]:
    """Return (word, start, end) of the words of a row that has a text."""
    return [(word, start, end) for word, (start, end) in zip(row["tokens"], row["offsets"], strict=True)]


def check_found(entities: Any, where: str) -> None:
    """Raise ValueError if these are no entities found earlier, such as are searched for; None is none."""
    fits = isinstance(entities, list | tuple) and all(isinstance(one, Mapping) and "text" in one for one in entities)
    if entities is not None and not fits:
        raise ValueError(f'{where}: "predicted_entities" should be a list of objects with "text"')
    for one in entities or ():
        check_string(one["text"], where, '"text" of "predicted_entities"')


# --- spans


class SpanCounts:
    """A count of the mentions and texts that could not be read as they were given, reported once a file."""

    def __init__(self) -> None:
        self.mentions = self.crossing = self.dropped = self.differing = 0
        self.posts = self.texts = 0

    def words(self, item: Mapping[str, Any], where: str, splitter: str, may_be_empty: bool = False) -> Row:
        """Read the words of an item, see `read_words`."""
        row = read_words(item, where, splitter, may_be_empty)
        self.posts += 1
        self.texts += item.get("text") is not None and "text" not in row
        return row

    def align(self, words: Sequence[tuple[str, int, int]], spans: Sequence[tuple[int, int, str]]) -> list[Span]:
        aligned = align_spans(words, spans)
        self.mentions += len(spans)
        self.crossing += aligned.crossing
        self.dropped += aligned.dropped
        return aligned.spans

    def report(self, where: str | Path) -> None:
        for count, what in (
            (self.crossing, "begin or end inside a word and were widened to it"),
            (self.dropped, "overlap a longer one or hold no word and were dropped"),
            (self.differing, "are spelt otherwise than the text at their offsets, which were believed"),
        ):
            if count:
                logger.warning("%s: %d of %d mentions %s.", where, count, self.mentions, what)
        if self.texts:
            logger.warning(
                "%s: %d of %d texts do not hold their tokens one after the other, or not at their offsets, and are "
                "left out: offsets count the tokens joined by blanks.", where, self.texts, self.posts,
            )  # fmt: skip


def pair_spans(
    item: Row, words: Sequence[tuple[str, int, int]] | None, length: int, where: str, counts: SpanCounts | None = None
) -> Row:
    """Return the "head" and "tail", or else the "entities", of an item as spans of words.

    Args:
        words: (word, start, end) where the item's spans are characters; None where they are words already.
        counts: where spans that were widened to words are counted.
    """
    counts = counts or SpanCounts()
    if item.get("entities") is not None and all(item.get(name) is None for name in ("head", "h", "tail", "t")):
        given = item["entities"]
        given = given.tolist() if hasattr(given, "tolist") else given
        if not isinstance(given, list):
            raise ValueError(f'{where}: "entities" should be a list of spans.')
        found = [_span(span, "entities", words, length, where, counts) for span in given]
        twice = next((span for place, span in enumerate(found) if span in found[:place]), None)
        if twice is not None:
            raise ValueError(f'{where}: two of "entities" are the same words {twice}; give each once.')
        return {"entities": found}
    spans = {}
    for name, short in (("head", "h"), ("tail", "t")):
        value = item.get(short) if item.get(name) is None else item[name]
        if value is None:
            raise ValueError(f'{where}: no "{name}"; a row has {PAIR_FIELDS}.')
        spans[name] = _span(value, name, words, length, where, counts)
    if spans["head"] == spans["tail"]:
        raise ValueError(f"{where}: head and tail are the same words {spans['head']}.")
    return spans


def _span(
    value: Any, name: str, words: Sequence[tuple[str, int, int]] | None, length: int, where: str, counts: SpanCounts
) -> list[int]:
    if isinstance(value, dict):
        if words is not None and "char_start" in value:  # a predicted entity, whose start and end are words
            value = [value["char_start"], value.get("char_end")]
        else:
            value = value.get("pos", [value.get("start"), value.get("end")])
    value = value.tolist() if hasattr(value, "tolist") else value  # an array
    if isinstance(value, list | tuple):
        value = [int(one) if isinstance(one, Integral) and not isinstance(one, bool) else one for one in value]
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


# --- knowledge


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
            "scale": float(_number(entry, "scale")),
            "source": check_string(entry.get("source") or "", where, f'a source of "{column}"'),
            "match_start": int(_number(entry, "match_start")),
            "match_end": int(_number(entry, "match_end")),
        }
        for entry in entries
    ]


def _number(entry: Mapping[str, Any], name: str) -> Any:
    """Return a number of an entry; 0 where it is missing, as null or as a frame has it."""
    value = entry.get(name)
    return 0 if value is None or value != value else value


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("text"), str):
        return False
    strings = (entry.get(name) for name in ("title", "source"))
    numbers = ((_number(entry, name), limits) for name, limits in _LIMITS.items())
    return all(value is None or isinstance(value, str) for value in strings) and all(
        hasattr(value, "__float__") and least <= value <= most for value, (least, most) in numbers
    )
