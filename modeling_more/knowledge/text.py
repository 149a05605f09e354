"""Search the sentences of a corpus by BM25 for their paragraphs (METHOD, section 1).

bm25s stores and maps the index (text_index.py). The search is ours: one pass gives the best *paragraphs* in an order
that ties cannot change, where bm25s gives sentences, of which many share a paragraph, and leaves ties to its heap.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from numba import njit

from ..files import copy_folder
from .corpus import KnowledgeCorpus
from .leakage import Entry, fetch_on, search_without_leaks
from .search_words import split_query
from .text_index import INDEX_VERSION, K1, B, idf, open_index, read_only

TITLE_BOOST = 2.0  # weight of titles, where they are searched too (entities.py)
_BATCH = 512  # queries a step
_BLOCK = 128  # sentences that are passed over together when none scores enough
_SLACK = 2  # results above top_k, so that two paragraphs of the same text seldom need a second search

# float32 scores, int32 rows and first posting of each word in titles, and the first sentence of each article
Titles = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class BM25Retriever:
    """A retriever that finds the paragraphs whose best sentence scores highest.

    ```python
    retriever = BM25Retriever.from_corpus(KnowledgeCorpus.from_files("articles.jsonl"))
    retriever.search(["Who founded Acme ?"], top_k=3)[0][0]["title"]
    ```
    """

    def __init__(self, corpus: KnowledgeCorpus, index_dir: str | Path, n_threads: int = 1) -> None:
        """Open a saved index, memory-mapped.

        Raises:
            FileNotFoundError: `index_dir` holds no index.
            ValueError: it is the index of another corpus or version, or damaged: its files are not those that were
                written, or hold what no index can.
        """
        self.corpus = corpus
        self.index_dir = Path(index_dir)
        self.n_threads = n_threads
        opened = open_index(self.index_dir, corpus.fingerprint, len(corpus), corpus.cache_dir)
        self.index = opened.index
        self.index_digest = opened.digest
        self.vocabulary: dict[str, int] = self.index.vocab_dict
        self._data, self._indices, self._indptr = opened.postings
        self._paragraph = read_only(corpus.sentence_paragraph)

    @property
    def fingerprint(self) -> str:
        """Return what the results depend on besides queries and `top_k`."""
        return f"bm25-{INDEX_VERSION}-{K1}-{B}-{self.corpus.fingerprint}-{self.index_digest[:16]}"

    @classmethod
    def from_corpus(
        cls, corpus: KnowledgeCorpus, index_dir: str | Path | None = None, n_threads: int = 1
    ) -> "BM25Retriever":
        """Open the index of the corpus; where there is none, build and save it first; a killed build continues.

        An index of an earlier version is built anew in the cache, as is a damaged one there; one saved with the corpus
        is left alone.

        Args:
            index_dir: default: the index saved with the corpus, else one beside its tables in the cache.
            n_threads: threads of a search; the results do not depend on it.

        Raises:
            ValueError: `index_dir` holds the index of another corpus, or of another version; or one that was given or
                saved with the corpus is damaged.
        """
        return corpus.with_text_index(lambda folder: cls(corpus, folder, n_threads), index_dir)

    def save(self, folder: str | Path) -> None:
        """Copy the index into a folder."""
        copy_folder(self.index_dir, Path(folder))

    def search_paragraphs(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best paragraphs of each query, by their best sentence.

        Returns:
            int32 [queries, k] rows of the sentences, filled up with -1, and float32 [queries, k] their BM25 scores,
            all above 0, falling; equal scores in the order of the corpus.
        """
        return self._best([self.word_ids(query) for query in queries], k)

    def word_ids(self, query: str) -> list[int]:
        """Return the query's words that the corpus has, as numbers of the vocabulary, with repeats."""
        return [self.vocabulary[word] for word in split_query(query) if word in self.vocabulary]

    def scale(self, query: str) -> float:
        """Return what the score of an entry can reach at most for the query: the sum of its words' idf."""
        return idf_sum(self.word_ids(query), self._indptr, len(self.corpus))

    def _best(
        self, ids: list[list[int]], k: int, title_ids: list[list[int]] | None = None, titles: Titles | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        if k < 1:
            raise ValueError(f"At least one result must be asked for, not {k}.")
        k = min(k, self.corpus.info.paragraphs)
        title_ids = title_ids if title_ids is not None else [[]] * len(ids)
        rows = np.full((len(ids), k), -1, np.int32)
        scores = np.zeros((len(ids), k), np.float32)

        def run(first: int, last: int) -> None:
            words, title_words = _flat(ids[first:last]), _flat(title_ids[first:last])
            arrays = self._data, self._indices, self._indptr
            out = rows[first:last], scores[first:last]
            _search(*words, *arrays, *title_words, *(titles or _NO_TITLES), self._paragraph, *out)

        threads = min(self.n_threads, len(ids))
        if threads <= 1:
            run(0, len(ids))
        else:
            cuts = np.linspace(0, len(ids), threads + 1).astype(int).tolist()
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(run, cuts[:-1], cuts[1:]))
        return rows, scores

    def search(self, queries: Sequence[str], top_k: int = 10, posts: Sequence[str] | None = None) -> list[list[Entry]]:
        """Return the `top_k` distinct paragraphs of each query, ranked; fewer only if no more score above 0.

        Entries that hold their post, one of `posts`, are dropped and replaced.
        """
        if posts is not None:
            return search_without_leaks(self.search, queries, posts, top_k)[0]
        results: list[list[Entry]] = []
        for first in range(0, len(queries), _BATCH):
            results += self._search_distinct(queries[first : first + _BATCH], top_k)
        return results

    def _search_distinct(self, queries: Sequence[str], top_k: int) -> list[list[Entry]]:
        def ask(asked: list[int], fetch: int) -> Iterator[tuple[list[Entry], bool]]:
            rows, scores = self.search_paragraphs([queries[query] for query in asked], fetch)
            scales = [self.scale(queries[query]) for query in asked]
            # when every slot is filled, the same text may have stood in several
            full = (rows[:, -1] >= 0) & (rows.shape[1] == fetch)
            return zip(distinct_entries(self.corpus, rows, scores, scales, top_k), full.tolist(), strict=True)

        return fetch_on(ask, len(queries), top_k, top_k + _SLACK)


