"""Layers and functions of PyTorch through `sh.optimize`: outputs, gradients of parameters and inputs, buffers, against eager in float64."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from api_compare import fresh, loss
from torch.utils._pytree import tree_leaves, tree_map

import shorthaul as sh
from shorthaul.testing import sample

sys.path.append(str(Path(__file__).parents[1] / "frontends"))  # the modules are those of the front end's tests
from test_functional_modules import MODULES

COMPLEX = {"complex_view", "fft"}  # complex numbers run in eager mode, with a warning
FLOAT32_CONSTANT = {"activations"}  # eager's gradient of hardsigmoid multiplies by 1/6 in float32, also in float64


def as_double(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.dtype is torch.float32 else value


def run(module: torch.nn.Module, args: Any) -> Any:
    torch.manual_seed(0)
    inputs = fresh(args)
    outputs = module(*inputs)
    total = loss(outputs)
    if total.requires_grad:
        total.backward()
    gradients = [t.grad for t in tree_leaves((inputs, list(module.parameters()))) if isinstance(t, torch.Tensor)]
    return outputs, gradients, list(module.buffers())


@pytest.mark.parametrize("name", sample(sorted(MODULES.keys() - COMPLEX), 24))
def test_module(name: str) -> None:
    build, *args = MODULES[name]
    torch.manual_seed(0)
    eager = build().double().train()
    for m in eager.modules():  # engines draw different masks
        if isinstance(getattr(m, "dropout", None), float):
            m.dropout = 0.0
        if isinstance(m, torch.nn.modules.dropout._DropoutNd):
            m.p = 0.0
    ours = sh.optimize(copy.deepcopy(eager))
    args = tree_map(as_double, args)
    args = [t.requires_grad_() if isinstance(t, torch.Tensor) and t.dtype is torch.float64 else t for t in args]
    expected, actual = run(eager, args), run(ours, args)
    tolerance = 1e-7 if name in FLOAT32_CONSTANT else 1e-10
    for x, y in zip(tree_leaves(actual), tree_leaves(expected), strict=True):
        assert type(x) is type(y)
        if isinstance(x, torch.Tensor):
            assert (x.dtype, x.shape, x.requires_grad) == (y.dtype, y.shape, y.requires_grad)
            assert torch.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True), f"{x} instead of {y}"
    assert len(ours.report().regions) == 1


@pytest.mark.parametrize("name", sorted(COMPLEX & MODULES.keys()))
def test_complex_numbers_run_in_eager_mode(name: str) -> None:
    build, *args = MODULES[name]
    module = build()
    expected = run(copy.deepcopy(module), args)
    with pytest.warns(sh.FallbackWarning, match="complex"):
        actual = run(sh.optimize(module), args)
    for x, y in zip(tree_leaves(actual), tree_leaves(expected), strict=True):
        assert not isinstance(x, torch.Tensor) or torch.equal(x, y)


def test_autocast() -> None:
    """bfloat16 under autocast: the casts are eager's; the error against float64 is not above eager's by more than a half."""
    torch.manual_seed(0)
    exact = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.LayerNorm(64), torch.nn.Linear(64, 8)).double()
    eager, ours = copy.deepcopy(exact).float(), copy.deepcopy(exact).float()
    sh.optimize(ours, strict=True)
    x = torch.randn(32, 64)
    found = {}
    for name, m in (("exact", exact), ("eager", eager), ("ours", ours)):
        with torch.autocast("cpu", torch.bfloat16, enabled=name != "exact"):
            y = m(x.double() if name == "exact" else x)
        loss(y.double()).backward()
        found[name] = [y.detach(), *(p.grad for p in m.parameters())]
    for e, o, t in zip(found["eager"], found["ours"], found["exact"], strict=True):
        assert o.dtype is e.dtype
        assert (o.double() - t).norm() <= 1.5 * (e.double() - t).norm() + 1e-6 * t.norm()


def test_autocast_inside_the_module() -> None:
    class Inside(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = torch.nn.Linear(16, 16), torch.nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                h = self.first(x).relu()
            return h, self.last(h.float())

    eager = Inside()
    ours = sh.optimize(copy.deepcopy(eager), strict=True)
    x = torch.randn(8, 16)
    for a, b in zip(run(ours, [x])[0], run(eager, [x])[0], strict=True):
        assert a.dtype is b.dtype
        assert torch.allclose(a.float(), b.float(), atol=2e-2)
    for p, q in zip(ours.parameters(), eager.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=5e-2, rtol=2e-2)
