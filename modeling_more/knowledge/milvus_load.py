"""Load knowledge into the collections of a Milvus database; a killed load continues."""

import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..foreign import parse_json
from .text import K1, B

logger = logging.getLogger(__name__)

PREFIX = "milvus:"
#: versions of what is loaded; sentences, 2: words in normal form, pieces of scripts without blanks, not cut by Milvus
LOAD_VERSIONS = {"sentences": 2, "images": 1}
DEFAULT_NAME = "more"
MAX_BYTES = 65_535  # in a VARCHAR
BATCH = 1_000  # rows an insert
_PARTS = {"sentences": ("paragraphs", "sentences"), "images": ("images",)}  # collections of each kind
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Database:
    """The address of a database and the name of a body of knowledge in it."""

    uri: str
    name: str = DEFAULT_NAME

    @classmethod
    def parse(cls, spec: str) -> "Database":
        """Read `milvus:URI` or `milvus:URI#NAME`.

        Raises:
            ValueError: neither an address nor a file that ends in .db, a name with odd characters, or a password.
        """
        uri, _, name = spec.removeprefix(PREFIX).partition("#")
        name = name or DEFAULT_NAME
        if not _NAME.fullmatch(name):
            raise ValueError(f"{spec}: the name {name!r} should be of letters, digits and _.")
        if "://" not in uri:
            if not uri.endswith(".db"):
                raise ValueError(f"{spec}: neither http://HOST:PORT nor a local file whose name ends in .db.")
            uri = str(Path(uri).expanduser().resolve())
        elif "@" in uri:
            raise ValueError("The address of Milvus holds a password: give it as USER:PASSWORD by $MILVUS_TOKEN.")
        return cls(uri, name)

    def collection(self, kind: str) -> str:
        return f"{self.name}_{kind}"

    def connect(self) -> Any:
        """Return a client.

        Raises:
            ImportError: pymilvus is not installed.
            ConnectionError: nothing answers, or the local file is open elsewhere.
        """
        try:
            from pymilvus import MilvusClient
            from pymilvus.exceptions import MilvusException
        except ImportError as error:
            raise ImportError('Milvus needs its client: pip install "modeling-more[milvus]".') from error
        if "://" not in self.uri:
            Path(self.uri).parent.mkdir(parents=True, exist_ok=True)
        try:
            return MilvusClient(self.uri, token=os.environ.get("MILVUS_TOKEN", ""), timeout=30)
        except MilvusException as error:
            why = "does another process hold it?" if self.uri.endswith(".db") else "does the server run?"
            raise ConnectionError(f"Milvus at {self.uri} can't be opened ({error.message}): {why}") from None


def value_of(source: str, title: str, text: str) -> dict[str, str]:
    return {"source": fit(source), "title": fit(title), "text": fit(text)}


def fit(text: str) -> str:
    """Cut a text to what a text field of Milvus holds."""
    encoded = text.encode()
    if len(encoded) <= MAX_BYTES:
        return text
    logger.warning("A text of %d bytes is cut to the %d that Milvus holds: %.60s…", len(encoded), MAX_BYTES, text)
    return encoded[:MAX_BYTES].decode(errors="ignore")


def fields_of(entity: dict[str, Any]) -> dict[str, str]:
    return {name: entity[name] for name in ("title", "text", "source")}


def begin(client: Any, database: Database, kind: str, about: dict[str, Any], dimension: int = 0) -> None:
    """Make the collections of a kind of knowledge, or check that they are of this corpus."""
    name = database.collection("about")
    _create(client, name, "about")
    there = _read_about(client, database, kind)
    if there is None:
        client.insert(name, _with_vector([{"id": list(_PARTS).index(kind), "kind": kind, "about": json.dumps(about)}]))
        client.flush(name)
    elif there != about:
        raise ValueError(
            f"{database.uri} holds other {kind} under the name {database.name} ({there} instead of {about}): "
            f"load them under another one, {PREFIX}URI#NAME."
        )
    for part in _PARTS[kind]:
        _create(client, database.collection(part), part, dimension, about.get("index"))


