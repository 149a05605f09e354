"""Publish your own posts under your own name: entities, or relations, from files of any format that is read.

python dataset_scripts/posts.py --train_file train.jsonl --validation_file dev.conll --name "Harbour news" \\
    --license cc-by-4.0 --source "Our own reports of 2026" --retrieval text --knowledge FILE... --output_dir OUT
python dataset_scripts/posts.py --test_file pairs.csv --name Pairs --license cc0-1.0 --retrieval image \\
    --image_dir PICTURES --knowledge ORG/CORPUS --output_dir OUT --push_to_hub ORG/NAME --private
"""

import argparse
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

if __name__ == "__main__":  # run by path, the repository is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets import Dataset, DatasetDict

from dataset_scripts._archives import SPLITS
from dataset_scripts._builders import entity_features, relation_features, stored, text_features
from dataset_scripts._card import About, make_card
from dataset_scripts._publish import (
    KINDS,
    Search,
    add_output_options,
    add_retrieval_options,
    exit_code,
    free_folder,
    hand_over,
    retrieved,
    split_configurations,
)
from modeling_more.data.relation_formats import holds_pairs
from modeling_more.data.rows import with_equal_columns
from modeling_more.markdown import code_span, escaped, markdown_table
from modeling_more.naming import NamingParser, nearest, without_folder
from modeling_more.posts import KNOWLEDGE_COLUMNS, Posts
from modeling_more.words import DEFAULT_SPLITTER

logger = logging.getLogger("dataset_scripts.posts")

