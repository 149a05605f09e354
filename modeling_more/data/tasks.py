"""Define all that differs between the two tasks, entities and relations: readers, models and scores."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..metrics import (
    entity_calibration,
    entity_counts,
    entity_scores,
    relation_calibration,
    relation_counts,
    relation_scores,
)
from ..modeling_mixture import MoReMixtureForRelationExtraction, MoReMixtureForTokenClassification
from ..modeling_more import MoReForRelationExtraction, MoReForTokenClassification
from ..naming import nearest
from ..pipelines import EntityPipeline, MoRePipeline, RelationPipeline
from ..posts import Posts, Row
from ..predictions import Prediction
from ..tagging import bio_to_bioes, bioes_labels, entity_types, spans_to_bio, tags_to_spans
from .entity_formats import check_post, read_labelled, read_posts
from .relation_formats import ENTITY_DATA, check_pair, read_pairs, read_relations
from .rows import check_tag, clean_label
from .text_files import RELATION_DATA

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A task, described by all in which it differs from the other one."""

    script: str  # trains models for it
    pipeline_tag: str  # its name on the Hub
    markers: bool  # whether entities are marked in the text, as the pairs of relations are
    label: str  # column of rows that holds the labels
    columns: tuple[tuple[str, ...], ...]  # alternative sets of columns; rows need all of one set
    foreign: frozenset[str]  # columns of the other task, which are refused with this message
    foreign_data: str
    read: Callable[..., Posts]  # labelled file: (path, labels or None, splitter, knowledge column, columns=) -> rows
    read_unlabelled: Callable[..., Posts]  # posts to predict: (path, splitter, knowledge column, columns) -> rows
    check: Callable[..., Row]  # a row of any other source, see `check_post`
    check_label: Callable[[str, str, None], str]  # (label, place, None) -> the label in its usual form
    types: Callable[[Iterable[str]], list[str]]  # labels -> the entity types or relations in them
    # (types, name of the class of no relation) -> the model's labels in order
    labels: Callable[[Sequence[str], str], list[str]]
    # (labels of a row, label2id) -> the label ids that a mixture learns from
    label_ids: Callable[[Any, dict[str, int]], Any]
    model_class: Any
    mixture_class: Any
    pipeline_class: type[MoRePipeline]
    # (predicted labels, gold labels, name of the class of no relation) -> scores, "f1" among them
    scores: Callable[[Sequence[Any], Sequence[Any], str], dict[str, Any]]
    # the same -> numbers of correct, predicted and gold items, int [posts, 3], for the bootstrap
    counts: Callable[[Sequence[Any], Sequence[Any], str], np.ndarray]
    # (predictions, gold labels) -> how far their scores are true, see `metrics.calibration`
    calibrations: Callable[[Sequence[Prediction], Sequence[Any]], dict[str, Any]]
    shown: tuple[str, ...]  # scores that are logged at the end, besides dev_f1 and test_f1
    prediction: Callable[[Any], Row]  # labels -> more fields of a row in the predictions file, besides the pipeline's

    def score(self, found: Sequence[Prediction], posts: Posts, none_relation: str) -> dict[str, Any]:
        """Return the scores of predictions for labelled posts."""
        return self.scores([one.labels for one in found], [post[self.label] for post in posts], none_relation)

    def count(self, found: Sequence[Prediction], posts: Posts, none_relation: str) -> np.ndarray:
        """Return the numbers of correct, predicted and gold items of each post, int [posts, 3]."""
        return self.counts([one.labels for one in found], [post[self.label] for post in posts], none_relation)

    def calibration(self, found: Sequence[Prediction], posts: Posts) -> dict[str, Any]:
        """Return how far the scores of predictions are true: calibration_error, predicted and bins."""
        return self.calibrations(found, [post[self.label] for post in posts])


def relation_labels(types: Sequence[str], none_relation: str) -> list[str]:
    """Return the relations with the class of no relation first; warn if the data do not have it."""
    if none_relation in types:
        return [none_relation, *(label for label in types if label != none_relation)]
    if types:  # otherwise all labels are hidden
        near = nearest(none_relation, types)
        logger.warning("no pair is labelled %s: F1 counts every label (see --none_relation)%s", none_relation, near)
    return list(types)


ENTITIES = Task(
    script="run_ner.py",
    pipeline_tag="token-classification",
    markers=False,
    label="ner_tags",
    columns=(("tokens", "ner_tags"), ("tokens", "tags"), ("text", "spans")),
    foreign=frozenset({"relation", "h", "head"}),
    foreign_data=RELATION_DATA,
    read=read_labelled,
    read_unlabelled=read_posts,
    check=check_post,
    check_label=check_tag,
    types=entity_types,
    labels=lambda types, _: bioes_labels(types),
    label_ids=lambda tags, label2id: [label2id[tag] for tag in bio_to_bioes(tags)],
    model_class=MoReForTokenClassification,
    mixture_class=MoReMixtureForTokenClassification,
    pipeline_class=EntityPipeline,
    scores=lambda found, gold, _: entity_scores(found, gold),
    counts=lambda found, gold, _: entity_counts(found, gold),
    calibrations=lambda found, gold: entity_calibration(
        [one.labels for one in found], [one.scores for one in found], gold
    ),
    shown=("test_strict_f1",),
    prediction=lambda tags: {"tags": spans_to_bio(tags_to_spans(tags), len(tags))},  # in BIO, like the gold tags
)
RELATIONS = Task(
    script="run_re.py",
    pipeline_tag="text-classification",
    markers=True,
    label="relation",
    columns=(("tokens", "head", "tail", "relation"), ("text", "head", "tail", "relation")),
    foreign=frozenset({"ner_tags"}),
    foreign_data=ENTITY_DATA,
    read=read_relations,
    read_unlabelled=read_pairs,
    check=check_pair,
    check_label=lambda label, where, _: clean_label(label, where),
    types=lambda labels: list(dict.fromkeys(labels)),
    labels=relation_labels,
    label_ids=lambda relation, label2id: label2id[relation],
    model_class=MoReForRelationExtraction,
    mixture_class=MoReMixtureForRelationExtraction,
    pipeline_class=RelationPipeline,
    scores=relation_scores,
    counts=relation_counts,
    calibrations=lambda found, gold: relation_calibration(
        [one.labels for one in found], [max(one.scores) for one in found], gold
    ),
    shown=("test_accuracy", "test_macro_f1"),
    prediction=lambda relation: {"relation": relation},
)
