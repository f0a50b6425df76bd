"""Captured programs: what they compute, by the interpreter, is what eager PyTorch computes, gradients included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from test_autograd import Reversal, ScaledSquare, Straight
from test_calls import Net, randn
from torch import nn

import shorthaul as sh
from shorthaul.ir.interpreter import interpret
from shorthaul.ir.verify import verify
from shorthaul.ops.custom import inline_custom_functions
from shorthaul.ops.expand import choose_maps, expand


def check(module: nn.Module, x: torch.Tensor) -> Any:
    """Capture a module of one tensor and compare outputs and gradients with eager PyTorch."""
    module = module.double()
    program = sh.capture(module, (x,), strict=True)
    captured = program.clone()
    verify(program)
    inline_custom_functions(program)
    expand(program, choose_maps)
    verify(program)
    leaf = x.detach().clone().requires_grad_(x.requires_grad)
    outputs = module(leaf)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    values: dict[str, Any] = {n.replace(".", "_"): t.detach().numpy() for n, t in (*module.named_parameters(), *module.named_buffers())}
    values["args_0"] = x.detach().numpy()
    values = {n: values[n] for n in program.signature.inputs}
    weights = {}
    for output, cotangent in program.signature.cotangents:
        shape = program.containers[output].shape
        values[cotangent] = weights[output] = np.linspace(0.5, 1.5, int(np.prod(shape))).reshape(shape)
    found = interpret(program, values)
    total = torch.zeros((), dtype=torch.float64)
    for name, expected in zip(program.signature.outputs, outputs, strict=True):
        np.testing.assert_allclose(found[name], expected.detach().numpy(), rtol=1e-11, atol=1e-12)
        if name in weights:
            total = total + (expected * torch.from_numpy(weights[name])).sum()
    total.backward()
    gradients = dict(program.signature.gradients)
    wanted = {n.replace(".", "_"): p.grad for n, p in module.named_parameters()}
    if x.requires_grad:
        wanted["args_0"] = leaf.grad
    assert {n for n, g in wanted.items() if g is not None} == set(gradients)
    for n, g in gradients.items():
        np.testing.assert_allclose(found[g], wanted[n].numpy(), rtol=1e-10, atol=1e-11, err_msg=n)
    return captured


def test_layers() -> None:
    torch.manual_seed(0)
    program = check(nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.LayerNorm(6), nn.Linear(6, 4), nn.LogSoftmax(-1)), randn(5, 8, grad=True))
    assert {n.phase for n in program.nodes} == {"forward", "backward"}
    assert all(n.origin.source or n.origin.module or n.phase == "backward" for n in program.nodes)
    assert {n.origin.module for n in program.nodes if n.phase == "forward"} == {"0", "1", "2", "3", "4"}


def test_straight_through_estimator() -> None:
    check(Net(lambda m, x: Straight.apply(x * m.w * 3) @ m.v), randn(5, 8, grad=True))


def test_gradient_reversal() -> None:
    check(Net(lambda m, x: (Reversal.apply((x * m.w).tanh(), 0.5) @ m.v, x * m.w)), randn(5, 8, grad=True))


def test_custom_function_with_two_results() -> None:
    def f(m: Net, x: Any) -> Any:
        a, b = ScaledSquare.apply(x * m.w, x)
        return a @ m.v, b

    check(Net(f), randn(5, 8, grad=True))


def test_checkpointed_block() -> None:
    def inner(x: Any, w: Any) -> Any:
        return (x * w).tanh().softmax(-1).sin()

    program = check(Net(lambda m, x: torch.utils.checkpoint.checkpoint(inner, x, m.w, use_reentrant=False) @ m.v), randn(5, 8, grad=True))
    assert len(set(program.attributes["checkpoint"].values())) == 1


def test_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.encode, self.decode = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
            self.decode.weight = self.encode.weight

        def forward(self, x: Any) -> Any:
            return self.decode(self.encode(x).tanh())

    program = check(Tied(), randn(5, 8))
    assert [n for n in program.signature.inputs if "weight" in n] == ["encode_weight"]


def test_detach_and_no_grad() -> None:
    def f(m: Net, x: Any) -> Any:
        with torch.no_grad():
            h = (x * m.w).tanh()
        return (h * m.w + (x * m.w).detach() * x) @ m.v

    check(Net(f), randn(5, 8, grad=True))


def test_frozen_parameters_get_no_gradient() -> None:
    m = Net(lambda m, x: (x * m.w) @ m.v)
    m.w.requires_grad_(False)
    program = check(m, randn(5, 8))
    assert [n for n, _ in program.signature.gradients] == ["v"]


def test_nothing_runs_and_nothing_changes() -> None:
    m = nn.BatchNorm1d(8).double()
    before = {k: v.clone() for k, v in m.state_dict().items()}
    sh.capture(m, (randn(5, 8),))
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items())


def test_without_gradients() -> None:
    program = sh.capture(nn.Linear(8, 4), (torch.randn(3, 8),), train=False)
    assert not program.signature.gradients and all(n.phase == "forward" for n in program.nodes)


def test_keyword_arguments() -> None:
    def f(m: Net, x: Any, *, scale: Any) -> Any:
        return x * m.w * scale

    program = sh.capture(Net(f), (randn(5, 8),), kwargs={"scale": randn(8)})
    assert "kwargs_scale" in program.signature.inputs


def test_in_place_change_of_an_argument_is_an_extra_result() -> None:
    def f(m: Net, x: Any) -> Any:
        m.mean.add_(x.detach().sum(0))
        return x * m.w

    program = sh.capture(Net(f), (randn(5, 8),))
    assert len(program.signature.outputs) == 2


@pytest.mark.parametrize("level", range(5))
def test_levels_compute_the_same(level: int) -> None:
    from shorthaul.codegen.library import LIBRARY

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.LayerNorm(6), nn.Softmax(-1)).double()
    program = sh.capture(module, (randn(5, 8),))
    values: dict[str, Any] = {f"{n.replace('.', '_')}": t.detach().numpy() for n, t in module.named_parameters()}
    values["args_0"] = randn(5, 8).numpy()
    values[program.signature.cotangents[0][1]] = np.linspace(0, 1, 30).reshape(5, 6)

    def call(function: str) -> Any:
        def run(node: Any, inputs: Any) -> Any:
            tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in inputs.items()}
            return {k: v.numpy() for k, v in LIBRARY[function](tensors, node.attributes, {}).items()}

        return run

    reference = program.clone()
    expand(reference, choose_maps)
    expected = interpret(reference, values)
    program.optimize(level, check=True)
    found = interpret(program, values, library={name: call(name) for name in LIBRARY})
    for name in program.results:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-10, atol=1e-12)
