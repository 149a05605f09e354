"""Losses and gradients that are NaN or infinite: no step is taken by them, on no process, and one sentence says so."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_optimizer_steps import entities
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

import re_runs
import run_ner
import run_re
from mixture_experts import builder, save_experts
from modeling_more import MoReForTokenClassification
from modeling_more.training.arguments import MixtureArguments, TrainingArguments
from modeling_more.training.expert_outputs import Features
from modeling_more.training.gate_training import DevResult, train_gate
from modeling_more.training.loop import train
from modeling_more.training.setup import make_accelerator
from ner_runs import options, read, run_in_two

POSTS = 24  # six batches an epoch


def spoil(model, calls, value, gradient=False):
    """Let the loss (or just the gradient) of these batches, from 0, be `value` times what it is."""
    seen = []

    def after(module, _, output):
        if module.training and output.loss is not None:
            seen.append(1)
            if len(seen) - 1 in calls and gradient:
                output.logits.register_hook(lambda given: given * value)
            elif len(seen) - 1 in calls:
                output.loss = output.loss * value
        return output

    model.register_forward_hook(after)


def run(encoder, folder, calls=(), value=math.nan, gradient=False, **more):
    """Train; weights and optimizer counts after each step, the training's record."""
    model, processor, encoded = entities(encoder, POSTS, two_views="off")
    spoil(model, calls, value, gradient)
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, learning_rate=1e-3, **{"num_train_epochs": 2} | more
    )
    after = []

    def look(optimizer, *_):
        counts = {int(one["step"]) for one in optimizer.state.values()}
        after.append(({name: p.detach().clone() for name, p in model.named_parameters()}, counts))

    hook = register_optimizer_step_post_hook(look)
    try:
        accelerator = make_accelerator(arguments)
        _, state = train(accelerator, model, processor, encoded, lambda _: 1.0, arguments)
    finally:
        hook.remove()
    return after, state


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("value", "gradient", "more"),
    [
        (math.nan, False, {}),
        (math.inf, True, {}),
        (math.inf, False, {"max_grad_norm": 1.0}),
        (math.nan, True, {"gradient_accumulation_steps": 2}),
    ],
)
def test_a_skipped_step_leaves_weights_and_moments(value, gradient, more, tiny_encoder, tmp_path, caplog):
    accumulation = more.get("gradient_accumulation_steps", 1)
    calls = (2 * accumulation, 4 * accumulation)
    after, state = run(tiny_encoder("bert"), tmp_path, calls, value, gradient, skip_nonfinite_steps=2, **more)
    good, bad = [0, 1, 3], [2, 4]
    for step in range(1, 5):
        assert equal(after[step][0], after[step - 1][0]) == (step in bad)
    assert [counts for _, counts in after[:5]] == [{sum(one <= step for one in good)} for step in range(5)]
    assert sum(row["skipped_steps"] for row in state.history) == 2
    assert all(math.isfinite(row["loss"]) for row in state.history)
    assert "step 3 of epoch 1 is skipped" in caplog.text and "posts number" in caplog.text


@pytest.mark.parametrize("gradient", [False, True])
def test_the_first_one_stops_the_training_by_default(gradient, tiny_encoder, tmp_path):
    told = r"optimizer step 4 of epoch 2 \(posts number \d+, .*\), which was not taken: .*from epoch 1, which is kept"
    with pytest.raises(FloatingPointError, match=told):
        run(tiny_encoder("bert"), tmp_path, (9,), gradient=gradient)
    # the way on that it names
    calls, more = (3,), {"resume_from_checkpoint": "latest", "skip_nonfinite_steps": 10}
    _, state = run(tiny_encoder("bert"), tmp_path, calls, gradient=gradient, **more)
    assert state.epoch == 2 and state.history[-1]["skipped_steps"] == 1
    with pytest.raises(FloatingPointError, match="step 1 of epoch 1 .*or with --max_grad_norm 1 or --skip_nonfinite"):
        run(tiny_encoder("bert"), tmp_path / "other", (0,), gradient=gradient)


def test_more_than_may_be_skipped_stop_it_anyway(tiny_encoder, tmp_path):
    """Counted over all epochs."""
    with pytest.raises(FloatingPointError, match="step 2 of epoch 2 .*after 2 that were skipped.*_steps 10"):
        run(tiny_encoder("bert"), tmp_path, (2, 5, 7), skip_nonfinite_steps=2)
    with pytest.raises(FloatingPointError, match="step 3 of epoch 1"):
        run(tiny_encoder("bert"), tmp_path / "all", range(99), skip_nonfinite_steps=2)
    with pytest.raises(FloatingPointError, match="no batch of epoch 1"):
        run(tiny_encoder("bert"), tmp_path / "none", range(99), skip_nonfinite_steps=99)


