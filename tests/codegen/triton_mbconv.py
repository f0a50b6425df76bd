"""An MBConv block, forward and backward, as Triton kernels in the interpreter, against PyTorch in float64."""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks.mbconv_run import FusedBlock, MBConv, make_block, reference, sizes_of
from shorthaul.testing.numerics import compare, pool

# n, h, w, input, expanded, output, squeezed channels, taps, stride
SHAPES = {
    "residual": (2, 6, 6, 8, 24, 8, 4, 3, 1),
    "strided": (3, 7, 5, 8, 20, 12, 3, 3, 2),
    "five_taps": (2, 5, 3, 4, 12, 4, 2, 5, 1),
}


@pytest.mark.parametrize(("shape", "dtype", "keep"), [("residual", "float32", False), ("residual", "bfloat16", True),
                                                       ("strided", "float32", True), ("five_taps", "float32", False)])  # fmt: skip
def test_block_agrees_with_eager(shape, dtype, keep):
    _, _, _, ci, ce, co, cr, taps, stride = SHAPES[shape]
    low = getattr(torch, dtype)
    block = make_block(dtype, ci, co, taps, stride, keep_activation=keep)
    fused = FusedBlock(block, sizes_of(*SHAPES[shape]), tiles={m.name: {"programs": 3} for m in block.maps})
    agreements = []
    for seed in range(3):
        torch.manual_seed(seed)
        module = MBConv(ci, ce, co, cr, taps, stride)
        for norm in (module.norm1, module.norm2, module.norm3):
            torch.nn.init.normal_(norm.weight, 1, 0.3)
            torch.nn.init.normal_(norm.bias, 0, 0.3)
        x, dout = torch.randn(fused.tensors["x"].shape).to(low), torch.randn(fused.tensors["out"].shape).to(low)
        fused.load_module(module)
        fused.tensors["x"].copy_(x)
        fused.tensors["dout"].copy_(dout)
        fused.forward()
        fused.backward()
        exact = reference(copy.deepcopy(module).double(), x.double(), dout.double())
        eager = reference(copy.deepcopy(module), x, dout, low if low is torch.bfloat16 else None)
        agreements.append(
            compare({name: t.reshape(eager[name].shape) for name, t in fused.results().items()}, eager, exact)
        )
    agreement = pool(agreements)
    print(agreement)
    assert agreement.ok, str(agreement)
