"""Build a knowledge corpus from your own articles, JSON Lines whose columns may have any names.

python dataset_scripts/corpus.py --data_dir FILE... --output_dir OUT
python dataset_scripts/corpus.py --data_dir flags.jsonl --id_column code --image_column file --output_dir OUT
"""

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

if __name__ == "__main__":  # run by path, the repository is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets import IterableDataset

from dataset_scripts._knowledge import Plan, Row, add_image_options, local_files, main, parser, stamps
from modeling_more.foreign import file_lines, parse_json, parse_object

logger = logging.getLogger(__name__)

NAME = "corpus"


def lines(files: Sequence[str]) -> Iterator[Row]:
    """Yield {"where", "number", "folder", "row"} of each line that is not blank; `number` counts all articles, `row`
    is JSON, as its columns may be of any type.

    Raises:
        ValueError: a line that is too long or not UTF-8, or a damaged file.
    """
    articles = 0
    for file in files:
        for where, text in file_lines(file):
            articles += 1
            yield {"where": where, "number": articles, "folder": str(Path(file).parent), "row": text}


def article(line: Row, counts: Counter[str], columns: dict[str, str], image_dir: str | None) -> Iterable[Row]:
    """Yield the article of a line.

    Raises:
        ValueError: the line is no JSON object, or lacks title or id (where the first one has an id).
    """
    where = line["where"]
    row = parse_object(line["row"], where)
    made: Row = {}
    for name in ("id", "title", "text", "lead"):
        column = columns.get(name)
        if column is None:
            continue
        value = row.get(column)
        if name in ("id", "title") and value is None:
            there = ", ".join(row)
            raise ValueError(
                f"{where}: no column {column}, only {there}; --{name}_column names the one with the {name}."
            )
        if isinstance(value, list | dict):
            raise ValueError(f"{where}: the column {column} holds a {type(value).__name__}, not a text.")
        made[name] = "" if value is None else str(value)
    if "id" not in columns:
        if row.get("id") not in (None, ""):
            raise ValueError(f"{where}: an id, while the first article has none; give all articles one, or none.")
        made = {"id": f"article-{line['number']}", **made}
    if not made["id"].strip():
        raise ValueError(f"{where}: the column {columns['id']} is empty; give all articles an id, or none.")
    counts["without text"] += not made["text"].strip()
    if "image" in columns:
        path = row.get(columns["image"])
        counts["without image"] += not path
        if path and not isinstance(path, str):
            raise ValueError(f"{where}: the column {columns['image']} holds a {type(path).__name__}, not a path.")
        # the file is read when the corpus is built, which also notices that it changed, and that it lies elsewhere
        image = {"bytes": None, "path": os.path.join(image_dir or line["folder"], path)} if path else None
        made |= {"lead": made.get("lead", made["text"]), "image": image}
    yield made


def _has_id(line: str) -> bool:
    """Return whether a line has an id, or is no JSON, which is told where it is read."""
    try:
        row = parse_json(line, "")
    except ValueError:
        return True
    return not isinstance(row, dict) or row.get("id") not in (None, "")


def plan(given: argparse.Namespace) -> Plan:
    files = [file for path in given.data_dir for file in local_files(Path(path))]
    if wrong := [file for file in files if not file.name.endswith((".jsonl", ".jsonl.gz"))]:
        raise ValueError(f"{wrong[0]}: not a .jsonl or .jsonl.gz file, from which a corpus is built.")
    if (given.image_model or given.image_index) and not given.image_column:
        raise ValueError("--image_model and --image_index are for corpora with images: give --image_column, too.")
    names = ("id", "title", "text", "lead", "image")
    columns = {name: getattr(given, f"{name}_column") for name in names if getattr(given, f"{name}_column")}
    image_dir = str(Path(given.image_dir).expanduser().resolve()) if given.image_dir else None
    if given.id_column is None and (first := next(lines([str(file) for file in files]), None)) is not None:
        if _has_id(first["row"]):
            columns["id"] = "id"
        else:
            logger.warning(
                "%s: no id: all articles are numbered; --id_column names another column with ids.", first["where"]
            )
    folders = list(dict.fromkeys(str(file.parent) for file in files))
    names_of_files: Sequence[str] = [str(file) for file in files]
    if "id" not in columns:  # a list is read file by file, each from article 1
        names_of_files = tuple(names_of_files)
    source = IterableDataset.from_generator(lines, gen_kwargs={"files": names_of_files})
    return Plan(
        name=NAME,
        source=source,
        identity=stamps(files),
        convert=lambda row, counts: article(row, counts, columns, image_dir),
        images="image" in columns,
        image_dirs=[image_dir] if image_dir else folders,
        options={"columns": columns, "image_dir": image_dir, "folders": [str(file.parent) for file in files]},
        language=given.language,
        description=given.description,
    )


def run(arguments: Sequence[str] | None = None) -> int:
    made = parser(NAME, __doc__)
    made.add_argument("--data_dir", nargs="+", required=True, help="JSON Lines files (.jsonl, .jsonl.gz) or folders")
    made.add_argument("--id_column", help="(default: id, or where the first article has none, all are numbered)")
    made.add_argument("--title_column", default="title", help="(default: title)")
    made.add_argument("--text_column", default="text", help="(default: text)")
    made.add_argument("--lead_column", help="what an image stands for; default: the whole text")
    made.add_argument("--image_column", help="files of images in the folder of the JSON Lines file")
    made.add_argument("--image_dir", help="the folder they lie in instead; images elsewhere are not read")
    add_image_options(made)
    made.add_argument("--description", default="", help="where the texts come from, for the card")
    return main(plan, made, arguments)


if __name__ == "__main__":
    sys.exit(run())
