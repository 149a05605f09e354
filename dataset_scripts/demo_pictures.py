"""Draw the demo set's pictures: an emblem for every invented name, what a post shows of it, and plain pictures.

The grid is small, so that the pictures of ten thousand entries take seconds and no file is in git.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

SIZE = 64
OUTLINES = ("square", "circle", "shield", "hexagon")
LAYOUTS = ("quarterly", "saltire", "pales", "fesses", "bends", "rings")
CHARGES = ("disc", "ring", "block", "diamond", "triangle", "cross", "saltire", "bar")
COLOURS = (
    (200, 30, 45),
    (25, 60, 160),
    (20, 130, 70),
    (245, 195, 30),
    (25, 25, 30),
    (120, 45, 140),
    (240, 120, 30),
    (90, 185, 230),
    (250, 250, 250),
)
BACKGROUND = (222, 222, 222)


class Emblem(NamedTuple):
    """An emblem as indices into OUTLINES, LAYOUTS, COLOURS (of four fields), CHARGES and COLOURS (of the charge)."""

    outline: int
    layout: int
    fields: tuple[int, int, int, int]
    charge: int
    charge_colour: int


def _masks() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make outlines [4,2S,2S] bool, layouts [6,2S,2S] of field numbers 0-3, charges [8,2S,2S] bool, at double size."""
    n = 2 * SIZE
    y, x = np.mgrid[0:n, 0:n] * 2 - (n - 1)  # odd integers from -(n-1) to n-1: comparisons are exact everywhere
    ax, ay = abs(x), abs(y)
    radius = n * 15 // 16
    inside = (ax <= radius) & (ay <= radius)
    outlines = [
        inside,
        x * x + y * y <= radius * radius,
        inside & ((y <= 0) | (4 * x * x + y * y <= 2 * radius * radius - radius * y)),
        inside & (2 * ax + ay <= 2 * radius),
    ]
    band = n // 4 + n // 8
    layouts = [
        (x > 0) * 1 + (y > 0) * 2,
        np.where(ax > ay, (x > 0) * 2, 1 + (y > 0) * 2),
        (x > -band) * 1 + (x > 0) + (x > band),
        (y > -band) * 1 + (y > 0) + (y > band),
        (x + y > -n * 5 // 8) * 1 + (x + y > 0) + (x + y > n * 5 // 8),
        sum((np.maximum(ax, ay) > n * k // 16) * 1 for k in (6, 9, 12)),
    ]
    r = n * 3 // 8
    near = (ax <= r) & (ay <= r)
    charges = [
        x * x + y * y <= r * r,
        (x * x + y * y <= r * r) & (4 * (x * x + y * y) >= r * r),
        (4 * ax <= 3 * r) & (4 * ay <= 3 * r),
        ax + ay <= r,
        near & (2 * ax <= y + r),
        near & ((3 * ax <= r) | (3 * ay <= r)),
        near & (abs(ax - ay) * 5 <= r * 2),
        (ax <= r) & (3 * ay <= r),
    ]
    return np.array(outlines), np.array(layouts, np.uint8), np.array(charges)


_OUTLINES, _LAYOUTS, _CHARGES = _masks()


def draw_emblem(emblem: Emblem) -> Image.Image:
    """Draw an emblem as an RGB picture of 64 x 64 pixels, edges smoothed."""
    index = np.where(_CHARGES[emblem.charge], np.uint8(4), _LAYOUTS[emblem.layout])
    picture = Image.fromarray(np.where(_OUTLINES[emblem.outline], index, np.uint8(5)), "P")
    colours = [*(COLOURS[colour] for colour in emblem.fields), COLOURS[emblem.charge_colour], BACKGROUND]
    picture.putpalette([value for colour in colours for value in colour])
    return picture.convert("RGB").reduce(2)


def distort(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Distort an emblem as a post shows it: cut to 85-95 %, turned by up to 10 degrees, blurred, recoloured."""
    share = rng.uniform(0.85, 0.95)
    left, top = (rng.uniform(0, (1 - share) * SIZE) for _ in range(2))
    picture = picture.rotate(rng.uniform(-10, 10), Image.Resampling.BILINEAR, fillcolor=BACKGROUND)
    picture = picture.resize(
        (SIZE, SIZE), Image.Resampling.BILINEAR, box=(left, top, left + share * SIZE, top + share * SIZE)
    )
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.8, 1.2))
    picture = ImageEnhance.Color(picture).enhance(rng.uniform(0.7, 1.3))
    pixels = np.asarray(picture) + rng.integers(-12, 13, size=3) + rng.integers(-8, 9, size=(SIZE, SIZE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGB")


def plain_picture(rng: np.random.Generator) -> Image.Image:
    """Draw a picture that is plainly no emblem: grey grain over a slow grey gradient."""
    start, end = rng.integers(40, 216, size=2)
    ramp = np.linspace(start, end, SIZE)
    pixels = np.tile(ramp, (SIZE, 1)) if rng.integers(2) else np.tile(ramp[:, None], (1, SIZE))
    grain = rng.integers(-40, 41, size=(SIZE, SIZE))
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8), "L").convert("RGB")
