"""This module keeps the folders of checkpoints: it writes them beside, replaces them, and knows whose files they hold.

A folder of ours has a manifest from its first moment; other folders, and files that others put into ours, stay.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..files import (
    MANIFEST,
    TEMPORARY,
    file_digest,
    is_folder,
    paths_below,
    remove_folder,
    replace_folder,
    sync,
    sync_folder,
    whole_folder,
    write_json,
    write_manifest,
)
from ..foreign import check_manifest, read_object
from .folder_contents import CHECKPOINTS, SAFETENSORS_STRAY, STATE
from .run_record import CONFIG

LAST, BEST, INCOMING = "last", "best", ".incoming"
WEIGHTS = "model.safetensors"
OPTIMIZER, RANDOM = "optimizer.safetensors", "random_states.json"
#: patterns of the files that a checkpoint or the best epoch's model holds
OWN = (
    *(STATE, OPTIMIZER, RANDOM, MANIFEST, CONFIG, "model*.safetensors", "model.safetensors.index.json"),
    *(TEMPORARY, SAFETENSORS_STRAY),
)
#: entries of a configuration that say with what it was saved
SAVED_WITH = ("transformers_version", "architectures", "dtype", "_name_or_path")


def begin(target: Path) -> Path:
    """Return an empty folder beside `target`, with our mark, to write a checkpoint into."""
    incoming = target.with_name(target.name + INCOMING)
    if os.path.lexists(incoming):
        clear(incoming)
    incoming.mkdir(parents=True, exist_ok=True)
    write_json(incoming / MANIFEST, {"files": {}})  # until the files are there
    return incoming


def finish(folder: Path) -> None:
    """Write the manifest of a folder, and wait until all is on the disk."""
    names = [path.name for path in folder.iterdir() if _is_own(path.name) and path.name != MANIFEST]
    with ThreadPoolExecutor() as pool:  # the disk writes while the digests are computed
        synced = pool.map(sync, [folder / name for name in names])
        write_manifest(folder, names)
        list(synced)
    sync_folder(folder)


def put(incoming: Path, target: Path) -> None:
    """Put a finished folder in its place; what others put into the old one goes over to it."""
    replace_folder(incoming, target, lambda old: clear(old, target))


def clear(folder: Path, heir: Path | None = None) -> None:
    """Delete our files in a folder, and with an `heir`, which takes over what others put there, the folder."""
    if folder.is_symlink():
        folder.unlink()
        return
    for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST):  # our mark goes last
        if _is_own(path.name) and not is_folder(path):
            path.unlink()
        elif heir is not None:
            os.replace(path, heir / path.name)
    if heir is not None:
        folder.rmdir()


def begin_anew(folder: Path, delete: bool) -> None:
    """Delete what a killed run left, if asked to; raise ValueError if checkpoints or files of others are there."""
    there = _there(folder)
    if there and not delete:
        raise ValueError(
            f"{there[0]} is of an earlier training: go on with it (resume_from_checkpoint), or give another output_dir"
        )
    for path in there:
        if strange := next((one for one in paths_below(path) if not _is_own(one.name)), None):
            raise ValueError(f"{strange} is of no training: move it away, or give another --output_dir")
    for path in there:
        remove_folder(path)


def _there(folder: Path) -> list[Path]:
    """Return the folders in the places of checkpoints, or raise ValueError if one is not ours."""
    there = [path for name in CHECKPOINTS if os.path.lexists(path := folder / name) and not _is_incidental(path)]
    for path in there:
        # a kill may come just before the mark is there
        begun = is_folder(path) and all(fnmatch(one.name, TEMPORARY) for one in paths_below(path))
        if not begun and not (is_folder(path) and _is_marked(path)):
            raise ValueError(f"{path} is no checkpoint of this library: move it away, or give another --output_dir")
    return there


def best_beside(checkpoint: Path, digest: str) -> Path:
    """Return the folder, beside a checkpoint, of the best model that it names by the digest of its manifest.

    Raises:
        FileNotFoundError: there is no best model.
        ValueError: it is of another epoch or run.
    """
    best = checkpoint.parent / BEST
    found = [one for one in (whole_folder(best), best.with_name(BEST + INCOMING)) if one.is_dir()]
    for one in found:
        if (one / MANIFEST).is_file() and file_digest(one / MANIFEST) == digest:
            return one
    if not found:
        raise FileNotFoundError(f"{checkpoint} can't be resumed: the folder {BEST} is missing beside it")
    raise ValueError(
        f"{checkpoint} can't be resumed: the folder {BEST} beside it is of another epoch or run, or was changed: "
        "train anew in another --output_dir"
    )


def adopt_best(folder: Path, checkpoint: Path, digest: str, config: Any) -> None:
    """Check a checkpoint and the best model beside it, and put the latter in its place below this run's `folder`.

    Args:
        config: the configuration of the model that is trained.

    Raises:
        ValueError: files are missing, damaged, or of no training; or the best model is of another kind.
    """
    check_whole(checkpoint, STATE, WEIGHTS, OPTIMIZER, RANDOM)
    best = best_beside(checkpoint, digest)
    told = check_whole(best, CONFIG)
    # a model is loaded from whatever lies there, also adapters of another one
    there = [path.name for path in paths_below(best) if not path.name.startswith(".")]
    if strange := [name for name in there if name not in told and name != MANIFEST]:
        raise ValueError(f"{best} holds {strange[0]}, which was not saved there: move it away to resume")
    if _unsaved(read_object(best / CONFIG)) != _unsaved(config):
        raise ValueError(f"{best / CONFIG} is not the configuration of the model that is trained here")
    if checkpoint.parent.resolve() != folder.resolve():
        begin_anew(folder, delete=True)
        copied = begin(folder / BEST)
        for name in told:
            shutil.copyfile(best / name, copied / name)
        finish(copied)
        put(copied, folder / BEST)
        return
    if best.name != BEST:  # a crash came after `last` was replaced
        put(best, folder / BEST)
    for path in _there(folder):
        if path.suffix and path.resolve() != checkpoint.resolve() and (folder / path.stem).is_dir():
            clear(path, folder / path.stem)  # what a crash left


def check_whole(folder: Path, *needed: str) -> dict[str, Any]:
    """Return the description of each file that a folder was saved with.

    Raises:
        ValueError: a file is missing, damaged, or none that a training writes.
    """
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} lacks {MANIFEST}: it was not saved or copied whole")
    told: dict[str, Any] = read_object(folder / MANIFEST, files=dict)["files"]
    if lacking := sorted(set(needed) - told.keys()):
        raise ValueError(f"{folder / MANIFEST} does not name {lacking[0]}: it was not saved or copied whole")
    if strange := sorted(name for name in told if not _is_own(name)):
        raise ValueError(f"{folder / MANIFEST} names {strange[0]}, which no training writes there")
    check_manifest(folder)
    return told


def _is_own(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in OWN)


def _is_incidental(folder: Path) -> bool:
    """Return whether a folder is there for what others put into it alone."""
    return is_folder(folder) and any(folder.iterdir()) and not any(paths_below(folder))


def _is_marked(folder: Path) -> bool:
    try:
        return isinstance(read_object(folder / MANIFEST, files=dict)["files"], dict)
    except (ValueError, OSError):
        return False


def _unsaved(config: Any) -> Any:
    """Return a configuration without what depends on when and with what it was saved."""
    if isinstance(config, dict):
        return {key: _unsaved(value) for key, value in config.items() if key not in SAVED_WITH}
    return [_unsaved(value) for value in config] if isinstance(config, list) else config
