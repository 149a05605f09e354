"""Retrieval from Milvus, when one machine is too small: the same text and image search, by the address of a database.

python -m modeling_more.knowledge.milvus milvus:http://HOST:19530 --knowledge FILE... [--image_model NAME]

`milvus:URI` names the database: a local file that ends in .db (milvus-lite), a server, a cluster. `milvus:URI#NAME`
chooses among several bodies of knowledge in it. A token is read from $MILVUS_TOKEN, for command lines are published.

Four collections: NAME_sentences (an analysed text field and Milvus' BM25 function over it), NAME_paragraphs (what the
sentences stand in), NAME_images (vectors, titles and lead texts) and NAME_about (what was to be loaded).
"""

import argparse
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from .corpus import KnowledgeCorpus, load_knowledge
from .leakage import Entry, search_without_leaks
from .text import K1, B, split_query

if TYPE_CHECKING:
    from PIL.Image import Image

    from .image import ImageEncoder

logger = logging.getLogger(__name__)

PREFIX = "milvus:"
LOAD_VERSION = 1
DEFAULT_NAME = "more"
MAX_BYTES = 65_535  # of a VARCHAR
MAX_LIMIT = 16_384  # of a search, on a server
_ROWS = 1_000  # an insert
_IMAGES = 128
_QUERIES = 64  # a search
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)

Rows = list[dict[str, Any]]


def is_milvus(spec: str | Path) -> bool:
    """Whether `--knowledge` names a Milvus database."""
    return str(spec).startswith(PREFIX)


