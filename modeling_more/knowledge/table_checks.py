"""Check the tables of a corpus that somebody else may have made: their types, their bounds, the content's digest."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from ..foreign import require_regular
from ..parquet import parquet_batches
from .corpus_info import FORMAT_VERSION, META_FILE, CorpusInfo
from .corpus_tables import column_digest, numpy_view
from .index_files import DamagedError

_SHOWN = 200  # characters of a library's error message


def open_table(file: Path, schema: pa.Schema) -> Dataset:
    """Open an Arrow stream of these columns and types, memory-mapped.

    Raises:
        DamagedError: it is missing or damaged, or has others.
    """
    try:
        with pa.memory_map(str(require_regular(file))) as source, pa.ipc.open_stream(source) as reader:
            found = reader.schema
        _check_types(file, found, schema)
        # `datasets` makes its types of what the file says, so only after the types of Arrow were seen
        return Dataset.from_file(str(file))
    except DamagedError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{file} is no table of a corpus ({_short(error)})") from None


def _check_types(file: Path, found: pa.Schema, schema: pa.Schema) -> None:
    for field in schema:
        if field.name not in found.names:
            raise DamagedError(f"{file} lacks the column {field.name}")
        if found.field(field.name).type != field.type:
            raise DamagedError(
                f"{file}: its column {field.name} is of type {found.field(field.name).type}, it must be {field.type}"
            )
    if found.names != schema.names:
        raise DamagedError(f"{file} has the columns {', '.join(found.names)}, it must have {', '.join(schema.names)}")


def tables_fingerprint(paragraphs: pa.Table, sentences: pa.Table, title_in_key: bool, images: str) -> str:
    """Return the fingerprint of a corpus: the digest of its content and key design."""
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, title_in_key]).encode())
    for table in (paragraphs, sentences):
        for column in table.columns:
            digest.update(column_digest(column))
    digest.update(images.encode())
    return digest.hexdigest()[:32]


def check_tables(
    folder: Path, info: CorpusInfo, paragraphs: Dataset, sentences: Dataset, images: Dataset | None
) -> bool:
    """Return True if the tables hold what `knowledge.json` says, and every number in them is within its bounds.

    Raises:
        DamagedError: they don't; the message names the table.
    """
    tables = {"paragraphs": paragraphs, "sentences": sentences, "images": images}
    for name, table in tables.items():
        file = folder / f"{name}.arrow"
        if table is None:
            continue
        try:
            table.data.table.validate(full=True)
        except (pa.ArrowException, ValueError) as error:
            raise DamagedError(f"{file} is damaged ({_short(error)})") from None
        for column in table.column_names:
            if table.data.column(column).null_count:
                raise DamagedError(f"{file}: its column {column} lacks values")
    _check_spans(folder / "sentences.arrow", paragraphs.data.column("value"), sentences.data)
    images_digest = ""
    if images is not None:
        whole = b"".join(column_digest(column) for column in images.data.columns)
        images_digest = hashlib.sha256(whole).hexdigest()[:32]
    found = tables_fingerprint(paragraphs.data, sentences.data, info.title_in_key, images_digest)
    if found != info.fingerprint or images_digest != info.image_fingerprint:
        raise DamagedError(f"The content of {folder} is not what its {META_FILE} names: the digest differs.")
    return True


def _check_spans(file: Path, values: pa.ChunkedArray, sentences: pa.Table) -> None:
    lengths = numpy_view(pc.utf8_length(values))
    paragraph, start, end = (numpy_view(sentences.column(name)) for name in ("paragraph", "start", "end"))
    if len(paragraph) == 0:
        return
    if int(paragraph.min()) < 0 or int(paragraph.max()) >= len(lengths):
        raise DamagedError(f"{file}: a sentence stands in none of the {len(lengths)} paragraphs")
    if bool((np.diff(paragraph) < 0).any()):  # the search takes the sentences of a paragraph together
        raise DamagedError(f"{file}: its sentences are not in the order of the paragraphs")
    wrong = (start < 0) | (start > end) | (end > lengths[paragraph])
    if bool(wrong.any()):
        row = int(np.flatnonzero(wrong)[0])
        raise DamagedError(f"{file}, row {row}: characters {start[row]} to {end[row]} are not in its paragraph")


def read_parquet(folder: Path, names: Sequence[str], schema: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
    """Yield batches of at most `rows` rows of Parquet files, in the types of the schema.

    Raises:
        ValueError: a file that is none, or has other columns; the message names file and column.
    """
    for name in names:
        file = folder / name
        try:
            parquet = pq.ParquetFile(file)
            _check_parquet_types(file, parquet.schema_arrow, schema)
            for batch in parquet_batches(file, schema.names, rows):
                if lacking := [name for name in schema.names if batch.column(name).null_count]:
                    raise DamagedError(f"{file}: its column {lacking[0]} lacks values")
                yield from pa.Table.from_batches([batch]).select(schema.names).cast(schema).to_batches()
        except DamagedError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{file} can't be read as the Parquet of a corpus ({_short(error)})") from None


def _check_parquet_types(file: Path, found: pa.Schema, schema: pa.Schema) -> None:
    for field in schema:
        if field.name not in found.names:
            raise DamagedError(f"{file} lacks the column {field.name}")
        kind = found.field(field.name).type
        same = kind == field.type or any(
            both(kind) and both(field.type) for both in (_is_text, pa.types.is_integer, pa.types.is_struct)
        )  # a long string or another integer becomes ours, or the cast says why not
        if not same:
            raise DamagedError(f"{file}: its column {field.name} is of type {kind}, it must be {field.type}")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:_SHOWN]
