"""This module tells what stands in a run's folder: how far the run came, and what in it no run wrote."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatch
from pathlib import Path

from ..files import HOLDER, LOCK, MANIFEST, TEMPORARY, is_folder, is_incidental, paths_below
from ..retrieval_settings import ENCODERS
from .run_record import (
    BEGUN,
    CONFIG,
    OPTIONS,
    PREDICTIONS,
    RESULTS,
    WRITTEN,
    has_options,
    is_model,
    read_entry,
    recorded,
)

MADE_OF = "made_of.txt"  # marks a finished fold; holds a digest of its expert's posts and options
CHECKPOINTS = tuple(f"{name}{more}" for name in ("last", "best") for more in ("", ".incoming", ".outgoing"))
SHARD = re.compile(r"\.\d{6}-[0-9a-f]{16}\.jsonl$")  # ends the name of a part of predictions that are not whole yet
SEED = re.compile(r"seed--?\d+")
STATE, STATE_ENTRIES = "training_state.json", {"history", "epoch"}  # what marks a checkpoint, and entries of it
SAFETENSORS_STRAY = ".tmp??????"  # its writer leaves one if it is killed
#: files that checkpoints hold, of this library and of accelerate's ways to shard
CHECKPOINT_FILES = (
    "*.safetensors",
    "*.json",
    "*.bin",
    "*.pkl",
    "*.pt",
    "*.distcp",
    ".metadata",
    "latest",
    "zero_to_*",
)
LOGS = ("events.out.tfevents*", "hparams.yml")  # files that trackers write into a run's folder
#: files of a run that stand in no record
BESIDE = (MANIFEST, BEGUN, MADE_OF, LOCK, HOLDER, TEMPORARY, SAFETENSORS_STRAY)


def _has_predictions(folder: Path) -> bool:
    return any((folder / name).exists() for name in PREDICTIONS)


def has_seeds(folder: Path) -> bool:
    """Return whether runs of several seeds have left something here."""
    return any(is_finished(one) or is_begun(one) for one in folder.glob("seed-*"))


def is_finished(folder: Path) -> bool:
    """Return whether the folder holds a finished run, or a model or predictions without one."""
    options = read_entry(folder / OPTIONS)
    if has_options(folder) or RESULTS in recorded(folder):
        # the configuration comes last: without it a model is not whole
        return (folder / RESULTS).exists() and (options.get("do_train") is False or (folder / CONFIG).exists())
    return is_model(folder) or (_has_predictions(folder) and not (folder / CONFIG).exists())


def is_begun(folder: Path) -> bool:
    """Return whether a run left a checkpoint, its best model (maybe as `.outgoing`) or experts of folds here."""
    whole = [name for name in CHECKPOINTS if not name.endswith(".incoming")]
    return (
        any(_is_checkpoint(folder / "checkpoints" / name) for name in whole)
        or any((fold / MADE_OF).exists() for fold in folder.glob("crossfit/*"))
        or has_seeds(folder)
    )


def goes_on(folder: Path) -> bool:
    """Return whether a run can be resumed here, from a checkpoint or from the experts of a gate's folds."""
    last = (folder / "checkpoints" / name for name in ("last", "last.outgoing"))
    return any(_is_checkpoint(one) for one in last) or (folder / "crossfit").is_dir()


def way_on(folder: Path, given: Sequence[int]) -> str:
    """Return the options with which the run in a folder goes on, or "" where resuming would be refused.

    Args:
        given: the seeds of the run that is refused, if several.
    """
    runs = [one for one in folder.glob("seed-*") if SEED.fullmatch(one.name) and (is_finished(one) or is_begun(one))]
    if (len(given) > 1 and not runs) or any(is_finished(one) and not goes_on(one) for one in runs):
        return ""
    last = [one for run in runs or [folder] for one in (run / "checkpoints").glob("last*") if _is_checkpoint(one)]
    # those of earlier versions have no manifest, and are refused
    if not any(map(goes_on, runs or [folder])) or not all((one / MANIFEST).is_file() for one in last):
        return ""
    told = next((read_entry(one / OPTIONS) or read_entry(one / BEGUN) for one in runs), {}).get("seeds")
    seeds = list(map(str, told)) if isinstance(told, list) else [one.name.removeprefix("seed-") for one in runs]
    again = f"--seeds {' '.join(seeds)} " if runs and {*seeds} != {*map(str, given)} else ""
    return f"{again}--resume_from_checkpoint latest"


