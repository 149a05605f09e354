"""Build the tables of a corpus from articles or from the Parquet files of a saved one."""

import json
import logging
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset

from .articles import read_articles, split_paragraphs, split_sentences
from .corpus_images import IMAGE_FEATURES, TABLE, ImageCounts, build_images, finish_images
from .corpus_info import META_FILE, CorpusInfo, check_rows
from .corpus_tables import numpy_view, repeated_places, write_stream
from .table_checks import read_parquet, tables_fingerprint

logger = logging.getLogger(__name__)

PARAGRAPHS = pa.schema([("id", pa.string()), ("title", pa.string()), ("value", pa.string())])
SENTENCES = pa.schema([("paragraph", pa.int32()), ("start", pa.int32()), ("end", pa.int32())])
MOST = 2**31 - 1  # rows are numbered by int32
_BATCH = 10_000  # paragraphs a record batch
_IMAGE_BATCH = 200  # images a record batch


def build_from_articles(
    into: Path, files: Sequence[Path], title_in_key: bool, language: str, splitter: str,
    image_dirs: Sequence[str | Path] = (),
) -> CorpusInfo:  # fmt: skip
    """Build the tables from files of articles, whose images lie beside them or in `image_dirs`."""
    counts = {"articles": 0, "empty": 0, "images": 0}
    columns = array("i"), array("i"), array("i")
    ids = array("q")  # hashes of those of articles with text: the names of a whole Wikipedia would fill the memory

    def batches() -> Iterator[pa.RecordBatch]:
        rows: list[tuple[str, str, str]] = []
        number = 0
        for article in read_articles(files):
            counts["articles"] += 1
            counts["images"] += article.image is not None
            paragraphs = split_paragraphs(article.text)
            counts["empty"] += not paragraphs and article.image is None
            if paragraphs:
                ids.append(hash(article.id))
            for value in paragraphs:
                for start, end in split_sentences(value, language):
                    for column, entry in zip(columns, (number, start, end), strict=True):
                        column.append(entry)
                rows.append((article.id, article.title, value))
                number += 1
                if len(rows) == _BATCH:
                    yield _record_batch(rows)
                    rows = []
        if rows:
            yield _record_batch(rows)

    write_stream(into / "paragraphs.arrow", PARAGRAPHS, batches())
    if not columns[0]:
        source = ", ".join(map(str, files))
        raise ValueError(f"The knowledge in {source} holds no text: no article has a word in its column text.")
    write_sentences(into, [np.frombuffer(column, dtype=np.int32) for column in columns])
    images = ImageCounts()
    if counts["images"]:
        articles = read_articles(files, images=True, image_dirs=image_dirs)
        images = build_images(into, articles, folders_of(files, image_dirs))
    if len(repeated := repeated_places(ids)):
        with_text = (article for article in read_articles(files, images=True) if split_paragraphs(article.text))
        first = next(islice(with_text, int(repeated[0]), None))
        logger.warning("%s: the id %r is that of an earlier article.", first.where, first.id)
    about = (counts["articles"], counts["empty"], title_in_key, language, splitter, len(repeated))
    return finish_corpus(into, images, *about)


def build_from_parquet(into: Path, folder: Path, files: Sequence[str], info: CorpusInfo) -> None:
    """Build the tables from a saved corpus's Parquet files, and check that they are what `info` says."""
    images = 0
    schemas = {"paragraphs": PARAGRAPHS, "sentences": SENTENCES, "images": IMAGE_FEATURES.arrow_schema}
    for name, schema in schemas.items():
        parts = sorted(file for file in files if file.startswith(f"{name}/"))
        batches = read_parquet(folder, parts, schema, _IMAGE_BATCH if name == "images" else _BATCH)
        if name == "paragraphs":
            write_stream(into / "paragraphs.arrow", schema, batches)
        elif name == "images":
            images = write_stream(into / TABLE, IMAGE_FEATURES, batches)
        else:
            table = pa.Table.from_batches(batches, schema)
            write_sentences(into, [numpy_view(table.column(column)) for column in schema.names])
    counts = finish_images(into, images, info.unusable_images, info.merged_images, merge=False)
    about = (info.articles, info.empty, info.title_in_key, info.language, info.splitter, info.repeated_ids)
    built = finish_corpus(into, counts, *about)
    check_rows(folder, info, built.paragraphs, built.sentences, built.images)
    if built.fingerprint != info.fingerprint:
        raise ValueError(f"The content of {folder} is not what its {META_FILE} names: the digest differs.")


def folders_of(files: Sequence[Path], image_dirs: Sequence[str | Path] = ()) -> list[str]:
    """Return the folders that the images of the files may lie in: their own, and those that the user named."""
    return [*(str(file.resolve().parent) for file in files), *(str(Path(folder).resolve()) for folder in image_dirs)]


def _record_batch(rows: list[tuple[str, str, str]]) -> pa.RecordBatch:
    return pa.record_batch([pa.array(column, pa.string()) for column in zip(*rows, strict=True)], schema=PARAGRAPHS)


def write_sentences(into: Path, columns: Sequence[np.ndarray]) -> None:
    """Write the table of sentences from its columns."""
    if len(columns[0]) > MOST:
        raise ValueError(f"{len(columns[0])} sentences: one corpus holds at most {MOST}; search several, or Milvus.")
    # one record batch: its columns are read back as memory-mapped arrays without a copy
    batch = pa.record_batch([pa.array(column, pa.int32()) for column in columns], schema=SENTENCES)
    write_stream(into / "sentences.arrow", SENTENCES, [batch])


def finish_corpus(
    into: Path,
    images: ImageCounts,
    articles: int,
    empty: int,
    title_in_key: bool,
    language: str,
    splitter: str,
    repeated_ids: int,
) -> CorpusInfo:
    """Write `knowledge.json` over the tables in `into`."""
    paragraphs, sentences = (
        Dataset.from_file(str(into / f"{name}.arrow")).data for name in ("paragraphs", "sentences")
    )
    info = CorpusInfo(
        fingerprint=tables_fingerprint(paragraphs, sentences, title_in_key, images.fingerprint),
        articles=articles,
        empty=empty,
        paragraphs=paragraphs.num_rows,
        sentences=sentences.num_rows,
        title_in_key=title_in_key,
        language=language,
        splitter=splitter,
        images=images.images,
        unusable_images=images.unusable,
        merged_images=images.merged,
        repeated_ids=repeated_ids,
        image_fingerprint=images.fingerprint,
    )
    (into / META_FILE).write_text(json.dumps(asdict(info), indent=2) + "\n", encoding="utf-8")
    return info
