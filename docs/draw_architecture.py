"""Draw docs/architecture.png: a post and its image, two retrievals, two experts, the gate and what comes out.

python docs/draw_architecture.py [PATH]
"""

import argparse
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Ellipse, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

INK, SOFT, LINE = "#1f2933", "#5c6b7a", "#9aa7b4"
TEXT, TEXT_LIGHT = "#2f6db5", "#eaf2fb"
IMAGE, IMAGE_LIGHT = "#c8702a", "#fcf1e7"
CORPUS, CORPUS_LIGHT = "#4d7c59", "#ebf4ed"
MIX, MIX_LIGHT = "#6b4aa3", "#f2eefa"
RED = "#b8413b"
TOP, MIDDLE, BOTTOM = 61.0, 40.0, 19.0  # centres of the text lane, of what both share, of the image lane


def box(axes: Axes, x: float, y: float, width: float, height: float, edge: str, face: str, lw: float = 1.6) -> None:
    """A rounded box by its left edge and vertical centre."""
    axes.add_patch(
        FancyBboxPatch(
            (x, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=1.4",
            edgecolor=edge,
            facecolor=face,
            linewidth=lw,
        )
    )


def label(axes: Axes, x: float, y: float, text: str, size: float = 10, color: str = INK, **style: object) -> None:
    axes.text(x, y, text, fontsize=size, color=color, **{"ha": "center", "va": "center", **style})  # type: ignore[arg-type]


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str = LINE,
    bend: float = 0,
    **style: object,
) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=13,
            linewidth=1.7,
            color=color,
            shrinkA=0,
            shrinkB=0,
            connectionstyle=f"arc3,rad={bend}",
            **style,  # type: ignore[arg-type]
        )
    )


def chip(axes: Axes, x: float, y: float, width: float, text: str, color: str) -> None:
    """A small filled box with white text, centred."""
    box(axes, x - width / 2, y, width, 4, color, color)
    label(axes, x, y - 0.1, text, 9.5, "white", fontweight="bold")


def draw_post(axes: Axes) -> None:
    box(axes, 1.5, MIDDLE, 22, 36, LINE, "white")
    label(axes, 12.5, 54, "Post", 13, fontweight="bold")
    label(axes, 12.5, 48.2, "Rivera joins\nNorthfield FC", 11, linespacing=1.4)
    axes.add_patch(Rectangle((4.5, 24.8), 16, 18, facecolor="#dfe9f3", edgecolor=LINE, linewidth=1))
    shield = [(8.6, 40.2), (16.4, 40.2), (16.4, 33.6), (12.5, 27.4), (8.6, 33.6)]
    axes.add_patch(Polygon(shield, closed=True, facecolor=RED, edgecolor="white", linewidth=2.5))
    axes.add_patch(Rectangle((8.6, 34.6), 7.8, 2.4, facecolor="white"))
    axes.add_patch(Circle((12.5, 31.6), 1.2, facecolor="white"))


def draw_retrieval(axes: Axes) -> None:
    for y, name, how, color, light in (
        (TOP, "Text retrieval", "words → sentences\nBM25", TEXT, TEXT_LIGHT),
        (BOTTOM, "Image retrieval", "image → images\nCLIP + FAISS", IMAGE, IMAGE_LIGHT),
    ):
        box(axes, 28.5, y, 22, 15, color, light)
        label(axes, 39.5, y + 4.1, name, 12, color, fontweight="bold")
        label(axes, 39.5, y - 2.2, how, 10, linespacing=1.45)
    left, width, low, high = 31.5, 16, 34.6, 44.6
    axes.add_patch(Ellipse((39.5, low), width, 3.6, facecolor=CORPUS_LIGHT, edgecolor=CORPUS, linewidth=1.6))
    axes.add_patch(Rectangle((left, low), width, high - low, facecolor=CORPUS_LIGHT, edgecolor="none"))
    axes.add_patch(Ellipse((39.5, high), width, 3.6, facecolor="white", edgecolor=CORPUS, linewidth=1.6))
    for x in (left, left + width):
        axes.plot([x, x], [low, high], color=CORPUS, linewidth=1.6, solid_capstyle="butt")
    label(axes, 39.5, 39.8, "Wikipedia", 12, CORPUS, fontweight="bold")
    label(axes, 39.5, 35.7, "or your corpus", 9.5)
    arrow(axes, (39.5, 46.8), (39.5, TOP - 7.8), CORPUS)
    arrow(axes, (39.5, 32.4), (39.5, BOTTOM + 7.8), CORPUS)
    arrow(axes, (23.8, 47), (28.2, TOP - 2), TEXT, bend=-0.12)
    arrow(axes, (23.8, 33), (28.2, BOTTOM + 2), IMAGE, bend=0.12)


def draw_knowledge(axes: Axes, y: float, color: str, what: str, titles: dict[str, float]) -> None:
    """The ranked entries: titles (and how wide they are) in colour, their text as grey lines."""
    label(axes, 64, y + 8.7, what, 10, SOFT)
    for number, (title, end) in enumerate(titles.items()):
        row = y + 4.6 - 4.9 * number
        box(axes, 54.5, row, 19, 4.1, color, "white", 1.1)
        label(axes, 55.4, row, title, 9, color, ha="left", fontweight="bold")
        axes.plot([55.4 + end, 72.4], [row, row], color="#d5dbe1", linewidth=3, solid_capstyle="butt")
    label(axes, 64, y - 9.3, "top K = 10", 9.5, SOFT)
    arrow(axes, (50.8, y), (54.2, y), color)
    arrow(axes, (73.8, y), (77.4, y), color)


