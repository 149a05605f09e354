"""Python with transformers, torch, Pillow and what these need, as those have it who never installed this package."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ALLOWED = ("transformers", "torch", "pillow")


def needed(names: Sequence[str]) -> set[str]:
    """The distributions of these names and those that they require, without extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:  # required by a marker of another system, or not at all
            continue
        found.add(name)
        parsed = map(Requirement, requires)
        waiting += [one.name for one in parsed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def link_packages(folder: Path, names: Sequence[str] = ALLOWED) -> Path:
    """A folder of links to exactly these packages and what they need: nothing is installed anew."""
    folder.mkdir()
    for name in needed(names):
        found = distribution(name)
        tops = {file.parts[0] for file in found.files or [] if ".." not in file.parts}
        for top in tops - {"__pycache__"}:
            place = Path(str(found.locate_file(top)))
            if place.exists() and not (folder / top).exists():
                (folder / top).symlink_to(place)
    return folder


def command(packages: Path, script: Path, *arguments: str) -> list[str]:
    """The command that runs a script where only the standard library and these packages are found."""
    begin = f"import runpy, sys; sys.path.append({str(packages)!r}); sys.argv = sys.argv[1:]; "
    return [sys.executable, "-I", "-S", "-c", begin + "runpy.run_path(sys.argv[0], run_name='__main__')",
            str(script), *arguments]  # fmt: skip


def environment(home: Path) -> dict[str, str]:
    """The variables of that Python: caches of its own, and nothing that names this checkout."""
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "TMPDIR") if name in os.environ}
    return kept | {"HOME": str(home), "HF_HOME": str(home / "hub"), "OMP_NUM_THREADS": "1"}
