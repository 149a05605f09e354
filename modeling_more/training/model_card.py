"""This module writes the model card: scores, command, settings, versions and training curve, all from saved values."""

from __future__ import annotations

import math
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from ..files import new_file, write_text
from ..markdown import code_span, escaped, fenced, markdown_table
from ..naming import REDACTED, without_folder, without_secrets

Record = Mapping[str, Any]

CURVE = "training_curve.png"
PACKAGES = ("modeling-more", "torch", "transformers", "datasets", "accelerate", "huggingface_hub", "bm25s")
METRICS = {"f1": "F1", "precision": "precision", "recall": "recall", "strict_f1": "strict F1",
           "macro_f1": "macro F1", "accuracy": "accuracy"}  # fmt: skip
VARIANTS = {"no_knowledge": "without knowledge", "oracle": "best expert of each post, chosen with the labels"}
SPLITS = {"test": "test", "dev": "validation"}  # a score's prefix -> the split's name in the published sets
TASKS = {"token-classification": "Named entity recognition", "text-classification": "Relation extraction"}
PAPER = "[Named Entity and Relation Extraction with Multi-Modal Retrieval](https://arxiv.org/abs/2212.01612)"

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SCORE = re.compile(rf"(?P<split>test|dev)_(?:(?P<variant>\w+?)_)??(?P<metric>{'|'.join(METRICS)})")
# only at the end of a name: --max_tokens_per_batch and --tokenizer_name are no secrets
_SECRET_NAME = re.compile(r"(^|[_-])(token|api[_-]?key|access[_-]?key|password|passwd|secret|credentials?)$", re.I)
#: a pipeline tag -> the class to load the model by, and the example after that
USAGE = {
    "token-classification": (
        "more-ner",
        "",
        """\
for entity in found["entities"]:
    print(entity["type"], entity["text"], round(entity["score"], 3))
""",
    ),
    "text-classification": (
        "more-re",
        ', "head": [0, 6], "tail": [13, 30]',
        """\
# head and tail in characters; or give "entities", a list of spans: all ordered pairs of them are classified
for pair in found["relations"]:
    print(pair["head_text"], pair["relation"], pair["tail_text"], round(pair["score"], 3))
""",
    ),
}


def usage_code(pipeline_tag: str, name: str, retrievals: Sequence[str], shown: str = "") -> str:
    """Return the Python code of a card, which loads the model, asks it of a post, and prints what it finds.

    Args:
        retrievals: the kinds of knowledge that the model reads.
        shown: a line that prints more of what is `found`.
    """
    task, pair, printed = USAGE[pipeline_tag]
    columns = [f"knowledge_{one}" for one in retrievals if one in ("text", "image")]
    read = f"# knowledge is searched as it was for the training, or read as the post's own {' and '.join(columns)}\n"
    return f"""\
import modeling_more  # where it is not installed, leave this out and add trust_remote_code=True below
from transformers import pipeline

pipe = pipeline({task!r}, model={name!r})
{read if columns else ""}found = pipe({{"text": "Rivera joins Northfield United"{pair}}})
{printed}{shown}"""


