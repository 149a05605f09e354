"""What only a GPU can show; skipped where there is none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_more.crf import LinearChainCRF

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("tf32", [False, True])
def test_crf_equals_the_cpu(tf32):
    """Also where matrix products may use TF32: scores of a path are sums that 10 bits of mantissa would spoil."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        torch.manual_seed(0)
        crf = LinearChainCRF(17)
        crf.reset_parameters()
        emissions, tags = torch.randn(8, 30, 17) * 5, torch.randint(17, (8, 30))
        mask = torch.arange(30) < torch.randint(1, 31, (8, 1))
        results = []
        for device in ("cpu", "cuda"):
            moved = emissions.detach().to(device).requires_grad_()
            on = crf.to(device)
            likelihood = on.log_likelihood(moved, tags.to(device), mask.to(device))
            marginals = on.log_marginals(moved, mask.to(device))
            (gradient,) = torch.autograd.grad(
                likelihood.sum() + marginals[mask.to(device)].exp().square().sum(), moved
            )
            paths, _ = on.viterbi(moved.detach(), mask.to(device))
            results.append([x.detach().cpu() for x in (likelihood, marginals.exp(), gradient, paths)])
        for cpu, gpu in zip(*results, strict=True):
            assert torch.allclose(cpu.float(), gpu.float(), rtol=1e-5, atol=1e-4)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_a_bf16_run_learns(tiny_encoder, tmp_path):
    post = '{"tokens": ["Ada", "in", "Oslo"], "tags": ["B-PER", "O", "B-LOC"]}\n'
    (tmp_path / "posts.jsonl").write_text(post * 16)
    posts, out = str(tmp_path / "posts.jsonl"), tmp_path / "out"
    options = ["--model_name_or_path", tiny_encoder("bert"), "--learning_rate", "5e-3", "--num_train_epochs", "10"]
    # in a process of its own: accelerate's precision is set once a process
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_ner.py"), "--train_file", posts, "--validation_file", posts, *options,
         "--bf16", "--output_dir", str(out)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "all_results.json").read_text())["dev_f1"] == 100
