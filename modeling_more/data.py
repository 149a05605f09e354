"""From the scripts' arguments to rows: load the splits, attach knowledge, set a holdout aside."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset

from .arguments import DataArguments
from .formats import RELATION_DATA, read_labelled
from .retrieval import add_knowledge, knowledge_column
from .tagging import entity_types

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
Posts = list[dict[str, Any]]


def load_posts(
    args: DataArguments, load_named: Callable[..., DatasetDict], names: Sequence[str]
) -> tuple[dict[str, Posts], list[str], dict[str, Any]]:
    """The splits that the arguments name, with string tags and, for `--retrieval`, their knowledge column.

    Args:
        load_named: `load(name, retrieval, data_dir=, cache_dir=)` of the data set scripts.
        names: the names that it knows.

    Returns:
        rows of each split; the entity types of the training split; a report of what retrieval did.

    Raises:
        ValueError: for data that can't be used, with the reason in one sentence.
    """
    if args.dataset is not None and args.train_file is not None:
        raise ValueError("--dataset and --train_file are both given: use one of them")
    if args.train_file is not None or args.test_file is not None or args.validation_file is not None:
        splits = _from_files(args)
    else:
        assert args.dataset is not None
        splits = _from_dataset(args, load_named, names)
    types = entity_types(tag for split in splits.values() for tag in _tag_names(split))
    report: dict[str, Any] = {}
    if args.retrieval != "none":
        splits, report = add_knowledge(args, splits)
    rows = {split: _rows(data) for split, data in splits.items()}
    if args.shuffle_knowledge and args.retrieval != "none":
        column = knowledge_column(args.retrieval)
        rows = {split: _shifted(posts, str(column)) for split, posts in rows.items()}
    return rows, types, report


def split_holdout(posts: Posts, fraction: float) -> tuple[Posts, Posts]:
    """Set about `fraction` of the posts aside, chosen by a digest of the id: all experts keep the same ones."""
    if not 0 <= fraction < 1:
        raise ValueError(f"--holdout_fraction is {fraction}, it must lie between 0 and 1")
    kept: Posts = []
    held: Posts = []
    for post in posts:
        number = int.from_bytes(hashlib.sha256(post["id"].encode()).digest()[:8], "big") / 2**64
        (held if number < fraction else kept).append(post)
    return kept, held


def _from_files(args: DataArguments) -> dict[str, Dataset]:
    files = dict(zip(SPLITS, (args.train_file, args.validation_file, args.test_file), strict=True))
    splits: dict[str, Dataset] = {}
    types: list[str] | None = None
    for split, path in files.items():
        if path is not None:
            rows = read_labelled(
                path, types=types, style=args.splitter, knowledge_column=f"knowledge_{args.retrieval}"
            )
            if split == "train":  # the other files may hold no label that this one lacks
                types = entity_types(tag for row in rows for tag in row["ner_tags"])
            splits[split] = Dataset.from_list(rows)
    return splits


def _from_dataset(
    args: DataArguments, load_named: Callable[..., DatasetDict], names: Sequence[str]
) -> dict[str, Dataset]:
    name = str(args.dataset)
    # where knowledge is retrieved here, what the source brings along is not read
    retrieval = "none" if args.knowledge else args.retrieval
    if name in names:
        return dict(load_named(name, retrieval, data_dir=args.data_dir, cache_dir=args.cache_dir))
    if not Path(name).is_dir() and name.count("/") != 1:
        raise ValueError(
            f"--dataset {name} is neither a folder, nor a Hub id like ORG/NAME, nor one of {', '.join(names)}"
        )
    try:
        data = load_dataset(name, retrieval, cache_dir=args.cache_dir)
    except (ValueError, OSError, ConnectionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--dataset {name}, configuration {retrieval}, can't be loaded: {reason}") from error
    splits = {split: data[split] for split in SPLITS if split in data}
    for split, rows in splits.items():
        _check_columns(f"--dataset {name}, split {split}", rows)
    return splits


def _check_columns(where: str, rows: Dataset) -> None:
    if {"relation", "h", "head"} & set(rows.column_names):
        raise ValueError(f"{where}: {RELATION_DATA}")
    lacking = [column for column in ("tokens", "ner_tags") if column not in rows.column_names]
    if lacking:
        raise ValueError(f"{where} has no column {', '.join(lacking)}; it has {', '.join(rows.column_names)}")


def _tag_names(rows: Dataset) -> list[str]:
    names = getattr(rows.features["ner_tags"].feature, "names", None)
    return names if names is not None else sorted({tag for tags in rows["ner_tags"] for tag in tags})


def _rows(data: Dataset) -> Posts:
    names = getattr(data.features["ner_tags"].feature, "names", None)
    rows = data.remove_columns([name for name in ("image",) if name in data.column_names]).to_list()
    for index, row in enumerate(rows):
        if names is not None:
            row["ner_tags"] = [names[tag] for tag in row["ner_tags"]]
        row.setdefault("id", str(index))
    return rows


def _shifted(posts: Posts, column: str) -> Posts:
    """Every post with the knowledge of the post half the split away: nothing random, nobody keeps the own one."""
    half = max(1, len(posts) // 2)
    return [{**post, column: posts[(index + half) % len(posts)][column]} for index, post in enumerate(posts)]


def describe(rows: Mapping[str, Posts]) -> str:
    """`train 3373, validation 723, test 723`."""
    return ", ".join(f"{split} {len(posts)}" for split, posts in rows.items())
