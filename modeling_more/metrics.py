"""Score entities and relations by micro F1, as `evaluate.Metric` modules, and how true their probabilities are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from seqeval.metrics import classification_report

from .tagging import Span, tags_to_spans


def entity_scores(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Score the entities of tagged sentences (BIO or BIOES) with seqeval.

    Gold is read as seqeval reads it (a stray I- opens an entity); `strict_f1` takes only those that a B- opens.

    Returns:
        f1, precision, recall, strict_f1 in percent, and f1_per_type: {type: {precision, recall, f1, support}}.

    Raises:
        ValueError: when a prediction is not as long as its reference.
    """
    for index, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        if len(prediction) != len(reference):
            raise ValueError(f"sentence {index} has {len(reference)} tags and {len(prediction)} predictions")
    # the report can't be made for sentences without any entity
    report = {}
    if any(tag != "O" for sentence in (*predictions, *references) for tag in sentence):
        report = classification_report(references, predictions, output_dict=True, zero_division=0)
    total = report.pop("micro avg", {"precision": 0.0, "recall": 0.0, "f1-score": 0.0})
    per_type = {
        type_: {
            "precision": 100 * float(row["precision"]),
            "recall": 100 * float(row["recall"]),
            "f1": 100 * float(row["f1-score"]),
            "support": int(row["support"]),
        }
        for type_, row in report.items()
        if not type_.endswith(" avg")
    }
    return {
        "f1": 100 * float(total["f1-score"]),
        "precision": 100 * float(total["precision"]),
        "recall": 100 * float(total["recall"]),
        "strict_f1": _strict_f1(predictions, references),
        "f1_per_type": per_type,
    }


def _strict_f1(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    gold = _numbered([tags_to_spans(tags, strict=True) for tags in references])
    found = _numbered([tags_to_spans(tags) for tags in predictions])
    return 200 * len(gold & found) / (len(gold) + len(found)) if gold or found else 0.0


def _numbered(sentences: Sequence[Sequence[Span]]) -> set[tuple[int, Span]]:
    return {(index, span) for index, spans in enumerate(sentences) for span in spans}


class EntityF1(evaluate.Metric):
    """The metric `EntityF1().compute(predictions=[["B-PER"]], references=[["B-PER"]])`, see `entity_scores`."""

    def _info(self) -> evaluate.MetricInfo:
        tags = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description="Micro precision, recall and F1 (percent) over exact (start, end, type).",
            citation="@misc{seqeval, title={seqeval}, author={Hiroki Nakayama}, year={2018}}",
            features=datasets.Features({"predictions": tags, "references": tags}),
        )

    def _compute(self, predictions: list[list[str]], references: list[list[str]]) -> dict[str, Any]:
        return entity_scores(predictions, references)


def relation_scores(predictions: Sequence[str], references: Sequence[str], none: str = "None") -> dict[str, Any]:
    """Score classified pairs; `none` names the class of pairs without a relation.

    Returns:
        f1, precision, recall: micro, over all relations except `none`, as MNRE's published systems print them; a
        relation predicted for a pair that has another one is both a false positive and a false negative. macro_f1:
        mean of the F1 of the relations that occur in the references. accuracy: over all pairs. All in percent; and
        f1_per_type: {relation: {precision, recall, f1, support}}.

    Raises:
        ValueError: when the two are not of the same length.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(references)} references and {len(predictions)} predictions")
    right = Counter(gold for gold, found in zip(references, predictions, strict=True) if gold == found)
    gold, found = Counter(references), Counter(predictions)
    relations = [label for label, _ in gold.most_common() if label != none]
    total = {label for label in gold | found if label != none}
    per_type = {label: _f1(right[label], found[label], gold[label]) | {"support": gold[label]} for label in relations}
    micro = _f1(*(sum(counts[label] for label in total) for counts in (right, found, gold)))
    return {
        **micro,
        "macro_f1": sum(row["f1"] for row in per_type.values()) / len(per_type) if per_type else 0.0,
        "accuracy": 100 * right.total() / len(references) if references else 0.0,
        "f1_per_type": per_type,
    }


def _f1(right: int, found: int, gold: int) -> dict[str, float]:
    return {
        "f1": 200 * right / (found + gold) if found + gold else 0.0,
        "precision": 100 * right / found if found else 0.0,
        "recall": 100 * right / gold if gold else 0.0,
    }


class RelationF1(evaluate.Metric):
    """The metric `RelationF1().compute(predictions=["None"], references=["/a"])`, see `relation_scores`."""

    def _info(self) -> evaluate.MetricInfo:
        name = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Micro precision, recall and F1 (percent) over relations other than None, accuracy over all.",
            citation="",
            features=datasets.Features({"predictions": name, "references": name}),
        )

    def _compute(self, predictions: list[str], references: list[str], none: str = "None") -> dict[str, Any]:
        return relation_scores(predictions, references, none)


def entity_counts(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Count each post's entities [posts, 3]: those that are right, predicted, and in the reference."""
    spans = [(set(tags_to_spans(p)), set(tags_to_spans(r))) for p, r in zip(predictions, references, strict=True)]
    return np.array([(len(found & gold), len(found), len(gold)) for found, gold in spans]).reshape(-1, 3)


