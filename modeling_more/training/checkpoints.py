"""This module writes checkpoints whole or not at all, resumes them bit for bit, and refuses those of other runs."""

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
#: options that may differ when a run resumes from a checkpoint
MAY_CHANGE = {
    *("output_dir", "seeds", "num_train_epochs", "early_stopping_patience", "resume_from_checkpoint", "do_train"),
    *("do_predict", "overwrite_output_dir", "save_checkpoints", "per_device_eval_batch_size", "report_to", "use_cpu"),
    *("gradient_checkpointing", "skip_nonfinite_steps", "auto_find_batch_size"),
}


@dataclass
class TrainingState:
    """A record of how far a training has come.

    Attributes:
        history: one row {epoch, loss, dev_f1, seconds, …} per finished epoch.
        best_score, best_epoch: the best dev F1 in percent, and its epoch, counted from 1.
        epoch: the number of finished epochs.
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
        """Return whether the last `patience` epochs brought no better dev score."""
        over = patience is not None and bool(self.history) and self.epoch - self.best_epoch >= patience
        if over:
            logger.info("stopped after epoch %d: no better dev score for %d epochs", self.epoch, patience)
        return over


def resume(accelerator: Accelerator, folder: Path, wanted: str | None) -> TrainingState:
    """Load model, optimizer, schedule and random states from a checkpoint, and return how far its training was.

    Args:
        folder: the folder of this run's checkpoints.
        wanted: `"latest"`, the folder of a checkpoint, or None to begin anew, where no checkpoints are.

    Raises:
        FileNotFoundError: if the checkpoint is missing or incomplete.
        FileExistsError: if the folder holds an earlier run's checkpoints, and this one is to begin anew.
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
    elif there := next((folder / name for name in CHECKPOINTS if (folder / name).exists()), None):
        raise FileExistsError(
            f"{there} is of an earlier training: go on with it (resume_from_checkpoint), or give another output_dir"
        )
    accelerator.wait_for_everyone()
    return state


def save_checkpoint(
    accelerator: Accelerator, folder: Path, state: TrainingState, made_of: dict[str, Any] | None = None
) -> None:
    """Replace the last checkpoint by the current state, whole or not at all; every process must call this."""
    with replacing(folder / LAST, accelerator) as target:
        accelerator.save_state(str(target))
        if accelerator.is_main_process:
            (target / STATE).write_text(json.dumps({"made_of": made_of, **vars(state)}))


def save_best(accelerator: Accelerator, model: torch.nn.Module, folder: Path) -> None:
    """Replace the best epoch's saved model (safetensors and configuration); every process must call this."""
    with replacing(folder / BEST, accelerator) as target:
        core: PreTrainedModel = accelerator.unwrap_model(model)
        state = accelerator.get_state_dict(model)  # sharded weights are gathered
        core.save_pretrained(target, state_dict=state, is_main_process=accelerator.is_main_process)


def load_best(model_class: type[Model], folder: Path, device: torch.device) -> Model:
    """Return the best epoch's model, loaded as users load it, however it was wrapped in training."""
    best: Any = model_class.from_pretrained(folder / BEST, dtype=torch.float32)
    return best.to(device)


def description(args: Arguments, *posts: Posts) -> dict[str, Any]:
    """Return the options and a digest of the posts; a run can only be resumed if they are the same."""
    data = args.data
    reading = ("retrieval", "top_k", "knowledge_words", "max_length", "overflow", "splitter")
    options = asdict(args.model) | {name: getattr(data, name) for name in reading}
    options |= {key: value for key, value in asdict(args.training).items() if key not in MAY_CHANGE}
    if data.retrieval == "moe":
        options |= asdict(args.mixture)
    # images are tensors made from the files that the posts name
    rows = [[{**post, "image": None, "has_image": None} for post in split] for split in posts]
    return options | {"posts": hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()[:32]}


def check_checkpoint(args: TrainingArguments, made_of: dict[str, Any]) -> None:
    """Check that the checkpoint to resume from, if any, is complete and belongs to the run that `made_of` describes.

    Raises:
        FileNotFoundError: if the checkpoint, or the best epoch's model beside it, is missing.
        ValueError: if another run made it (names the differing options) or it has more epochs than are wanted.
    """
    wanted = args.resume_from_checkpoint
    if not wanted or (checkpoint := find_checkpoint(Path(args.output_dir) / "checkpoints", wanted)) is None:
        return
    _best_beside(checkpoint)
    state = json.loads((checkpoint / STATE).read_text())
    if (done := state["epoch"]) > args.num_train_epochs:
        raise ValueError(
            f"{checkpoint} has {done} epochs done, --num_train_epochs {args.num_train_epochs} is fewer: give at least "
            "as many, or train anew in another --output_dir"
        )
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
    """Yield a folder to write into, which replaces `target` if the block succeeds."""
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
    """Return the checkpoint to resume from, or None if 'latest' is wanted and there is none yet."""
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
    """Return the folder of the best epoch's model, which lies beside a checkpoint."""
    for name in (BEST, BEST + ".outgoing"):
        if (checkpoint.parent / name).is_dir():
            return checkpoint.parent / name
    raise FileNotFoundError(f"{checkpoint} can't be resumed: the folder {BEST} is missing beside it")
