"""The pictures are drawn by scripts of the repository, and the tests that a page names exist."""

import ast
import re
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


def test_every_fault_of_the_reliability_page_has_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| fault", "|--"))]
    assert len(rows) > 40
    known: dict[str, set[str]] = {}
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row)
        assert named, f"names no test: {row}"
        for file, test in named:
            if file not in known:
                tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
                known[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert not test or test in known[file], f"{file} has no {test}"
