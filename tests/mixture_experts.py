"""Small experts with random weights and a mixture of them, for the tests of mixtures."""

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from modeling_more import (
    MoReForRelationExtraction,
    MoReForTokenClassification,
    MoReMixtureForRelationExtraction,
    MoReMixtureForTokenClassification,
    MoReMixtureProcessor,
    MoReProcessor,
)
from modeling_more.tagging import bioes_labels
from re_runs import RELATIONS

LABELS = bioes_labels(["PER", "LOC"])
NAMES = ["text", "image"]
ENTRIES = [{"title": "Lindau", "text": "Lindau is a town and an island in Bavaria .", "score": 3.0}]
OTHERS = [{"title": "Acme Corp", "text": "Acme Corp makes phones .", "score": 1.0}]
WORDS = [
    ["Ada", "Lovelace", "met", "Babbage", "."],
    ["Lindau", "\ufe0f", "!"],
    ["Oslo"],
    ["Rivera", *["scored", "twice"] * 14, "today"],  # in windows for the first expert, not for the second
]
KNOWLEDGE = [[ENTRIES, OTHERS, None, ENTRIES], [OTHERS, None, ENTRIES, ENTRIES]]
PAIRS = [([0, 2], [3, 4]), ([0, 1], [2, 3]), ([0, 1], [0, 1]), ([0, 1], [29, 30])]
IMAGE_DIM = 6
TASKS = ("entities", "relations")
CLASSES = {
    "entities": (MoReForTokenClassification, MoReMixtureForTokenClassification, AutoModelForTokenClassification),
    "relations": (
        MoReForRelationExtraction, MoReMixtureForRelationExtraction, AutoModelForSequenceClassification,
    ),
}  # fmt: skip


def save_expert(folder, task, encoder, labels=None, seed=0, **options):
    """An expert with random weights that is sure of itself, so that experts differ."""
    torch.manual_seed(seed)
    labels = labels or (LABELS if task == "entities" else RELATIONS)
    processor = MoReProcessor.from_encoder_pretrained(encoder, markers=task == "relations", **options)
    model = CLASSES[task][0].from_encoder_pretrained(
        encoder, num_tokens=len(processor.tokenizer), id2label=dict(enumerate(labels))
    )
    with torch.no_grad():
        model.classifier.weight *= 8
        for parameter in model.crf.parameters() if task == "entities" else ():
            parameter *= 10
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def save_experts(root, tiny_encoder):
    """Of each task two saved experts: different encoders, tokenizers, columns and max_length."""
    return {
        task: [
            save_expert(root / task / "text", task, tiny_encoder("bert"), seed=1, max_length=24),
            save_expert(
                root / task / "image", task, tiny_encoder("xlm-roberta"), seed=2, max_length=400,
                knowledge_column="knowledge_image",
            ),
        ]
        for task in TASKS
    }  # fmt: skip


def builder(folders):
    """`build(task, **config)` -> (mixture with a random gate, its processor, a batch with images and labels)."""

    def make(task="entities", gate_scale=1.0, **config):
        mixture = CLASSES[task][1].from_experts(folders[task], NAMES, **{"image_dim": IMAGE_DIM} | config)
        torch.manual_seed(3)
        with torch.no_grad():
            for parameter in mixture.gate.parameters():
                parameter.copy_(torch.randn_like(parameter) * gate_scale)
        processor = MoReMixtureProcessor([MoReProcessor.from_pretrained(folder) for folder in folders[task]], NAMES)
        batch = processor(WORDS, KNOWLEDGE, pairs=PAIRS if task == "relations" else None)
        if config.get("image_dim", IMAGE_DIM):
            batch["image_features"] = torch.randn(len(WORDS), IMAGE_DIM)
            batch["image_mask"] = torch.tensor([True, False, True, True])
        shape = batch["word_mask"].shape if task == "entities" else (len(WORDS),)
        batch["labels"] = torch.randint(0, mixture.config.num_labels, shape)
        return mixture, processor, batch

    return make