def relation_counts(predictions: Sequence[str], references: Sequence[str], none: str = "None") -> np.ndarray:
    """Count each pair's relations other than `none` [pairs, 3]: right, predicted, in the reference."""
    pairs = zip(predictions, references, strict=True)
    return np.array([(p == r != none, p != none, r != none) for p, r in pairs], dtype=int).reshape(-1, 3)


def entity_calibration(
    predictions: Sequence[Sequence[str]], scores: Sequence[Sequence[float]], references: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Compare the scores of predicted entities with whether exactly these are in the reference, see `calibration`.

    Args:
        scores: for each sentence, the scores of its entities in the order of `tags_to_spans`.
    """
    right = []
    for prediction, reference in zip(predictions, references, strict=True):
        gold = set(tags_to_spans(reference))
        right.append([span in gold for span in tags_to_spans(prediction)])
    pairs = [pair for row in zip(scores, right, strict=True) for pair in zip(*row, strict=True)]
    return calibration([score for score, _ in pairs], [one for _, one in pairs])


def relation_calibration(
    predictions: Sequence[str], scores: Sequence[float], references: Sequence[str]
) -> dict[str, Any]:
    """Compare the scores of predicted relations with whether they are right, see `calibration`.

    Pairs that are predicted to have no relation count like all others: they come with a score, too, and a threshold
    on it is wrong for them as well if the score is.

    Args:
        scores: the probability of each predicted relation.
    """
    return calibration(scores, [found == gold for found, gold in zip(predictions, references, strict=True)])


def calibration(scores: Sequence[float], right: Sequence[bool], bins: int = 10) -> dict[str, Any]:
    """Compare how sure a model is of its predictions with how often it is right, in bins of equal width.

    Returns:
        calibration_error: the expected calibration error in percent (Guo et al., ICML 2017): |mean score − share of
        right ones| of each bin, averaged over the predictions; 0 where nothing is predicted. predicted: their number.
        bins: {from, to, number, score, right} of each bin, mean score and share being None where it is empty. A score
        on the border of two bins belongs to the upper one.

    Raises:
        ValueError: when the two are not of the same length, or a score is no probability.
    """
    if len(scores) != len(right):
        raise ValueError(f"{len(scores)} scores for {len(right)} predictions")
    sure, hits = np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=np.float64)
    # a sum of rounded products may lie above 1 by a hair
    if not ((sure >= 0) & (sure <= 1 + 1e-4)).all():
        raise ValueError("a score is no probability: it must lie between 0 and 1")
    borders = np.arange(bins + 1) / bins
    places = np.clip(np.searchsorted(borders, sure, side="right") - 1, 0, bins - 1)
    rows: list[dict[str, Any]] = []
    error = 0.0
    for place in range(bins):
        chosen = places == place
        number = int(chosen.sum())
        score, share = (float(sure[chosen].mean()), float(hits[chosen].mean())) if number else (None, None)
        if score is not None and share is not None:
            error += number * abs(score - share)
        row = {"from": float(borders[place]), "to": float(borders[place + 1])}
        rows.append({**row, "number": number, "score": score, "right": share})
    return {"calibration_error": 100 * error / max(1, len(sure)), "predicted": len(sure), "bins": rows}


def paired_bootstrap(
    counts: np.ndarray, other: np.ndarray, samples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Return micro F1 (percent) of one system minus that of another on the same posts, with its 95 % interval.

    Posts are drawn with replacement, the same ones for both systems (Koehn, EMNLP 2004).

    Args:
        counts, other: counts [posts, 3] of both systems, see `entity_counts`.

    Returns:
        the difference on all posts, and the 2.5 and 97.5 percentiles over the samples.
    """
    drawn = np.random.default_rng(seed).integers(len(counts), size=(samples, len(counts)))
    times = np.zeros((samples, len(counts)), dtype=np.int64)
    np.add.at(times, (np.arange(samples)[:, None], drawn), 1)

    def f1(sums: np.ndarray) -> np.ndarray:
        found: np.ndarray = 200 * sums[:, 0] / np.maximum(1, sums[:, 1] + sums[:, 2])
        return found

    differences = f1(times @ counts) - f1(times @ other)
    whole = f1(counts.sum(0, keepdims=True)) - f1(other.sum(0, keepdims=True))
    low, high = np.percentile(differences, (2.5, 97.5))
    return float(whole[0]), float(low), float(high)


def standard_error(low: float, high: float) -> float:
    """Return the standard error that a 95 % interval of `paired_bootstrap` tells of, as of a normal distribution."""
    return (high - low) / (2 * 1.96)
