"""Retrieve once for every post of a data set and store the result as a column (METHOD, section 1)."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets
from tqdm.auto import tqdm

from modeling_more.tagging import tags_to_spans

from .corpus import KNOWLEDGE_FEATURE, default_cache_dir
from .leakage import Entry, search_without_leaks

logger = logging.getLogger(__name__)

ATTACH_VERSION = 1
LABEL_COLUMNS = frozenset({"ner_tags", "tags", "labels", "label", "relation", "spans"})
_SHARD = Features({"knowledge": KNOWLEDGE_FEATURE, "dropped": Value("int32")})

Posts = TypeVar("Posts", Dataset, DatasetDict)
Row = dict[str, Any]


class TextRetriever(Protocol):
    """What `attach_text_knowledge` needs; `BM25Retriever` is one."""

    @property
    def fingerprint(self) -> str: ...

    def search(self, queries: Sequence[str], top_k: int = 10) -> list[list[Entry]]: ...


@dataclass
class AttachReport:
    """Counts over all splits."""

    posts: int = 0
    entries: int = 0
    without_knowledge: int = 0  # posts for which nothing was found
    dropped_as_leak: int = 0  # entries that held their post and were replaced by the next
    cached: int = 0  # posts whose knowledge came from the cache

    def __add__(self, other: "AttachReport") -> "AttachReport":
        return AttachReport(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


def post_text(row: Row) -> str:
    """The post's words joined by spaces."""
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

    Results are cached in shards named by what they depend on (corpus, queries, posts, `top_k`), so a run that was
    killed continues where it was, and posts seen before are not searched again.

    Args:
        dataset: rows with `tokens`; labels are never shown to `query`.
        query: what to search for, by default the words of the post.
        shard_size: posts a shard.

    Raises:
        ValueError: the column is there already, `tokens` is missing, or `top_k` or `shard_size` is below 1.
    """
    if top_k < 1 or shard_size < 1:
        raise ValueError(f"top_k and shard_size must be at least 1, not {top_k} and {shard_size}.")
    cache = (Path(cache_dir) if cache_dir is not None else default_cache_dir()) / "attach"
    splits = dataset if isinstance(dataset, DatasetDict) else {"": dataset}
    result, total = {}, AttachReport()
    for name, split in splits.items():
        if column in split.column_names:
            raise ValueError(f"The posts have a column {column} already: remove it or choose another name.")
        if "tokens" not in split.column_names:
            raise ValueError(f"The posts have no column tokens, only {', '.join(split.column_names)}.")
        files, report = _retrieve(split, retriever, top_k, cache, query, shard_size, name or "posts")
        result[name] = _with_column(split, files, column)
        total += report
    logger.info("Knowledge attached: %s", total)
    return (DatasetDict(result) if isinstance(dataset, DatasetDict) else result[""]), total


def _retrieve(
    split: Dataset,
    retriever: TextRetriever,
    top_k: int,
    cache: Path,
    query: Callable[[Row], str],
    shard_size: int,
    name: str,
) -> tuple[list[Path], AttachReport]:
    visible = split.remove_columns([c for c in split.column_names if c in LABEL_COLUMNS or c == "image"])
    if query is post_text:
        visible = visible.select_columns(["tokens"])
    cache.mkdir(parents=True, exist_ok=True)
    files, report = [], AttachReport()
    with tqdm(total=len(split), desc=f"Retrieving for {name}", unit="posts", disable=None) as bar:
        for first in range(0, len(split), shard_size):
            rows: list[Row] = visible.select(range(first, min(first + shard_size, len(split)))).to_list()
            posts = [post_text(row) for row in rows]
            queries = [query(row) for row in rows]
            settings = [ATTACH_VERSION, retriever.fingerprint, top_k]
            file = cache / f"{_digest([*settings, queries, posts])}.arrow"
            shard = _open(file, len(rows))
            cached = shard is not None
            if shard is None:
                shard = _write(file, *search_without_leaks(retriever.search, queries, posts, top_k))
            counts = pc.list_value_length(shard.column("knowledge")).to_pylist()
            report += AttachReport(
                posts=len(rows),
                entries=sum(counts),
                without_knowledge=counts.count(0),
                dropped_as_leak=sum(shard.column("dropped").to_pylist()),
                cached=len(rows) if cached else 0,
            )
            files.append(file)
            bar.update(len(rows))
    return files, report


def _write(file: Path, knowledge: list[list[Entry]], dropped: list[int]) -> pa.Table:
    entries = [entry for found in knowledge for entry in found]
    offsets = np.cumsum([0] + [len(found) for found in knowledge])
    fields = list(_SHARD.arrow_schema.field("knowledge").type.value_type)
    columns = [pa.array([entry[field.name] for entry in entries], field.type) for field in fields]
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(columns, fields=fields))
    table = pa.Table.from_arrays([lists, pa.array(dropped, pa.int32())], schema=_SHARD.arrow_schema)
    beside = file.with_suffix(f".tmp{os.getpid()}")
    try:
        with pa.OSFile(str(beside), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)
    return table


def _open(file: Path, rows: int) -> pa.Table | None:
    if not file.is_file():
        return None
    try:
        with pa.memory_map(str(file)) as source:
            table = pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        table = None
    if table is None or table.schema != _SHARD.arrow_schema or table.num_rows != rows:
        logger.warning("%s is damaged: its posts are searched again.", file)  # not by us: writing is atomic
        return None
    return table


def _with_column(split: Dataset, files: list[Path], column: str) -> Dataset:
    if not files:  # `datasets` joins no tables without rows
        features = Features({**split.features, column: KNOWLEDGE_FEATURE})
        return Dataset.from_dict({name: [] for name in features}, features, split=split.split)
    # the shards stay memory-mapped: neither the posts nor the knowledge need fit into memory
    knowledge = concatenate_datasets([Dataset.from_file(str(file)) for file in files])
    knowledge = knowledge.remove_columns("dropped").rename_column("knowledge", column)
    return concatenate_datasets([split, knowledge], axis=1)


def _digest(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()[:32]


class TitleRecall(NamedTuple):
    """How many of the mentions whose lower-cased text is a title of the corpus have that title in their knowledge."""

    found: int
    mentions: int

    @property
    def recall(self) -> float:
        return self.found / self.mentions if self.mentions else 0.0


def bare_title(title: str) -> str:
    """A title lower-cased and without its bracket: "Mercury (planet)" -> "mercury"."""
    return title.rsplit(" (", 1)[0].lower() if title.endswith(")") else title.lower()


def title_recall(dataset: Dataset, titles: Iterable[str], column: str = "knowledge_text") -> TitleRecall:
    """Title recall over all gold mentions (each occurrence counts) of rows with tags and knowledge."""
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
