"""Search the titles for predicted entities in a second round (METHOD, section 1; from KB-NER).

score(sentence) = BM25(post, sentence) + 2.0 · BM25(entities, title of the sentence's article)

The second term is BM25 with the same k1 and b over the titles, one title an article: what Elasticsearch computes for a
query of two `match` clauses, the one on the title with boost 2.0. A paragraph whose title alone matches is found too.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .captions import json_lines
from .corpus import KnowledgeCorpus
from .corpus_tables import open_or_build
from .index_files import check_starts, load_array
from .search_words import split_query
from .text import TITLE_BOOST, BM25Retriever, Titles, idf_sum
from .text_index import META_FILE as INDEX_META
from .text_index import TextIndex, build_index, open_index, read_only

_SEPARATOR = "\x1f"  # between the post and its entities in a query: a retriever is asked with strings
_FOLDER = "bm25_titles"
_STARTS = "article_start.npy"


class Prediction(NamedTuple):
    """The entities that a model found in a post, as texts, and the post's words where the file has them."""

    entities: list[str]
    tokens: list[str] | None
    where: str  # file and line


def read_predictions(files: Iterable[str | Path]) -> dict[str, Prediction]:
    """Read predicted entities by post id, from JSONL {"id", "entities": [{"text"}]} as run_ner.py writes them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line of another form, different predictions of one post; names file and line.
    """
    found: dict[str, Prediction] = {}
    for file in map(Path, files):
        if not file.is_file():
            raise FileNotFoundError(f"The predictions file {file} does not exist.")
        for where, row in json_lines(file):
            post, entities, tokens = row.get("id"), row.get("entities"), row.get("tokens")
            if not isinstance(post, str):
                raise ValueError(f'{where}: no "id"; a line has the post\'s "id" and its "entities".')
            if not isinstance(entities, list) or not all(
                isinstance(entity, dict) and isinstance(entity.get("text"), str) for entity in entities
            ):
                raise ValueError(f'{where}: "entities" must be a list of objects with "text".')
            prediction = Prediction([entity["text"] for entity in entities], tokens, where)
            if post in found and found[post][:2] != prediction[:2]:
                raise ValueError(
                    f"{where}: post {post} has other predictions at {found[post].where}; give one file for each post."
                )
            found.setdefault(post, prediction)
    return found


def given_entities(post: Mapping[str, Any]) -> list[str] | None:
    """Return the words of the entities whose relations are asked of a post, each mention once; None if none are.

    Args:
        post: {tokens} with head and tail, entities or `pairs` of both, as spans of words.
    """
    if "pairs" in post:
        spans = [span for pair in post["pairs"] for span in pair]
    elif "head" in post:
        spans = [post["head"], post["tail"]]
    elif "entities" in post:
        spans = post["entities"]
    else:
        return None
    return [" ".join(post["tokens"][start:end]) for start, end in dict.fromkeys(map(tuple, spans))]


def entity_query(text: str, entities: Sequence[str]) -> str:
    """Return the query of `EntityRetriever` for a post and the entities predicted in it."""
    # a line break keeps the letters of two entities in scripts without blanks apart, which a blank does not
    return _SEPARATOR.join(part.replace(_SEPARATOR, " ") for part in (text, "\n".join(entities)))


class EntityRetriever(BM25Retriever):
    """A BM25 retriever that also searches the titles for the entities of a query made by `entity_query`.

    ```python
    retriever = EntityRetriever.from_corpus(KnowledgeCorpus.from_files("articles.jsonl"))
    retriever.search([entity_query("Lund speaks in Oslo", ["Lund", "Oslo"])], top_k=3)
    ```
    """

    def __init__(self, corpus: KnowledgeCorpus, index_dir: str | Path, n_threads: int = 1) -> None:
        """Open a saved index and that of the titles, which is built if the corpus's folder has none."""
        super().__init__(corpus, index_dir, n_threads)
        opened, starts = _open_titles(corpus)
        self.title_vocabulary: dict[str, int] = opened.index.vocab_dict
        self.title_digest = opened.digest
        self._titles: Titles = (*opened.postings, starts)

    @property
    def fingerprint(self) -> str:
        """Return what the results depend on besides queries and `top_k`."""
        return f"{super().fingerprint}-titles-{TITLE_BOOST}-{self.title_digest[:16]}"

    def search_paragraphs(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Search as `BM25Retriever` does, by queries of `entity_query`; those without entities search no titles."""
        parts = [query.partition(_SEPARATOR) for query in queries]
        title_ids = [self._title_ids(entities) for _, _, entities in parts]
        return self._best([self.word_ids(text) for text, _, _ in parts], k, title_ids, self._titles)

    def scale(self, query: str) -> float:
        """Return what the score of an entry can reach at most: the idf of the post's words, and of titles' boosted."""
        text, _, entities = query.partition(_SEPARATOR)
        _, _, first_postings, starts = self._titles
        return super().scale(text) + TITLE_BOOST * idf_sum(self._title_ids(entities), first_postings, len(starts) - 1)

    def _title_ids(self, entities: str) -> list[int]:
        known = self.title_vocabulary
        return [known[word] for word in split_query(entities) if word in known]


def _open_titles(corpus: KnowledgeCorpus) -> tuple[TextIndex, np.ndarray]:
    """Return the index of the titles, and int32 [articles + 1]: each article's first sentence.

    It is built in the corpus's folder where that has none that can be used.
    """
    folder = corpus.folder / _FOLDER

    def read() -> tuple[TextIndex, np.ndarray]:
        starts = load_array(folder / _STARTS, np.int32)
        opened = open_index(folder, corpus.fingerprint, len(starts) - 1, corpus.cache_dir, (_STARTS,))
        check_starts(starts, len(corpus), folder / _STARTS)
        return opened, read_only(starts)

    return open_or_build(
        folder, INDEX_META, read, lambda is_good: _build_titles(corpus, folder, is_good), (ValueError, OSError)
    )


def _build_titles(corpus: KnowledgeCorpus, folder: Path, is_good: Callable[[], bool]) -> None:
    titles: list[str] = []
    first_paragraphs: list[int] = []
    before: tuple[str, str] | None = None
    for first in range(0, corpus.info.paragraphs, 10_000):
        rows = corpus.paragraphs.data.slice(first, 10_000)  # an article's paragraphs stand together
        for row, article in enumerate(zip(*(rows.column(c).to_pylist() for c in ("id", "title")), strict=True), first):
            if article != before:
                titles.append(article[1])
                first_paragraphs.append(row)
                before = article
    starts = np.searchsorted(corpus.sentence_paragraph, np.array([*first_paragraphs, corpus.info.paragraphs]))
    more = {_STARTS: starts.astype(np.int32)}
    build_index(lambda first, last: titles[first:last], len(titles), folder, corpus.fingerprint, more, is_good)
