"""Read captions of the posts' images, which `--query caption` searches for."""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..foreign import file_lines, line_objects
from ..posts import check_string

logger = logging.getLogger(__name__)

_IMAGE_SUFFIX = re.compile(r"\.(?:jpe?g|png|gif|webp|bmp)$", re.IGNORECASE)
_WORDS = re.compile(r"\w+")
_SHARED = 0.01  # a caption of more than this share of the images describes none of them


def image_key(image_id: str) -> str:
    """Return an image id without the suffix of an image file, as posts and captions may have it or not."""
    return _IMAGE_SUFFIX.sub("", image_id)


def read_captions(path: str | Path) -> dict[str, str]:
    """Read captions by image id, from lines `ID.jpg :caption` or from JSONL {"image_id", "caption"}.

    Image ids lose their suffix (`image_key`). Empty captions are left out, degenerate ones (`degenerate_captions`) are
    kept; warnings count both.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line of neither form, two captions of one image, no caption at all; names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The captions file {path} does not exist.")
    captions: dict[str, str] = {}
    empty = 0
    for where, image, caption in _read(path):
        image, caption = image_key(image), " ".join(caption.split())
        if not image:
            raise ValueError(f"{where}: the caption has no image id.")
        if captions.get(image, caption) != caption:
            raise ValueError(f"{where}: image {image} has another caption before; give one for each image.")
        if caption:
            captions[image] = caption
        else:
            empty += 1
    if not captions:
        raise ValueError(
            f"{path} holds no caption: lines `ID.jpg :caption` or JSONL with image_id and caption are read."
        )
    if empty:
        logger.warning("%s: %d images have an empty caption, as if they had none.", path, empty)
    repeated, shared = degenerate_captions(captions)
    if repeated or shared:
        logger.warning(
            "%s: of %d captions, %d repeat one or two words, and %d are the same for more than 1 %% of the images.",
            path, len(captions), repeated, shared,
        )  # fmt: skip
    return captions


def degenerate_captions(captions: Mapping[str, str]) -> tuple[int, int]:
    """Count the captions (of six words or more) that repeat one or two words, and those that are the same for more
    than 1 % of the images (and more than 10): their writer saw nothing in the image."""
    words = [_WORDS.findall(caption.lower()) for caption in captions.values()]
    repeated = sum(len(found) >= 6 and len(set(found)) <= 2 for found in words)
    often = max(10, _SHARED * len(captions))
    return repeated, sum(count for count in Counter(captions.values()).values() if count > often)


def _read(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (place, image id, caption) of each line."""
    if path.suffix == ".jsonl":
        for where, row in json_lines(path):
            image, caption = row.get("image_id"), row.get("caption")
            if not isinstance(image, str) or not isinstance(caption, str):
                raise ValueError(f'{where}: "image_id" and "caption" must both be there, as strings.')
            yield where, image, caption
        return
    for where, line in file_lines(path):
        image, colon, caption = line.partition(" :")
        if not colon:
            raise ValueError(f"{where}: not of the form `ID.jpg :caption`; JSONL must be called .jsonl.")
        yield where, image.strip(), caption


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) of each line of a JSONL file.

    Raises:
        ValueError: as `line_objects`, or half a surrogate pair; names file and line.
    """
    for where, row in line_objects(path):
        check_string(json.dumps(row, ensure_ascii=False), where, "the line")
        yield where, row
