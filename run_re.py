#!/usr/bin/env python
r"""Relations between marked entities with retrieved knowledge: train, score, predict, publish.

accelerate launch run_re.py --dataset mnre --data_dir MNRE --retrieval none

accelerate launch run_re.py --train_file train.jsonl --validation_file dev.jsonl \
    --retrieval text --knowledge wiki.jsonl

accelerate launch run_re.py --dataset mnre --data_dir MNRE --retrieval moe --experts out/text out/image

python run_re.py --model_name_or_path out --do_predict --predict_file pairs.jsonl --output_dir predicted
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import dataset_scripts
from modeling_more.data.relation_formats import read_pairs
from modeling_more.data.sources import RELATIONS, Posts
from modeling_more.metrics import relation_counts, relation_scores
from modeling_more.modeling_mixture import MoReMixtureForRelationExtraction
from modeling_more.modeling_more import MoReForRelationExtraction
from modeling_more.naming import nearest
from modeling_more.pipelines import predict_relations, relation
from modeling_more.training.arguments import DataArguments, ModelArguments
from modeling_more.training.runs import run
from modeling_more.training.tasks import Task

logger = logging.getLogger("run_re")


class RelationTask(Task):
    """Relations: pairs of entities classified, class 0 standing for none."""

    script = "run_re.py"
    pipeline_tag = "text-classification"
    schema = RELATIONS
    model_class = MoReForRelationExtraction
    mixture_class = MoReMixtureForRelationExtraction
    markers = True
    shown = ("test_accuracy", "test_macro_f1")

    def labels(self, types: Sequence[str], data: DataArguments) -> list[str]:
        if data.none_relation not in types:
            if types:  # else all labels are hidden
                near = nearest(data.none_relation, types)
                logger.warning(
                    "no pair is labelled %s: F1 counts every label (see --none_relation)%s", data.none_relation, near
                )
            return list(types)
        return [data.none_relation, *(label for label in types if label != data.none_relation)]

    def model_options(
        self, args: ModelArguments, data: DataArguments, posts: Posts, labels: list[str]
    ) -> dict[str, Any]:
        if not args.class_weights:
            return {}
        found = Counter(post["relation"] for post in posts)
        weights = [max(found[label], 1) ** -0.5 for label in labels]
        scale = len(posts) / sum(weight * found[label] for weight, label in zip(weights, labels, strict=True))
        return {"class_weights": [weight * scale for weight in weights]}

    def read_posts(self, path: str, splitter: str, column: str, columns: Sequence[int] | None = None) -> Posts:
        return read_pairs(path, splitter, column, columns)

    predict = staticmethod(predict_relations)

    def score(self, model: Any, found: Sequence[list[float]], posts: Posts, data: DataArguments) -> dict[str, Any]:
        return relation_scores(best(model, found), [post["relation"] for post in posts], data.none_relation)

    def counts(self, model: Any, found: Sequence[list[float]], posts: Posts, data: DataArguments) -> Any:
        return relation_counts(best(model, found), [post["relation"] for post in posts], data.none_relation)

    def record(self, model: Any, found: list[float], post: dict[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = {key: post[key] for key in ("id", "text", "tokens") if key in post}
        row |= relation(
            post["tokens"], post["head"], post["tail"], found, model.config.id2label, post.get("text"),
            post.get("offsets"),
        )  # fmt: skip
        return row if post["relation"] is None else row | {"gold": post["relation"]}


def best(model: Any, found: Sequence[list[float]]) -> list[str]:
    """The most probable relation of each pair."""
    return [model.config.id2label[max(range(len(row)), key=row.__getitem__)] for row in found]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run with these arguments (default: the command line's); returns what `all_results.json` holds."""
    return run(
        RelationTask(), argv, str(__doc__), dataset_scripts.load, dataset_scripts.RELATION_NAMES, dataset_scripts.NAMES
    )


if __name__ == "__main__":
    main()
