"""Publish a data set: a folder of Parquet files with its card, which `load_dataset` reads, and the same on the Hub."""

import argparse
import importlib
import logging
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from datasets import __version__ as datasets_version
from huggingface_hub import DatasetCard, DatasetCardData, HfApi

from dataset_scripts import RETRIEVALS, load
from modeling_more.model_card import markdown_table, scrub_command
from modeling_more.tagging import tags_to_spans
from modeling_more.words import STYLES

logger = logging.getLogger(__name__)

TAG = "modeling-more"
WHAT = {
    "none": "the posts and their entities",
    "text": "the same posts with `knowledge_text`, knowledge retrieved by the post's words",
    "image": "the same posts with `knowledge_image`, knowledge retrieved by the post's image",
}


def configurations(
    name: str,
    retrieval: str = "none",
    data_dir: str | Path | None = None,
    knowledge: Sequence[str] = (),
    top_k: int = 10,
    cache_dir: str | Path | None = None,
    **builder_options: Any,
) -> tuple[dict[str, DatasetDict], str]:
    """The configurations to publish by name, "none" first, and a paragraph on where their knowledge is from.

    With `knowledge` (files, saved corpora or Hub ids) it is retrieved for every post; else the source must hold it.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: as `load`; or `knowledge` with a retrieval other than "text".
    """
    if knowledge and retrieval != "text":
        raise ValueError(f"--knowledge is for --retrieval text, not for {retrieval}: give --retrieval text.")
    if knowledge:
        from modeling_more.knowledge import BM25Retriever, attach_text_knowledge, load_knowledge

        posts = load(name, "none", data_dir, cache_dir, **builder_options)
        corpus = load_knowledge(knowledge, cache_dir)
        retriever = BM25Retriever.from_corpus(corpus)
        attached, report = attach_text_knowledge(posts, retriever, top_k=top_k, cache_dir=cache_dir)
        counts = [
            {"": key.replace("_", " "), "count": value} for key, value in asdict(report).items() if key != "cached"
        ]
        files = ", ".join(f"`{Path(spec).name}`" for spec in knowledge)
        how = (
            f"Retrieved by BM25 (sentences as keys, paragraphs as values, at most {top_k} for each post) from {files}:"
            f" {len(corpus)} sentences, fingerprint `{corpus.fingerprint}`. Retrieval sees the words of a post, never "
            f"its labels; an entry that holds the post itself is left out.\n\n{markdown_table(counts)}"
        )
        return {"none": posts, "text": attached}, how
    found = load(name, retrieval, data_dir, cache_dir, **builder_options)
    if retrieval == "none":
        return {"none": found}, ""
    how = "As the source stores it: one entry for each post, without title and score."
    return {"none": found.remove_columns(f"knowledge_{retrieval}"), retrieval: found}, how


