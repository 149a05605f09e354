"""What each optimizer step is made of: its posts, all alike, and its rate, also after the run went on for longer."""

from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from modeling_more import MoReForRelationExtraction, MoReForTokenClassification, MoReProcessor
from modeling_more.data_collator import LengthBatchSampler, MoReDataCollator
from modeling_more.encoding import encode_posts
from modeling_more.tagging import bioes_labels
from modeling_more.training.arguments import TrainingArguments
from modeling_more.training.loop import train
from modeling_more.training.setup import make_accelerator
from ner_runs import posts, run_in_two
from re_runs import RELATIONS, pairs

LABELS = bioes_labels(["PER", "LOC"])


def entities(encoder, number, **config):
    processor = MoReProcessor.from_encoder_pretrained(encoder, max_length=64)
    torch.manual_seed(0)
    model = MoReForTokenClassification.from_encoder_pretrained(encoder, id2label=dict(enumerate(LABELS)), **config)
    rows = [{**post, "ner_tags": post["tags"], "knowledge_text": [{"text": "Oslo is a city ."}]}
            for post in posts(number)]  # fmt: skip
    return without_dropout(model), processor, encode_posts(rows, processor, model.config.label2id, two_views=True)


def relations(encoder, number, **config):
    processor = MoReProcessor.from_encoder_pretrained(encoder, max_length=64, markers=True)
    torch.manual_seed(0)
    model = MoReForRelationExtraction.from_encoder_pretrained(
        encoder, num_tokens=len(processor.tokenizer), id2label=dict(enumerate(RELATIONS)), **config
    )
    return without_dropout(model), processor, encode_posts(
        pairs(number), processor, model.config.label2id, two_views=True
    )  # fmt: skip


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def run(model, processor, encoded, folder, **options):
    """Train; the gradients and the rates of each optimizer step, the rows of each batch, and the result."""
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True, **{"num_train_epochs": 1, **options})
    gradients, rates, batches = [], [], []

    def look(optimizer, *_):
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        rates.append([group["lr"] for group in optimizer.param_groups])

    def collate(rows):
        batches.append([row["index"] for row in rows])
        return MoReDataCollator(processor)(rows)

    hook = register_optimizer_step_pre_hook(look)
    try:
        _, result = train(make_accelerator(arguments), model, processor, encoded, lambda _: 1.0, arguments, collate)
    finally:
        hook.remove()
    return gradients, rates, batches, result


def mean_gradient(model, processor, encoded, rows):
    """The gradient of the mean of the posts' losses, post by post."""
    model.zero_grad()
    model.train()
    for row in rows:
        batch = MoReDataCollator(processor)([encoded[row]])
        del batch["index"]
        (model(**batch).loss / len(rows)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(one, other):
    assert one.keys() == other.keys()
    for name in one:
        scale = float(other[name].abs().max())
        assert torch.allclose(one[name], other[name], rtol=1e-3, atol=1e-5 * max(scale, 1e-3)), name


@pytest.mark.parametrize("two_views", ["off", "crf_kl"])
def test_every_post_of_a_step_weighs_the_same(two_views, tiny_encoder, tmp_path, monkeypatch):
    """Batches of 9, 8 and 2 posts: steps of two batches, the last one incomplete."""
    model, processor, encoded = entities(tiny_encoder("bert"), 19, two_views=two_views)
    monkeypatch.setattr(LengthBatchSampler, "_cut", lambda self, order: [order[:9], order[9:11], order[11:]])
    gradients, _, batches, result = run(
        model, processor, encoded, tmp_path, gradient_accumulation_steps=2, learning_rate=0.0
    )
    assert [len(batch) for batch in batches] == [9, 2, 8] and len(gradients) == 2
    close(gradients[0], mean_gradient(model, processor, encoded, batches[0] + batches[1]))
    close(gradients[1], mean_gradient(model, processor, encoded, batches[2]))
    with torch.no_grad():
        losses = []
        for row in encoded:
            batch = MoReDataCollator(processor)([row])
            del batch["index"]
            losses.append(model.train()(**batch).loss.item())
    assert result.history[0]["loss"] == pytest.approx(sum(losses) / 19, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (entities, {}),
        (entities, {"two_views": "crf_kl"}),
        (relations, {}),
        (relations, {"class_weights": [0.5, 3.0, 1.5]}),
        (relations, {"class_weights": [0.5, 3.0, 1.5], "two_views": "kl"}),
    ],
)
def test_eight_times_one_is_one_times_eight(make, config, tiny_encoder, tmp_path):
    """19 posts: two whole steps and one of three posts."""
    found = {}
    for accumulation, size in ((8, 1), (1, 8), (2, 4)):
        model, processor, encoded = make(tiny_encoder("bert"), 19, **config)
        options = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": size}
        gradients, _, _, result = run(model, processor, encoded, tmp_path / str(size), **options, learning_rate=0.0)
        found[accumulation] = gradients, result.history[0]
        assert len(gradients) == 3
    for accumulation in (8, 2):
        for one, other in zip(found[accumulation][0], found[1][0], strict=True):
            close(one, other)
        losses, expected = (
            {key: value for key, value in found[one][1].items() if key.endswith("loss")} for one in (accumulation, 1)
        )
        assert losses == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_a_batch_a_step_is_the_plain_loop_bit_for_bit(tiny_encoder, tmp_path):
    """So that without accumulation nothing moves: a step is the mean over its batch, the last small one too."""
    model, processor, encoded = entities(tiny_encoder("bert"), 10, two_views="crf_kl")
    gradients, _, batches, _ = run(model, processor, encoded, tmp_path, learning_rate=0.0)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    for found, rows in zip(gradients, batches, strict=True):
        batch = MoReDataCollator(processor)([encoded[row] for row in rows])
        del batch["index"]
        model.train()
        model.zero_grad()
        model(**batch).loss.backward()
        assert all(torch.equal(found[name], p.grad) for name, p in model.named_parameters() if name in found)


