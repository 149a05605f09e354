"""Split raw text into words with offsets, as the data sets do, and put character spans onto words."""

import re
import unicodedata
from bisect import bisect, bisect_left
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import islice
from typing import NamedTuple

from .tagging import Span

_VARIATIONS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"  # selectors: marks as well, but the data sets hold them as words
# scripts that set no blanks between words, and their blocks; digits and punctuation in them are as in other scripts
_UNSPACED_BLOCKS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF), (0x1A20, 0x1AAF), (0xAA80, 0xAADF), (0x11700, 0x1174F),  # Tai Le, Lue, Tham, Viet; Ahom
    (0x1B00, 0x1B7F), (0x1BC0, 0x1BFF), (0xA980, 0xA9DF),  # Balinese, Batak, Javanese
    (0x3005, 0x312F), (0x31A0, 0x31FF), (0xFF66, 0xFF9D), (0x1AFF0, 0x1B16F),  # Kana, Bopomofo, Han's iteration marks
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFD),  # Han
    (0xA000, 0xA4CF), (0x17000, 0x18DFF), (0x1B170, 0x1B2FF),  # Yi, Tangut, Khitan, Nushu
)  # fmt: skip


def _character_class(blocks: Iterable[tuple[int, int]], categories: Sequence[str]) -> str:
    """Return the characters of these blocks and categories, as they stand in the brackets of a pattern."""
    ranges: list[list[int]] = []
    for first, last in blocks:
        if first >= 0x20000:  # planes of ideographs, assigned or not yet
            ranges.append([first, last])
            continue
        for code in range(first, last + 1):
            if unicodedata.category(chr(code)) not in categories:
                continue
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


#: combining marks (accents, vowel signs, the voicing of half-width Kana), for the brackets of a pattern
MARKS = _character_class([(0x300, 0xFDFF), (0xFE10, 0x1EFFF)], ("Mn", "Mc")) + "\uff9e\uff9f"
#: letters of the scripts that set no blanks between words, for the brackets of a pattern
UNSPACED = _character_class(_UNSPACED_BLOCKS, ("Lo", "Lm", "Nl"))

# One alternative a line, the first that matches wins. {unspaced}: a letter of a script without blanks, a word of its
# own, for nothing tells where the words end; {word}: letters, digits and underscores of all others with their marks.
_PATTERNS = {
    # As Twitter-2017: letters, digits and underscores make a word, "#", "@" and every other character stand alone.
    "twitter17": r"""
        https?://[^{no_link}]*[^{no_link}.,!?;:)\]}}'"’”]   # a link, without the punctuation that follows it
      | {unspaced}
      | \d+(?:[.,]\d+)+               # 10,000  13.5
      | [:;]-?[()DPO](?![\w])         # :)  ;-)  :D
      | {word}
      | [^\s]
    """,
    # As Twitter-2015: "#" and "@" stay with their word, so do hyphens and slashes inside one; links are one word.
    "twitter15": r"""
        https?:[^{no_link}]*[^{no_link}.,!?;:)\]}}'"’”] | h(?:t|tt|ttp|ttps)?…
      | {unspaced}
      | w/(?:o\b)? | &\#?{word}                       # &amp;  &gt
      | [@\#$]{word}(?:-{word})*
      | \d+(?:[.,:]\d+)+              # 10,000  13.5  7:30
      | {word}(?:[-/]{word})*
      | -{{2,}} | \*{{2,}} | /{{2,}} | \|{{2,}}
      | [^\s]
    """,
    # Only ASCII white space separates words: for text whose words are already apart.
    "whitespace": r"[^\ \t\n\r\f\v]+",
}
SPLITTERS = tuple(_PATTERNS)
DEFAULT_SPLITTER = "twitter17"


_WORD = re.compile(r"\S+")


class Word(NamedTuple):
    """A word that stands at the characters `start` to `end` (exclusive) of a text."""

    word: str
    start: int
    end: int


class Alignment(NamedTuple):
    """Entities that were put onto words, and how many did not fit."""

    spans: list[Span]
    crossing: int  # began or ended inside a word: widened to the whole word
    dropped: int  # held no word, or overlapped a longer span


