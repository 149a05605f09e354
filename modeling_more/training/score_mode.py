"""This module scores a saved expert on labelled posts without training (`--no_do_train`)."""

from __future__ import annotations

from typing import Any

from accelerate.utils import set_seed

from ..data.tasks import Task
from ..posts import Posts
from .arguments import Arguments
from .command_line import one_sentence_errors
from .evaluation import score_splits
from .models import load_saved
from .results import begin_results, save_run
from .setup import make_accelerator


def score_alone(
    task: Task, args: Arguments, splits: dict[str, Posts], types: list[str], report: dict[str, Any], to_predict: Posts,
    command: str,
) -> dict[str, Any]:  # fmt: skip
    """Score a saved expert with and without knowledge, write scores and predictions, and return the results."""
    accelerator = make_accelerator(args.training)
    set_seed(args.training.seed)
    with one_sentence_errors():
        model, processor = load_saved(task, args, task.labels(types, args.data.none_relation), accelerator)
    pipeline = task.pipeline_class(model, processor, accelerator, args.training.per_device_eval_batch_size)
    results = begin_results(args, report)
    results |= score_splits(task, args, pipeline, splits)
    save_run(task, args, pipeline, results, to_predict, command)
    return results
