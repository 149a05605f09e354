"""Publish a data set as a folder of Parquet files with a card, and on the Hub."""

import argparse
import glob
import hashlib
import importlib
import logging
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import DatasetDict, DatasetInfo, SplitDict, SplitInfo, concatenate_datasets
from datasets import __version__ as datasets_version
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, DatasetCardData, HfApi

from dataset_scripts import load
from modeling_more.data.rows import HIDDEN
from modeling_more.files import file_digest, is_incidental, locked, new_folder, paths_below, remove_strays_of
from modeling_more.markdown import code_span, escaped, fenced, markdown_table
from modeling_more.naming import NamingParser, without_folder
from modeling_more.tagging import tags_to_spans
from modeling_more.training.interruption import interrupted
from modeling_more.training.model_card import scrub_command
from modeling_more.training.results import privacy
from modeling_more.words import SPLITTERS

logger = logging.getLogger(__name__)

TAG = "modeling-more"
MILVUS = "milvus:"  # prefix of a database's address
KINDS: dict[str, tuple[str, ...]] = {"none": (), "text": ("text",), "image": ("image",), "all": ("text", "image")}
WHAT = {
    "none": "the posts and their labels",
    "text": "the same posts with `knowledge_text`, knowledge retrieved by the post's words",
    "image": "the same posts with `knowledge_image`, knowledge retrieved by the post's image",
    "all": "the same posts with both columns",
}
TERMS = "The copyrights of the posts stay with their authors. Whoever publishes this set has to see that they may."

Configs = dict[str, DatasetDict]


@dataclass(frozen=True)
class Search:
    """A search for knowledge: what it retrieves from, and how.

    Attributes:
        knowledge: files, saved corpora, Hub ids, or one `milvus:URI`.
        image_knowledge: the same for retrieval by image; default: `knowledge`.
        image_model: image tower; default: that of `ImageEncoder`.
        image_dir: folder of the posts' images by `image_id`; default: the posts' column image.
    """

    knowledge: Sequence[str] = ()
    image_knowledge: Sequence[str] = ()
    image_model: str | None = None
    image_dir: str | None = None
    top_k: int = 10

    def specs(self, kind: str) -> list[str]:
        return list((self.image_knowledge if kind == "image" else ()) or self.knowledge)

    def check(self, retrieval: str) -> None:
        """Raise ValueError for options that would be ignored or are missing."""
        kinds = KINDS[retrieval]
        if self.knowledge and not kinds:
            raise ValueError(f"--knowledge is for --retrieval text, image and all, not for {retrieval}.")
        for specs in (self.knowledge, self.image_knowledge):
            if len(specs) > 1 and any(spec.startswith(MILVUS) for spec in specs):
                raise ValueError(f"--knowledge {' '.join(specs)}: a Milvus database is searched alone.")
        for option in ("image_knowledge", "image_model", "image_dir"):
            if getattr(self, option) and not ("image" in kinds and self.specs("image")):
                raise ValueError(f"--{option} is for --retrieval image or all with knowledge to retrieve from.")
        if self.image_knowledge and kinds != ("image",) and not self.knowledge:
            raise ValueError("--retrieval all retrieves by text too: give --knowledge besides --image_knowledge.")


def configurations(
    name: str,
    retrieval: str = "none",
    data_dir: str | Path | None = None,
    search: Search | None = None,
    cache_dir: str | Path | None = None,
    **builder_options: Any,
) -> tuple[Configs, str]:
    """Return the configurations to publish by name, "none" first, and a paragraph on their knowledge.

    Knowledge is retrieved for every post if there is some to search; else the source must hold it.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: as `load`; options, or posts of archives, don't go together.
    """
    search = search or Search()
    search.check(retrieval)
    kinds = KINDS[retrieval]
    if kinds and search.specs(kinds[0]):
        posts = load(name, "none", data_dir, cache_dir, **builder_options)
        parts = []
        for kind in kinds:
            posts, how = (_by_text if kind == "text" else _by_image)(posts, search, cache_dir)
            parts.append(how)
        return split_configurations(posts, kinds), "\n\n".join(parts)
    stored = {kind: load(name, kind, data_dir, cache_dir, **builder_options) for kind in kinds or ("none",)}
    how = "As the source stores it: one entry for each post, without title and score." if kinds else ""
    return split_configurations(_joined(stored), kinds), how


