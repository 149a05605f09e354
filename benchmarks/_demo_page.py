"""The demo's page: one HTML file with scores, training curves and posts beside what was retrieved and predicted."""

import base64
import glob
import html
import io
import os
import statistics
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from datasets import Dataset
from matplotlib.figure import Figure
from PIL import Image

from dataset_scripts.demo_pictures import draw_emblem

COLOURS = {"none": "#9aa5b1", "shuffled": "#d9a441", "text": "#2f6db3", "shuffled image": "#e3c78f",
           "image": "#3c8c6a", "average": "#b9a3c9", "mixture": "#7b4fa3"}  # fmt: skip
GROUPS = {"all": "all test posts", "": "spelling and picture fine", "odd_spelling": "spelt oddly",
          "no_emblem": "picture without emblem"}  # fmt: skip
EQUAL = 1e-6  # weights that differ less are the same
TURNED = 0.1  # above an equal share: from where on the gate turns to an expert
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1f2933;
       background: #fff; }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
img.plot { max-width: 100% } .post { display: flex; gap: 1rem; border-top: 1px solid #d5dbe1; padding: .9rem 0 }
.post img { width: 96px; height: 96px; image-rendering: pixelated; flex: none }
.post p img { width: 28px; height: 28px; vertical-align: middle }
.post p { margin: .1rem 0 } .kind { color: #52606d; font-size: .85rem }
mark { border-radius: .25rem; padding: .05rem .3rem; background: #e4e7eb } mark.right { background: #c6ecd0 }
mark.wrong { background: #f8d0cc } mark small { font-weight: 600; margin-left: .3rem }
.system { display: inline-block; width: 7.5rem; color: #52606d; font-size: .85rem }
"""


def write_page(
    path: Path, runs: Sequence[dict[str, Any]], options: Mapping[str, Sequence[str]], posts_shown: int = 3
) -> Path:
    """Write the page; `runs` are those of benchmarks/demo.py, posts are shown of the first seed.

    Args:
        options: of the training runs of each task.
        posts_shown: posts of each condition.
    """
    seeds = list(dict.fromkeys(run["seed"] for run in runs))
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>MoRe on its demo sets</title><style>{STYLE}</style>",
        "<h1>MoRe on its demo sets</h1>",
        "<p>Posts about invented names. The sets are built so that only knowledge tells the type of an entity, or how "
        "two people stand to each other: test names never occur in training, and each sentence goes equally often "
        "with each label. 25 is chance for entities, about 23 for relations.</p>",
        "<p><b>none</b> reads the post alone, <b>shuffled</b> another post's knowledge, <b>text</b> the knowledge "
        "that BM25 finds with the post's words, <b>image</b> what an image tower finds with its picture; "
        "<b>average</b> and <b>mixture</b> join what these two say, equally and by a gate. Oddly spelt names are what "
        "text search can't find, pictures without emblem what image search can't.</p>",
    ]
    for task, used in options.items():
        own = [run for run in runs if run["task"] == task]
        first = [run for run in own if run["seed"] == seeds[0]]
        trained = [run for run in own if run["system"] not in ("average", "mixture")]
        models = ", ".join(
            f'<a href="{html.escape(os.path.relpath(run["folder"], path.parent))}/README.md">{run["system"]}</a>'
            for run in first
        )
        parts += [
            f"<h2>{task.capitalize()}: test F1{f', mean of seeds {seeds}' if len(seeds) > 1 else ''}</h2>",
            f'<img class="plot" alt="F1 of each system" src="{_plot(_bars(own))}">',
            f'<img class="plot" alt="Loss and dev F1 by epoch" src="{_plot(_curves(trained))}">',
            f"<p class='kind'>Trained with {html.escape(' '.join(used))}. Cards: {models}.</p>",
            *(part for run in first if run["system"] == "mixture" for part in _turns(run, task)),
            f"<h2>{task.capitalize()}: posts of the test set, seed {seeds[0]}</h2>",
            *_posts(first, posts_shown),
        ]
    parts.append("</html>")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".tmp{os.getpid()}")
    beside.write_text("\n".join(parts) + "\n", encoding="utf-8")
    os.replace(beside, path)
    return path


def _bars(runs: Sequence[dict[str, Any]]) -> Figure:
    """F1 of every system, over all posts and by condition."""
    figure = Figure(figsize=(9, 3.2), dpi=130, layout="constrained")
    axes = figure.subplots()
    systems = list(dict.fromkeys(run["system"] for run in runs))
    width = 0.8 / len(systems)
    for number, system in enumerate(systems):
        own = [run for run in runs if run["system"] == system]
        scores = [
            statistics.mean(run["results"]["test_f1"] if key == "all" else run["by_condition"][key] for run in own)
            for key in GROUPS
        ]
        places = [group + (number - (len(systems) - 1) / 2) * width for group in range(len(GROUPS))]
        bars = axes.bar(places, scores, width * 0.92, label=system, color=COLOURS.get(system))
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=9)
    axes.set_xticks(range(len(GROUPS)), list(GROUPS.values()))
    axes.set_ylim(0, 108)
    axes.set_ylabel("F1")
    axes.legend(ncols=len(systems), frameon=False, loc="upper right", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _curves(runs: Sequence[dict[str, Any]]) -> Figure:
    """Loss and dev F1 after each epoch, a line for each run."""
    figure = Figure(figsize=(9, 2.8), dpi=130, layout="constrained")
    for axes, key, title in zip(figure.subplots(1, 2), ("loss", "dev_f1"), ("training loss", "dev F1"), strict=True):
        for number, run in enumerate(runs):
            history = run["results"]["history"]
            label = run["system"] if run["seed"] == runs[0]["seed"] else None
            axes.plot([row["epoch"] for row in history], [row[key] for row in history], marker="o", markersize=3,
                      label=label, color=COLOURS.get(run["system"]), zorder=len(runs) - number)  # fmt: skip
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("epoch")
        axes.set_xticks([row["epoch"] for row in runs[0]["results"]["history"]])
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _posts(runs: Sequence[dict[str, Any]], shown: int) -> list[str]:
    """Posts with picture, each system's reading, and the first entry that text and image search found."""
    knowledge = {}
    for kind in ("text", "image"):
        file = next((Path(runs[0]["data"]) / kind).glob("test-*.parquet"))
        rows = Dataset.from_parquet(glob.escape(str(file)), keep_in_memory=True).select_columns(
            ["id", f"knowledge_{kind}"]
        )
        knowledge[kind] = {row["id"]: row[f"knowledge_{kind}"][:1] for row in rows}
    emblems = {entry.id: entry.emblem for entry in runs[0]["demo"].entries}
    parts = []
    for condition, label in list(GROUPS.items())[1:]:
        for post in [post for post in runs[0]["demo"].posts["test"] if post.condition == condition][:shown]:
            parts += [
                f'<div class="post"><img alt="the post\'s picture" src="{_picture(post.picture())}"><div>',
                f'<p class="kind">{label}; {html.escape(post.entry.text)}</p>',
            ]
            for run in runs:
                prediction = run["predictions"][post.id]
                words = _shown(prediction)
                if run["system"] == "mixture":
                    told = ", ".join(f"{name} {weight:.2f}" for name, weight in prediction["expert_weights"].items())
                    words += f' <span class="kind">weights: {html.escape(told)}</span>'
                parts.append(f'<p><span class="system">{run["system"]}</span>{words}</p>')
            for kind, found in knowledge.items():
                parts.append(f'<p class="kind"><span class="system">by {kind}</span>')
                for entry in found[post.id]:
                    emblem = f'<img alt="its emblem" src="{_picture(draw_emblem(emblems[entry["source"]]))}"> '
                    title, text = html.escape(entry["title"]), html.escape(entry["text"])
                    parts.append(f"{emblem if kind == 'image' else ''}[ {title} ] {text}")
                parts.append("</p>" if found[post.id] else "nothing</p>")
            parts.append("</div></div>")
    return parts


def _turns(run: dict[str, Any], task: str, shown: int = 3) -> list[str]:
    """Posts in which the gate turns to one expert, and in words what each expert had found."""
    rows = list(run["predictions"].values())
    weights = [list(row["expert_weights"].values()) for row in rows]
    if all(abs(one - other) < EQUAL for row in weights for one, other in zip(row, weights[0], strict=True)):
        told = ", ".join(f"{name} {weight:.2f}" for name, weight in rows[0]["expert_weights"].items())
        return [f"<p>The gate weighs every post alike ({html.escape(told)}): it turns to no expert.</p>"]
    parts = [f"<h2>{task.capitalize()}: where the gate turns to one expert, seed {run['seed']}</h2>"]
    medians = _median_scores(rows)
    chosen = _chosen(rows, medians, shown)
    if not chosen:
        parts.append("<p>Wherever the experts disagree, the gate weighs them nearly alike.</p>")
    pictures = {post.id: post for post in run["demo"].posts["test"]}
    for row in chosen:
        picture = _picture(pictures[row["id"]].picture())
        parts.append(f'<div class="post turn"><img alt="the post\'s picture" src="{picture}"><div>')
        parts.append(f"<p>{html.escape(_why(row, medians))}</p>")
        for name, said in {"mixture": None, **row["experts"]}.items():
            key = "entities" if "entities" in row else "relation"
            own = row if said is None else {**row, key: said}
            parts.append(f'<p><span class="system">{html.escape(name)}</span>{_shown(own)}</p>')
        parts.append("</div></div>")
    return parts


def _chosen(rows: Sequence[dict[str, Any]], medians: Mapping[str, float], shown: int) -> list[dict[str, Any]]:
    """The posts in which experts disagree and the weights are furthest from equal, for each expert in turn.

    Of weights that look the same, those come first whose experts' search scores differ most.
    """

    def order(row: dict[str, Any]) -> tuple[float, float]:
        weights = row["expert_weights"]
        own, *others = sorted(weights, key=weights.__getitem__, reverse=True)
        found = {name: _best_score(row, name) / medians[name] if medians.get(name) else 0.0 for name in weights}
        return -round(weights[own], 2), max((found[name] for name in others), default=0.0) - found[own]

    by_expert: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=order):
        weights = row["expert_weights"]
        said = [one if isinstance(one, str) else [(e["start"], e["end"], e["type"]) for e in one]
                for one in row["experts"].values()]  # fmt: skip
        if any(one != said[0] for one in said) and max(weights.values()) - 1 / len(weights) >= TURNED:
            by_expert.setdefault(max(weights, key=weights.__getitem__), []).append(row)
    rounds = zip_longest(*by_expert.values())
    return [row for one in rounds for row in one if row is not None][:shown]


def _median_scores(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The median of each expert's best search scores."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, entries in row.get("knowledge", {}).items():
            if entries:
                found.setdefault(name, []).append(_best_score(row, name))
    return {name: statistics.median(scores) for name, scores in found.items()}


def _best_score(row: dict[str, Any], name: str) -> float:
    return max((entry["score"] or 0.0 for entry in row.get("knowledge", {}).get(name) or ()), default=0.0)


def _why(row: dict[str, Any], medians: Mapping[str, float]) -> str:
    """To whom the gate turns, and how good the best entry of each expert is for its kind of search."""
    weights: dict[str, float] = row["expert_weights"]
    ordered = sorted(weights, key=weights.__getitem__, reverse=True)
    told = []
    for name in ordered:
        entries = row.get("knowledge", {}).get(name) or []
        if not entries:
            told.append(f"{name} found nothing" if name in medians else f"{name} reads the post alone")
            continue
        best = max(entries, key=lambda entry: entry["score"] or 0.0)
        told.append(
            f"the best entry of {name}, “{best['title']}”, has a search score of {_best_score(row, name):.2f} (median "
            f"over the test posts: {medians[name]:.2f})"
        )
    shares = f"{weights[ordered[0]]:.2f} against {', '.join(f'{weights[name]:.2f}' for name in ordered[1:])}"
    return f"The gate turns to {ordered[0]} ({shares}): {'; '.join(told)}."


def _shown(prediction: dict[str, Any]) -> str:
    return _marked(prediction) if "entities" in prediction else _related(prediction)


def _related(prediction: dict[str, Any]) -> str:
    """The words of a post with head and tail marked, and the predicted relation, right or wrong."""
    words = [html.escape(word) for word in prediction["tokens"]]
    for name, (start, end) in sorted(
        ((name, prediction[name]) for name in ("head", "tail")), key=lambda item: -item[1][0]
    ):
        words[start:end] = [f"<mark>{' '.join(words[start:end])}<small>{name}</small></mark>"]
    kind = "right" if prediction["relation"] == prediction["gold"] else "wrong"
    return f'{" ".join(words)} <mark class="{kind}">{html.escape(prediction["relation"])}</mark>'


def _marked(prediction: dict[str, Any]) -> str:
    """The words of a post with the predicted entities marked, right or wrong."""
    gold = prediction["gold"]
    words = [html.escape(word) for word in prediction["tokens"]]
    for entity in reversed(prediction["entities"]):
        start, end = entity["start"], entity["end"]
        expected = [f"B-{entity['type']}"] + [f"I-{entity['type']}"] * (end - start - 1)
        right = gold[start:end] == expected and not (gold[end : end + 1] or ["O"])[0].startswith("I-")
        name = " ".join(words[start:end])
        words[start:end] = [
            f'<mark class="{"right" if right else "wrong"}">{name}<small>{html.escape(entity["type"])}</small></mark>'
        ]
    return " ".join(words)


def _plot(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return _data_url(buffer)


def _picture(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return _data_url(buffer)


def _data_url(buffer: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
