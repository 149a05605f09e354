"""Write Markdown for cards, in which what others chose (labels, names, commands) is text and nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

_TAG = re.compile(r"<(?=[A-Za-z/!?])")  # where HTML begins
# in Markdown; an underscore inside a word is none, nor is a hash but at the end of a title
_SPECIAL = re.compile(r"[&<>|\\`*\[\]~]|(?<![^\W_])_|_(?![^\W_])|#(?=#*$)")


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of equal keys as a Markdown table: numbers right-aligned, floats with two decimals, None a dash.

    Cells may hold Markdown, but no tags of HTML; names that others chose are to be `escaped`.
    """
    if not rows:
        return ""
    columns = list(rows[0])

    def cell(value: Any) -> str:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "–"
        if isinstance(value, float):
            return f"{value:.2f}" if value == 0 or abs(value) >= 0.01 else f"{value:.1e}"
        return _TAG.sub("&lt;", str(value).replace("|", "\\|").replace("\n", " "))

    numeric = [
        all(isinstance(row[c], int | float) or row[c] is None or re.match(r"[\d.]+ ±", str(row[c])) for row in rows)
        for c in columns
    ]
    head, *body = (
        f"| {' | '.join(map(cell, line))} |" for line in (columns, *([row[c] for c in columns] for row in rows))
    )
    return "\n".join([head, f"|{'|'.join('---:' if right else '---' for right in numeric)}|", *body])


def escaped(text: object) -> str:
    """Return a text that others chose, such as a label, as Markdown that shows it and nothing else."""
    line = " ".join(str(text).split())
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", line)


def code_span(text: object) -> str:
    """Return a text as code in a line of Markdown, whatever it holds."""
    line = " ".join(str(text).split())
    ticks = "`" * (_longest_ticks(line) + 1)
    return f"{ticks} {line} {ticks}" if "`" in line else f"{ticks}{line}{ticks}"


def fenced(code: str, language: str) -> str:
    """Return a block of code, which ends where it should, whatever it holds."""
    fence = "`" * max(3, _longest_ticks(code) + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
