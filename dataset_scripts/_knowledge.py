"""Build knowledge corpora: write a stream of rows to shards, make a corpus of these, and publish it with its card.

The shards are normalised Parquet {id, title, text, lead?, image?} with a note on how far the stream was read. A killed
run keeps its finished shards and reads on behind them, so its corpus is that of an unbroken run.
"""

import argparse
import glob
import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, IterableDataset, Value, load_dataset
from huggingface_hub import HfApi
from tqdm.auto import tqdm

from dataset_scripts._publish import add_output_options, exit_code, failed_push, without_folder
from modeling_more.files import locked, new_file, paths_below, remove_strays, user_cache, write_text
from modeling_more.foreign import line_objects, read_object
from modeling_more.knowledge.corpus import META_FILE, KnowledgeCorpus
from modeling_more.knowledge.corpus_info import CorpusInfo
from modeling_more.markdown import code_span, markdown_table
from modeling_more.naming import NamingParser
from modeling_more.training.model_card import scrub_command
from modeling_more.training.results import privacy

logger = logging.getLogger(__name__)

BUILD_VERSION = 1
PROGRESS = "progress.json"
TEXT_SHARD = 50_000  # articles
IMAGE_SHARD = 5_000
_GROUP = 500  # rows written at once
_STRING = Value("string")
_NESTED = ("image", "wit_features")  # columns that hold no strings

Row = dict[str, Any]
Convert = Callable[[Row, Counter[str]], Iterable[Row]]


@dataclass
class Plan:
    """A plan of a corpus to build.

    Attributes:
        name: name of the builder.
        source: rows as the source has them.
        identity: what the source's rows depend on, as JSON; it names the shards with `options`.
        convert: gives the articles of a row, and counts what it leaves out by reason.
        images: whether the articles have `lead` and `image`.
        options: what `convert` depends on, as JSON.
        image_dirs: folders in which images may lie that the articles name by path.
        license: licence of texts and images, as the Hub spells it.
        date: date of the source.
    """

    name: str
    source: IterableDataset
    identity: Any
    convert: Convert
    images: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    image_dirs: Sequence[str] = ()
    language: str = "en"
    license: str | None = None
    date: str | None = None
    description: str = ""

    @property
    def features(self) -> Features:
        more = {"lead": _STRING, "image": Image()} if self.images else {}
        return Features({"id": _STRING, "title": _STRING, "text": _STRING, **more})

    @property
    def digest(self) -> str:
        parts = [BUILD_VERSION, self.name, self.identity, self.options, self.language, self.images]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


# ---------------------------------------------------------------- sources


def stream(
    where: str, config: str | None, columns: Sequence[str], data_dir: str | None
) -> tuple[IterableDataset, Any, str | None]:
    """Return the rows of a data set of the Hub, or of a local copy; what they depend on; the Hub's day of change.

    Args:
        where: repository.
        config: folder in it with the Parquet files; default: all of them.
        columns: columns to read.
        data_dir: folder with Parquet or JSON Lines files in the same schema, or one such file, to read instead.

    Raises:
        FileNotFoundError: no such folder, or no file in it.
        ConnectionError: the Hub does not answer, or has no such data set.
    """
    if data_dir is not None:
        files = local_files(Path(data_dir))
        return _undecoded([str(file) for file in files], columns), stamps(files), None
    try:
        info = HfApi().dataset_info(where)
        revision = info.sha
        names = HfApi().list_repo_files(where, repo_type="dataset", revision=revision)
    except Exception as error:  # whatever the client raises
        raise ConnectionError(
            f"{where} can't be had from the Hub ({error}); --data_dir reads a local copy."
        ) from error
    wanted = sorted(
        name for name in names if name.endswith(".parquet") and name.startswith(f"{config}/" if config else "")
    )
    if not wanted:
        raise FileNotFoundError(f"{where} holds no Parquet files of {config or 'its rows'}; see its page on the Hub.")
    rows = _undecoded([f"hf://datasets/{where}@{revision}/{name}" for name in wanted], columns)
    return rows, [where, config, revision], str(info.last_modified.date()) if info.last_modified else None


