"""The model of a run: a saved expert or mixture, or an encoder with a fresh head."""

from __future__ import annotations

import logging

import torch
from accelerate import Accelerator
from transformers import AutoConfig, AutoProcessor

from ..configuration_mixture import MoReMixtureConfig
from ..configuration_more import MoReConfig
from ..data.sources import Posts
from ..modeling_more import MoRePreTrainedModel
from ..naming import loaded_from, nearest
from ..processing_more import MoReProcessor
from .arguments import Arguments, ModelArguments
from .retrieval import knowledge_column
from .tasks import Task

logger = logging.getLogger(__name__)

SAVED = (MoReConfig.model_type, MoReMixtureConfig.model_type)


def load_model(
    task: Task, arguments: Arguments, types: list[str], posts: Posts, accelerator: Accelerator
) -> tuple[MoRePreTrainedModel, MoReProcessor]:
    """A saved expert as it is, or (to be trained) a fresh head on an encoder."""
    data, args, _, run, _ = arguments
    source = {"revision": args.model_revision}
    labels = task.labels(types, data)
    kind = model_kind(args)
    if kind == MoReMixtureConfig.model_type:
        raise ValueError(f"{args.model_name_or_path} is a mixture: here it can only predict, see --predict_file")
    if kind == MoReConfig.model_type or not run.do_train:
        processor = load_processor(task, args, accelerator)
        expert = load_expert(task, args, accelerator)
        unknown = sorted(set(labels) - set(expert.config.label2id))
        if unknown:
            known = nearest(unknown[0], expert.config.label2id)
            raise ValueError(
                f"{args.model_name_or_path} does not know the labels {', '.join(unknown)} of the data{known}"
            )
        if processor.knowledge_column != knowledge_column(data.retrieval):
            logger.warning(
                "%s reads %s, --retrieval %s gives %s: it reads the words alone",
                args.model_name_or_path,
                processor.knowledge_column or "no knowledge",
                data.retrieval,
                knowledge_column(data.retrieval) or "none",
            )
        return expert, processor
    options = {"attn_implementation": args.attn_implementation} if args.attn_implementation else {}
    with accelerator.main_process_first():
        processor = MoReProcessor.from_encoder_pretrained(
            args.model_name_or_path,
            tokenizer_options=source,
            knowledge_column=knowledge_column(data.retrieval),
            top_k=data.top_k,
            knowledge_words=data.knowledge_words,
            max_length=data.max_length,
            overflow=data.overflow,
            splitter=data.splitter,
            markers=task.markers,
        )
        model = task.model_class.from_encoder_pretrained(
            args.model_name_or_path,
            encoder_options={**source, **options},
            num_tokens=len(processor.tokenizer) if task.markers else 0,
            id2label=dict(enumerate(labels)),
            # one view is all there is without knowledge
            two_views="off" if data.retrieval == "none" else args.two_views,
            kl_temperature=args.kl_temperature,
            nll_weight=args.nll_weight,
            head_dropout=args.head_dropout,
            **task.model_options(args, data, posts, labels),
        )
    return model, processor


def model_kind(args: ModelArguments) -> str:
    """The model type: that of an expert, of a mixture, or of an encoder."""
    with loaded_from("--model_name_or_path", args.model_name_or_path):
        config = AutoConfig.from_pretrained(args.model_name_or_path, revision=args.model_revision)
    return str(config.model_type)


def load_processor(task: Task, args: ModelArguments, accelerator: Accelerator) -> MoReProcessor:
    """The processor of a saved expert or mixture.

    Raises:
        ValueError: it is neither, or one of the other task.
    """
    name, revision = args.model_name_or_path, args.model_revision
    if (kind := model_kind(args)) not in SAVED:
        raise ValueError(
            f"{name} is a plain encoder ({kind}): to score or predict without training give --model_name_or_path "
            "the output folder, or the Hub id, of a trained expert"
        )
    with accelerator.main_process_first():
        processor: MoReProcessor = AutoProcessor.from_pretrained(name, revision=revision)
    if processor.markers != task.markers:
        other = "relations: use run_re.py" if processor.markers else "entities: use run_ner.py"
        raise ValueError(f"{name} is an expert for {other}")
    return processor


def load_expert(task: Task, args: ModelArguments, accelerator: Accelerator) -> MoRePreTrainedModel:
    """The saved expert or mixture, in float32, on its device."""
    name, revision = args.model_name_or_path, args.model_revision
    model_class = task.mixture_class if model_kind(args) == MoReMixtureConfig.model_type else task.model_class
    with accelerator.main_process_first():
        model: MoRePreTrainedModel = model_class.from_pretrained(name, revision=revision, dtype=torch.float32)
    return model.to(accelerator.device)
