"""This module predicts posts without labels (`--do_predict`), with the knowledge that the expert reads."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import AutoProcessor

from ..data.tasks import Task
from ..encoding import EXPERT_KNOWLEDGE
from ..pipelines import MoRePipeline, columns_read
from ..post_knowledge import PostKnowledge
from ..posts import KNOWLEDGE_COLUMNS, Posts
from ..retrieval_settings import RetrievalSettings, shown_names
from .arguments import Arguments, DataArguments
from .command_line import one_sentence_errors
from .experts import add_expert_knowledge
from .interruption import interrupted
from .models import SAVED, load_expert, load_processor, model_kind
from .output_folders import begin_predicting
from .posts import check_sizes
from .retrieval import knowledge_column, makes_predictions, options_of, retrieved, retrieved_with_report
from .score_threshold import count_alone
from .shards import predict_in_shards, predicted_in_shards

logger = logging.getLogger(__name__)


def predict_alone(task: Task, args: Arguments, accelerator: Accelerator) -> dict[str, Any]:
    """Predict the posts of `--predict_file` with a saved expert or mixture, and return an empty dict of scores."""
    with one_sentence_errors():
        posts = posts_to_predict(task, args, False, accelerator)
        processor = load_processor(task, args.model, accelerator)
        if args.data.min_score is not None:
            if hasattr(processor, "processors"):
                raise ValueError("--min_score is for one expert: those of a mixture bring their own")
            processor.min_score = args.data.least_score
        expert = load_expert(task, args.model, accelerator)
    pipeline = task.pipeline_class(expert, processor, accelerator, args.training.per_device_eval_batch_size)
    write_predictions(Path(args.training.output_dir), pipeline, posts, args.data, begin_predicting(args, accelerator))
    return {}


def posts_to_predict(task: Task, args: Arguments, training: bool, accelerator: Accelerator) -> Posts:
    """Return the posts of `--predict_file` with their knowledge, split into words as the expert's training posts."""
    data = args.data
    splitter, column = data.splitter, knowledge_column(data.retrieval)  # for an expert that this run trains
    processor: Any = None
    if training and data.retrieval == "moe":
        processor = AutoProcessor.from_pretrained(args.mixture.experts[0])
    elif not training or model_kind(args.model) in SAVED:
        processor = load_processor(task, args.model, accelerator)
    if processor is not None:
        splitter = processor.splitter
        read = columns_read(processor)
        column = read.pop() if len(read) == 1 else None
    posts = task.read_unlabelled(str(data.predict_file), splitter, column or KNOWLEDGE_COLUMNS[0], data.columns)
    check_sizes(posts, data, str(data.predict_file))  # before a training that predicts them at its end
    if data.retrieval == "moe":
        add_expert_knowledge(posts, data, args.mixture.experts)
    elif makes_predictions(data) and not task.markers:
        if processor is not None and not searches_for_entities(processor):
            raise ValueError(
                f"{args.model.model_name_or_path} was not trained with --query entities: give --entities FILE …"
            )
    elif data.retrieval != "none" and data.knowledge:
        for post, entries in zip(posts, retrieved(data, posts), strict=True):
            post[str(knowledge_column(data.retrieval))] = entries
    elif processor is not None and data.retrieval == "none":
        add_knowledge_of_training(posts, data, processor)
    if data.image_dir is not None:
        add_images(posts, data.image_dir)
    return posts


def add_images(posts: Posts, image_dir: str) -> None:
    """Add to posts the files of their images, found by their ids; how many have none is logged.

    Raises:
        ValueError: none has one.
    """
    from ..knowledge.pictures import find_image, require_images

    require_images(image_dir, {"predict": [post["image_id"] for post in posts]})
    for post in posts:
        if post["image_id"] and (file := find_image(image_dir, post["image_id"])):
            post["image"] = file
    if lacking := sum("image" not in post for post in posts):
        logger.warning("%d of %d posts have no image in %s", lacking, len(posts), image_dir)


