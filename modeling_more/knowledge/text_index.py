"""Build the BM25 index of texts in parts that survive a killed run, and open it memory-mapped.

bm25s stores one float32 score for each word of each text. Counting is ours: it needs no lists of words in memory.
"""

import logging
import shutil
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import bm25s
import numpy as np
from numba import njit
from tqdm.auto import tqdm

from ..files import new_file, write_json
from ..foreign import read_json, read_object
from .corpus_tables import build_once, claim, read_meta
from .index_files import (
    DamagedError,
    check_digests,
    check_postings,
    check_vocabulary,
    checked_once,
    digests_of,
    load_array,
)
from .search_words import split_text

logger = logging.getLogger(__name__)
logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG at import

K1 = 1.2
B = 0.75
INDEX_VERSION = 2  # 2: words in their normal form, pieces of scripts without blanks
META_FILE = "index.json"
_PART_ROWS = 100_000  # texts a part: what a killed run loses at most
_STEP = 10_000  # texts a step of the progress bar
_ARRAYS = ("data", "indices", "indptr")  # as bm25s calls scores, rows, and the first posting of each word
_VOCABULARY = "vocab.index.json"
FILES = (*(f"{name}.csc.index.npy" for name in _ARRAYS), _VOCABULARY, "params.index.json")
_MAX_VOCABULARY = 8_000_000_000  # bytes; that of the English Wikipedia has some 300 million

Postings = tuple[np.ndarray, np.ndarray, np.ndarray]  # float32 scores, int32 rows, first posting of each word


class _Part(NamedTuple):
    """The words of some texts as int32 numbers, how many each text has, and those that no part before has."""

    words: np.ndarray
    lengths: np.ndarray
    new: list[str]


def is_current(folder: Path) -> bool:
    """Return whether the folder holds an index of this version, and log another version."""
    if (version := _other_version(folder)) is not None:
        logger.warning(
            "The index in %s is of version %s, not %s: it is built again in the cache.", folder, version, INDEX_VERSION
        )
        return False
    return (folder / META_FILE).is_file()


def _other_version(folder: Path) -> int | None:
    """Return the version of the index in the folder, or None if it is today's or not told."""
    try:
        version: int = read_object(folder / META_FILE, version=int)["version"]
    except (OSError, ValueError):
        return None
    return None if version == INDEX_VERSION else version


def build_index(
    texts: Callable[[int, int], Iterable[str]],
    rows: int,
    folder: Path,
    fingerprint: str,
    more: Mapping[str, np.ndarray] | None = None,
    is_good: Callable[[], bool] | None = None,
) -> None:
    """Write the BM25 index of the texts for the corpus of that fingerprint; of several processes one does it.

    An index of another version in the folder is replaced, and nothing else.

    Args:
        texts: gives the texts of the rows from first to last.
        more: arrays that belong to the index, by the names of their files.
        is_good: says whether the index that is there by now will do; default: it is of this version.
    """
    parts = _parts_of(folder)
    files = [*FILES, *(more or ())]

    def write(beside: Path) -> None:
        words, bounds, vocabulary = _number_words(texts, rows, parts, fingerprint)
        index = bm25s.BM25(k1=K1, b=B, method="lucene", backend="numba")
        arrays = _count(words, bounds, len(vocabulary))
        index.scores = {**dict(zip(_ARRAYS, arrays, strict=True)), "num_docs": rows}
        index.vocab_dict, index.nonoccurrence_array = vocabulary, None
        index.save(beside, show_progress=False)
        for name, values in (more or {}).items():
            np.save(beside / name, values, allow_pickle=False)
        meta = {
            "version": INDEX_VERSION,
            "corpus": fingerprint,
            "sentences": rows,
            "words": len(vocabulary),
            "postings": len(arrays[0]),
            "files": digests_of(beside, files),
        }
        write_json(beside / META_FILE, meta)

    def current() -> bool:
        return (folder / META_FILE).is_file() and _other_version(folder) is None

    build_once(folder, META_FILE, write, is_good or current, own=(*files, META_FILE))
    remove_parts(folder)


