"""Build a knowledge corpus of the images of Wikipedia: images are searched, lead texts of articles are found.

python dataset_scripts/wikipedia_images.py --language en --output_dir OUT --push_to_hub ORG/NAME
python dataset_scripts/wikipedia_images.py --data_dir COPY --language de --main_images --output_dir OUT

The source is wikimedia/wit_base (6.5 million images, 308 GB), or a local copy in its schema. Its `wit_features` hold
parallel lists with one slot for each page that shows the image. Its vectors (`embedding`, of a ResNet-50) are not
read: retrieval embeds images by the tower of the posts' images.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run by path, the repository is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset_scripts._knowledge import Plan, Row, add_image_options, main, parser, stream, wiki_name
from modeling_more.knowledge.pictures import ImageError, open_image

NAME = "wikipedia_images"
SOURCE = "wikimedia/wit_base"
COLUMNS = ("image", "image_url", "wit_features")
DESCRIPTION = (
    "Images of Wikipedia's articles in the language `{language}`, with the lead text of the article as value, from "
    "[wikimedia/wit_base](https://huggingface.co/datasets/wikimedia/wit_base): 6.5 million images, CC BY-SA 4.0; the "
    "licence of each image stands on its page at Wikimedia Commons, the texts are by Wikipedia's contributors.\n\n"
    "**Images that a face fills by more than a tenth are left out there.** Portraits are missing, so a person is "
    "found by an image far less often than a place, a thing or an emblem."
)


def pages(features: Any) -> Iterable[Row]:
    """Yield a row for each page, from the slots of the parallel lists; missing values are None."""
    if isinstance(features, list):  # the same as a list of structs
        yield from (page for page in features if isinstance(page, dict))
        return
    parts = features.items() if isinstance(features, dict) else ()
    lists = {name: values for name, values in parts if isinstance(values, list)}
    for slot in range(max(map(len, lists.values()), default=0)):
        yield {name: values[slot] if slot < len(values) else None for name, values in lists.items()}


def smaller(content: bytes, side: int) -> bytes:
    """Return the image as JPEG with a shorter side of at most `side` pixels; raise ImageError if it can't be read."""
    image = open_image(content)
    if min(image.size) > side:
        scale = side / min(image.size)
        image = image.resize([max(side, round(length * scale)) for length in image.size])
    stream = BytesIO()
    image.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def articles(row: Row, counts: Counter[str], language: str, main_only: bool, side: int | None) -> Iterable[Row]:
    """Yield the articles in the language that show the image; what is left out is counted by reason."""
    image = row["image"]
    content = image.get("bytes") if isinstance(image, dict) else image  # a path in a row is not followed
    if not isinstance(content, bytes):
        counts["without image"] += 1
        return
    shown = [page for page in pages(row["wit_features"]) if page.get("language") == language]
    if not shown:
        counts["in other languages only"] += 1
        return
    if main_only:
        shown = [page for page in shown if page.get("is_main_image")]
        counts["main image of no article"] += not shown
    name = (row["image_url"] or "").rsplit("/", 1)[-1] or None
    found: dict[str, Row] = {}  # a page that shows the image twice is one article
    for page in shown:
        title, lead = page.get("page_title"), page.get("context_page_description")
        title, lead = (text.strip() if isinstance(text, str) else "" for text in (title, lead))
        if not title or not lead:
            counts["pages without title or lead text"] += 1
            continue
        article = page.get("page_url") or f"{wiki_name(language)}:{title}"
        found[article] = {"id": article, "title": title.replace("_", " "), "text": lead, "lead": lead}
    if found and side:
        try:
            content = smaller(content, side)
        except ImageError as error:
            counts[f"image {error.reason}"] += 1
            return
    for entry in found.values():
        yield {**entry, "image": {"bytes": content, "path": name}}


def plan(given: argparse.Namespace) -> Plan:
    source, identity, date = stream(SOURCE, None, COLUMNS, given.data_dir)
    if given.max_side is not None and given.max_side < 1:
        raise ValueError(f"--max_side must be at least 1, not {given.max_side}.")
    return Plan(
        name=NAME,
        source=source,
        identity=identity,
        convert=lambda row, counts: articles(row, counts, given.language, given.main_images, given.max_side),
        images=True,
        options={"main_images": given.main_images, "max_side": given.max_side},
        language=given.language,
        license="cc-by-sa-4.0",
        date=date,
        description=DESCRIPTION.format(language=given.language),
    )


def run(arguments: Sequence[str] | None = None) -> int:
    made = parser(NAME, __doc__)
    made.add_argument("--data_dir", help=f"folder or file with a copy of {SOURCE}; default: stream it from the Hub")
    made.add_argument("--main_images", action="store_true", help="only the main image of each article")
    made.add_argument("--max_side", type=int, help="make images smaller, to a shorter side of so many pixels, as JPEG")
    add_image_options(made)
    return main(plan, made, arguments)


if __name__ == "__main__":
    sys.exit(run())
