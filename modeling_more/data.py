"""From the scripts' arguments to rows: load the splits, attach knowledge, set a holdout aside."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, load_dataset

from .arguments import DataArguments
from .formats import read_labelled
from .relation_formats import ENTITY_DATA, read_relations
from .retrieval import add_knowledge, knowledge_column
from .tagging import entity_types
from .text_files import RELATION_DATA

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
Posts = list[dict[str, Any]]


@dataclass(frozen=True)
class Schema:
    """What tells the rows of one task from those of the other.

    Attributes:
        columns: those that every row has.
        label: the one of them that holds the labels.
        foreign: columns of the other task; rows that have one are refused with `foreign_data`.
        read: reader of a labelled file, (path, labels or None, style of words, knowledge column, columns=).
        types: entity types, or relations, among labels.
    """

    columns: tuple[str, ...]
    label: str
    foreign: frozenset[str]
    foreign_data: str
    read: Callable[..., Posts]
    types: Callable[[Iterable[str]], list[str]]


ENTITIES = Schema(
    ("tokens", "ner_tags"),
    "ner_tags",
    frozenset({"relation", "h", "head"}),
    RELATION_DATA,
    read_labelled,
    entity_types,
)
RELATIONS = Schema(
    ("tokens", "head", "tail", "relation"),
    "relation",
    frozenset({"ner_tags"}),
    ENTITY_DATA,
    read_relations,
    lambda labels: list(dict.fromkeys(labels)),
)


def load_posts(
    args: DataArguments,
    schema: Schema,
    load_named: Callable[..., DatasetDict],
    names: Sequence[str],
    ids_needed: bool = False,
) -> tuple[dict[str, Posts], list[str], dict[str, Any]]:
    """The splits that the arguments name as rows: labels as strings and, for `--retrieval`, their knowledge column.

    Args and errors as `load_splits`; rows without ids are numbered, or, where ids are needed, an error.

    Returns:
        rows of each split; the entity types or relations; a report of what retrieval did.
    """
    splits, types, report = load_splits(args, schema, load_named, names)
    for split, data in splits.items():
        if ids_needed and "id" not in data.column_names:
            raise ValueError(f"the {split} posts have no column id, by which their knowledge is joined")
    rows = {split: _rows(data, schema.label) for split, data in splits.items()}
    if args.shuffle_knowledge and args.retrieval != "none":
        column = knowledge_column(args.retrieval)
        rows = {split: _shifted(posts, str(column)) for split, posts in rows.items()}
    return rows, types, report


def load_splits(
    args: DataArguments, schema: Schema, load_named: Callable[..., DatasetDict], names: Sequence[str]
) -> tuple[dict[str, Dataset], list[str], dict[str, Any]]:
    """The splits as data sets, with their knowledge column and all others that the source has.

    Args:
        schema: `ENTITIES` or `RELATIONS`.
        load_named: `load(name, retrieval, data_dir=, cache_dir=, style=)` of the data set scripts.
        names: the names that it knows.

    Raises:
        ValueError: for data that can't be used, with the reason in one sentence.
    """
    files = [name for name in ("train_file", "validation_file", "test_file") if getattr(args, name) is not None]
    source = next((name for name in ("dataset", "data_dir") if getattr(args, name) is not None), None)
    if files and source:
        raise ValueError(f"--{source} and --{files[0]} are both given: use one of them")
    if files:
        splits = _from_files(args, schema)
    else:
        assert args.dataset is not None
        splits = _from_dataset(args, schema, load_named, names)
    types = schema.types(label for split in splits.values() for label in _label_names(split, schema.label))
    if args.retrieval == "none":
        return splits, types, {}
    attached, report = add_knowledge(args, splits)
    return attached, types, report


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
    """A number of 64 bits by which posts are parted, alike for all rows of one post.

    A row of entities is a post and goes by its id. Relations have a row for each pair of a post (two fifths of
    MNRE's are further ones), so they go by the words: a gate must not learn from posts that the experts know.
    """
    name = "\0".join(post["tokens"]) if "relation" in post else post["id"]
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _from_files(args: DataArguments, schema: Schema) -> dict[str, Dataset]:
    files = dict(zip(SPLITS, (args.train_file, args.validation_file, args.test_file), strict=True))
    splits: dict[str, Dataset] = {}
    types: list[str] | None = None
    for split, path in files.items():
        if path is not None:
            rows = schema.read(path, types, args.splitter, f"knowledge_{args.retrieval}", columns=args.columns)
            if split == "train":  # the other files may hold no label that this one lacks
                types = schema.types(label for row in rows for label in _as_list(row[schema.label]))
            splits[split] = Dataset.from_list(rows)
    return splits


def _from_dataset(
    args: DataArguments, schema: Schema, load_named: Callable[..., DatasetDict], names: Sequence[str]
) -> dict[str, Dataset]:
    name = str(args.dataset)
    # where knowledge is retrieved here, what the source brings along is not read
    retrieval = "none" if args.knowledge else args.retrieval
    if name in names:
        options = {"data_dir": args.data_dir, "cache_dir": args.cache_dir, "style": args.splitter}
        splits = dict(load_named(name, retrieval, **options))
    else:
        if not Path(name).is_dir() and name.count("/") != 1:
            raise ValueError(
                f"--dataset {name} is neither a folder, nor a Hub id like ORG/NAME, nor one of {', '.join(names)}"
            )
        try:
            data = load_dataset(name, retrieval, cache_dir=_cache_of(name, args.cache_dir))
        except (ValueError, OSError, ConnectionError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"--dataset {name}, configuration {retrieval}, can't be loaded: {reason}") from error
        splits = {split: data[split] for split in SPLITS if split in data}
    for split, rows in splits.items():
        _check_columns(f"--dataset {name}, split {split}", rows, schema)
    return splits


def _cache_of(name: str, cache_dir: str | None) -> str | None:
    """The cache for a data set. `datasets` knows a folder by its name and file names alone: without a place of its own
    for each content, a changed folder, or another one of the same name, would give the rows of the first."""
    folder = Path(name)
    if not folder.is_dir():
        return cache_dir
    files = sorted(file for file in folder.resolve().rglob("*") if file.is_file())
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    digest = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]
    return str(Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / f"folder-{digest}")


def _check_columns(where: str, rows: Dataset, schema: Schema) -> None:
    if schema.foreign & set(rows.column_names):
        raise ValueError(f"{where}: {schema.foreign_data}")
    lacking = [column for column in schema.columns if column not in rows.column_names]
    if lacking:
        raise ValueError(f"{where} has no column {', '.join(lacking)}; it has {', '.join(rows.column_names)}")


def _as_list(labels: str | list[str]) -> list[str]:
    return [labels] if isinstance(labels, str) else labels


def _class_names(rows: Dataset, column: str) -> list[str] | None:
    feature = rows.features[column]
    return getattr(getattr(feature, "feature", feature), "names", None)


def _label_names(rows: Dataset, column: str) -> list[str]:
    names = _class_names(rows, column)
    return names if names is not None else sorted({label for row in rows[column] for label in _as_list(row)})


def _rows(data: Dataset, label: str) -> Posts:
    names = _class_names(data, label)
    rows = data.remove_columns([name for name in ("image",) if name in data.column_names]).to_list()
    for index, row in enumerate(rows):
        if names is not None:
            found = row[label]
            row[label] = names[found] if isinstance(found, int) else [names[one] for one in found]
        row.setdefault("id", str(index))
        if not row["tokens"]:
            raise ValueError(f"post {row['id']} has no words")
    return rows


def _shifted(posts: Posts, column: str) -> Posts:
    """Every post with the knowledge of the post half the split away: nothing random, nobody keeps the own one."""
    half = max(1, len(posts) // 2)
    return [{**post, column: posts[(index + half) % len(posts)][column]} for index, post in enumerate(posts)]


def describe(rows: Mapping[str, Posts]) -> str:
    """`train 3373, validation 723, test 723`."""
    return ", ".join(f"{split} {len(posts)}" for split, posts in rows.items())
