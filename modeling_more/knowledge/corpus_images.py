"""Build the image table of a corpus: a row for each usable image, with its article's title and lead."""

import hashlib
import json
import logging
import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from tqdm.auto import tqdm

from ..files import file_digest
from ..foreign import read_object, require_regular
from .articles import Article
from .corpus_tables import column_digest, write_stream
from .pictures import THREADS, ImageError, named_file, open_image, or_error, read_bytes

logger = logging.getLogger(__name__)

IMAGE_FEATURES = Features(
    {"id": Value("string"), "title": Value("string"), "value": Value("string"), "image": ImageFeature()}
)
TABLE = "images.arrow"
_SOURCES = "image_sources.json"  # the files that a built corpus took its images from, with size, time and digest
_WAY_OUT = "; what lies outside the folder that is given isn't opened: move it there, or give its folder (--image_dir)"
_BATCH_ROWS = 200
_BATCH_BYTES = 64_000_000
_SHOWN = 10  # ids that a warning names for each reason
_SIDE = 16  # of the compared thumbnails, in pixels
_NEAR = 8.0  # mean difference, of 255, up to which two thumbnails show one image

Stamp = list[int | str]  # size, time of change, digest


class Unusable:
    """A counter of unusable images by reason, which logs the id of each."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.counts: Counter[str] = Counter()
        self._shown: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, image_id: str, error: ImageError) -> None:
        """Count an image and log it at level INFO."""
        logger.info("The %s %s can't be used: %s", self.what, image_id, error)
        self.counts[error.reason] += 1
        if len(self._shown[error.reason]) < _SHOWN:
            self._shown[error.reason].append(image_id)

    def warn(self) -> None:
        """Log one warning with the counts and the first ids, if any image was unusable."""
        parts = [
            f"{count} {reason} ({', '.join(self._shown[reason])}{', …' if count > _SHOWN else ''})"
            for reason, count in self.counts.most_common()
        ]
        if parts:
            hint = _WAY_OUT if "outside the folder" in self.counts else ""
            logger.warning("%d %ss can't be used: %s%s.", self.counts.total(), self.what, "; ".join(parts), hint)


class ImageCounts(NamedTuple):
    """The numbers that `CorpusInfo` has of images."""

    images: int = 0
    unusable: int = 0
    merged: int = 0
    fingerprint: str = ""


def build_images(into: Path, articles: Iterable[Article], roots: list[str]) -> ImageCounts:
    """Write the usable images of articles to a table, and beside it the image files with `roots` (`folders_of`)."""
    unusable = Unusable("knowledge image")
    files: dict[str, Stamp | None] = {}
    outside: list[str] = []

    def batches() -> Iterator[pa.RecordBatch]:
        named = (article for article in articles if article.image is not None)
        rows: list[tuple[str, str, str, dict[str, Any]]] = []
        size = 0
        with tqdm(desc="Reading images", disable=None) as bar:
            for article, content in _checked_ahead(named):
                bar.update()
                if isinstance(article.image, Path):
                    files[str(article.image)] = _stamp(article.image)
                elif isinstance(article.image, ImageError):
                    outside.append(article.image.path)
                if isinstance(content, ImageError):
                    unusable.add(article.id, content)
                    continue
                value = (article.text if article.lead is None else article.lead).strip()
                rows.append((article.id, article.title, value, {"bytes": content, "path": _name(article)}))
                size += len(content)
                if len(rows) == _BATCH_ROWS or size > _BATCH_BYTES:
                    yield _record_batch(rows)
                    rows, size = [], 0
        if rows:
            yield _record_batch(rows)

    rows = write_stream(into / TABLE, IMAGE_FEATURES, batches())
    unusable.warn()
    if files or outside:
        sources = {"roots": roots, "files": files, "outside": outside}
        (into / _SOURCES).write_text(json.dumps(sources), encoding="utf-8")
    return finish_images(into, rows, unusable.counts.total())


def join_images(into: Path, tables: Iterable[Dataset]) -> int:
    """Write the rows of image tables to one, and return their number."""
    batches = (batch for table in tables for batch in table.data.to_batches())
    return write_stream(into / TABLE, IMAGE_FEATURES, batches)


def finish_images(into: Path, rows: int, unusable: int = 0, merged: int = 0, merge: bool = True) -> ImageCounts:
    """Leave out near-identical images of an entity, then count and digest the others."""
    file = into / TABLE
    if rows and merge and (doubles := _near_identical(Dataset.from_file(str(file)))):
        merged += len(doubles)
        keep = np.ones(rows, bool)
        keep[doubles] = False
        kept = into / f".{TABLE}"
        rows = write_stream(kept, IMAGE_FEATURES, _filtered(Dataset.from_file(str(file)), keep))
        os.replace(kept, file)
    if not rows:
        file.unlink()
        return ImageCounts(0, unusable, merged)
    table = Dataset.from_file(str(file)).data
    digest = b"".join(column_digest(table.column(name)) for name in IMAGE_FEATURES)
    return ImageCounts(rows, unusable, merged, hashlib.sha256(digest).hexdigest()[:32])


def image_roots(folder: Path) -> list[str]:
    """Return the folders that a built corpus took image files from."""
    sources = _sources(folder)
    return sources["roots"] if sources else []


def images_changed(folder: Path) -> bool:
    """Return whether image files of a built corpus have changed, gone or come (also into their folder) since."""
    sources = _sources(folder)
    if sources is None or "damaged" in sources:
        return sources is not None
    moved = any(_is_inside(path, sources["roots"]) for path in sources.get("outside", ()))
    return moved or any(_changed(Path(file), stamp) for file, stamp in sources["files"].items())


def _is_inside(path: str, roots: list[str]) -> bool:
    try:
        named_file(path, *roots)
    except ImageError:
        return False
    return True


def _sources(folder: Path) -> dict[str, Any] | None:
    try:
        return read_object(folder / _SOURCES, roots=list, files=dict)
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("%s: the corpus is built again.", error)
        return {"roots": [], "files": {}, "damaged": True}


def _checked(article: Article) -> bytes:
    """Return the file of the image if it can be decoded in full."""
    content = read_bytes(article.image)
    open_image(content)
    return content


def _checked_ahead(articles: Iterable[Article]) -> Iterator[tuple[Article, bytes | ImageError]]:
    """Yield each article with its image's file, or why it can't be used; a few are read ahead, and no more."""
    ahead: deque[tuple[Article, Future[bytes | ImageError]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for article in articles:
                ahead.append((article, pool.submit(or_error, _checked, article)))
                if len(ahead) > 2 * THREADS:
                    first, found = ahead.popleft()
                    yield first, found.result()
            while ahead:
                first, found = ahead.popleft()
                yield first, found.result()
        finally:
            for _, future in ahead:
                future.cancel()


def _stamp(file: Path) -> Stamp | None:
    try:
        status = require_regular(file).stat()
        return [status.st_size, status.st_mtime_ns, file_digest(file)]
    except (OSError, ValueError):
        return None


def _changed(file: Path, stamp: Stamp | None) -> bool:
    try:
        status = require_regular(file).stat()
    except (OSError, ValueError):
        return stamp is not None
    if stamp is None or status.st_size != stamp[0]:
        return True
    # a file that was only copied or touched has another time and the same content
    return status.st_mtime_ns != stamp[1] and _stamp(file) != [stamp[0], status.st_mtime_ns, stamp[2]]


def _name(article: Article) -> str | None:
    path = article.image.get("path") if isinstance(article.image, dict) else article.image
    return Path(str(path)).name if path else None


def _record_batch(rows: list[tuple[str, str, str, dict[str, Any]]]) -> pa.RecordBatch:
    schema = IMAGE_FEATURES.arrow_schema
    columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), schema.types, strict=True)]
    return pa.record_batch(columns, schema=schema)


def _filtered(table: Dataset, keep: np.ndarray) -> Iterator[pa.RecordBatch]:
    first = 0
    for batch in table.data.to_batches():
        yield batch.filter(pa.array(keep[first : first + len(batch)]))
        first += len(batch)


def _near_identical(table: Dataset) -> list[int]:
    """Return the rows whose image is nearly that of an earlier row of the same id or title."""
    raw = table.cast_column("image", ImageFeature(decode=False))
    thumbnails: dict[int, np.ndarray] = {}

    def thumbnail(row: int) -> np.ndarray:
        if row not in thumbnails:
            small = open_image(raw[row]["image"]).resize((_SIDE, _SIDE), Image.Resampling.BOX)
            thumbnails[row] = np.asarray(small, np.float32)
        return thumbnails[row]

    dropped: set[int] = set()
    for name in ("id", "title"):
        # hashes, because the names of a whole Wikipedia would fill the memory
        keys = np.array([hash(key.casefold()) for key in _strings(table, name)], np.int64)
        order = np.argsort(keys, kind="stable")  # rows of one entity together, in their order
        starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order[0]] - 1))
        lengths = np.diff(starts, append=len(order))
        for start, length in zip(starts[lengths > 1].tolist(), lengths[lengths > 1].tolist(), strict=True):
            thumbnails.clear()
            kept: list[int] = []
            for row in order[start : start + length].tolist():
                if row in dropped or keys[row] == hash(""):  # an empty title names no entity
                    continue
                if any(np.abs(thumbnail(row) - thumbnail(other)).mean() <= _NEAR for other in kept):
                    dropped.add(row)
                else:
                    kept.append(row)
    return sorted(dropped)


def _strings(table: Dataset, column: str) -> Iterator[str]:
    for chunk in table.data.column(column).chunks:
        yield from chunk.to_pylist()