def write_model_card(
    output_dir: str | Path,
    results: Record,
    config: Record,
    command: str | Sequence[str],
    history: Sequence[Record] = (),
    *,
    task: str = "token-classification",
    description: str = "",
    usage: str | None = None,
    name: str = "",
    tags: Sequence[str] = (),
    sections: Sequence[tuple[str, str]] = (),
    license: str = "apache-2.0",
    language: str = "en",
) -> Path:
    """Write README.md, the training curve and, for a data set on the Hub, `.eval_results/NAME.yaml`.

    Args:
        results: the content of `all_results.json`: scores `{test,dev}[_VARIANT]_METRIC` in percent, with METRIC from
            METRICS, each with an optional `…_std` over seeds, and `test_f1_per_type` {type: {precision, recall, f1,
            support}}. Each VARIANT becomes a row (`no_knowledge`, an expert of a mixture).
        config: the run's settings; `dataset`, `retrieval`, `model_name_or_path` and `hub_model_id`, if given, also go
            into the metadata.
        history: one row per epoch {epoch, loss?, dev_f1?, seed?}; without rows there is no curve.
        task: pipeline tag on the Hub, `"token-classification"` or `"text-classification"`.
        description, usage: a paragraph on this model, and Python code, that replace the general ones.
        name: the model's name or Hub id (default: `hub_model_id`, or the folder's name).
        tags, sections: additional tags for the Hub, and sections (title, Markdown) after the scores.

    Returns:
        the path of README.md, in which tokens, keys and passwords are replaced by `<secret>`.
    """
    if task not in TASKS:
        raise ValueError(f"task is {task!r}, it must be one of {', '.join(TASKS)}")
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    config = without_folder(_scrub_config(config))
    name = name or config.get("hub_model_id") or output_dir.resolve().name
    dataset, retrieval = config.get("dataset"), config.get("retrieval") or "none"

    data = _card_data(results, config, name, task, [*tags], license, language)
    parts = [
        f"# {escaped(name)}",
        description or _description(task, config, dataset, retrieval),
        _section("Scores", _scores_table(results), _seeds_note(results)),
        _section(f"Scores per {'type' if task == 'token-classification' else 'relation'}", _per_type_table(results)),
        *(_section(title, body) for title, body in sections),
    ]
    if history:
        with new_file(output_dir / CURVE) as beside:
            draw_training_curve(history, beside)
        skipped = sum(row.get("skipped_steps", 0) for row in history)
        told = f"{skipped} optimizer steps were skipped: loss or gradient was NaN or infinite." if skipped else ""
        parts.append(_section("Training", f"![Loss and dev F1 after each epoch]({CURVE})", told))
    code = usage if usage is not None else usage_code(task, str(name), [retrieval])
    settings = yaml.safe_dump({k: v for k, v in config.items() if v not in (None, [], "")}, sort_keys=False)
    versions = [{"package": package, "version": version} for package, version in installed_versions().items()]
    parts += [
        _section("How to use", code and fenced(code.rstrip(), "python")),
        _section("How it was made", fenced(scrub_command(command), "bash")),
        _details("All settings", fenced(settings.rstrip(), "yaml")),
        _details("Versions", markdown_table(versions)),
        _section("Citation", f"The method is that of {PAPER} (Wang et al., Findings of EMNLP 2022)."),
    ]
    text = "\n\n".join(part for part in parts if part)
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{without_secrets(text)}\n")
    write_text(output_dir / "README.md", str(card))
    _write_eval_results(output_dir, results, dataset, retrieval)
    return output_dir / "README.md"