def split_configurations(posts: DatasetDict, kinds: Sequence[str]) -> Configs:
    """Split posts with the knowledge columns of `kinds` into configurations: none, one for each kind, all."""
    columns = {kind: f"knowledge_{kind}" for kind in kinds}
    names = ["none", *kinds, *(["all"] if len(kinds) > 1 else [])]
    return {
        name: posts.remove_columns([column for kind, column in columns.items() if kind not in KINDS[name]])
        for name in names
    }


def _joined(stored: dict[str, DatasetDict]) -> DatasetDict:
    """Join sets to one with the knowledge columns of all."""
    (first, joined), *others = stored.items()
    for kind, posts in others:
        for split in joined:
            if joined[split]["tokens"][:] != posts[split]["tokens"][:]:
                raise ValueError(
                    f"The {split} posts with {first} knowledge are not those with {kind} knowledge: publish the two "
                    "one by one, or give --knowledge to retrieve it."
                )
            column = posts[split].select_columns([f"knowledge_{kind}"])
            joined[split] = concatenate_datasets([joined[split], column], axis=1)
    return joined


def _by_text(posts: DatasetDict, search: Search, cache_dir: str | Path | None) -> tuple[DatasetDict, str]:
    from modeling_more.knowledge import BM25Retriever, attach_text_knowledge, load_knowledge

    specs = search.specs("text")
    retriever: Any
    if specs[0].startswith(MILVUS):
        from modeling_more.knowledge.milvus import MilvusTextRetriever

        retriever = MilvusTextRetriever(specs[0])
        sentences, fingerprint = retriever.about["sentences"], retriever.about["corpus"]
    else:
        corpus = load_knowledge(specs, cache_dir)
        retriever = BM25Retriever.from_corpus(corpus)
        sentences, fingerprint = len(corpus), corpus.fingerprint
    attached, report = attach_text_knowledge(posts, retriever, top_k=search.top_k, cache_dir=cache_dir)
    return attached, (
        f"By text: BM25 (sentences as keys, paragraphs as values, at most {search.top_k} for each post) from "
        f"{_named(specs)}: {sentences} sentences, fingerprint `{fingerprint}`. Retrieval sees the words of a post, "
        f"never its labels; an entry that holds the post itself is left out.\n\n{_report(report)}"
    )


def _by_image(posts: DatasetDict, search: Search, cache_dir: str | Path | None) -> tuple[DatasetDict, str]:
    from modeling_more.knowledge import ImageEncoder, ImageRetriever, attach_image_knowledge, load_knowledge
    from modeling_more.knowledge.pictures import require_images

    specs = search.specs("image")
    if search.image_dir is not None and Path(search.image_dir).is_dir():  # before the corpus is embedded
        require_images(search.image_dir, {split: list(data["image_id"]) for split, data in posts.items()})
    encoder = ImageEncoder(search.image_model) if search.image_model else ImageEncoder()
    retriever: Any
    if specs[0].startswith(MILVUS):
        from modeling_more.knowledge.milvus import MilvusImageRetriever

        retriever = MilvusImageRetriever(specs[0], encoder)
        images, fingerprint = retriever.about["images"], retriever.about["corpus"]
    else:
        corpus = load_knowledge(specs, cache_dir)
        retriever = ImageRetriever.from_corpus(corpus, encoder)
        images, fingerprint = corpus.info.images, corpus.info.image_fingerprint
    attached, report = attach_image_knowledge(
        posts, retriever, top_k=search.top_k, image_dir=search.image_dir, cache_dir=cache_dir
    )
    return attached, (
        f"By image: inner products of the embeddings of {code_span(encoder.label)} (images as keys, lead texts as "
        f"values, at most {search.top_k} for each post, one an article) from {_named(specs)}: {images} images, "
        f"fingerprint `{fingerprint}`. A post without a usable image has none.\n\n{_report(report)}"
    )


