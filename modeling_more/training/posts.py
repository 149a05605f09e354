"""From the arguments to the posts of a run: the splits with their knowledge, and the part that is held out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict, concatenate_datasets

from ..data.sources import Source, check_trainable, is_labelled, load_source
from ..data.tasks import Task
from ..posts import Posts
from .arguments import DataArguments
from .retrieval import add_knowledge, check_column, knowledge_column, searchable

logger = logging.getLogger(__name__)


def load_posts(
    args: DataArguments,
    task: Task,
    load_named: Callable[..., DatasetDict],
    names: Sequence[str],
    training: bool = False,
) -> tuple[dict[str, Posts], list[str], dict[str, Any]]:
    """Return the splits that the arguments name as rows: labels as strings and, for `--retrieval`, their knowledge.

    Of each split only the first rows are kept, as many as `--max_train_samples` and `--max_eval_samples` say, and
    knowledge is retrieved for these alone. Labels that are hidden (all of a split) are None.

    Args:
        task: `ENTITIES` or `RELATIONS`.
        load_named, names: the named data sets, see `load_source`.
        training: whether train and validation split must have labels.

    Returns:
        rows of each split; the entity types or relations; a report of what retrieval did.

    Raises:
        ValueError: for data that can't be used, with the reason in one sentence.
    """
    source = load_splits(args, task, load_named, names)
    if training:
        check_trainable(source, task)
    rows, report = with_knowledge(args, source, chosen(args, source))
    return rows, source.types, report


def load_splits(
    args: DataArguments, task: Task, load_named: Callable[..., DatasetDict], names: Sequence[str]
) -> Source:
    """Return the splits that the arguments name, before anything is retrieved.

    Raises:
        ValueError: a data set and files are both given, or can't be used.
    """
    given_files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
    files = {split: path for split, path in given_files.items() if path is not None}
    given = next((name for name in ("dataset", "data_dir") if getattr(args, name) is not None), None)
    if files and given:
        raise ValueError(f"--{given} and --{next(iter(files))}_file are both given: use one of them")
    # where knowledge is retrieved here, what a data set brings along is not read
    retrieval = "none" if args.knowledge and not files else args.retrieval
    return load_source(
        task, args.dataset, files, retrieval,
        load_named=load_named, names=names, data_dir=args.data_dir, cache_dir=args.cache_dir,
        splitter=args.splitter, columns=args.columns,
    )  # fmt: skip


def chosen(args: DataArguments, source: Source) -> dict[str, list[int]]:
    """Return the places of the rows that are used: the first of each split, as the options limit them."""
    limits = {split: args.max_train_samples if split == "train" else args.max_eval_samples for split in source.rows}
    return {split: list(range(len(rows)))[: limits[split]] for split, rows in source.rows.items()}


def with_knowledge(
    args: DataArguments, source: Source, places: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Posts], dict[str, Any]]:
    """Return the rows at some places of each split, with the knowledge column that `--retrieval` names.

    With `--shuffle_knowledge` a post gets the knowledge of the post half the split away: nothing random, nobody keeps
    the own one. What is not used is not retrieved.

    Returns:
        the rows, and a report of what retrieval did.
    """
    rows = {split: [source.rows[split][place] for place in chosen] for split, chosen in places.items()}
    if args.retrieval == "none":
        return rows, {}
    column = str(knowledge_column(args.retrieval))
    givers = {split: list(chosen) for split, chosen in places.items()}
    if args.shuffle_knowledge:
        for split, chosen in givers.items():
            size = len(source.rows[split])
            givers[split] = [(place + max(1, size // 2)) % size for place in chosen]
    report: dict[str, Any] = {}
    if args.knowledge:
        attached, report = add_knowledge(args, {split: _searched(source, split, of) for split, of in givers.items()})
        knowledge = {split: list(data[column]) for split, data in attached.items()}
    else:
        for split, posts in source.rows.items():
            check_column(args, split, posts[0] if posts else [column])
        knowledge = {split: [source.rows[split][place][column] for place in of] for split, of in givers.items()}
    found = {
        split: [{**post, column: entries} for post, entries in zip(posts, knowledge[split], strict=True)]
        for split, posts in rows.items()
    }
    return found, report


def _searched(source: Source, split: str, places: Sequence[int]) -> Dataset:
    """Return what retrieval sees of some rows, with their images."""
    posts = searchable([source.rows[split][place] for place in places], source.columns.get(split))
    images = source.images.get(split)
    return posts if images is None else concatenate_datasets([posts, images.select(places)], axis=1)


def check_splits(splits: Mapping[str, Posts], types: Sequence[str], task: Task, training: bool) -> None:
    """Log what the splits hold, and raise ValueError where one is lacking that the run needs."""
    logger.info("rows: %s; labels: %s", describe(splits), ", ".join(types))
    for split, posts in splits.items():
        if not is_labelled(posts, task):
            logger.warning("the %s posts have no labels: they are predicted, not scored", split)
    for split in ("train", "validation"):
        if training and split not in splits:
            raise ValueError(f"training needs a {split} split; there is {describe(splits)}")
    if not {"validation", "test"} & splits.keys():
        raise ValueError(f"there is nothing to score: no validation or test split, but {describe(splits)}")


def hold_out(posts: Posts, fraction: float) -> tuple[Posts, Posts]:
    """Return the posts to train on and those that are held out, or end the program where none is left."""
    kept, held = split_holdout(posts, fraction)
    if not kept:
        raise SystemExit(f"error: all {len(held)} training posts are held out: lower --holdout_fraction")
    return kept, held


def split_holdout(posts: Posts, fraction: float) -> tuple[Posts, Posts]:
    """Set about `fraction` of the posts aside, chosen by a digest: all experts keep the same ones."""
    if not 0 <= fraction < 1:
        raise ValueError(f"--holdout_fraction is {fraction}, it must lie between 0 and 1")
    kept: Posts = []
    held: Posts = []
    for post in posts:
        (held if post_digest(post) / 2**64 < fraction else kept).append(post)
    return kept, held


def post_digest(post: dict[str, Any]) -> int:
    """Return a number of 64 bits by which posts are parted, alike for all rows of one post.

    A row of entities is a post and goes by its id. Relations have a row for each pair of a post (two fifths of
    MNRE's are further ones), so they go by the words: a gate must not learn from posts that the experts know.
    """
    name = "\0".join(post["tokens"]) if "relation" in post else post["id"]
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def describe(rows: Mapping[str, Posts]) -> str:
    """Return `train 3373, validation 723, test 723`."""
    return ", ".join(f"{split} {len(posts)}" for split, posts in rows.items())
