"""This module decides where a run may write: never over a finished run, a training's record, or others' files."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import HOLDER, LOCK, MANIFEST, TEMPORARY, is_folder, locked, remove_strays, remove_strays_of, write_json
from .arguments import Arguments
from .run_record import (
    BEGUN,
    CONFIG,
    KNOWN,
    OPENING,
    OPTIONS,
    PREDICTIONS,
    RECORD,
    RESULTS,
    WRITTEN,
    has_options,
    identity,
    is_model,
    read_entry,
    record_file,
    recorded,
    stage_of,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

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
#: options that name files or folders that a run reads
INPUTS = (
    *("model_name_or_path", "experts", "dataset", "data_dir", "train_file", "validation_file", "test_file"),
    *("predict_file", "knowledge", "captions", "entities", "image_dir", "image_model", "text_model", "cache_dir"),
)


def default_output_dir(args: Arguments) -> str:
    """Return `out` for a training, else a name after the model, what is done and the posts (`out-scored-posts`)."""
    if args.trains:
        return "out"
    model, here = args.model.model_name_or_path, Path.cwd()
    parts = model.split("/")
    if Path(model).exists():
        folder = Path(model).resolve()
        inside = folder.is_relative_to(here) and folder != here
        parts = list(folder.relative_to(here).parts) if inside else [folder.name]
    done = "predicted" if args.posts is None else "scored"
    name = f"{'-'.join(parts)}-{done}-{_name_of_posts(args)}"
    # if the current folder is inside a model's folder, the new one lies beside that
    runs = [folder for folder in (here, *here.parents) if has_options(folder) or is_model(folder)]
    name = os.path.relpath(runs[-1].parent / name) if runs else name
    # other posts whose file has the same name were scored there, or by another model
    return next(one for one in _numbered(name) if not suffix_beside_record(args, Path(one), "predict" in done))


def suffix_beside_record(args: Arguments, folder: Path | None = None, predicted: bool = False) -> str:
    """Return the suffix of a scoring's files, like `-posts`, if its folder holds a record of other things; else "".

    Args:
        folder: default: the output folder.
        predicted: the same for the predictions of posts without labels.
    """
    folder, of = folder or Path(args.training.output_dir), identity(args)
    if args.trains:
        return ""
    written = recorded(folder)

    def is_free(*names: str) -> bool:
        return all(written.get(name) == of or not os.path.lexists(folder / name) for name in names)

    split_files = ("predictions/dev{}.jsonl", "predictions/test{}.jsonl")
    files = ("predictions/predict{}.jsonl",) if predicted else ("scores{}.json", "gate_weights{}.png", *split_files)
    if is_free(*(file.format("") for file in files)) and (predicted or is_free(*RECORD, BEGUN)):
        return ""
    suffixes = (f"-{one}" for one in _numbered(_name_of_posts(args)))
    return next(one for one in suffixes if is_free(*(file.format(one) for file in files)))


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def check_output_dir(args: Arguments) -> None:
    """Raise ValueError if the run may not write here, or `--overwrite_output_dir` would delete more than a run."""
    training = args.training
    folder, resumed = Path(training.output_dir), training.resume_from_checkpoint
    told = f"--output_dir {folder}"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{told} is a file, it must be a folder")
    if folder.is_symlink() and not folder.exists():
        raise ValueError(f"{told} is a link to nothing: make its target, or give another folder")
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not os.access(there, os.W_OK):
        raise ValueError(f"{told} can't be written: {there} is read-only")
    for name in ("predictions", "checkpoints", "experts", ".eval_results", "crossfit", "logs"):
        if os.path.lexists(folder / name) and not (folder / name).is_dir():
            raise ValueError(f"{folder / name} is no folder, and a run writes into one of this name: move it")
    if not args.trains:
        if training.overwrite_output_dir:
            raise ValueError("--overwrite_output_dir is for training: what is scored or predicted deletes no run")
        return
    inside = resumed is not None and (resumed == "latest" or Path(resumed).resolve().is_relative_to(folder.resolve()))
    if training.overwrite_output_dir:
        if inside:
            raise ValueError(
                f"--overwrite_output_dir would delete what --resume_from_checkpoint {resumed} goes on from: give one"
            )
        _check_overwriting(args, folder)
        return
    seeds = [folder / f"seed-{seed}" for seed in training.seeds] if len(training.seeds) > 1 else []
    ways = "give another --output_dir, or --overwrite_output_dir to replace it whole"
    if inside:
        lost = next((one for one in seeds or [folder] if _finished(one) and not _goes_on(one)), None)
        if lost is None and seeds and _finished(folder) and not _of_seeds(folder):
            lost = folder
        if lost is not None:
            raise ValueError(f"{lost} holds a finished run that has no checkpoint to go on from: {ways}")
        return
    if _finished(folder):
        more = ", or --resume_from_checkpoint latest to go on with it" if _goes_on(folder) or _of_seeds(folder) else ""
        raise ValueError(f"{told} holds a finished run: {ways}{more}")
    if _begun(folder):
        more = "--resume_from_checkpoint latest to go on with it, or " if _goes_on(folder) or _of_seeds(folder) else ""
        raise ValueError(
            f"{told} holds an unfinished run: give {more}--overwrite_output_dir to begin anew, or another --output_dir"
        )
    for one in (folder, *seeds):
        _check_unused(one, told)


def _check_unused(folder: Path, told: str) -> None:
    """Raise ValueError if something that no run wrote stands where a run writes."""
    if not _is_ours(folder) and folder.is_dir():
        names = [path.name for path in folder.iterdir() if KNOWN.fullmatch(path.name) or path.name in BESIDE[:3]]
        names += [name for name in PREDICTIONS if os.path.lexists(folder / name)]
        names += [path.relative_to(folder).as_posix() for path in folder.glob("experts/*/*")]
        if names:
            raise ValueError(f"{told} holds {sorted(names)[0]}, which is of no run: give another --output_dir")
    if strange := _strange_checkpoint(folder / "checkpoints"):
        raise ValueError(f"{strange} is of no run, which keeps checkpoints there: give another --output_dir")
    for fold in sorted(folder.glob("crossfit/*")):
        if not (is_folder(fold) and (_is_ours(fold) or not any(fold.iterdir()))):
            raise ValueError(f"{fold} is of no run, which keeps the experts of its folds there: move it")


@contextmanager
def holding(args: Arguments, accelerator: Accelerator) -> Iterator[None]:
    """Hold the folder of a run while the block runs, so that no other run writes there, and end its strays.

    What may be written there is checked again, since it may have changed while the posts of others were loaded. The
    program ends with one sentence, in every process, if the folder is held or may not be written, and if the disk is
    full or the folder is gone later on.
    """
    from accelerate.utils import broadcast_object_list
    from safetensors import SafetensorError

    folder, refused = Path(args.training.output_dir), [""]
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    doing = "predicts" if args.posts is None else "trains" if args.trains else "scores"
    with ExitStack() as held:
        if accelerator.is_main_process:
            held.callback(_remove_empty, made)  # of a run that wrote nothing
            try:
                check_output_dir(args)
                held.enter_context(locked(folder, f"{doing} with {Path(sys.argv[0]).name}"))
                _check_not_held(folder)
                check_output_dir(args)
                _remove_strays(folder)
            except (ValueError, OSError) as error:
                refused = [" ".join(str(error).split())]
        broadcast_object_list(refused)
        if refused[0]:  # told once, by the main process
            raise SystemExit(f"error: {refused[0]}" if accelerator.is_main_process else 1)
        try:
            yield
        except (OSError, SafetensorError) as error:
            kept = "; what is in its checkpoints is kept: --resume_from_checkpoint latest" if _goes_on(folder) else ""
            raise SystemExit(f"error: the run in {folder} has ended: {' '.join(str(error).split())}{kept}") from error
        finally:
            if accelerator.is_main_process:
                shutil.rmtree(stage_of(folder), ignore_errors=True)


def _remove_empty(folders: Sequence[Path]) -> None:
    for one in folders:
        if one.is_dir() and not any(one.iterdir()):
            one.rmdir()


def _check_not_held(folder: Path) -> None:
    """Raise ValueError if another process holds the run of several seeds, or of folds, that the folder is part of."""
    home = folder.resolve()
    outer = [home.parent] if SEED.fullmatch(home.name) else []
    outer += [home.parents[1]] if home.parent.name == "crossfit" else []
    for place in (*outer, *folder.glob("seed-*"), *folder.glob("crossfit/*")):
        if (place / LOCK).exists():
            with locked(place, "looks whether it is free"):
                pass


def _remove_strays(folder: Path) -> None:
    """Remove what killed runs left half-written in a folder that is held."""
    for place in (folder, *folder.glob("seed-*"), *folder.glob("crossfit/*")):
        if not (is_folder(place) or place == folder):
            continue
        for name in (BEGUN, MANIFEST):  # the first files of a run, before which nothing shows whose the folder is
            remove_strays_of(place / name)
        if not _is_ours(place):
            continue
        for inner in (place, *(place / name for name in ("predictions", ".eval_results", "checkpoints", "experts"))):
            remove_strays(inner, SAFETENSORS_STRAY)


def begin_training(args: Arguments, accelerator: Accelerator) -> None:
    """Empty the folder of a training if asked to, after all checks, and write the options of the run that begins.

    They stand in a file of their own until the run is finished: `arguments.json` tells how the model there was made.
    """
    training = args.training
    folder = Path(training.output_dir)
    several = len(training.seeds) > 1  # `folder` is then that of one seed
    accelerator.wait_for_everyone()  # until all processes have checked the folder
    if accelerator.is_main_process:
        if training.overwrite_output_dir and (not several or training.seed == training.seeds[0]):
            whole = folder.parent if several else folder
            if whole.is_dir() and (strange := _strange(whole)):  # it came since the folder was checked
                raise SystemExit(f"error: {strange} is of no run, nothing was deleted: move it")
            _empty(whole)
        if not training.resume_from_checkpoint:
            _forget_checkpoints(folder / "checkpoints")
        write_json(folder / BEGUN, args.options())
    accelerator.wait_for_everyone()


def begin_scoring(args: Arguments, accelerator: Accelerator) -> tuple[Path, str]:
    """Return an empty folder to write a scoring's files to, from where `publish` takes them, and their suffix."""
    folder = Path(args.training.output_dir)
    stage = stage_of(folder)
    if accelerator.is_main_process:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=not args.trains)  # the folder of a training is there, or somebody removed it
    return stage, suffix_beside_record(args)