def _named(specs: Sequence[str]) -> str:
    return ", ".join(code_span(Path(spec).name) for spec in specs)


def _report(report: Any) -> str:
    """Return a table of an `AttachReport`, without what came from the cache."""
    counts = {key.replace("_", " "): value for key, value in asdict(report).items() if key != "cached"}
    return markdown_table([{"": key, "count": value} for key, value in counts.items()])


def write_folder(configs: Configs, card: DatasetCard, folder: Path, overwrite: bool = False) -> None:
    """Write `CONFIG/SPLIT-00000-of-00001.parquet` and README.md to a folder that appears whole.

    Raises:
        ValueError: the folder holds something already, and `overwrite` is off or it is no published data set.
    """
    with locked(folder, "publishes a data set", beside=True):
        check_free(folder, overwrite)
        remove_strays_of(folder)
        with new_folder(folder, replace=True) as beside:
            for name, splits in configs.items():
                (beside / name).mkdir()
                for split, rows in splits.items():
                    rows.to_parquet(str(beside / name / f"{split}-00000-of-00001.parquet"))
            _describe(card, configs, beside)
            card.save(beside / "README.md")


def _describe(card: DatasetCard, configs: Configs, folder: Path) -> None:
    """Describe the files in the card, for `datasets` caches rows by a folder's name and its card's metadata alone."""
    infos = DatasetInfosDict()
    configured = {config["config_name"]: config for config in card.data.get("configs")}
    for name, splits in configs.items():
        files = {split: folder / name / f"{split}-00000-of-00001.parquet" for split in splits}
        sizes = {split: rows.data.nbytes for split, rows in splits.items()}
        infos[name] = DatasetInfo(
            config_name=name,
            features=next(iter(splits.values())).features,
            splits=SplitDict({split: SplitInfo(split, sizes[split], len(rows)) for split, rows in splits.items()}),
            download_size=sum(file.stat().st_size for file in files.values()),
            dataset_size=sum(sizes.values()),
        )
        digests = "".join(file_digest(file) for file in files.values())
        configured[name]["description"] = f"content {hashlib.sha256(digests.encode()).hexdigest()[:32]}"
    infos.to_dataset_card_data(card.data)


def check_free(folder: Path, overwrite: bool) -> None:
    """Raise ValueError if `write_folder` would refuse; asked before the work is done."""
    from modeling_more.knowledge.corpus_info import META_FILE  # seconds that other uses need not wait

    if not folder.exists() or (folder.is_dir() and not any(paths_below(folder))):
        return
    readme = folder / "README.md"
    ours = readme.is_file() and f"- {TAG}\n" in readme.read_text(encoding="utf-8", errors="replace")
    ours = ours and not (folder / META_FILE).exists()  # a corpus, whose card has the tag, too
    if not ours:
        raise ValueError(f"{folder}: holds something that is no published data set; give another --output_dir.")
    if not overwrite:
        raise ValueError(f"{folder}: holds a published data set; give another --output_dir or --overwrite_output_dir.")
    for path in [*folder.iterdir(), *(file for name in KINDS for file in (folder / name).glob("*"))]:
        if path.suffix != ".parquet" and path.name not in ("README.md", *KINDS) and not is_incidental(path):
            raise ValueError(
                f"{path}: is no part of the data set in {folder}, with which it would be deleted; move it."
            )


