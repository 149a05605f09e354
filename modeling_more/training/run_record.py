"""This module lets the files of a run appear whole, and keeps in `manifest.json` which files runs wrote."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..files import MANIFEST, code_names, file_entry, sync, write_json
from ..foreign import read_object, resolve_inside
from .arguments import Arguments

OPTIONS, RESULTS, CARD, CONFIG = "arguments.json", "all_results.json", "README.md", "config.json"
RECORD = (OPTIONS, RESULTS, CARD, CONFIG)  # files that tell how a model was made
HOLDOUT = "holdout_ids.json"  # ids of the training posts that the model has not seen
BEGUN = "begun.json"  # the options of a run that has begun here and is not finished
STAGE = ".run.00000000.tmp"  # where a run's files are gathered until all take their places; a killed run leaves it
PREDICTIONS = ("predictions/dev.jsonl", "predictions/test.jsonl", "predictions/predict.jsonl")
MODEL_TYPES = ("more", "more-mixture")  # those of our configurations, which take seconds to import
WRITTEN = "written"  # in the manifest: file -> what it is of, see `identity`
_OPTIONS = {"model_name_or_path", "retrieval", "output_dir"}  # among the options of every run
OPENING = (CONFIG, "processor_config.json")  # without these nothing is loaded from a folder
#: files that a run may write, and did before runs kept in the manifest what they wrote
KNOWN = re.compile(
    r"arguments\.json|all_results\.json|README\.md|config\.json|holdout_ids\.json|training_curve\.png"
    r"|gate_weights\.png|generation_config\.json|model\.safetensors(\.index\.json)?"
    r"|model-\d{5}-of-\d{5}\.safetensors|(pre)?processor_config\.json|tokenizer(_config)?\.json"
    r"|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|chat_template\.jinja"
    r"|(spiece|sentencepiece\.bpe|spm|tokenizer)\.model"
)


def is_model(folder: Path) -> bool:
    """Return whether the folder holds the configuration of an expert or a mixture."""
    return read_entry(folder / CONFIG).get("model_type") in MODEL_TYPES


def has_options(folder: Path) -> bool:
    """Return whether the folder holds the options of a run, finished or not."""
    return any(_OPTIONS <= read_entry(folder / name).keys() for name in (OPTIONS, BEGUN))


def read_entry(file: Path) -> dict[str, Any]:
    """Return a JSON object, empty if the file is missing or holds none."""
    try:
        return read_object(file)
    except (OSError, ValueError):
        return {}


def identity(args: Arguments) -> str:
    """Return a digest of the model and the posts of a scoring or predicting run, and "" for a training."""
    if args.trains:
        return ""
    data = args.data
    named = [args.model.model_name_or_path, args.model.model_revision, data.retrieval, data.dataset, data.data_dir]
    named += [data.train_file, data.validation_file, data.test_file, data.predict_file, *data.knowledge]
    told = [str(Path(one).resolve()) if one and Path(one).exists() else one for one in (*named, *args.mixture.experts)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def recorded(folder: Path) -> dict[str, str]:
    """Return the files below a folder that runs wrote, and of each what it is of, see `identity`.

    Names that lead out of the folder are left out: it may be a stranger's.
    """
    return {name: of for name, of in _recorded(folder).items() if _is_inside(folder, name)}


def _is_inside(folder: Path, name: str) -> bool:
    try:
        resolve_inside(folder, name)
    except (ValueError, OSError):
        return False
    return True


def _recorded(folder: Path) -> dict[str, str]:
    manifest = read_entry(folder / MANIFEST)
    if isinstance(told := manifest.get(WRITTEN), dict):
        return {str(name): str(of) for name, of in told.items()}
    options, config = read_entry(folder / OPTIONS), read_entry(folder / CONFIG)
    if not (_OPTIONS <= options.keys() or config.get("model_type") in MODEL_TYPES):
        return {}
    places = [folder, *(folder / "experts" / str(name) for name in config.get("expert_names") or ())]
    files = [path for place in places if place.is_dir() for path in place.iterdir() if KNOWN.fullmatch(path.name)]
    files += [folder / name for name in code_names() if "auto_map" in config and (folder / name).is_file()]
    more = (*PREDICTIONS, f".eval_results/{str(options.get('dataset')).split('/')[-1]}.yaml")
    files += [folder / name for name in more if (folder / name).is_file()]
    return {path.relative_to(folder).as_posix(): "" for path in files}


def record_file(folder: Path, name: str, of: str) -> None:
    """Record a file that is about to be written into a folder by itself, whether a run is there or not."""
    manifest = read_entry(folder / MANIFEST)
    written = recorded(folder) | {name: of}
    write_json(folder / MANIFEST, {"files": _entries(manifest), WRITTEN: written})


def stage_of(folder: Path) -> Path:
    """Return the folder in which the files of a run in `folder` are gathered until they take their places."""
    return folder / STAGE


def below(folder: Path) -> set[str]:
    """Return the names of the files below a folder, relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def publish(folder: Path, loaded: Collection[str], of: str, trained: bool) -> None:
    """Put the files of a run's stage in their places, so that the folder is loaded as it was, as it will be, or not.

    Wherever this is interrupted, no old file is loaded with a new one: `config.json` goes first and comes last. The
    files of the run that was there before are removed, unless this one only adds scores to it.

    Args:
        loaded: the staged files that loading reads, which the manifest describes by their digests.
        of: the run's `identity`.
        trained: whether the run made a new model, to which nothing of the former belongs.

    Raises:
        ValueError: a file that no run wrote is where one of these belongs; nothing was moved.
    """
    stage, old = stage_of(folder), recorded(folder)
    new = below(stage)
    if strange := sorted(name for name in new - old.keys() if os.path.lexists(folder / name)):
        raise ValueError(
            f"{folder / strange[0]} is of no run and stands where this one writes: move it, and start the run again"
            + " with --resume_from_checkpoint latest" * trained
        )
    entries = {name: one for name, one in _entries(read_entry(folder / MANIFEST)).items() if name in old}
    gone = {name for name, whose in old.items() if whose == of and (trained or name not in entries)}
    gone = (gone | set(PREDICTIONS) & old.keys() if trained else gone) - new
    kept = {name: entry for name, entry in entries.items() if name not in new | gone}
    added = {name: file_entry(stage / name) for name in loaded}
    for path in stage.rglob("*"):
        sync(path)

    for name in sorted(new | gone, key=lambda name: name != CONFIG):
        if Path(name).name in OPENING:
            (folder / name).unlink(missing_ok=True)
            sync((folder / name).parent)
    written = {name: whose for name, whose in old.items() if name not in gone} | dict.fromkeys(new, of)
    # what goes and what comes is recorded: whoever interrupts this leaves nothing that looks like another's
    write_json(folder / MANIFEST, {"files": kept, WRITTEN: old | written})
    for name in gone:
        (folder / name).unlink(missing_ok=True)
        _remove_empty((folder / name).parent, folder)
    *early, last = sorted(new, key=lambda name: (name == CONFIG, name == RESULTS, Path(name).name in OPENING, name))
    for name in early:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(stage / name, folder / name)
        sync((folder / name).parent)
    write_json(folder / MANIFEST, {"files": kept | added, WRITTEN: written})
    if trained:
        (folder / BEGUN).unlink(missing_ok=True)
    (folder / last).parent.mkdir(parents=True, exist_ok=True)
    beside = (folder / last).with_name(f".{Path(last).name}.00000000.tmp")
    os.replace(stage / last, beside)
    shutil.rmtree(stage)
    os.replace(beside, folder / last)
    sync((folder / last).parent)


def _entries(manifest: dict[str, Any]) -> dict[str, Any]:
    found = manifest.get("files")
    return found if isinstance(found, dict) else {}


def _remove_empty(inner: Path, folder: Path) -> None:
    while inner != folder and inner.is_dir() and not any(inner.iterdir()):
        inner.rmdir()
        inner = inner.parent
