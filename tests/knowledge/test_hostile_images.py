"""Pictures of strangers: formats that start programs, bombs, devices, huge ones; and what the guards leave alone."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from modeling_more.knowledge import ImageEncoder
from modeling_more.knowledge.pictures import LARGE, MAX_BYTES, ImageError, open_image, read_bytes
from pictures import encoded, noise

ROOT = Path(__file__).resolve().parents[2]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n10 10 moveto\nshowpage\n%%EOF\n"


def reason_of(source: Any, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(source, **options)
    return caught.value.reason


def in_process(script: str, *arguments: object, **environment: str) -> str:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_drawing_that_is_called_a_photo_starts_no_program(tmp_path: Path) -> None:
    """Pillow would run Ghostscript on it, whatever it is called."""
    mark, tools = tmp_path / "ran", tmp_path / "bin"
    tools.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\ntouch {mark}\n")
    (tools / "gs").chmod(0o755)
    (tmp_path / "a.jpg").write_bytes(EPS)
    script = """
import sys
from modeling_more.knowledge.pictures import ImageError, open_image
for source in (sys.argv[1], open(sys.argv[1], "rb").read()):
    try:
        open_image(source)
    except ImageError as error:
        print(error.reason)
"""
    told = in_process(script, tmp_path / "a.jpg", PATH=f"{tools}{os.pathsep}{os.environ['PATH']}")
    assert told.split("\n")[:2] == ["not an image"] * 2 and not mark.exists()


def test_only_the_formats_of_the_list_are_opened() -> None:
    for kind in ("ICO", "ICNS", "JPEG2000", "PCX", "TGA", "PPM", "SGI", "MSP", "IM", "PDF", "AVIF", "DDS"):
        picture = noise(size=(64, 64)).convert("1" if kind == "MSP" else "RGB")
        assert reason_of(encoded(picture, kind)) == "not an image", kind
    photo = encoded(noise(), "MPO", save_all=True, append_images=[noise(1)])  # as phones write JPEG
    assert open_image(photo).size == (40, 30)


PEAK = """
import resource, sys
from pathlib import Path
from datasets import Dataset
from modeling_more.knowledge import attach_image_knowledge

class Nothing:
    fingerprint = "none"
    def search(self, images, top_k=10):
        return [[] for _ in images]

folder, ids = Path(sys.argv[1]), [str(number) for number in range(8)]
posts = Dataset.from_dict({"tokens": [["a"]] * 8, "image_id": ids})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = attach_image_knowledge(posts, Nothing(), image_dir=folder, cache_dir=folder / "cache")[1]
assert report.unusable == 0, report
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kilobytes are counted")
def test_small_files_of_huge_pictures_take_little_memory(tmp_path: Path) -> None:
    """Eight of 81 million pixels (0.3 MB each) took 2.6 GB; one is decoded at a time, into 324 MB, and kept small."""
    content = encoded(Image.new("RGB", (9000, 9000), "red"))
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(content)
    assert int(in_process(PEAK, tmp_path)) < 900_000


