"""This module decides where a run may write: never over a finished run, a training's record, or others' files."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import (
    HOLDER,
    LOCK,
    MANIFEST,
    code_names,
    is_folder,
    is_incidental,
    locked,
    paths_below,
    remove_folder,
    remove_strays,
    remove_strays_of,
    write_json,
)
from .arguments import Arguments
from .folder_contents import (
    BESIDE,
    CHECKPOINTS,
    SAFETENSORS_STRAY,
    SEED,
    goes_on,
    has_seeds,
    is_begun,
    is_finished,
    is_ours,
    strange_checkpoint,
    strange_path,
    way_on,
)
from .run_record import (
    BEGUN,
    KNOWN,
    OPENING,
    OPTIONS,
    PREDICTIONS,
    RECORD,
    has_options,
    identity,
    is_model,
    record_file,
    recorded,
    stage_of,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

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
    scored = ("scores{}.json", "gate_weights{}.png", "reliability{}.png", *split_files)
    files = ("predictions/predict{}.jsonl",) if predicted else scored
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
        lost = next((one for one in seeds or [folder] if is_finished(one) and not goes_on(one)), None)
        if lost is None and seeds and is_finished(folder) and not has_seeds(folder):
            lost = folder
        if lost is not None:
            raise ValueError(f"{lost} holds a finished run that has no checkpoint to go on from: {ways}")
        return
    if is_finished(folder):
        more = f", or {way} to go on with it" if (way := way_on(folder, training.seeds)) else ""
        raise ValueError(f"{told} holds a finished run: {ways}{more}")
    if is_begun(folder):
        more = f"{way} to go on with it, or " if (way := way_on(folder, training.seeds)) else ""
        raise ValueError(
            f"{told} holds an unfinished run: give {more}--overwrite_output_dir to begin anew, or another --output_dir"
        )
    for one in (folder, *seeds):
        _check_unused(one, told)


def _check_unused(folder: Path, told: str) -> None:
    """Raise ValueError if something that no run wrote stands where a run writes."""
    if not is_ours(folder) and folder.is_dir():
        names = [path.name for path in folder.iterdir() if KNOWN.fullmatch(path.name) or path.name in BESIDE[:3]]
        names += [name for name in PREDICTIONS if os.path.lexists(folder / name)]
        names += [
            path.relative_to(folder).as_posix() for path in folder.glob("experts/*/*") if not is_incidental(path)
        ]
        if names:
            raise ValueError(f"{told} holds {sorted(names)[0]}, which is of no run: give another --output_dir")
    if code := [name for name in code_names() if os.path.lexists(folder / name) and name not in recorded(folder)]:
        raise ValueError(f"{folder / code[0]} is of no run, which writes the code of its model there: move it")
    if strange := strange_checkpoint(folder / "checkpoints"):
        raise ValueError(f"{strange} is of no run, which keeps checkpoints there: give another --output_dir")
    for fold in sorted(folder.glob("crossfit/*")):
        if is_incidental(fold):
            continue
        if not (is_folder(fold) and (is_ours(fold) or not any(paths_below(fold)))):
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
            way = way_on(folder, args.training.seeds)
            kept = f"; what is in its checkpoints is kept: {way}" if way else ""
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
        if not is_ours(place):
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
            if whole.is_dir() and (strange := strange_path(whole)):  # it came since the folder was checked
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
    if not folder.is_dir() or all(path.name in (LOCK, HOLDER) for path in paths_below(folder)):
        return
    if not is_ours(folder):
        raise ValueError(f"--output_dir {folder} holds no run, nothing in it is deleted: give another --output_dir")
    if strange := strange_path(folder):
        raise ValueError(
            f"--overwrite_output_dir deletes runs only, and {strange} is of none: move it, or give another folder"
        )


def _name_of_posts(args: Arguments) -> str:
    posts = args.posts or args.data.predict_file or "posts"
    path = Path(posts).resolve() if Path(posts).exists() else Path(posts)
    return re.sub(r"[^\w.+-]+", "_", path.name if posts == args.data.dataset else path.stem)


def _forget_checkpoints(folder: Path) -> None:
    """Delete what is left of the checkpoints of a run that is begun anew, and nothing else."""
    if strange := strange_checkpoint(folder):
        raise SystemExit(f"error: {strange} is of no run, which keeps checkpoints there: nothing was deleted, move it")
    for name in CHECKPOINTS:
        if is_folder(folder / name):
            remove_folder(folder / name)


def _empty(folder: Path) -> None:
    """Delete the content of a folder, but not the folder, which may be a link or a mount point.

    What makes it a model goes first and what marks it as a run last, so that an interruption leaves no half model and
    nothing that seems to be another's.
    """
    there = folder.iterdir() if folder.is_dir() else ()
    content = [path for path in there if path.name not in (LOCK, HOLDER) and not is_incidental(path)]
    places = {name: place for place, name in enumerate((*OPENING, "", OPTIONS, BEGUN, MANIFEST))}
    for path in sorted(content, key=lambda path: places.get(path.name, places[""])):
        if is_folder(path):
            remove_folder(path)
        else:
            path.unlink()
