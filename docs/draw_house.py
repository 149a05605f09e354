"""Draw docs/house.png: the rooms of the code, the files in them, and which room imports from which.

python docs/draw_house.py [PATH]

Files and imports are read from the code, the layers of the flat files from the contract in pyproject.toml.
"""

import ast
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import tomllib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path as Line

from draw_architecture import (
    CORPUS,
    CORPUS_LIGHT,
    IMAGE,
    IMAGE_LIGHT,
    INK,
    MIX,
    MIX_LIGHT,
    RED,
    SOFT,
    TEXT,
    TEXT_LIGHT,
    box,
    label,
    path_given,
)

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "modeling_more"
SCRIPTS = {"run_*.py": "whole runs", "dataset_scripts/*.py": "dataset_scripts/", "benchmarks/*.py": "benchmarks/"}
FOLDERS = ("training", "knowledge", "data")
BASICS = 3  # so many of the contract's lowest layers are one room; the flat files above them are another


class House(NamedTuple):
    #: the names of the files in each room; in one list for each group of scripts, for each layer of flat files
    rooms: dict[str, list[list[str]]]
    #: how many imports of one file from another there are between two rooms, by the importing and the imported one
    imports: dict[tuple[str, str], int]
    #: in which room each module stands, by the name under which it is imported
    room_of: dict[str, str]


def read_house(root: Path = ROOT) -> House:
    """The rooms, their files and the imports between them, as the code has them."""
    linter = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (layers,) = [one["layers"] for one in linter["contracts"] if one["type"] == "layers"]
    flat = [{name.strip(" ()") for name in layer.replace("|", ":").split(":")} - set(FOLDERS) for layer in layers]
    scripts = [sorted(root.glob(pattern)) for pattern in SCRIPTS]
    folders = {folder: sorted((root / PACKAGE / folder).glob("**/*.py")) for folder in FOLDERS}
    others = sorted((root / PACKAGE).glob("*.py"))
    rows = [[path for path in others if path.stem in layer] for layer in flat if layer]
    placed = {path for row in rows for path in row}
    models, basics = rows[:-BASICS], rows[-BASICS:]
    models[0] += [path for path in others if path not in placed]  # the package itself, and what no layer names yet

    paths = {"scripts": scripts} | {folder: [files] for folder, files in folders.items()}
    paths |= {"models": models, "basics": basics}
    files = {_module(path, root): (room, path) for room, groups in paths.items() for group in groups for path in group}
    pairs = [(room, files[other][0]) for name, (room, path) in files.items() for other in imported(name, path, files)]
    return House(
        {room: [_names(group, root) for group in groups if group] for room, groups in paths.items()},
        dict(sorted(Counter(pair for pair in pairs if pair[0] != pair[1]).items())),
        {name: room for name, (room, _) in files.items()},
    )


def imported(name: str, path: Path, known: Mapping[str, object]) -> set[str]:
    """Those of the known modules that a module imports, wherever in its file it does."""
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            inner = {f"{base}.{alias.name}" for alias in node.names} & known.keys()  # modules, of a package's names
            found |= inner if len(inner) == len(node.names) else inner | {base}
    return found & known.keys() - {name}


def _names(paths: Sequence[Path], root: Path) -> list[str]:
    """What the picture shows of these files: the name, behind that of a folder in a room's folder."""
    inner = [path.relative_to(root).with_suffix("").parts for path in paths if path.stem != "__init__"]
    return ["/".join(parts[min(len(parts) - 1, 2) :]) for parts in inner]


