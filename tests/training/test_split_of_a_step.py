"""The same posts give the same losses and gradients, however they are split into batches, steps and processes."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_optimizer_steps import entities, relations, without_dropout
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mixture_experts import ENTRIES, NAMES, OTHERS, builder, save_expert
from modeling_more import MoReMixtureProcessor, MoReProcessor
from modeling_more.data_collator import LengthBatchSampler, MixtureCollator, MoReDataCollator
from modeling_more.encoding import EXPERT_KNOWLEDGE, encode_for_experts
from modeling_more.training.arguments import TrainingArguments
from modeling_more.training.loop import train
from modeling_more.training.setup import make_accelerator
from ner_runs import posts, run_in_two
from re_runs import pairs

SIZES = (46, 44, 6)  # of the batches; on two processes a fourth repeats the first
WEIGHTS = [0.2, 9.0, 1.5]
CASES = {
    "entities": (entities, {}),
    "two views": (entities, {"two_views": "crf_kl"}),
    "relations": (relations, {"class_weights": WEIGHTS}),
    "relations, two views": (relations, {"class_weights": WEIGHTS, "two_views": "kl"}),
    "gate per post": ("entities", {"gate": "post", "entropy": 3.0}),
    "gate per word": ("entities", {"gate": "word", "entropy": 3.0}),
    "gate of relations": ("relations", {"entropy": 3.0}),
}


def save_experts(folder, tiny_encoder):
    """Two experts of each task, one of which reads all but the shortest posts in windows."""
    for task in ("entities", "relations"):
        save_expert(folder / task / "text", task, tiny_encoder("bert"), seed=1, max_length=20)
        save_expert(folder / task / "image", task, tiny_encoder("bert"), seed=2, max_length=64)


def mixture(task, folder, **config):
    """A mixture whose experts are trained along, its rows and their collator."""
    folders = {task: [str(folder / task / name) for name in NAMES]}
    model, _, _ = builder(folders)(task, image_dim=0, train_experts=True, gate_scale=0.5, **config)
    processor = MoReMixtureProcessor([MoReProcessor.from_pretrained(one) for one in folders[task]], NAMES)
    read = [ENTRIES, OTHERS, None]
    rows = posts(sum(SIZES)) if task == "entities" else pairs(sum(SIZES))
    rows = [{**row, EXPERT_KNOWLEDGE: [read[i % 3], read[i % 2]]} for i, row in enumerate(rows)]
    encoded = encode_for_experts(rows, processor)
    generator = torch.Generator().manual_seed(0)
    for row in encoded:
        words = row["experts"][0]["word_positions"]
        size = (len(words),) if task == "entities" else ()
        row["labels"] = torch.randint(0, model.config.num_labels, size, generator=generator).tolist()
    return without_dropout(model), encoded, MixtureCollator(processor)


def run(name, sizes, accumulation, encoder, experts, folder):
    """Train for an epoch without moving; the gradient of each optimizer step, and the epoch's losses."""
    make, config = CASES[name]
    if isinstance(make, str):
        model, encoded, collate = mixture(make, experts, **config)
    else:
        model, processor, encoded = make(encoder, sum(SIZES), **config)
        collate = MoReDataCollator(processor)
    model.double()
    gradients = []

    def look(optimizer, *_):
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    cut = LengthBatchSampler._cut
    # always in one order, the long posts together
    LengthBatchSampler._cut = lambda self, order: [
        sorted(order, key=lambda row: (self.lengths[row], row))[end - size : end]
        for end, size in zip(ends, sizes, strict=True)
    ]
    options = {"gradient_accumulation_steps": accumulation, "learning_rate": 0.0, "crf_learning_rate": 0.0}
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True, num_train_epochs=1, **options)
    hook = register_optimizer_step_pre_hook(look)
    try:
        accelerator = make_accelerator(arguments)
        _, state = train(accelerator, model, None, encoded, lambda _: 1.0, arguments, collate)
    finally:
        hook.remove()
        LengthBatchSampler._cut = cut
    return gradients, {key: value for key, value in state.history[0].items() if key.endswith("loss")}


