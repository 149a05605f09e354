"""Check the file of a FAISS index that somebody else may have made, before it is searched.

FAISS reads what a file says: kinds of index that nobody tests, lists in other files, more vectors than there are. Only
the kinds that are built here are read, and what their search follows without looking is looked at first.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from struct import unpack
from typing import Any, BinaryIO

import numpy as np

from ..foreign import require_regular
from .index_files import DamagedError

#: the kinds of index that are built and read, with the four letters that their files begin with
KINDS = {
    "IndexFlat": (b"IxFI", b"IxFl"),
    "IndexFlatIP": (b"IxFI",),
    "IndexScalarQuantizer": (b"IxSQ",),
    "IndexPQ": (b"IxPq",),
    "IndexIVFFlat": (b"IwFl",),
    "IndexIVFScalarQuantizer": (b"IwSq",),
    "IndexIVFPQ": (b"IwPQ",),
    "IndexHNSWFlat": (b"IHNf",),
    "IndexHNSWSQ": (b"IHNs",),
    "IndexHNSWPQ": (b"IHNp",),
    "IndexPreTransform": (b"IxPT",),
}
TOLD = "Flat, SQ8, PQ8, IVF256,Flat, IVF256,PQ8, HNSW32 and the like, also behind OPQ8 or PCA64"
_BEGINNINGS = frozenset(letters for kind in KINDS.values() for letters in kind)
_HEADER = [4, 8, 8, 8, 1]  # sizes of the numbers that stand at the beginning of each index within a file
_ELSEWHERE = b"ilod"  # lists that lie in another file, whose name the index gives
_CHUNK = 1 << 20
_LIMITS = threading.Lock()  # the limits of FAISS are those of the process


def check_kind(index: Any) -> None:
    """Raise ValueError for an index of a kind that is not read, or with another measure than inner products."""
    import faiss

    for part in _parts(index):
        name = type(part).__name__
        if name not in KINDS or (part is index and index.metric_type != faiss.METRIC_INNER_PRODUCT):
            raise ValueError(f"an index of the kind {name} is not read; there are {TOLD}, all of inner products")


def check_index(file: Path, rows: int, dimension: int) -> bool:
    """Return True for a file that FAISS can read and search, an index of so many vectors.

    Raises:
        DamagedError: it is another one, or can't be searched without reading past its memory.
    """
    require_regular(file)
    faiss: Any = import_module("faiss")  # its stubs lack the reader
    size = file.stat().st_size
    with open(file, "rb") as stream:
        begin = stream.read(41)
        if len(begin) < 37 or begin[:4] not in _BEGINNINGS:
            raise DamagedError(f"{file} is not a FAISS index of a kind that is read; there are {TOLD}")
        found_dimension, found_rows = unpack("<iq", begin[4:16])
        if (found_dimension, found_rows) != (dimension, rows):
            raise DamagedError(
                f"{file} holds {found_rows} vectors of {found_dimension} numbers, it must hold {rows} of {dimension}"
            )
        stream.seek(0)
        spy = _Spy(stream)
        try:
            with _limited(size):
                index = faiss.read_index(faiss.PyCallbackIOReader(spy, _CHUNK))
        except Exception as error:  # of FAISS, a Python error in the callback, too little memory
            reason = spy.refused or " ".join(str(error).split())[-200:]
            raise DamagedError(f"{file} is not a FAISS index that can be read ({reason})") from None
    try:
        check_kind(index)
        for part in _parts(index):
            _check_part(part)
        outer = faiss.downcast_index(index)
        whole = outer.ntotal == rows and _behind(outer).ntotal == rows and outer.is_trained
        _require(whole, "its parts are not of the same vectors")
    except (ValueError, RuntimeError, MemoryError, OverflowError) as error:
        raise DamagedError(f"{file} is not a FAISS index that can be searched: {error}") from None
    return True


class _Spy:
    """A reader for FAISS, which refuses a kind of index that is not read before FAISS comes to its content."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.refused = ""
        self._last = b""  # four bytes that may be the letters of an index
        self._sizes: list[int] = []  # of what was read since

    def __call__(self, size: int) -> bytes:
        if self._sizes == _HEADER and self._last not in _BEGINNINGS:
            self.refused = f"it holds an index of the kind {self._last.decode('ascii', 'replace')}"
            return b""
        content = self.stream.read(size)
        self._sizes.append(size)
        if len(self._sizes) > len(_HEADER) or self._sizes != _HEADER[: len(self._sizes)]:
            self._last, self._sizes = b"", []
        if size == 4 and content[:1] == b"I" and content.isalnum():
            self._last, self._sizes = content, []
        if size == 4 and content == _ELSEWHERE:
            self.refused = "its lists lie in another file"
            return b""
        return content


@contextmanager
def _limited(size: int) -> Iterator[None]:
    """Let FAISS reserve no more for a vector than the file has."""
    import faiss

    with _LIMITS:
        before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        faiss.set_deserialization_vector_byte_limit(size)
        faiss.set_deserialization_loop_limit(size)
        try:
            yield
        finally:
            faiss.set_deserialization_vector_byte_limit(before[0])
            faiss.set_deserialization_loop_limit(before[1])