def draw_expert(axes: Axes, y: float, color: str, light: str, name: str) -> None:
    box(axes, 77.7, y, 34, 27, color, light)
    label(axes, 94.7, y + 10.4, name, 12, color, fontweight="bold")
    for offset, parts in ((5.0, (("words", 9), ("sep", 6), ("knowledge", 13))), (-0.6, (("words", 9),))):
        x = 79.4
        for part, width in parts:
            solid = part == "words"
            box(axes, x, y + offset, width, 4, color, color if solid else "white", 1.1)
            label(axes, x + width / 2, y + offset - 0.1, part, 9.5, "white" if solid else color, fontweight="bold")
            x += width + 0.5
    label(axes, 89.6, y - 0.7, "the words alone", 9.5, SOFT, ha="left")
    # the view with knowledge is the target of the view without
    arrow(axes, (106.2, y + 2.6), (104.6, y - 0.6), color, bend=-0.45)
    label(axes, 108.8, y + 0.7, "KL", 9.5, color, fontweight="bold")
    for x, width, part in ((79.4, 14, "encoder"), (96, 14, "CRF")):
        box(axes, x, y - 6.2, width, 4.4, color, "white", 1.1)
        label(axes, x + width / 2, y - 6.3, part, 10)
    arrow(axes, (93.5, y - 6.2), (95.9, y - 6.2), color)
    label(axes, 94.7, y - 11, "probability of every tag", 9.5, SOFT)


def draw_mixture(axes: Axes) -> None:
    box(axes, 115.5, MIDDLE, 24, 23, MIX, MIX_LIGHT)
    label(axes, 127.5, MIDDLE + 7.7, "Mixture of experts", 11.5, MIX, fontweight="bold")
    label(axes, 127.5, MIDDLE + 2.4, r"$p(y) = \sum_z\, g_z \; p_z(y)$", 13)
    for x, width, color, share in ((118.5, 12.6, TEXT, "0.7"), (131.1, 5.4, IMAGE, "0.3")):
        axes.add_patch(Rectangle((x, MIDDLE - 5.4), width, 3.2, facecolor=color, edgecolor="white", linewidth=1))
        label(axes, x + width / 2, MIDDLE - 3.9, share, 9, "white", fontweight="bold")
    label(axes, 127.5, MIDDLE - 8.4, "gate g reads the post", 9.5, SOFT)
    arrow(axes, (112, TOP - 3), (122, MIDDLE + 11.9), TEXT, bend=-0.25)
    arrow(axes, (112, BOTTOM + 3), (122, MIDDLE - 11.9), IMAGE, bend=0.25)


def draw_output(axes: Axes) -> None:
    arrow(axes, (139.8, MIDDLE), (143.2, MIDDLE), MIX)
    box(axes, 143.5, MIDDLE, 25, 36, LINE, "white")
    label(axes, 156, 54, "Entities", 13, fontweight="bold")
    for y, name, kind, color in ((48.6, "Rivera", "PER", RED), (43.2, "Northfield FC", "ORG", "#2c7a7b")):
        label(axes, 145.3, y, name, 10.5, ha="left")
        chip(axes, 164, y, 6.6, kind, color)
    axes.plot([145.4, 166.6], [38.4, 38.4], color="#d8dee4", linewidth=1)
    label(axes, 156, 34.6, "or relations", 13, fontweight="bold")
    label(axes, 156, 29.8, "(Rivera, Northfield FC)", 10.5)
    chip(axes, 156, 25.4, 15, "member of", MIX)


def draw(path: Path) -> None:
    """Write the picture as a PNG."""
    figure = Figure(figsize=(13.5, 6.3), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 170)
    axes.set_ylim(2.5, 81)
    axes.set_axis_off()
    draw_post(axes)
    draw_retrieval(axes)
    draw_knowledge(axes, TOP, TEXT, "paragraphs", {"Northfield FC": 12.6, "Rivera": 7, "Northfield": 9.8})
    draw_knowledge(axes, BOTTOM, IMAGE, "introductions", {"Northfield FC": 12.6, "Lindau City": 11, "Shield": 6.8})
    draw_expert(axes, TOP, TEXT, TEXT_LIGHT, "Text expert")
    draw_expert(axes, BOTTOM, IMAGE, IMAGE_LIGHT, "Image expert")
    draw_mixture(axes)
    draw_output(axes)
    steps = (
        (12.5, "input"),
        (39.5, "1  retrieve"),
        (64, "knowledge"),
        (94.7, "2  read"),
        (127.5, "3  mix"),
        (156, "output"),
    )
    for x, title in steps:
        label(axes, x, 78.4, title.upper(), 10, SOFT, fontweight="bold")
    figure.savefig(path, format="png", facecolor="white")


def path_given(about: str | None, name: str) -> Path:
    """Return the path on the command line, or that of a picture in docs/."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, metavar="PATH", help=f"(default: docs/{name})")
    return parser.parse_args().path or Path(__file__).with_name(name)


if __name__ == "__main__":
    draw(path_given(__doc__, "architecture.png"))
