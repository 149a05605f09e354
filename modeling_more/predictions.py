"""Define what a model predicts for a post, and how users see it: words, text and positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .tagging import tags_to_spans

MOST_SHOWN = 500  # characters of a sentence of knowledge


@dataclass
class Prediction:
    """A model's prediction for one post, or for one pair of entities.

    Attributes:
        labels: the BIOES tags of the words, or the relation.
        scores: the probability of each entity in the tags, or of each relation in the order of the labels.
        expert_weights: the weight of each expert of a mixture by name; of a gate per word, the mean over the words.
        experts: each expert's own prediction, for a mixture.
    """

    labels: Any
    scores: list[float]
    expert_weights: dict[str, float] | None = None
    experts: dict[str, Prediction] | None = None


def entities(
    words: Sequence[str], text: str | None, offsets: Sequence[Sequence[int]] | None, prediction: Prediction
) -> list[dict[str, Any]]:
    """Return the entities of one post, with spans in words and in characters of `text` (None: the joined words)."""
    if text is None or offsets is None:
        text, offsets = " ".join(words), []
        for word in words:
            begin = offsets[-1][1] + 1 if offsets else 0
            offsets.append((begin, begin + len(word)))
    found = []
    for span, score in zip(tags_to_spans(prediction.labels), prediction.scores, strict=True):
        begin, end = offsets[span.start][0], offsets[span.end - 1][1]
        found.append(
            {"type": span.type, "text": text[begin:end], "start": span.start, "end": span.end,
             "char_start": begin, "char_end": end, "score": score}
        )  # fmt: skip
    return found


def evidence(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry of knowledge as users see it: title, matched sentence, score and source.

    The sentence is the beginning of the text where none was matched. An entry that an image found also has `image`,
    the row of the corpus's table `images`.
    """
    start, end = entry.get("match_start") or 0, entry.get("match_end") or 0
    sentence = entry["text"][start:end] if end > start else entry["text"]
    if len(sentence) > MOST_SHOWN:
        sentence = sentence[: MOST_SHOWN - 1] + "…"
    found = {
        "title": entry.get("title"),
        "sentence": sentence,
        "score": entry.get("score"),
        "source": entry.get("source"),
    }
    return found | ({"image": entry["image"]} if "image" in entry else {})


def relation(
    words: Sequence[str],
    head: Sequence[int],
    tail: Sequence[int],
    prediction: Prediction,
    text: str | None = None,
    offsets: Sequence[Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Return the relation of a pair of word spans and, if the post has a text, their characters in it."""
    spans = {"head": list(head), "tail": list(tail)}
    found: dict[str, Any] = {**spans}
    if text is None or offsets is None:
        found |= {f"{name}_text": " ".join(words[start:end]) for name, (start, end) in spans.items()}
    else:
        chars = {name: [offsets[start][0], offsets[end - 1][1]] for name, (start, end) in spans.items()}
        found |= {f"{name}_chars": place for name, place in chars.items()}
        found |= {f"{name}_text": text[start:end] for name, (start, end) in chars.items()}
    return {**found, "relation": prediction.labels, "score": max(prediction.scores)}