def is_ours(folder: Path) -> bool:
    """Return whether the folder carries the mark of a run: its options, record, model, results or checkpoints."""
    marked = has_options(folder) or WRITTEN in read_entry(folder / MANIFEST)
    return marked or is_finished(folder) or is_begun(folder) or any(has_options(one) for one in folder.glob("seed-*"))


def _is_checkpoint(folder: Path) -> bool:
    """Return whether this is a checkpoint, or the best model beside one, of this library."""
    if not is_folder(folder):
        return False
    return is_model(folder) if folder.name.startswith("best") else STATE_ENTRIES <= read_entry(folder / STATE).keys()


def strange_path(folder: Path) -> Path | None:
    """Return a path in the folder of a run that no run wrote, if there is one."""
    known = recorded(folder).keys()
    for path in sorted(folder.iterdir()):
        found: Path | None = path
        if is_incidental(path):
            found = None
        elif not is_folder(path):
            ours = path.name in known or _is_file(path, BESIDE)
            found = None if ours and _is_file(path, ("*",)) else path
        elif fnmatch(path.name, TEMPORARY):
            found = None
        elif path.name == "crossfit":
            inside = [one for one in sorted(path.iterdir()) if not is_incidental(one)]
            inner = (strange_path(one) if is_folder(one) else one for one in inside)
            found = next(filter(None, inner), None)
        elif SEED.fullmatch(path.name):
            found = strange_path(path)
        elif path.name == "checkpoints":
            found = strange_checkpoint(path)
        elif path.name == "logs":
            inside = list(paths_below(path))
            found = next((one for one in inside if not (is_folder(one) or _is_file(one, LOGS))), None)
        elif path.name in ("experts", "predictions", ".eval_results", *ENCODERS.values()):
            inside = [one for one in paths_below(path) if not fnmatch(one.name, TEMPORARY)]
            if all(is_folder(one) for one in inside):  # there is nothing to lose
                inside = []
            found = next((one for one in inside if not _is_known(one, one.relative_to(folder), known)), None)
        if found is not None:
            return found
    return None


def _is_known(path: Path, name: Path, known: Collection[str]) -> bool:
    """Return whether a path of this name is a file that runs wrote, or a folder that holds one."""
    if is_folder(path):
        return any(one.startswith(f"{name.as_posix()}/") for one in known)
    whole = SHARD.sub(".jsonl", name.as_posix())
    return whole in known and _is_file(path, ("*",))


def strange_checkpoint(folder: Path) -> Path | None:
    """Return a path in the place of a run's checkpoints that is none of them, if there is one."""
    if not is_folder(folder):
        return folder if os.path.lexists(folder) else None
    for path in sorted(folder.iterdir()):
        if is_incidental(path) or _is_file(path, (TEMPORARY,)) or (is_folder(path) and fnmatch(path.name, TEMPORARY)):
            continue
        # one that is half-written or half-deleted may have no mark of its own: the run beside it has
        half = path.suffix in (".incoming", ".outgoing") and has_options(folder.parent)
        half = half or (is_folder(path) and not any(paths_below(path)))
        if path.name not in CHECKPOINTS or not (_is_checkpoint(path) or (half and is_folder(path))):
            return path
        for one in paths_below(path):
            if not (is_folder(one) or _is_file(one, (*CHECKPOINT_FILES, TEMPORARY, SAFETENSORS_STRAY))):
                return one
    return None


def _is_file(path: Path, patterns: Sequence[str]) -> bool:
    """Return whether the path is a file, not a link, whose name matches a pattern."""
    return path.is_file() and not path.is_symlink() and any(fnmatch(path.name, pattern) for pattern in patterns)
