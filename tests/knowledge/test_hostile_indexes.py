"""Indexes that a stranger wrote: nothing is searched past an array, and no bit gives other results in silence."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile_files import DAMAGES, damage, with_fitting_digests

from knowledge_rows import ARTICLES, make, posts, random_rows
from modeling_more.knowledge import BM25Retriever, EntityRetriever, KnowledgeCorpus, attach_text_knowledge
from modeling_more.knowledge import text_index as text_index_module

ROWS, STARTS, SCORES = "indices.csc.index.npy", "indptr.csc.index.npy", "data.csc.index.npy"
VOCABULARY = "vocab.index.json"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved corpus with its index."""
    folder = tmp_path_factory.mktemp("published")
    return make(folder, random_rows(1)).corpus.save_pretrained(folder / "saved")


@pytest.fixture
def saved(published: Path, tmp_path: Path) -> Path:
    """A copy of it, as it may be downloaded."""
    return Path(shutil.copytree(published, tmp_path / "saved"))


SEARCH = """
import sys
from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus

try:
    retriever = BM25Retriever.from_corpus(KnowledgeCorpus.from_pretrained(sys.argv[1], sys.argv[2]))
    for _ in range(20):
        retriever.search(["w1 w2 w3 w4"])
except ValueError as error:
    raise SystemExit(f"error: {error}")
"""


@pytest.mark.parametrize("digests_fit", [False, True])
def test_row_numbers_beyond_the_corpus_are_an_error_and_no_crash(
    digests_fit: bool, saved: Path, tmp_path: Path
) -> None:
    rows = np.load(saved / "bm25" / ROWS)
    np.save(saved / "bm25" / ROWS, np.full_like(rows, 2**31 - 1))
    if digests_fit:
        with_fitting_digests(saved / "bm25")
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", SEARCH, str(saved), str(tmp_path / "new")]
    run = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=False
    )
    told = "a row number of indices.csc.index.npy is none of the" if digests_fit else "its digest differs"
    assert run.returncode == 1 and told in run.stderr, (run.returncode, run.stderr)


def change(values: np.ndarray, at: int, value: float) -> np.ndarray:
    changed = values.copy()
    changed[at] = value
    return changed


class Harmful:
    """An object that makes a folder where it is unpickled."""

    def __reduce__(self) -> object:
        return (os.mkdir, ("harmed",))


