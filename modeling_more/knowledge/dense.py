"""Search the sentences of a corpus by vectors of a sentence encoder, alone or fused with BM25."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModel, AutoTokenizer

from ..files import copy_folder
from ..loading import load_whole
from ..naming import missing_source, nearest_folder
from ..positions import check_ids, position_limit
from ..provenance import hub_options
from .attach import TextRetriever
from .corpus import KnowledgeCorpus
from .corpus_tables import open_or_build
from .leakage import Entry, search_without_leaks
from .search_words import split_query
from .text import distinct_entries
from .vectors import COSINE, build_index, embed_in_shards, load_index, read_factory, search_distinct

logger = logging.getLogger(__name__)

INDEX_VERSION = 1
META_FILE = "dense.json"
MAX_LENGTH = 256  # sub-tokens read of a sentence: what the usual sentence encoders are trained with
_SHARD_ROWS = 8192  # sentences a shard: what a killed run loses at most
_BATCH = 512  # queries a step


class SentenceEncoder:
    """A sentence encoder made of any encoder in transformers: the L2-normalised mean of its last layer.

    ```python
    encoder = SentenceEncoder("sentence-transformers/all-MiniLM-L6-v2")
    encoder.embed(["Acme is a company in Oslo."])  # float32 [1, 384]
    ```
    """

    def __init__(
        self,
        name_or_path: str | Path,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int = 32,
        max_length: int = MAX_LENGTH,
    ) -> None:
        """Load the encoder.

        Args:
            device: default: the GPU where there is one.
            dtype: default: bfloat16 on a GPU, else float32; the mean and the norm are taken in float32.
            max_length: sub-tokens read of a text; the limits of tokenizer and encoder hold where they are lower.

        Raises:
            FileNotFoundError: no encoder of that name in a folder or on the Hub, or not all of its weights, or a
                tokenizer that is not its own.
        """
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype or (torch.bfloat16 if self.device.type == "cuda" else torch.float32)
        place = {"revision": revision, "trust_remote_code": False, **hub_options(name_or_path)}
        if reason := missing_source(name_or_path):
            raise FileNotFoundError(f"The sentence encoder {name_or_path} can't be loaded: {reason}")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name_or_path, **place)
            whole: dict[str, Any] = {"unused": ["pooler"], "surplus": True, "pickled": True}
            model, info = load_whole(
                AutoModel.from_pretrained, name_or_path, dtype=self.dtype, output_loading_info=True, **whole, **place
            )
            check_ids(max(self.tokenizer.get_vocab().values()), model, f"the encoder {name_or_path}")
            limits = [max_length, self.tokenizer.model_max_length, position_limit(model) or max_length]
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise FileNotFoundError(
                f"The sentence encoder {name_or_path} can't be loaded: {reason}{nearest_folder(Path(name_or_path))}"
            ) from error
        #: weights that the file lacks and that nothing here uses: they are random, another time others
        self._unused = {key for key in info["missing_keys"] if "pooler" in key.split(".")}
        self.model: Any = model.to(self.device).eval()
        self.name = str(name_or_path)
        self.batch_size = batch_size
        self.max_length = min(limits)
        self.at_limit = 0  # texts so far that reached max_length: what came after was not read
        self.fingerprint = self._digest()

    @property
    def dimension(self) -> int:
        return int(self.model.config.hidden_size)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts as float32 [texts, dimension], L2-normalised; text past `max_length` sub-tokens is not read."""
        ids: list[list[int]] = []
        if len(texts):
            ids = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)["input_ids"]
        self.at_limit += sum(len(row) >= self.max_length for row in ids)
        vectors = np.empty((len(texts), self.dimension), np.float32)
        longest_first = sorted(range(len(texts)), key=lambda row: -len(ids[row]))  # little padding
        for first in range(0, len(texts), self.batch_size):
            rows = longest_first[first : first + self.batch_size]
            lengths = torch.tensor([len(ids[row]) for row in rows])
            mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
            input_ids = torch.full(mask.shape, self.tokenizer.pad_token_id or 0)
            input_ids[mask] = torch.tensor([token for row in rows for token in ids[row]])
            mask = mask.to(self.device)
            with torch.inference_mode():
                output = self.model(input_ids=input_ids.to(self.device), attention_mask=mask.long())
            hidden = output.last_hidden_state.float() * mask.unsqueeze(-1)
            mean = hidden.sum(dim=1) / mask.sum(dim=1, keepdim=True)
            vectors[rows] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
        return vectors

    def _digest(self) -> str:
        """Return the digest of weights, tokenizer and settings, wherever the encoder was loaded from."""
        settings = [self.model.config.model_type, str(self.dtype), self.max_length, self.tokenizer.get_vocab()]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, weight in sorted(self.model.state_dict().items()):
            if name in self._unused:
                continue
            digest.update(name.encode())
            digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:32]


