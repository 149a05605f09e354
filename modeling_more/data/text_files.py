"""Read text files: whole files as UTF-8, their lines, the items of JSON and JSONL."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RELATION_DATA = "this is relation data, use run_re.py"
BLANK = " \t"  # never str.strip(): a no-break space is a word of Twitter-2015
BYTE_ORDER_MARK = "\ufeff"
LINE_END = re.compile(r"\r{0,2}\n|\r")  # CRCRLF: a file whose CRLF were written as text once more


def check_file(path: Path) -> None:
    """Raise ValueError when the path is a folder, FileNotFoundError when nothing is there."""
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give a file.")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file.")


def read_text(path: str | Path) -> str:
    """Return a file as text; raise ValueError when it is empty or not UTF-8, FileNotFoundError when it is missing."""
    path = Path(path)
    check_file(path)
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(LINE_END.findall(data[: error.start].decode("utf-8"))) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8.") from None
    if not text.strip(f"{BLANK}\r\n{BYTE_ORDER_MARK}"):
        raise ValueError(f"{path}: the file is empty; it should hold at least one post.")
    return text


def text_lines(text: str) -> Iterator[tuple[int, str]]:
    """Return number and text of each line, without a byte-order mark, as files that were joined have within.

    A line ends at LF, CRLF or CR only: str.splitlines() would also split inside words.
    """
    for number, line in enumerate(LINE_END.split(text), start=1):
        yield number, line.lstrip(BYTE_ORDER_MARK)


def filled_lines(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """Return (place, line) of each line that is not blank."""
    return ((f"{path}, line {number}", line) for number, line in text_lines(text) if line.strip(BLANK))


def json_items(path: Path) -> Iterator[tuple[str, Any]]:
    """Return (place, value) of each line of a JSONL file, or of each item of a file that holds one JSON list."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        try:
            items = json.loads(text)
        except json.JSONDecodeError as error:
            if "\n[" not in text.strip():  # else one list a line, as some copies of WikiDiverse are stored
                raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from None
        else:
            if not items:
                raise ValueError(f"{path}: the list is empty; it should hold at least one post.")
            # one WikiDiverse row on a single line is a list that starts with its sentence
            single = isinstance(items[0], str)
            for number, item in enumerate([items] if single else items, start=1):
                yield f"{path}, item {number}", item
            return
    for where, line in filled_lines(path, text):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            if line.startswith("{'") and "'relation'" in line:
                raise ValueError(f"{where}: {RELATION_DATA}.") from None
            raise ValueError(f"{where}: not JSON ({error.msg} at character {error.pos + 1}).") from None
        yield where, value