#: licences of texts and data as the Hub spells them; of others the card has the words, its metadata "other"
LICENSES = (
    *("afl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "c-uda", "cc0-1.0"),
    *("cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0"),
    *("cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0"),
    *("cc-by-sa-3.0", "cc-by-sa-4.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "ecl-2.0"),
    *("etalab-2.0", "eupl-1.1", "eupl-1.2", "gfdl", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "mit", "mpl-2.0", "odbl"),
    *("odc-by", "pddl", "unlicense", "wtfpl", "zlib"),
)


def publish(given: argparse.Namespace, command: Sequence[str]) -> Path:
    """Publish what the command line asks for, and return the folder."""
    about = describe(given)
    folder = free_folder(given)
    search = Search.given(given)
    search.check(given.retrieval)
    posts = read_files(given, search.searches(given.retrieval))
    kinds = KINDS[given.retrieval]
    if search.searches(given.retrieval):
        configs, knowledge = retrieved(posts, kinds, search, given.cache_dir)
    else:
        configs, knowledge = split_configurations(posts, kinds), _told(posts, kinds)
    hand_over(configs, make_card(about, configs, knowledge, command), folder, given)
    return folder


def describe(given: argparse.Namespace) -> About:
    """Return what the user says of the posts, for the card.

    Raises:
        ValueError: no name, posts pushed without a licence, or a language that is no code.
    """
    name = " ".join(given.name.split())
    if not name:
        raise ValueError("--name is empty: give the name of your data set.")
    license, source = " ".join((given.license or "").split()), without_folder((given.source or "").strip())
    if given.push_to_hub and not license:
        raise ValueError(
            "--push_to_hub needs --license: what others may do with the posts, like cc-by-4.0, or in your own words."
        )
    if given.language and not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*", given.language):
        raise ValueError(f"--language {given.language}: no code of a language, such as en, pt or zh-Hant.")
    known = license.lower() in LICENSES
    if license and not known and (near := nearest(license, LICENSES)):
        logger.warning("--license %s is shown as terms of your own%s", license, near)
    credit = f"Source: {escaped(source)}" if source else "The publisher names no source."
    terms = f"Licence: {code_span(license.lower()) if known else escaped(license)}" if license else ""
    return About(
        title=name,
        credit=credit,
        terms=terms or "The publisher names no licence.",
        license=(license.lower() if known else "other") if license else None,
        license_name="see-card" if license and not known else None,
        language=given.language,
    )


def read_files(given: argparse.Namespace, bare: bool) -> DatasetDict:
    """Read the files as run_ner.py or run_re.py does, and return their rows as they are published.

    Args:
        bare: whether knowledge that the files hold is left out, as it is retrieved.

    Raises:
        ValueError: files of both tasks, or what they hold can't be published.
        FileNotFoundError: a file is not there.
    """
    from modeling_more.data.sources import is_labelled, load_source  # here, as it loads torch
    from modeling_more.data.tasks import ENTITIES, RELATIONS

    files = {split: path for split in SPLITS if (path := getattr(given, f"{split}_file"))}
    if not files:
        raise ValueError("there are no posts: give --train_file, --validation_file or --test_file.")
    task = RELATIONS if _task(files, given) == "relations" else ENTITIES
    kinds = KINDS[given.retrieval]
    stored_in = "image" if kinds == ("image",) else "text"  # what the authors' archives hold besides the words
    splitter = given.splitter or DEFAULT_SPLITTER
    try:
        source = load_source(task, files=files, retrieval=stored_in, splitter=splitter, columns=given.columns)
    except ValueError as error:  # which points to the script of the other task
        raise ValueError(str(error).replace(task.foreign_data, "this is data of the other --task")) from None
    for split, rows in source.rows.items():
        if not is_labelled(rows, task) and (split != "test" or len(files) == 1):
            raise ValueError(
                f"{files[split]}: all labels are hidden (-1 or null); only those of --test_file may be, beside posts "
                "with labels."
            )
    columns = [] if bare else [f"knowledge_{kind}" for kind in kinds]
    for split, rows in source.rows.items():
        for column in columns:
            if not any(row.get(column) for row in rows):
                raise ValueError(
                    f"{files[split]}: the posts hold no {column}; give --knowledge to retrieve from, or such a column."
                )
    rows = [row for rows in source.rows.values() for row in rows]
    _without_folders(rows, given.image_dir)
    for column in KNOWLEDGE_COLUMNS:
        if column not in columns:
            for row in rows:
                row.pop(column, None)
    with_equal_columns(rows)
    features = (relation_features if task is RELATIONS else entity_features)(source.types, columns)
    if "text" in rows[0]:
        features.update(text_features())
    return DatasetDict(
        {
            split: Dataset.from_dict({name: [stored(row)[name] for row in rows] for name in features}, features)
            for split, rows in source.rows.items()
        }
    )


def _task(files: Mapping[str, str], given: argparse.Namespace) -> str:
    """Return the task that the options name, or else that of the files."""
    if given.task:
        return str(given.task)
    tasks = {path: "relations" if holds_pairs(path, given.columns) else "entities" for path in files.values()}
    if len(set(tasks.values())) > 1:
        told = ", ".join(f"{path} holds {task}" for path, task in tasks.items())
        raise ValueError(f"{told}: publish entities and relations as two sets.")
    return next(iter(tasks.values()))


def _without_folders(rows: Posts, image_dir: str | None) -> None:
    """Name images that files give by an absolute path by their place in the folder of the images, or their name alone.

    Raises:
        ValueError: two images get one name.
    """
    homes = [find(image_dir) for find in (os.path.abspath, os.path.realpath)] if image_dir else []
    named: dict[str, str] = {}  # name -> what it names: itself in the folder, or a path elsewhere
    shortened = 0
    for row in rows:
        path = name = row["image_id"] or ""
        if PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute():
            whole = os.path.normpath(path)
            inside = [os.path.relpath(whole, home) for home in homes if Path(whole).is_relative_to(home)]
            row["image_id"] = name = inside[0] if inside else PureWindowsPath(path).name
            path = name if inside else path
            shortened += 1
        if named.setdefault(name, path) != path:
            raise ValueError(f"{named[name]} and {path} would both be published as the image {name}; rename one.")
    if shortened:
        logger.warning("%d posts name their image by a path of this machine, which is left out.", shortened)


def _told(posts: DatasetDict, kinds: Sequence[str]) -> str:
    """Return a paragraph on knowledge that the files came with."""
    if not kinds:
        return ""
    counts = [
        {"split": split, "posts": len(data)}
        | {f"with `knowledge_{kind}`": sum(map(bool, data[f"knowledge_{kind}"])) for kind in kinds}
        for split, data in posts.items()
    ]
    return f"As the files of the posts hold it; they do not tell how it was retrieved.\n\n{markdown_table(counts)}"


def parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    made = NamingParser(
        "dataset_scripts/posts.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for split in SPLITS:
        made.add_argument(
            f"--{split}_file",
            help=f"the {split} posts: whatever run_ner.py or run_re.py reads (CoNLL, JSONL, CSV, TSV, Parquet, MNRE …)"
            + (", whose labels may be hidden (-1 or null)" if split == "test" else ""),
        )
    made.add_argument(
        "--task", choices=["entities", "relations"], help="what the labels are (default: the files tell)"
    )
    made.add_argument("--name", required=True, help="of the data set, for the card")
    made.add_argument(
        "--license",
        help="what others may do with the posts, as the Hub spells it (cc-by-4.0, cc0-1.0, odc-by …), or in your own "
        "words; --push_to_hub needs it",
    )
    made.add_argument("--source", help="where the posts come from, in your own words, for the card")
    made.add_argument("--language", help="of the posts, as the Hub spells it (en, pt, zh-Hant …), for the card")
    made.add_argument(
        "--columns", nargs=2, type=int, metavar=("WORD", "LABEL"), help="columns of CoNLL files, counted from 1"
    )
    add_retrieval_options(made)
    add_output_options(made)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish the posts, and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = parser().parse_args(words)
    command = ["python", "dataset_scripts/posts.py", *map(without_folder, words)]
    return exit_code(lambda: publish(given, command))


if __name__ == "__main__":
    sys.exit(main())
