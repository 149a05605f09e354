"""Write and check the files of a corpus: Arrow tables, digests, and folders that appear whole."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Features
from filelock import FileLock, Timeout

from ..files import new_folder


def write_stream(file: Path, schema: pa.Schema | Features, batches: Iterable[pa.RecordBatch]) -> int:
    """Write batches as an Arrow stream for `Dataset.from_file`, and return the number of rows."""
    # the features travel in the schema, so that `datasets` reads the same types back
    features = schema if isinstance(schema, Features) else Features.from_arrow_schema(schema)
    described = features.arrow_schema
    rows = 0
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, described) as writer:
        for batch in batches:
            writer.write_batch(pa.record_batch(batch.columns, schema=described))
            rows += batch.num_rows
    return rows


def numpy_view(column: pa.ChunkedArray) -> np.ndarray:
    """Return the numbers of a column, without a copy if they lie in one piece."""
    if column.num_chunks == 1:
        return column.chunk(0).to_numpy()  # a view of the mapped file
    return column.to_numpy()


def column_digest(column: pa.ChunkedArray) -> bytes:
    """Return the digest of the values, however they are chunked; of images only the bytes count."""
    lengths, values = hashlib.sha256(), hashlib.sha256()
    for chunk in column.chunks:
        if pa.types.is_struct(chunk.type):
            chunk = chunk.field("bytes")
        if pa.types.is_string(chunk.type) or pa.types.is_binary(chunk.type):
            offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            lengths.update(np.diff(offsets).tobytes())
            values.update(memoryview(chunk.buffers()[2] or b"")[offsets[0] : offsets[-1]])
        else:
            values.update(chunk.to_numpy().tobytes())
    return lengths.digest() + values.digest()


def read_meta(file: Path, what: str, version: int, names: Sequence[str]) -> dict[str, Any]:
    """Return the entries `names` of the file that describes an index.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another version, or describes no index.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} holds no {what}: {file.name} is missing.")
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
        if meta["version"] != version:
            raise ValueError(f"{file} is of version {meta['version']}, not {version}: build it again.")
        return {name: meta[name] for name in names}
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} describes no {what} ({error!r}).") from None


def build_once(folder: Path, meta_file: str, build: Callable[[Path], Any]) -> Path:
    """Run `build` in a folder beside and rename it, so that a killed run leaves nothing that looks whole.

    Args:
        meta_file: file that only a whole folder holds; if it is there, nothing is built.
    """
    if (folder / meta_file).is_file():
        return folder
    try:
        with new_folder(folder) as beside:
            build(beside)
    except OSError:
        if not (folder / meta_file).is_file():  # else another process was first, with the same content
            raise
    return folder


@contextmanager
def claim(file: Path, wait: bool) -> Iterator[bool]:
    """Yield whether this process is to make `file`; while another makes it, wait for that or yield False.

    Processes that go over the same files, first without waiting and then waiting, share the work. The lock of one that
    died is free. Whoever gets it must see whether the file is there by now.
    """
    lock = FileLock(file.with_suffix(".lock"))
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: who takes a new one finds the file made
        lock.release()


def repeated_places(values: Sequence[int]) -> np.ndarray:
    """Return the places of values that occur at an earlier place too, rising."""
    first = np.unique(np.asarray(values, dtype=np.int64), return_index=True)[1]
    return np.setdiff1d(np.arange(len(values)), first, assume_unique=True)


def shared_values(columns: Sequence[pa.ChunkedArray]) -> int:
    """Return how many values occur in an earlier column too; each counts once per column."""
    distinct = [pc.unique(column) for column in columns]
    return sum(map(len, distinct)) - len(pc.unique(pa.concat_arrays(distinct)))