def same(found, expected):
    gradients, losses = found
    assert losses == pytest.approx(expected[1], rel=1e-5)
    assert len(gradients) == len(expected[0])
    for mine, other in zip(gradients, expected[0], strict=True):
        assert mine.keys() == other.keys()
        largest = max(float(value.abs().max()) for value in other.values())
        for name, value in other.items():  # that of the keys' bias is 0 but for rounding
            scale = max(float(value.abs().max()), 1e-9 * largest)
            assert torch.allclose(mine[name], value, rtol=1e-5, atol=1e-5 * scale), name


TWO = """
import sys
from pathlib import Path
import torch
sys.path[:1] = [sys.argv[1], f"{sys.argv[1]}/.."]
from test_split_of_a_step import CASES, SIZES, run
from accelerate import PartialState
_, _, encoder, experts, out = sys.argv
found = {name: run(name, SIZES, 2, encoder, Path(experts), f"{out}/{number}") for number, name in enumerate(CASES)}
if PartialState().is_main_process:
    assert PartialState().num_processes == 2
    torch.save(found, out + "/found.pt")
"""


@pytest.fixture(scope="module")
def experts(tmp_path_factory, tiny_encoder):
    save_experts(folder := tmp_path_factory.mktemp("experts"), tiny_encoder)
    return folder


@pytest.fixture(scope="module")
def on_two_processes(tmp_path_factory, tiny_encoder, experts):
    """What `run` finds of each case on two processes: a step of three batches and one that evens them out."""
    folder = tmp_path_factory.mktemp("two")
    run_in_two(TWO, folder, Path(__file__).parent, tiny_encoder("bert"), str(experts), str(folder))
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_of_any_split(name, tiny_encoder, experts, on_two_processes, tmp_path):
    def split(sizes, accumulation):
        folder = tmp_path / f"{len(sizes)}-{accumulation}"
        return run(name, sizes, accumulation, tiny_encoder("bert"), experts, folder)

    whole = split([sum(SIZES)], 1)
    same(split(SIZES, 3), whole)
    same(on_two_processes[name], whole)
    # the losses of an epoch of three steps are those of an epoch of one, and its gradients those of their posts
    steps, losses = split(SIZES, 1)
    assert losses == pytest.approx(whole[1], rel=1e-5)
    weighed = [
        {key: sum(step[key] * size / sum(SIZES) for step, size in zip(steps, SIZES, strict=True)) for key in steps[0]}
    ]
    same((weighed, losses), whole)


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=90),
    batch_size=st.integers(1, 9),
    max_tokens=st.none() | st.integers(1, 200),
    by_length=st.booleans(),
    processes=st.integers(1, 5),
    accumulation=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
def test_every_post_once_an_epoch_and_shares_of_one(
    lengths, batch_size, max_tokens, by_length, processes, accumulation, epoch
):
    sampler = LengthBatchSampler(lengths, batch_size, max_tokens, by_length=by_length, pool=3, multiple_of=processes)
    sampler.set_epoch(epoch)
    batches, per_step = list(sampler), processes * accumulation
    shares = sampler.shares(per_step)
    assert len(batches) == len(shares) == len(sampler) and len(batches) % processes == 0
    counted = [row for batch, share in zip(batches, shares, strict=True) for row in batch[: share.posts]]
    assert Counter(counted) == Counter(range(len(lengths)))
    repeated = [batch for batch, share in zip(batches, shares, strict=True) if share.posts == 0]
    assert len(repeated) < processes and all(batch in batches[: len(batches) - len(repeated)] for batch in repeated)
    for first in range(0, len(batches), per_step):
        step = shares[first : first + per_step]
        assert sum(share.scale for share in step) == pytest.approx(per_step)
        # a post's part of the step: its batch's mean, scaled, and divided by accumulation and processes
        parts = [share.scale / share.posts for share in step if share.posts]
        assert parts == pytest.approx([per_step / sum(share.posts for share in step)] * len(parts))
