"""The emulation of bf16 hardware that benchmarks use on CPUs without it: its arithmetic, and a script within it."""

import subprocess
import sys

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from ner_runs import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from _bf16 import Bf16Products


@pytest.mark.parametrize("form", ["mm", "addmm", "bmm", "baddbmm"])
def test_products_are_exact_sums_rounded_once(form):
    torch.manual_seed(0)
    batch = (3,) if form.startswith("b") else ()
    left, right = torch.randn(*batch, 7, 96).bfloat16(), torch.randn(*batch, 96, 5).bfloat16()
    bias = [torch.randn(*batch, 7, 5).bfloat16()] if "add" in form else []
    with Bf16Products():
        found = getattr(torch, form)(*bias, left, right)
    exact = left.double() @ right.double() + (bias[0].double() if bias else 0)
    assert found.dtype == torch.bfloat16
    # half a unit of the last of 8 bits, and what float32 lost on the way
    assert torch.all((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-5)


def test_attention_and_its_gradients():
    torch.manual_seed(0)
    inputs = [torch.randn(2, 4, 9, 16).bfloat16().requires_grad_() for _ in range(3)]
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    mask[0, ..., 5:] = False

    def outcome(tensors):
        output = scaled_dot_product_attention(*tensors, attn_mask=mask)
        return [output, *torch.autograd.grad(output.float().square().sum(), tensors)]

    with Bf16Products():
        found = outcome(inputs)
    exact = outcome([x.detach().double().requires_grad_() for x in inputs])
    assert {x.dtype for x in found} == {torch.bfloat16}
    for ours, other in zip(found, exact, strict=True):
        assert (ours.double() - other).norm() <= 0.01 * other.norm()


def test_float32_is_left_alone():
    left, right = torch.randn(7, 96), torch.randn(96, 5)
    with Bf16Products():
        found = left @ right
    assert torch.equal(found, left @ right)


def test_a_script_runs_within_it(tmp_path):
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "script.py").write_text(
        "import sys, beside\n"
        "from torch.utils._python_dispatch import _get_current_dispatch_mode as mode\n"
        "print(__name__, sys.argv[1:], type(mode()).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "_bf16.py"), str(tmp_path / "script.py"), "--bf16"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "__main__ ['--bf16'] Bf16Products"
