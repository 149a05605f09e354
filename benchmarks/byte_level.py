"""Entity scores of a byte-level tokenizer on Twitter-2017, by the code of several checkouts of this repository.

python benchmarks/byte_level.py --checkouts ../before .

Trains a byte-level tokenizer on the posts, pairs it with a random RoBERTa of four layers, and lets each checkout's
run_ner.py train it. A processor that glues words ("TheLakers") or spells them otherwise than running text does shows
here. Writes benchmarks/results/byte_level.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _common import ROOT, commit_of, write_result
from _runs import RESULTS, mean
from modeling_more.data.conll import read_conll

OPTIONS = (
    "--dataset twitter17 --retrieval none --num_train_epochs 2 --per_device_train_batch_size 16 --learning_rate 5e-4 "
    "--crf_learning_rate 5e-2 --max_length 256 --no_save_checkpoints"
)


def save_encoder(posts: list[str], folder: Path) -> None:
    """Write a random four-layer RoBERTa and a byte-level tokenizer trained on these posts."""
    import torch
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

    ids = {token: id_ for id_, token in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))}
    tokenizer = RobertaTokenizer(vocab=ids).train_new_from_iterator(posts, 8000, show_progress=False)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=514,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    RobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkouts", type=Path, nargs="+", default=[ROOT], help="folders of this repository")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with the real data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    data = (args.data / "twitter2017").resolve()
    with tempfile.TemporaryDirectory() as work:
        encoder = Path(work) / "encoder"
        save_encoder([" ".join(post["tokens"]) for post in read_conll(data / "train.txt")], encoder)
        for number, checkout in enumerate(args.checkouts):
            runs = []
            for seed in args.seeds:
                folder = Path(work) / f"{number}-{seed}"
                words = ["run_ner.py", *OPTIONS.split(), "--data_dir", str(data), "--seed", str(seed)]
                words += ["--model_name_or_path", str(encoder), "--output_dir", str(folder)]
                subprocess.run([sys.executable, *words], check=True, cwd=checkout)
                runs.append(json.loads((folder / RESULTS).read_text()))
            rows.append(
                {
                    "commit": commit_of(checkout),
                    "seeds": " ".join(map(str, args.seeds)),
                    "test F1": mean(runs, "test_f1"),
                    "of each seed": " ".join(f"{run['test_f1']:.2f}" for run in runs),
                    "dev F1": mean(runs, "dev_f1"),
                }
            )
    write_result(
        "byte_level",
        "Entities on Twitter-2017, random four-layer RoBERTa with a byte-level tokenizer",
        rows,
        note=(
            "Micro F1 in percent after the better of 2 epochs from random weights, so far below a pretrained encoder; "
            "batch 16, learning rate 5e-4. Up to the first commit words were glued (`TheLakersplay`), since then each "
            "has the sub-tokens that it has in running text."
        ),
    )


if __name__ == "__main__":
    main()
