"""The house keeps its plan: which room imports which; no file is too long, and each says what it is for."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from PIL import Image

from draw_house import draw, imported, read_house, shown

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CODE = ("modeling_more", "dataset_scripts", "benchmarks", "docs")
MOST_LINES = 450


def sources(*folders: str) -> dict[str, str]:
    paths = [*ROOT.glob("run_*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(paths)}


@pytest.mark.parametrize("contract", [one["id"] for one in PROJECT["tool"]["importlinter"]["contracts"]])
def test_contract_of_imports_is_kept(contract: str) -> None:
    # a process of its own, as it configures logging and the path anew
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-logo", "--no-cache", "--contract", contract],
        cwd=ROOT, capture_output=True, text=True, encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_too_long() -> None:
    lengths = {path: len(source.splitlines()) for path, source in sources(*CODE, "tests").items()}
    long = [f"{path}: {lines} lines" for path, lines in lengths.items() if lines > MOST_LINES]
    assert not long, "\n".join(long)


def test_every_module_says_what_it_is_for() -> None:
    silent = [path for path, source in sources(*CODE).items() if not ast.get_docstring(ast.parse(source))]
    assert not silent, "\n".join(silent)


def test_imports_are_found_in_every_form(tmp_path: Path) -> None:
    known = dict.fromkeys(["a", "a.b", "a.b.c", "a.d", "e"])
    forms = {
        "import a.d, e": {"a.d", "e"}, "from a import d": {"a.d"}, "from a import d, name": {"a.d", "a"},
        "from . import name": {"a.b"}, "from .. import d": {"a.d"}, "from ..d import name": {"a.d"},
        "def f():\n    from ..b.c import g": set(), "import os": set(),
    }  # fmt: skip
    for code, expected in forms.items():
        (tmp_path / "c.py").write_text(code)
        assert imported("a.b.c", tmp_path / "c.py", known) == expected, code
    (tmp_path / "__init__.py").write_text("from .c import name\nfrom .. import d")
    assert imported("a.b", tmp_path / "__init__.py", known) == {"a.b.c", "a.d"}


def test_picture_of_the_house_holds_every_module_and_is_the_one_shipped(tmp_path: Path) -> None:
    house = read_house()
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in sources(*CODE[:3])}
    assert house.room_of.keys() == modules
    assert sum(house.imports.values()) > 100
    drawn = sum(len(group) for groups in house.rooms.values() for group in groups)
    assert drawn == len([path for path in sources(*CODE[:3]) if not path.endswith("/__init__.py")])

    shipped = Image.open(ROOT / "docs" / "house.png")
    assert json.loads(shipped.info["Description"]) == json.loads(shown(house)), (
        "a file or a way of imports is new: python docs/draw_house.py"
    )
    draw(tmp_path / "house.png", house)
    assert Image.open(tmp_path / "house.png").size == shipped.size


@pytest.mark.parametrize("script", ["draw_house.py", "draw_architecture.py"])
def test_help_of_what_draws_draws_nothing(script: str, tmp_path: Path) -> None:
    for option, code in (("--help", 0), ("--halp", 2)):
        done = subprocess.run(
            [sys.executable, str(ROOT / "docs" / script), option], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == code and "usage:" in done.stdout + done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = {path for path in re.findall(r"`([\w./]+\.(?:py|md|toml|txt)|[\w./]+/)`", text) if "NAME" not in path}
    linked = set(re.findall(r"\]\(([\w./]+)\)", text))
    missing = [path for path in named if not ((ROOT / path).exists() or (ROOT / "modeling_more" / path).exists())]
    missing += [path for path in linked if not ((ROOT / page).parent / path).exists()]
    assert not missing, "\n".join(sorted(missing))
    assert len(named | linked) > 5
