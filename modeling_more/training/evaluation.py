"""This module scores an expert on the dev and test splits, with and without knowledge, and writes its predictions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.sources import is_labelled
from ..data.tasks import Task
from ..encoding import BatchError, EncodedPost
from ..files import write_jsonl
from ..pipelines import APART, MoRePipeline, name_of
from ..posts import Posts, Row
from ..predictions import Prediction
from .arguments import CHOSEN_ON_DEV, Arguments
from .output_folders import begin_scoring
from .reliability import calibration_rows
from .score_threshold import choose_min_score, count_alone

logger = logging.getLogger(__name__)

NAMES = {"validation": "dev", "test": "test"}  # split -> its name in results and files


def score_splits(task: Task, args: Arguments, pipeline: MoRePipeline, splits: Mapping[str, Posts]) -> dict[str, Any]:
    """Score dev and test and write their predictions; a split without labels is only predicted.

    Returns:
        scores like `dev_f1`; if the expert reads knowledge, also its scores without, like `test_no_knowledge_f1`; and
        `calibration`, the rows of `calibration_rows` on the last split with labels; and the `min_score` of its
        processor, which `--min_score dev` chooses here, before anything is scored.
    """
    output, suffix = begin_scoring(args, pipeline.accelerator)
    results: dict[str, Any] = {}
    if args.data.min_score == CHOSEN_ON_DEV:
        dev = splits["validation"]
        results |= choose_min_score(
            task, pipeline, dev, args.data.none_relation, lambda rows: _forward(pipeline, rows, dev, "dev")
        )
    elif pipeline.processor.min_score is not None:
        results["min_score"] = pipeline.processor.min_score
    for split, name in NAMES.items():
        if split in splits:
            path = output / "predictions" / f"{name}{suffix}.jsonl"
            results |= score_posts(task, pipeline, splits[split], name, path, args.data.none_relation)
    return results


def score_posts(
    task: Task, pipeline: MoRePipeline, posts: Posts, name: str, path: Path, none_relation: str = "None"
) -> dict[str, Any]:
    """Write an expert's predictions for posts and return, if they have labels, its scores.

    Args:
        name: how the names of the scores begin.
        path: file of the predictions, written before anything is done with them.
    """
    encoded = pipeline.preprocess(posts)
    found = _forward(pipeline, encoded, posts, name)
    if pipeline.accelerator.is_main_process:
        write_jsonl(path, prediction_rows(task, pipeline, posts, found, encoded))
    results: dict[str, Any] = {}
    if scored := is_labelled(posts, task):
        results |= {f"{name}_{key}": value for key, value in task.score(found, posts, none_relation).items()}
        results["calibration"] = calibration_rows(task, posts, name, {"": found})
        results[f"{name}_calibration_error"] = results["calibration"][0]["error"]
    results[f"{name}_cut_knowledge"] = sum(post["cut_knowledge"] for post in encoded)
    results |= count_alone(pipeline.processor, posts, name)
    if apart := pipeline.count_apart(encoded):
        results[f"{name}_pairs_apart"] = apart
        logger.warning("%d of %d pairs in %s %s", apart, len(posts), name, APART)
    if scored and pipeline.processor.knowledge_column:
        without = _forward(pipeline, pipeline.preprocess(posts, use_knowledge=False), posts, name)
        scores = task.score(without, posts, none_relation)
        results |= {f"{name}_no_knowledge_{key}": value for key, value in scores.items()}
    return results


def _forward(pipeline: MoRePipeline, encoded: list[EncodedPost], posts: Posts, name: str) -> list[Prediction]:
    try:
        return pipeline.forward(encoded, f"score {name}")
    except BatchError as error:
        places = ", ".join(name_of(posts[row], row) for row in error.index)
        told = " ".join(error.reason.split())
        raise SystemExit(f"error: {name}: {places}: the model can't read it: {told}") from error


def prediction_rows(
    task: Task, pipeline: MoRePipeline, posts: Posts, found: Sequence[Prediction], encoded: Sequence[EncodedPost]
) -> list[Row]:
    """Return the rows of a predictions file with the knowledge read, without `gold` if the labels are hidden."""
    rows = []
    for post, prediction, read in zip(posts, found, encoded, strict=True):
        row: Row = {key: post[key] for key in ("id", "text", "tokens") if key in post}
        row |= task.prediction(prediction.labels)
        if post[task.label] is not None:
            row["gold"] = post[task.label]
        rows.append(row | pipeline.postprocess(post, prediction) | pipeline.knowledge.shown(post, read))
    return rows
