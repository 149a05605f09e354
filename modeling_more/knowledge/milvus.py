"""Search text and images in a Milvus database, for knowledge that is too large for one machine.

python -m modeling_more.knowledge.milvus milvus:http://HOST:19530 --knowledge FILE... [--image_model NAME]

`milvus:URI` names the database: a local file that ends in .db (milvus-lite), a server, a cluster. `milvus:URI#NAME`
chooses among several bodies of knowledge in it. A token is read from $MILVUS_TOKEN, for command lines are published.
A local file serves one process at a time, a server any number.

Four collections: NAME_sentences (an analysed text field and Milvus' BM25 function over it), NAME_paragraphs (what the
sentences stand in), NAME_images (vectors, titles and lead texts) and NAME_about (what was to be loaded).
"""

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Image as ImageFeature

from .corpus import KnowledgeCorpus
from .corpus_sources import load_knowledge
from .leakage import Entry, fetch_on, search_without_leaks
from .milvus_load import (
    BATCH,
    LOAD_VERSIONS,
    Database,
    Rows,
    begin,
    fields_of,
    fit,
    load_rows,
    open_kind,
    read_values,
    value_of,
)
from .search_words import split_query, split_text
from .text import K1, B
from .vectors import COSINE, ImageSearcher

if TYPE_CHECKING:
    from .image import ImageEncoder

logger = logging.getLogger(__name__)

__all__ = ["Database", "MilvusImageRetriever", "MilvusTextRetriever"]

MAX_LIMIT = 16_384  # hits of a search on a server
_IMAGES = 128  # images an insert
_QUERIES = 64  # queries a search


class MilvusTextRetriever:
    """A BM25 retriever over the sentences of a corpus in Milvus, used as `BM25Retriever` is.

    The words of keys and queries are ours, written so that Milvus' standard analyzer only splits at the spaces.
    Scores are those of METHOD, section 1. Milvus counts document frequencies: a server over the whole collection,
    milvus-lite over each segment, so there several segments change the ranking.
    """

    def __init__(self, spec: str) -> None:
        """Open what `from_corpus` loaded.

        Raises:
            FileNotFoundError: the database holds no sentences under that name.
            ValueError: they are of another version, or their load was not finished.
        """
        self.database = Database.parse(spec)
        self.client = self.database.connect()
        self.about = open_kind(self.client, self.database, "sentences")

    @property
    def fingerprint(self) -> str:
        """Return what the results depend on besides queries, `top_k` and the segments that Milvus made."""
        return f"milvus-{LOAD_VERSIONS['sentences']}-{K1}-{B}-{self.about['corpus']}"

    @classmethod
    def from_corpus(cls, corpus: KnowledgeCorpus, spec: str) -> "MilvusTextRetriever":
        """Load the corpus, or what is missing of it, and open it.

        Rows are numbered as in the corpus: a load that was killed continues with the rows that are not there yet.

        Raises:
            ValueError: the database holds another corpus under that name.
        """
        database = Database.parse(spec)
        client = database.connect()
        about = {"version": LOAD_VERSIONS["sentences"], "corpus": corpus.fingerprint, "k1": K1, "b": B}
        counts = {"paragraphs": corpus.info.paragraphs, "sentences": len(corpus)}
        begin(client, database, "sentences", {**about, **counts})

        def paragraphs(first: int, last: int) -> Rows:
            read = corpus.read_paragraphs(np.arange(first, last))
            return [{"id": row, **value_of(*found)} for row, found in enumerate(read, first)]

        def sentences(first: int, last: int) -> Rows:
            keys = corpus.table[first:last]["key"]
            spans = (corpus.sentence_paragraph, corpus.sentence_start, corpus.sentence_end)
            places = zip(*(column[first:last].tolist() for column in spans), strict=True)
            return [
                {"id": row, "key": fit(_unsplit(split_text(key))), "paragraph": at, "start": start, "end": end}
                for row, (key, (at, start, end)) in enumerate(zip(keys, places, strict=True), first)
            ]

        for kind, rows in (("paragraphs", paragraphs), ("sentences", sentences)):
            load_rows(client, database.collection(kind), rows, counts[kind], BATCH)
        return cls(spec)

    def search(self, queries: Sequence[str], top_k: int = 10, posts: Sequence[str] | None = None) -> list[list[Entry]]:
        """Return the `top_k` distinct paragraphs of each query, ranked; fewer only if Milvus finds no more.

        Equal scores stand in the order of the corpus; Milvus decides which of them take the last places. Entries that
        hold their post, one of `posts`, are dropped and replaced.
        """
        if posts is not None:
            return search_without_leaks(self.search, queries, posts, top_k)[0]
        words = [_unsplit(split_query(query)) for query in queries]

        def ask(rows: list[int], limit: int) -> list[tuple[list[Entry], int]]:
            found = self._hits([words[row] for row in rows], limit)
            return list(zip(self._entries(found, top_k), map(len, found), strict=True))

        # several sentences of a paragraph are found together
        asked = [row for row, found in enumerate(words) if found]
        return _fetch_on(ask, len(queries), top_k, 3 * top_k, asked)

    def _hits(self, words: list[str], limit: int) -> list[Rows]:
        """Return the hits {id, score, paragraph, start, end} of each query, best first."""
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
        texts: dict[int, Any] = {}
        results: list[list[Entry]] = [[] for _ in found]
        # paragraphs of the same text count once: two more than asked for are mostly enough, else further ones are read
        read, open_ = top_k + 2, set(range(len(found)))
        while open_:
            wanted = {at for row in open_ for at in list(best[row])[:read]} - texts.keys()
            texts |= read_values(self.client, self.database.collection("paragraphs"), sorted(wanted))
            for row in list(open_):
                entries: dict[tuple[str, str], Entry] = {}
                for at, hit in list(best[row].items())[:read]:
                    value = texts[at]
                    length = len(value["text"])  # a text that Milvus holds cut may end before its sentence
                    span = {"match_start": min(hit["start"], length), "match_end": min(hit["end"], length)}
                    told = {"score": hit["score"], "scale": 0.0}  # Milvus tells no idf
                    entries.setdefault((value["title"], value["text"]), {**value, **told, **span})
                results[row] = list(entries.values())[:top_k]
                if len(results[row]) == top_k or read >= len(best[row]):
                    open_.remove(row)
            read *= 2
        return results