def local_files(path: Path) -> list[Path]:
    """Return the Parquet files of a folder by name, or else its JSON Lines files; or the file itself."""
    path = path.expanduser().resolve()
    if path.is_file():
        return [path]
    for pattern in ("*.parquet", "*.jsonl*"):
        if found := sorted(path.rglob(pattern)):
            return found
    what = "holds no Parquet or JSON Lines file" if path.is_dir() else "no such file or folder"
    raise FileNotFoundError(f"{path}: {what}; --data_dir should name a copy of the data set.")


def stamps(files: Sequence[Path]) -> list[list[Any]]:
    """Return name, size and time of each file; a change of one makes other shards."""
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def wiki_name(language: str) -> str:
    """Return Wikimedia's name of the wiki of a language: zh-min-nan -> zh_min_nanwiki."""
    return f"{language.replace('-', '_')}wiki"


def _undecoded(files: Sequence[str], columns: Sequence[str]) -> IterableDataset:
    """Read rows with images as bytes: they are checked later, and a broken one must not end the stream."""
    if not files[0].endswith(".parquet"):
        options = {"files": list(files), "columns": tuple(columns)}
        return IterableDataset.from_generator(_json_rows, gen_kwargs=options)
    for file in files:
        if not file.startswith("hf://"):
            _check_columns(file, columns)
    # the names of local files are no patterns
    names = [file if file.startswith("hf://") else glob.escape(file) for file in files]
    rows = load_dataset("parquet", data_files=names, split="train", streaming=True, columns=list(columns))
    if rows.features and isinstance(rows.features.get("image"), Image):
        return rows.cast_column("image", Image(decode=False))
    return rows


def _json_rows(files: Sequence[str], columns: Sequence[str]) -> Iterator[Row]:
    """Yield the columns of each line of JSON Lines files; one that is not there is None."""
    for file in files:
        if not file.endswith((".jsonl", ".jsonl.gz")):
            raise ValueError(f"{file}: not a .jsonl or .jsonl.gz file, from which a corpus is built.")
        for where, row in line_objects(file):
            for name in columns:
                value = row.get(name)
                if name in _NESTED or value is None or isinstance(value, str):
                    continue
                if name != "id" or isinstance(value, bool) or not isinstance(value, int):
                    raise ValueError(f"{where}: the column {name} holds a {type(value).__name__}, not a string.")
            yield {name: row.get(name) for name in columns}


def _check_columns(file: str, columns: Sequence[str]) -> None:
    """Raise ValueError if a Parquet file lacks a column, or has it of a type that the builders don't read."""
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a Parquet file ({error}).") from None
    for name in columns:
        if name not in schema.names:
            raise ValueError(f"{file} lacks the column {name}; it has {', '.join(schema.names)}.")
        kind = schema.field(name).type
        text = any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null))
        if name not in _NESTED and not text and not (name == "id" and pa.types.is_integer(kind)):
            raise ValueError(f"{file}: the column {name} is of type {kind}, it should hold strings.")


# ---------------------------------------------------------------- shards


@dataclass
class Progress:
    """The place up to which the stream was read: all before `state` is in the first `shards` shards."""

    shards: int = 0
    articles: int = 0
    done: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    state: dict[str, Any] | None = None

    @classmethod
    def read(cls, file: Path) -> "Progress":
        if not file.is_file():
            return cls()
        kinds: dict[str, Any] = {"shards": int, "articles": int, "done": bool, "counts": dict}
        noted = read_object(file, **kinds, state=(dict, type(None)))
        return cls(
            **{name: noted[name] for name in ("shards", "articles", "done", "state")}, counts=Counter(noted["counts"])
        )

    def write(self, file: Path) -> None:
        write_text(file, json.dumps(vars(self)))