@dataclass(frozen=True)
class Database:
    """An address and the name of a body of knowledge in it."""

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
        """A client.

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


class MilvusTextRetriever:
    """BM25 over the sentences of a corpus in Milvus, their paragraphs as results: `BM25Retriever`'s interface.

    The words of keys and queries are split and lower-cased by us, and Milvus' standard analyzer splits them at the
    spaces (a server's also at `_`). Scores are those of METHOD, section 1. Milvus counts document frequencies: a
    server over the whole collection, milvus-lite over each segment, so there several segments change the ranking.
    """

    def __init__(self, spec: str) -> None:
        """Open what `from_corpus` loaded.

        Raises:
            FileNotFoundError: the database holds no sentences under that name.
            ValueError: they are of another version, or their load was not finished.
        """
        self.database = Database.parse(spec)
        self.client = self.database.connect()
        self.about = _open(self.client, self.database, "sentences")

    @property
    def fingerprint(self) -> str:
        """What the results depend on besides queries, top_k and the segments that Milvus made."""
        return f"milvus-{LOAD_VERSION}-{K1}-{B}-{self.about['corpus']}"

    @classmethod
    def from_corpus(cls, corpus: KnowledgeCorpus, spec: str) -> "MilvusTextRetriever":
        """Load the corpus, or what is missing of it, and open it.

        Rows are numbered as in the corpus: a load that was killed continues with the rows that are not there yet.

        Raises:
            ValueError: the database holds another corpus under that name.
        """
        database = Database.parse(spec)
        client = database.connect()
        about = {"version": LOAD_VERSION, "corpus": corpus.fingerprint, "k1": K1, "b": B}
        counts = {"paragraphs": corpus.info.paragraphs, "sentences": len(corpus)}
        _begin(client, database, "sentences", {**about, **counts})

        def paragraphs(first: int, last: int) -> Rows:
            read = corpus.read_paragraphs(np.arange(first, last))
            return [{"id": row, **_value(*found)} for row, found in enumerate(read, first)]

        def sentences(first: int, last: int) -> Rows:
            keys = corpus.table[first:last]["key"]
            spans = (corpus.sentence_paragraph, corpus.sentence_start, corpus.sentence_end)
            places = zip(*(column[first:last].tolist() for column in spans), strict=True)
            return [
                {"id": row, "key": _fit(" ".join(split_query(key))), "paragraph": at, "start": start, "end": end}
                for row, (key, (at, start, end)) in enumerate(zip(keys, places, strict=True), first)
            ]

        for kind, rows in (("paragraphs", paragraphs), ("sentences", sentences)):
            _load(client, database.collection(kind), rows, counts[kind], _ROWS)
        return cls(spec)

    def search(self, queries: Sequence[str], top_k: int = 10, posts: Sequence[str] | None = None) -> list[list[Entry]]:
        """The `top_k` distinct paragraphs of each query, ranked; fewer only where Milvus finds no more.

        Equal scores are in the order of the corpus; which of them are among the last places, Milvus decides.

        Args:
            posts: the texts the queries were made from: entries that hold their post are dropped and replaced.
        """
        if top_k < 1:
            raise ValueError(f"At least one result must be asked for, not {top_k}.")
        if posts is not None:
            return search_without_leaks(self.search, queries, posts, top_k)[0]
        results: list[list[Entry]] = [[] for _ in queries]
        words = [" ".join(split_query(query)) for query in queries]
        pending, fetch = [row for row, found in enumerate(words) if found], 3 * top_k
        while pending:
            fetch = min(fetch, MAX_LIMIT)
            again = []
            for first in range(0, len(pending), _QUERIES):
                some = pending[first : first + _QUERIES]
                found = self._hits([words[row] for row in some], fetch)
                for row, hits, entries in zip(some, found, self._entries(found, top_k), strict=True):
                    results[row] = entries
                    if len(entries) < top_k and len(hits) == fetch:  # many sentences of the same paragraphs
                        again.append(row)
            if fetch == MAX_LIMIT and again:
                logger.warning("%d queries have fewer than %d results in %d sentences.", len(again), top_k, fetch)
                break
            pending, fetch = again, fetch * 4
        return results

    def _hits(self, words: list[str], limit: int) -> list[Rows]:
        """Per query {id, score, paragraph, start, end}, best first."""
        found = self.client.search(
            self.database.collection("sentences"),
            data=words,
            anns_field="words",
            limit=limit,
            search_params={"metric_type": "BM25"},
            output_fields=["paragraph", "start", "end"],
        )
        # Milvus' formula has a constant factor k1 + 1 more, and milvus-lite gives the score, never below 0, a minus
        rows = [
            [{"id": hit["id"], "score": abs(hit["distance"]) / (K1 + 1), **hit["entity"]} for hit in hits]
            for hits in found
        ]
        return [
            sorted((hit for hit in hits if hit["score"]), key=lambda hit: (-hit["score"], hit["id"])) for hits in rows
        ]

    def _entries(self, found: list[Rows], top_k: int) -> list[list[Entry]]:
        best: list[dict[int, dict[str, Any]]] = [{} for _ in found]
        for hits, places in zip(found, best, strict=True):
            for hit in hits:
                places.setdefault(hit["paragraph"], hit)
        # two more than asked for, so that two paragraphs of the same text seldom need a second search
        wanted = sorted({at for places in best for at in list(places)[: top_k + 2]})
        texts = _get(self.client, self.database.collection("paragraphs"), wanted)
        results: list[list[Entry]] = []
        for places in best:
            entries: dict[tuple[str, str], Entry] = {}
            for at, hit in list(places.items())[: top_k + 2]:
                value = texts[at]
                length = len(value["text"])  # a text that Milvus holds cut may end before its sentence
                span = {"match_start": min(hit["start"], length), "match_end": min(hit["end"], length)}
                entries.setdefault((value["title"], value["text"]), {**value, "score": hit["score"], **span})
            results.append(list(entries.values())[:top_k])
        return results


class MilvusImageRetriever:
    """Inner products of image embeddings in Milvus, one entry an article: `ImageRetriever`'s interface."""

    def __init__(self, spec: str, encoder: "ImageEncoder") -> None:
        """Open what `from_corpus` loaded.

        Raises:
            FileNotFoundError: the database holds no images under that name.
            ValueError: another encoder embedded them, or their load was not finished.
        """
        self.database = Database.parse(spec)
        self.encoder = encoder
        self.client = self.database.connect()
        self.about = _open(self.client, self.database, "images")
        if self.about["encoder"] != encoder.fingerprint:
            raise ValueError(
                f"The images in {spec} were embedded by {self.about['encoder']}, not by {encoder.fingerprint}: "
                "give that image model, or load them under another name."
            )

    @property
    def fingerprint(self) -> str:
        return f"milvus-{LOAD_VERSION}-{self.encoder.fingerprint}-{self.about['corpus']}"

    @classmethod
    def from_corpus(
        cls, corpus: KnowledgeCorpus, encoder: "ImageEncoder", spec: str, index: dict[str, Any] | None = None
    ) -> "MilvusImageRetriever":
        """Embed and load the images of the corpus, or what is missing of them, and open them.

        Args:
            index: of the vectors, {"index_type", "params"}: FLAT (exact) by default; HNSW, IVF_SQ8, … for many.

        Raises:
            ValueError: the corpus has no images, or the database holds others under that name.
        """
        images = corpus.images
        if images is None:
            raise ValueError("The knowledge corpus has no images: build it from files with a column image.")
        database = Database.parse(spec)
        client = database.connect()
        about = {"version": LOAD_VERSION, "corpus": corpus.fingerprint, "encoder": encoder.fingerprint}
        _begin(client, database, "images", {**about, "images": len(images)}, encoder.dimension, index)

        def rows(first: int, last: int) -> Rows:
            read = images[first:last]
            values = map(_value, read["id"], read["title"], read["value"])
            vectors = encoder.embed(read["image"])
            return [
                {"id": row, **value, "vector": vector.tolist()}
                for row, (value, vector) in enumerate(zip(values, vectors, strict=True), first)
            ]

        _load(client, database.collection("images"), rows, len(images), _IMAGES)
        return cls(spec, encoder)

    def search(self, images: Sequence["Image | None"], top_k: int = 10) -> list[list[Entry]]:
        """The `top_k` articles with the nearest images, best first, score = inner product; no image: no entry."""
        if top_k < 1:
            raise ValueError(f"At least one result must be asked for, not {top_k}.")
        results: list[list[Entry]] = [[] for _ in images]
        given = [row for row, image in enumerate(images) if image is not None]
        for first in range(0, len(given), _QUERIES):
            some = given[first : first + _QUERIES]
            found = self.client.search(
                self.database.collection("images"),
                data=self.encoder.embed([images[row] for row in some]).tolist(),
                anns_field="vector",
                limit=min(top_k, MAX_LIMIT),
                search_params={"metric_type": "IP"},
                output_fields=["source", "title", "text"],
            )
            for row, hits in zip(some, found, strict=True):
                ranked = sorted(hits, key=lambda hit: (-hit["distance"], hit["id"]))
                nothing = {"match_start": 0, "match_end": 0}  # no sentence was matched
                results[row] = [{**_fields(hit["entity"]), "score": hit["distance"], **nothing} for hit in ranked]
        return results


# ---------------------------------------------------------------- loading


def _value(source: str, title: str, text: str) -> dict[str, str]:
    return {"source": _fit(source), "title": _fit(title), "text": _fit(text)}


def _fit(text: str) -> str:
    """The text, cut to what a text field of Milvus holds."""
    encoded = text.encode()
    if len(encoded) <= MAX_BYTES:
        return text
    logger.warning("A text of %d bytes is cut to the %d that Milvus holds: %.60s…", len(encoded), MAX_BYTES, text)
    return encoded[:MAX_BYTES].decode(errors="ignore")


def _fields(entity: dict[str, Any]) -> dict[str, str]:
    return {name: entity[name] for name in ("title", "text", "source")}


def _begin(
    client: Any,
    database: Database,
    kind: str,
    about: dict[str, Any],
    dimension: int = 0,
    index: dict[str, Any] | None = None,
) -> None:
    """Make the collections of a kind of knowledge, or see that they are of this corpus."""
    name = database.collection("about")
    kinds = ("sentences", "images")
    _create(client, name, "about")
    there = _read_about(client, database, kind)
    if there is None:
        client.insert(
            name, [{"id": kinds.index(kind), "kind": kind, "about": json.dumps(about), "unused": [0.0, 0.0]}]
        )
        client.flush(name)
    elif there != about:
        raise ValueError(
            f"{database.uri} holds other {kind} under the name {database.name} ({there} instead of {about}): "
            f"load them under another one, {PREFIX}URI#NAME."
        )
    for part in ("paragraphs", "sentences") if kind == "sentences" else ("images",):
        _create(client, database.collection(part), part, dimension, index)


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


def _load(client: Any, name: str, rows: Callable[[int, int], Rows], total: int, size: int) -> None:
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
    """Rows of a collection that has no vectors get the one it must have."""
    return [row if "vector" in row or "key" in row else {**row, "unused": [0.0, 0.0]} for row in rows]


def _count(client: Any, name: str, where: str = "") -> int:
    return int(client.query(name, filter=where, output_fields=["count(*)"])[0]["count(*)"])


def _get(client: Any, name: str, ids: list[int]) -> dict[int, dict[str, str]]:
    """{title, text, source} of each row."""
    found: dict[int, dict[str, str]] = {}
    for first in range(0, len(ids), _ROWS):
        rows = client.get(name, ids=ids[first : first + _ROWS], output_fields=["source", "title", "text"])
        found |= {row["id"]: _fields(row) for row in rows}
    if len(found) < len(ids):
        raise ValueError(f"The collection {name} lacks {len(ids) - len(found)} rows that were found: load it again.")
    return found


def _read_about(client: Any, database: Database, kind: str) -> dict[str, Any] | None:
    name = database.collection("about")
    if not client.has_collection(name):
        return None
    client.load_collection(name)
    found = client.query(name, filter=f'kind == "{kind}"', output_fields=["about"])
    return json.loads(found[0]["about"]) if found else None


def _open(client: Any, database: Database, kind: str) -> dict[str, Any]:
    about = _read_about(client, database, kind)
    where = f"{PREFIX}{database.uri}#{database.name}"
    again = f"python -m modeling_more.knowledge.milvus {where} --knowledge FILE..."
    if about is None:
        raise FileNotFoundError(f"{where} holds no {kind}: load them by {again}")
    if about["version"] != LOAD_VERSION:
        raise ValueError(f"{where} is of version {about['version']}, this one reads {LOAD_VERSION}: load it anew.")
    for part in ("paragraphs", "sentences") if kind == "sentences" else ("images",):
        name = database.collection(part)
        if client.has_collection(name):
            client.load_collection(name)
        if not client.has_collection(name) or _count(client, name) != about[part]:
            raise ValueError(f"The load of {name} into {database.uri} was not finished: continue by {again}")
    return about


def main(arguments: Sequence[str] | None = None) -> None:
    """Load knowledge into Milvus; started again, it continues."""
    parser = argparse.ArgumentParser("python -m modeling_more.knowledge.milvus", description=main.__doc__)
    parser.add_argument("database", help="milvus:URI or milvus:URI#NAME; the token is read from $MILVUS_TOKEN")
    parser.add_argument("--knowledge", nargs="+", required=True, help="files, folders or Hub ids")
    parser.add_argument("--image_model", help="embed and load the images too, by this model")
    parser.add_argument(
        "--image_index", type=json.loads, help='JSON, for example {"index_type": "HNSW", "params": {"M": 32}}'
    )
    parser.add_argument("--cache_dir")
    given = parser.parse_args(arguments)
    corpus = load_knowledge(given.knowledge, given.cache_dir)
    text = MilvusTextRetriever.from_corpus(corpus, given.database)
    print(f"{len(corpus)} sentences, {text.fingerprint}")
    if given.image_model:
        from .image import ImageEncoder

        images = MilvusImageRetriever.from_corpus(
            corpus, ImageEncoder(given.image_model), given.database, given.image_index
        )
        print(f"{images.about['images']} images, {images.fingerprint}")


if __name__ == "__main__":
    main()
