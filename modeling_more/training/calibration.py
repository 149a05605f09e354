"""This module fits a temperature for each expert of a mixture, and tells which expert finds labels likeliest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..mixed_experts import tempered
from ..predictions import Prediction
from .expert_outputs import Features, Mixture, gate_batch

LEAST, MOST = 0.05, 20.0  # temperatures that are tried
_PRECISION = 1e-4  # of log T


def fit_temperatures(model: Mixture, features: Features, labels: Sequence[Any], batch_size: int = 64) -> list[float]:
    """Return for each expert the temperature T at which it finds the labels likeliest (Guo et al., ICML 2017).

    Its scores s are divided by T: p_T(y) ∝ exp(s(y) / T), y being the tags of a whole post, or a relation. Above 1,
    the expert was too sure of itself. T lies between LEAST and MOST, and is 1 where no other is better.

    Args:
        features: of posts that the experts did not train on, which they read with their knowledge.
        labels: for each post, the label ids of its words, or the id of its relation.

    Raises:
        ValueError: when other models than the experts read the posts (crossfit), which tells nothing of the experts.
    """
    if features.expert_log_probs is not None:
        raise ValueError("temperatures are those of the experts: give features of posts that they read themselves")
    batches = list(_batches(features, labels, batch_size))
    with torch.no_grad():
        return [_least(_loss(expert, place, batches)) for place, expert in enumerate(model.experts)]


def _batches(features: Features, labels: Sequence[Any], size: int) -> Iterator[dict[str, Tensor]]:
    for first in range(0, len(features), size):
        yield gate_batch(features, range(first, min(first + size, len(features))), labels)


def _loss(expert: Any, place: int, batches: Sequence[dict[str, Tensor]]) -> Callable[[float], float]:
    """Return the negative log-likelihood of the labels as a function of an expert's temperature, in float64."""
    own = getattr(expert, "crf", None)

    def loss(temperature: float) -> float:
        chain = None if own is None else tempered(own, temperature, torch.device("cpu"), torch.float64)
        total = 0.0
        for batch in batches:
            scores, labels = batch["expert_logits"][:, place].double() / temperature, batch["labels"]
            if chain is not None:
                total -= float(chain.log_likelihood(scores, labels, batch["word_mask"]).sum())
            else:
                found = scores.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
                total -= float((found * batch["word_mask"] if "word_mask" in batch else found).sum())
        return total

    return loss


def _least(loss: Callable[[float], float]) -> float:
    """Return the temperature of the least loss by golden section over log T: in 1 / T the loss is convex."""
    ratio = (math.sqrt(5) - 1) / 2
    low, high = math.log(LEAST), math.log(MOST)
    inner = [high - ratio * (high - low), low + ratio * (high - low)]
    values = [loss(math.exp(one)) for one in inner]
    while high - low > _PRECISION:
        if values[0] <= values[1]:
            high, inner[1], values[1] = inner[1], inner[0], values[0]
            inner[0] = high - ratio * (high - low)
            values[0] = loss(math.exp(inner[0]))
        else:
            low, inner[0], values[0] = inner[0], inner[1], values[1]
            inner[1] = low + ratio * (high - low)
            values[1] = loss(math.exp(inner[1]))
    best = min(range(2), key=values.__getitem__)
    return math.exp(inner[best]) if values[best] < loss(1.0) else 1.0


@contextmanager
def at_temperatures(model: Mixture, temperatures: Sequence[float] | None) -> Iterator[None]:
    """Within the block, let each expert of a mixture speak at its temperature, or (None) as it is without one.

    with at_temperatures(model, fit_temperatures(model, held_out, labels)):
        calibrated = [pipeline.read(*one) for one in mixed(model, features)]
    """
    acting = model.config.temperatures
    model.config.temperatures = None if temperatures is None else list(temperatures)
    try:
        yield
    finally:
        model.config.temperatures = acting


def label_likelihoods(model: Mixture, features: Features, labels: Sequence[Any], batch_size: int = 64) -> Tensor:
    """Return how likely each reader of a mixture finds the labels of each post, [P, Z].

    It is Σ_i log q_z(y*_i) over the words, q_z being the marginals that a mixture weighs, or log p_z(y*) of relations.
    """
    found, number = [], len(model.config.readers)
    with torch.no_grad():
        for batch in _batches(features, labels, batch_size):
            mask = batch.get("word_mask")
            mask = None if mask is None else mask.to(model.device)
            log_probs = model.expert_log_probs(batch["expert_logits"].to(model.device), mask)[:, :number]
            gold = batch["labels"].to(model.device).unsqueeze(1).expand(log_probs.shape[:-1]).unsqueeze(-1)
            likely = log_probs.gather(-1, gold).squeeze(-1)
            found.append((likely if mask is None else (likely * mask.unsqueeze(1)).sum(-1)).cpu())
    return torch.cat(found) if found else torch.zeros(0, number)


def oracle(likelihoods: Tensor, said: Sequence[Sequence[Prediction]]) -> list[Prediction]:
    """Return for each post what the reader says that finds its labels likeliest, of equal ones the first.

    No gate can know this: it is what a gate per post can reach.

    Args:
        likelihoods: see `label_likelihoods`.
        said: the predictions of each reader.
    """
    return [said[expert][post] for post, expert in enumerate(likelihoods.argmax(1).tolist())]