def begin_predicting(args: Arguments, accelerator: Accelerator) -> str:
    """Record the predictions of posts without labels, which are written as they come; return their file's suffix."""
    folder, suffix = Path(args.training.output_dir), suffix_beside_record(args, predicted=True)
    if accelerator.is_main_process:
        record_file(folder, f"predictions/predict{suffix}.jsonl", identity(args))
    return suffix


def _check_overwriting(args: Arguments, folder: Path) -> None:
    """Raise ValueError if `--overwrite_output_dir` would delete more than a run, or what this run reads."""
    given = args.options()
    for name in INPUTS:
        value = given[name] or []
        for one in value if isinstance(value, list) else [value]:
            if Path(one).exists() and Path(one).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"--overwrite_output_dir would delete --{name} {one}: give another --output_dir")
    if not folder.is_dir() or all(path.name in (LOCK, HOLDER) for path in folder.iterdir()):
        return
    if not _is_ours(folder):
        raise ValueError(f"--output_dir {folder} holds no run, nothing in it is deleted: give another --output_dir")
    if strange := _strange(folder):
        raise ValueError(
            f"--overwrite_output_dir deletes runs only, and {strange} is of none: move it, or give another folder"
        )


def _name_of_posts(args: Arguments) -> str:
    posts = args.posts or args.data.predict_file or "posts"
    path = Path(posts).resolve() if Path(posts).exists() else Path(posts)
    return re.sub(r"[^\w.+-]+", "_", path.name if posts == args.data.dataset else path.stem)


