"""Read text files: whole files as UTF-8, their lines, the items of JSON and JSONL."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..foreign import MAX_JSON_BYTES, parse_json, require_regular

RELATION_DATA = "this is relation data, use run_re.py"
BLANK = " \t"  # never str.strip(): a no-break space is a word of Twitter-2015
BYTE_ORDER_MARK = "\ufeff"
LINE_END = re.compile(r"\r{0,2}\n|\r")  # CRCRLF: a file whose CRLF were written as text once more
#: size of a file from which on it is not read: its rows would not fit into memory
MAX_FILE_BYTES = 1 << 30
#: longest line of a file of posts, in characters; a row in memory takes some sixty times as much
MAX_LINE = 1 << 21
#: longest Python literal that is read, in characters: its syntax tree takes a thousand times as much
MAX_LITERAL = 1 << 17


def check_file(path: Path) -> None:
    """Raise ValueError when the path is no regular file, or too large; FileNotFoundError when nothing is there."""
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give a file.")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file.")
    if (size := require_regular(path).stat().st_size) > MAX_FILE_BYTES and path.suffix.lower() != ".parquet":
        raise ValueError(f"{path}: {size} bytes, at most {MAX_FILE_BYTES} are read; write Parquet, or several files.")


def read_text(path: str | Path) -> str:
    """Return a file as text.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is empty, too large or not UTF-8, or has a line of more than `MAX_LINE` characters (a file that
            is one JSON list may be one line).
    """
    path = Path(path)
    check_file(path)
    _check_bytes(path)
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(LINE_END.findall(error.object[: error.start].decode("utf-8"))) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8.") from None
    if not text.strip(f"{BLANK}\r\n{BYTE_ORDER_MARK}"):
        raise ValueError(f"{path}: the file is empty; it should hold at least one post.")
    if not text.lstrip().startswith("["):
        check_lines(path, text)
    return text


def _check_bytes(path: Path) -> None:
    """Raise ValueError where a line has too many bytes, before they are decoded and take several times the memory."""
    if path.stat().st_size <= 4 * MAX_LINE:  # the bytes of a character
        return
    length, ends = 0, (0, 0)
    with path.open("rb") as file:
        head = file.read(1 << 10).removeprefix(b"\xef\xbb\xbf").lstrip()
        most = MAX_JSON_BYTES if head.startswith(b"[") else 4 * MAX_LINE  # a list may be one line
        file.seek(0)
        while chunk := file.read(1 << 20):
            places = [place for place in (chunk.find(b"\n"), chunk.find(b"\r")) if place >= 0]
            if length + min(places, default=len(chunk)) > most:
                raise ValueError(
                    f"{path}, line {1 + (ends[0] or ends[1])}: more than {MAX_LINE} characters in one line; a line is "
                    "a post, or a word of one."
                )
            last = max(chunk.rfind(b"\n"), chunk.rfind(b"\r"))
            length = len(chunk) - last - 1 + (length if last < 0 else 0)
            ends = ends[0] + chunk.count(b"\n"), ends[1] + chunk.count(b"\r")


def check_lines(path: Path, text: str) -> None:
    """Raise ValueError where a line has more than `MAX_LINE` characters."""
    if len(text) <= MAX_LINE:
        return
    start = 0
    for number, end in enumerate(_line_ends(text), start=1):
        if end - start > MAX_LINE:
            raise ValueError(
                f"{path}, line {number}: {end - start} characters in one line, at most {MAX_LINE} are read; a line is "
                "a post, or a word of one."
            )
        start = end


def _line_ends(text: str) -> Iterator[int]:
    for match in LINE_END.finditer(text):
        yield match.end()
    yield len(text)


def text_lines(text: str) -> Iterator[tuple[int, str]]:
    """Return number and text of each line, without a byte-order mark, as files that were joined have within.

    A line ends at LF, CRLF or CR only: str.splitlines() would also split inside words.
    """
    for number, line in enumerate(LINE_END.split(text), start=1):
        yield number, line.lstrip(BYTE_ORDER_MARK)


def check_size(item: Any, where: str) -> None:
    """Raise ValueError where a row that stands in no line of its own holds a text or list longer than `MAX_LINE`."""
    parts = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    longest = max((len(part) for part in parts if isinstance(part, str | list | bytes)), default=0)
    if longest > MAX_LINE:
        raise ValueError(f"{where}: {longest} characters or words in one row, at most {MAX_LINE} are read.")


def filled_lines(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """Return (place, line) of each line that is not blank."""
    return ((f"{path}, line {number}", line) for number, line in text_lines(text) if line.strip(BLANK))


def json_items(path: Path) -> Iterator[tuple[str, Any]]:
    """Return (place, value) of each line of a JSONL file, or of each item of a file that holds one JSON list.

    Raises:
        ValueError: it is no JSON, nested too deeply, or has a number of too many digits, or two entries of one name in
            an object.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        items = _list(path, text)
        if items is not None:
            if not items:
                raise ValueError(f"{path}: the list is empty; it should hold at least one post.")
            # one WikiDiverse row on a single line is a list that starts with its sentence
            single = isinstance(items[0], str)
            for number, item in enumerate([items] if single else items, start=1):
                check_size(item, f"{path}, item {number}")
                yield f"{path}, item {number}", item
            return
        check_lines(path, text)
    for where, line in filled_lines(path, text):
        try:
            yield where, json_value(line, where)
        except ValueError:
            if line.startswith("{'") and "'relation'" in line:
                raise ValueError(f"{where}: {RELATION_DATA}.") from None
            raise


def _list(path: Path, text: str) -> list[Any] | None:
    """Return the list that a file is; None of one that has a list a line, as some copies of WikiDiverse are stored."""
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"{path}: {len(text)} characters of JSON in one list; write one object a line (.jsonl).")
    try:
        return parse_json(text, str(path), finite=False, unique=True)
    except ValueError as error:
        if "\n[" in text.strip():
            return None
        told = str(error).removeprefix(str(path)).lstrip(": ")
        place = re.fullmatch(r"is no JSON: (.*): line (\d+) column \d+ \(char \d+\)", told)
        told = f"{path}, line {place[2]}: not JSON ({place[1]})" if place else f"{path}: {told}"
        raise ValueError(f"{told}.") from None


def json_value(text: str, where: str) -> Any:
    """Return the value of a line or cell of JSON, or raise ValueError as `json_items`."""
    try:
        return parse_json(text, where, finite=False, unique=True)  # frames write NaN for what is missing
    except ValueError as error:
        told = str(error).removeprefix(where).lstrip(": ")
        if place := re.fullmatch(r"is no JSON: (.*): line \d+ column \d+ \(char (\d+)\)", told):
            told = f"not JSON ({place[1]} at character {int(place[2]) + 1})"
        raise ValueError(f"{where}: {told}.") from None


def literal_value(text: str, where: str) -> Any:
    """Return the value of a Python literal, which is never run as code.

    Raises:
        ValueError: it has more than `MAX_LITERAL` characters.
        SyntaxError: it is none, or nested too deeply.
    """
    if len(text) > MAX_LITERAL:
        raise ValueError(
            f"{where}: a Python literal of {len(text)} characters, at most {MAX_LITERAL} are read; write JSON."
        )
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, MemoryError, RecursionError) as error:  # TypeError: {[]: 1}
        raise SyntaxError(str(error)) from None
