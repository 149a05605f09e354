"""This module shows how a mixture's gate weighs its experts, in a table and a plot for the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..encoding import EXPERT_KNOWLEDGE
from ..files import new_file
from ..markdown import code_span, escaped, markdown_table
from ..posts import Posts
from ..predictions import Prediction
from .model_card import usage_code
from .reliability import calibration_sections

PLOT = "gate_weights.png"
COLOURS = ("#2f6db3", "#c8553d", "#6a994e", "#9aa5b1", "#8e6c8a")
#: what a gate reads, in words
READS = {
    "text": "the post's text",
    "image": "its image",
    "scores": "the scores of what each expert's search found",
    "confidence": "how sure each expert is of what it says",
}
DEVIATION = "standard deviation"  # of the weights of an expert; a name that no expert can have


def report_gate(posts: Posts, found: Sequence[Prediction], plot: Path) -> list[dict[str, Any]]:
    """Draw to the file `plot` how the gate weighs the experts for these posts, and return it as a table.

    Nothing is drawn where every post is weighed alike.
    """
    names = list(found[0].experts or {})
    weights = torch.tensor([list((one.expert_weights or {}).values()) for one in found])
    agree = [len({str(said.labels) for said in (one.experts or {}).values()}) == 1 for one in found]
    images = [bool(post["has_image"]) for post in posts] if "has_image" in posts[0] else None
    # behind the experts stand their readings of the words alone, if these are weighed
    given = [list(post.get(EXPERT_KNOWLEDGE) or ()) for post in posts]
    entries = [row + [None] * (len(names) - len(row)) for row in given]
    read = {
        name: [bool(row[place]) for row in entries]
        for place, name in enumerate(names)
        if any(row[place] is not None for row in entries)
    }
    table = gate_table(weights, names, agree, images, read)
    if not weighed_alike(table):
        figure = draw_gate_weights(weights, names, best_scores(entries), agree)
        with new_file(plot) as beside:
            figure.savefig(beside, format="png", facecolor="white")
    return table


def best_scores(entries: Sequence[Sequence[Any]]) -> Tensor:
    """Return the best search score of each expert's entries for each post [P, Z], NaN where none has a score.

    Args:
        entries: for each post, the entries (or None) of each expert. Scores of 0 alone are no scores.
    """
    scores = [[[entry.get("score") or 0.0 for entry in one or ()] for one in row] for row in entries]
    return torch.tensor([[max(one) if any(one) else torch.nan for one in row] for row in scores])


def gate_table(
    weights: Tensor,
    names: Sequence[str],
    agree: Sequence[bool],
    has_image: Sequence[bool] | None,
    found: Mapping[str, Sequence[bool]] | None = None,
) -> list[dict[str, Any]]:
    """Return each expert's mean weight over all posts, by agreement of the experts, by image and by what was found.

    Args:
        weights: the weights of the experts for each post, [P, Z].
        agree, has_image: whether all experts predict the same for a post, and whether it has a usable image; None if
            the gate sees no images.
        found: of the experts that retrieve, whether anything was found for a post; no rows if that is always so.

    Returns:
        a row a group of posts, with the largest standard deviation of an expert's weights over them.
    """
    groups: dict[str, list[bool]] = {
        "all posts": [True] * len(agree),
        "experts agree": list(agree),
        "experts disagree": [not one for one in agree],
    }
    if has_image is not None:
        groups |= {"with image": list(has_image), "without image": [not one for one in has_image]}
    for name, whether in (found or {}).items():
        if len(set(whether)) > 1:
            groups |= {f"{name}: knowledge found": list(whether), f"{name}: none found": [not one for one in whether]}
    rows = []
    for group, chosen in groups.items():
        places = [place for place, one in enumerate(chosen) if one]
        mean = weights[places].mean(0).tolist() if places else [None] * len(names)
        deviation = weights[places].std(0, correction=0).max().item() if places else None
        rows.append(
            {"test posts": group, "number": len(places), **dict(zip(names, mean, strict=True)), DEVIATION: deviation}
        )
    return rows


def weighed_alike(table: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the gate weighs every post alike, so that there is nothing to draw, by its table."""
    deviation = table[0].get(DEVIATION)  # a table of an older run has none
    return deviation is not None and deviation < 1e-6


