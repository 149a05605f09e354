"""Embed a corpus in shards that survive a killed run, and search the vectors by FAISS.

`Dataset.add_faiss_index` makes the index on the vectors alone, and `Dataset.load_faiss_index` loads it onto a table of
the same rows without them: reading past the vectors would cost several times the search.
"""

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value, concatenate_datasets
from tqdm.auto import tqdm

from ..files import new_file, remove_strays_of, write_json
from ..foreign import read_object
from .corpus_tables import claim, open_shard, read_meta, seal, write_stream
from .faiss_files import check_index, check_kind
from .index_files import DamagedError, check_digests, checked_once, digests_of
from .leakage import Entry, fetch_on
from .pictures import Source

logger = logging.getLogger(__name__)
logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it tells of each build of faiss that is not installed

COSINE = 1.0  # the most that the product of two vectors of length 1 can be, but for rounding
INDEX = "embedding"
INDEX_FILE = "index.faiss"
#: rows and scores of each vector -> its distinct entries
Distinct = Callable[[np.ndarray, np.ndarray], Iterable[list[Entry]]]
_TRAIN_ROWS = 1_000_000  # vectors that a quantiser learns from at most


def embed_in_shards(
    folder: Path,
    name: str,
    rows: int,
    dimension: int,
    embed: Callable[[int, int], np.ndarray],
    shard_rows: int,
    what: str = "rows",
) -> Dataset:
    """Embed `rows` rows as a memory-mapped data set {embedding}.

    Args:
        name: name of the shards, which must tell all that the vectors depend on.
        embed: gives float32 [last - first, dimension] of the rows from first to last.
        shard_rows: rows a shard, which is what a killed run loses at most.
    """
    folder.mkdir(parents=True, exist_ok=True)
    features = Features({INDEX: List(Value("float32"), length=dimension)})
    starts = range(0, rows, shard_rows)
    files = [folder / f"{name}-{shard_rows}-{number:06d}.arrow" for number in range(len(starts))]

    def shard(number: int) -> pa.Table | None:
        first = starts[number]
        return open_shard(files[number], features, min(shard_rows, rows - first), "its rows are embedded again")

    made: set[int] = set()
    with tqdm(total=rows, desc=f"Embedding {what}", unit=what, disable=None) as bar:
        for wait in (False, True):  # first what no other process does, then what the others have done
            for number, (first, file) in enumerate(zip(starts, files, strict=True)):
                last = min(first + shard_rows, rows)
                if number in made:
                    continue
                if shard(number) is None:
                    with claim(file, wait) as ours:
                        if not ours:
                            continue
                        if shard(number) is None:
                            remove_strays_of(file)
                            _write_shard(file, embed(first, last), features)
                made.add(number)
                bar.update(last - first)
    return concatenate_datasets([Dataset.from_file(str(file)) for file in files])


def _write_shard(file: Path, vectors: np.ndarray, features: Features) -> None:
    schema = features.arrow_schema
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]).cast(schema.types[0])
    with new_file(file) as beside:
        write_stream(beside, features, [pa.record_batch([column], schema=schema)])
        seal(beside)


def index_name(encoder: str, factory: str) -> str:
    """Return the name of an index's folder: the encoder's fingerprint, cut, and the factory string."""
    return f"{encoder[:12]}-{re.sub(r'[^A-Za-z0-9]+', '_', factory)}"