# what is written in the place of an array, and what is said
ARRAYS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray], str]] = {
    "a row below 0": (ROWS, lambda rows: change(rows, 3, -1), "is none of the"),
    "one row too many": (ROWS, lambda rows: change(rows, -1, rows.max() + 10_000), "is none of the"),
    "rows in another order": (ROWS, lambda rows: rows[::-1].copy(), "do not rise"),
    "a row twice": (ROWS, lambda rows: change(rows, 1, rows[0]), "do not rise"),
    "postings past the end": (STARTS, lambda starts: change(starts, -1, 10**9), "do not rise from 0"),
    "postings before the start": (STARTS, lambda starts: change(starts, 0, -5), "do not rise from 0"),
    "words that go back": (STARTS, lambda starts: change(starts, 2, starts[-1]), "do not rise from 0"),
    "too few words": (STARTS, lambda starts: starts[:-1], "numbers, it must have"),
    "no number": (SCORES, lambda scores: change(scores, 0, np.nan), "negative or not finite"),
    "infinity": (SCORES, lambda scores: change(scores, 0, np.inf), "negative or not finite"),
    "a score below 0": (SCORES, lambda scores: change(scores, 0, -1), "negative or not finite"),
    "other numbers": (SCORES, lambda scores: scores.astype(np.float64), "it must hold float32"),
    "numbers of more bytes": (ROWS, lambda rows: rows.astype(np.int64), "it must hold int32"),
    "two dimensions": (ROWS, lambda rows: rows[None], "it must hold int32 in one"),
    "more numbers": (ROWS, lambda rows: np.append(rows, rows), "numbers, it must have"),
    "text": (ROWS, lambda rows: rows.astype(str), "it must hold int32"),
    "objects": (ROWS, lambda rows: np.array([Harmful()] * len(rows), dtype=object), "it must hold int32"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_that_no_index_has_are_named(
    case: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, other, told = ARRAYS[case]
    file = saved / "bm25" / name
    monkeypatch.chdir(tmp_path)
    np.save(file, other(np.load(file)), allow_pickle=True)
    with_fitting_digests(saved / "bm25")
    corpus = KnowledgeCorpus.from_pretrained(saved, tmp_path / "new")
    with pytest.raises(ValueError, match=told) as error:
        BM25Retriever.from_corpus(corpus)
    assert "bm25" in str(error.value) and len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "harmed").exists()


HEADER = b"\x93NUMPY\x01\x00"
FILES: dict[str, tuple[str, bytes, str]] = {
    "a pickle": (ROWS, pickle.dumps(Harmful()), "no array of numbers"),
    "an archive": (ROWS, b"PK\x03\x04 zip", "no array of numbers"),
    "a header without end": (ROWS, HEADER + b"\xff\xff" + b"(" * 65_535, "no array of numbers"),
    "a header that calls": (
        ROWS, HEADER + b"\x40\x00" + b"__import__('os').mkdir('harmed')".ljust(64), "no array of numbers",
    ),
    "a huge shape": (
        ROWS, HEADER + b"\x76\x00" + b"{'descr': '<i4', 'fortran_order': False, 'shape': (99999999999,), }".ljust(118),
        "numbers, it must have",
    ),
    "no vocabulary": (VOCABULARY, b"[1, 2]", "does not hold the"),
    "nested vocabulary": (VOCABULARY, b"[" * 100_000, "nested too deeply"),
    "bytes": (VOCABULARY, b'{"\xff": 0}', "is not UTF-8"),
    "half a vocabulary": (VOCABULARY, b'{"w1": 0, "w', "is no JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_files_of_another_kind_are_named(
    case: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content, told = FILES[case]
    monkeypatch.chdir(tmp_path)
    (saved / "bm25" / name).write_bytes(content)
    with_fitting_digests(saved / "bm25")
    corpus = KnowledgeCorpus.from_pretrained(saved, tmp_path / "new")
    with pytest.raises(ValueError, match=told) as error:
        BM25Retriever.from_corpus(corpus)
    assert name in str(error.value) and not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("number", [-1, 10**12, 0, True, 1.5, "1", None])
def test_words_are_numbered_each_once(number: object, saved: Path, tmp_path: Path) -> None:
    file = saved / "bm25" / VOCABULARY
    vocabulary = json.loads(file.read_text())
    word = next(word for word, place in vocabulary.items() if place == 1)
    file.write_text(json.dumps({**vocabulary, word: number}))
    with_fitting_digests(saved / "bm25")
    corpus = KnowledgeCorpus.from_pretrained(saved, tmp_path / "new")
    with pytest.raises(ValueError, match=r"vocab\.index\.json: its words are not numbered from 0"):
        BM25Retriever.from_corpus(corpus)


@pytest.mark.parametrize("name", [ROWS, STARTS, SCORES, VOCABULARY])
@pytest.mark.parametrize("how", DAMAGES)
def test_damage_to_a_downloaded_index_is_told(name: str, how: str, saved: Path, tmp_path: Path) -> None:
    corpus = KnowledgeCorpus.from_pretrained(saved, tmp_path / "new")
    damage(saved / "bm25" / name, DAMAGES[how])
    with pytest.raises(ValueError, match=r"bm25.*(digest differs|no array|is cut|does not hold|no JSON|not numbered)"):
        BM25Retriever.from_corpus(corpus)


def test_words_that_change_places_are_told(saved: Path, tmp_path: Path) -> None:
    """The structure fits, so it is the digest that tells."""
    file = saved / "bm25" / VOCABULARY
    vocabulary = json.loads(file.read_text())
    (one, first), (other, second) = list(vocabulary.items())[:2]
    file.write_text(json.dumps({**vocabulary, one: second, other: first}))
    corpus = KnowledgeCorpus.from_pretrained(saved, tmp_path / "new")
    with pytest.raises(ValueError, match=r"vocab\.index\.json is not the file that was written here"):
        BM25Retriever.from_corpus(corpus)


def test_an_index_is_checked_once_a_content(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read twice, however often it is opened; a changed bit is seen though size and time are the same."""
    calls: list[object] = []
    check = text_index_module.check_postings
    monkeypatch.setattr(text_index_module, "check_postings", lambda *args: calls.append(args) or check(*args))
    time.sleep(0.2)  # what was changed just now may change again within the same times
    for _ in range(3):
        corpus = KnowledgeCorpus.from_pretrained(saved, tmp_path / "new")
        found = BM25Retriever.from_corpus(corpus).search(["w1 w2"])
    assert len(calls) == 1 and found
    file = saved / "bm25" / SCORES
    status = file.stat()
    content = bytearray(file.read_bytes())
    content[-2] ^= 64
    with open(file, "r+b") as stream:
        stream.write(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ValueError, match="its digest differs"):
        BM25Retriever.from_corpus(corpus)


def test_nothing_in_the_folder_says_that_it_was_checked(saved: Path, tmp_path: Path) -> None:
    corpus = KnowledgeCorpus.from_pretrained(saved, tmp_path / "new")
    time.sleep(0.2)
    BM25Retriever.from_corpus(corpus)
    assert list((tmp_path / "new" / "checked").iterdir())
    assert not list(saved.rglob("checked"))


def test_an_index_of_the_time_before_digests_is_read_if_it_can_be_searched(saved: Path, tmp_path: Path) -> None:
    expected = BM25Retriever.from_corpus(KnowledgeCorpus.from_pretrained(saved, tmp_path / "new"))
    meta = json.loads((saved / "bm25" / "index.json").read_text())
    del meta["files"]
    (saved / "bm25" / "index.json").write_text(json.dumps(meta))
    older = BM25Retriever.from_corpus(KnowledgeCorpus.from_pretrained(saved, tmp_path / "other"))
    assert older.index_dir == saved / "bm25" and older.fingerprint == expected.fingerprint
    assert older.search(["w1 w2 w9"]) == expected.search(["w1 w2 w9"])
    np.save(saved / "bm25" / ROWS, np.load(saved / "bm25" / ROWS) + 10_000)
    with pytest.raises(ValueError, match="is none of the"):
        BM25Retriever.from_corpus(KnowledgeCorpus.from_pretrained(saved, tmp_path / "third"))


def test_a_repaired_index_is_searched_anew(saved: Path, tmp_path: Path) -> None:
    """What a wrong index found is not what the right one finds, though corpus, queries and posts are the same."""
    right = (saved / "bm25" / SCORES).read_bytes()
    dataset = posts("w1 w2 w3", "w4 w5")
    scores = np.load(saved / "bm25" / SCORES)
    np.save(saved / "bm25" / SCORES, scores * 2)
    with_fitting_digests(saved / "bm25")

    def attached() -> list[float]:
        retriever = BM25Retriever.from_corpus(KnowledgeCorpus.from_pretrained(saved, tmp_path / "new"))
        rows = attach_text_knowledge(dataset, retriever, cache_dir=tmp_path / "new")[0]["knowledge_text"]
        return [entry["score"] for entries in rows for entry in entries]

    wrong = attached()
    (saved / "bm25" / SCORES).write_bytes(right)
    with_fitting_digests(saved / "bm25")
    assert attached() == pytest.approx([score / 2 for score in wrong], rel=1e-6)


def test_the_index_of_titles_is_checked_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It lies in the cache, so what can't be searched is built again."""
    retriever = make(tmp_path, ARTICLES)
    expected = EntityRetriever.from_corpus(retriever.corpus).search(["harbour\x1fOslo"])
    folder = retriever.corpus.folder / "bm25_titles"
    for name, values in (("article_start.npy", [0, 10**9]), ("article_start.npy", [0, 5, 2, 8]), (ROWS, [9, 9, 9, 9])):
        file = folder / name
        before = np.load(file)
        np.save(file, np.resize(values, before.shape).astype(before.dtype))
        with_fitting_digests(folder)
        caplog.clear()
        assert EntityRetriever.from_corpus(retriever.corpus).search(["harbour\x1fOslo"]) == expected
        assert "it is built again" in caplog.text and "bm25_titles" in caplog.text
