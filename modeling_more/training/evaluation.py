"""Scores of a split with its knowledge and without, and the file of its predictions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.sources import is_labelled
from ..data.tasks import Task
from ..files import write_jsonl
from ..pipelines import MoRePipeline, Prediction
from ..posts import Posts, Row
from .arguments import Arguments
from .output_folders import forget_predictions, suffix_beside_record

logger = logging.getLogger(__name__)

NAMES = {"validation": "dev", "test": "test"}  # of the scored splits in results and files


def score_splits(task: Task, args: Arguments, pipeline: MoRePipeline, splits: Mapping[str, Posts]) -> dict[str, Any]:
    """Score dev and test, and write what is said of their posts; a split without labels is predicted alone.

    Returns:
        scores like `dev_f1`, and `test_no_knowledge_f1` of an expert that reads knowledge, where it reads none.
    """
    output, suffix = Path(args.training.output_dir), suffix_beside_record(args)
    if pipeline.accelerator.is_main_process and not suffix:
        forget_predictions(output, args.training.do_train)
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
    """Return what an expert says of labelled posts, and its scores, with knowledge and without where it reads any.

    Args:
        name: what the scores begin with.
        none_relation: the class of pairs without a relation, which F1 leaves out.
    """
    scored = is_labelled(posts, task)
    results: dict[str, Any] = {}
    found = {}
    for prefix, use_knowledge in {"": True, "no_knowledge_": False}.items():
        if not use_knowledge and not (pipeline.processor.knowledge_column and scored):
            continue
        encoded = pipeline.preprocess(posts, use_knowledge)
        found[prefix] = pipeline.forward(encoded, f"score {name}")
        if scored:
            scores = task.score(found[prefix], posts, none_relation)
            results |= {f"{name}_{prefix}{key}": value for key, value in scores.items()}
        if use_knowledge:
            results[f"{name}_cut_knowledge"] = sum(post["cut_knowledge"] for post in encoded)
    return found[""], results


def prediction_rows(task: Task, pipeline: MoRePipeline, posts: Posts, found: Sequence[Prediction]) -> list[Row]:
    """Return the rows of a predictions file, without `gold` where the labels are hidden."""
    rows = []
    for post, prediction in zip(posts, found, strict=True):
        row: Row = {key: post[key] for key in ("id", "text", "tokens") if key in post}
        row |= task.prediction(prediction.labels)
        if post[task.label] is not None:
            row["gold"] = post[task.label]
        rows.append(row | pipeline.postprocess(post, prediction))
    return rows
