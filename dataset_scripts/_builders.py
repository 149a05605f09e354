"""Build the data sets: read the files of a set, and check what was read."""

import hashlib
import logging
import re
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets

from dataset_scripts import _archives
from dataset_scripts._archives import ARCHIVE_SUFFIX, SPLITS, archive_url, download, find_source, named_in
from modeling_more import foreign, posts, tagging, words
from modeling_more.data import conll, entity_formats, relation_formats, tables, text_files
from modeling_more.data import rows as row_checks
from modeling_more.data.entity_formats import read_labelled
from modeling_more.data.relation_formats import read_relations
from modeling_more.data.rows import HIDDEN, with_equal_columns
from modeling_more.files import file_digest
from modeling_more.posts import KNOWLEDGE_COLUMNS, Row
from modeling_more.tagging import bio_labels, entity_types, tags_to_spans

logger = logging.getLogger(__name__)

# modules that the rows depend on besides the builder
READERS = (
    _archives, conll, entity_formats, foreign, posts, relation_formats, row_checks, tables, tagging, text_files, words,
)  # fmt: skip


def match_raw(rows: list[Row], raw: Sequence[Row]) -> int:
    """Give rows without ids those of the raw row with the same words (and, if relations, the same entities), and
    return how many found one."""
    by_words: dict[tuple[Any, ...], list[Row]] = defaultdict(list)

    def key(row: Row) -> tuple[Any, ...]:
        return (*row["tokens"], *(tuple(row[span]) for span in ("head", "tail") if span in row))

    for row in reversed(raw):
        by_words[key(row)].append(row)
    matched = 0
    for row in rows:
        if same := by_words.get(key(row)):
            first = same.pop()  # posts of the same words are taken in their order
            row["id"], row["image_id"] = first["id"], first["image_id"]
            matched += 1
    return matched


def knowledge_feature() -> Any:
    """Return the feature of a knowledge column."""
    from modeling_more.knowledge import KNOWLEDGE_FEATURE  # here, as it loads the search engine

    return KNOWLEDGE_FEATURE


def text_features() -> dict[str, Any]:
    """Return the features of rows that were text: the text and [start, end] of each word, in characters."""
    return {"text": datasets.Value("string"), "offsets": datasets.List(datasets.List(datasets.Value("int32")))}


def entity_features(types: Sequence[str], columns: Collection[str] = ()) -> datasets.Features:
    """Return the features of entity rows, words and BIO tags, with these knowledge columns."""
    tags = datasets.List(datasets.ClassLabel(names=bio_labels(types)))
    return _row_features({"ner_tags": tags}, columns)


def relation_features(labels: Sequence[str], columns: Collection[str] = ()) -> datasets.Features:
    """Return the features of relation rows, words, spans [start, end) of both entities in words, and label."""
    span = datasets.List(datasets.Value("int32"))
    relation = datasets.ClassLabel(names=list(labels))
    return _row_features({"head": span, "tail": span, "relation": relation}, columns)


def _row_features(labels: dict[str, Any], columns: Collection[str]) -> datasets.Features:
    features: dict[str, Any] = {
        "id": datasets.Value("string"),
        "image_id": datasets.Value("string"),
        "tokens": datasets.List(datasets.Value("string")),
    }
    return datasets.Features(features | labels | {column: knowledge_feature() for column in columns})


def stored(row: Row) -> Row:
    """Return a row as its features hold it: a hidden label is -1."""
    if row.get("ner_tags", ()) is None:
        return {**row, "ner_tags": [HIDDEN] * len(row["tokens"])}
    return {**row, "relation": HIDDEN} if row.get("relation", "") is None else row


@dataclass
class NerConfig(datasets.BuilderConfig):
    """The configuration of a builder; `name` is the retrieval whose knowledge the rows hold.

    Attributes:
        other_as_misc: whether to write OTHER as MISC, as some copies of Twitter-2015 do.
        raw_dir: folder of the raw files, from which an archive's posts take id and image_id.
        splitter: how raw sentences are split into words (WikiDiverse).
    """

    other_as_misc: bool = False
    raw_dir: str | None = None
    splitter: str = words.DEFAULT_SPLITTER