def idf_sum(words: list[int], first_postings: np.ndarray, texts: int) -> float:
    """Return the sum of the words' idf, with repeats, in an index of so many texts."""
    at = np.array(words, np.int64)
    return float(np.float32(idf(texts, first_postings[at + 1] - first_postings[at]).sum()))  # as it is stored


def distinct_entries(
    corpus: KnowledgeCorpus, rows: np.ndarray, scores: np.ndarray, scales: Sequence[float], top_k: int
) -> Iterator[list[Entry]]:
    """Yield for each query the entries of its first `top_k` distinct paragraphs.

    Args:
        rows: int [queries, k] sentences, best first; below 0 where there is none.
        scores: float [queries, k] scores of these sentences.
        scales: what the scores of each query can reach at most.
    """
    counts = (rows >= 0).sum(axis=1).tolist()
    hits = rows[rows >= 0]
    distinct, place = np.unique(corpus.sentence_paragraph[hits], return_inverse=True)
    paragraphs = corpus.read_paragraphs(distinct)
    starts, ends = corpus.sentence_start[hits].tolist(), corpus.sentence_end[hits].tolist()
    found = zip(place.tolist(), scores[rows >= 0].tolist(), starts, ends, strict=True)
    for count, scale in zip(counts, scales, strict=True):
        entries: list[Entry] = []
        seen = set()
        for at, score, start, end in islice(found, count):
            source, title, text = paragraphs[at]
            if len(entries) < top_k and (title, text) not in seen:
                seen.add((title, text))
                entry = {"title": title, "text": text, "score": score, "scale": scale, "source": source}
                entries.append({**entry, "match_start": start, "match_end": end})
        yield entries


@njit(nogil=True, cache=True)
def _search(  # type: ignore[no-untyped-def]
    words, bounds, data, indices, indptr, title_words, title_bounds, title_data, title_indices, title_indptr,
    article_start, paragraph, rows, best
):  # fmt: skip
    """Fill `rows` and `best` [queries, k]: per query the k paragraphs of the highest score, ties by row.

    Postings of titles name articles: all sentences of the article, from `article_start` on, get their score, boosted.

    A heap holds the k best so far, the worst on top. Sentences come in row order, so one that only equals the worst
    comes later and loses, and the sentences of a paragraph come together, so only the last one entered can come again.
    """
    k = rows.shape[1]
    boost = np.float32(TITLE_BOOST)
    sentences = paragraph.shape[0]
    scores = np.zeros(sentences, np.float32)
    heap = np.empty(k, np.float32)
    held = np.empty(k, np.int32)
    for query in range(rows.shape[0]):
        if bounds[query] == bounds[query + 1] and title_bounds[query] == title_bounds[query + 1]:
            continue
        scores[:] = 0
        for at in range(bounds[query], bounds[query + 1]):
            for posting in range(indptr[words[at]], indptr[words[at] + 1]):
                scores[indices[posting]] += data[posting]
        for at in range(title_bounds[query], title_bounds[query + 1]):
            for posting in range(title_indptr[title_words[at]], title_indptr[title_words[at] + 1]):
                article = title_indices[posting]
                for row in range(article_start[article], article_start[article + 1]):
                    scores[row] += boost * title_data[posting]
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


def _flat(ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Join lists to one array, and return it and where each begins."""
    bounds = np.cumsum([0] + [len(row) for row in ids], dtype=np.int64)
    return np.array([word for row in ids for word in row], dtype=np.int64), bounds


_NO_TITLES: Titles = (
    read_only(np.zeros(0, np.float32)),
    read_only(np.zeros(0, np.int32)),
    read_only(np.zeros(1, np.int64)),
    read_only(np.zeros(1, np.int32)),
)
