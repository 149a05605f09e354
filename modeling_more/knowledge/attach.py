"""Retrieve once for every post of a data set and store the result as a column (METHOD, section 1)."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets
from datasets import Image as ImageFeature
from PIL.Image import Image
from tqdm.auto import tqdm

from modeling_more.tagging import tags_to_spans

from ..files import new_file, remove_strays_of, user_cache
from .corpus import KNOWLEDGE_FEATURE
from .corpus_images import Unusable
from .corpus_tables import claim, open_shard, seal, write_stream
from .leakage import Entry, search_without_leaks
from .pictures import (
    REASONS,
    THREADS,
    ImageError,
    Source,
    image_file,
    open_image,
    or_error,
    posts_of,
    read_bytes,
    refused_split,
    require_images,
)

logger = logging.getLogger(__name__)

ATTACH_VERSION = 3  # 2: the leakage guard compares normal forms; 3: entries have a scale
_NOTHING_FOUND = 0.1  # share of posts from which on the search must be wrong, not the posts
LABEL_COLUMNS = frozenset({"ner_tags", "tags", "labels", "label", "relation", "spans"})
_SHARD = Features({"knowledge": KNOWLEDGE_FEATURE, "dropped": Value("int32")})
_IMAGE_SHARD = Features({**_SHARD, "reason": Value("string")})  # why a post's image could not be used

Posts = TypeVar("Posts", Dataset, DatasetDict)
Report = TypeVar("Report", bound="AttachReport")
Row = dict[str, Any]


class TextRetriever(Protocol):
    """A retriever for `attach_text_knowledge`, such as `BM25Retriever`."""

    @property
    def fingerprint(self) -> str: ...

    def search(self, queries: Sequence[str], top_k: int = 10) -> list[list[Entry]]: ...


class ImageSearch(Protocol):
    """A retriever for `attach_image_knowledge`, such as `ImageRetriever`."""

    @property
    def fingerprint(self) -> str: ...

    def search(self, images: Sequence[Image], top_k: int = 10) -> list[list[Entry]]: ...


@dataclass
class AttachReport:
    """The counts over all splits of what was attached."""

    posts: int = 0
    entries: int = 0
    without_knowledge: int = 0  # posts for which nothing was found
    dropped_as_leak: int = 0  # entries that held their post and were replaced by the next
    cached: int = 0  # posts whose knowledge came from the cache

    def __add__(self: Report, other: Report) -> Report:
        return type(self)(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass
class ImageAttachReport(AttachReport):
    """The counts of an attachment by image; the last six are posts without a usable image, by reason."""

    missing: int = 0
    truncated: int = 0
    over_large: int = 0
    not_an_image: int = 0
    damaged: int = 0
    outside_the_folder: int = 0  # named by a path that leads out of the folder of the posts' images

    @property
    def unusable(self) -> int:
        return sum(getattr(self, _field_of(reason)) for reason in REASONS)

    @property
    def reasons(self) -> str:
        """Return the counts by reason: `2 missing, 1 not an image`."""
        counts = ((getattr(self, _field_of(reason)), reason) for reason in REASONS)
        return ", ".join(f"{count} {reason}" for count, reason in counts if count)


class Shard(NamedTuple):
    """A part of the posts: what their knowledge depends on, how it is found, and how it is cached."""

    key: list[object]
    search: Callable[[], tuple[list[Any], ...]]
    features: Features = _SHARD
    names: Sequence[str] = ()


def post_text(row: Row) -> str:
    """Return the post's words joined by spaces."""
    return " ".join(row["tokens"])