def make_card(builder: Any, configs: Configs, knowledge: str, command: Sequence[str]) -> DatasetCard:
    """Make the card: configurations, counts, source and terms, how the knowledge was retrieved.

    Args:
        builder: class with TITLE and CREDIT, and TERMS if no authors hold rights to the posts.
    """
    data_files = {
        name: [{"split": split, "path": f"{name}/{split}-*"} for split in splits] for name, splits in configs.items()
    }
    posts = configs["none"]
    relations = "relation" in next(iter(posts.values())).features
    data = DatasetCardData(
        language="en",
        license="other",
        license_name="see-card",
        pretty_name=builder.TITLE,
        task_categories=["text-classification" if relations else "token-classification"],
        tags=["relation-extraction" if relations else "named-entity-recognition", "retrieval", TAG],
        configs=[
            {"config_name": name, **({"default": True} if name == "none" else {}), "data_files": files}
            for name, files in data_files.items()
        ],
    )
    about = "two marked entities and their relation" if relations else "named entities (BIO)"
    sections = [
        f"# {builder.TITLE}",
        f"Posts as words with {about}, as read by the MoRe library.",
        "## Configurations",
        markdown_table([{"name": f"`{name}`", "rows hold": WHAT[name]} for name in configs]),
        f'```python\nimport datasets\n\nposts = datasets.load_dataset("ORG/NAME", "{list(configs)[-1]}")\n```',
        "## Counts",
        *(_relation_counts(posts) if relations else _entity_counts(posts)),
        *(["## Knowledge", knowledge] if knowledge else []),
        "## Source and terms",
        builder.CREDIT,
        getattr(builder, "TERMS", TERMS),
        "## Made by",
        f"{fenced(scrub_command(command), 'bash')}\n\ndatasets {datasets_version}",
    ]
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n")


def _entity_counts(posts: DatasetDict) -> list[str]:
    rows = []
    for split, data in posts.items():
        labels = data.features["ner_tags"].feature
        types = list(dict.fromkeys(name[2:] for name in labels.names if name != "O"))
        tags = data[:]["ner_tags"]
        told = [row for row in tags if HIDDEN not in row]
        found = Counter(span.type for row in told for span in tags_to_spans(labels.int2str(row)))
        counts = {"posts": len(data), "words": sum(map(len, tags)), "entities": found.total()}
        rows.append({"split": split, **counts, **{escaped(type_): found[type_] for type_ in types}})
    return [markdown_table(rows), "Entities as seqeval reads them: an I- that continues nothing begins one."]


def _relation_counts(posts: DatasetDict) -> list[str]:
    names = next(iter(posts.values())).features["relation"].names
    found = {split: Counter(data[:]["relation"]) for split, data in posts.items()}
    totals = [
        {"split": split, "rows": len(data), "words": sum(map(len, data["tokens"]))} for split, data in posts.items()
    ]
    relations = [
        {"relation": escaped(name), **{split: found[split][label] for split in posts}}
        for label, name in enumerate(names)
    ]
    return [markdown_table(totals), markdown_table(relations)]


def push(configs: Configs, card: DatasetCard, repo_id: str, private: bool, folder: Path) -> None:
    """Push every configuration, "none" as the default, then the card with what the Hub holds of other configurations.

    Raises:
        ConnectionError: the upload failed; the message says how to push the folder.
    """
    posts = sum(len(rows) for rows in configs["none"].values())
    logger.info(
        "Uploading to %s (%s): %d posts with their words and labels, and the knowledge that their configurations name "
        "(%s), and README.md.", repo_id, privacy(private), posts, ", ".join(configs),
    )  # fmt: skip
    try:
        for name, splits in configs.items():
            splits.push_to_hub(repo_id, config_name=name, private=private or None)
        merged = DatasetCard.load(repo_id)
        for key, value in card.data.to_dict().items():
            if key not in ("configs", "dataset_info"):  # the Hub has those of other configurations, too
                setattr(merged.data, key, value)
        for config in merged.data.configs:  # set_default=True loses the flag where the default is pushed again
            config.pop("default", None)
            if config["config_name"] == "none":
                config["default"] = True
        merged.text = card.text.replace("ORG/NAME", repo_id)
        HfApi().upload_file(
            path_or_fileobj=str(merged).encode(), path_in_repo="README.md", repo_id=repo_id, repo_type="dataset"
        )
    except Exception as error:  # whatever the client raises, the folder is whole and can be pushed again
        raise failed_push(repo_id, folder, error, private) from error


