"""This module writes checkpoints whole or not at all, resumes them bit for bit, and refuses those of other runs."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from safetensors import SafetensorError
from transformers import PreTrainedModel

from ..encoding import EncodedPost, rows_digest
from ..files import MANIFEST, file_digest, whole_folder, write_json
from ..foreign import check_manifest, read_object
from ..mixed_experts import weights_digest
from ..posts import Posts
from ..remote_code import without_code
from . import checkpoint_files as files
from . import checkpoint_folders as folders
from .arguments import Arguments, TrainingArguments
from .checkpoint_files import as_json, is_number
from .checkpoint_folders import BEST, LAST, OPTIMIZER, RANDOM, STATE, WEIGHTS

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=PreTrainedModel)
#: files of the checkpoints that accelerate writes, which are pickles
PICKLES = ("*.bin", "*.pkl", "*.pt", "*.pth")
SUB_TOKENS = "sub-tokens of the posts"  # entry of what a run is made of
#: options that may differ when a run resumes from a checkpoint
MAY_CHANGE = {
    *("output_dir", "seeds", "num_train_epochs", "early_stopping_patience", "resume_from_checkpoint", "do_train"),
    *("do_predict", "overwrite_output_dir", "save_checkpoints", "per_device_eval_batch_size", "report_to", "use_cpu"),
    *("gradient_checkpointing", "skip_nonfinite_steps", "auto_find_batch_size"),
}


class CheckpointError(ValueError):
    """An error that tells why a checkpoint can't be written or resumed from."""


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


def resume(
    accelerator: Accelerator, args: TrainingArguments, made_of: dict[str, Any],
    model: torch.nn.Module, optimizer: Any, schedule: Any,
) -> TrainingState:  # fmt: skip
    """Load model, optimizer, schedule and random states from the checkpoint of `--resume_from_checkpoint`, if any.

    Every process must call this.

    Args:
        made_of: the `description` of this run.

    Returns:
        how far the training was.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, of another run, or not of this library; or none is to be
            resumed from, and the folder holds an earlier run's.
    """
    folder, wanted = _folder(args), args.resume_from_checkpoint
    with _told():
        if args.save_checkpoints or wanted:
            _check_sharding(accelerator)
        checkpoint = find_checkpoint(folder, wanted) if wanted else None
        if checkpoint is None:
            if wanted:
                logger.warning("%s holds no checkpoint yet: training starts from the beginning", folder)
            _by_main(accelerator, lambda: folders.begin_anew(folder, delete=wanted is not None))
            return TrainingState()
        saved = read_state(checkpoint)
        _check_same_run(checkpoint, saved, args, made_of)
        core: Any = accelerator.unwrap_model(model)
        config = json.loads(core.config.to_json_string())
        _by_main(accelerator, lambda: folders.adopt_best(folder, checkpoint, saved["best"], config))

        files.load_weights(checkpoint / WEIGHTS, accelerator, model)
        parameters = files.named_parameters(accelerator, model, optimizer)
        where = checkpoint / STATE
        files.load_optimizer(checkpoint / OPTIMIZER, optimizer, parameters, saved["optimizer"], where)
        files.load_schedule(schedule, saved["schedule"], where)
        files.load_scaler(accelerator.scaler, saved["scaler"], where)
        accelerator.step = saved["step"]
        rows, own = read_object(checkpoint / RANDOM, processes=list)["processes"], accelerator.process_index
        if len(rows) != accelerator.num_processes:
            raise ValueError(
                f"{checkpoint / RANDOM} is of {len(rows)} processes, here are {accelerator.num_processes}"
            )
        if not files.load_random_state(rows[own], accelerator.device, f"{checkpoint / RANDOM}, row {own}"):
            logger.warning("%s was made on another kind of device: from here on it is not bit for bit", checkpoint)
    accelerator.wait_for_everyone()
    state = TrainingState(**{one.name: saved[one.name] for one in fields(TrainingState)})
    logger.info("resumed from %s after epoch %d", checkpoint, state.epoch)
    return state


