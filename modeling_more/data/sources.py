"""From the scripts' arguments to rows: load the splits, attach knowledge, set a holdout aside."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import has_magic
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetGenerationError

from ..naming import check_source, nearest, nearest_folder
from ..posts import KNOWLEDGE_COLUMNS, SpanCounts
from ..tagging import entity_types
from ..training.arguments import DataArguments
from ..training.retrieval import add_knowledge, check_column, knowledge_column, searchable
from .entity_formats import check_post, read_labelled
from .relation_formats import ENTITY_DATA, check_pair, read_relations
from .rows import HIDDEN, check_labelled, check_tag, clean_label, with_equal_columns
from .tables import class_names, stored_classes
from .text_files import RELATION_DATA

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
VALIDATION = ("validation", "valid", "dev", "val")  # names that sets give to it
Posts = list[dict[str, Any]]


@dataclass(frozen=True)
class Schema:
    """What tells the rows of one task from those of the other.

    Attributes:
        columns: sets of columns; rows have all of one set.
        label: the column of rows that holds the labels.
        foreign: columns of the other task; rows that have one are refused with `foreign_data`.
        read: reader of a labelled file, (path, labels or None, splitter, knowledge column, columns=).
        check: of one row of another source, see `check_post`.
        check_label: (label, place, None) -> the label as it is meant.
        types: entity types, or relations, among labels.
    """

    columns: tuple[tuple[str, ...], ...]
    label: str
    foreign: frozenset[str]
    foreign_data: str
    read: Callable[..., Posts]
    check: Callable[..., dict[str, Any]]
    check_label: Callable[[str, str, None], str]
    types: Callable[[Iterable[str]], list[str]]


ENTITIES = Schema(
    (("tokens", "ner_tags"), ("tokens", "tags"), ("text", "spans")),
    "ner_tags",
    frozenset({"relation", "h", "head"}),
    RELATION_DATA,
    read_labelled,
    check_post,
    check_tag,
    entity_types,
)
RELATIONS = Schema(
    (("tokens", "head", "tail", "relation"), ("text", "head", "tail", "relation")),
    "relation",
    frozenset({"ner_tags"}),
    ENTITY_DATA,
    read_relations,
    check_pair,
    lambda label, where, _: clean_label(label, where),
    lambda labels: list(dict.fromkeys(labels)),
)


@dataclass
class Source:
    """The splits as a source holds them, checked, before anything is retrieved.

    Attributes:
        rows: of each split, labels as strings (None where they are hidden).
        types: the entity types or relations.
        images: the column image of the splits that have one.
        columns: names of the columns that each split came with.
    """

    rows: dict[str, Posts]
    types: list[str]
    images: dict[str, Dataset] = field(default_factory=dict)
    columns: dict[str, set[str]] = field(default_factory=dict)


def load_posts(
    args: DataArguments,
    schema: Schema,
    load_named: Callable[..., DatasetDict],
    names: Sequence[str],
    training: bool = False,
) -> tuple[dict[str, Posts], list[str], dict[str, Any]]:
    """The splits that the arguments name as rows: labels as strings and, for `--retrieval`, their knowledge column.

    Of each split only the first rows are kept, as many as `--max_train_samples` and `--max_eval_samples` say, and
    knowledge is retrieved for these alone. Labels that are hidden (all of a split) are None.

    Args and errors as `load_source` and `check_trainable`.

    Returns:
        rows of each split; the entity types or relations; a report of what retrieval did.
    """
    source = load_source(args, schema, load_named, names)
    if training:
        check_trainable(source, schema)
    rows, report = with_knowledge(args, source, chosen(args, source))
    return rows, source.types, report


def load_source(
    args: DataArguments, schema: Schema, load_named: Callable[..., DatasetDict], names: Sequence[str]
) -> Source:
    """The splits that the arguments name, every row checked.

    Args:
        schema: `ENTITIES` or `RELATIONS`.
        load_named: `load(name, retrieval, data_dir=, cache_dir=, splitter=)` of the data set scripts.
        names: the names that it knows.

    Raises:
        ValueError: for data that can't be used, with the reason in one sentence.
    """
    files = [name for name in ("train_file", "validation_file", "test_file") if getattr(args, name) is not None]
    given = next((name for name in ("dataset", "data_dir") if getattr(args, name) is not None), None)
    if files and given:
        raise ValueError(f"--{given} and --{files[0]} are both given: use one of them")
    if files:
        return _from_files(args, schema)
    assert args.dataset is not None
    return _from_dataset(args, schema, load_named, names)


def chosen(args: DataArguments, source: Source) -> dict[str, list[int]]:
    """Places of the rows that are used: the first of each split, as the options limit them."""
    limits = {split: args.max_train_samples if split == "train" else args.max_eval_samples for split in source.rows}
    return {split: list(range(len(rows)))[: limits[split]] for split, rows in source.rows.items()}


def with_knowledge(
    args: DataArguments, source: Source, places: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Posts], dict[str, Any]]:
    """The rows at some places of each split, with the knowledge column that `--retrieval` names.

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
    """What retrieval sees of some rows, with their images."""
    posts = searchable([source.rows[split][place] for place in places], source.columns.get(split))
    images = source.images.get(split)
    return posts if images is None else concatenate_datasets([posts, images.select(places)], axis=1)


