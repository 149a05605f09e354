"""This module loads the saved experts, mixtures and processors that the options of a run name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from huggingface_hub import hf_hub_download
from transformers import AutoProcessor

from ..configuration_mixture import MoReMixtureConfig
from ..configuration_more import MoReConfig
from ..data.tasks import Task
from ..files import MANIFEST
from ..foreign import check_manifest, read_object, resolve_inside
from ..loading import config_of
from ..mixed_experts import find_tower
from ..modeling_more import MoRePreTrainedModel
from ..naming import loaded_from, nearest
from ..processing_more import MoReProcessor
from ..provenance import hub_options, is_own
from .arguments import Arguments, ModelArguments
from .retrieval import knowledge_column

logger = logging.getLogger(__name__)

SAVED = (MoReConfig.model_type, MoReMixtureConfig.model_type)
WEIGHTS = ".safetensors"


def load_saved(
    task: Task, args: Arguments, labels: Sequence[str], accelerator: Accelerator
) -> tuple[Any, MoReProcessor]:
    """Return a saved expert, to be scored or trained further, and its processor.

    Raises:
        ValueError: if it is no expert for the task, or does not know all labels.
    """
    name = args.model.model_name_or_path
    if model_kind(args.model) == MoReMixtureConfig.model_type:
        raise ValueError(f"{name} is a mixture: here it can only predict, see --predict_file")
    processor = load_processor(task, args.model, accelerator)
    expert = load_expert(task, args.model, accelerator)
    if unknown := sorted(set(labels) - set(expert.config.label2id)):
        known = nearest(unknown[0], expert.config.label2id)
        raise ValueError(f"{name} does not know the labels {', '.join(unknown)} of the data{known}")
    if args.data.min_score is not None:
        processor.min_score = args.data.least_score
    given = knowledge_column(args.data.retrieval)
    if processor.knowledge_column != given:
        logger.warning(
            "%s reads %s, --retrieval %s gives %s: it reads the words alone",
            name, processor.knowledge_column or "no knowledge", args.data.retrieval, given or "none",
        )  # fmt: skip
    return expert, processor


def check_saved(source: str, revision: str | None = None, weights: bool = True) -> None:
    """Check the files of a saved expert or mixture, in a folder or on the Hub, against its manifest, if it has one.

    Args:
        weights: whether to check the weights too, which takes a second for every gigabyte.

    Raises:
        ValueError: a file is missing, or is not the one that was saved with the others.
    """
    folder = Path(source)
    if not folder.is_dir():
        try:
            folder = Path(hf_hub_download(source, MANIFEST, revision=revision, **hub_options(source))).parent
        except (OSError, ValueError):  # not every expert was made by our scripts, nor is the Hub always there
            return
    if not (folder / MANIFEST).is_file():
        return
    files = read_object(folder / MANIFEST, files=dict)["files"]
    names = [str(name) for name in files if weights or not str(name).endswith(WEIGHTS)]
    if not Path(source).is_dir():
        for name in names:  # into the folder of the same commit
            file = resolve_inside(folder, name).relative_to(folder).as_posix()
            hf_hub_download(source, file, revision=folder.name, **hub_options(source))
    check_manifest(folder, names)


def encoder_options(args: ModelArguments) -> dict[str, Any]:
    """Return the options with which the encoder is loaded."""
    attention = {"attn_implementation": args.attn_implementation} if args.attn_implementation else {}
    return {"revision": args.model_revision, **attention}


def saved_config(args: ModelArguments) -> Any:
    """Return the configuration of the model, which may be an expert, a mixture or an encoder."""
    name = args.model_name_or_path
    with loaded_from("--model_name_or_path", name):
        config = config_of(name, revision=args.model_revision)
    if isinstance(config, MoReMixtureConfig):
        find_tower(config, name, is_own(Path(name) / "config.json"), {"revision": args.model_revision})
    return config


def model_kind(args: ModelArguments) -> str:
    """Return the `model_type` in the model's configuration: an expert's, a mixture's, or an encoder's."""
    return str(saved_config(args).model_type)


def load_processor(task: Task, args: ModelArguments, accelerator: Accelerator) -> MoReProcessor:
    """Return the processor of a saved expert or mixture, or raise ValueError if it is none for this task."""
    name, revision = args.model_name_or_path, args.model_revision
    if (kind := model_kind(args)) not in SAVED:
        raise ValueError(
            f"{name} is a plain encoder ({kind}): to score or predict without training give --model_name_or_path "
            "the output folder, or the Hub id, of a trained expert"
        )
    with accelerator.main_process_first():
        check_saved(name, revision, weights=False)
        place = {"revision": revision, "trust_remote_code": False, **hub_options(name)}
        processor: MoReProcessor = AutoProcessor.from_pretrained(name, **place)
    if processor.markers != task.markers:
        other = "relations: use run_re.py" if processor.markers else "entities: use run_ner.py"
        raise ValueError(f"{name} is an expert for {other}")
    return processor


def load_expert(task: Task, args: ModelArguments, accelerator: Accelerator) -> MoRePreTrainedModel:
    """Return the saved expert or mixture in float32, on the accelerator's device."""
    name, revision = args.model_name_or_path, args.model_revision
    model_class = task.mixture_class if model_kind(args) == MoReMixtureConfig.model_type else task.model_class
    with accelerator.main_process_first():
        check_saved(name, revision)
        model: MoRePreTrainedModel = model_class.from_pretrained(name, revision=revision, dtype=torch.float32)
    return model.to(accelerator.device)
