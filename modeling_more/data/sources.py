"""Load and check the splits of a data set, a folder of Parquet, or the user's own files."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from glob import has_magic
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetGenerationError

from ..naming import check_source, nearest, nearest_folder
from ..posts import Posts, Row, SpanCounts
from ..words import DEFAULT_SPLITTER
from .published import check_own_files, check_readers
from .rows import HIDDEN, checked_rows
from .tables import class_names, stored_classes
from .tasks import Task
from .text_files import check_size

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
VALIDATION = ("validation", "valid", "dev", "val")  # names that data sets give it


@dataclass
class Source:
    """A data set whose rows are checked, before anything is retrieved for them."""

    rows: dict[str, Posts]  # of each split, with labels as strings (None if they are hidden)
    types: list[str]  # entity types or relations
    images: dict[str, Dataset] = field(default_factory=dict)  # column `image` of each split that has one
    columns: dict[str, set[str]] = field(default_factory=dict)  # names of those that each split came with


def load_source(
    task: Task,
    dataset: str | None = None,
    files: Mapping[str, str] | None = None,
    retrieval: str = "none",
    *,
    load_named: Callable[..., DatasetDict] | None = None,
    names: Sequence[str] = (),
    data_dir: str | None = None,
    cache_dir: str | None = None,
    splitter: str = DEFAULT_SPLITTER,
    columns: Sequence[int] | None = None,
) -> Source:
    """Return the checked splits of a data set or of files.

    Args:
        dataset: one of `names`, a folder of Parquet, or a Hub id; not used with `files`.
        files: {"train": path, …}, in any of the formats.
        retrieval: the kind of knowledge to read with the rows, which names the data set's configuration.
        load_named: the loader of named sets, `load(name, retrieval, data_dir=, cache_dir=, splitter=)`.
        names: the names that `load_named` knows.
        columns: the columns of words and labels in CoNLL files, see `read_conll`.

    Where the data can't be used, a ValueError gives the reason in one sentence.
    """
    if files:
        return _from_files(task, files, retrieval, splitter, columns)
    if dataset is None:
        raise ValueError("there are no posts: give a data set or files")
    if load_named is not None and dataset in names:
        found = load_named(dataset, retrieval, data_dir=data_dir, cache_dir=cache_dir, splitter=splitter)
        return _from_splits(task, dataset, dict(found), splitter)
    return _from_splits(task, dataset, _load(dataset, retrieval, cache_dir, names), splitter)


def is_labelled(posts: Posts, task: Task) -> bool:
    """Return whether a split has labels; they are hidden in all of its rows or in none."""
    return all(post[task.label] is not None for post in posts)


def check_trainable(source: Source, task: Task) -> None:
    """Raise ValueError if the training or validation posts have no labels."""
    reasons = {"train": "there is nothing to learn from", "validation": "the best epoch can't be chosen by them"}
    for split, reason in reasons.items():
        if split in source.rows and not is_labelled(source.rows[split], task):
            raise ValueError(f"the {split} posts have no labels (-1 or null): {reason}")


def _from_files(
    task: Task, files: Mapping[str, str], retrieval: str, splitter: str, columns: Sequence[int] | None
) -> Source:
    source = Source({}, [])
    types: list[str] | None = None
    labels: list[str] = []
    for split, path in files.items():
        rows = task.read(path, types, splitter, f"knowledge_{retrieval}", columns=columns)
        source.rows[split] = rows
        labels += _labels(rows, task)
        if split == "train" and is_labelled(rows, task):
            # the other files must not hold labels that this one lacks
            types = task.types(label for row in rows for label in _as_list(row[task.label]))
    source.types = task.types(labels)
    return source


def _load(name: str, configuration: str, cache_dir: str | None, names: Sequence[str]) -> dict[str, Dataset]:
    """Return the splits of a folder or Hub id, under this library's names for them."""
    if not Path(name).is_dir():
        if "/" not in name:
            raise ValueError(
                f"--dataset {name} is neither a folder, nor a Hub id like ORG/NAME, nor one of {', '.join(names)}"
                f"{nearest(name, names) or nearest_folder(Path(name))}"
            )
        check_source("--dataset", name)
    try:
        check_own_files(name)
        cache = _cache_of(name, cache_dir)
        with _readable(name, cache) as readable:
            check_readers(name, load_dataset_builder(readable, configuration, cache_dir=cache))
            data = load_dataset(readable, configuration, cache_dir=cache)
            stored = _stored_classes(readable, configuration) if Path(name).is_dir() else {}
    except (ValueError, OSError, ConnectionError, DatasetGenerationError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"--dataset {name}, configuration {configuration}, can't be loaded: {reason}{nearest_folder(Path(name))}"
        ) from error
    found = {split: split for split in SPLITS if split in data}
    own = next((split for split in VALIDATION if split in data), None)
    if own is not None:
        found["validation"] = own
    for own in found.values():
        for column, written in stored.get(own, []):
            _check_classes(f"--dataset {name}, split {own}", column, written, data[own])
    return {split: data[own] for split, own in found.items()}


