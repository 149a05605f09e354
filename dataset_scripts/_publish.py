"""Publish a data set as a folder of Parquet files with a card, and on the Hub."""

import argparse
import glob
import hashlib
import importlib
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from datasets import DatasetDict, DatasetInfo, SplitDict, SplitInfo, concatenate_datasets
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, HfApi
from huggingface_hub.utils import validate_repo_id

from dataset_scripts import load
from dataset_scripts._card import TAG, About, make_card
from modeling_more.files import file_digest, is_incidental, locked, new_folder, paths_below, remove_strays_of
from modeling_more.markdown import code_span, markdown_table
from modeling_more.naming import NamingParser, without_folder, without_secrets
from modeling_more.training.interruption import interrupted
from modeling_more.training.results import privacy
from modeling_more.words import SPLITTERS

logger = logging.getLogger(__name__)

MILVUS = "milvus:"  # prefix of a database's address
KINDS: dict[str, tuple[str, ...]] = {"none": (), "text": ("text",), "image": ("image",), "all": ("text", "image")}

Configs = dict[str, DatasetDict]


@dataclass(frozen=True)
class Search:
    """A search for knowledge: what it retrieves from, and how.

    Attributes:
        knowledge: files, saved corpora, Hub ids, or one `milvus:URI`.
        image_knowledge: the same for retrieval by image; default: `knowledge`.
        image_model: image tower; default: that of `ImageEncoder`.
        image_dir: folder of the posts' images by `image_id`.
    """

    knowledge: Sequence[str] = ()
    image_knowledge: Sequence[str] = ()
    image_model: str | None = None
    image_dir: str | None = None
    top_k: int = 10

    @classmethod
    def given(cls, arguments: argparse.Namespace) -> "Search":
        """Return the search that `add_retrieval_options` read from the command line."""
        return cls(**{one.name: getattr(arguments, one.name) for one in fields(cls)})

    def specs(self, kind: str) -> list[str]:
        return list((self.image_knowledge if kind == "image" else ()) or self.knowledge)

    def searches(self, retrieval: str) -> bool:
        """Return whether there is something to retrieve from; else the posts must hold their knowledge."""
        kinds = KINDS[retrieval]
        return bool(kinds and self.specs(kinds[0]))

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
    if search.searches(retrieval):
        return retrieved(load(name, "none", data_dir, cache_dir, **builder_options), kinds, search, cache_dir)
    stored = {kind: load(name, kind, data_dir, cache_dir, **builder_options) for kind in kinds or ("none",)}
    how = "As the source stores it: one entry for each post, without title and score." if kinds else ""
    return split_configurations(_joined(stored), kinds), how


def retrieved(
    posts: DatasetDict, kinds: Sequence[str], search: Search, cache_dir: str | Path | None
) -> tuple[Configs, str]:
    """Retrieve knowledge of each kind for posts without any; return what `configurations` does."""
    if "image" in kinds:  # before any corpus is indexed or embedded
        _check_images(posts, search.image_dir)
    parts = []
    for kind in kinds:
        posts, how = (_by_text if kind == "text" else _by_image)(posts, search, cache_dir)
        parts.append(how)
    return split_configurations(posts, kinds), "\n\n".join(parts)


def _check_images(posts: DatasetDict, image_dir: str | None) -> None:
    """Raise ValueError where no image can be found, or FileNotFoundError where there is no such folder."""
    from modeling_more.knowledge.pictures import require_images

    if image_dir is None:
        raise ValueError("--retrieval by image needs --image_dir, the folder with the posts' images.")
    if not Path(image_dir).is_dir():
        raise FileNotFoundError(f"--image_dir {image_dir}: no such folder.")
    require_images(image_dir, {split: list(data["image_id"]) for split, data in posts.items()})


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

    specs = search.specs("image")
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
    """Return the names of corpora for a card: ids of the Hub and addresses as they are, of files not the folders."""
    names = (Path(spec).name if Path(spec).exists() else without_folder(spec) for spec in specs)
    return ", ".join(code_span(name.removeprefix(MILVUS)) for name in names)


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
    folder = free_folder(arguments)
    options = {
        key: getattr(arguments, key) for key in ("other_as_misc", "raw_dir", "splitter") if getattr(arguments, key)
    }
    configs, how = configurations(
        name, arguments.retrieval, arguments.data_dir, Search.given(arguments), arguments.cache_dir, **options
    )
    builder = importlib.import_module(f"dataset_scripts.{name}").Builder
    hand_over(configs, make_card(About.of(builder), configs, how, command), folder, arguments)
    return folder