def _unsplit(words: list[str]) -> str:
    """Join words by spaces, written so that no analyzer of Milvus cuts or changes them.

    Analyzers cut at combining marks (milvus-lite), at "_" (a server), or within a piece of Chinese: words that are not
    of ASCII letters and digits are written in hexadecimal digits.
    """
    return " ".join(word if word.isascii() and word.isalnum() else f"0x{word.encode().hex()}" for word in words)


class MilvusImageRetriever(ImageSearcher):
    """A retriever over image embeddings in Milvus, used as `ImageRetriever` is."""

    def __init__(self, spec: str, encoder: "ImageEncoder") -> None:
        """Open what `from_corpus` loaded.

        Raises:
            FileNotFoundError: the database holds no images under that name.
            ValueError: another encoder embedded them, or their load was not finished.
        """
        self.database = Database.parse(spec)
        self.encoder = encoder
        self.client = self.database.connect()
        self.about = open_kind(self.client, self.database, "images")
        if self.about["encoder"] != encoder.fingerprint:
            raise ValueError(
                f"The images in {spec} were embedded by {self.about['encoder']}, not by {encoder.fingerprint}: "
                "give that image model, or load them under another name."
            )

    @property
    def fingerprint(self) -> str:
        index = json.dumps(self.about["index"], sort_keys=True)
        return f"milvus-image-{LOAD_VERSIONS['images']}-{index}-{self.encoder.fingerprint}-{self.about['corpus']}"

    @classmethod
    def from_corpus(
        cls, corpus: KnowledgeCorpus, encoder: "ImageEncoder", spec: str, index: dict[str, Any] | None = None
    ) -> "MilvusImageRetriever":
        """Embed and load the images of the corpus, or what is missing of them, and open them.

        Args:
            index: index of the vectors, {"index_type", "params"}: FLAT (exact) by default; HNSW, IVF_SQ8, … for many.

        Raises:
            ValueError: the corpus has no images, or the database holds others under that name.
        """
        images = corpus.images
        if images is None:
            raise ValueError("The knowledge corpus has no images: build it from files with a column image.")
        raw = images.cast_column("image", ImageFeature(decode=False))
        database = Database.parse(spec)
        client = database.connect()
        about = {"version": LOAD_VERSIONS["images"], "corpus": corpus.info.image_fingerprint}
        about |= {"encoder": encoder.fingerprint, "images": len(images), "index": index or {"index_type": "FLAT"}}
        begin(client, database, "images", about, encoder.dimension)

        def rows(first: int, last: int) -> Rows:
            read = raw[first:last]
            values = map(value_of, read["id"], read["title"], read["value"])
            vectors = encoder.embed(read["image"])
            return [
                {"id": row, **value, "vector": vector.tolist()}
                for row, (value, vector) in enumerate(zip(values, vectors, strict=True), first)
            ]

        load_rows(client, database.collection("images"), rows, len(images), _IMAGES)
        return cls(spec, encoder)

    def search_vectors(self, vectors: np.ndarray, top_k: int = 10) -> list[list[Entry]]:
        """Search as `search` does, by embeddings, float32 [queries, dimension]."""

        def ask(rows: list[int], limit: int) -> list[tuple[list[Entry], int]]:
            found = self.client.search(
                self.database.collection("images"),
                data=vectors[rows].tolist(),
                anns_field="vector",
                limit=limit,
                search_params={"metric_type": "IP"},
                output_fields=["source", "title", "text"],
            )
            return [(_one_an_article(hits, top_k), len(hits)) for hits in found]

        return _fetch_on(ask, len(vectors), top_k, top_k + 2)


def _one_an_article(hits: Rows, top_k: int) -> list[Entry]:
    entries: list[Entry] = []
    seen: set[Any] = set()
    for hit in sorted(hits, key=lambda hit: (-hit["distance"], hit["id"])):
        value = fields_of(hit["entity"])
        names = {value["source"], (value["title"], value["text"])}
        if not names & seen:
            seen |= names
            told = {"score": hit["distance"], "scale": COSINE}
            entries.append({**value, **told, "match_start": 0, "match_end": 0})
    return entries[:top_k]


def _fetch_on(
    search: Callable[[list[int], int], list[tuple[list[Entry], int]]],
    queries: int,
    top_k: int,
    fetch: int,
    asked: list[int] | None = None,
) -> list[list[Entry]]:
    """Call `fetch_on` with a search that gives the entries and the number of hits of some queries."""
    if top_k < 1:
        raise ValueError(f"At least one result must be asked for, not {top_k}.")

    def ask(rows: list[int], limit: int) -> list[tuple[list[Entry], bool]]:
        parts = (rows[first : first + _QUERIES] for first in range(0, len(rows), _QUERIES))
        found = [(entries, hits == limit) for part in parts for entries, hits in search(part, limit)]
        short = sum(more and len(entries) < top_k for entries, more in found)
        if short and limit == MAX_LIMIT:
            logger.warning("%d queries have fewer than %d results among %d hits.", short, top_k, limit)
        return found

    return fetch_on(ask, queries, top_k, fetch, MAX_LIMIT, asked)


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