def attach_text_knowledge(
    dataset: Posts,
    retriever: TextRetriever,
    top_k: int = 10,
    column: str = "knowledge_text",
    cache_dir: str | Path | None = None,
    query: Callable[[Row], str] = post_text,
    shard_size: int = 512,
) -> tuple[Posts, AttachReport]:
    """Add a column with the ranked knowledge of each post.

    Results are cached in shards named by what they depend on (corpus, queries, posts, `top_k`), so a killed run
    continues, and posts seen before are not searched again. Concurrent processes (`accelerate launch`) share the
    shards. A warning is logged if a tenth of a split's posts or more find nothing.

    Args:
        dataset: rows with `tokens`; labels are never shown to `query`.
        query: what to search for, by default the words of the post.

    Raises:
        ValueError: the column is there already, `tokens` is missing, or `top_k` or `shard_size` is below 1.
    """

    def prepare(split: Dataset) -> Callable[[range], Shard]:
        visible = split.remove_columns([c for c in split.column_names if c in LABEL_COLUMNS or c == "image"])
        if query is post_text:
            visible = visible.select_columns(["tokens"])

        def shard(numbers: range) -> Shard:
            rows: list[Row] = visible.select(numbers).to_list()
            posts = [post_text(row) for row in rows]
            queries = [query(row) for row in rows]
            key = [ATTACH_VERSION, retriever.fingerprint, top_k, queries, posts]
            return Shard(key, lambda: search_without_leaks(retriever.search, queries, posts, top_k))

        return shard

    return _attach(dataset, prepare, top_k, column, cache_dir, shard_size, AttachReport)


def attach_image_knowledge(
    dataset: Posts,
    retriever: ImageSearch,
    top_k: int = 10,
    column: str = "knowledge_image",
    image_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    shard_size: int = 64,
) -> tuple[Posts, ImageAttachReport]:
    """Add a column with the ranked knowledge that each post's image finds, cached as by `attach_text_knowledge`.

    A post without a usable image gets an empty list and is logged; the report counts the reasons, and a warning tells
    of splits where more than half have none.

    Args:
        dataset: rows with `tokens`, which the leakage guard compares, and `image` (a `datasets.Image` column, of
            which only the bytes are read: a path in a row is no place to look for an image).
        image_dir: folder to find the images in by `image_id` instead (`find_image`).
        shard_size: posts whose images are open at once, each of at most `pictures.LARGE` pixels.

    Raises:
        ValueError: the column is there already, `tokens` is missing, no post (or none of the split "train") has an
            image that can be used, or `top_k` or `shard_size` is below 1.
        FileNotFoundError: `image_dir` is no folder.
    """
    folder = Path(image_dir) if image_dir is not None else None
    if folder is not None:
        if not folder.is_dir():
            raise FileNotFoundError(f"The folder {folder} of the posts' images does not exist.")
        splits = dataset if isinstance(dataset, DatasetDict) else {"": dataset}
        ids = {name: list(split["image_id"]) for name, split in splits.items() if "image_id" in split.column_names}
        require_images(folder, ids)

    def prepare(split: Dataset) -> Callable[[range], Shard]:
        needed = "image" if folder is None else "image_id"
        if needed not in split.column_names:
            hint = "give image_dir, or posts with their images" if folder is None else "images are found by it"
            raise ValueError(f"The posts have no column {needed}, only {', '.join(split.column_names)}: {hint}.")
        visible = split.select_columns([c for c in ("id", "image_id", "tokens") if c in split.column_names])
        pictures = split.select_columns([needed])
        if folder is None:
            pictures = pictures.cast_column("image", ImageFeature(decode=False))

        def source(number: int) -> Source:
            value = pictures[number][needed]
            return value if folder is None else or_error(partial(image_file, folder), value)

        def shard(numbers: range) -> Shard:
            rows: list[Row] = visible.select(numbers).to_list()
            posts = [post_text(row) for row in rows]
            named = zip(rows, numbers, strict=True)
            names = [str(row.get("image_id") or row.get("id") or number) for row, number in named]
            digests = [_image_digest(source(number)) for number in numbers]  # one by one: files may be large
            key = [ATTACH_VERSION, "image", retriever.fingerprint, top_k, digests, posts]

            def search() -> tuple[list[list[Entry]], list[int], list[str | None]]:
                with ThreadPoolExecutor(THREADS) as pool:
                    opened = list(pool.map(lambda number: or_error(open_image, source(number)), numbers))
                images = {row: image for row, image in enumerate(opened) if not isinstance(image, ImageError)}

                def find(queries: list[str], k: int) -> list[list[Entry]]:
                    return retriever.search([images[int(row)] for row in queries], k)

                usable = [str(row) for row in images]  # the guard hands back which queries it wants more of
                found, drops = search_without_leaks(find, usable, [posts[row] for row in images], top_k)
                knowledge: list[list[Entry]] = [[] for _ in rows]
                dropped = [0] * len(rows)
                for row, entries, drop in zip(images, found, drops, strict=True):
                    knowledge[row], dropped[row] = entries, drop
                reasons = [image.reason if isinstance(image, ImageError) else None for image in opened]
                return knowledge, dropped, reasons

            return Shard(key, search, _IMAGE_SHARD, names)

        return shard

    return _attach(dataset, prepare, top_k, column, cache_dir, shard_size, ImageAttachReport, _check_images)