class PostsBuilder(datasets.GeneratorBasedBuilder):
    """A builder of posts from raw files or the authors' archives; subclasses know the labels.

    The files are read when the builder is made, as the cache key holds a digest of them and of this source: `datasets`
    itself would notice neither changed files nor a changed builder.
    """

    BUILDER_CONFIG_CLASS = NerConfig
    BUILDER_CONFIGS: ClassVar[list[NerConfig]] = [
        NerConfig(name="none", version=datasets.Version("1.0.0"), description="posts and entities"),
        NerConfig(name="text", version=datasets.Version("1.0.0"), description="with knowledge retrieved by text"),
        NerConfig(name="image", version=datasets.Version("1.0.0"), description="with knowledge retrieved by image"),
    ]
    DEFAULT_CONFIG_NAME = "none"

    NAME: ClassVar[str]  # as in `load`
    ARCHIVE: ClassVar[str]  # name of the authors' bare archive
    TITLE: ClassVar[str]
    CREDIT: ClassVar[str]  # where the set comes from, and under which terms
    TASK: ClassVar[str]
    ROWS: ClassVar[tuple[int, int, int]]  # train, validation, test

    def __init__(
        self,
        cache_dir: str | None = None,
        config_name: str | None = None,
        hash: str | None = None,
        data_dir: str | None = None,
        **options: Any,
    ) -> None:
        self._retrieval = config_name or "none"
        if self._retrieval not in ARCHIVE_SUFFIX:
            raise ValueError(f"retrieval {self._retrieval!r} is unknown: give one of {', '.join(ARCHIVE_SUFFIX)}.")
        root = Path(cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser().resolve()
        if data_dir is not None:
            data_dir = str(Path(data_dir).expanduser().resolve())
        if options.get("raw_dir") is not None:
            options["raw_dir"] = str(Path(options["raw_dir"]).expanduser().resolve())
        inputs = self._read(data_dir, root / "more_archives", options)
        super().__init__(
            cache_dir=str(root),
            config_name=self._retrieval,
            hash=hash or self._source_digest(inputs),
            data_dir=data_dir,
            **options,
        )

    def _read(self, data_dir: str | None, archives: Path, options: dict[str, Any]) -> list[Path]:
        """Fill `rows` and `types`, and return the files that were read."""
        if data_dir is None:
            name = f"{self.ARCHIVE}{ARCHIVE_SUFFIX[self._retrieval]}"
            files, source = find_source(
                download(archive_url(name), archives), self._names(), self._retrieval, archives
            )
        else:
            files, source = find_source(Path(data_dir), self._names(), self._retrieval, archives)
        column = "knowledge_image" if self._retrieval == "image" else "knowledge_text"
        self.rows: dict[str, list[Row]] = {}
        for split, path in files.items():
            self.rows[split] = self._read_file(path, split, column, options)
        inputs = list(files.values()) + self._add_raw_ids(data_dir, source, archives, options)
        self._settle_labels(source, options)
        self._settle_knowledge(source, column)
        self._check_counts(source)
        with_equal_columns([row for split in self.rows.values() for row in split])
        return inputs

    def _read_file(self, path: Path, split: str, column: str, options: dict[str, Any]) -> list[Row]:
        """Read the rows of a file, with their knowledge in `column`."""
        raise NotImplementedError

    def _settle_labels(self, source: Path, options: dict[str, Any]) -> None:
        """Fill `types` once all rows are read."""
        raise NotImplementedError

    def _features(self) -> datasets.Features:
        raise NotImplementedError

    def _names(self) -> tuple[str, str]:
        return self.ARCHIVE, self.NAME

    def _add_raw_ids(self, data_dir: str | None, source: Path, archives: Path, options: dict[str, Any]) -> list[Path]:
        """Give posts without ids those of raw files at hand, and return these files."""
        if any(row["image_id"] for rows in self.rows.values() for row in rows):
            return []
        given = options.get("raw_dir")
        raw_dir = Path(given) if given else None
        if raw_dir is None and data_dir is not None and source != Path(data_dir):
            raw_dir = named_in(Path(data_dir), self._names())
        if raw_dir is None or raw_dir == source:
            return []
        files, _ = find_source(raw_dir, self._names(), "none", archives)
        matched = 0
        for split, path in files.items():
            matched += match_raw(self.rows[split], self._read_file(path, split, "knowledge_text", options))
        total = sum(map(len, self.rows.values()))
        log = logger.info if matched == total else logger.warning
        log("%s: %d of %d posts have the words, and take the ids, of one in %s.", source, matched, total, raw_dir)
        return list(files.values())

    def _settle_knowledge(self, source: Path, column: str) -> None:
        rows = [row for split in self.rows.values() for row in split]
        if self._retrieval != "none":
            without = sum(not row.get(column) for row in rows)
            if without == len(rows):
                raise ValueError(
                    f"{source}: the posts hold no knowledge; give --knowledge with the files to retrieve it from, or"
                    f" --data_dir with {self.ARCHIVE}{ARCHIVE_SUFFIX[self._retrieval]}."
                )
            if without:
                logger.warning("%s: %d of %d posts come without knowledge.", source, without, len(rows))
        for row in rows:
            for name in KNOWLEDGE_COLUMNS:
                if name != column or self._retrieval == "none":
                    row.pop(name, None)
            if self._retrieval != "none":
                row.setdefault(column, [])

    def _counts(self) -> list[tuple[str, tuple[int, int, int], list[int]]]:
        """Return what is counted, how many there should be, how many there are."""
        return [("posts", self.ROWS, [len(rows) for rows in self.rows.values()])]

    def _check_counts(self, source: Path) -> None:
        for what, expected, found in self._counts():
            if list(expected) != found:
                logger.warning(
                    "%s: %s %s in train / validation / test, where %s has %s: this is another copy, or a part.",
                    source, " / ".join(map(str, found)), what, self.TITLE, " / ".join(map(str, expected)),
                )  # fmt: skip

    def _source_digest(self, inputs: Sequence[Path]) -> str:
        builder = sys.modules[type(self).__module__]
        sources = [Path(str(module.__file__)) for module in (sys.modules[__name__], builder, *READERS)]
        return hashlib.sha256("\n".join(file_digest(path) for path in [*sources, *inputs]).encode()).hexdigest()

    def _info(self) -> datasets.DatasetInfo:
        features = self._features()
        if "text" in self.rows["train"][0]:
            features = datasets.Features({**features, **text_features()})
        return datasets.DatasetInfo(description=f"{self.TITLE}. {self.CREDIT}", features=features)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name=split, gen_kwargs={"split": split}) for split in SPLITS]

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Row]]:
        for number, row in enumerate(self.rows[split]):
            yield number, stored(row)

    def _columns(self) -> list[str]:
        """Return the knowledge columns of the rows."""
        return [] if self._retrieval == "none" else [f"knowledge_{self._retrieval}"]