def failed_push(repo_id: str, folder: Path, error: Exception, private: bool) -> ConnectionError:
    """Return the error that says how to push what is written already."""
    again = f"hf upload {repo_id} {shlex.quote(str(folder))} --repo-type dataset" + " --private" * private
    return ConnectionError(f"The upload to {repo_id} failed ({error}); {folder} is whole: {again}")


def publish(arguments: argparse.Namespace, name: str, command: Sequence[str]) -> Path:
    """Publish what the command line asks for, and return the folder."""
    folder = Path(arguments.output_dir).expanduser().resolve()
    check_free(folder, arguments.overwrite_output_dir)
    options = {
        key: getattr(arguments, key) for key in ("other_as_misc", "raw_dir", "splitter") if getattr(arguments, key)
    }
    search = Search(
        arguments.knowledge, arguments.image_knowledge, arguments.image_model, arguments.image_dir, arguments.top_k
    )
    configs, how = configurations(
        name, arguments.retrieval, arguments.data_dir, search, arguments.cache_dir, **options
    )
    builder = importlib.import_module(f"dataset_scripts.{name}").Builder
    card = make_card(builder, configs, how, command)
    write_folder(configs, card, folder, arguments.overwrite_output_dir)
    logger.info("Written: %s", folder)
    if glob.has_magic(str(folder)):
        logger.warning("load_dataset takes the name %s for a pattern; run_ner.py and run_re.py read it.", folder)
    if arguments.push_to_hub:
        push(configs, card, arguments.push_to_hub, arguments.private, folder)
        logger.info("Pushed: %s", arguments.push_to_hub)
    return folder


def parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of `python dataset_scripts/NAME.py`."""
    made = NamingParser(
        f"dataset_scripts/{name}.py", description=f"Publish {name} as Parquet with a card.", allow_abbrev=False
    )
    made.add_argument("--data_dir", help="folder with the raw files or an archive, or a zip file; default: download")
    made.add_argument("--retrieval", choices=list(KINDS), default="none", help="the knowledge that the rows carry")
    made.add_argument(
        "--knowledge", nargs="+", default=[], help="retrieve from these files, folders, Hub ids; or milvus:URI"
    )
    made.add_argument("--image_knowledge", nargs="+", default=[], help="the same by image (default: --knowledge)")
    made.add_argument("--image_dir", help="the posts' images, files named by image_id")
    made.add_argument("--image_model", help="image tower of transformers (default: CLIP ViT-B/32)")
    made.add_argument("--top_k", type=int, default=10, help="entries for each post (default: 10)")
    made.add_argument("--output_dir", required=True, help="folder to write")
    made.add_argument("--overwrite_output_dir", action="store_true", help="replace the data set in it")
    made.add_argument("--push_to_hub", metavar="ORG/NAME", help="push there as well")
    made.add_argument("--private", action="store_true", help="make the repository private")
    made.add_argument("--cache_dir", help="of downloads, Arrow files, indices and retrieved knowledge")
    made.add_argument("--raw_dir", help="raw files from which posts of an archive take their ids")
    made.add_argument("--other_as_misc", action="store_true", help="write the type OTHER as MISC")
    made.add_argument("--splitter", choices=SPLITTERS, help="how raw sentences are split into words")
    return made


def main(name: str, arguments: Sequence[str] | None = None) -> int:
    """Run the publisher, and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parser(name).parse_args(given)
    command = ["python", f"dataset_scripts/{name}.py", *map(without_folder, given)]
    return exit_code(lambda: publish(parsed, name, command))


def exit_code(script: Callable[[], object]) -> int:
    """Run a script with its log shown, and return the exit code: 1 after one sentence on the error."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    # the second names every image that can't be used
    for told in ("dataset_scripts", "modeling_more.knowledge.corpus_images"):
        logging.getLogger(told).setLevel(logging.INFO)
    try:
        script()
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        raise interrupted() from None
    return 0
