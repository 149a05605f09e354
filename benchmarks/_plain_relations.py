"""The plain baseline of benchmarks/mnre.py: sequence classification over marked text by transformers' own Trainer."""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run by its path
    sys.path.insert(0, str(ROOT))

from dataset_scripts import load  # noqa: E402
from modeling_more.files import write_json  # noqa: E402
from modeling_more.metrics import relation_scores  # noqa: E402

MARKS = ("<E>", "</E>", "<O>", "</O>")


def marked_text(row: dict[str, Any]) -> str:
    """The words with markers around both entities, joined by spaces."""
    marks = []
    for (start, end), opening, closing in ((row["head"], *MARKS[:2]), (row["tail"], *MARKS[2:])):
        marks += [(start, 1, -end, opening), (end, 0, -start, closing)]
    words: list[str] = list(row["tokens"])
    for position, _, _, mark in sorted(marks, reverse=True):  # from the end, so that places stay
        words.insert(position, mark)
    return " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir")
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--num_train_epochs", type=float, default=5)
    parser.add_argument("--per_device_train_batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--resume_from_checkpoint", choices=["latest"], help="go on after the last complete epoch")
    args = parser.parse_args()

    set_seed(args.seed)
    data = load("mnre", "none", args.data_dir)
    labels = data["train"].features["relation"].names
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    tokenizer.add_tokens(list(MARKS), special_tokens=True)
    model = AutoModelForSequenceClassification.from_pretrained(args.model_name_or_path, num_labels=len(labels))
    model.resize_token_embeddings(len(tokenizer))

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        return {**tokenizer(marked_text(row), truncation=True, max_length=128), "labels": row["relation"]}

    encoded: dict[str, Dataset] = {
        split: rows.map(encode, remove_columns=rows.column_names) for split, rows in data.items()
    }

    def scores(found: Any) -> dict[str, float]:
        best = [labels[index] for index in found.predictions.argmax(-1)]
        result = relation_scores(best, [labels[index] for index in found.label_ids])
        return {key: result[key] for key in ("f1", "precision", "recall", "macro_f1", "accuracy")}

    checkpoints = args.output_dir / "checkpoints"
    if strange := [path for path in checkpoints.glob("*") if not (path / "trainer_state.json").is_file()]:
        raise SystemExit(f"error: {strange[0]} is no checkpoint of the Trainer: give another --output_dir")
    if not args.resume_from_checkpoint:
        shutil.rmtree(checkpoints, ignore_errors=True)
    checkpoints.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        model,
        TrainingArguments(
            str(checkpoints),
            num_train_epochs=args.num_train_epochs,
            per_device_train_batch_size=args.per_device_train_batch_size,
            per_device_eval_batch_size=64,
            learning_rate=args.learning_rate,
            weight_decay=0.01,
            max_grad_norm=1.0,
            warmup_steps=0.06,  # below 1: a share of all steps
            seed=args.seed,
            bf16=args.bf16,
            use_cpu=True,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="f1",
            report_to="none",
        ),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=scores,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(checkpoints)))
    results: dict[str, Any] = {"seed": args.seed}
    for split, name in (("validation", "dev"), ("test", "test")):
        found = trainer.evaluate(encoded[split], metric_key_prefix=name)
        results |= {key: value for key, value in found.items() if key.startswith(name)}
    write_json(args.output_dir / "all_results.json", results)
    shutil.rmtree(checkpoints)


if __name__ == "__main__":
    main()