class DenseRetriever:
    """A retriever that finds the paragraphs whose best sentence lies nearest to the query.

    ```python
    retriever = DenseRetriever.from_corpus(corpus, "sentence-transformers/all-MiniLM-L6-v2")
    retriever.search(["Who founded Acme ?"], top_k=3)[0][0]["title"]
    ```
    """

    def __init__(
        self, corpus: KnowledgeCorpus, encoder: SentenceEncoder, index_dir: str | Path, search_parameters: str = ""
    ) -> None:
        """Open a saved index.

        Args:
            search_parameters: of an approximate index, see `load_index`.

        Raises:
            FileNotFoundError: `index_dir` holds no index.
            ValueError: it is the index of another corpus, encoder or version, or not whole.
        """
        self.corpus = corpus
        self.encoder = encoder
        self.index_dir = Path(index_dir)
        expected = {"corpus": corpus.fingerprint, "encoder": encoder.fingerprint, "rows": len(corpus)}
        meta = self.index_dir / META_FILE
        self.string_factory = read_factory(meta, "dense index", INDEX_VERSION, "string_factory", expected)
        self.table = Dataset(corpus.sentences.data)  # its own object: an index on the corpus's would stay with it
        self.search_parameters, self.index_digest = load_index(
            self.table, self.index_dir, META_FILE, encoder.dimension, corpus.cache_dir, search_parameters
        )

    @property
    def fingerprint(self) -> str:
        """Return what the results depend on besides queries and `top_k`."""
        index = f"{self.string_factory}-{self.search_parameters}-{self.index_digest[:16]}"
        return f"dense-{INDEX_VERSION}-{index}-{self.encoder.fingerprint}-{self.corpus.fingerprint}"

    @classmethod
    def from_corpus(
        cls,
        corpus: KnowledgeCorpus,
        encoder: str | Path | SentenceEncoder,
        index_dir: str | Path | None = None,
        string_factory: str | None = None,
        search_parameters: str = "",
    ) -> "DenseRetriever":
        """Open the index of corpus and encoder; where there is none, embed the sentences, build and save it first.

        The vectors are kept in shards, so a killed run continues, and several processes share the work.

        Args:
            index_dir: default: beside the corpus's tables in the cache.
            string_factory: a FAISS index, such as "IVF4096,PQ64" or "HNSW32"; default: exact search ("Flat").
        """
        if not isinstance(encoder, SentenceEncoder):
            encoder = SentenceEncoder(encoder)
        string_factory = string_factory or "Flat"
        home = Path(index_dir) if index_dir is not None else corpus.folder / "dense" / encoder.fingerprint
        folder = home / re.sub(r"\W+", "_", string_factory)

        def build(is_good: Callable[[], bool]) -> None:
            vectors = embed_corpus(corpus, encoder, home / "embeddings")
            meta = {
                "version": INDEX_VERSION,
                "corpus": corpus.fingerprint,
                "encoder": encoder.fingerprint,
                "encoder_name": Path(encoder.name).name if Path(encoder.name).is_dir() else encoder.name,
                "rows": len(vectors),
                "dimension": encoder.dimension,
                "string_factory": string_factory,
            }
            build_index(vectors, folder, string_factory, META_FILE, meta, is_good)

        def read() -> DenseRetriever:
            return cls(corpus, encoder, folder, search_parameters)

        return open_or_build(folder, META_FILE, read, build)

    def save(self, folder: str | Path) -> None:
        """Copy the index (without the shards of vectors) into a folder."""
        copy_folder(self.index_dir, Path(folder))

    def search(self, queries: Sequence[str], top_k: int = 10, posts: Sequence[str] | None = None) -> list[list[Entry]]:
        """Return the `top_k` distinct paragraphs of each query, ranked by the inner product of their best sentence.

        Equal scores stand in the order of the corpus. A query without a word finds nothing. Entries that hold their
        post, one of `posts`, are dropped and replaced.
        """
        if top_k < 1:
            raise ValueError(f"At least one result must be asked for, not {top_k}.")
        if posts is not None:
            return search_without_leaks(self.search, queries, posts, top_k)[0]
        results: list[list[Entry]] = [[] for _ in queries]
        asked = [row for row, query in enumerate(queries) if split_query(query)]

        def entries_of(rows: np.ndarray, scores: np.ndarray) -> Iterator[list[Entry]]:
            return distinct_entries(self.corpus, rows, scores, [COSINE] * len(rows), top_k)

        for first in range(0, len(asked), _BATCH):
            rows = asked[first : first + _BATCH]
            vectors = self.encoder.embed([queries[row] for row in rows])
            found = search_distinct(self.table, vectors, entries_of, top_k, 4 * top_k)
            for row, entries in zip(rows, found, strict=True):
                results[row] = entries
        return results


