"""This module holds the parts of the training loop: batches, parameter groups, learning rates, an epoch's steps."""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.optim.lr_scheduler import LambdaLR

from ..data_collator import TEXT_ONLY, BatchShare, LengthBatchSampler
from ..positions import embeddings_of, position_limit
from .arguments import TrainingArguments
from .checkpoints import TrainingState

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


def check_rows(model: Any, posts: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError, before training starts, for the first post with a row that the encoder can't read."""
    limit, embeddings = position_limit(model.encoder), embeddings_of(model.encoder)
    for number, post in enumerate(posts):
        rows = [row for view in ("", TEXT_ONLY) for row in post.get(f"{view}input_ids", ())]
        if embeddings is not None and (largest := max(map(max, rows), default=0)) >= embeddings:
            raise ValueError(
                f"post {number} has the sub-token id {largest}, the encoder has {embeddings} embeddings: encode the "
                "posts by the processor of this model"
            )
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


class EpochSteps:
    """The optimizer steps of an epoch: their mean losses, and a guard that lets none act that is not finite.

    A loss or gradient that is NaN or infinite on one process makes the step leave all weights, moments and counts as
    they are, on all processes. A fused optimizer reads that from the device, as it does for a GradScaler: nobody waits
    for the device but at every twentieth batch, and at the last, where such steps end the training or are counted.

    Args:
        sampler: the sampler of the epoch's batches.
        state: what came before.
        posts: what the sampler's rows are the numbers of; posts with an `id` are named by it.
    """

    def __init__(
        self, accelerator: Accelerator, model: torch.nn.Module, optimizer: Any, sampler: LengthBatchSampler,
        state: TrainingState, args: TrainingArguments, posts: Sequence[Mapping[str, Any]],
    ):  # fmt: skip
        self.accelerator, self.model, self.optimizer, self.sampler = accelerator, model, optimizer, sampler
        self.state, self.args, self.posts = state, args, posts
        self.sums: dict[str, torch.Tensor] = {}
        self.batches, self.steps, self.last = 0, 0, len(sampler) // accelerator.num_processes
        number = math.ceil(len(sampler) / batches_per_step(accelerator))
        self.bad = torch.zeros(number, dtype=torch.bool, device=accelerator.device)
        self.counted = torch.zeros((), dtype=torch.long, device=accelerator.device)
        self.finite = torch.ones((), dtype=torch.bool, device=accelerator.device)
        self.warned = 0
        # those shard their weights, or step inside of backward
        kinds = (DistributedType.FSDP, DistributedType.DEEPSPEED)
        self.sharded = accelerator.distributed_type in kinds
        self.reads_flag = not self.sharded and bool(optimizer.defaults.get("fused"))

    def add(self, output: Any, share: BatchShare) -> None:
        """Add the losses of a batch; those that are not finite are left out."""
        finite = output.loss.detach().isfinite()
        for key in ("loss", "nll_loss", "kl_loss"):
            if output.get(key) is not None:
                sum_here = output[key].detach().float() * share.posts
                self.sums[key] = self.sums.get(key, 0) + sum_here.where(finite, 0.0)
        self.counted += finite * share.posts
        self.finite &= finite
        self.batches += 1

    def guard(self) -> None:
        """Clip the gradients before an optimizer step, and make it do nothing where they or a loss are not finite."""
        bad = ~self.finite
        norm = self._clipped_norm()
        if norm is not None and self.accelerator.scaler is None:  # a scaler leaves such steps out itself
            bad = bad | ~norm.isfinite()
        # each process has its own losses, and all must do the same
        bad = self.accelerator.reduce(bad.float(), "sum") > 0
        self.bad[self.steps] = bad
        self.steps += 1
        self.finite.fill_(True)
        if self.accelerator.scaler is not None:
            return
        if self.reads_flag:
            self.optimizer.optimizer.found_inf = bad.float()
        elif bad.item():
            self.optimizer.zero_grad()

    def mean_loss(self) -> float | None:
        """Return the mean loss so far, at every twentieth batch and the last: it waits for the device.

        Raises:
            FloatingPointError: if more steps were not finite than may be skipped.
        """
        if self.batches % 20 != 1 and self.batches != self.last:
            return None
        self._count_bad()
        return self.sums["loss"].item() / max(int(self.counted), 1)

    def means(self) -> dict[str, float]:
        """Return the means over all processes, and how many steps were skipped; every process must call this."""
        posts = int(self.accelerator.reduce(self.counted, "sum").item())
        if not posts:
            raise FloatingPointError(f"no batch of epoch {self.state.epoch + 1} has a loss that is a number")
        means = {key: self.accelerator.reduce(value, "sum").item() / posts for key, value in self.sums.items()}
        return means | ({"skipped_steps": int(self.bad.sum())} if self.args.skip_nonfinite_steps else {})

    def _clipped_norm(self) -> torch.Tensor | None:
        """Return the norm of the gradients, clipped if that is asked for; None where it is not known."""
        limit = self.args.max_grad_norm
        if limit > 0 or self.sharded:
            found: Any = self.accelerator.clip_grad_norm_(self.model.parameters(), limit or math.inf)
            found = found.full_tensor() if hasattr(found, "full_tensor") else found  # of sharded weights
            return None if found is None else torch.as_tensor(found, device=self.bad.device)
        gradients = [one.grad for one in self.model.parameters() if one.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def _count_bad(self) -> None:
        found = self.bad.nonzero().flatten().tolist()
        before = skipped_steps(self.state).get("skipped_steps", 0)
        allowed = max(self.args.skip_nonfinite_steps - before, 0)
        epoch = self.state.epoch + 1
        for step in found[self.warned : allowed]:
            logger.warning("step %d of epoch %d is skipped: its loss or gradient is not finite (%s)",
                           step + 1, epoch, self._named(step))  # fmt: skip
        self.warned = len(found)
        if len(found) <= allowed:
            return
        step, skipped, more = found[allowed], before + allowed, max(10, 2 * self.args.skip_nonfinite_steps)
        kept = f", or go on from epoch {epoch - 1}, which is kept, by --resume_from_checkpoint latest with"
        raise FloatingPointError(
            f"loss or gradient became NaN or infinite in optimizer step {step + 1} of epoch {epoch} "
            f"({self._named(step)}), {f'after {skipped} that were skipped' if skipped else 'which was not taken'}: "
            "train anew with a smaller --learning_rate or with --max_grad_norm 1"
            f"{kept if self.args.save_checkpoints and epoch > 1 else ' or'} --skip_nonfinite_steps {more}"
        )

    def _named(self, step: int) -> str:
        """Return the ids of a step's posts, on all processes, as far as they fit into a sentence."""
        first, size = step * batches_per_step(self.accelerator), batches_per_step(self.accelerator)
        rows = list(dict.fromkeys(row for batch in self.sampler.batches[first : first + size] for row in batch))
        names = [str(self.posts[row].get("id", f"number {row}")) for row in rows]
        return f"posts {', '.join(names[:8])}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def skipped_steps(state: TrainingState) -> dict[str, int]:
    """Return the number of skipped steps of a training, or nothing where none was to be skipped."""
    counts = [row["skipped_steps"] for row in state.history if "skipped_steps" in row]
    return {"skipped_steps": sum(counts)} if counts else {}


def check_scores(accelerator: Accelerator, scores: torch.Tensor) -> torch.Tensor:
    """Return scores [..., L] of labels; every process must call this.

    Raises:
        FloatingPointError: on all processes, if one has scores that are NaN or infinite.
    """
    bad = (~scores.logsumexp(-1).isfinite()).any()  # -inf excludes a label, and may be
    if accelerator.reduce(bad.float(), "sum").item() > 0:
        raise FloatingPointError(
            "the model's scores of the dev posts are NaN or infinite: train anew with a smaller --learning_rate or "
            "with --max_grad_norm 1"
        )
    return scores
