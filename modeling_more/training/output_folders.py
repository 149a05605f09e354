"""This module decides where a run may write: never over a finished run, a training's record, or others' files."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import TEMPORARY, write_json
from .arguments import Arguments

if TYPE_CHECKING:
    from accelerate import Accelerator

OPTIONS, RESULTS, CARD, CONFIG = "arguments.json", "all_results.json", "README.md", "config.json"
RECORD = (OPTIONS, RESULTS, CARD, CONFIG)  # files that tell how a model was made
PREDICTIONS = ("dev.jsonl", "test.jsonl", "predict.jsonl")
#: patterns of the files that a run writes, which may be deleted with it
FILES = (
    *(*RECORD, "holdout_ids.json", "scores-*.json", "made_of.txt", TEMPORARY),
    *("training_curve.png", "gate_weights*.png", "model*.safetensors", "model.safetensors.index.json"),
    *("generation_config.json", "*processor_config.json", "tokenizer*.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.jinja"),
)
INSIDE = {"predictions": ("*.jsonl", TEMPORARY), ".eval_results": ("*.yaml", TEMPORARY)}
MODEL_TYPES = ("more", "more-mixture")  # those of our configurations, which take seconds to import
RUNS = ("crossfit", "experts")  # folders that hold a folder of such files for each expert
CHECKPOINTS = tuple(f"{name}{more}" for name in ("last", "best") for more in ("", ".incoming", ".outgoing"))
LOGS = ("events.out.tfevents*", "hparams.yml")  # files that trackers write into a run's folder
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
    runs = [folder for folder in (here, *here.parents) if _has_options(folder) or _is_model(folder)]
    return os.path.relpath(runs[-1].parent / name) if runs else name


def suffix_beside_record(args: Arguments) -> str:
    """Return the suffix of a scoring's files, like `-posts`, if its folder holds a training's record; else ""."""
    folder = Path(args.training.output_dir)
    if args.trains or not any((folder / name).exists() for name in RECORD):
        return ""
    return "" if _read(folder / OPTIONS).get("do_train") is False else f"-{_name_of_posts(args)}"


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
        raise ValueError(
            f"{told} holds an unfinished run: give --resume_from_checkpoint latest to go on with it, or "
            "--overwrite_output_dir to begin anew"
        )
    if not _is_ours(folder):
        for name in (*RECORD, "model.safetensors", "tokenizer.json"):
            if (folder / name).exists():
                raise ValueError(f"{told} holds a {name} that is of no run: give another --output_dir")
    for one in (folder, *seeds):
        if strange := _strange_checkpoint(one / "checkpoints"):
            raise ValueError(f"{strange} is of no run, which keeps checkpoints there: give another --output_dir")


def begin_training(args: Arguments, accelerator: Accelerator) -> None:
    """Empty the folder of a training if asked to, after all checks, and write the run's options into it."""
    training = args.training
    folder = Path(training.output_dir)
    several = len(training.seeds) > 1  # `folder` is then that of one seed
    accelerator.wait_for_everyone()  # until all processes have checked the folder
    if accelerator.is_main_process:
        if training.overwrite_output_dir and (not several or training.seed == training.seeds[0]):
            _empty(folder.parent if several else folder)
        if not training.resume_from_checkpoint:
            write_json(folder / OPTIONS, args.options())
    accelerator.wait_for_everyone()


def begin_scoring(args: Arguments, accelerator: Accelerator) -> tuple[Path, str]:
    """Delete older predictions that a scoring replaces, and return its folder and the suffix of its files."""
    folder, suffix = Path(args.training.output_dir), suffix_beside_record(args)
    if accelerator.is_main_process and not suffix:
        forget_predictions(folder, args.training.do_train)
    return folder, suffix


def forget_predictions(folder: Path, trained: bool) -> None:
    """Delete older predictions, those for posts without labels only if a new model was `trained`."""
    for name in PREDICTIONS:
        if trained or name != "predict.jsonl":
            (folder / "predictions" / name).unlink(missing_ok=True)


