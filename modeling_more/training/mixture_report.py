"""This module shows how a mixture's gate weighs its experts, in a table and a plot for the model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..files import new_file
from ..markdown import code_span, escaped, markdown_table
from ..posts import Posts
from ..predictions import Prediction
from .model_card import usage_code

PLOT = "gate_weights.png"
COLOURS = ("#2f6db3", "#c8553d", "#6a994e", "#9aa5b1", "#8e6c8a")


def report_gate(posts: Posts, found: Sequence[Prediction], plot: Path) -> list[dict[str, Any]]:
    """Draw to the file `plot` how the gate weighs the experts for these posts, and return it as a table."""
    names = list(found[0].experts or {})
    weights = torch.tensor([list((one.expert_weights or {}).values()) for one in found])
    agree = [len({str(said.labels) for said in (one.experts or {}).values()}) == 1 for one in found]
    images = [bool(post["has_image"]) for post in posts] if "has_image" in posts[0] else None
    draw_gate_weights(weights, names, agree, plot)
    return gate_table(weights, names, agree, images)


def gate_table(
    weights: Tensor, names: Sequence[str], agree: Sequence[bool], has_image: Sequence[bool] | None
) -> list[dict[str, Any]]:
    """Return each expert's mean weight over all posts, by agreement of the experts, and by presence of an image.

    Args:
        weights: the weights of the experts for each post, [P, Z].
        agree, has_image: whether all experts predict the same for a post, and whether it has a usable image; None if
            the gate sees no images.
    """
    groups: dict[str, list[bool]] = {
        "all posts": [True] * len(agree),
        "experts agree": list(agree),
        "experts disagree": [not one for one in agree],
    }
    if has_image is not None:
        groups |= {"with image": list(has_image), "without image": [not one for one in has_image]}
    rows = []
    for group, chosen in groups.items():
        places = [place for place, one in enumerate(chosen) if one]
        mean = weights[places].mean(0).tolist() if places else [None] * len(names)
        rows.append({"test posts": group, "number": len(places), **dict(zip(names, mean, strict=True))})
    return rows


def draw_gate_weights(weights: Tensor, names: Sequence[str], agree: Sequence[bool], path: Path) -> None:
    """Draw histograms of each expert's weight over the posts on which the experts agree, and over the others."""
    figure = Figure(figsize=(9, 3.2), dpi=130, layout="constrained")
    colours = COLOURS[: len(names)] if len(names) <= len(COLOURS) else None
    for axes, title, wanted in zip(figure.subplots(1, 2), ("agree", "disagree"), (True, False), strict=True):
        places = [place for place, one in enumerate(agree) if one == wanted]
        values = [weights[places, number].tolist() for number in range(len(names))]
        axes.hist(values, bins=20, range=(0, 1), label=list(names), color=colours)
        axes.set_title(f"experts {title} ({len(places)} posts)", loc="left", fontsize=11)
        axes.set_xlabel("weight")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("posts")
    figure.axes[0].legend(frameon=False, fontsize=9)
    with new_file(path) as beside:
        figure.savefig(beside, format="png", facecolor="white")


def card_parts(results: dict[str, Any], pipeline_tag: str, name: str) -> dict[str, Any]:
    """Return the parts of the model card that only mixtures have, as arguments of `write_model_card`."""
    experts = results["experts"]
    listed = ", ".join(f"{code_span(expert)} ({escaped(Path(source).name)})" for expert, source in experts.items())
    description = (
        "A mixture of experts: every expert reads the post with its own knowledge, a gate weighs their probabilities "
        f"for each post. Experts: {listed}."
    )
    if "gate_posts" in results:
        description += f" The gate learned from {results['gate_posts']} posts ({code_span(results['gate_data'])})."
    split = "test" if "test_f1_minus_average" in results else "dev"
    others = {"average": "the plain average", "best_expert": f"the best expert on dev ({results.get('best_expert')})"}
    shown = {"difference": "difference", "95 % from": "low", "to": "high"}
    gains = [
        {f"{split} F1 of the mixture minus": other, **{title: row[column] for title, column in shown.items()}}
        for key, other in others.items()
        if (row := results.get(f"{split}_f1_minus_{key}"))
    ]
    sections = []
    if gains:
        body = f"{markdown_table(gains)}\n\nPaired bootstrap over the {split} posts, 2000 samples."
        sections.append(("What the gate adds", body))
    if "gate" in results:
        plot = f"![Weight of each expert over the test posts]({PLOT})"
        sections.append(("How the gate weighs", f"{markdown_table(results['gate'])}\n\n{plot}"))
    weights = (
        """\
print(found["expert_weights"])
"""
        if pipeline_tag == "token-classification"
        else """\
    print(pair["expert_weights"])
"""
    )
    usage = usage_code(pipeline_tag, name, ["text", "image"], weights)
    return {"description": description, "sections": sections, "usage": usage}
