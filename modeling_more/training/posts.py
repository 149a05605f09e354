"""This module loads the posts that the options name, adds their knowledge, and holds a part of them out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict, concatenate_datasets

from ..data.sources import Source, check_trainable, is_labelled, load_source
from ..data.tasks import Task
from ..pipelines import name_of
from ..posts import Posts
from .arguments import DataArguments
from .retrieval import add_knowledge, check_column, knowledge_column, searchable
from .score_threshold import check_min_score

logger = logging.getLogger(__name__)


def load_posts(
    args: DataArguments,
    task: Task,
    load_named: Callable[..., DatasetDict],
    names: Sequence[str],
    training: bool = False,
) -> tuple[dict[str, Posts], list[str], dict[str, Any]]:
    """Return the splits that the options name as rows, with labels as strings and the knowledge of `--retrieval`.

    Knowledge is retrieved only for the first rows that `--max_train_samples` and `--max_eval_samples` keep. Hidden
    labels are None.

    Args:
        load_named, names: the loader and the names of the named data sets, see `load_source`.
        training: whether the train and validation splits must have labels.

    Returns:
        the rows of each split, the entity types or relations, and a report of the retrieval.
    """
    source = load_splits(args, task, load_named, names)
    if training:
        check_trainable(source, task)
    rows, report = with_knowledge(args, source, chosen(args, source))
    check_min_score(args, rows, task)
    return rows, source.types, report


def load_splits(
    args: DataArguments, task: Task, load_named: Callable[..., DatasetDict], names: Sequence[str]
) -> Source:
    """Return the splits that the options name, before anything is retrieved."""
    given_files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
    files = {split: path for split, path in given_files.items() if path is not None}
    for name in ("dataset", "data_dir"):
        if files and getattr(args, name) is not None:
            raise ValueError(f"--{name} and --{next(iter(files))}_file are both given: use one of them")
    # if knowledge is retrieved here, the data set's own is not read
    retrieval = "none" if args.knowledge and not files else args.retrieval
    source = load_source(
        task, args.dataset, files, retrieval,
        load_named=load_named, names=names, data_dir=args.data_dir, cache_dir=args.cache_dir,
        splitter=args.splitter, columns=args.columns,
    )  # fmt: skip
    for split, rows in source.rows.items():
        if split != "train":  # which is cut, and counted
            check_sizes(rows, args, files.get(split, f"the {split} posts"))
    return source


def check_sizes(posts: Posts, args: DataArguments, where: str) -> None:
    """Raise ValueError if a post has more words or pairs than are read; `where` says whose posts they are."""
    for number, post in enumerate(posts):
        if (words := len(post["tokens"])) > args.max_words:
            raise ValueError(
                f"{where}: {name_of(post, number)} has {words} words: split it (in CoNLL an empty line stands between "
                f"posts), or raise --max_words, which is {args.max_words}"
            )
        entities = len(post.get("entities") or ())
        if (pairs := entities * (entities - 1)) > args.max_pairs:
            raise ValueError(
                f"{where}: {name_of(post, number)} has {entities} entities, which make {pairs} pairs: give fewer, or "
                f"raise --max_pairs, which is {args.max_pairs}"
            )


def chosen(args: DataArguments, source: Source) -> dict[str, list[int]]:
    """Return the positions of the rows to use: the first of each split, up to the limits in the options."""
    limits = {split: args.max_train_samples if split == "train" else args.max_eval_samples for split in source.rows}
    return {split: list(range(len(rows)))[: limits[split]] for split, rows in source.rows.items()}


def with_knowledge(
    args: DataArguments, source: Source, places: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Posts], dict[str, Any]]:
    """Return the rows at some positions of each split, with the knowledge column that `--retrieval` names.

    With `--shuffle_knowledge` a post gets the knowledge of the post half a split away: this is not random, and no post
    keeps its own. The second value is a report of the retrieval.
    """
    rows = {split: [source.rows[split][place] for place in chosen] for split, chosen in places.items()}
    if args.retrieval == "none":
        return rows, {}
    column = str(knowledge_column(args.retrieval))
    givers = dict(places)
    if args.shuffle_knowledge:
        for split, chosen in places.items():
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
    for split, posts in rows.items():
        rows[split] = [{**post, column: entries} for post, entries in zip(posts, knowledge[split], strict=True)]
    return rows, report


def _searched(source: Source, split: str, places: Sequence[int]) -> Dataset:
    """Return what retrieval may see of some rows, with their images."""
    posts = searchable([source.rows[split][place] for place in places], source.columns.get(split))
    images = source.images.get(split)
    return posts if images is None else concatenate_datasets([posts, images.select(places)], axis=1)


def check_splits(splits: Mapping[str, Posts], types: Sequence[str], task: Task, training: bool) -> None:
    """Log the content of the splits, and raise ValueError if one that the run needs is missing."""
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
    """Return the posts to train on and those that are held out, or end the program if none is left to train on."""
    kept, held = split_holdout(posts, fraction)
    if not kept:
        raise SystemExit(f"error: all {len(held)} training posts are held out: lower --holdout_fraction")
    return kept, held


def split_holdout(posts: Posts, fraction: float) -> tuple[Posts, Posts]:
    """Return the posts to keep and about `fraction` of them to hold out, by a digest: the same for all experts."""
    if not 0 <= fraction < 1:
        raise ValueError(f"--holdout_fraction is {fraction}, it must lie between 0 and 1")
    held = [post_digest(post) / 2**64 < fraction for post in posts]
    kept = [post for post, is_held in zip(posts, held, strict=True) if not is_held]
    return kept, [post for post, is_held in zip(posts, held, strict=True) if is_held]


def post_digest(post: dict[str, Any]) -> int:
    """Return a 64-bit number by which posts are split, the same for all rows of one post.

    For entities a row is a post, and its id counts. For relations a post has a row per pair, so its words count: a
    gate must not learn from posts that the experts know.
    """
    name = "\0".join(post["tokens"]) if "relation" in post else post["id"]
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def describe(rows: Mapping[str, Posts]) -> str:
    """Return the sizes of the splits in words, like `train 3373, validation 723, test 723`."""
    return ", ".join(f"{split} {len(posts)}" for split, posts in rows.items())