def _check_images(reports: Mapping[str, ImageAttachReport]) -> None:
    """Raise ValueError when no post has a usable image; warn when more than half of a split have none."""
    reports = {split: report for split, report in reports.items() if report.posts}
    without = {split: report for split, report in reports.items() if report.unusable == report.posts}
    if (split := refused_split(reports, without)) is not None:
        refused = sum((one for name, one in without.items() if split in (name, "all")), ImageAttachReport())
        raise ValueError(f"no image of the {refused.posts} {posts_of(split)} can be used ({refused.reasons}).")
    for split, report in reports.items():
        if 2 * report.unusable > report.posts:
            logger.warning(
                "%d of %d %s have no image that can be used (%s): nothing is retrieved for them.",
                report.unusable, report.posts, posts_of(split), report.reasons,
            )  # fmt: skip


def _image_digest(source: Source) -> str:
    """Return the digest of the file, so that images of posts seen before are not decoded."""
    content = or_error(read_bytes, source)
    return content.reason if isinstance(content, ImageError) else hashlib.sha256(content).hexdigest()


def _attach(
    dataset: Posts,
    prepare: Callable[[Dataset], Callable[[range], Shard]],
    top_k: int,
    column: str,
    cache_dir: str | Path | None,
    shard_size: int,
    report_type: type[Report],
    check: Callable[[Mapping[str, Report]], None] = lambda reports: None,
) -> tuple[Posts, Report]:
    if top_k < 1 or shard_size < 1:
        raise ValueError(f"top_k and shard_size must be at least 1, not {top_k} and {shard_size}.")
    cache = user_cache(cache_dir) / "attach"
    splits = dataset if isinstance(dataset, DatasetDict) else {"": dataset}
    result, reports = {}, {}
    for name, split in splits.items():
        if column in split.column_names:
            raise ValueError(f"The posts have a column {column} already: remove it or choose another name.")
        if "tokens" not in split.column_names:
            raise ValueError(f"The posts have no column tokens, only {', '.join(split.column_names)}.")
        files, reports[name] = _retrieve(split, prepare(split), cache, shard_size, name or "posts", report_type)
        result[name] = _with_column(split, files, column)
        report = reports[name]
        # `check` warns of posts without a usable image
        if report_type is AttachReport and report.without_knowledge >= max(1, _NOTHING_FOUND * report.posts):
            logger.warning(
                "%d of %d %s find nothing in the knowledge: is it in their language?",
                report.without_knowledge, report.posts, f"{name} posts".lstrip(),
            )  # fmt: skip
    check(reports)
    total = sum(reports.values(), report_type())
    logger.info("Knowledge attached: %s", total)
    return (DatasetDict(result) if isinstance(dataset, DatasetDict) else result[""]), total