def _parts(index: Any) -> Iterator[Any]:
    """Yield an index and those that it is made of."""
    import faiss

    index = faiss.downcast_index(index)
    yield index
    name = type(index).__name__
    if name == "IndexPreTransform":
        yield from _parts(index.index)
    elif name.startswith("IndexIVF") and index.quantizer is not None:
        yield from _parts(index.quantizer)
    elif name.startswith("IndexHNSW") and index.storage is not None:
        yield from _parts(index.storage)


def _behind(index: Any) -> Any:
    """Return what stands behind a transformation of the vectors."""
    import faiss

    return faiss.downcast_index(index.index) if type(index).__name__ == "IndexPreTransform" else index


def _check_part(index: Any) -> None:
    name = type(index).__name__
    if name == "IndexPreTransform":
        _check_chain(index)
    elif name.startswith("IndexIVF"):
        _check_lists(index)
    elif name.startswith("IndexHNSW"):
        _check_graph(index)
    else:
        _require(index.codes.size() == index.ntotal * index.code_size, "its vectors are not whole")
    if "PQ" in name and not name.startswith("IndexHNSW"):
        pq = index.pq
        bits = 0 < pq.nbits <= 16 and pq.M > 0
        _require(bits and pq.d == index.d and pq.d % pq.M == 0, "its quantiser is of other vectors")
        _require(pq.centroids.size() == pq.d << pq.nbits, "its centroids are not whole")
        _require(index.code_size == (pq.nbits * pq.M + 7) // 8, "its codes have another size")
    if "ScalarQuantizer" in name:
        _require(index.sq.d == index.d and index.sq.code_size == index.code_size, "its quantiser is of other vectors")
    if name in ("IndexFlat", "IndexFlatIP"):
        _check_finite(index)


def _require(holds: bool, told: str) -> None:
    if not holds:
        raise ValueError(told)


def _check_finite(index: Any) -> None:
    import faiss

    count = index.ntotal * index.d
    _require(index.code_size == 4 * index.d, "its vectors have another size")
    values = faiss.rev_swig_ptr(index.get_xb(), count) if count else np.zeros(0, np.float32)
    _require(all(np.isfinite(values[at : at + _CHUNK]).all() for at in range(0, count, _CHUNK)), "it is not finite")


def _check_chain(index: Any) -> None:
    import faiss

    size = index.d
    for place in range(index.chain.size()):
        step: Any = faiss.downcast_VectorTransform(index.chain.at(place))
        _require(step.d_in == size and step.d_out > 0, "its transformations don't fit each other")
        if hasattr(step, "A"):
            _require(step.A.size() == step.d_in * step.d_out, "a transformation is not whole")
            _require(not step.have_bias or step.b.size() == step.d_out, "a transformation is not whole")
        size = step.d_out
    _require(index.index.d == size, "its transformations don't fit its vectors")


def _check_lists(index: Any) -> None:
    import faiss

    lists: Any = faiss.downcast_InvertedLists(index.invlists) if index.invlists is not None else None
    _require(type(lists).__name__ == "ArrayInvertedLists", "its lists are not within it")
    quantizer = index.quantizer
    _require(quantizer.ntotal == index.nlist == lists.nlist and quantizer.d == index.d, "its lists are others")
    sizes = [lists.list_size(number) for number in range(index.nlist)]
    _require(sum(sizes) == index.ntotal, "its lists do not hold as many vectors as it has")
    seen = np.zeros(index.ntotal, bool)
    for number, size in enumerate(sizes):
        ids = faiss.rev_swig_ptr(lists.get_ids(number), size) if size else np.zeros(0, np.int64)
        _require(bool(((ids >= 0) & (ids < index.ntotal)).all()), "a row number in its lists is none of its rows")
        seen[ids] = True
    _require(bool(seen.all()), "its lists do not hold each of its vectors once")


def _check_graph(index: Any) -> None:
    import faiss

    graph, rows = index.hnsw, index.ntotal
    names = ("levels", "offsets", "neighbors", "cum_nneighbor_per_level")
    levels, offsets, neighbors, places = (
        faiss.vector_to_array(getattr(graph, name)).astype(np.int64, copy=False) for name in names
    )
    _require(index.storage.ntotal == rows and index.storage.d == index.d, "its graph is of other vectors")
    _require(len(levels) == rows and len(offsets) == rows + 1, "its graph is of other vectors")
    if rows == 0:
        return
    rising = len(places) > 0 and places[0] == 0 and bool((np.diff(places) >= 0).all())
    _require(rising and bool(((levels > 0) & (levels < len(places))).all()), "its graph has other levels")
    whole = offsets[0] == 0 and offsets[-1] == len(neighbors) and bool((np.diff(offsets) == places[levels]).all())
    _require(whole, "its graph is not whole")
    inside = bool(((neighbors >= -1) & (neighbors < rows)).all()) and 0 <= graph.entry_point < rows
    _require(inside, "a row number in its graph is none of its rows")
    _require(0 <= graph.max_level < levels[graph.entry_point], "its graph has other levels")
    for level in range(1, int(levels.max())):  # who is a neighbor on a level has neighbors there
        at = np.flatnonzero(levels > level)
        found = neighbors[offsets[at][:, None] + np.arange(places[level], places[level + 1])]
        _require(bool((levels[found[found >= 0]] > level).all()), "its graph has other levels")
