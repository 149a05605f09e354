"""The knowledge corpus: articles split into paragraphs, which are retrieved, and sentences, which are searched.

METHOD, section 1: the key of text retrieval is a sentence, the value its paragraph. Each paragraph is stored once, a
sentence as three numbers (paragraph, start, end), and both tables are memory-mapped Arrow.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
from datasets import Dataset, List, Value
from huggingface_hub import HfApi

from ..files import copy_folder, file_digest, locked, new_folder, remove_strays_of, user_cache, write_json
from ..naming import nearest_folder
from .articles import kind_of
from .corpus_builder import (
    MOST,
    PARAGRAPHS,
    SENTENCES,
    build_from_articles,
    build_from_parquet,
    finish_corpus,
    folders_of,
    write_sentences,
)
from .corpus_images import IMAGE_FEATURES, TABLE, finish_images, image_roots, images_changed, join_images
from .corpus_info import (
    FAISS_FOLDER,
    FAISS_META,
    FORMAT_VERSION,
    INDEX_FOLDER,
    META_FILE,
    check_rows,
    corpus_card,
    read_info,
)
from .corpus_tables import build_once, claim, numpy_view, open_or_build, shared_values, write_stream
from .index_files import checked_once, digests_of
from .saved_corpus import CARD, FOLDERS, check_tables_of, check_target, listed_files, saved_folder
from .table_checks import check_tables, open_table
from .text_index import META_FILE as INDEX_META
from .text_index import build_index, is_current, open_index, remove_parts

logger = logging.getLogger(__name__)

#: one ranked list of knowledge entries, best first; match_start/match_end: characters of text that were matched;
#: scale: what a score can reach at most for this query, 0 where that is not known
KNOWLEDGE_FEATURE = List(
    {
        "title": Value("string"),
        "text": Value("string"),
        "score": Value("float32"),
        "scale": Value("float32"),
        "source": Value("string"),
        "match_start": Value("int32"),
        "match_end": Value("int32"),
    }
)

_BATCH = 10_000  # keys that are read at once
_SHARD_BYTES = 500_000_000
_DAMAGE = (ValueError, OSError)  # of what lies in the cache, which is built again

T = TypeVar("T")


class KnowledgeCorpus:
    """A searchable corpus of articles: `len()` sentences (keys), each in one of the paragraphs (values).

    Build one with `from_files`, load one with `from_pretrained`. `corpus[i]` is the i-th key as
    {id, title, key, value}; `table` gives the same as a `datasets.Dataset` that is computed as it is read.
    """

    def __init__(
        self,
        folder: str | Path,
        index_dir: str | Path | None = None,
        faiss_dir: str | Path | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        """Open a built corpus (memory-mapped Arrow), whose content is checked when it is opened first.

        Args:
            index_dir: where its saved BM25 index lies, if any.
            faiss_dir: the folder of its saved image indices, if any.
            cache_dir: the user's cache, which remembers what was checked.

        Raises:
            FileNotFoundError: the folder holds no corpus.
            ValueError: its tables are damaged, or not what its `knowledge.json` says.
        """
        self.folder = Path(folder)
        self.info = read_info(self.folder)
        self.index_dir = Path(index_dir) if index_dir is not None else None
        self.faiss_dir = Path(faiss_dir) if faiss_dir is not None else None
        self.cache_dir = user_cache(cache_dir)
        files = [self.folder / "paragraphs.arrow", self.folder / "sentences.arrow"]
        self.paragraphs, self.sentences = map(open_table, files, (PARAGRAPHS, SENTENCES))
        #: id, title, value (the article's lead) and image, one row an image; None where the corpus has none
        self.images = open_table(self.folder / TABLE, IMAGE_FEATURES.arrow_schema) if self.info.images else None
        images = len(self.images) if self.images is not None else 0
        check_rows(self.folder, self.info, len(self.paragraphs), len(self.sentences), images)
        files += [self.folder / META_FILE, *([self.folder / TABLE] if images else [])]
        tables = (self.paragraphs, self.sentences, self.images)
        checked_once(self.cache_dir, files, "tables", lambda: check_tables(self.folder, self.info, *tables))
        #: int32 [sentences]: row of the paragraph that holds the sentence, and the sentence's characters in it
        self.sentence_paragraph, self.sentence_start, self.sentence_end = (
            numpy_view(self.sentences.data.column(name)) for name in SENTENCES.names
        )
        self._batches = self.paragraphs.data.to_batches()
        self._batch_starts = np.cumsum([0] + [len(batch) for batch in self._batches])

    @property
    def fingerprint(self) -> str:
        return self.info.fingerprint

    def _told(self) -> Self:
        """Return the corpus itself, and warn of repeated ids."""
        if self.info.repeated_ids:
            logger.warning(
                "%d of %d knowledge articles have the id of an earlier one: where knowledge is from can't be told.",
                self.info.repeated_ids, self.info.articles,
            )  # fmt: skip
        return self

    def __len__(self) -> int:
        return self.info.sentences

    def __repr__(self) -> str:
        size = f"{self.info.paragraphs} paragraphs, {len(self)} sentences"
        images = f", {self.info.images} images" if self.info.images else ""
        return f"KnowledgeCorpus({size}{images}, {self.fingerprint[:12]})"

    def read_paragraphs(self, rows: np.ndarray) -> list[tuple[str, str, str]]:
        """Return (id of the article, its title, the paragraph) of each row, fastest for rising rows."""
        found: list[tuple[str, str, str]] = []
        batches = np.searchsorted(self._batch_starts, rows, side="right") - 1
        cuts = [0, *(np.flatnonzero(np.diff(batches)) + 1).tolist(), len(rows)]
        for first, last in zip(cuts[:-1], cuts[1:], strict=True):  # runs of rows in one record batch
            if first < last:
                batch = int(batches[first])
                taken = self._batches[batch].take(pa.array(rows[first:last] - self._batch_starts[batch]))
                found += zip(*(column.to_pylist() for column in taken.columns), strict=True)
        return found

    def paragraph(self, row: int) -> tuple[str, str, str]:
        """Return (id of the article, its title, the paragraph)."""
        return self.read_paragraphs(np.array([row]))[0]

    def __getitem__(self, row: int) -> dict[str, str]:
        if not 0 <= row < len(self):
            raise IndexError(f"Row {row} of a corpus with {len(self)} sentences.")
        article, title, value = self.paragraph(int(self.sentence_paragraph[row]))
        sentence = value[self.sentence_start[row] : self.sentence_end[row]]
        return {"id": article, "title": title, "key": self._key(title, sentence), "value": value}

    def keys(self, first: int = 0, last: int | None = None) -> Iterator[str]:
        """Yield the keys of the rows from `first` to before `last` (default: to the end)."""
        last = len(self) if last is None else last
        for start_row in range(first, last, _BATCH):
            rows = slice(start_row, min(start_row + _BATCH, last))
            start, end = self.sentence_start[rows].tolist(), self.sentence_end[rows].tolist()
            yield from self._read_keys(self.sentence_paragraph[rows], start, end)["key"]

    def image_indices(self) -> list[Path]:
        """Return the folders of the image indices that were saved with the corpus or built over it since."""
        found = {
            file.parent.name: file.parent
            for folder in (self.folder / FAISS_FOLDER, self.faiss_dir)
            if folder is not None
            for file in sorted(folder.glob(f"*/{FAISS_META}"))
        }
        return [found[name] for name in sorted(found)]

    def text_index(self, index_dir: str | Path | None = None) -> Path:
        """Return the folder of the BM25 index, built where there is none; see `BM25Retriever.from_corpus`."""
        return self.with_text_index(self._checked_index, index_dir)

    def _checked_index(self, folder: Path) -> Path:
        open_index(folder, self.fingerprint, len(self), self.cache_dir)
        return folder

    def with_text_index(self, use: Callable[[Path], T], index_dir: str | Path | None = None) -> T:
        """Return what `use` makes of the folder of the BM25 index, which is built where there is none.

        Where `use` finds it damaged, one in the cache is built again, and any other one is an error.
        """
        home = self.folder / INDEX_FOLDER
        folder = Path(index_dir or self.index_dir or home)
        if index_dir is None and (folder == home or not is_current(folder)):

            def build(is_good: Callable[[], bool]) -> None:
                build_index(self.keys, len(self), home, self.fingerprint, is_good=is_good)

            made = open_or_build(home, INDEX_META, lambda: use(home), build, _DAMAGE)
            remove_parts(home)
            return made
        if not (folder / INDEX_META).is_file():
            build_index(self.keys, len(self), folder, self.fingerprint)
        return use(folder)

    @property
    def table(self) -> Dataset:
        """Return the rows {id, title, key, value} of the sentences, computed when they are read."""
        return self.sentences.with_transform(
            lambda batch: self._read_keys(np.array(batch["paragraph"]), batch["start"], batch["end"])
        )

    def _read_keys(self, paragraphs: np.ndarray, start: list[int], end: list[int]) -> dict[str, list[str]]:
        distinct, place = np.unique(paragraphs, return_inverse=True)
        read = self.read_paragraphs(distinct)
        rows: dict[str, list[str]] = {"id": [], "title": [], "key": [], "value": []}
        for at, first, last in zip(place.tolist(), start, end, strict=True):
            article, title, value = read[at]
            rows["id"].append(article)
            rows["title"].append(title)
            rows["key"].append(self._key(title, value[first:last]))
            rows["value"].append(value)
        return rows

    def _key(self, title: str, sentence: str) -> str:
        return f"{title} {sentence}" if self.info.title_in_key else sentence

    @classmethod
    def from_files(
        cls,
        paths: str | Path | Sequence[str | Path],
        cache_dir: str | Path | None = None,
        title_in_key: bool = False,
        language: str = "en",
        image_dirs: Sequence[str | Path] = (),
    ) -> "KnowledgeCorpus":
        """Build a corpus from files, or open the one that was built from the same content before.

        Args:
            paths: JSONL, JSONL.gz or Parquet files with the columns title, text and, optionally, id (else articles are
                numbered). A text is split into paragraphs at line breaks. A column `image` holds a path inside the
                file's folder, or in Parquet {bytes, path} as `datasets.Image` has it; an image stands for the
                article's `lead`, or its text if there is no such column. Articles without text, repeated ids and
                unusable images are counted and reported, the first and last left out; of near-identical images of
                the same id or title one is kept. Other columns are ignored.
            title_in_key: search "title sentence" instead of the sentence alone (the paper's key is the sentence).
            language: of the sentence splitter.
            image_dirs: folders in which images may lie that the files name by absolute paths. Any other path that
                leads out of the file's folder, also by a link, makes the image unusable.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file of another format, a bad line or column, no text at all.
        """
        files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
        if not files:
            raise ValueError("No knowledge file is given: name at least one JSONL, JSONL.gz or Parquet file.")
        splitter = f"sentencex {metadata.version('sentencex')}"
        digest = hashlib.sha256(json.dumps([FORMAT_VERSION, splitter, title_in_key, language]).encode())
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"The knowledge file {file} does not exist{nearest_folder(file)}.")
            digest.update(f"{kind_of(file)} {file_digest(file)}".encode())
        folder = user_cache(cache_dir) / "corpora" / digest.hexdigest()[:32]

        def build(into: Path) -> None:
            info = build_from_articles(into, files, title_in_key, language, splitter, image_dirs)
            if info.empty:
                logger.warning("%d of %d knowledge articles have no text and are left out.", info.empty, info.articles)

        roots = folders_of(files, image_dirs)
        if image_roots(folder) not in ([], roots):  # the same words, images of another place
            folder = folder.with_name(hashlib.sha256(json.dumps([folder.name, roots]).encode()).hexdigest()[:32])
        if (folder / META_FILE).is_file() and images_changed(folder):
            with claim(folder, wait=True):
                shutil.rmtree(folder, ignore_errors=True)
        return cls._built(folder, build, cache_dir)

    @classmethod
    def concatenate(
        cls, corpora: Sequence["KnowledgeCorpus"], cache_dir: str | Path | None = None
    ) -> "KnowledgeCorpus":
        """Join corpora to one with the paragraphs of all, in order.

        Raises:
            ValueError: none given, or the keys of some hold the title and those of others do not.
        """
        if not corpora:
            raise ValueError("No knowledge corpus is given: name at least one.")
        if len(corpora) == 1:
            return corpora[0]
        infos = [corpus.info for corpus in corpora]
        if len({info.title_in_key for info in infos}) > 1:
            raise ValueError(
                "Some of the knowledge corpora have the title in their keys and some not: build all alike."
            )
        digest = hashlib.sha256(json.dumps([FORMAT_VERSION, *(info.fingerprint for info in infos)]).encode())

        def total(name: str) -> int:
            return sum(getattr(info, name) for info in infos)

        if total("paragraphs") > MOST:
            raise ValueError(f"More than {MOST} paragraphs: too many for one corpus; search several, or Milvus.")

        def build(into: Path) -> None:
            tables = [pa.Table.from_batches(c.paragraphs.data.to_batches(), schema=PARAGRAPHS) for c in corpora]
            write_stream(into / "paragraphs.arrow", PARAGRAPHS, (b for table in tables for b in table.to_batches()))
            offsets = np.cumsum([0] + [info.paragraphs for info in infos[:-1]])
            columns = [
                np.concatenate([c.sentence_paragraph + np.int32(o) for c, o in zip(corpora, offsets, strict=True)]),
                np.concatenate([c.sentence_start for c in corpora]),
                np.concatenate([c.sentence_end for c in corpora]),
            ]
            write_sentences(into, columns)
            rows = join_images(into, [c.images for c in corpora if c.images is not None])
            finish_corpus(
                into,
                finish_images(into, rows, total("unusable_images"), total("merged_images")),
                articles=total("articles"),
                empty=total("empty"),
                title_in_key=infos[0].title_in_key,
                language=" ".join(dict.fromkeys(info.language for info in infos)),
                splitter=", ".join(dict.fromkeys(info.splitter for info in infos)),
                repeated_ids=total("repeated_ids") + shared_values([c.paragraphs.data.column("id") for c in corpora]),
            )

        return cls._built(user_cache(cache_dir) / "corpora" / digest.hexdigest()[:32], build, cache_dir)

    @classmethod
    def _built(
        cls,
        folder: Path,
        build: Callable[[Path], Any],
        cache_dir: str | Path | None,
        index_dir: Path | None = None,
        faiss_dir: Path | None = None,
    ) -> Self:
        """Open a corpus in the cache; one that is not there, or damaged, is built."""

        def build_tables(into: Path) -> None:
            build(into)
            for path in folder.iterdir() if folder.is_dir() else ():
                if path.is_dir():  # indices and embeddings of the same content, each with digests of its own
                    os.replace(path, into / path.name)

        return open_or_build(
            folder,
            META_FILE,
            lambda: cls(folder, index_dir, faiss_dir, cache_dir),
            lambda is_good: build_once(folder, META_FILE, build_tables, is_good),
            _DAMAGE,
        )._told()

    def save_pretrained(
        self,
        folder: str | Path,
        license: str | None = None,
        description: str = "",
        index: bool = True,
        date: str | None = None,
    ) -> Path:
        """Write Parquet, the indices, `knowledge.json` and a README card, and return the folder.

        The folder appears whole, in the place of a corpus that was saved there before. The BM25 index is built if need
        be; image indices are copied where `ImageRetriever` has built some.

        Args:
            license: licence of the texts and images, as the Hub spells it ("cc-by-sa-4.0").
            description: where they come from, for the card.
            date: date of the source, as its publisher writes it ("20231101"), for the card.

        Raises:
            ValueError: the folder holds something else than a saved corpus, or another process writes there.
        """
        folder = Path(folder).resolve()
        with locked(folder, "saves a knowledge corpus", beside=True):
            check_target(folder)
            with new_folder(folder, replace=True) as beside:
                tables = {"paragraphs": self.paragraphs, "sentences": self.sentences, "images": self.images}
                for name, data in tables.items():
                    if data is None:
                        continue
                    (beside / name).mkdir()
                    shards = max(1, -(-data.data.nbytes // _SHARD_BYTES))
                    for number in range(shards):
                        file = f"{name}/train-{number:05d}-of-{shards:05d}.parquet"
                        data.shard(shards, number, contiguous=True).to_parquet(str(beside / file))
                if index:
                    copy_folder(self.text_index(), beside / INDEX_FOLDER)
                    for built in self.image_indices():
                        copy_folder(built, beside / FAISS_FOLDER / built.name)
                files = sorted(path.relative_to(beside).as_posix() for path in beside.rglob("*") if path.is_file())
                card = corpus_card(self.info, license, description, date, beside / FAISS_FOLDER)
                (beside / CARD).write_text(card, encoding="utf-8")
                write_json(beside / META_FILE, {**asdict(self.info), "files": digests_of(beside, files)})
                check_target(folder)  # what has come meanwhile
            remove_strays_of(folder)
        return folder

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, cache_dir: str | Path | None = None, revision: str | None = None
    ) -> "KnowledgeCorpus":
        """Load what `save_pretrained` wrote, from a folder or a data set repository of the Hub.

        Raises:
            FileNotFoundError: the folder holds no corpus.
            ValueError: its files are not those that were saved (digest or number of rows), or hold something else.
        """
        folder = saved_folder(name_or_path, revision)
        info = read_info(folder)
        tables = check_tables_of(folder, listed_files(folder), user_cache(cache_dir))
        saved = [folder / name if (folder / name).is_dir() else None for name in (INDEX_FOLDER, FAISS_FOLDER)]
        return cls._built(
            user_cache(cache_dir) / "corpora" / f"saved-{info.fingerprint}",
            lambda into: build_from_parquet(into, folder, tables, info),
            cache_dir,
            *saved,
        )

    def push_to_hub(
        self,
        repo_id: str,
        license: str | None = None,
        description: str = "",
        private: bool | None = None,
        token: str | None = None,
        date: str | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes to a data set repository (made if need be), and return the commit."""
        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.save_pretrained(Path(scratch) / "corpus", license, description, date=date)
            repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                repo_type="dataset",
                commit_message=f"Knowledge corpus {self.fingerprint[:12]}",
                delete_patterns=[f"{name}/*" for name in FOLDERS],
            )
        return str(commit.commit_url)
