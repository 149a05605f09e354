"""This module trains with smaller batches, and as many posts in a step, where batches do not fit into memory."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, find_executable_batch_size, release_memory, send_to_device
from accelerate.utils.memory import should_reduce_batch_size

from ..data_collator import LengthBatchSampler
from .arguments import Arguments, TrainingArguments
from .checkpoints import BEST, find_checkpoint, read_state
from .command_line import one_sentence_errors
from .setup import make_accelerator

logger = logging.getLogger(__name__)

Train = Callable[..., dict[str, Any]]
ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"  # set by accelerate launch, it overrides the option


class DoesNotFitError(RuntimeError):
    """An error that tells, on all processes, that the largest batch does not fit on one of them."""


def fitting_batches(train: Train) -> Train:
    """Return a function that calls `train(args, …)`, with `--auto_find_batch_size` until its batches fit into memory.

    Each time they are halved (or divided by the next number that leaves nothing over), and as many more are
    accumulated, so that an optimizer step has the posts that were asked for: the same gradient, but for rounding and
    dropout. Under `--max_tokens_per_batch` it is the tokens that are halved. A resumed run begins with the batches of
    its checkpoint. Where memory ends later, in a run of which an epoch is kept, or on one of several processes, the
    program ends with one sentence.
    """

    @functools.wraps(train)
    def fitted(args: Arguments, *rest: Any) -> dict[str, Any]:
        training, steps = args.training, list(_sizes(args.training))
        if not training.auto_find_batch_size:
            with_less = "--auto_find_batch_size, or a smaller --per_device_train_batch_size or --max_length"
            return _or_told(lambda: train(args, *rest), lambda error: f"out of memory: give {with_less}")
        accelerator = make_accelerator(training)
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise SystemExit("error: --auto_find_batch_size tries a whole model on each device: leave it out where "
                             "models are sharded (FSDP, DeepSpeed)")  # fmt: skip
        folder = Path(training.output_dir) / "checkpoints"
        with one_sentence_errors():
            resumed = _resumed(training, folder)
        steps = steps[steps.index(resumed) :] if resumed in steps else steps
        accumulated = dict(steps)
        several = accelerator.num_processes > 1

        def smaller() -> int:
            (size, _), (following, times) = steps.pop(0), (steps or [(0, 0)])[0]
            if following:
                logger.warning("out of memory with batches of %d %s: trying %d, %d of them in an optimizer step",
                               size, _unit(training), following, times)  # fmt: skip
            return following

        def attempt(size: int) -> dict[str, Any]:
            release_memory()  # what the attempt before has left
            before = _time_of(folder / BEST)

            def told(error: RuntimeError) -> str:
                if isinstance(error, DoesNotFitError) or not (several or resumed or _time_of(folder / BEST) != before):
                    return ""
                return ("out of memory although its largest batch did fit: does another program use the device? "
                        "--resume_from_checkpoint latest goes on from the last complete epoch, if one is")  # fmt: skip

            return _or_told(lambda: train(_with(args, size, accumulated[size]), *rest), told)

        find: Any = find_executable_batch_size(attempt, steps[0][0], smaller)
        try:
            found: dict[str, Any] = find()
        except RuntimeError as error:
            if "No executable batch size" not in str(error):
                raise
            raise SystemExit(
                f"error: out of memory even with batches of 1 {_unit(training)[:-1]}: give a smaller --max_length or "
                "encoder, --gradient_checkpointing or --bf16"
            ) from None
        return found

    return fitted


def rehearse(
    accelerator: Accelerator, model: Any, sampler: LengthBatchSampler, posts: Sequence[Any],
    collate: Callable[[Sequence[Any]], dict[str, Any]], args: TrainingArguments,
) -> dict[str, int]:  # fmt: skip
    """Try the largest batch, with `--auto_find_batch_size`, and return the sizes for the results if it fits.

    Every process must call this before the model is prepared. Nothing is learned, and all give the same answer: later,
    one process that is out of memory would let the others wait for ever.

    Raises:
        DoesNotFitError: on all processes, if one is out of memory.
    """
    if not args.auto_find_batch_size:
        return {}
    longest = sorted(range(len(posts)), key=lambda row: sampler.lengths[row], reverse=True)
    size = args.per_device_train_batch_size
    if args.max_tokens_per_batch is not None:
        size = max(1, args.max_tokens_per_batch // sampler.lengths[longest[0]])
    out_of_memory = False
    try:
        model.to(accelerator.device).train()
        trained = [one for one in model.parameters() if one.requires_grad]
        # Adam's two moments, and the buckets in which several processes gather gradients
        kept = [torch.empty_like(one) for one in trained for _ in range(2 + (accelerator.num_processes > 1))]
        batch = send_to_device(collate([posts[row] for row in longest[:size]]), accelerator.device)
        del batch["index"]
        with accelerator.autocast():
            loss = model(**batch).loss
        loss.backward()
        del kept
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        out_of_memory = True
    model.zero_grad(set_to_none=True)
    if accelerator.reduce(torch.tensor(float(out_of_memory), device=accelerator.device), "sum").item() > 0:
        raise DoesNotFitError("the largest batch is out of memory.")  # accelerate knows it by these words
    return {
        _name(args): getattr(args, _name(args)),
        "gradient_accumulation_steps": accelerator.gradient_accumulation_steps,
    }


def _name(args: TrainingArguments) -> str:
    return "per_device_train_batch_size" if args.max_tokens_per_batch is None else "max_tokens_per_batch"


def _unit(args: TrainingArguments) -> str:
    return "posts" if args.max_tokens_per_batch is None else "tokens"


def _sizes(args: TrainingArguments) -> Iterator[tuple[int, int]]:
    """Yield ever smaller batches and how many of them make a step, from those that are asked for."""
    size = getattr(args, _name(args))
    times = int(os.environ.get(ACCUMULATION, args.gradient_accumulation_steps))
    while size:
        yield size, times
        smaller = size // 2
        while smaller and args.max_tokens_per_batch is None and size % smaller:
            smaller -= 1
        times *= 2 if args.max_tokens_per_batch is not None else size // max(smaller, 1)
        size = smaller


def _with(args: Arguments, size: int, accumulated: int) -> Arguments:
    """Return the options with these batches."""
    if ACCUMULATION in os.environ:
        os.environ[ACCUMULATION] = str(accumulated)
    sizes: dict[str, Any] = {_name(args.training): size, "gradient_accumulation_steps": accumulated}
    return replace(args, training=replace(args.training, **sizes))


def _resumed(args: TrainingArguments, folder: Path) -> tuple[int, int] | None:
    """Return the batches of the checkpoint to resume from, and how many made a step; None without one."""
    wanted = args.resume_from_checkpoint
    checkpoint = find_checkpoint(folder, wanted) if wanted else None
    if checkpoint is None:
        return None
    made_of = read_state(checkpoint)["made_of"]
    return made_of.get(_name(args)), made_of.get("gradient_accumulation_steps")


def _time_of(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _or_told(run: Callable[[], dict[str, Any]], told: Callable[[RuntimeError], str]) -> dict[str, Any]:
    """Return what `run` returns; where it is out of memory and there is something to tell, end the program with it."""
    try:
        return run()
    except RuntimeError as error:
        if should_reduce_batch_size(error) and (sentence := told(error)):
            raise SystemExit(f"error: {sentence}") from None
        raise