def _has_predictions(folder: Path) -> bool:
    return any((folder / name).exists() for name in PREDICTIONS)


def _of_seeds(folder: Path) -> bool:
    return any(_finished(one) or _begun(one) for one in folder.glob("seed-*"))


def _finished(folder: Path) -> bool:
    """Return whether the folder holds a finished run, or a model or predictions without one."""
    options = read_entry(folder / OPTIONS)
    if has_options(folder) or RESULTS in recorded(folder):
        # the configuration comes last: without it a model is not whole
        return (folder / RESULTS).exists() and (options.get("do_train") is False or (folder / CONFIG).exists())
    return is_model(folder) or (_has_predictions(folder) and not (folder / CONFIG).exists())


def _begun(folder: Path) -> bool:
    """Return whether a run left a checkpoint, its best model (maybe as `.outgoing`) or experts of folds here."""
    whole = [name for name in CHECKPOINTS if not name.endswith(".incoming")]
    return (
        any(_is_checkpoint(folder / "checkpoints" / name) for name in whole)
        or any((fold / MADE_OF).exists() for fold in folder.glob("crossfit/*"))
        or _of_seeds(folder)
    )


def _goes_on(folder: Path) -> bool:
    """Return whether a run can be resumed here, from a checkpoint or from the experts of a gate's folds."""
    last = (folder / "checkpoints" / name for name in ("last", "last.outgoing"))
    return any(_is_checkpoint(one) for one in last) or (folder / "crossfit").is_dir()


