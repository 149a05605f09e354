"""Read lines of columns, of CoNLL files and marked relations: which lines count, which cell is what."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

from .rows import clean_label
from .text_files import BLANK, check_lines, text_lines

logger = logging.getLogger(__name__)

_LABEL = re.compile(r"O|X|[BIESULM]-\S+")  # what stands beside words, in schemes that are refused, too
_NEAR_LABEL = re.compile(r"\w|[A-Za-z][-_]\S*")  # meant as a label, though it is none
_TYPE = re.compile(r"B-[^\W\d_].*|[IESUL]-[A-Z]{2}.*")  # where text sooner ends in I-95 or S-Bahn
_NAMED_COMMENT = re.compile(r"# (?:id |new(?:doc|par)\b|[\w.:-]+ ?=(?: |$))|#(?:begin|end) document\b")
_NUMBER = re.compile(r"[(\[]?\d+(?:[-.]\d+)*[.:)\]]?")  # 1  1.  (1)  and 1-2, 1.1 of CoNLL-U
_BIO = re.compile(r"[BIES]-\S+")
_COUNT = re.compile(r"(\D*)(\d{1,18})(\D*)")
_ENOUGH = 1000  # lines by which a file of columns is known
_NO_LABEL = {"_", "-", "?", "*", "-1"}  # where a label is to be told by others
_CHUNKS = {"ADJP", "ADVP", "CONJP", "INTJ", "LST", "NP", "PP", "PRT", "SBAR", "UCP", "VP"}  # of CoNLL-2000 and 2003


class ColumnLine(NamedTuple):
    """A line that counts in a file of columns."""

    number: int  # from 1
    kind: str  # "word", "blank" (ends a post) or "image" (`IMGID:…`, opens one)
    word: str = ""  # or the id of an image line
    label: str = ""  # without the white space around it


class _Cells(NamedTuple):
    number: int
    kind: str
    line: str
    cells: list[str]


def split_columns(line: str) -> list[str]:
    """Return the cells of a line: parted by its tabs, or where it has none by runs of spaces; no space around a cell.

    A no-break space parts nothing: it is a word of Twitter-2015.
    """
    line = line.lstrip(" ").rstrip(BLANK)
    return [cell.strip(" ") for cell in line.split("\t")] if "\t" in line else re.split(" +", line)


def check_columns(columns: Sequence[int]) -> None:
    """Raise ValueError unless these are the numbers of a word column and of a label column, from 1."""
    if len(columns) != 2 or min(columns) < 1 or columns[0] == columns[1]:
        raise ValueError(
            f"--columns {' '.join(map(str, columns))}: give the number of the word's column and that of the label's, "
            "counted from 1, like --columns 1 4"
        )


def column_lines(
    path: Path, text: str, columns: Sequence[int] | None = None, labelled: bool = True
) -> tuple[list[ColumnLine], int]:
    """Read the lines of a file as words with their labels.

    Words are the first column and labels the last. A first column that counts the words of a post is an index, the
    words are the second one then. `-DOCSTART-` lines end a post like blank ones; comment lines (`# id …`) do not
    count, and how many there are is logged.

    Args:
        columns: numbers of the word's and of the label's column, from 1, where they are others.
        labelled: whether labels are needed; if not, lines may be words alone.

    Returns:
        the lines that count, and the number of their columns.

    Raises:
        ValueError: for a line with another number of columns, without word or label, or with white space within the
            label, a first column that can't be words, or two columns of labels.
    """
    if columns is not None:
        check_columns(columns)
    check_lines(path, text)
    raw = _classified(text_lines(text))
    _check_ends(path, raw)
    width, label = _width(raw), -1 if columns is None else columns[1] - 1
    if columns is not None and width and max(columns) > width:
        raise ValueError(f"{path}: has {width} columns, --columns names column {max(columns)}.")
    kept = [one for one in raw if not _is_comment(one, width, label)]
    if comments := len(raw) - len(kept):
        logger.info("%s: %d comment lines (# …) are left out.", path, comments)
    for one in kept:
        where = f"{path}, line {one.number}"
        if one.kind != "word":
            continue
        if len(one.cells) == 1 and (labelled or width > 1):
            raise ValueError(f"{where}: no label; a line is a word, a tab and a label.")
        if len(one.cells) != width:
            raise ValueError(f"{where}: {len(one.cells)} columns where the file has {width}; all lines have the same.")
    word = _word_column(path, kept, width) if columns is None else columns[0] - 1
    if columns is None and labelled:
        _check_label_columns(path, kept, width, word)
    lines = []
    for number, kind, line, cells in kept:
        if kind != "word":
            lines.append(ColumnLine(number, kind, line.removeprefix("IMGID:").strip(BLANK) if kind == "image" else ""))
            continue
        where = f"{path}, line {number}"
        tag = clean_label(cells[label], where) if labelled else ""
        if labelled and not tag:
            raise ValueError(f"{where}: no label; a line is a word, a tab and a label.")
        if not cells[word]:
            raise ValueError(
                f"{where}: no word before the label {cells[label]!r}; a line is a word, a tab and a label."
            )
        lines.append(ColumnLine(number, kind, cells[word], tag))
    words = [line.word for line in lines if line.kind == "word"]
    if columns is None and width > 1 and len(words) > 1 and all(" " in word for word in words):
        logger.warning("%s: every word holds a space, like %r: are more columns meant?", path, words[0])
    return lines, width


def looks_like_conll(text: str, columns: Sequence[int] | None = None) -> bool:
    """Return whether a text is lines of a word and its label, rather than one post a line.

    A post may well end in " O": so at least half of the lines must end in a label, one of them with a type, or all
    with as many columns. A first line with a tab before its label is enough. A single line must have one, follow an
    image line, or end in a B- label.
    """
    raw = _classified(islice(text_lines(text), _ENOUGH))
    label = -1 if columns is None else columns[1] - 1
    if any(_opens_document(split_columns(one.line)) for one in raw):
        return True
    words = [one for one in raw if not _is_comment(one, _width(raw), label) and one.kind == "word"]
    labelled = [one for one in words if _labelled(one.cells, label)]
    if not labelled:
        return False
    if labelled[0] is words[0] and ("\t" in words[0].line or any(one.kind == "image" for one in raw)):
        return True
    typed = any(_TYPE.fullmatch(one.cells[label]) for one in labelled)
    if len(words) == 1:
        return typed and words[0].cells[label].startswith("B-")
    alike = len(labelled) == len(words) and len({len(one.cells) for one in words}) == 1
    return alike or (typed and 2 * len(labelled) >= len(words))


def check_text(path: Path, text: str) -> None:
    """Raise ValueError where a file that should hold one post a line looks like columns of words without labels.

    In such a file nearly all lines have as many cells, single words, and blank lines part them into posts, an index
    counts them, `# key = value` comments describe them, or all end in a sign for no label (`_`).
    """
    check_lines(path, text)
    if found := unlabelled_columns(text):
        number, width = found
        raise ValueError(
            f"{path}, line {number}: looks like columns of words, not like one post a line; say which are words and "
            f"labels, like --columns 1 {width}."
        )


def unlabelled_columns(text: str) -> tuple[int, int] | None:
    """Return the first line and number of columns of a file that `check_text` refuses; else None."""
    raw = _classified(islice(text_lines(text), _ENOUGH))
    commented = any(one.kind == "word" and re.match(r"# [\w.:-]+ = ", one.line) for one in raw)
    rows = [one for one in raw if not (one.kind == "word" and _NAMED_COMMENT.match(one.line))]
    words = [one for one in rows if one.kind == "word"]
    width = _width(words)
    alike = [one for one in words if len(one.cells) == width and not any(" " in cell for cell in one.cells[:2])]
    if width < 2 or len(words) < 2 or 10 * len(alike) < 9 * len(words):
        return None
    tabs = all("\t" in one.line for one in alike)
    signs = _NO_LABEL if tabs else {"_"}  # French sets a blank before "?"
    if len(alike) == len(words) and all(one.cells[-1] in signs for one in words):
        return words[0].number, width
    if not tabs:
        return None
    posts = [list(post) for is_word, post in groupby(rows, lambda one: one.kind == "word") if is_word]
    parted = len(posts) > 1 and any(len(post) > 1 for post in posts)
    counted = width > 2 and _counts_on([[one.cells[0] for one in post] for post in posts])
    return (words[0].number, width) if parted or counted or commented else None


def _classified(lines: Iterable[tuple[int, str]]) -> list[_Cells]:
    """Return every line with its kind and, where it is a line of words, its cells."""
    found = []
    for number, line in lines:
        cells = split_columns(line)
        if not line.strip(BLANK) or _opens_document(cells):
            found.append(_Cells(number, "blank", line, []))
        elif line.startswith("IMGID:") and "\t" not in line and not _labelled(cells, -1):
            found.append(_Cells(number, "image", line, []))
        else:
            found.append(_Cells(number, "word", line, cells))
    return found


def _check_ends(path: Path, lines: Sequence[_Cells]) -> None:
    """Raise ValueError for a file that is one line to us and many to other programs."""
    words = [one.line for one in lines if one.kind == "word"]
    if len(words) == 1:
        parts = [part for part in words[0].splitlines(keepends=True) if part.strip()]
        if len(parts) > 1 and all(_labelled(split_columns(part), -1) for part in parts):
            raise ValueError(f"{path}: lines end in {parts[0][-1]!r}; save the file with LF.")


def _opens_document(cells: Sequence[str]) -> bool:
    return any(cell.upper().startswith("-DOCSTART-") for cell in cells[:2])  # the second behind an index


def _labelled(cells: Sequence[str], label: int) -> bool:
    return 1 < len(cells) > label and _LABEL.fullmatch(cells[label].strip()) is not None


def _width(lines: Iterable[_Cells]) -> int:
    """Return the number of columns that most lines have; the earliest where two are as frequent."""
    counts = Counter(len(one.cells) for one in lines if one.kind == "word" and not one.line.startswith("#"))
    if not counts:  # a post of nothing but hashtags
        counts = Counter(len(one.cells) for one in lines if one.kind == "word")
    return counts.most_common(1)[0][0] if counts else 0


def _is_comment(one: _Cells, width: int, label: int) -> bool:
    """Return whether a line is a comment; "#" and "#Oslo" with a label are words of posts."""
    if one.kind != "word" or not one.line.startswith("#"):
        return False
    is_word = len(one.cells) == width and _labelled(one.cells, label)
    if _NAMED_COMMENT.match(one.line):
        return not (is_word and "\t" in one.line)
    if is_word or one.line[1:2] not in (" ", "\t") or len(one.cells) < 2 or _labelled(one.cells, -1):
        return False  # a hashtag, or a line cut short: if it has a fault, that is said
    return not (len(one.cells) == width and _NEAR_LABEL.fullmatch(one.cells[label]))


def _word_column(path: Path, lines: Sequence[_Cells], width: int) -> int:
    """Return the first column, or the second one behind an index; raise ValueError where the first holds neither."""
    posts = [list(post) for is_word, post in groupby(lines, lambda one: one.kind == "word") if is_word]
    if width < 3 or not posts:
        return 0
    firsts = [[one.cells[0] for one in post] for post in posts]
    where = f"{path}, line {posts[0][0].number}"
    way_out = f"say which columns are words and labels, like --columns 2 {width}"
    counting = _counts_on(firsts)
    if all(_NUMBER.fullmatch(cell) for post in firsts for cell in post):
        others = {one.cells[1] for post in posts for one in post}
        several = any(len(post) > 1 for post in posts)  # else each may be a number that somebody wrote
        if counting and several and len(others) > 1:  # numbers as words would all have one part of speech
            logger.info("%s: the first column is an index, words are read from the second.", path)
            return 1
        raise ValueError(f"{where}: the first column holds nothing but numbers; {way_out}.")
    if counting:
        raise ValueError(f"{where}: the first column counts {', '.join(firsts[0][:2])}, …; {way_out}.")
    if sum(map(len, firsts)) > 2 and any(len(post) > 1 for post in firsts) and all(len(set(p)) == 1 for p in firsts):
        raise ValueError(f"{where}: the first column is {firsts[0][0]!r} for every word of a post; {way_out}.")
    return 0


def _check_label_columns(path: Path, lines: Sequence[_Cells], width: int, word: int) -> None:
    """Warn of a second column of labels, as of nested entities or predictions; chunks (`B-NP`) are none.

    Raises:
        ValueError: when it has a type that the last column has.
    """
    rows = [one.cells for one in lines if one.kind == "word"]
    last = {cells[-1][2:] for cells in rows if _BIO.fullmatch(cells[-1])}
    for column in range(word + 1, width - 1):
        cells = [row[column] for row in rows if row[-1] != "X"]
        types = {cell[2:] for cell in cells if _BIO.fullmatch(cell)}
        if not types or not all(_BIO.fullmatch(cell) or cell == "O" for cell in cells):
            continue
        told = f"{path}: columns {column + 1} and {width} both hold labels"
        if types & last:
            raise ValueError(
                f"{told} ({min(types & last)}); say which to read, like --columns {word + 1} {column + 1}."
            )
        if not types <= _CHUNKS:
            logger.warning("%s, the last is read; --columns %d %d reads the other.", told, word + 1, column + 1)


def _counts_on(posts: Sequence[Sequence[str]]) -> bool:
    """Return whether each post, or the whole file, counts its words from 0 or 1, with the same about each number."""
    found = [[_COUNT.fullmatch(cell) for cell in post] for post in posts]
    if len({match and match.group(1, 3) for post in found for match in post}) > 1 or found[0][0] is None:
        return False
    counted = [[int(match[2]) for match in post if match] for post in found]
    first = counted[0][0]
    flat = [number for post in counted for number in post]
    each = all(post == list(range(first, first + len(post))) for post in counted)
    return first in (0, 1) and len(flat) > 1 and (each or flat == list(range(first, first + len(flat))))