@pytest.mark.parametrize("task", ["entities", "relations"])
def test_a_rate_far_too_high_ends_in_one_sentence(task, files, tiny_encoder, tmp_path):
    if task == "entities":
        main, given = run_ner.main, options(files, tiny_encoder("bert"), "--learning_rate", "1e30")
    else:
        main, files = run_re.main, re_runs.write_files(tmp_path)
        given = re_runs.options(files, tiny_encoder("bert"), "--learning_rate", "1e30")
    with pytest.raises(SystemExit, match=r"^error: loss or gradient became NaN or infinite in optimizer step 2"):
        main(given)
    # seen only when dev is scored, after a single step
    one = ["--per_device_train_batch_size", "36", "--output_dir", str(tmp_path / "one")]
    with pytest.raises(SystemExit, match=r"^error: the model's scores of the dev posts are NaN or infinite"):
        main([*given, *one])


def test_what_was_skipped_is_in_results_and_card(files, tiny_encoder):
    seen = []

    def after(module, _, output):
        if isinstance(module, MoReForTokenClassification) and module.training:
            seen.append(1)
            output.loss = output.loss * (math.nan if len(seen) == 3 else 1.0)

    hook = register_module_forward_hook(after)
    try:
        found = run_ner.main(options(files, tiny_encoder("bert"), "--skip_nonfinite_steps", "1"))
    finally:
        hook.remove()
    assert found["skipped_steps"] == 1 and read(files, "arguments.json")["skip_nonfinite_steps"] == 1
    card = (Path(files["out"]) / "README.md").read_text()
    assert "1 optimizer steps were skipped" in card and "skip_nonfinite_steps: 1" in card


@pytest.mark.parametrize("gate", ["post", "word"])
def test_a_gates_weight_of_0_has_a_gradient(gate, tiny_encoder, tmp_path):
    """Also where the entropy has no weight: its derivative at 0 is infinite, and infinity times 0 no number."""
    mixture, _, batch = builder(save_experts(tmp_path, tiny_encoder))(gate=gate, gate_scale=0.01)
    with torch.no_grad():
        mixture.gate.output.bias.copy_(torch.tensor([150.0, 0.0]))
    output = mixture(**batch)
    output.loss.backward()
    assert not output.expert_weights[..., 1].any() and output.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in mixture.gate.parameters())


def test_a_gate_that_diverges_ends_in_one_sentence(tiny_encoder, tmp_path):
    model, _, _ = builder(save_experts(tmp_path, tiny_encoder))(image_dim=0)
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 5, 2, 4] * 4
    size = model.config.num_labels, model.gate.text_norm.normalized_shape[0]
    features = Features(
        [torch.randn(2, length, size[0], generator=generator) for length in lengths],
        [torch.randn(size[1], generator=generator) for _ in lengths],
    )
    labels = [[0] * length for length in lengths]
    args = MixtureArguments(gate_batch_size=4, gate_learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="of the gate became NaN or infinite in its epoch 1, at batch"):
        train_gate(model, features, labels, lambda: DevResult(0.0, np.zeros((1, 3), int)), args, seed=0)


TWO = """
import sys
import torch
sys.path[:1] = [sys.argv[1], f"{sys.argv[1]}/.."]
from accelerate import PartialState
from test_nonfinite_steps import equal, run
number = PartialState(cpu=True).process_index
calls = (1,) if number == 1 else ()
after, state = run(sys.argv[2], sys.argv[3], calls, skip_nonfinite_steps=1)
assert not equal(after[0][0], after[2][0]) and equal(after[0][0], after[1][0]), number
assert state.history[0]["skipped_steps"] == 1
torch.save(after[-1][0], f"{sys.argv[3]}/{number}.pt")
try:
    run(sys.argv[2], sys.argv[3] + "/other", calls)
except FloatingPointError as error:
    assert "optimizer step 2 of epoch 1" in str(error)
    torch.save(number, f"{sys.argv[3]}/stopped-{number}.pt")
"""


def test_what_is_bad_on_one_process_is_skipped_by_all(tiny_encoder, tmp_path):
    run_in_two(TWO, tmp_path, Path(__file__).parent, tiny_encoder("bert"), str(tmp_path))
    assert [torch.load(tmp_path / f"stopped-{number}.pt") for number in (0, 1)] == [0, 1]
    assert equal(torch.load(tmp_path / "0.pt"), torch.load(tmp_path / "1.pt"))