def grain(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Noise of every pixel for itself."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], bands) if bands > 1 else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8), mode)


def test_up_to_four_million_pixels_nothing_changes() -> None:
    whole = grain((2048, 2048))
    assert whole.width * whole.height == LARGE
    assert (np.asarray(open_image(encoded(whole, compress_level=1))) == np.asarray(whole)).all()
    photo = encoded(whole, "JPEG", quality=90)
    assert (np.asarray(open_image(photo)) == np.asarray(Image.open(io.BytesIO(photo)))).all()


def test_larger_ones_are_the_means_of_their_pixels() -> None:
    """The result is that of the whole picture made smaller at once, though it is made of tiles."""
    whole = grain((2601, 2403))
    expected = np.asarray(whole.reduce(2))
    for content in (encoded(whole, compress_level=1), encoded(whole, "BMP"), whole):
        small = np.asarray(open_image(content))
        assert small.shape == (1202, 1301, 3) and (small == expected).all()
    clear = grain((2601, 2403), "RGBA")
    white = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    assert (np.asarray(open_image(encoded(clear, compress_level=1))) == np.asarray(white.reduce(2))).all()
    palette = grain((2601, 2403), "L").convert("P")
    palette.putpalette([255 - value // 3 for value in range(768)])
    colours = np.asarray(palette.convert("RGB").reduce(2))
    assert (np.asarray(open_image(encoded(palette, compress_level=1))) == colours).all()
    deep = Image.fromarray((np.arange(2601 * 2403) % 60_000).astype(np.uint16).reshape(2403, 2601))
    small = np.asarray(open_image(encoded(deep, compress_level=1)))[..., 0].astype(float)
    exact = np.asarray(deep)[:2402, :2600].reshape(1201, 2, 1300, 2).mean((1, 3)) / 257
    assert np.abs(small[:1201, :1300] - exact).max() <= 1
    for size in ((5_000_000, 1), (1, 5_000_000), (60_000, 80)):
        thin = open_image(encoded(Image.new("RGB", size, "red")))
        assert thin.width * thin.height <= LARGE and thin.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_large_photo_is_decoded_small_and_upright(progressive: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    whole = noise(size=(4000, 3000))
    photo = open_image(encoded(whole, "JPEG", quality=90, exif=exif, progressive=progressive))
    assert photo.size == (1500, 2000)
    upright = whole.transpose(Image.Transpose.ROTATE_270).resize(photo.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(photo).astype(int) - np.asarray(upright)).mean() < 2
    assert reason_of(encoded(whole, "JPEG")[:-5000]) == "truncated"


def test_what_is_no_regular_file_or_too_large_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for source in (tmp_path / "pipe.png", "/dev/zero"):
        assert reason_of(source) == "missing"
    with pytest.raises(ImageError, match="device, pipe or socket"):
        read_bytes("/dev/zero")
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    for read in (open_image, read_bytes):
        with pytest.raises(ImageError, match=f"over-large .{MAX_BYTES + 1} bytes, at most {MAX_BYTES}"):
            read(tmp_path / "huge.png")
    assert reason_of(bytes(MAX_BYTES + 1)) == "over-large"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_bombs_in_the_words_of_a_picture(tmp_path: Path) -> None:
    """A compressed text, a profile or a directory may say that it holds gigabytes."""
    png = encoded(noise())
    bomb = zlib.compress(bytes(300_000_000), 9)
    for kind, before in ((b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")):
        assert reason_of(png[:33] + chunk(kind, before + bomb) + png[33:]) == "damaged", kind
    text = PngImagePlugin.PngInfo()
    text.add_text("about", "a picture of blocks", zip=True)
    assert open_image(encoded(noise(), pnginfo=text)).size == (40, 30)
    tiff = bytearray(encoded(noise(), "TIFF"))
    [start] = struct.unpack("<I", tiff[4:8])
    looped = bytes(tiff[:4]) + struct.pack("<I", 2**31) + bytes(tiff[8:])
    assert reason_of(looped) in ("damaged", "not an image", "truncated")
    tiff[start + 2 + 4 : start + 2 + 8] = struct.pack("<I", 2**31)  # so many widths
    assert reason_of(bytes(tiff)) in ("damaged", "not an image", "truncated")


def test_the_path_of_a_row_is_followed_only_in_a_folder_that_is_given(tmp_path: Path) -> None:
    home, secret = tmp_path / "home", tmp_path / "secret.png"
    home.mkdir()
    noise(1).save(secret)
    noise(2).save(home / "a.png")
    (home / "link.png").symlink_to(secret)
    for path in ("a.png", str(home / "a.png"), str(secret), "../secret.png", "link.png", str(home / "link.png")):
        row = {"path": path, "bytes": None}
        assert reason_of(row) == "outside the folder"
        if path.endswith("a.png"):
            assert open_image(row, folder=home).size == (40, 30)
        else:
            assert reason_of(row, folder=home) == "outside the folder", path
    assert open_image(secret).size == (40, 30)  # the caller's own word
    assert open_image({"path": str(secret), "bytes": encoded(noise(), "JPEG")}).size == (40, 30)


def test_few_pictures_are_open_at_once_and_the_vectors_stay(
    encoder: ImageEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [encoded(noise(number)) for number in range(9)]
    expected = encoder.embed(pictures)
    counts: list[int] = []
    processor = encoder.processor
    monkeypatch.setattr("modeling_more.knowledge.image._OPEN_PIXELS", 2000)  # of 1200 each
    monkeypatch.setattr(
        encoder, "processor", lambda opened, **options: counts.append(len(opened)) or processor(opened, **options)
    )
    assert (encoder.embed(pictures) == expected).all()
    assert max(counts) == 2 and sum(counts) == 9
