"""This module holds the parts of the training loop: batches, parameter groups, learning rates and epoch losses."""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR

from ..data_collator import TEXT_ONLY, BatchShare, LengthBatchSampler
from ..positions import position_limit
from .arguments import TrainingArguments

logger = logging.getLogger(__name__)


def make_sampler(posts: Sequence[Mapping[str, Any]], args: TrainingArguments, processes: int) -> LengthBatchSampler:
    """Return the sampler of encoded posts, which gives every process the same number of batches."""
    views = [post.get("experts") or [post] for post in posts]
    return LengthBatchSampler(
        [sum(len(ids) for view in one for ids in view["input_ids"]) for one in views],
        args.per_device_train_batch_size, args.max_tokens_per_batch,
        seed=args.seed, by_length=args.group_by_length, multiple_of=processes,
    )  # fmt: skip


def batches_per_step(accelerator: Accelerator) -> int:
    """Return the number of batches in an optimizer step, over all processes."""
    # not from the options, which `accelerate launch` may override
    return accelerator.num_processes * accelerator.gradient_accumulation_steps


def steps_of_epochs(sampler: LengthBatchSampler, epochs: int, accelerator: Accelerator) -> list[int]:
    """Return the number of optimizer steps of each epoch."""
    return [math.ceil(batches / batches_per_step(accelerator)) for batches in sampler.batches_in(epochs)]


def mean_class_weight(class_weights: Sequence[float] | None, pairs: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean class weight of all encoded pairs, or None if there are no class weights.

    A loss divided by it is a sum over pairs, whatever their batch; one divided by the weights of its own batch or step
    (as `cross_entropy` does) lets a pair weigh less beside pairs of rare classes.
    """
    return None if class_weights is None else sum(class_weights[pair["label"]] for pair in pairs) / len(pairs)


def check_lengths(model: Any, posts: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError, before training starts, for the first post with a row longer than the encoder reads."""
    limit = position_limit(model.encoder)
    for number, post in enumerate(posts):
        rows = (row for view in ("", TEXT_ONLY) for row in post.get(f"{view}input_ids", ()))
        if limit is not None and (longest := max(map(len, rows), default=0)) > limit:
            raise ValueError(
                f"post {number} has {longest} sub-tokens, the encoder reads at most {limit}: encode the posts by a "
                f"processor with max_length={limit}"
            )


def parameter_groups(model: torch.nn.Module, args: TrainingArguments) -> list[dict[str, Any]]:
    """Return groups of parameters: the CRF's with its own learning rate, all others with the general one."""
    trained = [(f".{name}", parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    crf = [parameter for name, parameter in trained if ".crf." in name]  # also those of a mixture's experts
    others = [parameter for name, parameter in trained if ".crf." not in name]
    groups = [{"params": others, "lr": args.learning_rate}]
    if crf:
        rate = args.learning_rate if args.crf_learning_rate is None else args.crf_learning_rate
        groups.append({"params": crf, "lr": rate})
    return groups


def learning_rate_factor(steps: Sequence[int], args: TrainingArguments) -> Callable[[int], float]:
    """Return a function from an optimizer step to the factor of the learning rates there.

    Decay `"epoch"` is that of the authors' framework (`LinearLR` stepped once an epoch): epoch e of E, from 0, has the
    factor 1 - e/E throughout.

    Args:
        steps: the number of optimizer steps of each epoch.
    """
    total, ends = sum(steps), list(accumulate(steps))
    warmup = round(args.warmup_ratio * total)

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        if args.lr_decay == "epoch":
            return 1 - min(bisect_right(ends, step), len(steps)) / len(steps)
        return max(0.0, (total - step) / max(1, total - warmup))

    return factor


def follow_schedule(schedule: LambdaLR, step: int, epochs: int) -> None:
    """Move a schedule to an optimizer step, and set the optimizer's rates to those at that step.

    A checkpoint restores the step and rates of its own run, which may have had other epochs or processes.
    """
    schedule.last_epoch = step
    factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
    rates = [float(base * factor) for base, factor in zip(schedule.base_lrs, factors, strict=True)]
    if rates != (old := schedule.get_last_lr()):
        logger.warning(
            "the schedule is now that of %d epochs: the next step has the rate %.3g, that of the checkpoint's run was "
            "%.3g there", epochs, rates[0], old[0],
        )  # fmt: skip
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


class EpochLoss:
    """A running mean of each loss over an epoch's posts."""

    def __init__(self, epoch: int, batches: int):
        self.epoch, self.last = epoch, batches
        self.sums: dict[str, torch.Tensor] = {}
        self.posts = self.batches = 0

    def add(self, output: Any, share: BatchShare) -> float | None:
        """Add the losses of a batch; return the mean so far, at every twentieth and the last: it waits for the device.

        Raises:
            FloatingPointError: if the mean is not finite.
        """
        for key in ("loss", "nll_loss", "kl_loss"):
            if output.get(key) is not None:
                self.sums[key] = self.sums.get(key, 0) + output[key].detach().float() * share.posts
        self.posts += share.posts
        self.batches += 1
        return self._so_far() if self.batches % 20 == 1 or self.batches == self.last else None

    def _so_far(self) -> float:
        loss = self.sums["loss"].item()  # not finite as soon as one batch was not
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss} in epoch {self.epoch + 1}, by batch {self.batches}")
        return loss / max(self.posts, 1)

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over all processes; every process must call this."""
        self._so_far()
        posts = accelerator.reduce(torch.tensor(self.posts, device=accelerator.device), "sum").item()
        return {key: accelerator.reduce(value, "sum").item() / posts for key, value in self.sums.items()}
