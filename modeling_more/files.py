"""Write files and folders that appear whole: beside their place first, then renamed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY = ".*.tmp"  # pattern of the names beside: a killed run may leave some


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
        yield beside
        beside.chmod(mode)  # some writers, safetensors' among them, put another file in its place
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """Give an empty folder beside `folder` to fill; it becomes `folder` when the block ends well, else it is removed.

    Args:
        replace: put it in the place of a folder that is there.

    Raises:
        OSError: a folder that is not empty is there, and it is not to be replaced.
    """
    with scratch_folder(folder) as beside:
        yield beside
        apply_umask(beside)
        if replace and folder.exists():
            outgoing = _beside(folder)
            os.replace(folder, outgoing)
            os.replace(beside, folder)
            shutil.rmtree(outgoing)
        else:
            os.replace(beside, folder)


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


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears whole."""
    with new_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that appears whole."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON Lines, a file that appears whole."""
    with new_file(path) as beside, open(beside, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def copy_folder(source: Path, target: Path, leave_out: Sequence[str] = ()) -> None:
    """Copy what a folder holds, over what is there; the copies have the umask's modes, not those of the originals.

    Args:
        leave_out: names in `source` itself that are not copied.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.name in leave_out:
            continue
        if path.is_dir():
            copy_folder(path, target / path.name)
        else:
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


def _beside(path: Path) -> Path:
    """Return a new name in the same folder, for a rename must not leave the disk; names end at 255 bytes."""
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.tmp")
