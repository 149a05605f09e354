"""Damage a file of a folder as bytes say, with or without the digests in the folder's JSON made to fit again."""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

NUMBERS = (0, 1, -1, 2, 255, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 7, 1000, 2**20, -2, 3, 12)
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 10**30, 1.5, "", "a", "../..", "/etc/passwd", [], {}, [1], {"a": 1}, float("nan"),
    float("inf"), "\ud800", "x" * 300, [[[[]]]], 2**31, "milvus:http://127.0.0.1:9",
)  # fmt: skip
DEEP = b"[" * 20_000
_GROUP = 6  # bytes of an edit


class DamagedFolder:
    """A folder whose content is put back before each time it is damaged."""

    def __init__(self, pristine: Path, folder: Path, files: Sequence[str]) -> None:
        self.pristine, self.folder, self.files = pristine, folder, list(files)
        self._contents = {name: (pristine / name).read_bytes() for name in self._names(pristine)}
        self._digests = {name: hashlib.sha256(content).hexdigest() for name, content in self._contents.items()}
        self._damaged: set[str] = set(self._contents)

    @staticmethod
    def _names(folder: Path) -> list[str]:
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def damage(self, data: bytes) -> tuple[str, bool]:
        """Put the folder back, edit one of its files, and return its name and whether digests were made to fit."""
        self._restore()
        data = data.ljust(2, b"\0")
        name, signed = self.files[data[0] % len(self.files)], bool(data[1] & 1)
        content = self._contents[name]
        for start in range(2, len(data), _GROUP):
            content = edited(content, data[start : start + _GROUP], name.endswith(".json"))
        self._write(name, content)
        if signed:
            self._sign({self._digests[name]: content})
        return name, signed

    def _restore(self) -> None:
        if self._names(self.folder) != sorted(self._contents):
            shutil.rmtree(self.folder, ignore_errors=True)
            self._damaged = set(self._contents)
        for name in self._damaged:
            _replace(self.folder / name, self._contents[name])
        self._damaged = set()

    def _write(self, name: str, content: bytes) -> None:
        _replace(self.folder / name, content)
        self._damaged.add(name)

    def _sign(self, changed: dict[str, bytes]) -> None:
        """Replace digests of changed files in the JSON files, which changes these, too."""
        while changed:
            swaps = {old.encode(): hashlib.sha256(new).hexdigest().encode() for old, new in changed.items()}
            changed = {}
            for name in self._contents:
                if not name.endswith(".json"):
                    continue
                found = before = (self.folder / name).read_bytes()
                for old, new in swaps.items():
                    found = found.replace(old, new)
                if found != before:
                    self._write(name, found)
                    changed[hashlib.sha256(before).hexdigest()] = found


def _replace(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(".beside")
    beside.write_bytes(content)
    os.replace(beside, file)  # a file that is mapped keeps its content


def edited(content: bytes, edit: bytes, is_json: bool) -> bytes:
    """Return content with one edit: kind, place (two bytes), value (three)."""
    kind, high, low, *values = edit.ljust(_GROUP, b"\0")
    place = (high << 8 | low) * len(content) >> 16
    number = NUMBERS[values[0] % len(NUMBERS)]
    if is_json and kind % 4 == 0:
        return _with_value(content, high, VALUES[values[0] % len(VALUES)])
    match kind % 8:
        case 1:
            return content[:place] + bytes(values[:1]) + content[place + 1 :]
        case 2 | 3 as width:
            wide = 4 * (width - 1)
            packed = (number & (2 ** (8 * wide) - 1)).to_bytes(wide, "little")
            place -= place % wide
            return content[:place] + packed + content[place + wide :]
        case 4:
            return content[:place]
        case 5:
            return content[:place] + content[place + values[0] + 1 :]
        case 6:
            return content[:place] + bytes(values[1:2]) * (values[0] + 1) + content[place:]
        case 7:
            return content[:place] + content[:place][-16 * (values[0] + 1) :] + content[place:]
    if values[0] == 255:
        return content[:place] + DEEP
    flipped = content[place : place + 1]
    return content[:place] + bytes(byte ^ 1 << values[0] % 8 for byte in flipped) + content[place + 1 :]


def _with_value(content: bytes, place: int, new: Any) -> bytes:
    """Return JSON with one of its values replaced."""
    try:
        value = json.loads(content)
    except ValueError:
        return content
    spots = list(_spots(value))
    if not spots:
        return content
    holder, key = spots[place % len(spots)]
    holder[key] = new
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _spots(value: Any) -> Iterable[tuple[Any, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(inner):
        yield value, key
        yield from _spots(one)


def simple_edits(files: int) -> dict[str, bytes]:
    """Return some edits of each file to begin with: flips, numbers, cuts, other values."""
    made = {}
    for file in range(files):
        for signed in (0, 1):
            for kind in range(8):
                edit = struct.pack("<6B", kind, 37 * kind % 256, 11, 2 + kind, 0, 0)
                made[f"{file}-{signed}-{kind}"] = bytes([file, signed]) + edit
    return made
