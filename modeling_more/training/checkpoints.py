"""Checkpoints: written whole or not at all, resumed bit for bit, refused where they are of another run."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from ..files import apply_umask
from ..posts import Posts
from .arguments import Arguments, TrainingArguments
from .output_folders import CHECKPOINTS

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=PreTrainedModel)
LAST, BEST, STATE = "last", "best", "training_state.json"
#: arguments that a run may change when it goes on from a checkpoint
MAY_CHANGE = {
    *("output_dir", "seeds", "num_train_epochs", "early_stopping_patience", "resume_from_checkpoint"),
    *("do_train", "do_predict", "overwrite_output_dir"),
    *("save_checkpoints", "per_device_eval_batch_size", "report_to", "use_cpu", "gradient_checkpointing"),
}


@dataclass
class TrainingState:
    """How far a training is.

    Attributes:
        history: a row {epoch, loss, dev_f1, seconds, …} of each epoch that is done.
        best_score, best_epoch: the best dev F1 in percent, and its epoch from 1.
        epoch: the number of epochs that are done.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best_score: float = -math.inf
    best_epoch: int = 0
    epoch: int = 0

    def add(self, losses: dict[str, float], dev_f1: float, seconds: float) -> bool:
        """Add an epoch to the history, log it, and return whether it is the best so far."""
        self.epoch += 1
        self.history.append({"epoch": self.epoch, **losses, "dev_f1": dev_f1, "seconds": round(seconds, 1)})
        logger.info("epoch %d: loss %.4f, dev F1 %.2f, %.0f s", self.epoch, losses["loss"], dev_f1, seconds)
        if dev_f1 <= self.best_score:
            return False
        self.best_score, self.best_epoch = dev_f1, self.epoch
        return True

    def is_out_of_patience(self, patience: int | None) -> bool:
        """Return whether so many epochs went by without a better dev score."""
        over = patience is not None and bool(self.history) and self.epoch - self.best_epoch >= patience
        if over:
            logger.info("stopped after epoch %d: no better dev score for %d epochs", self.epoch, patience)
        return over


def resume(accelerator: Accelerator, folder: Path, wanted: str | None) -> TrainingState:
    """Load the state of model, optimizer, schedule and random numbers from a checkpoint, and return how far it is.

    Without one, the checkpoints of an earlier run are deleted: they must not be resumed by mistake.

    Args:
        folder: that of this run's checkpoints.
        wanted: `"latest"`, the folder of a checkpoint, or None.

    Raises:
        FileNotFoundError: the checkpoint is not there, or not whole.
    """
    state = TrainingState()
    if wanted and (checkpoint := find_checkpoint(folder, wanted)) is None:
        logger.warning("%s holds no checkpoint yet: training starts from the beginning", folder)
    elif wanted and checkpoint is not None:
        elsewhere = checkpoint.parent.resolve() != folder.resolve()
        if accelerator.is_main_process and (elsewhere or not (folder / BEST).exists()):
            incoming = folder / f"{BEST}.incoming"
            shutil.rmtree(incoming, ignore_errors=True)
            shutil.copytree(_best_beside(checkpoint), incoming)
            shutil.rmtree(folder / BEST, ignore_errors=True)
            os.replace(incoming, folder / BEST)
        accelerator.load_state(str(checkpoint))
        saved = json.loads((checkpoint / STATE).read_text())
        saved.pop("made_of", None)
        state = TrainingState(**saved)
        logger.info("resumed from %s after epoch %d", checkpoint, state.epoch)
    elif accelerator.is_main_process:
        for name in CHECKPOINTS:
            shutil.rmtree(folder / name, ignore_errors=True)
    accelerator.wait_for_everyone()
    return state


def save_checkpoint(
    accelerator: Accelerator, folder: Path, state: TrainingState, made_of: dict[str, Any] | None = None
) -> None:
    """Replace the checkpoint by the present state, whole or not at all; every process calls this.

    Args:
        made_of: what the run is made of, for `check_checkpoint`.
    """
    with replacing(folder / LAST, accelerator) as target:
        accelerator.save_state(str(target))
        if accelerator.is_main_process:
            (target / STATE).write_text(json.dumps({"made_of": made_of, **vars(state)}))


def save_best(accelerator: Accelerator, model: torch.nn.Module, folder: Path) -> None:
    """Replace the best epoch's model by this one, as safetensors and configuration; every process calls this."""
    with replacing(folder / BEST, accelerator) as target:
        core: PreTrainedModel = accelerator.unwrap_model(model)
        state = accelerator.get_state_dict(model)  # sharded weights are gathered
        core.save_pretrained(target, state_dict=state, is_main_process=accelerator.is_main_process)


def load_best(model_class: type[Model], folder: Path, device: torch.device) -> Model:
    """Return the best epoch's model, through the code that users load with, whatever was done to it in training."""
    best: Any = model_class.from_pretrained(folder / BEST, dtype=torch.float32)
    return best.to(device)


def description(args: Arguments, *posts: Posts) -> dict[str, Any]:
    """Return what makes a training run: it may be gone on with only where this is the same."""
    data = args.data
    reading = ("retrieval", "top_k", "knowledge_words", "max_length", "overflow", "splitter")
    options = asdict(args.model) | {name: getattr(data, name) for name in reading}
    options |= {key: value for key, value in asdict(args.training).items() if key not in MAY_CHANGE}
    if data.retrieval == "moe":
        options |= asdict(args.mixture)
    # images are tensors, made of the files that the posts name
    rows = [[{**post, "image": None, "has_image": None} for post in split] for split in posts]
    return options | {"posts": hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()[:32]}


def check_checkpoint(args: TrainingArguments, made_of: dict[str, Any]) -> None:
    """See that the checkpoint to resume from (if any) is whole and of this run.

    Args:
        made_of: what the run is made of, as `description` tells it.

    Raises:
        FileNotFoundError: the checkpoint, or the best epoch's model beside it, is not there.
        ValueError: another run made it (names the differing options), or it has more epochs behind it than are wanted.
    """
    if not args.resume_from_checkpoint:
        return
    checkpoint = find_checkpoint(Path(args.output_dir) / "checkpoints", args.resume_from_checkpoint)
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


@contextmanager
def replacing(target: Path, accelerator: Accelerator) -> Iterator[Path]:
    """Give a folder to write into; it becomes `target` when the block ends well, or leaves nothing."""
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


def find_checkpoint(folder: Path, wanted: str) -> Path | None:
    """Return the checkpoint to resume from; None when 'latest' is wanted and there is none yet."""
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
    """Return the folder of the best epoch's model that was written with a checkpoint."""
    for name in (BEST, BEST + ".outgoing"):
        if (checkpoint.parent / name).is_dir():
            return checkpoint.parent / name
    raise FileNotFoundError(f"{checkpoint} can't be resumed: the folder {BEST} is missing beside it")
