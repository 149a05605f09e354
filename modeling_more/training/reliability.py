"""This module shows how far the scores of predictions are true: in the results, as a plot, and on the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..data.tasks import Task
from ..files import new_file
from ..markdown import escaped, markdown_table
from ..posts import Posts
from ..predictions import Prediction

PLOT = "reliability.png"
COLOURS = ("#2f6db3", "#c8553d", "#6a994e", "#9aa5b1", "#8e6c8a")
Row = Mapping[str, Any]


def calibration_rows(
    task: Task,
    posts: Posts,
    split: str,
    found: Mapping[str, Sequence[Prediction]],
    names: Sequence[str] = (),
    tempered: Mapping[str, Sequence[Prediction]] | None = None,
    temperatures: Sequence[float] = (),
) -> list[dict[str, Any]]:
    """Return how far the scores are true on labelled posts, a row for each expert and one for the model itself.

    Args:
        split: the posts' name in results, "dev" or "test".
        found: the predictions of the model, under "", and of each expert of a mixture, under `expert_NAME`.
        names: of a mixture's experts and, behind them, of their readings of the words alone, if these are mixed.
        tempered, temperatures: the same with each expert at its temperature, and these; see `fit_temperatures`.

    Returns:
        rows {system, posts, predicted, error, bins, temperature, tempered_error, tempered_bins}, the last three None
        without temperatures; the mixture has none of its own. Errors and bins are those of `metrics.calibration`.
    """
    systems = [(name, f"expert_{name}") for name in names] + [("mixture" if names else "this model", "")]
    rows = []
    for place, (system, key) in enumerate(systems):
        before = task.calibration(found[key], posts)
        after = task.calibration(tempered[key], posts) if tempered is not None else None
        rows.append(
            {
                "system": system,
                "posts": split,
                "predicted": before["predicted"],
                "error": before["calibration_error"],
                "bins": before["bins"],
                "temperature": temperatures[place] if place < len(temperatures) else None,
                "tempered_error": after and after["calibration_error"],
                "tempered_bins": after and after["bins"],
            }
        )
    return rows


def draw_reliability(rows: Sequence[Row], path: Path) -> None:
    """Draw the share of right predictions against their score, a line a system, before and after temperatures.

    Nothing is drawn where nothing was predicted, or for a single system: the card shows no plot then.
    """
    if not _is_drawn(rows):
        return
    kinds = {"bins": "scores as they are", "tempered_bins": "each expert at its temperature"}
    kinds = {key: title for key, title in kinds.items() if any(row[key] for row in rows)}
    figure = Figure(figsize=(4.5 * len(kinds), 4), dpi=130, layout="constrained")
    plots = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, (key, title) in zip(plots, kinds.items(), strict=True):
        axes.plot([0, 1], [0, 1], color="#bbbbbb", linestyle="--", linewidth=1)
        for place, row in enumerate(rows):
            filled = [one for one in row[key] or () if one["number"]]
            total = sum(one["number"] for one in filled)
            xs, ys = [one["score"] for one in filled], [one["right"] for one in filled]
            colour = COLOURS[place % len(COLOURS)]
            axes.plot(xs, ys, color=colour, linewidth=1.5, label=row["system"])
            axes.scatter(xs, ys, color=colour, s=[12 + 120 * one["number"] / total for one in filled], lw=0)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("score")
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.spines[["top", "right"]].set_visible(False)
    plots[0].set_ylabel("share that is right")
    handles, names = plots[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=9, loc="outside lower center", ncols=len(names))
    with new_file(path) as beside:
        figure.savefig(beside, format="png", facecolor="white")


def calibration_sections(results: Row) -> list[tuple[str, str]]:
    """Return the card's section on `results["calibration"]`, if anything was predicted on labelled posts."""
    rows = results.get("calibration") or []
    if not any(row["predicted"] for row in rows):
        return []
    split = rows[-1]["posts"]
    parts = [
        "A score is meant to be the chance that a prediction is right: of those with a score near 0.8, about 80 % "
        f"should be. {_by_score(rows[-1])}",
        "The calibration error is how many percentage points score and share of right ones lie apart, on average over "
        f"all that is predicted for the {split} posts (expected calibration error, ten bins).",
    ]
    shown: list[dict[str, Any]] = [
        {"system": escaped(row["system"]), "predictions": row["predicted"], "calibration error": row["error"]}
        for row in rows
    ]
    if any(row["temperature"] is not None for row in rows):
        for line, row in zip(shown, rows, strict=True):
            line |= {"temperature": row["temperature"], "error at it": row["tempered_error"]}
        tempers = any(one["chosen"] and "temperatures" in one["name"] for one in results.get("gate_candidates") or ())
        acts = "What this model prints are its scores without temperatures."
        if tempers:
            acts = "This model divides by them itself: of the mixture both errors are the same."
        parts += [
            markdown_table(shown),
            "A temperature divides the scores of an expert before they become probabilities. It is the one at which "
            "the labels of posts that the experts did not train on are likeliest, which often, but not always, lowers "
            f"the error: above 1, an expert was too sure of itself. {acts}",
        ]
    else:
        parts.append(markdown_table(shown))
    if _is_drawn(rows):
        parts.append(f"![Share of right predictions at each score]({PLOT})")
    return [("Calibration", "\n\n".join(parts))]


def _is_drawn(rows: Sequence[Row]) -> bool:
    return len(rows) > 1 and any(row["predicted"] for row in rows)


def _by_score(row: Row) -> str:
    """Return in words how many predictions of high, middling and low score are right."""
    told = []
    limits = {"with a score of 0.9 or more": (0.9, 1.0), "from 0.5 to 0.9": (0.5, 0.9), "below 0.5": (0.0, 0.5)}
    for name, (low, high) in limits.items():
        bins = [one for one in row["bins"] if one["number"] and low <= one["from"] and one["to"] <= high]
        if number := sum(one["number"] for one in bins):
            right = sum(one["number"] * one["right"] for one in bins) / number
            told.append(f"{100 * right:.0f} % of the {number} {name}")
    return f"On the {row['posts']} posts this share of the model's predictions is right: {', '.join(told)}."
