"""FAISS indexes that a stranger wrote: kinds that are not read, lists elsewhere, graphs that lead out of them."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from hostile_files import DAMAGES, damage, numbers, with_fitting_digests

from modeling_more.knowledge.vectors import INDEX_FILE, build_index, load_index, search_rows

ROWS, DIMENSION = 400, 16
META = "about.json"


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    found = np.random.default_rng(0).normal(size=(ROWS, DIMENSION)).astype(np.float32)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="module")
def table(vectors: np.ndarray) -> Dataset:
    features = Features({"embedding": List(Value("float32"), length=DIMENSION)})
    return Dataset.from_dict({"embedding": list(vectors)}, features)


def load(folder: Path, cache: Path) -> Dataset:
    found = numbers(ROWS)
    load_index(found, folder, META, DIMENSION, cache)
    return found


KINDS = [
    "Flat", "SQ8", "SQfp16", "PQ4x4", "IVF8,Flat", "IVF8,SQ8", "IVF8,PQ4x4", "IVF8_HNSW4,Flat", "HNSW8", "HNSW8_SQ8",
    "OPQ4,IVF8,PQ4x4", "PCA8,Flat", "L2norm,Flat",
]  # fmt: skip


@pytest.mark.parametrize("factory", KINDS)
def test_kinds_that_are_built_are_read(factory: str, table: Dataset, vectors: np.ndarray, tmp_path: Path) -> None:
    build_index(table, tmp_path / "index", factory, META, {})
    scores, rows = search_rows(load(tmp_path / "index", tmp_path), vectors[:50], 5)
    best = np.argmax(vectors[:50] @ vectors.T, axis=1)
    exact = factory in ("Flat", "SQ8", "SQfp16", "IVF8,Flat", "IVF8,SQ8", "L2norm,Flat")
    assert (rows[:, 0] == best).mean() > (0.95 if exact else 0.5) and np.isfinite(scores).all()


@pytest.mark.parametrize("factory", ["NSG8", "RQ2x4", "IVF8,RaBitQ", "PQ4x4,RFlat", "PCA8,IVF8,RaBitQ"])
def test_other_kinds_are_neither_built_nor_read(
    factory: str, table: Dataset, vectors: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"an index of the kind Index\w+ is not read; there are Flat"):
        build_index(table, tmp_path / "index", factory, META, {})
    index = faiss.index_factory(DIMENSION, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    write(tmp_path / "other", index)
    with pytest.raises(ValueError, match=r"not a FAISS index of a kind that is read|it holds an index of the kind"):
        load(tmp_path / "other", tmp_path)


def write(folder: Path, index: Any) -> None:
    """Write an index with fitting digests."""
    folder.mkdir(parents=True, exist_ok=True)
    faiss.write_index(index, str(folder / INDEX_FILE))
    (folder / META).write_text(json.dumps({"files": {INDEX_FILE: ""}}))
    with_fitting_digests(folder, META)


def made(factory: str, vectors: np.ndarray, metric: int = faiss.METRIC_INNER_PRODUCT) -> Any:
    index: Any = faiss.index_factory(DIMENSION, factory, metric)
    index.train(vectors)
    index.add(vectors)
    return index


def graph_out_of_the_vectors(vectors: np.ndarray) -> Any:
    index = made("HNSW8", vectors)
    neighbors = faiss.vector_to_array(index.hnsw.neighbors)
    neighbors[neighbors >= 0] = 2**31 - 1
    faiss.copy_array_to_vector(neighbors, index.hnsw.neighbors)
    return index


def entry_out_of_the_vectors(vectors: np.ndarray) -> Any:
    index = made("HNSW8", vectors)
    index.hnsw.entry_point = ROWS
    return index


def neighbor_of_a_lower_level(vectors: np.ndarray) -> Any:
    index = made("HNSW8", vectors)
    graph = index.hnsw
    levels, offsets = faiss.vector_to_array(graph.levels), faiss.vector_to_array(graph.offsets)
    neighbors, places = faiss.vector_to_array(graph.neighbors), faiss.vector_to_array(graph.cum_nneighbor_per_level)
    high, low = int(np.flatnonzero(levels > 1)[0]), int(np.flatnonzero(levels == 1)[-1])
    neighbors[int(offsets[high]) + places[1]] = low
    faiss.copy_array_to_vector(neighbors, graph.neighbors)
    return index


def listed_row_beyond(vectors: np.ndarray) -> Any:
    index = made("IVF8,Flat", vectors)
    lists = faiss.downcast_InvertedLists(index.invlists)
    number = next(n for n in range(8) if lists.list_size(n))
    faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number))[0] = 10**12
    return index


def row_listed_twice(vectors: np.ndarray) -> Any:
    index = made("IVF8,Flat", vectors)
    lists = faiss.downcast_InvertedLists(index.invlists)
    number = next(n for n in range(8) if lists.list_size(n) > 1)
    ids = faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number))
    ids[0] = ids[1]
    return index


def no_numbers(vectors: np.ndarray) -> Any:
    return made("Flat", np.where(np.arange(DIMENSION) == 3, np.nan, vectors).astype(np.float32))


HOSTILE: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "a graph out of the vectors": (graph_out_of_the_vectors, "not a FAISS index|none of its rows"),
    "an entry out of the vectors": (entry_out_of_the_vectors, "not a FAISS index|none of its rows"),
    "a neighbor of a lower level": (neighbor_of_a_lower_level, "its graph has other levels"),
    "a listed row beyond": (listed_row_beyond, "a row number in its lists is none of its rows"),
    "a row listed twice": (row_listed_twice, "do not hold each of its vectors once"),
    "no numbers": (no_numbers, "it is not finite"),
    "another measure": (lambda vectors: made("HNSW8", vectors, faiss.METRIC_L2), "the kind IxF2"),
    "fewer vectors": (lambda vectors: made("Flat", vectors[1:]), "holds 399 vectors of 16 numbers, it must hold 400"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_can_not_be_searched_is_named(case: str, vectors: np.ndarray, tmp_path: Path) -> None:
    make, told = HOSTILE[case]
    write(tmp_path / "index", make(vectors))
    with pytest.raises(ValueError, match=told) as error:
        load(tmp_path / "index", tmp_path)
    assert str(tmp_path / "index" / INDEX_FILE) in str(error.value)


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "HNSW8", "PQ4x4"])
def test_sizes_are_believed_only_as_far_as_the_file_goes(factory: str, vectors: np.ndarray, tmp_path: Path) -> None:
    """Else a file of some kilobytes reserves terabytes: the first size stands behind the 37 bytes of the header."""
    write(tmp_path / "index", made(factory, vectors))
    file = tmp_path / "index" / INDEX_FILE
    whole = file.read_bytes()
    for size in (2**40, 2**37, 2**62, -1):
        file.write_bytes(whole[:37] + struct.pack("<q", size) + whole[45:])
        with_fitting_digests(tmp_path / "index", META)
        with pytest.raises(ValueError, match="not a FAISS index that can be"):
            load(tmp_path / "index", tmp_path)


def test_lists_in_another_file_are_not_opened(vectors: np.ndarray, tmp_path: Path) -> None:
    index = made("IVF8,Flat", vectors)
    private = tmp_path / "private"
    elsewhere = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(private))
    elsewhere.merge_from_1(index.invlists, False)
    index.replace_invlists(elsewhere, False)
    write(tmp_path / "index", index)
    before = private.stat().st_atime_ns
    with pytest.raises(ValueError, match="its lists lie in another file"):
        load(tmp_path / "index", tmp_path)
    assert private.stat().st_atime_ns == before


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_told(how: str, table: Dataset, tmp_path: Path) -> None:
    build_index(table, tmp_path / "index", "Flat", META, {})
    damage(tmp_path / "index" / INDEX_FILE, DAMAGES[how])
    with pytest.raises(ValueError, match=r"index\.faiss is not the file that was written here: its digest differs"):
        load(tmp_path / "index", tmp_path)