def is_labelled(posts: Posts, schema: Schema) -> bool:
    """Whether a split has labels; where they are hidden, they are so in all of its rows."""
    return all(post[schema.label] is not None for post in posts)


def check_trainable(source: Source, schema: Schema) -> None:
    """Raise ValueError where the training or validation posts have no labels."""
    reasons = {"train": "there is nothing to learn from", "validation": "the best epoch can't be chosen by them"}
    for split, reason in reasons.items():
        if split in source.rows and not is_labelled(source.rows[split], schema):
            raise ValueError(f"the {split} posts have no labels (-1 or null): {reason}")


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


def _from_files(args: DataArguments, schema: Schema) -> Source:
    files = dict(zip(SPLITS, (args.train_file, args.validation_file, args.test_file), strict=True))
    source = Source({}, [])
    types: list[str] | None = None
    labels: list[str] = []
    for split, path in files.items():
        if path is not None:
            rows = schema.read(path, types, args.splitter, f"knowledge_{args.retrieval}", columns=args.columns)
            source.rows[split] = rows
            labels += _labels(rows, schema)
            if split == "train" and is_labelled(rows, schema):
                # the other files may hold no label that this one lacks
                types = schema.types(label for row in rows for label in _as_list(row[schema.label]))
    source.types = schema.types(labels)
    return source


def _from_dataset(
    args: DataArguments, schema: Schema, load_named: Callable[..., DatasetDict], names: Sequence[str]
) -> Source:
    name = str(args.dataset)
    # where knowledge is retrieved here, what the source brings along is not read
    retrieval = "none" if args.knowledge else args.retrieval
    if name in names:
        options = {"data_dir": args.data_dir, "cache_dir": args.cache_dir, "splitter": args.splitter}
        splits = dict(load_named(name, retrieval, **options))
    else:
        if not Path(name).is_dir():
            if "/" not in name:
                raise ValueError(
                    f"--dataset {name} is neither a folder, nor a Hub id like ORG/NAME, nor one of {', '.join(names)}"
                    f"{nearest(name, names) or nearest_folder(Path(name))}"
                )
            check_source("--dataset", name)
        try:
            with _readable(name) as readable:
                data = load_dataset(readable, retrieval, cache_dir=_cache_of(name, args.cache_dir))
                stored = _stored_classes(readable, retrieval) if Path(name).is_dir() else {}
        except (ValueError, OSError, ConnectionError, DatasetGenerationError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"--dataset {name}, configuration {retrieval}, can't be loaded: {reason}{nearest_folder(Path(name))}"
            ) from error
        found = {split: split for split in SPLITS if split in data}
        own = next((split for split in VALIDATION if split in data), None)
        if own is not None:
            found["validation"] = own
        splits = {split: data[own] for split, own in found.items()}
        for own in found.values():
            for column, written in stored.get(own, []):
                _check_classes(f"--dataset {name}, split {own}", column, written, data[own])
    source = Source({}, [])
    labels: list[str] = []
    for split, rows in splits.items():
        where = f"--dataset {name}, split {split}"
        _check_columns(where, rows, schema)
        source.columns[split] = set(rows.column_names)
        kind = getattr(rows.features.get("image"), "dtype", None)
        if "image" in rows.column_names and kind not in ("string", "large_string", "int64", "int32"):  # else names
            source.images[split] = rows.select_columns(["image"])
            rows = rows.remove_columns(["image"])
        label = next(one for one in (schema.label, "tags", "spans") if one in rows.column_names)
        classes = class_names(rows.features[label])
        if classes is not None:
            place = f"{where}, column {label}"
            classes = [one if one == str(HIDDEN) else schema.check_label(one, place, None) for one in classes]
        source.rows[split] = _checked(where, rows, schema, args.splitter, classes)
        labels += _labels(source.rows[split], schema) if classes is None else classes
    source.types = schema.types(label for label in labels if label != str(HIDDEN))
    _warn_of_new_labels(f"--dataset {name}", source, schema)
    return source