def scrub_command(command: str | Sequence[str]) -> str:
    """Return the command as one shell line without secrets (option values, variables, known tokens) and folders."""
    try:
        words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
    except ValueError:  # unbalanced quotes
        words = str(command).split()
    shown, hide_next = [], False
    for place, word in enumerate(words):
        if hide_next and not word.startswith("--"):
            shown.append(REDACTED)
            hide_next = False
            continue
        option, equals, _ = word.partition("=")
        secret = bool(_SECRET_NAME.search(option))
        hide_next = secret and not equals and option.startswith("-")
        before = words[place - 1].lstrip("-") if place else ""
        shown.append(f"{option}={REDACTED}" if secret and equals else shlex.quote(without_folder(word, before)))
    return without_secrets(" ".join(shown))


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that a score depends on."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def draw_training_curve(history: Sequence[Record], path: str | Path) -> None:
    """Draw training loss and dev F1 over the epochs as a PNG: one line per seed, the best epoch marked.

    Args:
        history: rows {epoch, loss?, dev_f1?, seed?}; missing or non-finite values are left out.
    """
    runs: dict[Any, list[Record]] = {}
    for row in history:
        runs.setdefault(row.get("seed"), []).append(row)
    figure = Figure(figsize=(9, 3.4), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.08))
    panels = figure.subplots(1, 2)
    shown = (("loss", "Training loss", "#4c6a92"), ("dev_f1", "Dev F1", "#c8553d"))
    for axes, (key, title, color) in zip(panels, shown, strict=True):
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color="#222222")
        for number, (seed, rows) in enumerate(runs.items()):
            points = [(row["epoch"], row[key]) for row in rows if _finite(row.get(key))]
            if not points:
                continue
            xs, ys = zip(*points, strict=True)
            alpha, label = 1 - 0.65 * number / max(len(runs), 2), None if seed is None else f"seed {seed}"
            axes.plot(xs, ys, marker="o", markersize=4.5, linewidth=2, color=color, alpha=alpha, label=label)
            if key == "dev_f1":
                best = max(range(len(ys)), key=ys.__getitem__)
                axes.plot(xs[best], ys[best], "o", markersize=10, markerfacecolor="none", markeredgecolor=color)
                if len(runs) == 1:
                    told, side = f"best: {ys[best]:.2f} (epoch {xs[best]})", "right" if best >= len(ys) / 2 else "left"
                    place = {"xytext": (0, 10), "textcoords": "offset points", "ha": side}
                    axes.annotate(told, (xs[best], ys[best]), fontsize=9, color="#222222", **place)
        axes.set_xlabel("epoch", fontsize=9.5, color="#444444")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.margins(x=0.06, y=0.18)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors="#444444", labelsize=9, length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color("#bbbbbb")
    if len(runs) > 1 and panels[1].get_legend_handles_labels()[1]:
        panels[1].legend(frameon=False, fontsize=8.5, loc="lower right")
    losses = [row["loss"] for row in history if _finite(row.get("loss"))]
    if losses and min(losses) >= 0:
        panels[0].set_ylim(bottom=0)
    figure.savefig(path, format="png", facecolor="white")


def _card_data(
    results: Record, config: Record, name: str, task: str, tags: list[str], license: str, language: str
) -> ModelCardData:
    """Return the card's metadata, without local folders: the Hub refuses them, and they are private."""
    dataset, base_model = config.get("dataset"), config.get("model_name_or_path")
    shown = _shown(dataset or "custom")
    scores = _scores(results)
    entries = [
        EvalResult(
            task_type=task,
            task_name=TASKS[task],
            dataset_type=shown,
            dataset_name=shown,
            dataset_config=config.get("retrieval"),
            dataset_split=SPLITS[split],
            metric_type=metric,
            metric_name=f"{split} {METRICS[metric]}" + (f" ({variant.replace('_', ' ')})" if variant else ""),
            metric_value=round(value, 4),
        )
        for (split, variant), row in scores.items()
        if variant != "oracle"  # no score of this model
        for metric, value in row.items()
    ]
    return ModelCardData(
        license=license,
        language=language,
        library_name="transformers",
        pipeline_tag=task,
        tags=["more", "retrieval", TASKS[task].lower().replace(" ", "-"), *tags],
        datasets=[str(dataset)] if _is_hub_id(dataset) else None,
        base_model=base_model if _is_hub_id(base_model) else None,
        metrics=sorted({metric.removeprefix("strict_") for row in scores.values() for metric in row}) or None,
        model_name=name if entries else None,
        eval_results=entries or None,
    )


def _write_eval_results(output_dir: Path, results: Record, dataset: Any, retrieval: str) -> None:
    """Write the results in the Hub's newer form, which exists only for data sets on the Hub."""
    f1 = _scores(results).get(("test", ""), {}).get("f1")
    if f1 is None or not _is_hub_id(dataset):
        return
    entry = EvalResultEntry(dataset_id=dataset, task_id=retrieval, value=round(f1, 4), notes="micro F1, percent, test")
    content = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
    write_text(output_dir / ".eval_results" / f"{dataset.split('/')[1]}.yaml", content)


