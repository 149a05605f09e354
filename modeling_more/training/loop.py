"""The Accelerate loop both scripts share: train, evaluate after every epoch, keep the best, checkpoint, resume."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, InitProcessGroupKwargs, LoggerType, set_seed
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data_collator import TEXT_ONLY, BatchShare, LengthBatchSampler, MoReDataCollator
from ..files import apply_umask
from ..positions import position_limit
from .output_folders import CHECKPOINTS

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=PreTrainedModel)
LAST, BEST, STATE = "last", "best", "training_state.json"
#: arguments that a run may change when it goes on from a checkpoint
MAY_CHANGE = {
    *("output_dir", "seeds", "num_train_epochs", "early_stopping_patience", "resume_from_checkpoint"),
    *("save_checkpoints", "per_device_eval_batch_size", "report_to", "use_cpu", "gradient_checkpointing"),
}


@dataclass
class TrainingArguments:
    """How to train. The defaults are the paper's; a recipe of the data set sets the rest."""

    output_dir: str = field(
        default="out",
        metadata={"help": "folder for model, processor, scores, predictions, card; default: out, of a model that is "
                  "only scored or predicts a folder named after it, like out-scored-posts"},
    )  # fmt: skip
    seed: int = field(default=42, metadata={"help": "of the head's initialisation, the batches and the dropout"})
    seeds: list[int] = field(
        default_factory=list, metadata={"help": "train once with each of these seeds; reports mean and deviation"}
    )
    num_train_epochs: int = field(default=10, metadata={"help": "epochs"})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "posts of a batch on each device"})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "posts of a batch when not training"})
    max_tokens_per_batch: int | None = field(
        default=None, metadata={"help": "batches hold at most so many padded sub-tokens, instead of so many posts"}
    )
    group_by_length: bool = field(
        default=False, metadata={"help": "batch posts of like length together: less padding, less random batches"}
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "batches of one optimizer step, in which every post weighs the same"}
    )
    learning_rate: float = field(default=1e-5, metadata={"help": "of the encoder and the linear layer"})
    crf_learning_rate: float | None = field(
        default=None, metadata={"help": "of the CRF's parameters; default: the learning rate"}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "of AdamW"})
    lr_decay: str = field(
        default="step",
        metadata={"help": "linear decay to 0 after every step, or after every epoch as the authors' recipes do",
                  "choices": ["step", "epoch"]},
    )  # fmt: skip
    warmup_ratio: float = field(default=0.0, metadata={"help": "share of the steps in which the rates rise from 0"})
    max_grad_norm: float = field(default=0.0, metadata={"help": "clip gradients to this norm; 0: no clipping"})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "stop after so many epochs without a better dev score"}
    )
    bf16: bool = field(default=False, metadata={"help": "compute in bfloat16 (weights and CRF stay float32)"})
    use_cpu: bool = field(default=False, metadata={"help": "stay on the CPU even where a GPU is"})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "less memory for a third more time"})
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "'latest', or the folder of a checkpoint of the same run; with another --num_train_epochs the "
            "rates are those of the new length from there on"
        },
    )
    save_checkpoints: bool = field(
        default=True, metadata={"help": "write the optimizer's state after each epoch, so that the run can resume"}
    )
    report_to: list[str] = field(
        default_factory=list,
        metadata={"help": "trackers, e.g. tensorboard trackio wandb; logs go to OUTPUT_DIR/logs",
                  "choices": LoggerType.list()},
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name in ("num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size",
                     "gradient_accumulation_steps"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}, it must be at least 1")


@dataclass
class TrainingResult:
    """What a run of `train` leaves: the row of each epoch, the best dev score and its epoch (from 1)."""

    history: list[dict[str, Any]] = field(default_factory=list)
    best_score: float = -math.inf
    best_epoch: int = 0


def make_accelerator(args: TrainingArguments) -> Accelerator:
    """The Accelerator of these arguments; what `accelerate launch` configured holds where they are silent."""
    return Accelerator(
        # LengthBatchSampler gives every process as many batches itself
        dataloader_config=DataLoaderConfiguration(even_batches=False),
        cpu=args.use_cpu,
        mixed_precision="bf16" if args.bf16 else None,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=args.report_to or None,
        project_dir=str(Path(args.output_dir) / "logs"),
        # the first process may retrieve for hours while the others wait for it
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )


def warn_of_slow_cpu(accelerator: Accelerator, predict: bool = False) -> None:
    """Log what makes a run on a CPU many times slower than it need be; of threads only where it does not `predict`."""
    if accelerator.device.type != "cpu":
        return
    if accelerator.mixed_precision == "bf16" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        logger.warning("this CPU has no bf16 instructions: without --bf16 training is some ten times faster here")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not predict and accelerator.num_processes == 1 and torch.get_num_threads() == 1 < cores:
        # what accelerate launch sets unless it was told otherwise
        logger.warning(
            "computing with one thread on %d cores: accelerate launch --num_cpu_threads_per_process %d uses them all",
            cores, cores,
        )  # fmt: skip


def train(
    accelerator: Accelerator,
    model: Model,
    processor: Any,
    posts: Sequence[dict[str, Any]],
    evaluate: Callable[[torch.nn.Module], float],
    args: TrainingArguments,
    collate: Callable[[Sequence[Any]], dict[str, Any]] | None = None,
    lengths: Sequence[int] | None = None,
    made_of: dict[str, Any] | None = None,
) -> tuple[Model, TrainingResult]:
    """Train on encoded posts; returns the model of the best epoch by `evaluate(model)`, and what happened.

    An optimizer step follows the mean loss of its posts, every post weighing the same, however they are spread over
    processes and accumulated batches.

    After each epoch a checkpoint (weights, optimizer, schedule, random states) replaces the one before, whole or not
    at all; `resume_from_checkpoint` goes on from it exactly as the unbroken run would have. With another
    `num_train_epochs` than before, batches, random states and rates from there on are those of an unbroken run of the
    new length; the weights it goes on from were trained with the rates of the old one.

    Args:
        posts: what `collate` makes batches of (default: posts encoded by a `MoReProcessor`).
        lengths: sub-tokens of each post.
        made_of: kept in the checkpoints, for `check_checkpoint`.

    Raises:
        FileNotFoundError: when the checkpoint to resume from is not there.
        ValueError: for posts with more sub-tokens than the encoder reads.
    """
    folder = Path(args.output_dir) / "checkpoints"
    model_class = type(model)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    sampler = LengthBatchSampler(
        lengths or [sum(map(len, post["input_ids"])) for post in posts],
        args.per_device_train_batch_size,
        args.max_tokens_per_batch,
        seed=args.seed,
        by_length=args.group_by_length,
        multiple_of=accelerator.num_processes,
    )
    if collate is None:
        collate = MoReDataCollator(processor)
        _check_lengths(model, posts)
    loader: Any = DataLoader(posts, batch_sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]
    # fused: a third of the time of the plain step on a CPU
    fused = accelerator.device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(parameter_groups(model, args), weight_decay=args.weight_decay, fused=fused)
    # of the accelerator, not of the arguments: `accelerate launch` may have said otherwise
    per_step = accelerator.num_processes * accelerator.gradient_accumulation_steps
    steps = [math.ceil(batches / per_step) for batches in sampler.batches_in(args.num_train_epochs)]
    class_weights = getattr(model.config, "class_weights", None)
    label_weights = None
    if class_weights is not None and "label" in posts[0]:
        label_weights = [class_weights[post["label"]] for post in posts]
    # not prepared by accelerate, which would step it once for each process: it steps here, once an optimizer step
    schedule = LambdaLR(optimizer, learning_rate_factor(steps, args))
    accelerator.register_for_checkpointing(schedule)
    model_, optimizer_, loader_ = accelerator.prepare(model, optimizer, loader)
    set_seed(args.seed, device_specific=True)  # from here on each process draws its own dropout

    result, first_epoch = TrainingResult(), 0
    if args.resume_from_checkpoint:
        checkpoint = _find_checkpoint(folder, args.resume_from_checkpoint)
        if checkpoint is None:
            logger.warning("%s holds no checkpoint yet: training starts from the beginning", folder)
        else:
            elsewhere = checkpoint.parent.resolve() != folder.resolve()
            if accelerator.is_main_process and (elsewhere or not (folder / BEST).exists()):
                incoming = folder / f"{BEST}.incoming"
                shutil.rmtree(incoming, ignore_errors=True)
                shutil.copytree(_best_beside(checkpoint), incoming)
                shutil.rmtree(folder / BEST, ignore_errors=True)
                os.replace(incoming, folder / BEST)
            accelerator.load_state(str(checkpoint))
            state = json.loads((checkpoint / STATE).read_text())
            first_epoch = state.pop("epoch")
            state.pop("made_of", None)
            result = TrainingResult(**state)
            logger.info("resumed from %s after epoch %d", checkpoint, first_epoch)
            schedule.last_epoch = sum(steps[:first_epoch])  # as it was, unless the number of processes changed
            _follow(schedule, args.num_train_epochs)
    elif accelerator.is_main_process:
        for name in CHECKPOINTS:  # of an earlier run in the same folder: they must not be resumed by mistake
            shutil.rmtree(folder / name, ignore_errors=True)
    accelerator.wait_for_everyone()

    for epoch in range(first_epoch, args.num_train_epochs):
        patience = args.early_stopping_patience
        if patience is not None and result.history and epoch - result.best_epoch >= patience:
            logger.info("stopped after epoch %d: no better dev score for %d epochs", epoch, patience)
            break
        # the loader counts its own epochs from 0 and would put the sampler back; behind a shard it does not reach it
        loader_.set_epoch(epoch)
        sampler.set_epoch(epoch)
        began = time.perf_counter()
        shares = sampler.shares(per_step, label_weights)[accelerator.process_index :: accelerator.num_processes]
        losses = _train_epoch(accelerator, model_, optimizer_, schedule, loader_, shares, args, epoch)
        seconds = time.perf_counter() - began
        score = evaluate(model_)
        row = {"epoch": epoch + 1, **losses, "dev_f1": score, "seconds": round(seconds, 1)}
        result.history.append(row)
        logger.info("epoch %d: loss %.4f, dev F1 %.2f, %.0f s", epoch + 1, losses["loss"], score, seconds)
        accelerator.log({key: value for key, value in row.items() if key != "epoch"}, step=epoch + 1)
        if score > result.best_score:
            result.best_score, result.best_epoch = score, epoch + 1
            with replacing(folder / BEST, accelerator) as target:
                save_model(accelerator, model_, target)
        if args.save_checkpoints:
            with replacing(folder / LAST, accelerator) as target:
                accelerator.save_state(str(target))
                if accelerator.is_main_process:
                    (target / STATE).write_text(json.dumps({"epoch": epoch + 1, "made_of": made_of, **vars(result)}))

    accelerator.free_memory(model_, optimizer_, loader_)
    # through the code that users load with, whatever accelerate did to the module in training
    best = model_class.from_pretrained(folder / BEST, dtype=torch.float32)
    return best.to(accelerator.device), result


def check_checkpoint(args: TrainingArguments, made_of: dict[str, Any]) -> None:
    """See that the checkpoint to resume from (if any) is whole and of this run.

    Args:
        made_of: what the run is made of, as it was given to `train`.

    Raises:
        FileNotFoundError: the checkpoint, or the best epoch's model beside it, is not there.
        ValueError: another run made it (names the differing options), or it has more epochs behind it than are wanted.
    """
    if not args.resume_from_checkpoint:
        return
    checkpoint = _find_checkpoint(Path(args.output_dir) / "checkpoints", args.resume_from_checkpoint)
    if checkpoint is None:
        return
    _best_beside(checkpoint)
    state = json.loads((checkpoint / STATE).read_text())
    done, wanted = state["epoch"], args.num_train_epochs
    if done > wanted:
        more = "give at least as many, or train anew in another --output_dir"
        raise ValueError(f"{checkpoint} has {done} epochs done, --num_train_epochs {wanted} is fewer: {more}")
    found = state.get("made_of") or made_of
    made_of = json.loads(json.dumps(made_of))  # as the file keeps it
    differing = sorted(key for key in found.keys() | made_of.keys() if found.get(key) != made_of.get(key))
    if differing:
        raise ValueError(
            f"{checkpoint} is of a run with other {', '.join(differing)}: go on with those, or train anew without "
            "--resume_from_checkpoint or in another --output_dir"
        )


def parameter_groups(model: torch.nn.Module, args: TrainingArguments) -> list[dict[str, Any]]:
    """The CRF's parameters under their own learning rate; encoder and linear layer under the other."""
    trained = [(f".{name}", parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    crf = [parameter for name, parameter in trained if ".crf." in name]  # also those of a mixture's experts
    others = [parameter for name, parameter in trained if ".crf." not in name]
    groups = [{"params": others, "lr": args.learning_rate}]
    if crf:
        rate = args.learning_rate if args.crf_learning_rate is None else args.crf_learning_rate
        groups.append({"params": crf, "lr": rate})
    return groups


def learning_rate_factor(steps: Sequence[int], args: TrainingArguments) -> Callable[[int], float]:
    """What the learning rates are multiplied with at each optimizer step, for epochs of so many steps.

    Decay `"epoch"` is that of the authors' framework (`LinearLR` stepped once an epoch): epoch e of E, from 0, has the
    factor 1 - e/E throughout. Training ends with a larger step than under decay `"step"`.
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


def save_model(accelerator: Accelerator, model: torch.nn.Module, folder: Path) -> None:
    """Write the unwrapped model as safetensors and config; every process calls this (sharded weights are gathered)."""
    core: PreTrainedModel = accelerator.unwrap_model(model)
    state = accelerator.get_state_dict(model)
    core.save_pretrained(folder, state_dict=state, is_main_process=accelerator.is_main_process)


@contextmanager
def replacing(target: Path, accelerator: Accelerator) -> Iterator[Path]:
    """A folder to write into that becomes `target` when the block ends well, and leaves nothing when it does not."""
    incoming = target.with_name(target.name + ".incoming")
    if accelerator.is_main_process:
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir(parents=True)
    accelerator.wait_for_everyone()
    yield incoming
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        apply_umask(incoming)
        outgoing = target.with_name(target.name + ".outgoing")
        if target.exists():  # else the outgoing one, left by a crash, is the only copy
            shutil.rmtree(outgoing, ignore_errors=True)
            os.replace(target, outgoing)
        os.replace(incoming, target)
        shutil.rmtree(outgoing, ignore_errors=True)
    accelerator.wait_for_everyone()


def _check_lengths(model: Any, posts: Sequence[Mapping[str, Any]]) -> None:
    """ValueError for the first post with a longer row than the encoder reads: before the first step, not amid them."""
    limit = position_limit(model.encoder)
    for number, post in enumerate(posts):
        rows = (row for view in ("", TEXT_ONLY) for row in post.get(f"{view}input_ids", ()))
        if limit is not None and (longest := max(map(len, rows), default=0)) > limit:
            raise ValueError(
                f"post {number} has {longest} sub-tokens, the encoder reads at most {limit}: encode the posts by a "
                f"processor with max_length={limit}"
            )


def _follow(schedule: LambdaLR, epochs: int) -> None:
    """Give the optimizer the rates that this schedule has at its place: a checkpoint brings those of its own run."""
    factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
    rates = [float(base * factor) for base, factor in zip(schedule.base_lrs, factors, strict=True)]
    if rates != (old := schedule.get_last_lr()):
        logger.warning(
            "the schedule is now that of %d epochs: the next step has the rate %.3g, that of the checkpoint's run was "
            "%.3g there", epochs, rates[0], old[0],
        )  # fmt: skip
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _train_epoch(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: Any,
    schedule: Any,
    loader: Any,
    shares: Sequence[BatchShare],
    args: TrainingArguments,
    epoch: int,
) -> dict[str, float]:
    """One pass over the batches; the mean of each loss over the posts of every process.

    Args:
        shares: of this process's batches.
    """
    model.train()
    sums: dict[str, torch.Tensor] = {}
    seen = 0
    bar = tqdm(loader, desc=f"epoch {epoch + 1}/{args.num_train_epochs}", disable=not accelerator.is_main_process)
    for step, (batch, share) in enumerate(zip(bar, shares, strict=True)):
        if len(batch.pop("index")) != share.rows:
            raise RuntimeError("the batches are dealt out in another way than planned: use make_accelerator")
        if share.mean_weight is not None:
            batch["mean_class_weight"] = share.mean_weight
        with accelerator.accumulate(model):
            output = model(**batch)
            # backward divides by the accumulated batches, and the processes' gradients are averaged
            accelerator.backward(output.loss * share.scale)
            if accelerator.sync_gradients and args.max_grad_norm > 0:
                accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                schedule.step()
        for key in ("loss", "nll_loss", "kl_loss"):
            if output.get(key) is not None:
                sums[key] = sums.get(key, 0) + output[key].detach().float() * share.posts
        seen += share.posts
        if step % 20 == 0 or step + 1 == len(loader):
            loss = sums["loss"].item()  # not finite as soon as one batch was not
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss became {loss} in epoch {epoch + 1}, by batch {step + 1}")
            bar.set_postfix(loss=f"{loss / max(seen, 1):.3f}")
    posts = accelerator.reduce(torch.tensor(seen, device=accelerator.device), "sum").item()
    return {key: accelerator.reduce(value, "sum").item() / posts for key, value in sums.items()}


def _find_checkpoint(folder: Path, wanted: str) -> Path | None:
    """The checkpoint to resume from; None when 'latest' is wanted and there is none yet."""
    if wanted != "latest":
        if not (Path(wanted) / STATE).is_file():
            raise FileNotFoundError(f"{wanted} is no checkpoint of this library: {STATE} is missing there")
        return Path(wanted)
    # a crash between the two renames leaves the older checkpoint under the second name
    for name in (LAST, LAST + ".outgoing"):
        if (folder / name / STATE).is_file():
            return folder / name
    return None


def _best_beside(checkpoint: Path) -> Path:
    """The best epoch's model that was written with a checkpoint."""
    for name in (BEST, BEST + ".outgoing"):
        if (checkpoint.parent / name).is_dir():
            return checkpoint.parent / name
    raise FileNotFoundError(f"{checkpoint} can't be resumed: the folder {BEST} is missing beside it")
