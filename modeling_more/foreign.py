"""Read what others made: sizes, kinds and places are checked first, and nothing that a file says is run."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from .files import MANIFEST, file_digest

MAX_JSON_BYTES = 256_000_000  # the tokenizer of a large vocabulary has 17 MB


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


def parse_json(text: bytes | str, where: str, finite: bool = True) -> Any:
    """Return the value of JSON text, or raise ValueError that says where it stands and what is wrong."""

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is no number of JSON")

    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        return json.loads(decoded, parse_constant=refuse if finite else None)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8: byte {error.start} is {text[error.start]!r}") from None
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is no JSON: {error}") from None
    except ValueError as error:  # a number of too many digits, or not finite
        raise ValueError(f"{where}: {error}") from None


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


def resolve_inside(folder: str | Path, name: str, links_into: str | Path | None = None) -> Path:
    """Return the path of a name that a file gives, which must lie inside a folder, links resolved.

    Args:
        links_into: a folder around it, into all of which links may lead (the Hub's cache links to a folder of blobs).

    Raises:
        ValueError: the name is absolute, or leads out of the folder by `..` or by a link.
    """
    told = f"{_short(name)} leads out of {folder}"
    if not name or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or "\0" in name:
        raise ValueError(told)
    if ".." in PureWindowsPath(name).parts:  # it splits at both kinds of slash
        raise ValueError(told)
    found = os.path.realpath(os.path.join(os.path.realpath(folder), name))
    home = os.path.realpath(folder if links_into is None else links_into)
    if os.path.commonpath([home, found]) != home:
        raise ValueError(told)
    return Path(folder) / name


def check_manifest(folder: Path, names: Sequence[str] | None = None, links_into: str | Path | None = None) -> None:
    """Check the files below a folder against its `manifest.json`, if it has one.

    Args:
        names: the files to check (default: all that the manifest names).
        links_into: see `resolve_inside`.

    Raises:
        ValueError: a file is missing, or is not the one that was saved; the message names it.
    """
    if not (folder / MANIFEST).is_file():
        return
    files = read_object(folder / MANIFEST, files=dict)["files"]
    for name, told in files.items():
        if names is not None and name not in names:
            continue
        file = resolve_inside(folder, name, links_into)
        if not isinstance(told, dict) or not isinstance(told.get("size"), int):
            raise ValueError(f"{folder / MANIFEST} does not describe {name}")
        if not file.is_file():
            raise ValueError(f"{folder} lacks {name}, which its {MANIFEST} names: it was not saved or copied whole")
        if (size := file.stat().st_size) != told["size"]:
            raise ValueError(f"{file} has {size} bytes, {told['size']} were saved: it was not saved or copied whole")
        if file_digest(file) != told.get("sha256"):
            raise ValueError(
                f"{file} is not the file that was saved here (its SHA-256 is another): save or copy it again, or "
                f"delete {MANIFEST} if you changed it yourself"
            )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
