"""This module starts and stops a run: devices and processes, logging, trackers, and the message on an interruption."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, InitProcessGroupKwargs
from transformers.utils import logging as transformers_logging

from .arguments import Arguments, TrainingArguments

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
    for chatty in ("httpx", "accelerate", "faiss"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # of loading weights, which is fast


@contextmanager
def running(args: Arguments, accelerator: Accelerator) -> Iterator[None]:
    """Start logging, run the block, and end its processes; if interrupted or diverged, end with a sentence on it."""
    start_logging(accelerator)
    warn_of_slow_cpu(accelerator, predict=args.posts is None)
    try:
        yield
        accelerator.end_training()
    except KeyboardInterrupt:
        raise SystemExit(
            f"\ninterrupted; the last complete epoch is kept: add --resume_from_checkpoint latest to go on "
            f"(in {args.training.output_dir})"
        ) from None
    except FloatingPointError as error:  # a training that diverged
        raise SystemExit(f"error: {error} (in {args.training.output_dir})") from None


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
