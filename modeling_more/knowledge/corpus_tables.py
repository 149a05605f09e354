"""Write and check the files of a corpus: Arrow tables, digests, and folders that appear whole."""

import hashlib
import logging
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Features
from filelock import FileLock, Timeout

from ..files import file_digest, is_incidental, new_folder, remove_strays_of
from ..foreign import read_object
from .index_files import DamagedError

logger = logging.getLogger(__name__)

_SEAL = b"\nmodeling-more sha256 "  # what stands behind a sealed stream, before its digest
_READ = 1 << 20

T = TypeVar("T")


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


def seal(file: Path) -> None:
    """Append the digest of a stream of Arrow, whose readers stop at its end."""
    digest = file_digest(file)
    with open(file, "ab") as stream:
        stream.write(_SEAL + digest.encode())


def _seal_holds(file: Path) -> bool:
    """Return whether the content is the one that was sealed; a file of the time before seals has none."""
    size = file.stat().st_size
    content = size - len(_SEAL) - 64
    if content < 0:
        return True
    with open(file, "rb") as stream:
        stream.seek(content)
        told = stream.read()
        if not told.startswith(_SEAL):
            return True
        digest = hashlib.sha256()
        stream.seek(0)
        for first in range(0, content, _READ):
            digest.update(stream.read(min(_READ, content - first)))
    return told == _SEAL + digest.hexdigest().encode()


def open_shard(file: Path, features: Features, rows: int, lost: str) -> pa.Table | None:
    """Return the memory-mapped table of a shard, or None where it must be made (again), which is logged.

    Args:
        lost: what is done again for a damaged one ("its posts are searched again").
    """
    if not file.is_file():
        return None
    schema = features.arrow_schema
    try:
        whole = _seal_holds(file)
        if whole:
            with pa.memory_map(str(file)) as source:
                table = pa.ipc.open_stream(source).read_all()
            whole = table.num_rows == rows and table.schema.equals(schema, check_metadata=True)
        if whole:
            table.validate(full=True)
            return table
    except (pa.ArrowException, OSError, ValueError):
        pass
    logger.warning("%s is damaged: %s.", file, lost)  # not by us: writing is atomic
    return None


def read_meta(file: Path, what: str, version: int, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """Return the file that describes an index, which has the named entries, of these types.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another version, or describes no index.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} holds no {what}: {file.name} is missing.")
    try:
        meta = read_object(file, version=int)
        if meta["version"] == version:
            read_object(file, **kinds)
    except ValueError as error:
        raise DamagedError(f"{file.parent} holds no {what}: {error}") from None
    if meta["version"] != version:
        raise ValueError(f"{file} is of version {meta['version']}, not {version}: build it again.")
    return meta


def build_once(
    folder: Path,
    meta_file: str,
    build: Callable[[Path], Any],
    is_good: Callable[[], bool] | None = None,
    own: Container[str] | None = None,
) -> Path:
    """Run `build` in a folder beside and rename it, so that a killed run leaves nothing that looks whole.

    Of several processes one builds, the others wait for it.

    Args:
        meta_file: file that only a whole folder holds; if it is there, nothing is built.
        is_good: asked instead; a folder that isn't good is replaced.
        own: the names of all that `build` writes; default: any.

    Raises:
        ValueError: the folder holds something else, which is not replaced.
    """
    good = is_good or (folder / meta_file).is_file
    if good():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with claim(folder, wait=True):
        if good():
            return folder
        _check_own(folder, meta_file, own)
        remove_strays_of(folder)
        with new_folder(folder, replace=True) as beside:
            build(beside)
    return folder


def open_or_build(
    folder: Path,
    meta_file: str,
    read: Callable[[], T],
    build: Callable[[Callable[[], bool]], Any],
    damage: tuple[type[Exception], ...] = (DamagedError, FileNotFoundError),
) -> T:
    """Return what `read` makes of a folder in the cache; where there is none, or a damaged one, it is built first.

    Args:
        build: is given a function that says whether the folder can be read by now.
        damage: what `read` raises for a folder that is to be built again.
    """

    def good() -> bool:
        try:
            read()
        except damage:
            return False
        return True

    if (folder / meta_file).is_file():
        try:
            return read()
        except damage as error:
            logger.warning("%s: it is built again.", str(error).rstrip("."))
    build(good)
    return read()


def _check_own(folder: Path, meta_file: str, own: Container[str] | None) -> None:
    there = sorted(path.name for path in folder.iterdir() if not is_incidental(path)) if folder.is_dir() else []
    if there and meta_file not in there:
        raise ValueError(f"{folder} holds {there[0]}, but no {meta_file}: it is not replaced, give an empty folder")
    if foreign := [name for name in there if own is not None and name not in own]:
        raise ValueError(f"{folder} holds {foreign[0]}, which does not belong to its {meta_file}: it is not replaced")


@contextmanager
def claim(file: Path, wait: bool) -> Iterator[bool]:
    """Yield whether this process is to make `file`; while another makes it, wait for that or yield False.

    For what is made once for all in a cache; a folder that a user names is `files.locked`, which refuses. Processes
    that go over the same files, first without waiting and then waiting, share the work. The lock of one that died is
    free. Whoever gets it must see whether the file is there by now.
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