def _retrieve(
    split: Dataset,
    shard_of: Callable[[range], Shard],
    cache: Path,
    shard_size: int,
    name: str,
    report_type: type[Report],
) -> tuple[list[Path], Report]:
    cache.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(split), shard_size)
    files: dict[int, Path] = {}
    report, unusable = report_type(), Unusable("post's image")
    with tqdm(total=len(split), desc=f"Retrieving for {name}", unit="posts", disable=None) as bar:
        for wait in (False, True):  # first what no other process does, then what the others have done
            for first in starts:
                if first in files:
                    continue
                rows = range(first, min(first + shard_size, len(split)))
                shard = shard_of(rows)
                file = cache / f"{_digest(shard.key)}.arrow"
                table = _open(file, len(rows), shard.features)
                cached = table is not None and not wait
                if table is None:
                    with claim(file, wait) as ours:
                        if not ours:
                            continue
                        table = _open(file, len(rows), shard.features)
                        if table is None:
                            remove_strays_of(file)
                            table = _write(file, shard.features, *shard.search())
                counts = pc.list_value_length(table.column("knowledge")).to_pylist()
                report += report_type(
                    posts=len(rows),
                    entries=sum(counts),
                    without_knowledge=counts.count(0),
                    dropped_as_leak=sum(table.column("dropped").to_pylist()),
                    cached=len(rows) if cached else 0,
                )
                if isinstance(report, ImageAttachReport):
                    for post, reason in zip(shard.names, table.column("reason").to_pylist(), strict=True):
                        if reason is not None:
                            unusable.add(post, ImageError(reason))
                files[first] = file
                bar.update(len(rows))
    for reason, number in unusable.counts.items():
        setattr(report, _field_of(reason), number)
    unusable.warn()
    return [files[first] for first in starts], report


def _field_of(reason: str) -> str:
    return reason.replace(" ", "_").replace("-", "_")


def _write(file: Path, features: Features, knowledge: list[list[Entry]], *others: list[Any]) -> pa.Table:
    entries = [{"scale": 0.0, **entry} for found in knowledge for entry in found]  # a retriever may not know it
    offsets = np.cumsum([0] + [len(found) for found in knowledge])
    schema = features.arrow_schema
    fields = list(schema.field("knowledge").type.value_type)
    columns = [pa.array([entry[field.name] for entry in entries], field.type) for field in fields]
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(columns, fields=fields))
    more = [pa.array(values, kind) for values, kind in zip(others, schema.types[1:], strict=True)]
    table = pa.Table.from_arrays([lists, *more], schema=schema)
    with new_file(file) as beside:
        write_stream(beside, features, table.to_batches())
        seal(beside)
    return table


def _open(file: Path, rows: int, features: Features = _SHARD) -> pa.Table | None:
    return open_shard(file, features, rows, "its posts are searched again")


def _with_column(split: Dataset, files: list[Path], column: str) -> Dataset:
    if not files:  # `datasets` joins no tables without rows
        features = Features({**split.features, column: KNOWLEDGE_FEATURE})
        return Dataset.from_dict({name: [] for name in features}, features, split=split.split)
    # the shards stay memory-mapped: they need not fit into memory
    knowledge = concatenate_datasets([Dataset.from_file(str(file)) for file in files])
    knowledge = knowledge.select_columns("knowledge").rename_column("knowledge", column)
    return concatenate_datasets([split, knowledge], axis=1)


def _digest(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()[:32]


class TitleRecall(NamedTuple):
    """The number of mentions that are titles of the corpus, lower-cased, and of those whose knowledge has it."""

    found: int
    mentions: int

    @property
    def recall(self) -> float:
        return self.found / self.mentions if self.mentions else 0.0


def bare_title(title: str) -> str:
    """Return a title lower-cased and without its bracket: "Mercury (planet)" -> "mercury"."""
    return title.rsplit(" (", 1)[0].lower() if title.endswith(")") else title.lower()


def title_recall(dataset: Dataset, titles: Iterable[str], column: str = "knowledge_text") -> TitleRecall:
    """Compute the title recall over all gold mentions (each occurrence counts) of rows with tags and knowledge."""
    known = {bare_title(title) for title in titles}
    names = getattr(dataset.features["ner_tags"].feature, "names", None)
    found = mentions = 0
    for row in dataset:
        tags = [names[tag] for tag in row["ner_tags"]] if names else row["ner_tags"]
        retrieved = {bare_title(entry["title"]) for entry in row[column]}
        for span in tags_to_spans(tags):
            mention = " ".join(row["tokens"][span.start : span.end]).lower()
            if mention in known:
                mentions += 1
                found += mention in retrieved
    return TitleRecall(found, mentions)
