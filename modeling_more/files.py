"""Write files and folders that appear whole, beside their place first and then renamed, and hold folders by a lock."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from glob import escape
from pathlib import Path
from platform import node
from typing import Any

TEMPORARY = f".*.{8 * '[0-9a-f]'}.tmp"  # pattern of the names beside: a killed run may leave some
MANIFEST = "manifest.json"  # size and digest of the files that a folder was saved with
OUTGOING = ".outgoing"  # ends the name of a folder that is just being replaced
LOCK, HOLDER = ".lock", ".lock.json"  # the lock of a folder, and who holds it
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BROWSERS = (".DS_Store", "Thumbs.db", "desktop.ini")  # file browsers write them, and write them anew


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write a file to; it becomes `path` when the block ends well, else it is removed.

    A reader sees the old file or the new one. The file has the mode that the umask gives, as one opened plainly.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    try:
        beside.touch()
        mode = beside.stat().st_mode
        with _named(path):
            yield beside
        beside.chmod(mode)  # some writers, safetensors' among them, put another file in its place
        sync(beside)  # else a power cut may leave the new name with nothing in it
        os.replace(beside, path)
        sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """Give an empty folder beside `folder` to fill; it becomes `folder` when the block ends well, else it is removed.

    Args:
        replace: put it in the place of a folder that is there, see `replace_folder`; incidental folders stay.

    Raises:
        OSError: a folder that is not empty is there, and it is not to be replaced.
    """
    with scratch_folder(folder) as beside:
        with _named(folder):
            yield beside
        for path in folder.iterdir() if replace and folder.is_dir() else ():
            if is_folder(path) and is_incidental(path):
                copy_folder(path, beside / path.name)
        sync_folder(beside)
        if replace:
            replace_folder(beside, folder)
        else:
            os.replace(beside, folder)
            sync(folder.parent)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file or folder in the error of a full disk, which most writers leave out."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and error.filename is None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
        if error.errno is None and str(error).endswith(" written"):  # NumPy's: so many requested, fewer written
            raise OSError(errno.ENOSPC, f"is the disk full? {error}", str(path)) from None
        raise


def replace_folder(beside: Path, folder: Path, discard: Callable[[Path], object] = shutil.rmtree) -> None:
    """Put a folder, written and synced, in the place of one that may be there, and discard that.

    Where a system can't exchange two folders in one step it takes two renames: between them the older one is
    `NAME.outgoing`, see `whole_folder`.
    """
    outgoing = folder.with_name(folder.name + OUTGOING)
    exchanged = os.path.lexists(folder) and _exchange(beside, folder)
    if not exchanged:
        if os.path.lexists(folder):  # else the outgoing one, left by a crash, is the only copy
            if os.path.lexists(outgoing):
                discard(outgoing)
            os.replace(folder, outgoing)
        os.replace(beside, folder)
    sync(folder.parent)
    for old in (beside, outgoing):
        if os.path.lexists(old):
            discard(old)


def whole_folder(folder: Path) -> Path:
    """Return where a folder is: under its name, or as `NAME.outgoing` if `replace_folder` was killed half-way."""
    outgoing = folder.with_name(folder.name + OUTGOING)
    return outgoing if outgoing.is_dir() and not os.path.lexists(folder) else folder


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder`, whether that is there or not; it is removed when the block ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(folder)
    beside.mkdir()  # not by tempfile, whose folders are closed to others
    try:
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths of a file system change places in one step; return False where the system can't."""
    try:
        system = ctypes.CDLL(None, use_errno=True)
        if hasattr(system, "renameat2"):
            here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
            return bool(system.renameat2(here, os.fsencode(one), here, os.fsencode(other), swap) == 0)
        return bool(system.renamex_np(os.fsencode(one), os.fsencode(other), 2) == 0)  # macOS: RENAME_SWAP
    except (AttributeError, OSError, TypeError):
        return False