def build_index(
    vectors: Dataset,
    folder: Path,
    factory: str,
    meta_file: str,
    meta: dict[str, Any],
    is_good: Callable[[], bool] | None = None,
) -> None:
    """Build and save the index of inner products over `vectors`, under a lock: of several processes one does it.

    Args:
        factory: FAISS factory: "Flat" (exact), "IVF4096,PQ64", "HNSW32" …
        meta: written to `meta_file` last, with the digest of the index, so a folder that holds it is whole.
        is_good: says whether the index that is there by now will do; default: if `meta_file` is there.

    Raises:
        ValueError: FAISS can't build such an index over these vectors, or it is of a kind that is not read.
        OSError: it can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / INDEX_FILE
    good = is_good or (folder / meta_file).is_file
    with claim(file, wait=True):
        if good():
            return
        remove_strays_of(file)
        try:
            index = _train(vectors, factory)
            vectors.add_faiss_index(INDEX, custom_index=index)
            with new_file(file) as beside:
                vectors.save_faiss_index(INDEX, str(beside))
            write_json(folder / meta_file, {**meta, "files": digests_of(folder, [INDEX_FILE])})
        except RuntimeError as error:  # what FAISS makes of a full disk
            raise OSError(f"{file} can't be written: {' '.join(str(error).split())[-200:]}") from None
        finally:
            if INDEX in vectors.list_indexes():
                vectors.drop_index(INDEX)


def _train(vectors: Dataset, factory: str) -> Any:
    import faiss  # here, for runs that search no vectors

    dimension = vectors.features[INDEX].length
    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
        check_kind(index)
        if not index.is_trained:
            # from the whole corpus evenly: its first rows may be all of one kind
            rows = np.linspace(0, len(vectors) - 1, min(len(vectors), _TRAIN_ROWS)).astype(int)
            index.train(vectors.select(rows).with_format("numpy", dtype=np.float32)[:][INDEX])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-200:]
        raise ValueError(
            f"FAISS can't build {factory!r} over {len(vectors)} vectors of {dimension} numbers: {reason}"
        ) from None
    return index


def read_factory(file: Path, what: str, version: int, key: str, expected: dict[str, Any]) -> str:
    """Return the factory of a saved index, the entry `key` of its meta file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it describes an index of another version, or has other entries than those expected.
    """
    kinds = {name: type(value) for name, value in expected.items()}
    meta = read_meta(file, what, version, **kinds, **{key: str})
    for name, here in expected.items():
        if meta[name] != here:
            raise ValueError(f"The index in {file.parent} is of {name} {meta[name]}, not {here}: build it again.")
    return str(meta[key])


def load_index(
    table: Dataset, folder: Path, meta_file: str, dimension: int, cache: Path, parameters: str = ""
) -> tuple[str, str]:
    """Load the index in `folder` onto a table of the same rows, and return its search parameters and its digest.

    Args:
        meta_file: tells the digest of the index, if it is not older than digests.
        cache: the user's cache, which remembers indexes that were checked.
        parameters: settings of an approximate index, as FAISS writes them ("nprobe=32", "efSearch=128"); default: a
            sixteenth of the lists, at least 8, or 128 candidates of a graph.

    Raises:
        FileNotFoundError: the index is missing.
        DamagedError: it is damaged, of other rows or dimensions, or of a kind that is not read.
        ValueError: there are no such parameters.
    """
    import faiss

    file = folder / INDEX_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{folder} lacks its file {file.name}.")

    def check() -> str:
        digest = check_digests(folder, [INDEX_FILE], read_object(folder / meta_file).get("files"))
        check_index(file, len(table), dimension)
        return digest

    digest = checked_once(cache, [file, folder / meta_file], ["faiss", len(table), dimension], check)
    try:
        table.load_faiss_index(INDEX, str(file))
    except RuntimeError as error:
        raise DamagedError(f"{file} is not a FAISS index ({str(error).splitlines()[0]}).") from None
    table.get_index(INDEX).file = str(file)  # for errors
    index: Any = table.get_index(INDEX).faiss_index
    whole = faiss.downcast_index(getattr(index, "index", index))  # what stands behind a transformation of the vectors
    if not parameters and hasattr(whole, "nlist"):
        parameters = f"nprobe={min(whole.nlist, max(8, whole.nlist // 16))}"
    elif not parameters and hasattr(whole, "hnsw"):
        parameters = "efSearch=128"
    if parameters:
        try:
            space: Any = faiss.ParameterSpace()
            space.set_index_parameters(index, parameters)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-200:]
            raise ValueError(f"The index in {folder} can't be searched with {parameters!r}: {reason}") from None
    return parameters, digest


def search_rows(table: Dataset, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Search the k nearest rows of each vector.

    Returns:
        float32 [vectors, k] inner products, falling, and int [vectors, k] rows, filled up with -1; equal scores in the
        order of the rows.
    """
    try:
        found = table.search_batch(INDEX, np.ascontiguousarray(vectors, np.float32), k=k)
    except RuntimeError as error:
        raise ValueError(f"The vectors can't be searched: {' '.join(str(error).split())[-200:]}") from None
    scores, rows = np.asarray(found.total_scores), np.asarray(found.total_indices)
    if bool((rows >= len(table)).any()) or not bool(np.isfinite(scores[rows >= 0]).all()):
        file = getattr(table.get_index(INDEX), "file", "The index of the vectors")
        raise ValueError(f"{file} gives rows that are not there, or scores that are no numbers: build it again.")
    order = np.lexsort((rows, -scores), axis=-1)
    return np.take_along_axis(scores, order, axis=-1), np.take_along_axis(rows, order, axis=-1)


def search_distinct(
    table: Dataset, vectors: np.ndarray, entries_of: Distinct, top_k: int, fetch: int
) -> list[list[Entry]]:
    """Return the `top_k` distinct entries of each vector.

    Where rows of the same entry leave fewer, more than `fetch` rows are searched, until the table ends or an
    approximate index has no more.
    """

    def ask(queries: list[int], k: int) -> Iterable[tuple[list[Entry], bool]]:
        scores, rows = search_rows(table, vectors[queries], k)
        return zip(entries_of(rows, scores), (rows[:, -1] >= 0).tolist(), strict=True)

    return fetch_on(ask, len(vectors), top_k, fetch, len(table))


class ImageSearcher:
    """A retriever that searches images by their embeddings."""

    encoder: Any

    def search(self, images: Sequence[Source], top_k: int = 10) -> list[list[Entry]]:
        """Return the `top_k` articles of each image, one entry per article, ranked by inner product.

        Equal scores stand in the order of the corpus. An image that is None finds nothing.

        Raises:
            ImageError: an image can't be used.
        """
        given = [image for image in images if image is not None]
        found = iter(self.search_vectors(self.encoder.embed(given), top_k))
        return [[] if image is None else next(found) for image in images]

    def search_vectors(self, vectors: np.ndarray, top_k: int = 10) -> list[list[Entry]]:
        """Search as `search` does, by embeddings, float32 [queries, dimension]."""
        raise NotImplementedError