def _parts_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.parts")


def remove_parts(folder: Path) -> None:
    """Remove the parts that a killed build of an index left, which is whole by now, unless it is just being built."""
    if _parts_of(folder).is_dir():
        with claim(folder, wait=False) as ours:
            if ours:
                shutil.rmtree(_parts_of(folder), ignore_errors=True)


def _number_words(
    texts: Callable[[int, int], Iterable[str]], rows: int, parts: Path, fingerprint: str
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Return the words of all texts as one array of int32 numbers, where each text begins, and the vocabulary.

    Splitting takes the time, so its results are kept in `parts`, a file for each `_PART_ROWS` texts.
    """
    vocabulary: dict[str, int] = {}
    words, lengths = [np.zeros(0, np.int32)], [np.zeros(1, np.int32)]
    with tqdm(total=rows, desc="Indexing", unit="texts", disable=None) as bar:
        for first in range(0, rows, _PART_ROWS):
            last = min(first + _PART_ROWS, rows)
            file = parts / f"{fingerprint}-{INDEX_VERSION}-{_PART_ROWS}-{first}.npz"
            part = _read_part(file, last - first, len(vocabulary))
            if part is None:
                part = _split(texts(first, last), vocabulary, bar)
                if rows > _PART_ROWS:
                    _write_part(file, part)
            else:
                vocabulary |= {word: len(vocabulary) + place for place, word in enumerate(part.new)}
                bar.update(last - first)
            words.append(part.words)
            lengths.append(part.lengths)
    return np.concatenate(words), np.cumsum(np.concatenate(lengths), dtype=np.int64), vocabulary


def _split(texts: Iterable[str], vocabulary: dict[str, int], bar: tqdm) -> _Part:
    """Number the words of the texts; new ones enter the vocabulary."""
    known = len(vocabulary)
    words, lengths = array("i"), array("i")
    for text in texts:
        numbers = [vocabulary.setdefault(word, len(vocabulary)) for word in split_text(text)]
        words.extend(numbers)
        lengths.append(len(numbers))
        if len(lengths) % _STEP == 0:
            bar.update(_STEP)
    bar.update(len(lengths) % _STEP)
    new = list(islice(vocabulary, known, None))
    return _Part(np.frombuffer(words, np.int32), np.frombuffer(lengths, np.int32), new)


def _write_part(file: Path, part: _Part) -> None:
    new = np.frombuffer("\n".join(part.new).encode(), np.uint8)  # an array of strings would be as wide as the longest
    with new_file(file) as beside, open(beside, "wb") as stream:
        np.savez(stream, words=part.words, lengths=part.lengths, new=new)


def _read_part(file: Path, texts: int, known: int) -> _Part | None:
    """Return a part, or None where it must be made (again).

    Args:
        texts: how many it must have.
        known: words of the parts before.
    """
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:  # zip files: each array with a checksum
            new = arrays["new"].tobytes().decode()
            part = _Part(arrays["words"], arrays["lengths"], new.split("\n") if new else [])
        kinds = [values.dtype for values in part[:2]]
        whole = kinds == [np.dtype(np.int32)] * 2 and part.lengths.shape == (texts,) and part.words.ndim == 1
        whole = whole and bool((part.lengths >= 0).all()) and int(part.lengths.sum(dtype=np.int64)) == len(part.words)
        if whole and bool(((part.words >= 0) & (part.words < known + len(part.new))).all()):
            return part
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        pass  # what `zipfile` raises for anything but the file that was written
    logger.warning("%s is damaged: its texts are split again.", file)  # not by us: writing is atomic
    return None


@njit(cache=True)
def idf(texts, holding):  # type: ignore[no-untyped-def]
    """Return the weight of a word that `holding` of the texts hold, which its share of a score never reaches."""
    return np.log(1 + (texts - holding + 0.5) / (holding + 0.5))


@njit(cache=True)
def _count(words, bounds, vocabulary):  # type: ignore[no-untyped-def]
    """Return the scored postings of `words` (all texts in a row; text i from bounds[i] on), by word, then text."""
    texts = bounds.shape[0] - 1
    seen = np.full(vocabulary, -1, np.int32)  # the last text that held the word
    starts = np.zeros(vocabulary + 1, np.int64)
    for text in range(texts):
        for at in range(bounds[text], bounds[text + 1]):
            if seen[words[at]] != text:
                seen[words[at]] = text
                starts[words[at] + 1] += 1
    starts = np.cumsum(starts)
    scores = np.empty(starts[-1], np.float32)
    rows = np.empty(starts[-1], np.int32)
    ends = starts[:-1].copy()
    for text in range(texts):
        for at in range(bounds[text], bounds[text + 1]):
            word = words[at]
            if ends[word] > starts[word] and rows[ends[word] - 1] == text:
                scores[ends[word] - 1] += 1
            else:
                rows[ends[word]] = text
                scores[ends[word]] = 1
                ends[word] += 1
    average = words.shape[0] / texts
    for word in range(vocabulary):
        holding = starts[word + 1] - starts[word]
        weight = idf(texts, holding)
        for at in range(starts[word], starts[word + 1]):
            length = bounds[rows[at] + 1] - bounds[rows[at]]
            count = np.float64(scores[at])
            scores[at] = weight * (count / (K1 * ((1 - B) + B * length / average) + count))
    return scores, rows, starts


class TextIndex(NamedTuple):
    """An index that was checked: as bm25s searches it, its postings as plain arrays, and the digest of its files."""

    index: bm25s.BM25
    postings: Postings
    digest: str


def open_index(folder: Path, fingerprint: str, rows: int, cache: Path, more: Sequence[str] = ()) -> TextIndex:
    """Open an index that `build_index` wrote, memory-mapped; bm25s itself would believe its files.

    Args:
        cache: the user's cache, which remembers indexes that were checked.
        more: names of further files that it must have.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: it is the index of another corpus, or of another version.
        DamagedError: it is not the one that was written, or none that can be searched.
    """
    meta = read_meta(
        folder / META_FILE, "BM25 index", INDEX_VERSION, corpus=str, sentences=int, words=int, postings=int
    )
    if meta["corpus"] != fingerprint or meta["sentences"] != rows:
        raise ValueError(
            f"The index in {folder} is of corpus {meta['corpus']} with {meta['sentences']} sentences, "
            f"not of {fingerprint} with {rows}: build it again."
        )
    names = [*FILES, *more]
    lengths = (meta["postings"], meta["postings"], meta["words"] + 1)
    kinds = zip(FILES, (np.float32, np.int32, np.int64), lengths, strict=False)
    scores, texts, starts = (load_array(folder / name, kind, length) for name, kind, length in kinds)
    vocabulary = _read_vocabulary(folder / _VOCABULARY, meta["words"])

    def check() -> str:
        digest = check_digests(folder, names, meta.get("files"))
        check_postings(scores, texts, starts, rows, folder / FILES[1])
        return digest

    digest = checked_once(cache, [folder / name for name in (*names, META_FILE)], ["bm25", rows], check)
    index = bm25s.BM25(k1=K1, b=B, method="lucene", backend="numba")
    index.scores = {**dict(zip(_ARRAYS, (scores, texts, starts), strict=True)), "num_docs": rows}
    index.vocab_dict, index.nonoccurrence_array = vocabulary, None
    index.unique_token_ids_set = set(range(len(vocabulary)))
    # plain read-only arrays, for which the search is compiled once
    return TextIndex(index, (read_only(scores), read_only(texts), read_only(starts)), digest)


def _read_vocabulary(file: Path, words: int) -> dict[str, int]:
    try:
        return check_vocabulary(read_json(file, max_bytes=_MAX_VOCABULARY), words, file)
    except FileNotFoundError:
        raise DamagedError(f"{file.parent} lacks its file {file.name}") from None
    except DamagedError:
        raise
    except ValueError as error:
        raise DamagedError(str(error)) from None


def read_only(values: np.ndarray) -> np.ndarray:
    view = np.asarray(values).view(np.ndarray)
    view.flags.writeable = False
    return view
