"""Knowledge by image: opening pictures, the image side of corpora, image towers, retrieval and attaching."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from modeling_more.knowledge.pictures import ImageError, find_image, open_image, read_bytes


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A picture of coloured blocks, unlike that of any other seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


# ---------------------------------------------------------------- pictures


def test_every_mode_becomes_rgb() -> None:
    """One red pixel per case and what must come out of it."""
    red = Image.new("RGB", (8, 6), (255, 0, 0))
    clear = Image.new("RGBA", (8, 6), (255, 0, 0, 0))
    half = Image.new("RGBA", (8, 6), (255, 0, 0, 128))
    palette = Image.new("P", (8, 6), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    cases = {
        "png": (encoded(red), (255, 0, 0)),
        "transparent": (encoded(clear), (255, 255, 255)),
        "half transparent": (encoded(half), (255, 127, 127)),
        "palette": (encoded(palette), (255, 0, 0)),
        "palette with transparency": (encoded(palette, transparency=1), (255, 255, 255)),
        "grey with alpha": (encoded(Image.new("LA", (8, 6), (0, 0))), (255, 255, 255)),
        "colour key": (encoded(red, transparency=(255, 0, 0)), (255, 255, 255)),
        "one bit": (encoded(Image.new("1", (8, 6), 1)), (255, 255, 255)),
        "grey": (encoded(Image.new("L", (8, 6), 70)), (70, 70, 70)),
        "16 bits": (encoded(Image.new("I;16", (8, 6), 128 * 257)), (128, 128, 128)),
        "float": (encoded(Image.new("F", (8, 6), 0.5), "TIFF"), (128, 128, 128)),
        "bmp": (encoded(red, "BMP"), (255, 0, 0)),
        "lossless webp": (encoded(half, "WEBP", lossless=True), (255, 127, 127)),
    }
    for name, (content, expected) in cases.items():
        image = open_image(content)
        assert (image.mode, image.size) == ("RGB", (8, 6)), name
        assert np.abs(np.array(image.getpixel((3, 3))) - expected).max() <= 1, (name, image.getpixel((3, 3)))
    cmyk = open_image(encoded(Image.new("CMYK", (8, 6), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(np.array(cmyk.getpixel((3, 3))) - (255, 0, 0)).max() <= 4


def test_animations_show_their_first_frame() -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "lime")]
    for kind, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert open_image(content).getpixel((2, 2)) == (255, 0, 0), kind


def test_exif_turns_the_image_and_damaged_exif_does_not_lose_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    turned = open_image(encoded(noise(), "JPEG", exif=exif, quality=95))
    assert turned.size == (30, 40)
    upright = noise().transpose(Image.Transpose.ROTATE_270)
    assert np.abs(np.asarray(turned).astype(int) - np.asarray(upright)).mean() < 10
    damaged = encoded(noise(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert open_image(damaged).size == (40, 30)


def test_what_cannot_be_used_says_why(tmp_path: Path) -> None:
    jpeg, png, gif = (encoded(noise(), kind) for kind in ("JPEG", "PNG", "GIF"))
    unusable: list[tuple[Any, str]] = [
        (None, "missing"),
        ({"path": None, "bytes": None}, "missing"),
        (tmp_path / "none.jpg", "missing"),
        (tmp_path, "missing"),
        ("http://example.org/picture.jpg", "missing"),
        ("null\0character", "missing"),
        (b"", "not an image"),
        (b"<svg></svg>", "not an image"),
        (b"<html>404</html>", "not an image"),
        (jpeg[: len(jpeg) // 2], "truncated"),
        (png[: len(png) // 2], "truncated"),
        (gif[: len(gif) // 2], "truncated"),
        (jpeg[:10], "truncated"),
        (png[:6], "not an image"),
        (png[:60] + b"\0" * 30 + png[90:], "damaged"),
    ]
    for source, reason in unusable:
        with pytest.raises(ImageError) as caught:
            open_image(source)
        assert caught.value.reason == reason, (source, caught.value)
        assert isinstance(caught.value, ValueError)


def test_over_large_images_are_never_decoded() -> None:
    with pytest.raises(ImageError, match="over-large .40 x 30 pixels, at most 1199"):
        open_image(encoded(noise()), max_pixels=1199)
    assert open_image(encoded(noise()), max_pixels=1200).size == (40, 30)
    huge = bytearray(encoded(Image.new("1", (8, 8))))
    import zlib

    huge[16:24] = (100_000).to_bytes(4, "big") * 2  # the header of a small file names ten thousand million pixels
    huge[29:33] = zlib.crc32(bytes(huge[12:29])).to_bytes(4, "big")
    with pytest.raises(ImageError) as caught:
        open_image(bytes(huge))
    assert caught.value.reason == "over-large"


def test_every_source_gives_the_same_image(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    noise().save(file)
    expected = np.asarray(noise())
    for source in (file, str(file), file.read_bytes(), {"path": str(file), "bytes": None}, noise(), Image.open(file)):
        assert (np.asarray(open_image(source)) == expected).all()
    both = {"path": "elsewhere.png", "bytes": file.read_bytes()}
    assert (np.asarray(open_image(both)) == expected).all()
    assert read_bytes(file) == read_bytes(both) == file.read_bytes()
    assert open_image(read_bytes(noise())).size == (40, 30)


def test_half_images_never_pass_as_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES is set"):
        open_image(encoded(noise()))


def test_images_are_found_by_id_and_only_in_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("1.jpg", "2", "3.PNG", "4.x.jpeg", "sub/5.gif", "../outside.jpg"):
        (folder / name).write_bytes(b"x")
    for image_id, name in (("1", "1.jpg"), ("1.jpg", "1.jpg"), ("2", "2"), ("3", "3.PNG"), ("4.x", "4.x.jpeg")):
        assert find_image(folder, image_id) == folder / name
    assert find_image(str(folder), "sub/5") == folder / "sub" / "5.gif"
    outside = str(tmp_path / "outside.jpg")
    for image_id in ("", "9", "sub", "../outside", "sub/../../outside", "..\\outside", outside, "a\0b", "x" * 5000):
        assert find_image(folder, image_id) is None, image_id
