"""Knowledge corpora and their indices as targets of the fuzzer: one file of a whole folder is damaged.

Damage without fitting digests must be refused, or change no answer. A stranger writes the digests as well: then the
answers may be others, but no less well formed, and nothing is read beyond an array (NUMBA_BOUNDSCHECK is set).
"""

import math
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import image_knowledge
import knowledge_rows
import ner_runs
from fuzz_damage import DamagedFolder, simple_edits
from fuzz_verdict import Target, WrongResult, told_well
from modeling_more.knowledge import BM25Retriever, ImageEncoder, ImageRetriever, KnowledgeCorpus
from modeling_more.knowledge.entities import EntityRetriever, entity_query
from pictures import save_tiny_tower

QUERIES = ["w1 w2 w7", "w0", "w3 w3 nothing", "w24 w5"]
ASKED = [entity_query(query, ["T1", "T7"]) for query in QUERIES]
ROWS = knowledge_rows.random_rows(5, articles=12)
Answers = list[list[dict[str, Any]]]


def _text_corpus(home: Path) -> KnowledgeCorpus:
    corpus = KnowledgeCorpus.from_files(ner_runs.write_jsonl(home / "rows.jsonl", ROWS), home / "cache")
    EntityRetriever.from_corpus(corpus)  # builds both indices
    return corpus


def _check(answers: Answers, texts: set[str]) -> None:
    """Raise WrongResult for answers that no corpus with these texts can give."""
    for entries in answers:
        scores = [entry["score"] for entry in entries]
        if not all(map(math.isfinite, scores)) or scores != sorted(scores, reverse=True):
            raise WrongResult(f"the scores are {scores}")
        for entry in entries:
            if entry["text"] not in texts:
                raise WrongResult("a text is none of the corpus")
            if not 0 <= entry["match_start"] <= entry["match_end"] <= len(entry["text"]):
                raise WrongResult("a match lies outside of its text")


class _FolderTarget:
    """A damaged folder, what is done with it, and what comes out if it is whole."""

    def __init__(self, work: Path, make: Callable[[Path], tuple[Path, list[str]]], use: Callable[[Path], Any]) -> None:
        home = work / "made"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        pristine, files = make(home)
        self.damaged, self.use = DamagedFolder(pristine, work / "damaged", files), use
        self.damaged.damage(b"\0\0")
        self.whole = use(self.damaged.folder)

    def run(self, data: bytes) -> None:
        name, signed = self.damaged.damage(data)
        with told_well(self.damaged.folder.name):
            found = self.use(self.damaged.folder)
            if not signed and found != self.whole:
                raise WrongResult(f"damage of {name} changed the answers in silence")


def _target(
    make: Callable[[Path], tuple[Path, list[str]]], use: Callable[[Path], Any], share: float, files: int
) -> Target:
    @cache
    def made(folder: Path) -> _FolderTarget:
        return _FolderTarget(folder, make, use)

    def run(data: bytes, folder: Path) -> None:
        made(folder).run(data)

    return Target(run, lambda: simple_edits(files), (), share, 2 + 6 * 4)


# ---------------------------------------------------------------- the index of words, as it comes with a corpus

TEXTS = {line.strip() for row in ROWS for line in row["text"].split("\n")}


def _bm25() -> Target:
    corpora: list[KnowledgeCorpus] = []

    def make(home: Path) -> tuple[Path, list[str]]:
        corpora.append(_text_corpus(home))
        folder = corpora[0].text_index()
        return folder, sorted(path.name for path in folder.iterdir() if path.is_file())

    def use(folder: Path) -> Answers:
        found = BM25Retriever(corpora[0], folder).search(QUERIES, 3)
        _check(found, TEXTS)
        return found

    return _target(make, use, 1.2, 6)


# ---------------------------------------------------------------- a corpus in the cache: tables and both indices


def _tables() -> Target:
    def make(home: Path) -> tuple[Path, list[str]]:
        corpus = _text_corpus(home)
        names = [path.relative_to(corpus.folder).as_posix() for path in corpus.folder.rglob("*") if path.is_file()]
        return corpus.folder, sorted(name for name in names if not name.startswith(("bm25/", ".")))

    def use(folder: Path) -> Answers:
        corpus = KnowledgeCorpus(folder)
        found = BM25Retriever(corpus, folder / "bm25").search(QUERIES, 3)
        found += EntityRetriever(corpus, folder / "bm25").search(ASKED, 3)
        for entries in found:
            for entry in entries:
                entry["text"].encode()
        return found

    return _target(make, use, 0.6, 9)


# ---------------------------------------------------------------- a corpus as it is saved and downloaded


def _saved() -> Target:
    def make(home: Path) -> tuple[Path, list[str]]:
        saved = _text_corpus(home).save_pretrained(home / "saved")
        names = [path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()]
        return saved, sorted(name for name in names if not name.endswith(".md"))

    def use(folder: Path) -> Answers:
        cache_dir = folder.with_name("cache of damaged")
        shutil.rmtree(cache_dir, ignore_errors=True)
        corpus = KnowledgeCorpus.from_pretrained(folder, cache_dir)
        return BM25Retriever.from_corpus(corpus).search(QUERIES, 3)

    return _target(make, use, 0.3, 9)


# ---------------------------------------------------------------- the indices of images


def _faiss() -> Target:
    known: list[tuple[KnowledgeCorpus, ImageEncoder]] = []
    vectors = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)

    def make(home: Path) -> tuple[Path, list[str]]:
        corpus = KnowledgeCorpus.from_files(image_knowledge.write_corpus(home / "k", 40), home / "cache")
        encoder = ImageEncoder(save_tiny_tower(home / "tower"))
        for factory in ("Flat", "HNSW4", "IVF2,Flat"):
            ImageRetriever.from_corpus(corpus, encoder, string_factory=factory)
        known.append((corpus, encoder))
        folder = corpus.folder / "faiss"
        shutil.rmtree(folder / "embeddings", ignore_errors=True)
        return folder, sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def use(folder: Path) -> Answers:
        found: Answers = []
        for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
            found += ImageRetriever(*known[0], inner).search_vectors(vectors, 3)
        _check([[{**entry, "match_start": 0, "match_end": 0} for entry in entries] for entries in found],
               {entry["text"] for entries in found for entry in entries})  # fmt: skip
        return found

    return _target(make, use, 0.6, 6)


FOLDERS: dict[str, Target] = {
    "bm25 index": _bm25(), "corpus tables": _tables(), "saved corpus": _saved(), "faiss index": _faiss(),
}  # fmt: skip
