"""The picture in the README is drawn by a script of the repository."""

import struct
from pathlib import Path

from draw_architecture import draw

ROOT = Path(__file__).resolve().parents[1]


def size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])  # type: ignore[return-value]


def test_architecture_is_drawn_at_the_size_of_the_one_shipped(tmp_path: Path) -> None:
    draw(tmp_path / "architecture.png")
    assert size(tmp_path / "architecture.png") == size(ROOT / "docs" / "architecture.png")