@cache
def _compiled(splitter: str) -> re.Pattern[str]:
    if splitter not in _PATTERNS:
        raise ValueError(f"splitter {splitter!r} is unknown: give one of {', '.join(SPLITTERS)}")
    letter = rf"[^\W{UNSPACED}]"
    joiner = rf"[\u200c\u200d](?={letter})"  # within words of Persian and of Indic scripts
    pattern = _PATTERNS[splitter].format(
        unspaced=f"[{UNSPACED}][{MARKS}{_VARIATIONS}]*",
        # possessive: nothing behind a word makes it shorter, and a word of a million letters needs no way back
        word=f"{letter}(?:{letter}|[{MARKS}]|{joiner})*+",
        no_link=rf"\s{UNSPACED}\u3000-\u303f\uff01-\uff60",  # text goes on behind a link without a blank
    )
    return re.compile(pattern, re.VERBOSE)


def split_words(text: str, splitter: str = DEFAULT_SPLITTER) -> list[Word]:
    """Return the words of `text` with their offsets: `text[start:end] == word`, in order, without overlap.

    Args:
        text: any string; an empty one, or one of white space only, has no words.
        splitter: "twitter17" ("#" and "@" are words of their own), "twitter15" (they belong to their word) or
            "whitespace". Take that of the data the model was trained on. In scripts that set no blanks between
            words (Chinese, Japanese, Thai …) the first two make each letter, with its marks, a word.

    Raises:
        ValueError: when the splitter is unknown.
    """
    return [Word(match.group(), match.start(), match.end()) for match in _compiled(splitter).finditer(text)]


def has_more_words(text: str, limit: int, splitter: str = DEFAULT_SPLITTER) -> bool:
    """Return whether a text has more words than this; no more of it is read than is needed to tell."""
    if len(text) <= limit:
        return False
    return next(islice(_compiled(splitter).finditer(text), limit, None), None) is not None


def words_around(text: str, start: int, end: int, number: int) -> str:
    """Return the `number` words of a text, apart by white space, that stand around its characters `start` to `end`.

    Where those hold no word, they are the first ones; where they hold more words than that, the first of theirs. A
    text of no more words stays as it is. What lies far from the place is copied at most, never split.
    """
    if next(islice(_WORD.finditer(text), number, None), None) is None:
        return text
    head = text[: max(0, start)]
    begin = len(head)
    if head and not head[-1].isspace():  # within a word, or at its end
        begin -= len(head.rsplit(None, 1)[-1])
    first = next((word for word in islice(_WORD.finditer(text, begin), 2) if word.end() > start), None)
    if first is None or first.start() >= end:
        first = next(_WORD.finditer(text))
        end = 0
    found = [word.start() < end for word in islice(_WORD.finditer(text, first.start()), number + 1)]
    held = max(1, sum(found))
    before = max(0, (number - held + 1) // 2, number - len(found))
    begin = first.start()
    if before:
        parts = text[:begin].rsplit(None, before)
        begin = len(parts[0]) if len(parts) > before else 0
    words = list(islice(_WORD.finditer(text, begin), number))
    return text[words[0].start() : words[-1].end()]


def align_spans(words: Sequence[tuple[str, int, int]], spans: Iterable[tuple[int, int, str]]) -> Alignment:
    """Put character spans (start, end, type), end exclusive, onto the words they touch.

    A span that begins or ends inside a word is widened to that word; of spans that then overlap the longest stays.

    Args:
        words: (word, start, end) in order, without overlap.
    """
    crossing = dropped = 0
    starts, ends = [start for _, start, _ in words], [end for _, _, end in words]
    found: list[tuple[Span, int]] = []
    for start, end, type_ in spans:
        first, last = bisect(ends, start), bisect_left(starts, end)
        if first >= last:
            dropped += 1
            continue
        crossing += starts[first] < start or ends[last - 1] > end
        found.append((Span(first, last, type_), end - start))
    kept: list[Span] = []  # in order, without overlap
    for span, _ in sorted(found, key=lambda pair: (-pair[1], pair[0])):
        place = bisect_left(kept, span)
        beside = kept[max(0, place - 1) : place + 1]
        if any(span.start < other.end and other.start < span.end for other in beside):
            dropped += 1
        else:
            kept.insert(place, span)
    return Alignment(kept, int(crossing), dropped)
