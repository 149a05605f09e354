"""Check the files of an index before anything is searched in them: who publishes a corpus writes its digests, too.

A digest tells damage, structure tells what can't be searched without reading past an array. Both are looked at once a
content: what was checked is remembered in the user's cache, by place, size, times and inode, never beside the files.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numba import njit

from ..files import file_digest, write_json
from ..foreign import read_json, require_regular, resolve_inside

logger = logging.getLogger(__name__)

CHECKS = 1  # version of the checks: what an earlier one let pass is looked at again
_FOLDER = "checked"
_RACY = 0.1  # seconds after a change during which another one may leave the same times
_FAULTS = {
    1: "a row number of {file} is none of the {rows} rows",
    2: "the rows of a word do not rise in {file}",
    3: "a score is negative or not finite beside {file}",
}

T = TypeVar("T")


class DamagedError(ValueError):
    """An error for files of a corpus or an index that are not those that were written, or can't be such."""


def checked_once(cache: Path, files: Iterable[Path], about: object, check: Callable[[], T]) -> T:
    """Return what `check` returns, a value of JSON; it is not called again for files that it has passed.

    Args:
        cache: the user's cache, which remembers it.
        about: a value of JSON that the check depends on besides the files.
    """
    names = list(files)
    before, changed = _stamps(names)
    key = hashlib.sha256(json.dumps([CHECKS, about, before]).encode()).hexdigest()[:32]
    mark = cache / _FOLDER / f"{key}.json"
    if mark.is_file():
        try:
            known: T = read_json(mark)["value"]
            return known
        except (OSError, ValueError, KeyError, TypeError):  # a damaged mark is none
            pass
    value = check()
    if _stamps(names)[0] == before and time.time() - changed > _RACY:
        try:
            write_json(mark, {"value": value, "files": [str(name) for name in names]})
        except OSError as error:  # a cache that can't be written to: it is checked each time
            logger.debug("%s can't be kept: %s", mark, error)
    return value


def _stamps(files: Sequence[Path]) -> tuple[list[list[object]], float]:
    """Return what tells each file from a changed one, and the time of the last change."""
    found: list[list[object]] = []
    changed = 0.0
    for file in files:
        status = file.stat()
        found.append([str(file.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino])
        changed = max(changed, status.st_ctime)
    return found, changed


def file_inside(folder: Path, name: str) -> Path:
    """Return the path of a regular file that lies below a folder; the links of the Hub's cache lead to its blobs.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the name leads out of the folder, or is that of something else than a file.
    """
    return require_regular(resolve_inside(folder, name))


def digests_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each file, for the description of an index."""
    return {name: file_digest(folder / name) for name in names}


def check_digests(folder: Path, names: Sequence[str], told: Any) -> str:
    """Return one digest of the files of an index, compared with the ones that its description tells.

    Args:
        told: the digest of each file by its name; None for an index that is older than digests: its structure alone
            is checked.

    Raises:
        DamagedError: a file is missing, or another one than was written.
    """
    if not isinstance(told, Mapping | None):
        raise DamagedError(f"{folder}: its description tells the digests as {type(told).__name__}, not by name")
    found = {}
    for name in names:
        try:
            found[name] = file_digest(file_inside(folder, name))
        except FileNotFoundError:
            raise DamagedError(f"{folder} lacks its file {name}") from None
        if told is not None and found[name] != told.get(name):
            raise DamagedError(f"{folder / name} is not the file that was written here: its digest differs")
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:32]


def load_array(file: Path, dtype: Any, length: int | None = None) -> np.ndarray:
    """Return the array of a .npy file, memory-mapped: one row of numbers of that type, and nothing else.

    Raises:
        DamagedError: it holds something else, such as objects, or has another length or size.
    """
    wanted = np.dtype(dtype)
    try:
        with open(require_regular(file), "rb") as stream:
            version = np.lib.format.read_magic(stream)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, kind = read[version](stream)
            start = stream.tell()
    except FileNotFoundError:
        raise DamagedError(f"{file.parent} lacks its file {file.name}") from None
    except Exception as error:  # the header is a Python literal: a damaged one raises nearly anything
        raise DamagedError(f"{file} is no array of numbers ({' '.join(str(error).split())[:100]})") from None
    if kind != wanted or len(shape) != 1 or not isinstance(shape[0], int):
        raise DamagedError(f"{file} holds {kind} in {len(shape)} dimensions, it must hold {wanted} in one")
    if length is not None and shape[0] != length:
        raise DamagedError(f"{file} has {shape[0]} numbers, it must have {length}")
    if shape[0] < 0 or file.stat().st_size != start + shape[0] * wanted.itemsize:
        raise DamagedError(f"{file} is cut, or longer than its {shape[0]} numbers")
    if shape[0] == 0:
        return np.zeros(0, wanted)
    return np.memmap(file, wanted, "r", start, shape)


def check_starts(starts: np.ndarray, end: int, file: Path) -> None:
    """Raise DamagedError unless the numbers rise from 0 to `end`."""
    if len(starts) == 0 or starts[0] != 0 or starts[-1] != end or bool((starts[1:] < starts[:-1]).any()):
        raise DamagedError(f"{file}: its numbers do not rise from 0 to {end}")


def check_postings(scores: np.ndarray, rows: np.ndarray, starts: np.ndarray, texts: int, file: Path) -> None:
    """Check the postings of an inverted index, which compiled code follows without looking.

    Raises:
        DamagedError: rows out of `texts`, or that do not rise within a word; a score that is negative or not finite.
    """
    check_starts(starts, len(rows), file)
    values, places, bounds = (np.asarray(one).view(np.ndarray) for one in (scores, rows, starts))
    if fault := _first_fault(values, places, bounds, texts):
        raise DamagedError(f"{file.parent} is no index: {_FAULTS[fault].format(file=file.name, rows=texts)}")


@njit(cache=True)
def _first_fault(scores, rows, starts, texts):  # type: ignore[no-untyped-def]
    for word in range(starts.shape[0] - 1):
        before = -1
        for at in range(starts[word], starts[word + 1]):
            row = rows[at]
            if row < 0 or row >= texts:
                return 1
            if row <= before:
                return 2
            if not (scores[at] >= 0 and scores[at] < np.inf):
                return 3
            before = row
    return 0


def check_vocabulary(vocabulary: Any, words: int, file: Path) -> dict[str, int]:
    """Return the words with their numbers, which must be those from 0 to before `words`, each once.

    Raises:
        DamagedError: it is none.
    """
    if not isinstance(vocabulary, dict) or len(vocabulary) != words:
        raise DamagedError(f"{file} does not hold the {words} words of its index")
    numbers = list(vocabulary.values())
    if not all(type(number) is int and 0 <= number < words for number in numbers) or len(set(numbers)) != words:
        raise DamagedError(f"{file}: its words are not numbered from 0 to {words - 1}")
    return vocabulary
