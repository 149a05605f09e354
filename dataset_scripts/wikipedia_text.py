"""A knowledge corpus of the articles of Wikipedia: sentences are searched, paragraphs are found.

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
    """The article of a row; one without title or text is counted."""
    if row["id"] is None or not row["title"]:
        counts["without id or title"] += 1
    elif not (row["text"] or "").strip():
        counts["without text"] += 1
    else:
        yield {"id": f"{wiki}:{row['id']}", "title": row["title"], "text": row["text"]}


def plan(given: argparse.Namespace) -> Plan:
    date = given.date or (DATE if given.data_dir is None else None)
    source, identity, _ = stream(SOURCE, f"{date}.{given.language}", COLUMNS, given.data_dir)
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