def write_folder(configs: dict[str, DatasetDict], card: DatasetCard, folder: Path, overwrite: bool = False) -> None:
    """Write `CONFIG/SPLIT-00000-of-00001.parquet` and README.md beside `folder`, then move all of it there.

    Raises:
        ValueError: the folder holds something already, and `overwrite` is off or it is no published data set.
    """
    check_free(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, splits in configs.items():
            (beside / name).mkdir()
            for split, rows in splits.items():
                rows.to_parquet(str(beside / name / f"{split}-00000-of-00001.parquet"))
        card.save(beside / "README.md")
        beside.chmod(0o755)  # mkdtemp's folder is closed to others
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_free(folder: Path, overwrite: bool) -> None:
    """ValueError where `write_folder` would refuse; asked before the work is done."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    readme = folder / "README.md"
    ours = readme.is_file() and f"- {TAG}\n" in readme.read_text(encoding="utf-8", errors="replace")
    if not ours:
        raise ValueError(f"{folder}: holds something that is no published data set; give another --output_dir.")
    if not overwrite:
        raise ValueError(f"{folder}: holds a published data set; give another --output_dir or --overwrite_output_dir.")


def make_card(builder: Any, configs: dict[str, DatasetDict], knowledge: str, command: Sequence[str]) -> DatasetCard:
    """The card: configurations, counts, source and terms, how the knowledge was retrieved."""
    data_files = {
        name: [{"split": split, "path": f"{name}/{split}-*"} for split in splits] for name, splits in configs.items()
    }
    data = DatasetCardData(
        language="en",
        license="other",
        license_name="see-card",
        pretty_name=builder.TITLE,
        task_categories=["token-classification"],
        tags=["named-entity-recognition", "retrieval", TAG],
        configs=[
            {"config_name": name, **({"default": True} if name == "none" else {}), "data_files": files}
            for name, files in data_files.items()
        ],
    )
    sections = [
        f"# {builder.TITLE}",
        "Posts as words with named entities (BIO), as read by the MoRe library.",
        "## Configurations",
        markdown_table([{"name": f"`{name}`", "rows hold": WHAT[name]} for name in configs]),
        f'```python\nimport datasets\n\nposts = datasets.load_dataset("ORG/NAME", "{list(configs)[-1]}")\n```',
        "## Counts",
        markdown_table(_counts(configs["none"])),
        "Entities as seqeval reads them: an I- that continues nothing begins one.",
        *(["## Knowledge", knowledge] if knowledge else []),
        "## Source and terms",
        builder.CREDIT,
        "The copyrights of the posts stay with their authors. Whoever publishes this set has to see that they may.",
        "## Made by",
        f"```bash\n{scrub_command(command)}\n```\n\ndatasets {datasets_version}",
    ]
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _counts(posts: DatasetDict) -> list[dict[str, Any]]:
    rows = []
    for split, data in posts.items():
        labels = data.features["ner_tags"].feature
        types = list(dict.fromkeys(name[2:] for name in labels.names if name != "O"))
        tags = data[:]["ner_tags"]
        found = Counter(span.type for row in tags for span in tags_to_spans(labels.int2str(row)))
        counts = {"posts": len(data), "words": sum(map(len, tags)), "entities": found.total()}
        rows.append({"split": split, **counts, **{type_: found[type_] for type_ in types}})
    return rows


def push(configs: dict[str, DatasetDict], card: DatasetCard, repo_id: str, private: bool, folder: Path) -> None:
    """Push every configuration, "none" as the default, then the card with what the Hub holds of other configurations.

    Raises:
        ConnectionError: the upload failed; the sentence says how to push the folder that is written already.
    """
    try:
        for name, splits in configs.items():
            splits.push_to_hub(repo_id, config_name=name, private=private or None)
        merged = DatasetCard.load(repo_id)
        for key, value in card.data.to_dict().items():
            if key != "configs":
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
        raise failed_push(repo_id, folder, error) from error


def failed_push(repo_id: str, folder: Path, error: Exception) -> ConnectionError:
    """The error that says how to push what is written already."""
    again = f"hf upload {repo_id} {folder} --repo-type dataset"
    return ConnectionError(f"The upload to {repo_id} failed ({error}); {folder} is whole: {again}")


def publish(arguments: argparse.Namespace, name: str, command: Sequence[str]) -> Path:
    """What the command line asks for; returns the folder."""
    folder = Path(arguments.output_dir).expanduser().resolve()
    check_free(folder, arguments.overwrite_output_dir)
    options = {
        key: getattr(arguments, key) for key in ("other_as_misc", "raw_dir", "style") if getattr(arguments, key)
    }
    configs, how = configurations(
        name,
        arguments.retrieval,
        arguments.data_dir,
        arguments.knowledge,
        arguments.top_k,
        arguments.cache_dir,
        **options,
    )
    builder = importlib.import_module(f"dataset_scripts.{name}").Builder
    card = make_card(builder, configs, how, command)
    write_folder(configs, card, folder, arguments.overwrite_output_dir)
    logger.info("Written: %s", folder)
    if arguments.push_to_hub:
        push(configs, card, arguments.push_to_hub, arguments.private, folder)
        logger.info("Pushed: %s", arguments.push_to_hub)
    return folder


def parser(name: str) -> argparse.ArgumentParser:
    """The options of `python dataset_scripts/NAME.py`."""
    made = argparse.ArgumentParser(
        f"dataset_scripts/{name}.py", description=f"Publish {name} as Parquet with a card.", allow_abbrev=False
    )
    made.add_argument("--data_dir", help="folder with the raw files or an archive, or a zip file; default: download")
    made.add_argument("--retrieval", choices=RETRIEVALS, default="none", help="the knowledge that the rows carry")
    made.add_argument("--knowledge", nargs="+", default=[], help="retrieve from these files, folders or Hub ids")
    made.add_argument("--top_k", type=int, default=10, help="entries for each post (default: 10)")
    made.add_argument("--output_dir", required=True, help="folder to write")
    made.add_argument("--overwrite_output_dir", action="store_true", help="replace the data set in it")
    made.add_argument("--push_to_hub", metavar="ORG/NAME", help="push there as well")
    made.add_argument("--private", action="store_true", help="make the repository private")
    made.add_argument("--cache_dir", help="of downloads, Arrow files, indices and retrieved knowledge")
    made.add_argument("--raw_dir", help="raw files from which posts of an archive take their ids")
    made.add_argument("--other_as_misc", action="store_true", help="write the type OTHER as MISC")
    made.add_argument("--style", choices=STYLES, help="how raw sentences are split into words")
    return made


def without_folder(word: str) -> str:
    """The card is published: it names files, not where they lie on this machine."""
    return Path(word).name if Path(word).is_absolute() else word


def main(name: str, arguments: Sequence[str] | None = None) -> int:
    """Run the publisher; the exit code, 1 after one sentence on the error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parser(name).parse_args(given)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("dataset_scripts").setLevel(logging.INFO)
    try:
        publish(parsed, name, ["python", f"dataset_scripts/{name}.py", *map(without_folder, given)])
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        return 1
    return 0
