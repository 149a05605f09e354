"""This module loads the posts of a mixture, with the knowledge of every expert and the embeddings of their images."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from ..configuration_mixture import MoReMixtureConfig
from ..data.sources import check_trainable
from ..data.tasks import Task
from ..encoding import EXPERT_KNOWLEDGE
from ..files import user_cache
from ..posts import Posts
from .arguments import Arguments, DataArguments, ModelArguments
from .expert_outputs import image_features
from .experts import Expert, check_experts, load_experts
from .models import saved_config
from .posts import chosen, load_splits, with_knowledge
from .retrieval import knowledge_column

logger = logging.getLogger(__name__)


def load_mixture_posts(
    task: Task, args: Arguments, load_named: Callable[..., DatasetDict], names: Sequence[str]
) -> tuple[dict[str, Posts], list[str], dict[str, Any]]:
    """Return the splits with what every expert retrieves, joined by id, and the embedding of each post's image.

    Returns:
        the rows, with `EXPERT_KNOWLEDGE` (a list over the experts) and, if the gate sees images, `image` and
        `has_image`; the entity types or relations; and each expert's report of its retrieval.
    """
    data = args.data
    experts = load_experts(args.mixture.experts)
    # before anything is searched or loaded: a wrong expert, and a model that is no mixture, are told at once
    check_experts(task, args, experts)
    tower = image_model_of(args, experts)
    joined: dict[str, Posts] = {}
    all_ids: dict[str, set[str]] = {}
    types: list[str] = []
    reports: dict[str, Any] = {}
    for expert in experts:
        own = expert.data(data)
        source = load_splits(own, task, load_named, names)
        if args.training.do_train:
            check_trainable(source, task)
        types = source.types
        if joined and source.rows.keys() != joined.keys():
            raise ValueError(
                f"expert {expert.name} has the splits {', '.join(source.rows)}, {experts[0].name} has "
                f"{', '.join(joined)}"
            )
        places = chosen(own, source)
        for split, rows in source.rows.items():
            if split in source.columns and "id" not in source.columns[split]:
                raise ValueError(f"the {split} posts have no column id, by which their knowledge is joined")
            at = {row["id"]: place for place, row in enumerate(rows)}
            if len(at) < len(rows):
                twice = next(id_ for id_, count in Counter(row["id"] for row in rows).items() if count > 1)
                raise ValueError(f"the {split} posts of expert {expert.name} have the id {twice} twice: ids join them")
            if expert is experts[0]:
                all_ids[split] = set(at)
                continue
            if differing := sorted(at.keys() ^ all_ids[split]):
                raise ValueError(
                    f"the {split} posts of expert {expert.name} are not those of {experts[0].name}: "
                    f"{len(differing)} ids are in one only, like {differing[0]}"
                )
            # experts may read different configurations of a data set, whose rows may be in different orders
            places[split] = [at[row["id"]] for row in joined[split]]
        splits, report = with_knowledge(own, source, places)
        if report:
            reports[expert.name] = report
        column = knowledge_column(own.retrieval)
        for split, rows in splits.items():
            if expert is experts[0]:
                joined[split] = [{**row, EXPERT_KNOWLEDGE: []} for row in rows]
            for row, own_row in zip(joined[split], rows, strict=True):
                row[EXPERT_KNOWLEDGE].append(own_row.get(column) if column else None)
    if tower is not None:
        _add_images(task, args, experts, joined, load_named, names, tower)
    return joined, types, reports


def cache_of(args: Arguments) -> Path | None:
    """Return the folder that caches the experts' outputs and the image embeddings, or None if nothing is cached."""
    if not args.mixture.cache_expert_outputs:
        return None
    return user_cache(args.data.cache_dir)


def _add_images(
    task: Task, args: Arguments, experts: Sequence[Expert], joined: dict[str, Posts],
    load_named: Callable[..., DatasetDict], names: Sequence[str], tower: str,
) -> None:  # fmt: skip
    """Add the embeddings of the posts' images, if they have any in a column `image` or in `--image_dir`."""
    data = args.data
    by_image = _by_image(data, experts)
    image_dir = data.image_dir or by_image.image_dir
    source = None
    if image_dir is None:
        # a published set may hold the images only in its configuration for image retrieval
        published = by_image.retrieval == "image" and not by_image.knowledge
        own = replace(data, retrieval="image" if published else "none", knowledge=[])
        source = load_splits(own, task, load_named, names)
        if source.images.keys() != source.rows.keys():
            logger.info("the posts come without images: the gate sees their text alone")
            return
    from ..knowledge import ImageEncoder
    from ..knowledge.pictures import require_images

    if data.image_dir is not None:  # an expert's own image_dir may have moved, which is only a warning
        require_images(data.image_dir, {split: [row["image_id"] for row in rows] for split, rows in joined.items()})
    encoder = ImageEncoder(tower)
    for split, rows in joined.items():
        if source is None:
            posts = Dataset.from_list([{"image_id": row["image_id"]} for row in rows])
        else:
            places = {row["id"]: place for place, row in enumerate(source.rows[split])}
            if lacking := [row["id"] for row in rows if row["id"] not in places]:
                raise ValueError(f"the {split} posts with images lack {len(lacking)} ids, like {lacking[0]}")
            posts = source.images[split].select([places[row["id"]] for row in rows])
        vectors, usable = image_features(posts, image_dir, encoder, cache_of(args))
        for row, vector, one in zip(rows, vectors, usable, strict=True):
            row["image"], row["has_image"] = vector, one
    if data.image_dir is not None and not any(row["has_image"] for rows in joined.values() for row in rows):
        raise ValueError(f"no image of the posts in {data.image_dir} can be used")


def _by_image(data: DataArguments, experts: Sequence[Expert]) -> DataArguments:
    """Return the options of the first expert that retrieves by image, or those of this run if there is none."""
    return next((own for expert in experts if (own := expert.data(data)).retrieval == "image"), data)


def image_model_of(args: Arguments, experts: Sequence[Expert]) -> str | None:
    """Return the gate's image tower, that named, else the saved gate's or an expert's; None if it sees no images."""
    data, model = args.data, args.model
    given = data.image_model if data.image_model != DataArguments.image_model else None
    if not args.training.do_train:
        saved = _saved_config(model)
        if saved.image_dim and not (given or saved.image_model):
            raise ValueError(f"{model.model_name_or_path} does not tell its gate's image tower: give --image_model")
        return given or saved.image_model if saved.image_dim else None
    sees = args.mixture.gate_images and {"auto", "image"} & set(args.mixture.gate_inputs)
    return (given or _by_image(data, experts).image_model) if sees else None


def _saved_config(args: ModelArguments) -> MoReMixtureConfig:
    """Return the configuration of the mixture to score, or raise ValueError if `--model_name_or_path` is none."""
    config = saved_config(args)
    if not isinstance(config, MoReMixtureConfig):
        raise ValueError(
            f"--retrieval moe with --no_do_train scores a saved mixture, {args.model_name_or_path} is "
            f"{config.model_type}: give the mixture's folder or Hub id as --model_name_or_path, or drop --no_do_train"
        )
    return config