def _stored_classes(folder: str, configuration: str) -> dict[str, list[tuple[str, list[str]]]]:
    """(column, its classes) of each Parquet file of the splits, as the files themselves name them."""
    files = load_dataset_builder(folder, configuration).config.data_files or {}
    return {
        str(split): [pair for path in paths for pair in stored_classes(Path(path)).items()]
        for split, paths in files.items()
    }


def _check_classes(where: str, column: str, classes: Sequence[str], data: Dataset) -> None:
    """Raise ValueError where the numbers of a file mean other classes than those it was loaded with."""
    loaded = class_names(data.features.get(column)) or []
    if any(own != other for own, other in zip(classes, loaded, strict=False)):
        raise ValueError(
            f"{where}: the column {column} names its classes {', '.join(classes)}, but datasets casts all splits to "
            f"{', '.join(loaded)}, by number; save the splits with one order of classes."
        )


def _warn_of_new_labels(where: str, source: Source, schema: Schema) -> None:
    """Say which types or relations a split has that nothing can be learnt of."""
    if "train" not in source.rows or not is_labelled(source.rows["train"], schema):
        return
    known = set(schema.types(_labels(source.rows["train"], schema)))
    for split, rows in source.rows.items():
        if new := sorted(set(schema.types(_labels(rows, schema))) - known):
            logger.warning("%s, split %s: %s occur there and not in the training posts.", where, split, ", ".join(new))


def _checked(where: str, data: Dataset, schema: Schema, splitter: str, names: list[str] | None) -> Posts:
    """The rows of a split, each as the check leaves it; rows without ids are numbered."""
    rows: Posts = []
    places: list[str] = []
    counts = SpanCounts()
    for place, item in _items(data, where):
        row = schema.check(item, place, splitter, names=names, counts=counts)
        rows.append({**row, "id": row["id"] or str(len(rows))})
        places.append(place)
    counts.report(where)
    check_labelled(rows, places, schema.label)
    for column in KNOWLEDGE_COLUMNS:
        if column in data.column_names:
            for row in rows:
                row.setdefault(column, [])
    return with_equal_columns(rows)


def _items(data: Dataset, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, item) of each row."""
    for first in range(0, len(data), 1000):
        chunk = data.select(range(first, min(first + 1000, len(data))))
        try:
            items = chunk.to_list()
        except UnicodeDecodeError:
            items = []
        for number in range(len(chunk)):
            place = f"{where}, row {first + number}"
            try:
                yield place, items[number] if items else chunk.select([number]).to_list()[0]
            except UnicodeDecodeError:
                raise ValueError(f"{place}: a string is not UTF-8 text.") from None


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


@contextmanager
def _readable(name: str) -> Iterator[str]:
    """The name of a data set as `load_dataset` reads it: a folder in whose path it would see a pattern (`[v1] set`)
    goes by links to its files, while it is read."""
    folder = Path(name).resolve()
    if not folder.is_dir() or not has_magic(str(folder)):
        yield name
        return
    with TemporaryDirectory() as scratch:
        for file in folder.rglob("*"):
            if file.is_file():
                link = Path(scratch) / "posts" / file.relative_to(folder)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
        yield str(Path(scratch) / "posts")


def _check_columns(where: str, rows: Dataset, schema: Schema) -> None:
    if schema.foreign & set(rows.column_names):
        raise ValueError(f"{where}: {schema.foreign_data}")
    lacking = [[name for name in columns if name not in rows.column_names] for columns in schema.columns]
    if all(lacking):
        raise ValueError(f"{where} has no column {', '.join(lacking[0])}; it has {', '.join(rows.column_names)}")


def _as_list(labels: str | list[str] | None) -> list[str]:
    return [labels] if isinstance(labels, str) else labels or []


def _labels(rows: Posts, schema: Schema) -> list[str]:
    """Those that occur, sorted."""
    return sorted({label for row in rows for label in _as_list(row[schema.label])})


def describe(rows: Mapping[str, Posts]) -> str:
    """`train 3373, validation 723, test 723`."""
    return ", ".join(f"{split} {len(posts)}" for split, posts in rows.items())