CASES = [
    ("entities", {"two_views": "crf_kl"}, {"posts": 7, "max_tokens_per_batch": 60}),
    ("entities", {}, {"posts": 9, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
    ("relations", {"class_weights": [0.5, 3.0, 1.5]}, {"posts": 5, "per_device_train_batch_size": 1}),
]
TWO = """
import sys
import torch
sys.path[:1] = [sys.argv[1], f"{sys.argv[1]}/.."]
from test_optimizer_steps import CASES, case
from accelerate import PartialState
found = [case(one, sys.argv[2], f"{sys.argv[3]}/{number}")[::3] for number, one in enumerate(CASES)]
if PartialState().is_main_process:
    rows = [[gradients, result.history[0]["loss"]] for gradients, result in found]
    torch.save([PartialState().num_processes, rows], sys.argv[3] + "/found.pt")
"""


def case(one, encoder, folder, **more):
    task, config, options = one
    options = dict(options)
    made = (entities if task == "entities" else relations)(encoder, options.pop("posts"), **config)
    # rate 0: Adam's first steps would turn what is rounded into other weights
    return run(*made, folder, learning_rate=0.0, crf_learning_rate=0.0, **options | more)


def test_two_processes_step_as_one(tiny_encoder, tmp_path):
    """The same batches dealt to two processes or accumulated in one; a batch that evens them out counts once."""
    run_in_two(TWO, tmp_path, Path(__file__).parent, tiny_encoder("bert"), str(tmp_path))
    processes, found = torch.load(tmp_path / "found.pt")
    assert processes == 2
    for number, (one, (gradients, loss)) in enumerate(zip(CASES, found, strict=True)):
        accumulation = 2 * one[2].get("gradient_accumulation_steps", 1)
        expected, _, batches, result = case(
            one, tiny_encoder("bert"), tmp_path / f"one-{number}", gradient_accumulation_steps=accumulation
        )
        assert len(batches) % 2 == 1, "an uneven number of batches was meant"
        assert len(gradients) == len(expected) > 1
        for mine, other in zip(gradients, expected, strict=True):
            close(mine, other)
        assert loss == pytest.approx(result.history[0]["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [{}, {"lr_decay": "epoch"}, {"warmup_ratio": 0.6}, {"gradient_accumulation_steps": 2, "crf_learning_rate": 0.5}],
)
def test_a_run_that_goes_on_for_longer_has_the_rates_of_the_longer_run(options, tiny_encoder, tmp_path, caplog):
    def rates(folder, epochs, **more):
        model, processor, encoded = entities(tiny_encoder("bert"), 10)
        _, found, batches, _ = run(
            model, processor, encoded, folder, num_train_epochs=epochs, learning_rate=1e-3, **options, **more
        )
        return found, batches

    whole, order = rates(tmp_path / "whole", 4)
    first, _ = rates(tmp_path / "run", 2)
    caplog.set_level("INFO")
    rest, rest_order = rates(tmp_path / "run", 4, resume_from_checkpoint="latest")
    assert rest == whole[len(first) :] and rest_order == order[len(order) // 2 :]
    if first[-1] != whole[len(first) - 1]:
        assert "of 4 epochs" in caplog.text
    # and of a shorter one
    caplog.clear()
    rates(tmp_path / "long", 2)
    shorter, _ = rates(tmp_path / "short", 3)
    model, processor, encoded = entities(tiny_encoder("bert"), 10)
    again = {
        "num_train_epochs": 3,
        "learning_rate": 1e-3,
        "resume_from_checkpoint": str(tmp_path / "long/checkpoints/last"),
    }
    found = run(model, processor, encoded, tmp_path / "other", **options, **again)[1]
    assert found == shorter[len(first) :]
