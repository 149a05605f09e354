"""Build a knowledge corpus of the articles of Wikipedia: sentences are searched, paragraphs are found.

python dataset_scripts/wikipedia_text.py --date 20231101 --language en --output_dir OUT --push_to_hub ORG/NAME
python dataset_scripts/wikipedia_text.py --data_dir COPY --date 20231101 --language de --output_dir OUT

The source is wikimedia/wikipedia (rows id, url, title, text), or a local copy in its schema.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

if __name__ == "__main__":  # run by path, the repository is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset_scripts._knowledge import Plan, Row, main, parser, stream, wiki_name

NAME = "wikipedia_text"
SOURCE = "wikimedia/wikipedia"
DATE = "20231101"
COLUMNS = ("id", "title", "text")
DESCRIPTION = (
    "The articles of Wikipedia in the language `{language}`, from [wikimedia/wikipedia](https://huggingface.co/"
    "datasets/wikimedia/wikipedia), by Wikipedia's contributors: CC BY-SA 4.0 (until June 2023: 3.0), the text mostly "
    "under the GFDL too. The id of an article is its wiki and its number there."
)


def articles(row: Row, counts: Counter[str], wiki: str) -> Iterable[Row]:
    """Yield the article of a row; one without title or text is counted."""
    if row["id"] is None or not row["title"]:
        counts["without id or title"] += 1
    elif not (row["text"] or "").strip():
        counts["without text"] += 1
    else:
        yield {"id": f"{wiki}:{row['id']}", "title": row["title"], "text": row["text"]}


def in_copy(folder: str, date: str | None, language: str) -> tuple[Path, str | None]:
    """Return where a local copy holds the articles, perhaps in a folder `date.language` as the source, and their date.

    Raises:
        ValueError: none of its folders, or several, are of that date and language.
    """
    root = Path(folder).expanduser()
    found = sorted(path for path in root.glob("[0-9]*.*") if path.is_dir())
    if not found:
        return root, date
    wanted = [path for path in found if path.name == f"{date or path.name.split('.')[0]}.{language}"]
    if len(wanted) != 1:
        held = ", ".join(path.name for path in found)
        raise ValueError(f"{root} holds {held}; --date and --language should name one of them.")
    return wanted[0], wanted[0].name.split(".")[0]


def plan(given: argparse.Namespace) -> Plan:
    date, copy = given.date, given.data_dir
    if copy is None:
        date = date or DATE
    else:
        folder, date = in_copy(copy, date, given.language)
        copy = str(folder)
    source, identity, _ = stream(SOURCE, f"{date}.{given.language}", COLUMNS, copy)
    wiki = wiki_name(given.language)
    return Plan(
        name=NAME,
        source=source,
        identity=identity,
        convert=lambda row, counts: articles(row, counts, wiki),
        language=given.language,
        license="cc-by-sa-3.0" if date and date < "202306" else "cc-by-sa-4.0",
        date=date,
        description=DESCRIPTION.format(language=given.language),
    )


def run(arguments: Sequence[str] | None = None) -> int:
    made = parser(NAME, __doc__)
    made.add_argument("--data_dir", help=f"folder or file with a copy of {SOURCE}; default: stream it from the Hub")
    return main(plan, made, arguments)


if __name__ == "__main__":
    sys.exit(run())