def save(
    accelerator: Accelerator, args: TrainingArguments, made_of: dict[str, Any],
    model: torch.nn.Module, optimizer: Any, schedule: Any, state: TrainingState, better: bool,
) -> None:  # fmt: skip
    """Replace the last checkpoint, and if the epoch was `better` than all before the best model, both or neither.

    Every process must call this. What is there stays until all that is new is on the disk. Killed at any point, `last`
    (or `last.outgoing`) names by its digest the best model that belongs to it: `best`, or still `best.incoming`.

    Raises:
        CheckpointError: they can't be written; the last checkpoint is still there.
    """
    folder, main = _folder(args), accelerator.is_main_process
    core: Any = accelerator.unwrap_model(model)
    with _told():
        of_best = accelerator.get_state_dict(model) if better else {}  # sharded weights are gathered
        if args.save_checkpoints:
            parameters = files.named_parameters(accelerator, model, optimizer)
            weights = files.gathered(files.weights(accelerator, model), main)
            moments = files.gathered(files.optimizer_tensors(optimizer, parameters), main)
            rows = gather_object([files.random_state(accelerator.device)])

    def write() -> None:
        best = folder / BEST
        with ExitStack() as undo:
            if better:
                best = folders.begin(folder / BEST)
                undo.callback(folders.clear, best)
                with without_code():
                    core.save_pretrained(best, state_dict=of_best)
                folders.finish(best)
            if args.save_checkpoints:
                last = folders.begin(folder / LAST)
                undo.callback(folders.clear, last)
                files.write_tensors(last / WEIGHTS, weights)
                files.write_tensors(last / OPTIMIZER, moments)
                write_json(last / RANDOM, {"processes": rows})
                numbers = {
                    "optimizer": files.optimizer_groups(optimizer, parameters),
                    "schedule": as_json(schedule.state_dict()),
                    "scaler": None if accelerator.scaler is None else as_json(accelerator.scaler.state_dict()),
                    "step": accelerator.step,
                }
                digest = file_digest(best / MANIFEST)
                write_json(last / STATE, {**vars(state), "best": digest, **numbers, "made_of": made_of})
                folders.finish(last)
            undo.pop_all()
        if args.save_checkpoints:
            folders.put(last, folder / LAST)
        if better:  # afterwards: until then it is the older best model that belongs to `last`
            folders.put(best, folder / BEST)

    kept = "that of the epoch before is kept: make room, then add --resume_from_checkpoint latest"
    _by_main(accelerator, write, f"epoch {state.epoch} can't be saved" + f" ({kept})" * (folder / LAST).is_dir())


def load_best(model_class: type[Model], args: TrainingArguments, device: torch.device) -> Model:
    """Return the best epoch's model, loaded as users load it, however it was wrapped in training."""
    folder = _folder(args) / BEST
    with _told():
        check_manifest(folder)
        options: Any = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        loaded: Any = model_class.from_pretrained(folder, **options)
        best, report = loaded
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{folder} lacks weights of the model: {', '.join(missing[:3])}")
    return best.to(device)