def write_shards(
    plan: Plan, cache_dir: str | Path | None = None, limit: int | None = None, size: int | None = None
) -> tuple[list[Path], Counter[str]]:
    """Read the stream into shards, from where an earlier run of the same plan stopped.

    Args:
        limit: number of articles at most.
        size: articles a shard, or a few more, as those of a row stay together.

    Returns:
        the files; and counts of rows, articles and, by reason, what was left out.
    """
    root = user_cache(cache_dir).expanduser()
    size = size or (IMAGE_SHARD if plan.images else TEXT_SHARD)
    folder = root / "builders" / f"{plan.name}-{plan.digest}-{limit or 'all'}-{size}"
    with locked(folder, "reads articles into shards"):
        remove_strays(folder)  # of a run that was killed
        return _write_shards(plan, folder, limit, size)


def _write_shards(plan: Plan, folder: Path, limit: int | None, size: int) -> tuple[list[Path], Counter[str]]:
    progress = Progress.read(folder / PROGRESS)
    files = [folder / f"{number:05d}.parquet" for number in range(progress.shards)]
    if progress.state is not None:
        plan.source.load_state_dict(progress.state)
        logger.info("%s: the %d articles of an earlier run are kept.", plan.name, progress.articles)
    seen = _texts(files) if plan.images else set()
    rows = iter(plan.source)
    with tqdm(total=limit, initial=progress.articles, desc=plan.name, unit="articles", disable=None) as bar:
        while not progress.done:
            file = folder / f"{progress.shards:05d}.parquet"
            first = progress.articles
            with _writer(file, plan.features) as write:
                for row in rows:
                    progress.counts["rows read"] += 1
                    for article in plan.convert(row, progress.counts):
                        if limit and progress.articles == limit:
                            break
                        write(_once(article, seen) if plan.images else article)
                        progress.articles += 1
                        bar.update()
                    if limit and progress.articles == limit:
                        progress.done = True
                    if progress.done or progress.articles - first >= size:
                        break
                else:
                    progress.done = True
            files.append(file)
            progress.shards, progress.state = len(files), plan.source.state_dict()
            progress.write(folder / PROGRESS)
    return files, progress.counts + Counter({"articles": progress.articles})


@contextmanager
def _writer(file: Path, features: Features) -> Iterator[Callable[[Row], None]]:
    """Write rows to a Parquet file that appears whole."""
    schema = features.arrow_schema
    rows: list[Row] = []
    with new_file(file) as beside, pq.ParquetWriter(beside, schema) as parquet:

        def flush() -> None:
            parquet.write_table(pa.Table.from_pylist(rows, schema=schema))
            rows.clear()

        def write(row: Row) -> None:
            rows.append(row)
            if len(rows) == _GROUP:
                flush()

        yield write
        if rows:
            flush()


