"""Search the knowledge of posts as they come, by the settings that a model was saved with."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from ..retrieval_settings import MILVUS, SEARCHES, RetrievalSettings
from .attach import ImageSearch, TextRetriever, post_text
from .corpus_sources import load_knowledge
from .dense import DenseRetriever, FusedRetriever
from .entities import EntityRetriever, entity_query, given_entities
from .image import ImageEncoder, ImageRetriever
from .leakage import Entry, search_without_leaks
from .pictures import THREADS, ImageError, open_image, or_error
from .text import BM25Retriever

logger = logging.getLogger(__name__)

Post = Mapping[str, Any]
AT_ONCE = 64  # posts whose images are open at once: a decoded picture may have 17 MB


class OnlineRetrieval:
    """An opened retrieval: `find` searches the knowledge of posts that come one by one or by the thousand.

    It finds what `attach_text_knowledge` and `attach_image_knowledge` find for a whole data set, without their caches.

    Attributes:
        retriever: what searches, such as a `BM25Retriever` or an `ImageRetriever`.
        settings: how it was opened.
        fingerprint: of the corpus that is searched.
    """

    def __init__(self, settings: RetrievalSettings, retriever: TextRetriever | ImageSearch) -> None:
        self.settings = settings
        self.retriever: Any = retriever
        self.fingerprint = corpus_fingerprint(retriever)

    @classmethod
    def open(
        cls, settings: RetrievalSettings, sources: Sequence[str | Path], cache_dir: str | Path | None = None
    ) -> Self:
        """Open the corpus and its index, which is built where there is none.

        Args:
            sources: what `--knowledge` names: files, folders of saved corpora, ids of the Hub, a Milvus database.

        Raises:
            FileNotFoundError: something is not there.
            ValueError: it can't be searched so.
        """
        open_one = open_image_retriever if settings.kind == "image" else open_text_retriever
        return cls(settings, open_one(settings, sources, cache_dir))

    def find(self, posts: Sequence[Post], top_k: int) -> list[list[Entry]]:
        """Return the ranked entries of each post {tokens, image?, caption?, predicted_entities?}, as they are read.

        Entries that hold their post are left out (METHOD, section 1). By image, a post without an image finds nothing,
        and one that can't be used is logged. Where captions were searched, `caption` is the query. Where entities
        were, the titles are searched for `predicted_entities` or, of a post with `pairs`, for these.
        """
        if self.settings.kind == "image":
            parts = (posts[first : first + AT_ONCE] for first in range(0, len(posts), AT_ONCE))
            return [entries for part in parts for entries in self._by_image(part, top_k)]
        texts = [post_text(dict(post)) for post in posts]
        queries = [self._query(post, text) for post, text in zip(posts, texts, strict=True)]
        return search_without_leaks(self.retriever.search, queries, texts, top_k)[0]

    def _query(self, post: Post, text: str) -> str:
        if self.settings.query == "caption":
            return str(post.get("caption") or "")
        if self.settings.query == "entities":
            found = post.get("predicted_entities")
            given = given_entities(post) if found is None and "pairs" in post else None
            return entity_query(text, given or [one["text"] for one in found or ()])
        return text

    def _by_image(self, posts: Sequence[Post], top_k: int) -> list[list[Entry]]:
        found: list[list[Entry]] = [[] for _ in posts]
        rows = [row for row, post in enumerate(posts) if post.get("image") is not None and post["tokens"]]
        with ThreadPoolExecutor(THREADS) as pool:
            opened = dict(
                zip(rows, pool.map(lambda row: or_error(open_image, posts[row]["image"]), rows), strict=True)
            )
        for row, image in opened.items():
            if isinstance(image, ImageError):
                logger.warning("the image of post %s can't be used: %s", posts[row].get("id", row), image)
        usable = {row: image for row, image in opened.items() if not isinstance(image, ImageError)}
        if usable:
            texts = [post_text(dict(posts[row])) for row in usable]

            def search(queries: list[str], k: int) -> list[list[Entry]]:
                return list(self.retriever.search([usable[int(row)] for row in queries], k))

            entries, _ = search_without_leaks(search, [str(row) for row in usable], texts, top_k)
            for row, one in zip(usable, entries, strict=True):
                found[row] = one
        return found


def corpus_fingerprint(retriever: Any) -> str:
    """Return the fingerprint of the corpus that is searched; of a database the retriever's own."""
    inner = getattr(retriever, "retrievers", [retriever])[0]  # of several, all search the same corpus
    corpus = getattr(inner, "corpus", None)
    return str(retriever.fingerprint if corpus is None else corpus.fingerprint)


def open_text_retriever(
    settings: RetrievalSettings,
    sources: Sequence[str | Path],
    cache_dir: str | Path | None = None,
    own_class: Any = None,
) -> TextRetriever:
    """Return the retriever that searches texts as the settings say.

    Args:
        own_class: a class of the user's own, for settings whose `retriever` names one.

    Raises:
        ValueError: the settings do not fit the sources, or need a class of the user's own.
    """
    if str(sources[0]).startswith(MILVUS):
        from .milvus import MilvusTextRetriever

        return MilvusTextRetriever(str(sources[0]))
    corpus = load_knowledge(sources, cache_dir, settings.title_in_key)
    if settings.title_in_key and not corpus.info.title_in_key:
        told = ", ".join(map(str, sources))
        raise ValueError(f"--title_in_key: {told} was saved with keys without the title; build it from files")
    if settings.query == "entities":
        return EntityRetriever.from_corpus(corpus)
    if settings.retriever not in SEARCHES:
        if own_class is None:  # whoever saved a model must not choose which file runs here
            raise ValueError(
                f"it was searched by code of its own, {settings.retriever}: give its entries with the posts"
            )
        found: TextRetriever = own_class.from_corpus(corpus)
        return found
    if settings.retriever == "bm25":
        return BM25Retriever.from_corpus(corpus)
    if settings.text_model is None:
        raise ValueError("dense retrieval needs a sentence encoder, and none is named")
    dense = DenseRetriever.from_corpus(corpus, settings.text_model)
    return dense if settings.retriever == "dense" else FusedRetriever([BM25Retriever.from_corpus(corpus), dense])


def open_image_retriever(
    settings: RetrievalSettings, sources: Sequence[str | Path], cache_dir: str | Path | None = None
) -> ImageSearch:
    """Return the retriever that searches by image as the settings say."""
    if settings.image_model is None:
        raise ValueError("retrieval by image needs an image tower, and none is named")
    encoder = ImageEncoder(settings.image_model)
    if str(sources[0]).startswith(MILVUS):
        from .milvus import MilvusImageRetriever

        return MilvusImageRetriever(str(sources[0]), encoder)
    return ImageRetriever.from_corpus(load_knowledge(sources, cache_dir), encoder)