class NerBuilder(PostsBuilder):
    """A builder of posts with entities; a subclass names the set."""

    TASK = "entities"
    TYPES: ClassVar[tuple[str, ...] | None]  # None: those of the training split
    MENTIONS: ClassVar[tuple[int, int, int] | None] = None

    def _read_file(self, path: Path, split: str, column: str, options: dict[str, Any]) -> list[Row]:
        if self.TYPES is not None:
            allowed: list[str] | None = list(dict.fromkeys([*self.TYPES, "OTHER", "MISC"]))
        else:  # no other file may hold a type that the training split lacks
            allowed = self._types_of(self.rows["train"]) if "train" in self.rows else None
        return read_labelled(path, allowed, options.get("splitter", words.DEFAULT_SPLITTER), column, split)

    def _types_of(self, rows: Sequence[Row]) -> list[str]:
        return entity_types(tag for row in rows for tag in row["ner_tags"] or [])

    def _settle_labels(self, source: Path, options: dict[str, Any]) -> None:
        other_as_misc = bool(options.get("other_as_misc"))
        types = self._types_of(self.rows["train"]) if self.TYPES is None else []
        self.types = self._settle_types(source, types, other_as_misc)

    def _settle_types(self, source: Path, types: list[str], other_as_misc: bool) -> list[str]:
        """Return the types in order; the fourth one has two names, of which a copy uses one."""
        if other_as_misc:
            for rows in self.rows.values():
                for row in rows:
                    if row["ner_tags"] is not None:
                        row["ner_tags"] = [re.sub("^([BI])-OTHER$", r"\1-MISC", tag) for tag in row["ner_tags"]]
            types = list(dict.fromkeys("MISC" if type_ == "OTHER" else type_ for type_ in types))
        if self.TYPES is None:
            return types
        seen = {type_ for rows in self.rows.values() for type_ in self._types_of(rows)}
        fourth = [name for name in ("OTHER", "MISC") if name in seen]
        if len(fourth) == 2:
            raise ValueError(
                f"{source}: the labels hold OTHER and MISC, which are one type; other_as_misc joins them."
            )
        default = "MISC" if other_as_misc else self.TYPES[-1]
        return [*self.TYPES[:-1], fourth[0] if fourth else default]

    def _counts(self) -> list[tuple[str, tuple[int, int, int], list[int]]]:
        counts = super()._counts()
        if self.MENTIONS is not None:
            mentions = [sum(len(tags_to_spans(row["ner_tags"] or [])) for row in rows) for rows in self.rows.values()]
            counts.append(("mentions", self.MENTIONS, mentions))
        return counts

    def _features(self) -> datasets.Features:
        return entity_features(self.types, self._columns())


class RelationBuilder(PostsBuilder):
    """A builder of pairs of entities with their relation (`types`, None first); a subclass names the set."""

    TASK = "relations"
    LABELS: ClassVar[tuple[str, ...]]

    def _read_file(self, path: Path, split: str, column: str, options: dict[str, Any]) -> list[Row]:
        return read_relations(path, None, options.get("splitter", words.DEFAULT_SPLITTER), column, split)

    def _settle_labels(self, source: Path, options: dict[str, Any]) -> None:
        found = {row["relation"] for rows in self.rows.values() for row in rows} - {None}
        others = sorted(found - set(self.LABELS))
        if others:
            logger.warning(
                "%s: the relations %s are none of the %d of %s: this is another copy, or another set.",
                source, ", ".join(others), len(self.LABELS), self.TITLE,
            )  # fmt: skip
        self.types = [*self.LABELS, *others]

    def _features(self) -> datasets.Features:
        return relation_features(self.types, self._columns())