def published(folder: Path, predictions: bool) -> list[str]:
    """Return the files of a run to upload, with or without predictions, and nothing else in its folder."""
    places = {Path("."): FILES, Path(".eval_results"): INSIDE[".eval_results"]}
    places |= {one.relative_to(folder): FILES for one in folder.glob("experts/*") if _is_folder(one)}
    if predictions:
        places[Path("predictions")] = INSIDE["predictions"]
    return sorted(
        str(place / path.name)
        for place, patterns in places.items()
        if _is_folder(folder / place) or place == Path(".")
        for path in (folder / place).iterdir()
        if _is_file(path, patterns) and not fnmatch(path.name, TEMPORARY)
    )


def _check_overwriting(args: Arguments, folder: Path) -> None:
    """Raise ValueError if `--overwrite_output_dir` would delete more than a run, or what this run reads."""
    given = args.options()
    for name in INPUTS:
        value = given[name] or []
        for one in value if isinstance(value, list) else [value]:
            if Path(one).exists() and Path(one).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"--overwrite_output_dir would delete --{name} {one}: give another --output_dir")
    if not folder.is_dir() or not any(folder.iterdir()):
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


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_model(folder: Path) -> bool:
    return _read(folder / CONFIG).get("model_type") in MODEL_TYPES


def _has_options(folder: Path) -> bool:
    return {"model_name_or_path", "retrieval", "output_dir"} <= _read(folder / OPTIONS).keys()


def _has_predictions(folder: Path) -> bool:
    return any((folder / "predictions" / name).exists() for name in PREDICTIONS)


def _of_seeds(folder: Path) -> bool:
    return any(_finished(one) or _begun(one) for one in folder.glob("seed-*"))


def _finished(folder: Path) -> bool:
    """Return whether the folder holds a finished run, or a model or predictions without one."""
    if _has_options(folder):
        return (folder / RESULTS).exists()
    return _is_model(folder) or (_has_predictions(folder) and not (folder / CONFIG).exists())


def _begun(folder: Path) -> bool:
    """Return whether a run left a checkpoint or its best model here, which a crash may leave as `.outgoing`."""
    whole = [name for name in CHECKPOINTS if not name.endswith(".incoming")]
    return any((folder / "checkpoints" / name).is_dir() for name in whole) or _of_seeds(folder)


def _goes_on(folder: Path) -> bool:
    """Return whether a run can be resumed here, from a checkpoint or from the experts of a gate's folds."""
    last = (folder / "checkpoints" / name / "training_state.json" for name in ("last", "last.outgoing"))
    return any(file.exists() for file in last) or (folder / "crossfit").is_dir()


def _is_ours(folder: Path) -> bool:
    return _has_options(folder) or _finished(folder) or _begun(folder)


def _strange(folder: Path) -> Path | None:
    """Return a path in the folder of a run that no run writes, if there is one."""
    for path in sorted(folder.iterdir()):
        found: Path | None = path
        if not _is_folder(path):
            found = None if _is_file(path, FILES) else path
        elif path.name in INSIDE:
            found = next((one for one in sorted(path.iterdir()) if not _is_file(one, INSIDE[path.name])), None)
        elif path.name in RUNS:
            inner = (_strange(one) if _is_folder(one) else one for one in sorted(path.iterdir()))
            found = next(filter(None, inner), None)
        elif re.fullmatch(r"seed--?\d+", path.name):
            found = _strange(path)
        elif path.name == "checkpoints":
            found = _strange_checkpoint(path)
        elif path.name == "logs":
            inside = sorted(path.rglob("*"))
            found = next((one for one in inside if not (_is_folder(one) or _is_file(one, LOGS))), None)
        if found is not None:
            return found
    return None


def _strange_checkpoint(folder: Path) -> Path | None:
    """Return a path in the place of a run's checkpoints that is none of them, if there is one."""
    if not _is_folder(folder):
        return folder if os.path.lexists(folder) else None
    inner = sorted(folder.iterdir())
    return next((path for path in inner if path.name not in CHECKPOINTS or not _is_folder(path)), None)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_file(path: Path, patterns: Sequence[str]) -> bool:
    """Return whether the path is a file, not a link, whose name matches a pattern."""
    return path.is_file() and not path.is_symlink() and any(fnmatch(path.name, pattern) for pattern in patterns)


def _empty(folder: Path) -> None:
    """Delete the content of a folder, but not the folder, which may be a link or a mount point."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _is_folder(path):
            shutil.rmtree(path)
        else:
            path.unlink()