def draw_gate_weights(weights: Tensor, names: Sequence[str], scores: Tensor, agree: Sequence[bool]) -> Figure:
    """Draw each expert's weight against its best search score, a panel an expert.

    An expert without scores has no panel. If none has any, the weights are drawn as histograms, over the posts on
    which the experts agree and over the others, if there are any.

    Args:
        weights, scores: of each post and expert, [P, Z]; NaN stands for no score.
        agree: whether all experts predict the same for a post.
    """
    colours = [COLOURS[place % len(COLOURS)] for place in range(len(names))]
    scored = [place for place in range(len(names)) if not scores[:, place].isnan().all()]
    groups = {
        title: [place for place, one in enumerate(agree) if one == wanted]
        for title, wanted in (("agree", True), ("disagree", False))
        if wanted in agree
    }
    panels = len(scored) or len(groups)
    figure = Figure(figsize=(4.5 * max(panels, 1.5), 3.2), dpi=130, layout="constrained")
    plots = figure.subplots(1, panels, squeeze=False)[0]
    if scored:
        for axes, place in zip(plots, scored, strict=True):
            known = ~scores[:, place].isnan()
            rest = f", {int((~known).sum())} without a score" if not known.all() else ""
            axes.scatter(scores[known, place], weights[known, place], s=14, alpha=0.5, color=colours[place], lw=0)
            axes.set_title(f"{names[place]} ({int(known.sum())} posts{rest})", loc="left", fontsize=11)
            axes.set_xlabel("best search score")
            axes.set_ylim(-0.03, 1.03)
        plots[0].set_ylabel("weight")
    else:
        for axes, (title, places) in zip(plots, groups.items(), strict=True):
            values = [weights[places, number].tolist() for number in range(len(names))]
            axes.hist(values, bins=20, range=(0, 1), label=list(names), color=colours)
            axes.set_title(f"experts {title} ({len(places)} posts)", loc="left", fontsize=11)
            axes.set_xlabel("weight")
        plots[0].set_ylabel("posts")
        plots[0].legend(frameon=False, fontsize=9)
    for axes in plots:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


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
    if results.get("gate_candidates"):
        sections.append(("What weighs the experts", _choice_section(results)))
    if gains:
        body = f"{markdown_table(gains)}\n\nPaired bootstrap over the {split} posts, 2000 samples."
        sections.append(("What the gate adds", f"{body}{_oracle_words(results, split)}"))
    if "gate" in results:
        sections.append(("How the gate weighs", _gate_section(results["gate"])))
    sections += calibration_sections(results)
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


def _choice_section(results: Mapping[str, Any]) -> str:
    """Return in words what weighs the experts and why, with what it was compared to."""
    candidates = results["gate_candidates"]
    (chosen,) = [one for one in candidates if one["chosen"]]
    best = max(candidates, key=lambda one: one["f1"])
    read = [READS[name] for name in chosen["inputs"]]
    acts = {
        "average": "the plain average of their probabilities",
        "best expert": "the best expert alone",
        "average at temperatures": "the average of their probabilities, the scores of each divided by a temperature",
    }.get(chosen["name"], f"a gate that reads {_joined(read)}")
    if not any(one["nll"] for one in candidates):  # nothing was compared
        return f"What acts is {acts}: {results['gate_posts']} posts of the gate are too few to choose by."
    why = "It has the best F1 there"
    if chosen is not best:
        why = (
            f"{code_span(best['name'])} has the best F1 there, but what acts is simpler and lies within a standard "
            f"error of it ({chosen['behind']:.2f} behind, standard error {chosen['standard_error']:.2f})"
        )
    table = [
        {
            "weighed by": one["name"], "F1": one["f1"], "minus the average": one["minus_average"],
            "behind the best": one["behind"], "standard error": one["standard_error"], "acts": "yes" * one["chosen"],
        }
        for one in candidates
    ]  # fmt: skip
    return (
        f"What acts is {acts}. It was chosen by cross-validation, in at most five folds, of the "
        f"{results['gate_posts']} posts of the gate ({code_span(results['gate_data'])}). {why}."
        f"\n\n{markdown_table(table)}"
    )


def _oracle_words(results: Mapping[str, Any], split: str) -> str:
    """Return in words what is left to gain: what the oracle over the experts scores."""
    best = results.get(f"{split}_oracle_f1")
    if best is None:
        return ""
    which = "better" if len(results["experts"]) == 2 else "best"
    told = (
        f" The {which} expert of each post, chosen with the labels, has a {split} F1 of {best:.2f}: what a gate per "
        "post can reach."
    )
    average, own = results.get(f"{split}_average_f1"), results.get(f"{split}_f1")
    if average is not None and own is not None and best > average:
        way = 100 * (own - average) / (best - average)
        told += f" The mixture goes {way:.0f} % of the way there from the average."
    return told


def _joined(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _gate_section(table: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of the weights, with the plot if there is one."""
    if not weighed_alike(table):
        return f"{markdown_table(table)}\n\n![Weight of each expert over the test posts]({PLOT})"
    names = [name for name in table[0] if name not in ("test posts", "number", DEVIATION)]
    weights = [table[0][name] for name in names]
    told = ", ".join(f"{code_span(name)} {weight:.2f}" for name, weight in zip(names, weights, strict=True))
    average = ": the plain average of the experts" if max(weights) - min(weights) < 1e-6 else ""
    return f"Every post is weighed alike ({told}){average}."