def _hash(article: str, text: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{article}\0{text}".encode(), digest_size=8).digest(), "big")


def _texts(files: Iterable[Path]) -> set[int]:
    """Return the hashes of articles in finished shards, for `_once`; those of a whole Wikipedia take 0.5 GB."""
    rows = (row for file in files for row in pq.read_table(file, columns=["id", "text"]).to_pylist())
    return {_hash(row["id"], row["text"]) for row in rows}


def _once(article: Row, seen: set[int]) -> Row:
    """Drop the text of an article that comes again, as one with several images does.

    Another text under the same id stays, and the corpus counts it.
    """
    key = _hash(article["id"], article["text"])
    if key in seen:
        return {**article, "text": ""}
    seen.add(key)
    return article


# ---------------------------------------------------------------- corpus


def build(plan: Plan, given: argparse.Namespace, command: Sequence[str]) -> Path:
    """Build what the command line asks for, and return the folder of the saved corpus."""
    folder = Path(given.output_dir).expanduser().resolve()
    if folder.exists() and any(paths_below(folder)):
        if not (folder / META_FILE).is_file():
            raise ValueError(f"{folder}: holds something that is no knowledge corpus; give another --output_dir.")
        if not given.overwrite_output_dir:
            raise ValueError(f"{folder}: holds a corpus; give another --output_dir or --overwrite_output_dir.")
    encoder = None
    if plan.images and given.image_model:
        from modeling_more.knowledge.image import ImageEncoder, ImageRetriever  # slow to import

        encoder = ImageEncoder(given.image_model)  # now: a wrong name must not show after hours
    elif plan.images and given.image_index:
        raise ValueError("--image_index needs --image_model, the tower that embeds the images.")
    files, counts = write_shards(plan, given.cache_dir, given.max_articles)
    if not counts["articles"]:
        raise ValueError(f"{plan.name}: no article was made of {counts['rows read']} rows ({_listed(counts)}).")
    corpus = KnowledgeCorpus.from_files(
        files, given.cache_dir, given.title_in_key, plan.language, image_dirs=plan.image_dirs
    )
    if plan.images:
        _check_images(plan.name, corpus.info)
    if encoder is not None:
        ImageRetriever.from_corpus(corpus, encoder, string_factory=given.image_index)  # `corpus` is saved with it
    made = scrub_command(command)
    table = markdown_table([{"": key, "count": count} for key, count in counts.items()])
    description = f"{plan.description}\n\n{table}\n\nMade by {code_span(made)}."
    license, date = given.license or plan.license, given.date or plan.date
    corpus.save_pretrained(folder, license, description, date=date)
    logger.info("Written: %s (%s)", folder, _listed(counts))
    if given.push_to_hub:
        logger.info(
            "Uploading to %s (%s): all that is in %s, the articles' texts%s with their indices, and README.md.",
            given.push_to_hub, privacy(given.private), folder, " and images" * bool(corpus.info.images),
        )  # fmt: skip
        try:
            corpus.push_to_hub(given.push_to_hub, license, description, private=given.private or None, date=date)
        except Exception as error:  # whatever the client raises, the folder is whole and can be pushed again
            raise failed_push(given.push_to_hub, folder, error, given.private) from error
        logger.info("Pushed: %s", given.push_to_hub)
    return folder


def _check_images(name: str, info: CorpusInfo) -> None:
    """Raise ValueError if no image can be used, and warn if more than half can't be."""
    named = info.images + info.merged_images + info.unusable_images
    if not info.images:
        raise ValueError(f"{name}: none of the {named} images of the articles can be used; see the reasons above.")
    if 2 * info.unusable_images > named:
        logger.warning("%s: %d of %d images of the articles can't be used.", name, info.unusable_images, named)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {key}" for key, count in counts.items())


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of all builders of knowledge; a script adds its own."""
    made = NamingParser(
        f"dataset_scripts/{name}.py",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_output_options(made, "corpus")
    made.add_argument("--language", default="en", help="of the articles, as Wikipedia's address has it (default: en)")
    made.add_argument("--max_articles", type=int, help="stop after so many")
    made.add_argument("--title_in_key", action="store_true", help='search "title sentence" instead of the sentence')
    made.add_argument("--license", help="of the texts and images, as the Hub spells it, for the card")
    made.add_argument("--date", help="of the source, for the card")
    made.add_argument("--cache_dir", help="of finished shards, of corpora and their indices")
    return made


def add_image_options(made: argparse.ArgumentParser) -> None:
    """Add the options of builders whose corpora may hold images."""
    made.add_argument(
        "--image_model",
        help="embed the images with this tower, such as openai/clip-vit-base-patch32, and save the index with them; "
        "default: who searches them does that",
    )
    made.add_argument("--image_index", help="a FAISS index for many images, such as IVF4096,PQ64; default: exact")


def main(
    make: Callable[[argparse.Namespace], Plan], made: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> int:
    """Run a builder, and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = made.parse_args(words)

    def script() -> None:
        if given.max_articles is not None and given.max_articles < 1:
            raise ValueError(f"--max_articles must be at least 1, not {given.max_articles}.")
        build(make(given), given, ["python", made.prog, *map(without_folder, words)])

    return exit_code(script)