def _module(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


# --- the picture: 100 wide; every arrow has a way of its own, past the rooms between its two


class Look(NamedTuple):
    title: str
    what: str
    color: str
    light: str
    left: float
    right: float
    columns: int


LOOKS = {
    "scripts": Look("", "", INK, "#f4f6f8", 0, 100, 4),
    "training": Look("training/", "what a run does", MIX, MIX_LIGHT, 9, 80, 5),
    "knowledge": Look("knowledge/", "what is searched", CORPUS, CORPUS_LIGHT, 0, 37, 3),
    "data": Look("data/", "what comes in", IMAGE, IMAGE_LIGHT, 48.5, 86, 3),
    "models": Look("Pipelines and models", "flat files", TEXT, TEXT_LIGHT, 42, 92, 3),
    "basics": Look("Basics", "flat files that every room may use", SOFT, "#f4f6f8", 0, 100, 6),
}
SCRIPTS_AT = (1.6, 13.5, 58.5, 100)  # where each group of scripts begins, and where the last ends
FLOORS = (("scripts",), ("training",), ("knowledge", "data"), ("models",), ("basics",))
LINE_HEIGHT, LAYER_GAP, HEAD, GAP, MARGIN = 2.0, 0.8, 4.4, 5.4, 1.6
# the x at which each arrow arrives; where that is beside the room that it comes from, it leaves it by the side
WAYS = {
    ("scripts", "training"): 44.5, ("scripts", "knowledge"): 4.5, ("scripts", "data"): 83, ("scripts", "models"): 89,
    ("scripts", "basics"): 97.5, ("training", "knowledge"): 23, ("training", "data"): 64.3,
    ("training", "models"): 45.3, ("training", "basics"): 39.5, ("knowledge", "basics"): 18.5,
    ("data", "models"): 64.3, ("data", "basics"): 94.5, ("models", "basics"): 67, ("models", "knowledge"): 30,
}  # fmt: skip


def draw(path: Path, house: House | None = None) -> None:
    """Write the picture as a PNG; what it shows stands in it as text too."""
    house = house or read_house()
    places: dict[str, tuple[float, float]] = {}  # top and bottom of each room
    top = bottom = 0.0
    for floor in FLOORS:
        bottom = top - max(_height(room, house.rooms[room]) for room in floor)
        places |= {room: (top, bottom) for room in floor}
        top = bottom - GAP
    figure = Figure(figsize=(13.5, (4 - bottom) * 13.5 / 102), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-1, 101)
    axes.set_ylim(bottom - 3, 1)
    axes.set_axis_off()
    most = max(house.imports.values())
    for pair, number in house.imports.items():
        if pair in WAYS:
            _draw_imports(axes, places, pair, number, 1.2 + 3.6 * number / most)
    for room, groups in house.rooms.items():
        _draw_room(axes, room, groups, *places[room])
    note = "An arrow and its number: how many imports of one file from another go from room to room."
    against = house.imports.keys() - WAYS.keys()
    for pair in sorted(against):
        _draw_against(axes, places, *pair)
    if against:
        note += " Dashed: against the contract."
    label(axes, 0, bottom - 1.7, note, 9.5, SOFT, ha="left")
    figure.savefig(path, format="png", facecolor="white", metadata={"Description": shown(house)})


def shown(house: House) -> str:
    """What the picture shows, but for the numbers: the files of each room, and which room imports from which."""
    return json.dumps({"rooms": house.rooms, "imports": ["{} -> {}".format(*pair) for pair in house.imports]})


def _rows(room: str, group: Sequence[str]) -> int:
    columns = 1 if room == "scripts" and group[0].startswith("run_") else LOOKS[room].columns
    return -(-len(group) // columns)


def _height(room: str, groups: Sequence[Sequence[str]]) -> float:
    rows = [_rows(room, group) for group in groups]
    if room == "scripts":  # beside one another
        return HEAD + LINE_HEIGHT * max(rows)
    return HEAD + LINE_HEIGHT * sum(rows) + LAYER_GAP * (len(rows) - 1)


def _draw_room(axes: Axes, room: str, groups: Sequence[Sequence[str]], top: float, bottom: float) -> None:
    look = LOOKS[room]
    box(axes, look.left, (top + bottom) / 2, look.right - look.left, top - bottom, look.color, look.light)
    left, y = look.left + MARGIN, top - HEAD
    if room == "scripts":
        for title, group, (start, end) in zip(SCRIPTS.values(), groups, pairwise(SCRIPTS_AT), strict=True):
            label(axes, start, top - 2.1, title, 12, look.color, ha="left", fontweight="bold")
            _draw_names(axes, group, start, y, (end - start) / look.columns, _rows(room, group))
        return
    label(axes, left, top - 2.1, look.title, 12, look.color, ha="left", fontweight="bold")
    label(axes, look.right - MARGIN, top - 2.1, look.what, 10, SOFT, ha="right")
    for group in groups:  # layers: what stands above may import what stands below
        if y < top - HEAD:
            line = y + (LINE_HEIGHT + LAYER_GAP) / 2
            axes.plot([left, look.right - MARGIN], [line, line], color=look.color, linewidth=0.6, alpha=0.5)
        _draw_names(axes, group, left, y, (look.right - left) / look.columns, _rows(room, group))
        y -= LINE_HEIGHT * _rows(room, group) + LAYER_GAP


def _draw_names(axes: Axes, names: Sequence[str], x: float, y: float, width: float, rows: int) -> None:
    """In columns, the first of them full before the next begins."""
    for number, name in enumerate(names):
        column, row = divmod(number, rows)
        label(axes, x + column * width, y - LINE_HEIGHT * row, name, 9.5, ha="left")


def _draw_imports(
    axes: Axes, places: Mapping[str, tuple[float, float]], pair: tuple[str, str], number: int, width: float
) -> None:
    x, look, (top, bottom), (above, below) = WAYS[pair], LOOKS[pair[0]], places[pair[0]], places[pair[1]]
    start, end = [(x, bottom)], above if above < top else below
    if not look.left < x < look.right:
        side, middle = (look.left if x < look.left else look.right), (top + bottom) / 2
        start = [(side, middle), (x, middle)]
    for color, head, more in (("white", "-", 4.0), (look.color, "-|>", 0.0)):  # a white rim, where two cross
        axes.add_patch(
            FancyArrowPatch(
                path=Line([*start, (x, end)]),
                arrowstyle=head,
                mutation_scale=9 + 2 * width,
                linewidth=width + more,
                color=color,
                joinstyle="miter",
                capstyle="butt",
            )
        )
    height = end + (GAP / 2 + 0.2 if end == above else -GAP / 2)
    label(axes, x + 0.8, height, str(number), 10, look.color, ha="left", fontweight="bold")


def _draw_against(axes: Axes, places: Mapping[str, tuple[float, float]], room: str, other: str) -> None:
    start, end = (((LOOKS[one].left + LOOKS[one].right) / 2 + 3, sum(places[one]) / 2) for one in (room, other))
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=14,
            linewidth=1.5,
            color=RED,
            linestyle="--",
            connectionstyle="arc3,rad=0.2",
            zorder=5,
        )
    )


if __name__ == "__main__":
    draw(path_given(__doc__, "house.png"))