def _create(client: Any, name: str, kind: str, dimension: int = 0, index: dict[str, Any] | None = None) -> None:
    """Make a collection and the index of its vectors, or what is missing of the two."""
    from pymilvus import DataType, Function, FunctionType

    vector, metric = {"sentences": ("words", "BM25"), "images": ("vector", "IP")}.get(kind, ("unused", "IP"))
    if not client.has_collection(name):
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        if kind == "sentences":
            split = {"tokenizer": "standard", "filter": ["lowercase"]}
            schema.add_field(
                "key", DataType.VARCHAR, max_length=MAX_BYTES, enable_analyzer=True, analyzer_params=split
            )
            schema.add_field(vector, DataType.SPARSE_FLOAT_VECTOR)
            schema.add_function(
                Function("bm25", FunctionType.BM25, input_field_names=["key"], output_field_names=[vector])
            )
            for field in ("paragraph", "start", "end"):
                schema.add_field(field, DataType.INT64)
        else:
            for field in ("kind", "about") if kind == "about" else ("source", "title", "text"):
                schema.add_field(field, DataType.VARCHAR, max_length=MAX_BYTES)
            # Milvus wants a vector in every collection: eight bytes a row where there is nothing to search
            schema.add_field(vector, DataType.FLOAT_VECTOR, dim=dimension or 2)
        client.create_collection(name, schema=schema, consistency_level="Strong")
    if not client.list_indexes(name):
        bm25 = {"index_type": "SPARSE_INVERTED_INDEX", "params": {"bm25_k1": K1, "bm25_b": B}}
        chosen = bm25 if kind == "sentences" else index or {"index_type": "FLAT"}
        # "params" twice: the client takes one level away; milvus-lite reads the inner one only, a server either
        parameters = {"params": chosen.get("params", {})}
        indices = client.prepare_index_params()
        indices.add_index(vector, index_type=chosen["index_type"], metric_type=metric, params=parameters)
        client.create_index(name, indices, sync=False)  # loading waits for it


def load_rows(client: Any, name: str, rows: Callable[[int, int], Rows], total: int, size: int) -> None:
    """Insert the rows 0 … total − 1 that are not there, `size` at a time, in their order."""
    client.load_collection(name)
    there = _count(client, name)
    low, high = 0, there // size  # the longest run of whole inserts: nearly always all that are there
    while low < high:
        middle = high if low == 0 else (low + high + 1) // 2
        if _count(client, name, f"id < {middle * size}") == middle * size:
            low = middle
        else:
            high = middle - 1
    first = low * size
    behind = there - first  # rows of an insert that was not finished
    with tqdm(total=total, initial=first, desc=f"Loading {name}", unit="rows", disable=None) as bar:
        for start in range(first, total, size):
            end = min(start + size, total)
            missing = rows(start, end)
            if behind:
                found = client.query(name, filter=f"id >= {start} and id < {end}", output_fields=["id"])
                present = {row["id"] for row in found}
                behind -= len(present)
                missing = [row for row in missing if row["id"] not in present]
            if missing:
                client.insert(name, _with_vector(missing))
            bar.update(end - start)
    if there < total:
        client.flush(name)  # milvus-lite indexes nothing before
    if (loaded := _count(client, name)) != total:
        raise ValueError(f"The collection {name} holds {loaded} rows after {total} were loaded: drop it, load again.")


def _with_vector(rows: Rows) -> Rows:
    """Give rows without a vector the one that Milvus wants."""
    return [row if "vector" in row or "key" in row else {**row, "unused": [0.0, 0.0]} for row in rows]


def _count(client: Any, name: str, where: str = "") -> int:
    return int(client.query(name, filter=where, output_fields=["count(*)"])[0]["count(*)"])


def read_values(client: Any, name: str, ids: list[int]) -> dict[int, dict[str, str]]:
    """Return {title, text, source} of each row."""
    found: dict[int, dict[str, str]] = {}
    for first in range(0, len(ids), BATCH):
        rows = client.get(name, ids=ids[first : first + BATCH], output_fields=["source", "title", "text"])
        found |= {row["id"]: fields_of(row) for row in rows}
    if len(found) < len(ids):
        raise ValueError(f"The collection {name} lacks {len(ids) - len(found)} rows that were found: load it again.")
    return found


def _read_about(client: Any, database: Database, kind: str) -> dict[str, Any] | None:
    name = database.collection("about")
    if not client.has_collection(name):
        return None
    client.load_collection(name)
    found = client.query(name, filter=f'kind == "{kind}"', output_fields=["about"])
    if not found:
        return None
    where = f"The description of the {kind} in {database.uri}"
    about = parse_json(found[0]["about"], where)
    wanted = {"version": int, "corpus": str, **dict.fromkeys(_PARTS[kind], int)}
    wanted |= {"encoder": str, "index": dict} if kind == "images" else {}
    if not isinstance(about, dict) or any(type(about.get(entry)) is not sort for entry, sort in wanted.items()):
        raise ValueError(f"{where} is not one that was written by this library: drop it, load again.")
    return about


def open_kind(client: Any, database: Database, kind: str) -> dict[str, Any]:
    about = _read_about(client, database, kind)
    where = f"{PREFIX}{database.uri}#{database.name}"
    again = f"python -m modeling_more.knowledge.milvus {where} --knowledge FILE..."
    if about is None:
        raise FileNotFoundError(f"{where} holds no {kind}: load them by {again}")
    if about["version"] != LOAD_VERSIONS[kind]:
        raise ValueError(
            f"The {kind} in {where} are of version {about['version']}, this one reads {LOAD_VERSIONS[kind]}: "
            "drop them, or load them under another name."
        )
    for part in _PARTS[kind]:
        name = database.collection(part)
        if client.has_collection(name):
            client.load_collection(name)
        if not client.has_collection(name) or _count(client, name) != about[part]:
            raise ValueError(f"The load of {name} into {database.uri} was not finished: continue by {again}")
    return about