def free_folder(given: argparse.Namespace) -> Path:
    """Return the output folder; raise ValueError where it, or the repository's name, will not do."""
    folder = Path(given.output_dir).expanduser().resolve()
    check_free(folder, given.overwrite_output_dir)
    if given.push_to_hub:
        try:
            validate_repo_id(given.push_to_hub)
            good = "/" in given.push_to_hub
        except ValueError:
            good = False
        if not good:
            raise ValueError(f"--push_to_hub {given.push_to_hub}: no id of the Hub, which is like ORG/NAME.")
    return folder


def hand_over(configs: Configs, card: DatasetCard, folder: Path, given: argparse.Namespace) -> None:
    """Write a set to its folder and, if the command line asks for it, push it."""
    write_folder(configs, card, folder, given.overwrite_output_dir)
    logger.info("Written: %s", folder)
    if glob.has_magic(str(folder)):
        logger.warning("load_dataset takes the name %s for a pattern; run_ner.py and run_re.py read it.", folder)
    if given.push_to_hub:
        push(configs, card, given.push_to_hub, given.private, folder)
        logger.info("Pushed: %s", given.push_to_hub)


def parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of `python dataset_scripts/NAME.py`."""
    made = NamingParser(
        f"dataset_scripts/{name}.py", description=f"Publish {name} as Parquet with a card.", allow_abbrev=False
    )
    made.add_argument("--data_dir", help="folder with the raw files or an archive, or a zip file; default: download")
    add_retrieval_options(made)
    add_output_options(made)
    made.add_argument("--raw_dir", help="raw files from which posts of an archive take their ids")
    made.add_argument("--other_as_misc", action="store_true", help="write the type OTHER as MISC")
    return made


def add_retrieval_options(made: argparse.ArgumentParser) -> None:
    """Add the options of what the posts are read into, and of the knowledge that is retrieved for them."""
    made.add_argument("--splitter", choices=SPLITTERS, help="how raw sentences are split into words")
    made.add_argument("--retrieval", choices=list(KINDS), default="none", help="the knowledge that the rows carry")
    made.add_argument(
        "--knowledge", nargs="+", default=[], help="retrieve from these files, folders, Hub ids; or milvus:URI"
    )
    made.add_argument("--image_knowledge", nargs="+", default=[], help="the same by image (default: --knowledge)")
    made.add_argument("--image_dir", help="the posts' images, files named by image_id")
    made.add_argument("--image_model", help="image tower of transformers (default: CLIP ViT-B/32)")
    made.add_argument("--top_k", type=int, default=10, help="entries for each post (default: 10)")
    made.add_argument("--cache_dir", help="of downloads, Arrow files, indices and retrieved knowledge")


def add_output_options(made: argparse.ArgumentParser, what: str = "data set") -> None:
    """Add the options of where to a data set, or a corpus, goes."""
    made.add_argument("--output_dir", required=True, help=f"folder to write the {what} to")
    made.add_argument("--overwrite_output_dir", action="store_true", help=f"replace the {what} in it")
    made.add_argument("--push_to_hub", metavar="ORG/NAME", help="push there as well")
    made.add_argument("--private", action="store_true", help="make the repository private")


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
        logger.error("%s", without_secrets(" ".join(str(error).split())))
        return 1
    except KeyboardInterrupt:
        raise interrupted() from None
    return 0