@contextmanager
def locked(folder: Path, doing: str, beside: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold a folder while the block runs, so that no other process of this library writes there.

    The system frees the lock of a process that died, however it died: a stale one hinders nobody.

    Args:
        doing: what this process does there, told to others that want the folder ("trains with run_ner.py").
        beside: lock it by a file beside it, for a folder (or file) that is put in the place of another as a whole.
        wait: wait for another process instead, in a cache whose content is the same whoever makes it.

    Raises:
        FolderInUseError: another process holds it; the message says who, since when and what it does.
    """
    from filelock import FileLock, Timeout

    place = folder.with_name(f".{_shortened(folder)}") if beside else folder
    file, holder = (place.with_name(place.name + end) if beside else place / end for end in (LOCK, HOLDER))
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise FolderInUseError(f"{folder} is in use: {_holder(holder)}. Wait for it, or give another folder") from None
    try:
        remove_strays_of(holder)
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        write_json(holder, {"process": os.getpid(), "host": node(), "since": now, "doing": doing})
        yield
    finally:
        holder.unlink(missing_ok=True)
        file.unlink(missing_ok=True)  # while it is held: nobody else can hold the file that goes
        lock.release()


class FolderInUseError(ValueError):
    """An error for a folder that another process writes to."""


def _holder(file: Path) -> str:
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        return f"process {held['process']} on {held['host']} {held['doing']} there since {held['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has only begun, or a stranger wrote the file
        return "another process writes there"


def remove_strays(folder: Path, *patterns: str) -> list[str]:
    """Remove what killed runs left in a folder that this process holds (`locked`), and return the names.

    Args:
        patterns: of names besides `TEMPORARY`.
    """
    strays = {path for pattern in (TEMPORARY, *patterns) for path in folder.glob(pattern)}
    for path in strays:
        _remove(path)
    return sorted(path.name for path in strays)


def remove_strays_of(path: Path) -> None:
    """Remove what killed runs left beside a file or folder while they wrote it; this process must hold it."""
    for stray in path.parent.glob(f".{escape(_shortened(path))}.{'[0-9a-f]' * 8}.tmp"):
        _remove(stray)


def _remove(path: Path) -> None:
    if is_folder(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder itself, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def is_incidental(path: Path) -> bool:
    """Return whether file browsers, notebooks or transfers to the Hub put a path into any folder, unasked.

    It hinders nobody who writes there. Folders of this kind stay: the checkpoints of a notebook are its user's.
    """
    if is_folder(path):
        of_hub = path.name == ".cache" and all(one.name == "huggingface" for one in path.iterdir())
        return of_hub or path.name == ".ipynb_checkpoints"
    return path.name in _BROWSERS and path.is_file() and not path.is_symlink()


def paths_below(folder: Path) -> Iterator[Path]:
    """Yield the paths below a folder, sorted, but for what is incidental and what it holds."""
    for path in sorted(folder.iterdir()):
        if not is_incidental(path):
            yield path
            if is_folder(path):
                yield from paths_below(path)


def remove_folder(folder: Path) -> None:
    """Delete a folder and what it holds, but for incidental folders and those in which they lie."""
    for path in folder.iterdir():
        if not is_folder(path):
            path.unlink()
        elif not is_incidental(path):
            remove_folder(path)
    if not any(folder.iterdir()):
        folder.rmdir()


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(folder: Path, names: Iterable[str]) -> None:
    """Write `manifest.json` with the size and the SHA-256 of files below a folder, for `foreign.check_manifest`."""
    write_json(folder / MANIFEST, {"files": {name: file_entry(folder / name) for name in sorted(names)}})


def file_entry(file: Path) -> dict[str, Any]:
    """Return what a manifest holds of a file."""
    return {"size": file.stat().st_size, "sha256": file_digest(file)}


@contextmanager
def manifest_kept(folder: str | Path) -> Iterator[None]:
    """Take what the block replaces or removes out of the folder's manifest, if it has one: nobody vouches for it."""
    home = Path(folder)
    try:
        manifest = json.loads((home / MANIFEST).read_text(encoding="utf-8"))
        before = {name: _stamp(home / name) for name in manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # none, or one that no reader would believe
        before = {}
    try:
        yield
    finally:
        if changed := {name for name, stamp in before.items() if _stamp(home / name) != stamp}:
            manifest["files"] = {name: one for name, one in manifest["files"].items() if name not in changed}
            write_json(home / MANIFEST, manifest)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    try:
        opened = os.open(path, os.O_RDONLY)
    except OSError:  # a folder, on systems that open none; a file without permission to read
        return
    try:
        os.fsync(opened)
    except OSError:  # some file systems can't
        pass
    finally:
        os.close(opened)


def sync_folder(folder: Path) -> None:
    """Give what a folder holds the modes of the umask, and wait until all of it is on the disk."""
    apply_umask(folder)
    for path in (*folder.rglob("*"), folder):
        sync(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears whole."""
    with new_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that appears whole."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON Lines, a file that appears whole.

    Raises:
        ValueError: a row can't be JSON (NaN, Infinity, bytes, half a surrogate pair); the message says which.
    """
    with new_file(path) as beside, open(beside, "wb") as file:
        for number, row in enumerate(rows):
            try:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: row {number} can't be written: {error}") from None


def copy_folder(source: Path, target: Path) -> None:
    """Copy what a folder holds, over what is there; the copies have the umask's modes, not those of the originals.

    What a killed run has left, a file half written or a lock, is not copied.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_dir():
            copy_folder(path, target / path.name)
        elif not (path.match(TEMPORARY) or path.suffix == ".lock"):
            shutil.copyfile(path, target / path.name)


def apply_umask(folder: Path) -> None:
    """Give the weights below `folder` the umask's mode: safetensors closes them to all but their owner."""
    probe = _beside(folder / "mode")
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*.safetensors"):
        if not path.is_symlink():
            path.chmod(mode)


def code_names() -> list[str]:
    """Return the names of the files of code that may lie beside a saved model: those of this folder."""
    return sorted(path.name for path in Path(__file__).parent.glob("*.py") if path.name != "__init__.py")


def user_cache(cache_dir: str | Path | None = None) -> Path:
    """Return the cache that was given, else $MORE_CACHE, else the folder "more" in the cache of Hugging Face."""
    from huggingface_hub import constants  # here: without it the options of a run are checked at once

    return Path(cache_dir or os.environ.get("MORE_CACHE") or Path(constants.HF_HOME) / "more")


def user_data() -> Path:
    """Return the folder of what must outlive a cleared cache: $MORE_CACHE, else "more" in the user's folder of data.

    That is $XDG_DATA_HOME, or what stands for it on this system.
    """
    if given := os.environ.get("MORE_CACHE"):
        return Path(given)
    homes = {"darwin": "~/Library/Application Support", "win32": os.environ.get("LOCALAPPDATA", "~/AppData/Local")}
    data = os.environ.get("XDG_DATA_HOME") or homes.get(sys.platform, "~/.local/share")
    return Path(os.path.expanduser(data)) / "more"


def _beside(path: Path) -> Path:
    """Return a new name in the same folder, for a rename must not leave the disk; names end at 255 bytes."""
    return path.with_name(f".{_shortened(path)}.{secrets.token_hex(4)}.tmp")


def _shortened(path: Path) -> str:
    return path.name.encode()[:200].decode(errors="ignore")
