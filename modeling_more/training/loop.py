"""This module holds the training loop, which experts and mixtures share and notebooks can call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data_collator import MoReDataCollator
from ..encoding import rows_digest
from . import optimization
from .arguments import TrainingArguments
from .checkpoints import SUB_TOKENS, Model, TrainingState, launched, load_best, resume, save


def train(
    accelerator: Accelerator,
    model: Model,
    processor: Any,
    posts: Sequence[dict[str, Any]],
    evaluate: Callable[[torch.nn.Module], float],
    args: TrainingArguments,
    collate: Callable[[Sequence[Any]], dict[str, Any]] | None = None,
    made_of: dict[str, Any] | None = None,
) -> tuple[Model, TrainingState]:
    """Train on encoded posts, and return the model of the best epoch by `evaluate(model)` and the training's record.

    In an optimizer step every post weighs the same, however the posts are spread over processes and batches.

    After each epoch a checkpoint replaces the last one, whole or not at all; `resume_from_checkpoint` continues from
    it exactly as the unbroken run would have. With another `num_train_epochs` than before, batches, random states and
    rates from there on are those of an unbroken run of the new length.

    Args:
        posts: the input of `collate` (default: posts encoded by a `MoReProcessor`).
        made_of: the `description` of the run, kept in the checkpoints: only the same run goes on with them. Default:
            how it was launched, and a digest of the posts.
    """
    if made_of is None:
        made_of = launched(accelerator) | {SUB_TOKENS: rows_digest(posts)}
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if collate is None:
        collate = MoReDataCollator(processor)
        optimization.check_rows(model, posts)
    sampler = optimization.make_sampler(posts, args, accelerator.num_processes)
    mean_weight = optimization.mean_class_weight(getattr(model.config, "class_weights", None), posts)
    loader: Any = DataLoader(posts, batch_sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]
    fused = accelerator.device.type in ("cpu", "cuda")  # a third of the time of the plain step on a CPU
    groups = optimization.parameter_groups(model, args)
    optimizer: Any = torch.optim.AdamW(groups, weight_decay=args.weight_decay, fused=fused)
    steps = optimization.steps_of_epochs(sampler, args.num_train_epochs, accelerator)
    # not prepared by accelerate, which would step it once per process; here it steps once per optimizer step
    schedule = LambdaLR(optimizer, optimization.learning_rate_factor(steps, args))
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    set_seed(args.seed, device_specific=True)  # from here on each process draws its own dropout masks
    state = resume(accelerator, args, made_of, wrapped, optimizer, schedule)
    if state.epoch:
        optimization.follow_schedule(schedule, sum(steps[: state.epoch]), args.num_train_epochs)

    for epoch in range(state.epoch, args.num_train_epochs):
        if state.is_out_of_patience(args.early_stopping_patience):
            break
        # the loader counts epochs from 0 and would reset the sampler; if it is sharded, it does not reach it at all
        loader.set_epoch(epoch)
        sampler.set_epoch(epoch)
        shares = sampler.shares(optimization.batches_per_step(accelerator))
        shares = shares[accelerator.process_index :: accelerator.num_processes]
        taken = optimization.EpochSteps(accelerator, wrapped, optimizer, sampler, state, args, posts)
        began = time.perf_counter()
        wrapped.train()
        bar = tqdm(loader, desc=f"epoch {epoch + 1}/{args.num_train_epochs}", disable=not accelerator.is_main_process)
        for batch, share in zip(bar, shares, strict=True):
            share.check(batch.pop("index"))
            if mean_weight is not None:
                batch["mean_class_weight"] = mean_weight
            with accelerator.accumulate(wrapped):
                output = wrapped(**batch)
                # backward divides by the accumulated batches, and the processes' gradients are averaged
                accelerator.backward(output.loss * share.scale)
                taken.add(output, share)
                if accelerator.sync_gradients:
                    taken.guard()  # clips; a step whose gradient is NaN or infinite will do nothing
                optimizer.step()
                optimizer.zero_grad()
                if accelerator.sync_gradients:
                    schedule.step()
            if (mean := taken.mean_loss()) is not None:
                bar.set_postfix(loss=f"{mean:.3f}")
        seconds = time.perf_counter() - began
        better = state.add(taken.means(), evaluate(wrapped), seconds)
        accelerator.log({key: value for key, value in state.history[-1].items() if key != "epoch"}, step=state.epoch)
        save(accelerator, args, made_of, wrapped, optimizer, schedule, state, better)

    accelerator.free_memory(wrapped, optimizer, loader)
    return load_best(type(model), args, accelerator.device), state
