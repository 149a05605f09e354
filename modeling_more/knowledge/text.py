"""Text retrieval: BM25 over the sentences of a corpus, their paragraphs as results (METHOD, section 1).

bm25s computes, stores and maps the index (one float32 score per word and sentence). The search over it is ours: one
pass gives the best *paragraphs* in an order that ties cannot change, where bm25s gives the best sentences, of which
many share a paragraph, and settles ties by the state of its heap.
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import bm25s
import numpy as np
from numba import njit

from .corpus import INDEX_FOLDER, KnowledgeCorpus
from .leakage import WORDS, Entry, search_without_leaks

logger = logging.getLogger(__name__)
logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG at import

K1 = 1.2
B = 0.75
INDEX_VERSION = 1
META_FILE = "index.json"
_BATCH = 512  # queries a step
_BLOCK = 128  # sentences that are passed over together when none scores enough
_SLACK = 2  # results above top_k, so that two paragraphs of the same text seldom need a second search


def split_query(text: str) -> list[str]:
    """The words of BM25: `\\w+`, lower-cased; no stop words, no stemming, repeats kept."""
    return WORDS.findall(text.lower())


class BM25Retriever:
    """Finds the paragraphs whose best sentence scores highest.

    ```python
    retriever = BM25Retriever.from_corpus(KnowledgeCorpus.from_files("articles.jsonl"))
    retriever.search(["Who founded Acme ?"], top_k=3)[0][0]["title"]
    ```
    """

    def __init__(self, corpus: KnowledgeCorpus, index_dir: str | Path, n_threads: int = 1) -> None:
        """Open a saved index, memory-mapped.

        Raises:
            FileNotFoundError: `index_dir` holds no index.
            ValueError: it is the index of another corpus, or of another version.
        """
        self.corpus = corpus
        self.index_dir = Path(index_dir)
        self.n_threads = n_threads
        meta = _read_meta(self.index_dir)
        if meta["corpus"] != corpus.fingerprint or meta["sentences"] != len(corpus):
            raise ValueError(
                f"The index in {self.index_dir} is of corpus {meta['corpus']} with {meta['sentences']} sentences, "
                f"not of {corpus.fingerprint} with {len(corpus)}: build it again."
            )
        index = bm25s.BM25.load(self.index_dir, mmap=True)
        self.index = index
        self.vocabulary: dict[str, int] = index.vocab_dict
        # plain read-only arrays: one compiled version of the search for all, over the same mapped pages
        self._data, self._indices, self._indptr = (
            _read_only(index.scores[name]) for name in ("data", "indices", "indptr")
        )
        if len(self._data) != meta["postings"] or len(self._indices) != meta["postings"]:
            raise ValueError(f"The index in {self.index_dir} is cut: {META_FILE} names {meta['postings']} postings.")
        self._paragraph = _read_only(corpus.sentence_paragraph)

    @property
    def fingerprint(self) -> str:
        """What the results depend on besides queries and top_k."""
        return f"bm25-{INDEX_VERSION}-{K1}-{B}-{self.corpus.fingerprint}"

    @classmethod
    def from_corpus(
        cls,
        corpus: KnowledgeCorpus,
        index_dir: str | Path | None = None,
        n_threads: int = 1,
    ) -> "BM25Retriever":
        """Open the index of the corpus; where there is none, build and save it first.

        Args:
            index_dir: default: the index saved with the corpus, else one beside its tables in the cache.
            n_threads: threads of a search; the results do not depend on it.
        """
        folder = Path(index_dir or corpus.index_dir or corpus.folder / INDEX_FOLDER)
        if not (folder / META_FILE).is_file():
            _build(corpus, folder)
        return cls(corpus, folder, n_threads)

    def save(self, folder: str | Path) -> None:
        """Copy the index into a folder."""
        shutil.copytree(self.index_dir, folder, dirs_exist_ok=True)

    def search_paragraphs(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best paragraphs of each query, by their best sentence.

        Returns:
            int32 [queries, k] rows of the sentences, filled up with -1, and float32 [queries, k] their BM25 scores,
            all above 0, falling; equal scores in the order of the corpus.
        """
        if k < 1:
            raise ValueError(f"At least one result must be asked for, not {k}.")
        k = min(k, self.corpus.info.paragraphs)
        vocabulary = self.vocabulary
        ids = [[vocabulary[word] for word in split_query(query) if word in vocabulary] for query in queries]
        rows = np.full((len(queries), k), -1, np.int32)
        scores = np.zeros((len(queries), k), np.float32)

        def run(first: int, last: int) -> None:
            bounds = np.cumsum([0] + [len(query) for query in ids[first:last]], dtype=np.int64)
            flat = np.array([word for query in ids[first:last] for word in query], dtype=np.int64)
            arrays = self._data, self._indices, self._indptr, self._paragraph
            _search(flat, bounds, *arrays, rows[first:last], scores[first:last])

        threads = min(self.n_threads, len(queries))
        if threads <= 1:
            run(0, len(queries))
        else:
            cuts = np.linspace(0, len(queries), threads + 1).astype(int).tolist()
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(run, cuts[:-1], cuts[1:]))
        return rows, scores

    def search(self, queries: Sequence[str], top_k: int = 10, posts: Sequence[str] | None = None) -> list[list[Entry]]:
        """The `top_k` distinct paragraphs of each query as ranked entries of `KNOWLEDGE_FEATURE`; fewer only where the
        corpus has no more with a score above 0.

        Args:
            posts: the texts the queries were made from: entries that hold their post are dropped and replaced.
        """
        if posts is not None:
            return search_without_leaks(self.search, queries, posts, top_k)[0]
        results: list[list[Entry]] = []
        for first in range(0, len(queries), _BATCH):
            results += self._search_distinct(queries[first : first + _BATCH], top_k)
        return results

    def _search_distinct(self, queries: Sequence[str], top_k: int) -> list[list[Entry]]:
        results: list[list[Entry]] = [[] for _ in queries]
        pending, fetch = list(range(len(queries))), top_k + _SLACK
        while pending:
            rows, scores = self.search_paragraphs([queries[row] for row in pending], fetch)
            again = []
            for query, found, entries in zip(pending, rows, self._entries(rows, scores, top_k), strict=True):
                results[query] = entries
                # fewer than asked for although every slot was filled: the same text stood in several rows
                if len(entries) < top_k and len(found) == fetch and found[-1] >= 0:
                    again.append(query)
            pending, fetch = again, fetch * 4
        return results

    def _entries(self, rows: np.ndarray, scores: np.ndarray, top_k: int) -> Iterator[list[Entry]]:
        corpus = self.corpus
        counts = (rows >= 0).sum(axis=1).tolist()
        hits = rows[rows >= 0]
        distinct, place = np.unique(corpus.sentence_paragraph[hits], return_inverse=True)
        paragraphs = corpus.read_paragraphs(distinct)
        starts, ends = corpus.sentence_start[hits].tolist(), corpus.sentence_end[hits].tolist()
        found = zip(place.tolist(), scores[rows >= 0].tolist(), starts, ends, strict=True)
        for count in counts:
            entries: list[Entry] = []
            seen = set()
            for at, score, start, end in islice(found, count):
                source, title, text = paragraphs[at]
                if len(entries) < top_k and (title, text) not in seen:
                    seen.add((title, text))
                    entry = {"title": title, "text": text, "score": score, "source": source}
                    entries.append({**entry, "match_start": start, "match_end": end})
            yield entries


