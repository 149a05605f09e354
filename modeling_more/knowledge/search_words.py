"""Split texts into the words by which BM25, Milvus and the leakage guard compare them.

Both sides are brought to one form first (NFKC, case folding, no marks that are optional in writing). Scripts that set
no blanks between words are searched by pieces of two letters: "北京大学" has the words 北京, 京大 and 大学.
"""

import re
import unicodedata
from collections.abc import Callable
from itertools import pairwise

from ..words import MARKS, UNSPACED

_PLAIN = re.compile(r"\w+")
# format characters, variation selectors and fillers, which change no word; the zero-width space (U+200B) ends one
_FORMAT = (
    "\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200c-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff"
)
# what Arabic (vowel signs, elongation) and Hebrew (points) may leave out, and mostly do, as Cyrillic its stresses
_OPTIONAL = "\u0640\u064b-\u0652\u0670\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
_DROPPED = re.compile(f"[{_FORMAT}]")
_LEFT_OUT = re.compile(f"[{_OPTIONAL}]|\u0301(?<=[\u0400-\u04ff]\u0301)")
_TRADE_MARKS = re.compile("[™℠]")
# NFKC writes these out in letters and digits, which must not run into the word before: 4½, 20℃, 5㎏
_WRITTEN_OUT = re.compile("([¼-¾℀℁℃℅℆℉№℡℻⅐-⅟↉㋌-㋏㍱-㏟㏿ﷺﷻ])")
# the dot that İ keeps as a small letter; a vowel of Thai and of Lao whose halves NFKC gives to two letters
_TOGETHER = (("i\u0307", "i"), ("\u0e4d\u0e32", "\u0e33"), ("\u0ecd\u0eb2", "\u0eb3"))

_LETTER = rf"[^\W{UNSPACED}]"
_UNIT = re.compile(f"[{UNSPACED}][{MARKS}]*")
_WORD = re.compile(
    # blanks in a run say nothing: words of one letter each are joined by them where a post is given in words
    rf"(?P<run>{_UNIT.pattern}(?:[ \u200b]*{_UNIT.pattern})*)|{_LETTER}(?:{_LETTER}|[{MARKS}])*"
)


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _any_normal_form(text: str) -> str:
    folded = _fold(_DROPPED.sub("", _WRITTEN_OUT.sub(r" \1 ", _TRADE_MARKS.sub(" ", text))))
    for written, form in _TOGETHER:
        folded = folded.replace(written, form)
    return unicodedata.normalize("NFC", _LEFT_OUT.sub("", folded))


def _is_usual(letter: str) -> bool:
    texts = letter, f"x{letter}", f"x{letter}x"
    return all(_PLAIN.findall(text.lower()) == _PLAIN.findall(_any_normal_form(text)) for text in texts)


# what `lower` alone brings to the same words, which spares English and most of European texts nearly all of the time
_BLOCKS = ((0x80, 0x2FF), (0x370, 0x482), (0x48A, 0x58F), (0x1E00, 0x1EFF), (0x2010, 0x205F), (0x20A0, 0x20BF))
_USUAL = "".join(letter for first, last in _BLOCKS for letter in map(chr, range(first, last + 1)) if _is_usual(letter))
_USUAL_TEXT = re.compile(f"[\x00-\x7f{_USUAL}]*")


def normal_form(text: str) -> str:
    """Return the text in the form in which words are compared: words that differ in it are different words.

    That is NFKC and case folding. Left out are format characters (joiners, soft hyphens, directions), the points of
    Hebrew, the vowel signs and elongations of Arabic, the stresses of Cyrillic, and the dot that İ keeps as a small i.
    """
    if text.isascii() or _USUAL_TEXT.fullmatch(text):
        return text.lower()
    return _any_normal_form(text)


def split_query(text: str) -> list[str]:
    """Return the words that a text is searched for: `\\w+` with the combining marks of each, in their normal form.

    A run of letters of a script without blanks gives its overlapping pieces of two, a lone one itself. There are no
    stop words and there is no stemming; repeats are kept.
    """
    return _split(text, _pieces)


def split_text(text: str) -> list[str]:
    """Return the words that a text is found by: those of `split_query`, and each letter of its pieces alone.

    So a query of one letter ("水") finds the texts and titles that hold it in a run.
    """
    return _split(text, _pieces_and_letters)


def split_letters(text: str) -> list[str]:
    """Return the words of a text, of scripts without blanks the letters; so split, it is part of what holds it."""
    return _split(text, list)


def count_unspaced(words: list[str]) -> int:
    """Return how many of the words of `split_letters` are letters of scripts without blanks."""
    return sum(_UNIT.fullmatch(word) is not None for word in words)


def _pieces(letters: list[str]) -> list[str]:
    return [first + second for first, second in pairwise(letters)] or letters


def _pieces_and_letters(letters: list[str]) -> list[str]:
    return _pieces(letters) + letters if len(letters) > 1 else letters


def _split(text: str, run: Callable[[list[str]], list[str]]) -> list[str]:
    """Return the words of a text; `run` makes those of letters without blanks."""
    if text.isascii() or _USUAL_TEXT.fullmatch(text):
        return _PLAIN.findall(text.lower())
    words: list[str] = []
    for match in _WORD.finditer(_any_normal_form(text)):
        if match["run"] is None:
            words.append(match.group())
        else:
            words += run(_UNIT.findall(match["run"]))
    return words