def _is_ours(folder: Path) -> bool:
    """Return whether the folder carries the mark of a run: its options, record, model, results or checkpoints."""
    marked = has_options(folder) or WRITTEN in read_entry(folder / MANIFEST)
    return marked or _finished(folder) or _begun(folder) or any(has_options(one) for one in folder.glob("seed-*"))


def _is_checkpoint(folder: Path) -> bool:
    """Return whether this is a checkpoint, or the best model beside one, of this library."""
    if not is_folder(folder):
        return False
    return is_model(folder) if folder.name.startswith("best") else STATE_ENTRIES <= read_entry(folder / STATE).keys()


def _strange(folder: Path) -> Path | None:
    """Return a path in the folder of a run that no run wrote, if there is one."""
    known = recorded(folder).keys()
    for path in sorted(folder.iterdir()):
        found: Path | None = path
        if not is_folder(path):
            ours = path.name in known or _is_file(path, BESIDE)
            found = None if ours and _is_file(path, ("*",)) else path
        elif fnmatch(path.name, TEMPORARY):
            found = None
        elif path.name == "crossfit":
            inner = (_strange(one) if is_folder(one) else one for one in sorted(path.iterdir()))
            found = next(filter(None, inner), None)
        elif SEED.fullmatch(path.name):
            found = _strange(path)
        elif path.name == "checkpoints":
            found = _strange_checkpoint(path)
        elif path.name == "logs":
            inside = sorted(path.rglob("*"))
            found = next((one for one in inside if not (is_folder(one) or _is_file(one, LOGS))), None)
        elif path.name in ("experts", "predictions", ".eval_results"):
            inside = [one for one in sorted(path.rglob("*")) if not fnmatch(one.name, TEMPORARY)]
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


def _strange_checkpoint(folder: Path) -> Path | None:
    """Return a path in the place of a run's checkpoints that is none of them, if there is one."""
    if not is_folder(folder):
        return folder if os.path.lexists(folder) else None
    for path in sorted(folder.iterdir()):
        if _is_file(path, (TEMPORARY,)) or (is_folder(path) and fnmatch(path.name, TEMPORARY)):
            continue
        # one that is half-written or half-deleted may have no mark of its own: the run beside it has
        half = path.suffix in (".incoming", ".outgoing") and has_options(folder.parent)
        if path.name not in CHECKPOINTS or not (_is_checkpoint(path) or (half and is_folder(path))):
            return path
        for one in sorted(path.rglob("*")):
            if not (is_folder(one) or _is_file(one, (*CHECKPOINT_FILES, TEMPORARY, SAFETENSORS_STRAY))):
                return one
    return None


def _forget_checkpoints(folder: Path) -> None:
    """Delete what is left of the checkpoints of a run that is begun anew, and nothing else."""
    if strange := _strange_checkpoint(folder):
        raise SystemExit(f"error: {strange} is of no run, which keeps checkpoints there: nothing was deleted, move it")
    for name in CHECKPOINTS:
        shutil.rmtree(folder / name, ignore_errors=True)


def _is_file(path: Path, patterns: Sequence[str]) -> bool:
    """Return whether the path is a file, not a link, whose name matches a pattern."""
    return path.is_file() and not path.is_symlink() and any(fnmatch(path.name, pattern) for pattern in patterns)


def _empty(folder: Path) -> None:
    """Delete the content of a folder, but not the folder, which may be a link or a mount point.

    What makes it a model goes first and what marks it as a run last, so that an interruption leaves no half model and
    nothing that seems to be another's.
    """
    content = [path for path in (folder.iterdir() if folder.is_dir() else ()) if path.name not in (LOCK, HOLDER)]
    places = {name: place for place, name in enumerate((*OPENING, "", OPTIONS, BEGUN, MANIFEST))}
    for path in sorted(content, key=lambda path: places.get(path.name, places[""])):
        if is_folder(path):
            shutil.rmtree(path)
        else:
            path.unlink()