@njit(nogil=True, cache=True)
def _search(words, bounds, data, indices, indptr, paragraph, rows, best):  # type: ignore[no-untyped-def]
    """Fill `rows` and `best` [queries, k]: per query the k paragraphs of the highest score, ties by row.

    A heap holds the k best so far, the worst on top. Sentences come in row order, so one that only equals the worst
    comes later and loses, and the sentences of a paragraph come together, so only the last one entered can come again.
    """
    k = rows.shape[1]
    sentences = paragraph.shape[0]
    scores = np.zeros(sentences, np.float32)
    heap = np.empty(k, np.float32)
    held = np.empty(k, np.int32)
    for query in range(rows.shape[0]):
        if bounds[query] == bounds[query + 1]:
            continue
        scores[:] = 0
        for at in range(bounds[query], bounds[query + 1]):
            for posting in range(indptr[words[at]], indptr[words[at] + 1]):
                scores[indices[posting]] += data[posting]
        size = 0
        last = -1
        threshold = np.float32(0)
        for block in range(0, sentences, _BLOCK):
            end = min(block + _BLOCK, sentences)
            promising = 0
            for row in range(block, end):  # a loop without branches runs in vector registers
                promising += scores[row] > threshold
            if promising == 0:
                continue
            for row in range(block, end):
                score = scores[row]
                if score <= threshold:
                    continue
                slot = 0
                if paragraph[row] == last:
                    while paragraph[held[slot]] != last:
                        slot += 1
                    if score <= heap[slot]:
                        continue
                elif size < k:
                    slot = size  # rises from the end
                    size += 1
                    while slot > 0 and not _worse(heap[(slot - 1) >> 1], held[(slot - 1) >> 1], score, row):
                        heap[slot] = heap[(slot - 1) >> 1]
                        held[slot] = held[(slot - 1) >> 1]
                        slot = (slot - 1) >> 1
                heap[slot] = score
                held[slot] = row
                _sink(heap, held, slot, size)
                last = paragraph[row]
                if size == k:
                    threshold = heap[0]
        for place in range(size - 1, -1, -1):  # taking the worst away again and again fills the list from its end
            best[query, place] = heap[0]
            rows[query, place] = held[0]
            heap[0] = heap[place]
            held[0] = held[place]
            _sink(heap, held, 0, place)