class FusedRetriever:
    """A retriever that joins the rankings of several ones by reciprocal rank fusion.

    score(entry) = Σ over the retrievers that found it of 1 / (k + rank), rank from 1, k = 60 (Cormack, Clarke and
    Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods", SIGIR 2009). Only
    ranks count, so scores need no weights. Each retriever is asked for `depth` entries; equal scores are ordered by
    best rank, then by retriever. The matched sentence is that of the retriever that ranks the entry best.
    """

    def __init__(self, retrievers: Sequence[TextRetriever], k: int = 60, depth: int = 100) -> None:
        if not retrievers:
            raise ValueError("No retriever is given: name at least one.")
        self.retrievers = list(retrievers)
        self.k = k
        self.depth = depth

    @property
    def fingerprint(self) -> str:
        """Return what the results depend on besides queries and `top_k`."""
        return f"rrf-{self.k}-{self.depth}-" + "+".join(retriever.fingerprint for retriever in self.retrievers)

    def search(self, queries: Sequence[str], top_k: int = 10, posts: Sequence[str] | None = None) -> list[list[Entry]]:
        """Return the `top_k` entries of each query by fused score; those that hold their post, one of `posts`, go."""
        if posts is not None:
            return search_without_leaks(self.search, queries, posts, top_k)[0]
        rankings = [retriever.search(queries, max(self.depth, top_k)) for retriever in self.retrievers]
        return [self._fuse(lists)[:top_k] for lists in zip(*rankings, strict=True)]

    def _fuse(self, lists: Sequence[list[Entry]]) -> list[Entry]:
        scores: dict[tuple[str, str], float] = {}
        best: dict[tuple[str, str], tuple[int, int, Entry]] = {}
        for place, entries in enumerate(lists):
            for rank, entry in enumerate(entries, 1):
                key = entry["title"], entry["text"]
                scores[key] = scores.get(key, 0.0) + 1 / (self.k + rank)
                if key not in best or (rank, place) < best[key][:2]:
                    best[key] = rank, place, entry
        ranked = sorted(scores, key=lambda key: (-scores[key], *best[key][:2]))
        highest = sum(1 / (self.k + 1) for _ in self.retrievers)  # of what all of them rank first
        return [{**best[key][2], "score": scores[key], "scale": highest} for key in ranked]


def embed_corpus(corpus: KnowledgeCorpus, encoder: SentenceEncoder, folder: Path) -> Dataset:
    """Embed a corpus's keys as a memory-mapped data set {embedding}, one row per sentence."""

    def embed(first: int, last: int) -> np.ndarray:
        return encoder.embed(corpus.table[first:last]["key"])

    name = f"{corpus.fingerprint[:16]}-{encoder.fingerprint[:16]}"
    before = encoder.at_limit
    vectors = embed_in_shards(folder, name, len(corpus), encoder.dimension, embed, _SHARD_ROWS, "sentences")
    if encoder.at_limit > before:
        count = encoder.at_limit - before
        logger.warning("%d sentences are read up to %d sub-tokens, their limit.", count, encoder.max_length)
    return vectors