def description(
    args: Arguments, accelerator: Accelerator, posts: Sequence[Posts], encoded: Sequence[Sequence[EncodedPost]],
    experts: Mapping[str, torch.nn.Module] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return the options, how the run was launched, and digests of what it reads; only the same run can be resumed.

    Args:
        posts: the splits to learn from and to choose the epoch by.
        encoded: the same as rows of sub-tokens.
        experts: of a mixture, as they were loaded.
    """
    data = args.data
    reading = ("retrieval", "top_k", "knowledge_words", "max_length", "overflow", "splitter")
    options = asdict(args.model) | {name: getattr(data, name) for name in reading}
    options["min_score"] = data.least_score  # one that is chosen on dev changes nothing before
    options |= {key: value for key, value in asdict(args.training).items() if key not in MAY_CHANGE}
    if data.retrieval == "moe":
        options |= asdict(args.mixture)
    # images are tensors made from the files that the posts name
    rows = [[{**post, "image": None, "has_image": None} for post in split] for split in posts]
    digest = hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()[:32]
    read = {"posts": digest, SUB_TOKENS: rows_digest(*encoded)}
    read |= {f"weights of expert {name}": weights_digest(expert) for name, expert in (experts or {}).items()}
    return options | launched(accelerator) | read


def launched(accelerator: Accelerator) -> dict[str, Any]:
    """Return what `accelerate launch` decides of a run's batches and numbers."""
    names = ("num_processes", "gradient_accumulation_steps", "mixed_precision")
    return {name: getattr(accelerator, name) for name in names}


def check_checkpoint(args: TrainingArguments, made_of: dict[str, Any]) -> None:
    """Check that the checkpoint to resume from, if any, is there and belongs to the run that `made_of` describes.

    Raises:
        FileNotFoundError: if the checkpoint, or the best epoch's model beside it, is missing.
        ValueError: if another run made it (names the differing options), it has more epochs than are wanted, or is
            none of this library.
    """
    wanted = args.resume_from_checkpoint
    if not wanted or (checkpoint := find_checkpoint(_folder(args), wanted)) is None:
        return
    saved = read_state(checkpoint)
    _check_same_run(checkpoint, saved, args, made_of)
    folders.best_beside(checkpoint, saved["best"])


def find_checkpoint(folder: Path, wanted: str) -> Path | None:
    """Return the checkpoint to resume from, or None if 'latest' is wanted and there is none yet."""
    if wanted != "latest":
        if not (Path(wanted) / STATE).is_file():
            raise FileNotFoundError(f"{wanted} is no checkpoint of this library: {STATE} is missing there")
        return Path(wanted)
    last = whole_folder(folder / LAST)
    return last if last.is_dir() else None


def _folder(args: TrainingArguments) -> Path:
    return Path(args.output_dir) / "checkpoints"


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's `training_state.json`, or raise ValueError if no training wrote it so."""
    if not (checkpoint / MANIFEST).is_file() and any(next(checkpoint.glob(one), None) for one in PICKLES):
        raise ValueError(
            f"{checkpoint} is of an earlier version, whose checkpoints are pickles: they can run code and are not "
            "opened. Train anew, or go on with the version that wrote it"
        )
    file = checkpoint / STATE
    saved = read_object(
        file, history=list, best_score=(int, float), best_epoch=int, epoch=int, best=str, made_of=dict,
        optimizer=list, schedule=dict, scaler=(dict, type(None)), step=int,
    )  # fmt: skip
    history, epoch = saved["history"], saved["epoch"]
    for number, row in enumerate(history, 1):
        whole = isinstance(row, dict) and row.get("epoch") == number and all(map(is_number, row.values()))
        if not whole or not {"loss", "dev_f1"} <= row.keys():
            raise ValueError(f"{file}: row {number} of the history is not that of an epoch with its scores")
    if not epoch == len(history) > 0:
        raise ValueError(f"{file}: {epoch} epochs are told to be done, the history has {len(history)}")
    best = max(row["dev_f1"] for row in history)
    if not (
        1 <= saved["best_epoch"] <= epoch and best == saved["best_score"] == history[saved["best_epoch"] - 1]["dev_f1"]
    ):
        raise ValueError(f"{file}: the best epoch and its score are not those of the history")
    return saved


def _check_same_run(checkpoint: Path, saved: dict[str, Any], args: TrainingArguments, made_of: dict[str, Any]) -> None:
    """Raise ValueError if a checkpoint is of another run, or has more epochs than are wanted."""
    if (done := saved["epoch"]) > args.num_train_epochs:
        raise ValueError(
            f"{checkpoint} has {done} epochs done, --num_train_epochs {args.num_train_epochs} is fewer: give at least "
            "as many, or train anew in another --output_dir"
        )
    found, own = saved["made_of"], as_json(made_of)
    if SUB_TOKENS not in found and SUB_TOKENS in own:
        raise ValueError(
            f"{checkpoint} is of an earlier version, whose checkpoints don't tell the {SUB_TOKENS}: train anew, or go "
            "on with the version that wrote it"
        )
    if differing := sorted(key for key in found.keys() | own.keys() if found.get(key) != own.get(key)):
        there, here = (", ".join(str(one.get(key)) for key in differing) for one in (found, own))
        read = "; its tokenizer or processor has changed since" if differing == [SUB_TOKENS] else ""
        raise ValueError(
            f"{checkpoint} is of a run with other {', '.join(differing)} ({there}; here {here}){read}: go on with "
            "those, or train anew without --resume_from_checkpoint or in another --output_dir"
        )


def _check_sharding(accelerator: Accelerator) -> None:
    """Raise ValueError where the optimizer's state lies in a way that we can't gather."""
    kind = accelerator.distributed_type
    others = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA)
    if kind in others or (kind == DistributedType.FSDP and not accelerator.is_fsdp2):
        name = "FSDP of version 1" if kind == DistributedType.FSDP else kind.value
        raise ValueError(
            f"under {name} no checkpoint to resume from can be kept without pickles: give --no_save_checkpoints (the "
            "best model is still kept), or shard by FSDP2 (accelerate_configs/fsdp2.yaml)"
        )


@contextmanager
def _told() -> Iterator[None]:
    """Tell errors of files as errors of checkpoints, in one sentence."""
    try:
        yield
    except CheckpointError:
        raise
    except (ValueError, OSError, SafetensorError) as error:
        raise CheckpointError(" ".join(str(error).split())) from error


def _by_main(accelerator: Accelerator, job: Callable[[], None], failed: str = "") -> None:
    """Do a job in the main process while the others wait; an error of files is raised in all of them."""
    told: list[str | None] = [None]
    if accelerator.is_main_process:
        try:
            job()
        except (ValueError, OSError, SafetensorError) as error:
            logger.debug("checkpoint", exc_info=True)
            told = [f"{failed}: {error}" if failed else str(error)]
    broadcast_object_list(told)
    if told[0] is not None:
        raise CheckpointError(" ".join(told[0].split()))