def _from_splits(task: Task, name: str, splits: Mapping[str, Dataset], splitter: str) -> Source:
    source = Source({}, [])
    labels: list[str] = []
    for split, rows in splits.items():
        where = f"--dataset {name}, split {split}"
        _check_columns(where, rows, task)
        source.columns[split] = set(rows.column_names)
        kind = getattr(rows.features.get("image"), "dtype", None)
        if "image" in rows.column_names and kind not in ("string", "large_string", "int64", "int32"):  # else names
            source.images[split] = rows.select_columns(["image"])
            rows = rows.remove_columns(["image"])
        label = next(one for one in (task.label, "tags", "spans") if one in rows.column_names)
        classes = class_names(rows.features[label])
        if classes is not None:
            place = f"{where}, column {label}"
            classes = [one if one == str(HIDDEN) else task.check_label(one, place, None) for one in classes]
        source.rows[split] = _checked(where, rows, task, splitter, classes)
        labels += _labels(source.rows[split], task) if classes is None else classes
    source.types = task.types(label for label in labels if label != str(HIDDEN))
    _warn_of_new_labels(f"--dataset {name}", source, task)
    return source


def _stored_classes(folder: str, configuration: str) -> dict[str, list[tuple[str, list[str]]]]:
    """Return for each split the (column, classes) that its Parquet files themselves store."""
    files = load_dataset_builder(folder, configuration).config.data_files or {}
    return {
        str(split): [pair for path in paths for pair in stored_classes(Path(path)).items()]
        for split, paths in files.items()
    }


def _check_classes(where: str, column: str, classes: Sequence[str], data: Dataset) -> None:
    """Raise ValueError if the class numbers in a file mean other classes than `datasets` loaded."""
    loaded = class_names(data.features.get(column)) or []
    if any(own != other for own, other in zip(classes, loaded, strict=False)):
        raise ValueError(
            f"{where}: the column {column} names its classes {', '.join(classes)}, but datasets casts all splits to "
            f"{', '.join(loaded)}, by number; save the splits with one order of classes."
        )


def _warn_of_new_labels(where: str, source: Source, task: Task) -> None:
    """Log a warning of types or relations in a split that do not occur in the training posts."""
    if "train" not in source.rows or not is_labelled(source.rows["train"], task):
        return
    known = set(task.types(_labels(source.rows["train"], task)))
    for split, rows in source.rows.items():
        if new := sorted(set(task.types(_labels(rows, task))) - known):
            logger.warning("%s, split %s: %s occur there and not in the training posts.", where, split, ", ".join(new))


def _checked(where: str, data: Dataset, task: Task, splitter: str, names: list[str] | None) -> Posts:
    """Return the rows of a split as the task's check returns them; rows without ids are numbered."""

    def check(item: Row, place: str, counts: SpanCounts) -> Row:
        return task.check(item, place, splitter, names=names, counts=counts)

    return checked_rows(_items(data, where), check, where, "", task.label, data.column_names)


def _items(data: Dataset, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row with a description of its place."""
    for first in range(0, len(data), 1000):
        chunk = data.select(range(first, min(first + 1000, len(data))))
        try:
            items = chunk.to_list()
        except UnicodeDecodeError:
            items = []
        for number in range(len(chunk)):
            place = f"{where}, row {first + number}"
            try:
                item = items[number] if items else chunk.select([number]).to_list()[0]
            except UnicodeDecodeError:
                raise ValueError(f"{place}: a string is not UTF-8 text.") from None
            check_size(item, place)
            yield place, item


def _cache_of(name: str, cache_dir: str | None) -> str | None:
    """Return the cache folder for a data set, a separate one for each content of a local folder.

    `datasets` knows a folder only by its name and file names, and would return the old rows of a changed one.
    """
    folder = Path(name)
    if not folder.is_dir():
        return cache_dir
    files = sorted(file for file in folder.resolve().rglob("*") if file.is_file())
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    digest = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]
    return str(Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / f"folder-{digest}")


@contextmanager
def _readable(name: str, cache: str | None) -> Iterator[str]:
    """Yield a name that `load_dataset` can read; it would take a path like `[v1] set` for a pattern, so such a folder
    is read through links to its files, which stay in the cache."""
    folder = Path(name).resolve()
    if not folder.is_dir() or not has_magic(str(folder)):
        yield name
        return
    with TemporaryDirectory() if has_magic(str(cache)) else nullcontext(str(cache)) as home:
        for file in folder.rglob("*"):
            if file.is_file():
                link = Path(home) / "posts" / file.relative_to(folder)
                link.parent.mkdir(parents=True, exist_ok=True)
                try:
                    link.symlink_to(file)
                except FileExistsError:  # by an earlier run: the cache is that of this very content
                    continue
        yield str(Path(home) / "posts")


def _check_columns(where: str, rows: Dataset, task: Task) -> None:
    if task.foreign & set(rows.column_names):
        raise ValueError(f"{where}: {task.foreign_data}")
    lacking = [[name for name in columns if name not in rows.column_names] for columns in task.columns]
    if all(lacking):
        raise ValueError(f"{where} has no column {', '.join(lacking[0])}; it has {', '.join(rows.column_names)}")


def _as_list(labels: str | list[str] | None) -> list[str]:
    return [labels] if isinstance(labels, str) else labels or []


def _labels(rows: Posts, task: Task) -> list[str]:
    """Return the labels that occur, sorted."""
    return sorted({label for row in rows for label in _as_list(row[task.label])})
