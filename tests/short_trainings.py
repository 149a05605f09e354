"""What the tests of checkpoints share: a training of a second, and what it leaves, to compare."""

import json
from pathlib import Path
from typing import Any

import torch

from modeling_more import MoReForTokenClassification, MoReProcessor
from modeling_more.encoding import encode_posts
from modeling_more.tagging import bioes_labels
from modeling_more.training.arguments import TrainingArguments
from modeling_more.training.loop import train
from modeling_more.training.setup import make_accelerator
from ner_runs import posts

SCORES = (40.0, 60.0, 80.0, 70.0)  # on dev, of each epoch


def scores(first: int) -> Any:
    """Return what evaluates the epochs of a training from the `first` on."""
    left = iter(SCORES[first - 1 :])
    return lambda _: next(left)


def run(encoder: str, folder: Path, evaluate: Any = None, **options: Any) -> tuple[dict, dict[str, torch.Tensor]]:
    """Train an expert on eight posts with dropout; return what a resumed run must repeat: record and best weights."""
    if evaluate is None:
        last = folder / "checkpoints" / "last" / "training_state.json"
        done = json.loads(last.read_text())["epoch"] if options.get("resume_from_checkpoint") else 0
        evaluate = scores(done + 1)
    given = {"num_train_epochs": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "use_cpu": True}
    args = TrainingArguments(output_dir=str(folder), **(given | options))
    processor = MoReProcessor.from_encoder_pretrained(encoder, max_length=64)
    labels = bioes_labels(["PER", "LOC"])
    torch.manual_seed(0)
    model = MoReForTokenClassification.from_encoder_pretrained(encoder, id2label=dict(enumerate(labels)))
    rows = [{**post, "ner_tags": post["tags"]} for post in posts(8)]
    encoded = encode_posts(rows, processor, model.config.label2id, truncate=True)
    best, state = train(make_accelerator(args), model, processor, encoded, evaluate, args)
    return told(state), {name: value.clone() for name, value in best.state_dict().items()}


def told(state: Any) -> dict[str, Any]:
    """Return the record of a training without the seconds."""
    return json.loads(json.dumps({**vars(state), "history": [{**row, "seconds": 0} for row in state.history]}))


def same(one: tuple[dict, dict[str, torch.Tensor]], other: tuple[dict, dict[str, torch.Tensor]]) -> bool:
    """Return whether two trainings have the same record and weights, bit for bit."""
    (record, weights), (others_record, others) = one, other
    equal = weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)
    return record == others_record and equal
