"""Read what others made: sizes, kinds and places are checked first, and nothing that a file says is run."""

from __future__ import annotations

import gzip
import json
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from .files import MANIFEST, file_digest

MAX_JSON_BYTES = 256_000_000  # the tokenizer of a large vocabulary has 17 MB
#: longest line of articles or captions, unpacked: Wikipedia's own limit is 2 MB, which JSON may write as 6 MB
MAX_LINE_BYTES = 1 << 23


def read_json(file: str | Path, finite: bool = True, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Return the value of a JSON file.

    Args:
        finite: refuse NaN and Infinity, which JSON does not have and `json` reads.
        max_bytes: size from which on the file is not read.

    Raises:
        ValueError: it is no regular file, too large, not UTF-8, no JSON, or nested too deeply; the message names it.
        OSError: it can't be read.
    """
    path = require_regular(file)
    if (size := path.stat().st_size) > max_bytes:
        raise ValueError(f"{path} has {size} bytes, at most {max_bytes} are read")
    return parse_json(path.read_bytes(), str(path), finite)


def parse_json(text: bytes | str, where: str, finite: bool = True, unique: bool = False) -> Any:
    """Return the value of JSON text, or raise ValueError that says where it stands and what is wrong.

    Args:
        finite: see `read_json`.
        unique: refuse an object with two entries of one name, of which `json` keeps the last.
    """

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is no number of JSON")

    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        return json.loads(
            decoded, parse_constant=refuse if finite else None, object_pairs_hook=_unique if unique else None
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8: byte {error.start} is {text[error.start]!r}") from None
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is no JSON: {error}") from None
    except ValueError as error:  # a number of too many digits, or not finite
        raise ValueError(f"{where}: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise ValueError(f"an object has two entries {_short(twice)}")
    return found


def file_lines(file: str | Path, most: int = MAX_LINE_BYTES) -> Iterator[tuple[str, str]]:
    """Yield (place, text) of each line of a UTF-8 file that is not blank; one named .gz is unpacked as it is read.

    A line ends at LF only, and is not read further than `most` bytes, however much a packed file makes of it.

    Raises:
        ValueError: no regular file, a line of more bytes, not UTF-8, or a damaged file; it names file and line.
        OSError: it can't be read.
    """
    path = require_regular(file)
    number = 0
    with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb") as stream:
        while True:
            try:
                line = stream.readline(most + 1)
            except (EOFError, OSError, zlib.error) as error:  # what a cut or damaged gzip raises
                raise ValueError(f"{path}, after line {number}: the file is damaged ({error}).") from None
            if not line:
                return
            number += 1
            where = f"{path}, line {number}"
            if len(line) > most:
                raise ValueError(f"{where}: a line of more than {most} bytes; give one object a line, and split it.")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: not UTF-8 ({error}).") from None
            if text.strip():
                yield where, text


def line_objects(file: str | Path, most: int = MAX_LINE_BYTES) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) of each line of a JSON Lines file, read as by `file_lines`.

    Raises:
        ValueError: as `file_lines`, or a line is no JSON object, or has two entries of one name.
    """
    for where, text in file_lines(file, most):
        yield where, parse_object(text, where)


def parse_object(text: str, where: str) -> dict[str, Any]:
    """Return the JSON object that a line holds, or raise ValueError as `line_objects`."""
    try:
        row = parse_json(text, where, finite=False, unique=True)  # frames write NaN for what is missing
    except ValueError as error:
        told = str(error).removeprefix(where).lstrip(": ").removeprefix("is no JSON: ")
        raise ValueError(f"{where}: not JSON ({told}); one object a line is read.") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: not a JSON object but a {type(row).__name__}; one object a line is read.")
    return row


def read_object(file: str | Path, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """Return a JSON object whose named entries are there and of these types.

    Raises:
        ValueError: as `read_json`, or it is no object, or an entry is missing or of another type.
    """
    found = read_json(file, finite=False)
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no JSON object but a {type(found).__name__}")
    for name, kind in kinds.items():
        if name not in found:
            raise ValueError(f"{file} lacks the entry {name!r}")
        value = found[name]
        allowed = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kind) or (isinstance(value, bool) and bool not in allowed):
            told = " or ".join(one.__name__ for one in allowed)
            raise ValueError(f"{file}: the entry {name!r} is {_short(value)}, it must be of type {told}")
    return found


def require_regular(file: str | Path) -> Path:
    """Return the path of a regular file: a device or a pipe would give bytes without end, or none.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another kind, or its name can't be one.
    """
    path = Path(file)
    mode = path.stat().st_mode  # ValueError for a null character
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "device, pipe or socket"
        raise ValueError(f"{path} is a {kind}, not a file")
    return path


def resolve_inside(folder: str | Path, name: str) -> Path:
    """Return the path of a name that a file gives, which must lie inside a folder, links resolved.

    In a snapshot of the Hub's cache the files are links to the blobs of the same repository, and lie inside.

    Raises:
        ValueError: the name is absolute, or leads out of the folder by `..` or by a link.
    """
    told = f"{_short(name)} leads out of {folder}"
    if not name or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or "\0" in name:
        raise ValueError(told)
    if ".." in PureWindowsPath(name).parts:  # it splits at both kinds of slash
        raise ValueError(told)
    if not lies_inside(folder, os.path.join(os.path.realpath(folder), name)):
        raise ValueError(told)
    return Path(folder) / name


def lies_inside(folder: str | Path, path: str | Path) -> bool:
    """Return whether a path lies inside a folder (or the blobs of a snapshot of the Hub's), links resolved."""
    home, found = os.path.realpath(folder), os.path.realpath(path)
    return any(os.path.commonpath([place, found]) == place for place in (home, *_blobs(home)))


def _blobs(folder: str) -> list[str]:
    """Return where the files of a Hub repository's snapshot lie in the cache, if a folder is one or in one."""
    for place in (Path(folder), *Path(folder).parents):
        if place.parent.name == "snapshots" and (blobs := place.parent.parent / "blobs").is_dir():
            return [str(blobs)]
    return []


def check_manifest(folder: Path, names: Sequence[str] | None = None) -> None:
    """Check the files below a folder against its `manifest.json`, if it has one.

    Args:
        names: the files to check (default: all that the manifest names).

    Raises:
        ValueError: a file is missing, or is not the one that was saved; the message names it.
    """
    if not (folder / MANIFEST).is_file():
        return
    files = read_object(folder / MANIFEST, files=dict)["files"]
    for name, told in files.items():
        if names is not None and name not in names:
            continue
        file = resolve_inside(folder, name)
        if not isinstance(told, dict) or not isinstance(told.get("size"), int):
            raise ValueError(f"{folder / MANIFEST} does not describe {name}")
        if not file.is_file():
            raise ValueError(f"{folder} lacks {name}, which its {MANIFEST} names: it was not saved or copied whole")
        if (size := file.stat().st_size) != told["size"] or file_digest(file) != told.get("sha256"):
            found = f"{size} bytes, {told['size']} were saved" if size != told["size"] else "another SHA-256"
            raise ValueError(
                f"{file} is not the file that was saved here ({found}): save or copy it again, or delete {MANIFEST} "
                "if you changed it yourself"
            )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
