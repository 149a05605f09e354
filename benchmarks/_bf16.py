"""Run a training script in bf16 on a CPU without bf16 instructions, about as fast as in float32.

python benchmarks/_bf16.py run_ner.py --bf16 …

torch takes many times as long for bf16 there (8.6 s a step against 0.6 s where this was measured). Here products of
bf16 matrices and attention are computed on float32 copies and rounded to bf16 once, which is the arithmetic of bf16
hardware: the product of two bf16 numbers is exact in float32, sums run in float32. All else is torch's own bf16.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

aten = torch.ops.aten
PRODUCTS = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}


class Bf16Products(TorchDispatchMode):
    """Within this context, products of bf16 tensors on the CPU sum in float32 and are rounded once."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function not in PRODUCTS or args[0].dtype != torch.bfloat16:
            return function(*args, **kwargs)

        def widened(value: Any) -> Any:
            return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value

        made = function(*tree_map(widened, args), **tree_map(widened, kwargs))
        if isinstance(made, torch.Tensor):
            return made.bfloat16()
        if "backward" in function.name():
            return tuple(gradient.bfloat16() for gradient in made)
        output, log_sum = made  # the logarithms stay in float32, as in torch's bf16 kernel
        return output.bfloat16(), log_sum


if __name__ == "__main__":
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)  # as if the script were run by its own path
    with Bf16Products():
        runpy.run_path(sys.argv[0], run_name="__main__")
