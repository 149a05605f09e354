"""The house keeps its plan: which room imports which, no file too long to read at a sitting, each says what it is for."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

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