def _scores(results: Record) -> dict[tuple[str, str], dict[str, float]]:
    """Return `{("test", ""): {"f1": 83.1, …}, ("test", "no_knowledge"): …}`, test first and no variant first."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for key, value in results.items():
        if (match := _SCORE.fullmatch(key)) and _finite(value):
            found.setdefault((match["split"], match["variant"] or ""), {})[match["metric"]] = float(value)
    return dict(sorted(found.items(), key=lambda item: (item[0][0] != "test", item[0][1] != "")))


def _scores_table(results: Record) -> str:
    scores = _scores(results)
    used = [metric for metric in METRICS if any(metric in row for row in scores.values())]
    rows = []
    for (split, variant), row in scores.items():
        told = VARIANTS.get(variant) or variant.replace("_", " ")
        line: dict[str, Any] = {"split": f"{split}, {told}" if told else split}
        for metric in used:
            value: Any = row.get(metric)
            deviation = results.get("_".join(part for part in (split, variant, metric, "std") if part))
            line[METRICS[metric]] = f"{value:.2f} ± {deviation:.2f}" if value and _finite(deviation) else value
        rows.append(line)
    return markdown_table(rows)


def _seeds_note(results: Record) -> str:
    seeds = results.get("seeds")
    if not isinstance(seeds, Sequence | Mapping) or isinstance(seeds, str) or len(seeds) < 2:
        return ""
    return f"Mean ± standard deviation over the seeds {', '.join(map(str, seeds))}."


def _per_type_table(results: Record) -> str:
    columns = ("F1", "precision", "recall", "support")
    per_type = results.get("test_f1_per_type") or {}
    return markdown_table(
        [{"type": escaped(t), **{c: row.get(c.lower()) for c in columns}} for t, row in per_type.items()]
    )


def _description(task: str, config: Record, dataset: Any, retrieval: str) -> str:
    base = config.get("model_name_or_path")
    reads = {
        "none": "It reads the post alone.",
        "text": "It reads the post together with knowledge retrieved by the post's text.",
        "image": "It reads the post together with knowledge retrieved by the post's image.",
    }.get(retrieval, f"It reads the post together with retrieved knowledge ({retrieval}).")
    return (
        f"{TASKS[task]} in social-media posts, by the method of {PAPER}."
        + (
            f" Fine-tuned from {code_span(_shown(base))}" + (f" on {code_span(_shown(dataset))}." if dataset else ".")
            if base
            else ""
        )
        + f" {reads}"
    )


def scored_parts(model: str, task: str, retrieval: str) -> dict[str, str]:
    """Return the arguments of `write_model_card` for a saved model that a run scored without training it."""
    told = f"{TASKS[task].lower()} by the method of {PAPER}"
    return {
        "description": f"Scores of {code_span(_shown(model))} as it is: {told}.",
        "usage": usage_code(task, _shown(model), [retrieval]),
    }


def _scrub_config(config: Record) -> dict[str, Any]:
    """Return settings in types that YAML can hold, with secrets hidden."""

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return _scrub_config(value)
        if isinstance(value, list | tuple | set):
            return [clean(item) for item in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        return without_secrets(str(value))

    return {k: REDACTED if value and _SECRET_NAME.search(k) else clean(value) for k, value in config.items()}


def _is_hub_id(value: Any) -> bool:
    return isinstance(value, str) and bool(_HUB_ID.fullmatch(value)) and not Path(value).exists()


def _shown(value: Any) -> str:
    """Return a Hub id as it is, and of a folder's path only the name."""
    return str(value) if _is_hub_id(value) else Path(str(value)).name or Path(str(value)).resolve().name


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _section(title: str, *bodies: str) -> str:
    bodies = tuple(body for body in bodies if body)
    return "\n\n".join([f"## {title}", *bodies]) if bodies else ""


def _details(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"
