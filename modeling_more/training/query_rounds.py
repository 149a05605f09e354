"""This module predicts the entities that `--query entities` searches for, by experts that search words alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..data.tasks import ENTITIES
from ..posts import Posts
from .arguments import Arguments, DataArguments
from .command_line import one_sentence_errors
from .crossfit import Fold, fold_folder, folds_of, unless_finished
from .evaluation import NAMES
from .models import SAVED, model_kind
from .output_folders import begin_training
from .retrieval import makes_predictions

logger = logging.getLogger(__name__)

Splits = dict[str, Posts]
Loaded = tuple[Splits, list[str], dict[str, Any]]  # what `load_posts` returns

_EXPERT, _ALL = "words", "all"  # the names of the folders: words-0, words-1, …, words-all


def words_first(data: DataArguments) -> DataArguments:
    """Return the options that retrieve for the first round, or the same where this run predicts no entities."""
    # no --shuffle_knowledge: the control's queries are those of the run that it controls
    return replace(data, query="words", shuffle_knowledge=False) if makes_predictions(data) else data


def first_round(args: Arguments, splits: Splits, accelerator: Accelerator) -> Iterator[Fold]:
    """Yield the trainings that `--query entities` still needs, each marked when the next is requested.

    Each predicts the posts of a fold without having learned from them; the last learns from all training posts and
    predicts the dev and test posts. None is yielded where this run predicts no entities.

    Args:
        splits: with the knowledge that the posts' words find.
    """
    if not makes_predictions(args.data):
        return
    with one_sentence_errors():
        _check(args, splits)
    begin_training(args, accelerator)  # it may empty the folder, in which the folds' experts will lie
    data, folds = words_first(args.data), folds_of(splits["train"], args.data.query_folds)
    names: list[int | str] = [*sorted(set(folds)), _ALL]
    for fold in names:
        others = [post for post, one in zip(splits["train"], folds, strict=True) if one != fold]
        held = [post for post, one in zip(splits["train"], folds, strict=True) if one == fold]
        unlabelled = [{key: value for key, value in post.items() if key != ENTITIES.label} for post in held]
        own = splits if fold == _ALL else {"train": others, "validation": splits["validation"]}
        training = replace(
            args.training, output_dir=str(_folder(args, fold)), seeds=[], resume_from_checkpoint=None, report_to=[],
            save_checkpoints=False, do_predict=False, overwrite_output_dir=False,
        )  # fmt: skip
        needed = Fold(Arguments(data, args.model, training), own, unlabelled)
        # folders may have moved, of which the digest would be another one
        options = {**needed.args.options(), "output_dir": "", "cache_dir": ""}
        number = f"{names.index(fold) + 1} of {len(names)}"
        name = f"entities to search for: training {number}, on {len(own['train'])} posts"
        yield from unless_finished(needed, [options, own, unlabelled], name, accelerator)
    accelerator.wait_for_everyone()  # until the main process has written the last predictions


def second_round(
    args: Arguments, splits: Splits, report: dict[str, Any], load: Callable[[DataArguments], Loaded]
) -> tuple[Arguments, Splits, dict[str, Any]]:
    """Return the options that name the first round's predictions, and splits whose knowledge these found; with report.

    Where this run predicts no entities, all stays as it is.

    Args:
        load: retrieves for the posts of a run, see `load_posts`.
    """
    if not makes_predictions(args.data):
        return args, splits, report
    folds = sorted(set(folds_of(splits["train"], args.data.query_folds)))
    files = [_folder(args, fold) / "predictions" / "predict.jsonl" for fold in folds]
    files += [_folder(args, _ALL) / "predictions" / f"{NAMES[split]}.jsonl" for split in splits if split in NAMES]
    data = replace(args.data, entities=list(map(str, files)))
    found, _, searched = load(data)
    # the folder was emptied before the first round
    return replace(args, data=data, training=replace(args.training, overwrite_output_dir=False)), found, searched


def _folder(args: Arguments, fold: int | str) -> Path:
    return Path(fold_folder(args.training.output_dir, _EXPERT, fold))


def _check(args: Arguments, splits: Splits) -> None:
    """Raise ValueError if these posts or this model do not allow predictions by folds, before anything is trained."""
    told = "--query entities: give --entities FILE …"
    if model_kind(args.model) in SAVED:  # so that the experts of the folds would know their posts
        raise ValueError(
            f"{told}, for {args.model.model_name_or_path} may have learned from these posts: entities are predicted "
            "here only by experts that are trained from an encoder"
        )
    if len(set(folds_of(splits["train"], args.data.query_folds))) < 2:
        raise ValueError(f"{told}, for {len(splits['train'])} training posts are too few for --query_folds")
    seen: dict[str, tuple[str, list[str]]] = {}
    for split, posts in splits.items():
        for post in posts:
            other, words = seen.setdefault(post["id"], (split, post["tokens"]))
            if (other, words) != (split, post["tokens"]):
                raise ValueError(
                    f"--query entities finds a post's predictions by its id, and {post['id']} is that of a {other} "
                    f"post and of another {split} post: give each post an id of its own"
                )