def add_knowledge_of_training(posts: Posts, data: DataArguments, processor: Any) -> None:
    """Retrieve for posts as a saved expert, or each of a mixture, was trained; what posts bring along is kept."""
    knowledge = PostKnowledge(processor)
    for place, expert in enumerate(knowledge.processors):
        settings: RetrievalSettings | None = expert.retrieval
        told = "the expert" if knowledge.names is None else f"expert {knowledge.names[place]}"
        lacking = [post for post in posts if knowledge.given(post)[place] is None]
        if settings is None or not lacking or expert.knowledge_column is None:
            continue
        if not data.entities and searches_for_entities(expert):
            continue  # its pipeline will predict them, see `open_second_searches`
        if settings.kind == "image" and data.image_dir is None:
            logger.warning("%s retrieves by image, but no --image_dir is given: it reads the words alone", told)
            continue
        if (own := options_of(settings, data)) is None:
            logger.warning(
                "the knowledge of %s, %s (fingerprint %s), is not known here: give --knowledge …; it reads the words "
                "alone", told, shown_names(settings.corpora), settings.fingerprint[:12],
            )  # fmt: skip
            continue
        logger.info("%s searches %s", told, shown_names(own.knowledge))
        found, report = retrieved_with_report(replace(own, top_k=knowledge.searched(place)), lacking)
        settings.check_fingerprint(report.get("corpus", settings.fingerprint), own.knowledge, told)
        knowledge.add(lacking, found, place)


def searches_for_entities(processor: Any) -> bool:
    """Return whether an expert searches for the entities that it finds in a first reading."""
    settings: RetrievalSettings | None = getattr(processor, "retrieval", None)
    return settings is not None and settings.query == "entities" and not processor.markers


def open_second_searches(pipeline: MoRePipeline, posts: Posts, data: DataArguments) -> None:
    """Let experts search for the entities that they find in these posts themselves, where no knowledge is given."""
    knowledge = pipeline.knowledge
    for place, expert in enumerate(knowledge.processors):
        if searches_for_entities(expert) and any(knowledge.given(post)[place] is None for post in posts):
            whose = "the expert" if knowledge.names is None else f"expert {knowledge.names[place]}"
            with pipeline.accelerator.main_process_first():
                knowledge.retrievals[place] = expert.load_retriever(data.knowledge, data.cache_dir, whose)


def write_predictions(
    output: Path, pipeline: MoRePipeline, posts: Posts, data: DataArguments, suffix: str = ""
) -> None:
    """Write an expert's or a mixture's predictions for these posts to `predictions/predict.jsonl`.

    They are written in shards as they are computed: the same run, started again, goes on from there.

    Args:
        suffix: of the file's name, see `begin_predicting`.
    """
    read = getattr(pipeline.processor, "processors", [pipeline.processor])
    given = len(posts[0].get(EXPERT_KNOWLEDGE) or read)
    if given != len(read):
        raise SystemExit(f"error: --experts names {given} experts, the mixture has {len(read)}")
    with one_sentence_errors():
        open_second_searches(pipeline, posts, data)
    lacking = sorted(c for c in columns_read(pipeline.processor) if not any(post.get(c) for post in posts))
    if lacking and not any(pipeline.knowledge.retrievals) and not any(EXPERT_KNOWLEDGE in post for post in posts):
        logger.warning("no post has %s: the words alone are read there", ", ".join(lacking))
    twice = [id_ for id_, count in Counter(post.get("id") for post in posts).items() if count > 1]
    if twice and not pipeline.processor.markers:  # a post may have several pairs
        logger.warning("%d ids stand for several posts, like %s: their order tells them apart", len(twice), twice[0])
    if not pipeline.mixed:
        count_alone(pipeline.processor, posts, "predicted")
    pipeline.max_words, pipeline.max_pairs = data.max_words, data.max_pairs
    path = output / "predictions" / f"predict{suffix}.jsonl"
    try:
        predict_in_shards(path, pipeline, posts)
    except (ValueError, OSError, KeyboardInterrupt) as error:
        kept = min(predicted_in_shards(path), len(posts))
        more = f"; {kept} of {len(posts)} posts are predicted and kept: run again to go on from there" if kept else ""
        if isinstance(error, KeyboardInterrupt):
            raise interrupted(more) from None
        raise SystemExit(f"error: {data.predict_file}: {' '.join(str(error).split())}{more}") from None
    logger.info("%d posts read: %s", len(posts), path)
