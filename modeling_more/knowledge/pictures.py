"""Open images of any kind as RGB, or raise an error with a short reason."""

import io
import os
import threading
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

#: largest image that is decoded: Pillow warns from here on, because a small file can hold far more
MAX_PIXELS = 89_478_485
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp")
#: what `ImageError.reason` may be
REASONS = ("missing", "truncated", "over-large", "not an image", "damaged")

_OPENING = threading.Lock()  # guards the opening of headers: threads share the list of ignored warnings

Source = str | os.PathLike[str] | bytes | dict[str, Any] | Image.Image | None


T = TypeVar("T")


class ImageError(ValueError):
    """An error for an image that can't be used; `reason` is one of `REASONS`, the message says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


def open_image(source: Source, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image as RGB, decoded in full.

    An animation gives its first frame, transparency turns white, EXIF orientation is applied, 16 bits are scaled to 8.

    Args:
        source: a path, the bytes of a file, {"path", "bytes"} as `datasets.Image(decode=False)` gives it, or an image.
        max_pixels: width times height above which an image is over-large.

    Raises:
        ImageError: it is missing, truncated, over-large, not an image, or damaged.
    """
    if isinstance(source, Image.Image):
        return _decode(source, max_pixels)
    content = read_bytes(source)
    try:
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels decides
            opened = Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise ImageError("over-large", str(error)) from None
    except UnidentifiedImageError:
        raise ImageError("not an image", f"{len(content)} bytes of no format that is read") from None
    except Exception as error:  # decoders raise nearly anything on bytes that only begin like an image
        raise _error(error) from None
    with opened:
        return _decode(opened, max_pixels)


def or_error(function: Callable[[Any], T], argument: Any) -> T | ImageError:
    """Return what the function makes of the argument, or the ImageError that it raises."""
    try:
        return function(argument)
    except ImageError as error:
        return error


def read_bytes(source: Source) -> bytes:
    """Read an image's file, undecoded (a PNG for an image in memory); raise ImageError if there is none."""
    if isinstance(source, dict):
        content = source.get("bytes")
        source = content if content is not None else source.get("path")
    if source is None:
        raise ImageError("missing")
    if isinstance(source, Image.Image):
        stream = io.BytesIO()
        _decode(source, MAX_PIXELS).save(stream, "PNG")
        return stream.getvalue()
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise ImageError("missing", getattr(error, "strerror", None) or str(error)) from None


def find_image(folder: str | Path, image_id: str) -> Path | None:
    """Find the file in a folder that is named by an image id, alone or with one of `SUFFIXES`.

    The result is None if there is no such file or the id leads out of the folder.
    """
    if not image_id or {PurePosixPath(image_id).is_absolute(), PureWindowsPath(image_id).is_absolute()} != {False}:
        return None
    if ".." in PureWindowsPath(image_id).parts:  # splits at both kinds of slash
        return None
    for suffix in ("", *SUFFIXES, *map(str.upper, SUFFIXES)):
        file = Path(folder) / f"{image_id}{suffix}"
        try:
            if file.is_file():
                return file
        except (OSError, ValueError):  # a name too long, or with a null character
            return None
    return None


def require_images(folder: str | Path, image_ids: Mapping[str, Sequence[str | None]]) -> None:
    """Raise ValueError if a folder (as of `find_image`) has no image of any post, or none of the training posts.

    Args:
        image_ids: image ids of the posts, by split.
    """
    given = {split: ids for split, ids in image_ids.items() if ids}
    without = {
        split: ids for split, ids in given.items() if not any(find_image(folder, image_id or "") for image_id in ids)
    }
    if (split := refused_split(given, without)) is not None:
        ids = [image_id for name, ids in without.items() if split in (name, "all") for image_id in ids]
        first = next((image_id for image_id in ids if image_id), None)
        suffix = "" if first and Path(first).suffix.lower() in SUFFIXES else SUFFIXES[0]
        named = f"; an image is a file named by its image_id, like {first}{suffix}"
        hint = named if first else ", which have no image_id"
        raise ValueError(f"{folder} holds the image of none of the {len(ids)} {posts_of(split)}{hint}.")


def refused_split(splits: Collection[str], without: Collection[str]) -> str | None:
    """Return the split that lacks the images it needs: "train"; if none has any, its name or "all"; else None.

    `splits` are those that have posts, `without` those whose posts have no image.
    """
    if "train" in without:
        return "train"
    if splits and len(without) == len(splits):
        return next(iter(splits)) if len(splits) == 1 else "all"
    return None


def posts_of(split: str) -> str:
    """Return what a split's posts are called: "training posts", "test posts", or "posts" for "all" and ""."""
    name = {"train": "training", "all": ""}.get(split, split)
    return f"{name} posts".strip()


def _decode(image: Image.Image, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError("over-large", f"{width} x {height} pixels, at most {max_pixels} are read")
    if width * height == 0:
        raise ImageError("damaged", f"{width} x {height} pixels")
    if ImageFile.LOAD_TRUNCATED_IMAGES:  # a switch of the whole process: half an image would pass as a whole one
        raise RuntimeError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: unset it, or truncated images go unnoticed.")
    try:
        image.load()
        return _to_rgb(_upright(image))
    except Exception as error:
        raise _error(error) from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF data that can't be read turn nothing; the pixels are whole
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits: Pillow's own conversion clips all above 255 to white
        pixels = np.asarray(image).astype(np.float64)
        pixels = np.nan_to_num(pixels, posinf=0.0, neginf=0.0)
        low, high = min(0.0, float(pixels.min())), float(pixels.max())
        if image.mode.startswith("I"):
            full = 255.0 if high <= 255 else 65535.0 if high <= 65535 else high
        else:
            full = 1.0 if high <= 1 else 255.0 if high <= 255 else high
        scaled = (pixels - low) * (255.0 / (full - low))
        image = Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):  # colours multiplied by their alpha
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _error(error: Exception) -> ImageError:
    message = str(error) or type(error).__name__
    cut = isinstance(error, EOFError) or "truncated" in message.lower()
    return ImageError("truncated" if cut else "damaged", message)
