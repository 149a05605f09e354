"""Raw text into words with character offsets, in the manner of the data sets, and character spans onto those words."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

from .tagging import Span

# One alternative a line, the first that matches wins; {mark} stands for the combining marks (accents, vowel signs).
_PATTERNS = {
    # As Twitter-2017: letters, digits and underscores make a word, "#", "@" and every other character stand alone.
    "twitter17": r"""
        https?://[^\s]*[^\s.,!?;:)\]}}'"’”]   # a link, without the punctuation that follows it
      | \d+(?:[.,]\d+)+               # 10,000  13.5
      | [:;]-?[()DPO](?![\w])         # :)  ;-)  :D
      | \w[\w{mark}]*
      | [^\s]
    """,
    # As Twitter-2015: "#" and "@" stay with their word, so do hyphens and slashes inside one; links are one word.
    "twitter15": r"""
        https?:[^\s]*[^\s.,!?;:)\]}}'"’”] | h(?:t|tt|ttp|ttps)?…
      | w/(?:o\b)? | &\#?\w+                       # &amp;  &gt
      | [@\#$]\w[\w{mark}]*(?:-\w[\w{mark}]*)*
      | \d+(?:[.,:]\d+)+              # 10,000  13.5  7:30
      | \w[\w{mark}]*(?:[-/]\w[\w{mark}]*)*
      | -{{2,}} | \*{{2,}} | /{{2,}} | \|{{2,}}
      | [^\s]
    """,
    # Only ASCII white space separates words: for text whose words are already apart.
    "whitespace": r"[^\ \t\n\r\f\v]+",
}
STYLES = tuple(_PATTERNS)
DEFAULT_STYLE = "twitter17"


class Word(NamedTuple):
    """A word and the characters `start` to `end` (exclusive) of the text it stands at."""

    word: str
    start: int
    end: int


class Alignment(NamedTuple):
    """Character spans put onto words: the entities, and how many did not fit."""

    spans: list[Span]
    crossing: int  # began or ended inside a word: widened to the whole word
    dropped: int  # held no word, or overlapped a longer span


@cache
def _compiled(style: str) -> re.Pattern[str]:
    if style not in _PATTERNS:
        raise ValueError(f"word style {style!r} is unknown: give one of {', '.join(STYLES)}")
    # variation selectors (U+FE00-FE0F) are marks as well, but the data sets hold them as words of their own
    marks = (chr(c) for c in range(0x300, 0xFE00) if unicodedata.category(chr(c)) in ("Mn", "Mc"))
    return re.compile(_PATTERNS[style].format(mark="".join(marks)), re.VERBOSE)


def split_words(text: str, style: str = DEFAULT_STYLE) -> list[Word]:
    """The words of `text` with their character offsets: `text[start:end] == word`, in order, without overlap.

    Args:
        text: any string; an empty one, or one of white space only, has no words.
        style: "twitter17" ("#" and "@" are words of their own), "twitter15" (they belong to their word) or
            "whitespace". Take the style of the data the model was trained on.

    Raises:
        ValueError: the style is unknown.
    """
    return [Word(match.group(), match.start(), match.end()) for match in _compiled(style).finditer(text)]


def align_spans(words: Sequence[tuple[str, int, int]], spans: Iterable[tuple[int, int, str]]) -> Alignment:
    """Put character spans (start, end, type), end exclusive, onto the words they touch.

    A span that begins or ends inside a word is widened to that word; of spans that then overlap the longest stays.
    """
    crossing = dropped = 0
    found: list[tuple[Span, int]] = []
    for start, end, type_ in spans:
        touched = [i for i, (_, first, last) in enumerate(words) if first < end and last > start]
        if not touched:
            dropped += 1
            continue
        crossing += words[touched[0]][1] < start or words[touched[-1]][2] > end
        found.append((Span(touched[0], touched[-1] + 1, type_), end - start))
    kept: list[Span] = []
    for span, _ in sorted(found, key=lambda pair: (-pair[1], pair[0])):
        if any(span.start < other.end and other.start < span.end for other in kept):
            dropped += 1
        else:
            kept.append(span)
    return Alignment(sorted(kept), int(crossing), dropped)