@njit(nogil=True, cache=True)
def _worse(score, row, other_score, other_row):  # type: ignore[no-untyped-def]
    return score < other_score or (score == other_score and row > other_row)


@njit(nogil=True, cache=True)
def _sink(heap, held, slot, size):  # type: ignore[no-untyped-def]
    score = heap[slot]
    row = held[slot]
    while True:
        child = 2 * slot + 1
        if child >= size:
            break
        if child + 1 < size and _worse(heap[child + 1], held[child + 1], heap[child], held[child]):
            child += 1
        if not _worse(heap[child], held[child], score, row):
            break
        heap[slot] = heap[child]
        held[slot] = held[child]
        slot = child
    heap[slot] = score
    held[slot] = row


def _build(corpus: KnowledgeCorpus, folder: Path) -> None:
    vocabulary: dict[str, int] = {}
    ids = [[vocabulary.setdefault(word, len(vocabulary)) for word in split_query(key)] for key in corpus.keys()]
    index = bm25s.BM25(k1=K1, b=B, method="lucene", backend="numba")
    index.index((ids, vocabulary), create_empty_token=False, show_progress=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        index.save(beside, show_progress=False)
        meta = {
            "version": INDEX_VERSION,
            "corpus": corpus.fingerprint,
            "sentences": len(corpus),
            "words": len(vocabulary),
            "postings": len(index.scores["data"]),
        }
        (beside / META_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        try:
            os.rename(beside, folder)
        except OSError:
            if not (folder / META_FILE).is_file():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _read_meta(folder: Path) -> dict[str, int | str]:
    file = folder / META_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no BM25 index: {META_FILE} is missing.")
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
        if meta["version"] != INDEX_VERSION:
            raise ValueError(
                f"{file} is of version {meta['version']}, this one reads {INDEX_VERSION}: build it again."
            )
        return {name: meta[name] for name in ("corpus", "sentences", "postings")}
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} does not describe a BM25 index ({error!r}).") from None


def _read_only(values: np.ndarray) -> np.ndarray:
    view = np.asarray(values).view(np.ndarray)
    view.flags.writeable = False
    return view
