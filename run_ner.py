#!/usr/bin/env python
r"""Named entities with retrieved knowledge: train, score, predict, publish.

accelerate launch run_ner.py --dataset twitter17 --retrieval text

accelerate launch run_ner.py --train_file train.jsonl --validation_file dev.jsonl \
    --retrieval text --knowledge wiki.jsonl

accelerate launch run_ner.py --dataset twitter17 --retrieval moe --experts out/text out/image

python run_ner.py --model_name_or_path out --do_predict --predict_file posts.jsonl --output_dir predicted
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dataset_scripts
from modeling_more.data.entity_formats import read_posts
from modeling_more.data.sources import ENTITIES, Posts
from modeling_more.metrics import entity_counts, entity_scores
from modeling_more.modeling_mixture import MoReMixtureForTokenClassification
from modeling_more.modeling_more import MoReForTokenClassification
from modeling_more.pipelines import entities, predict_tags
from modeling_more.tagging import bioes_labels, spans_to_bio, tags_to_spans
from modeling_more.training.arguments import DataArguments, ModelArguments
from modeling_more.training.runs import run
from modeling_more.training.tasks import Task

Tags = tuple[list[str], list[float]]  # of a post, and the probability of each entity that they hold


class EntityTask(Task):
    """Named entities: words tagged in BIOES."""

    script = "run_ner.py"
    pipeline_tag = "token-classification"
    schema = ENTITIES
    model_class = MoReForTokenClassification
    mixture_class = MoReMixtureForTokenClassification
    shown = ("test_strict_f1",)

    def labels(self, types: Sequence[str], data: DataArguments) -> list[str]:
        return bioes_labels(types)

    def model_options(
        self, args: ModelArguments, data: DataArguments, posts: Posts, labels: list[str]
    ) -> dict[str, Any]:
        options = ("head", "kl_target_transitions", "word_dropout")
        return {name: getattr(args, name) for name in options}

    def read_posts(self, path: str, splitter: str, column: str, columns: Sequence[int] | None = None) -> Posts:
        return read_posts(path, splitter, column, columns)

    predict = staticmethod(predict_tags)

    def score(self, model: Any, found: Sequence[Tags], posts: Posts, data: DataArguments) -> dict[str, Any]:
        return entity_scores([tags for tags, _ in found], [post["ner_tags"] for post in posts])

    def counts(self, model: Any, found: Sequence[Tags], posts: Posts, data: DataArguments) -> Any:
        return entity_counts([tags for tags, _ in found], [post["ner_tags"] for post in posts])

    def record(self, model: Any, found: Tags, post: dict[str, Any]) -> dict[str, Any]:
        tags, scores = found
        row: dict[str, Any] = {key: post[key] for key in ("id", "text", "tokens") if key in post}
        row["tags"] = spans_to_bio(tags_to_spans(tags), len(tags))  # in BIO, as the gold ones
        if post["ner_tags"] is not None:
            row["gold"] = post["ner_tags"]
        return row | {"entities": entities(post["tokens"], tags, scores, post.get("text"), post.get("offsets"))}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run with these arguments (default: the command line's); returns what `all_results.json` holds."""
    return run(
        EntityTask(), argv, str(__doc__), dataset_scripts.load, dataset_scripts.NAMES, dataset_scripts.RELATION_NAMES
    )


if __name__ == "__main__":
    main()
