"""This module trains a mixture's gate on stored outputs, and decides whether it is better than the plain average."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ..metrics import paired_bootstrap, standard_error
from .arguments import MixtureArguments
from .checkpoints import TrainingState
from .expert_outputs import Features, Mixture, gate_batch

logger = logging.getLogger(__name__)


class DevResult(NamedTuple):
    """A dev F1 in percent, and the counts per post that it is computed from, int [posts, 3]."""

    f1: float
    counts: np.ndarray


def train_gate(
    model: Mixture,
    features: Features,
    labels: Sequence[Any],
    evaluate: Callable[[], DevResult],
    args: MixtureArguments,
    seed: int,
    progress: bool = True,
) -> TrainingState:
    """Train the gate on the experts' stored outputs; the model keeps the epoch with the best dev score.

    An untrained gate is the plain average of the experts. It stays (epoch 0) unless the best epoch beats it on dev by
    more than a standard error, since the best of forty epochs looks better by chance alone (the one-standard-error
    rule: Breiman et al., Classification and Regression Trees, 1984, section 3.4.3). Every process does the same here.
    """
    torch.manual_seed(seed)  # for the image dropout, which must not depend on whether the cache was filled
    text = torch.cat([one if one.dim() == 2 else one[None] for one in features.text])
    images = None if features.images is None else features.images[0][features.images[1]]
    model.gate.standardise(text, images)
    optimizer = torch.optim.AdamW(model.gate.parameters(), lr=args.gate_learning_rate, weight_decay=0.01)
    average, untrained = evaluate(), deepcopy(model.gate.state_dict())
    best, best_result = untrained, average
    result = TrainingState([{"epoch": 0, "dev_f1": average.f1}], average.f1)
    for epoch in tqdm(range(args.gate_epochs), desc="gate", disable=not progress):
        began = time.perf_counter()
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(features), generator=generator).tolist()
        model.train()
        total = 0.0
        for first in range(0, len(order), args.gate_batch_size):
            rows = order[first : first + args.gate_batch_size]
            batch = {key: value.to(model.device) for key, value in gate_batch(features, rows, labels).items()}
            loss = model(**batch).loss
            loss.backward()
            norm = torch.nn.utils.get_total_norm([one.grad for one in model.gate.parameters() if one.grad is not None])
            if not (loss.isfinite() and norm.isfinite()):
                raise FloatingPointError(
                    f"loss or gradient of the gate became NaN or infinite in its epoch {epoch + 1}, at batch "
                    f"{first // args.gate_batch_size + 1}: choose a smaller --gate_learning_rate"
                )
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item() * len(rows)
        found = evaluate()
        seconds = round(time.perf_counter() - began, 2)
        result.history.append({"epoch": epoch + 1, "loss": total / len(order), "dev_f1": found.f1, "seconds": seconds})
        if found.f1 > best_result.f1:
            best, best_result, result.best_epoch = deepcopy(model.gate.state_dict()), found, epoch + 1
    if result.best_epoch:
        gain, low, high = paired_bootstrap(best_result.counts, average.counts)
        if gain <= standard_error(low, high):
            logger.info("the gate's gain on dev, %.2f, may be chance: the plain average stays", gain)
            best, best_result, result.best_epoch = untrained, average, 0
    result.best_score = best_result.f1
    model.gate.load_state_dict(best)
    return result
