"""This module starts and stops a run: devices and processes, logging, trackers, and the message on an interruption."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, InitProcessGroupKwargs
from transformers.utils import logging as transformers_logging

from .arguments import Arguments, TrainingArguments
from .checkpoints import CheckpointError, find_checkpoint
from .folder_contents import MADE_OF
from .interruption import interrupted, raise_again

logger = logging.getLogger(__name__)


def make_accelerator(args: TrainingArguments) -> Accelerator:
    """Return an Accelerator with these options; unset ones are left to `accelerate launch`."""
    return Accelerator(
        # LengthBatchSampler itself gives every process the same number of batches
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
    """Warn of settings that make a run on a CPU needlessly slow; of few threads only if it does not just `predict`."""
    if accelerator.device.type != "cpu":
        return
    if accelerator.mixed_precision == "bf16" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        logger.warning("this CPU has no bf16 instructions: without --bf16 training is some ten times faster here")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not predict and accelerator.num_processes == 1 and torch.get_num_threads() == 1 < cores:
        # one thread is the default of accelerate launch
        logger.warning(
            "computing with one thread on %d cores: accelerate launch --num_cpu_threads_per_process %d uses them all",
            cores, cores,
        )  # fmt: skip


def start_logging(accelerator: Accelerator) -> None:
    """Log to the screen: all messages of the main process, errors of the others, and little from libraries."""
    level = logging.INFO if accelerator.is_main_process else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    quiet_libraries()


def quiet_libraries() -> None:
    """Let libraries say little, of which those who run a program need nothing."""
    for chatty in ("httpx", "httpx2", "accelerate", "faiss"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # of loading weights, which is fast


@contextmanager
def running(args: Arguments, accelerator: Accelerator) -> Iterator[None]:
    """Start logging, run the block, and end its processes; a bad checkpoint, NaN or Ctrl-C ends in a sentence."""
    start_logging(accelerator)
    warn_of_slow_cpu(accelerator, predict=args.posts is None)
    began = time.time()
    try:
        raise_again()
        yield
        accelerator.end_training()
    except CheckpointError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise interrupted(_kept(args, began)) from None
    except FloatingPointError as error:  # a training that diverged
        raise SystemExit(f"error: {error} (in {args.training.output_dir})") from None


def _kept(args: Arguments, began: float) -> str:
    """Return in words what an interrupted run can go on from, if anything."""
    training = args.training
    if not args.trains:
        return ""
    folders = [Path(one.training.output_dir) for one in args.each_seed()]
    last = [find_checkpoint(folder / "checkpoints", "latest") for folder in folders]
    # what an earlier run left may be of other options
    own = [one for one in last if one and (training.resume_from_checkpoint or one.stat().st_mtime >= began)]
    goes_on = f"add --resume_from_checkpoint latest to go on (in {training.output_dir})"
    if own:
        return f"; the last complete epoch is kept: {goes_on}"
    if any(next(folder.glob(f"crossfit/*/{MADE_OF}"), None) for folder in folders):
        return f"; the folds' experts that were finished are kept: {goes_on}"
    if not training.save_checkpoints:
        return "; nothing is kept to go on from, for --no_save_checkpoints was given"
    return " before the first epoch was complete: nothing is kept to go on from"


def start_trackers(args: Arguments, accelerator: Accelerator) -> None:
    """Start the trackers of `--report_to`, if any, with the options of the run."""
    if args.training.report_to:
        options = args.options().items()
        plain = {key: value if isinstance(value, int | float | str) else str(value) for key, value in options}
        accelerator.init_trackers("more", plain)


def stop_trackers(accelerator: Accelerator) -> None:
    """Finish the trackers of this training, but not the process group, which `end_training` would end too."""
    for tracker in accelerator.trackers:
        tracker.finish()
