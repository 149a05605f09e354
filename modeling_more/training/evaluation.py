"""This module scores an expert on the dev and test splits, with and without knowledge, and writes its predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.sources import is_labelled
from ..data.tasks import Task
from ..files import write_jsonl
from ..pipelines import MoRePipeline, Prediction
from ..posts import Posts, Row
from .arguments import Arguments
from .output_folders import begin_scoring

NAMES = {"validation": "dev", "test": "test"}  # split -> its name in results and files


def score_splits(task: Task, args: Arguments, pipeline: MoRePipeline, splits: Mapping[str, Posts]) -> dict[str, Any]:
    """Score dev and test and write their predictions; a split without labels is only predicted.

    Returns:
        scores like `dev_f1`; if the expert reads knowledge, also its scores without, like `test_no_knowledge_f1`.
    """
    output, suffix = begin_scoring(args, pipeline.accelerator)
    results: dict[str, Any] = {}
    for split, name in NAMES.items():
        if split in splits:
            found, scores = score_posts(task, pipeline, splits[split], name, args.data.none_relation)
            results |= scores
            if pipeline.accelerator.is_main_process:
                rows = prediction_rows(task, pipeline, splits[split], found)
                write_jsonl(output / "predictions" / f"{name}{suffix}.jsonl", rows)
    return results


def score_posts(
    task: Task, pipeline: MoRePipeline, posts: Posts, name: str, none_relation: str = "None"
) -> tuple[list[Prediction], dict[str, Any]]:
    """Return an expert's predictions for posts and, if they have labels, its scores, whose names begin with `name`."""
    encoded = pipeline.preprocess(posts)
    found = pipeline.forward(encoded, f"score {name}")
    results: dict[str, Any] = {}
    if scored := is_labelled(posts, task):
        results |= {f"{name}_{key}": value for key, value in task.score(found, posts, none_relation).items()}
    results[f"{name}_cut_knowledge"] = sum(post["cut_knowledge"] for post in encoded)
    if scored and pipeline.processor.knowledge_column:
        without = pipeline.forward(pipeline.preprocess(posts, use_knowledge=False), f"score {name}")
        scores = task.score(without, posts, none_relation)
        results |= {f"{name}_no_knowledge_{key}": value for key, value in scores.items()}
    return found, results


def prediction_rows(task: Task, pipeline: MoRePipeline, posts: Posts, found: Sequence[Prediction]) -> list[Row]:
    """Return the rows of a predictions file, without `gold` if the labels are hidden."""
    rows = []
    for post, prediction in zip(posts, found, strict=True):
        row: Row = {key: post[key] for key in ("id", "text", "tokens") if key in post}
        row |= task.prediction(prediction.labels)
        if post[task.label] is not None:
            row["gold"] = post[task.label]
        rows.append(row | pipeline.postprocess(post, prediction))
    return rows
