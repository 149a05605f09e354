"""Open images as RGB, or raise an error with a short reason: few formats, sizes known before content, few at once."""

import io
import math
import os
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps, JpegImagePlugin, UnidentifiedImageError

from ..foreign import require_regular, resolve_inside

#: what is opened, whatever a file is called: photos, drawings, animations, scans; never what starts another program
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
#: largest image that is decoded: Pillow warns from here on, because a small file can hold far more
MAX_PIXELS = 89_478_485
#: size of a file from which on it is not read
MAX_BYTES = 100_000_000
#: pixels from which on an image is made smaller as it is opened; up to here not one pixel changes (2048 x 2048)
LARGE = 1 << 22
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp")
#: what `ImageError.reason` may be
REASONS = ("missing", "truncated", "over-large", "not an image", "damaged", "outside the folder")
#: threads that decode images of one list
THREADS = min(16, os.cpu_count() or 1)

_OPENING = threading.Lock()  # guards the opening of headers: threads share the list of ignored warnings
_TILE = (4096, 256)  # pixels of a large image that are made RGB at once

T = TypeVar("T")


class ImageError(ValueError):
    """An error for an image that can't be used; `reason` is one of `REASONS`, the message says more.

    `path` is what a row named outside its folder.
    """

    def __init__(self, reason: str, detail: str = "", path: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.path = path


Source = str | os.PathLike[str] | bytes | dict[str, Any] | Image.Image | ImageError | None


class _Budget:
    """A number of bytes that threads share; who wants more than is left waits, for all of it until it is alone."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, wanted: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + wanted <= self.limit)
            self._taken += wanted
        try:
            yield
        finally:
            with self._changed:
                self._taken -= wanted
                self._changed.notify_all()


_DECODING = _Budget(512_000_000)  # a few photos, or one of the largest images


def open_image(source: Source, max_pixels: int = MAX_PIXELS, folder: str | Path | None = None) -> Image.Image:
    """Open an image as RGB, decoded in full.

    An animation gives its first frame, transparency turns white, EXIF orientation is applied, 16 bits are scaled to 8.
    An image of more than `LARGE` pixels comes smaller, of at most so many: no tower reads more, and lists of images
    stay small. The formats are `FORMATS`, told by the content; files have at most `MAX_BYTES`.

    Args:
        source: a path, the bytes of a file, {"path", "bytes"} as `datasets.Image(decode=False)` gives it, or an image.
            A path is the caller's own word; one in a dict is a row's, and only followed inside `folder`.
        max_pixels: width times height above which an image is over-large.
        folder: what `source["path"]` must lie in.

    Raises:
        ImageError: it is missing, truncated, over-large, not an image, damaged, or outside the folder.
    """
    if isinstance(source, Image.Image):
        return _decode(source, max_pixels)
    with _file(source, folder) as file:
        try:
            with _OPENING, warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels decides
                opened = Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise ImageError("over-large", str(error)) from None
        except UnidentifiedImageError:
            raise ImageError("not an image", f"its content is none of {', '.join(FORMATS)}") from None
        except Exception as error:  # decoders raise nearly anything on bytes that only begin like an image
            raise _error(error) from None
        with opened:
            return _decode(opened, max_pixels, ours=True)


def or_error(function: Callable[[Any], T], argument: Any) -> T | ImageError:
    """Return what the function makes of the argument, or the ImageError that it raises."""
    try:
        return function(argument)
    except ImageError as error:
        return error


def read_bytes(source: Source, folder: str | Path | None = None) -> bytes:
    """Read an image's file, undecoded (a PNG for an image in memory); raise ImageError if there is none.

    Args:
        folder: see `open_image`.
    """
    if isinstance(source, Image.Image):
        stream = io.BytesIO()
        _decode(source, MAX_PIXELS).save(stream, "PNG")
        return stream.getvalue()
    with _file(source, folder) as file:
        try:
            return file.read()
        except OSError as error:
            raise ImageError("missing", error.strerror or str(error)) from None


@contextmanager
def _file(source: Any, folder: str | Path | None) -> Iterator[BinaryIO]:
    """Open what holds an undecoded image: a regular file, or bytes."""
    if isinstance(source, dict):
        content, path = source.get("bytes"), source.get("path")
        if content is None and path is not None:
            if folder is None:
                told = f"the row names {_short(path)}, and only pictures in a folder that is given are opened"
                raise ImageError("outside the folder", told)
            path = named_file(path, folder)
        source = content if content is not None else path
    if isinstance(source, ImageError):
        raise source
    if source is None:
        raise ImageError("missing")
    if isinstance(source, bytes):
        if len(source) > MAX_BYTES:
            raise ImageError("over-large", f"{len(source)} bytes, at most {MAX_BYTES} are read")
        yield io.BytesIO(source)
        return
    try:
        size = require_regular(source).stat().st_size
        file = open(source, "rb")
    except (OSError, ValueError) as error:  # ValueError: a device, or a null character in the path
        raise ImageError("missing", getattr(error, "strerror", None) or str(error)) from None
    with file:
        if size > MAX_BYTES:
            raise ImageError("over-large", f"{size} bytes, at most {MAX_BYTES} are read")
        yield file


def named_file(name: str, folder: str | Path, *others: str | Path) -> Path:
    """Return the path that a row names, which must lie inside a folder, links resolved.

    Args:
        folder: what a relative name starts from.
        others: folders that an absolute name may lie in, besides `folder`.

    Raises:
        ImageError: the name leads out of the folders.
    """
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()
    for home in (folder, *others) if absolute else (folder,):
        for root in (os.path.abspath(home), os.path.realpath(home)) if absolute else (home,):
            try:
                return resolve_inside(home, os.path.relpath(name, root) if absolute else name)
            except (ValueError, OSError):
                continue
    told = ", ".join(str(home) for home in (folder, *others))
    raise ImageError("outside the folder", f"{_short(name)} leads out of {told}", os.path.join(folder, name))


def find_image(folder: str | Path, image_id: str) -> Path | None:
    """Find the file in a folder that is named by an image id, alone or with one of `SUFFIXES`.

    The result is None if there is no such file or the id leads out of the folder; `image_file` says which.
    """
    found = or_error(lambda name: image_file(folder, name), image_id)
    return None if isinstance(found, ImageError) else found


def image_file(folder: str | Path, image_id: str | None) -> Path:
    """Find a file as `find_image` does, or raise ImageError: it is missing or outside the folder, also by a link."""
    if not image_id:
        raise ImageError("missing", "the post has no image_id")
    for suffix in ("", *SUFFIXES, *map(str.upper, SUFFIXES)):
        try:
            inside = named_file(f"{image_id}{suffix}", folder)
            if inside.is_file():
                return inside
        except (OSError, ValueError) as error:  # ValueError: a null character
            if isinstance(error, ImageError):
                raise
            break  # a name too long
    raise ImageError("missing", f"{folder} holds no picture {_short(image_id)}")


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
        if first and (error := or_error(lambda name: image_file(folder, name), first)) is not None:
            if isinstance(error, ImageError) and error.reason == "outside the folder":
                hint = f": {error}"
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


def _decode(image: Image.Image, max_pixels: int, ours: bool = False) -> Image.Image:
    """Return an image as RGB; `ours`: it is nobody else's, and may be decoded at another size."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError("over-large", f"{width} x {height} pixels, at most {max_pixels} are read")
    if width * height == 0:
        raise ImageError("damaged", f"{width} x {height} pixels")
    if ImageFile.LOAD_TRUNCATED_IMAGES:  # a switch of the whole process: half an image would pass as a whole one
        raise RuntimeError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: unset it, or truncated images go unnoticed.")
    try:
        needed = 0
        if ours and width * height > LARGE and isinstance(image, JpegImagePlugin.JpegImageFile):
            if image.info.get("progressive") or image.info.get("progression"):
                needed = 6 * width * height  # its decoder keeps all coefficients
            across, down = _factors(width, height)
            image.draft(image.mode, (width // across, height // down))  # decodes an eighth to the whole of each side
        pixels = image.size[0] * image.size[1]
        # a pixel takes four bytes: with copies of small ones; WebP's decoder holds two canvases of its own
        each = 16 if pixels <= LARGE else 12 if image.format == "WEBP" else 4
        with _DECODING.take(needed + pixels * each):
            image.load()
            if pixels > LARGE:
                return _upright(_smaller(image))
            return _to_rgb(_upright(image))
    except Exception as error:
        raise _error(error) from None


def _factors(width: int, height: int) -> tuple[int, int]:
    """Return by how much the sides are divided so that an image has at most `LARGE` pixels."""
    factor = math.ceil(math.sqrt(width * height / LARGE))
    across, down = min(factor, width), min(factor, height)
    while -(-width // across) * -(-height // down) > LARGE:  # a side of less pixels than the factor
        across, down = (across + 1, down) if width // across > height // down else (across, down + 1)
    return across, down


def _smaller(image: Image.Image) -> Image.Image:
    """Return a decoded image as RGB of at most `LARGE` pixels, each the mean of those it stands for.

    It is made in tiles: a copy of the whole would take as much memory again.
    """
    width, height = image.size
    across, down = _factors(width, height)
    step = [max(1, side // factor) * factor for side, factor in zip(_TILE, (across, down), strict=True)]
    tiles = [
        (left, top, min(left + step[0], width), min(top + step[1], height))
        for top in range(0, height, step[1])
        for left in range(0, width, step[0])
    ]
    scale = None
    if image.mode.startswith(("I", "F")):
        scales = [_range(image.crop(tile)) for tile in tiles]
        scale = min(low for low, _ in scales), max(high for _, high in scales)
    small = Image.new("RGB", (-(-width // across), -(-height // down)))
    for tile in tiles:
        small.paste(_to_rgb(image.crop(tile), scale).reduce((across, down)), (tile[0] // across, tile[1] // down))
    small.info = dict(image.info)  # EXIF orientation
    return small


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF data that can't be read turn nothing; the pixels are whole
        return image


def _range(image: Image.Image) -> tuple[float, float]:
    """Return the lowest and the highest value of an image of 16 or 32 bits."""
    pixels = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    return min(0.0, float(pixels.min())), float(pixels.max())


def _to_rgb(image: Image.Image, scale: tuple[float, float] | None = None) -> Image.Image:
    """Return a decoded image as RGB; `scale` is the range of values in the whole of which it is a tile."""
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits: Pillow's own conversion clips all above 255 to white
        low, high = scale or _range(image)
        pixels = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
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


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
