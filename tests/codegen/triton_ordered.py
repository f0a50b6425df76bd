"""Sums by index under `torch.use_deterministic_algorithms` on the Triton target: the same bits whatever the order in which programs run.
Run by test_triton.py: on CPU tensors in a process with TRITON_INTERPRET=1, and where there is a GPU also on it."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ops"))

from operator_cases import (
    cotangents_for,
    differentiated,
    float_names,
    program_of,
    same,
    values_for,
    widened,
    widened_attributes,
)
from triton_operators import run
from triton_programs import DEVICE, assert_agrees, of_module

from shorthaul.api import backend
from shorthaul.codegen.triton.block_emit import BlockEmitter
from shorthaul.codegen.triton.interpreting import is_interpreting
from shorthaul.config import Options
from shorthaul.ir.builder import at, fresh_params, make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType, float32, float64, int64
from shorthaul.ir.interpreter import interpret
from shorthaul.ir.memlet import Indirect
from shorthaul.ir.nodes import LibraryCall, Map
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ir.scalar import const
from shorthaul.ops.expand import choose_maps, expand
from shorthaul.ops.registry import REGISTRY
from shorthaul.pipeline import _schedule, _split, schedule_for
from shorthaul.runtime.triton_target import INTERPRETED
from shorthaul.testing import sample
from shorthaul.training import TrainStep
from shorthaul.transforms.fuse import default_fusions, fuse
from shorthaul.transforms.level4_global.dead_code import eliminate_dead_code


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Has the interpreter run the programs of every grid, of 64 elements each, from the last to the first; a GPU has an order of its own
    each time."""
    if not is_interpreting():
        return lambda backwards: None
    from triton.runtime.interpreter import InterpreterBuilder

    monkeypatch.setitem(INTERPRETED, "budget", 64)
    state = {"backwards": False}

    def set_grid_idx(self: InterpreterBuilder, *idx: int) -> None:
        dim = self.grid_dim
        self.grid_idx = tuple(n - 1 - i for i, n in zip(idx, dim, strict=True)) if state["backwards"] else idx

    monkeypatch.setattr(InterpreterBuilder, "set_grid_idx", set_grid_idx)

    def choose(backwards: bool) -> None:
        state["backwards"] = backwards

    return choose


@pytest.fixture
def atomics(monkeypatch: pytest.MonkeyPatch) -> list[DType]:
    """The types that kernels add, or choose from, by atomics."""
    found: list[DType] = []
    emit = BlockEmitter.atomic

    def atomic(self: BlockEmitter, t: Any, g: Any) -> None:
        found.append(t.code[g.connectors[0]].dtype)
        emit(self, t, g)

    monkeypatch.setattr(BlockEmitter, "atomic", atomic)
    return found


def bits(results: dict[str, Any]) -> dict[str, bytes]:
    return {n: np.asarray(v).tobytes() for n, v in results.items()}


# operators --------------------------------------------------------------------------------------------------------------
ADDING = ("adaptive_avg_pool_backward", "adaptive_max_pool", "as_strided_backward", "avg_pool_backward", "conv_grad_input", "embedding",
          "gather", "grid_sample", "index", "index_put", "interpolate", "interpolate_antialias", "interpolate_backward", "masked_index_add",
          "masked_scatter", "max_pool_indices_backward", "multi_margin_loss", "put", "row_sums", "scatter", "scatter_add", "sort",
          "take")  # fmt: skip
CASES = [pytest.param(name, i, id=f"{name}-{i}") for name in ADDING for i, s in enumerate(REGISTRY[name].samples()) if not s.error]


@pytest.mark.parametrize("form", ["sorted", "serial"])
@pytest.mark.parametrize(("name", "i"), sample(CASES, 40))
def test_operators(name: str, i: int, form: str, order: Callable[[bool], None], atomics: list[DType]) -> None:
    s = list(REGISTRY[name].samples())[i]
    attributes = {**REGISTRY[name].attributes, **s.attributes}
    p = program_of(name, widened(s.operands), widened_attributes(attributes))
    values = values_for(name, widened(s.operands), attributes)
    outputs, wrt = float_names(p.signature.outputs, p), float_names(p.signature.inputs, p)
    if outputs and wrt and "backward" not in name:
        p = differentiated(p, outputs, wrt)
        values = {**values, **cotangents_for(p)}
    expand(p, choose_maps)
    eliminate_dead_code(p)
    expected = interpret(p.clone(), values)
    fuse(p, default_fusions("triton"))
    p.attributes["deterministic"] = True
    if form == "sorted":
        schedule_for(p, "triton")
    else:
        _schedule(p)
        _split(p)
    found = run(p, values)
    for n, t in found.items():
        same(t, expected[n], 1e-9, f"{name}: {n}")
    assert not any(d.is_float for d in atomics)
    order(True)
    assert bits(run(p, values)) == bits(found)


def by_index(n: int, rows: int, deterministic: bool) -> Program:
    """Numbers summed at a few places: in which order makes a difference."""
    containers = {"x": Container("x", float32, (n,), role="input"), "i": Container("i", int64, (n,), role="input"),
                  "y": Container("y", float32, (rows,), role="output")}  # fmt: skip
    (k,) = fresh_params((n,))
    node = make_map((k,), {"x": at("x", k), "i": at("i", k)}, {"y": at("y", Indirect("i"), combine="sum")}, lambda x, i: {"y": x},
                    {"x": float32, "i": int64})  # fmt: skip
    attributes = {"deterministic": True} if deterministic else {}
    return Program("sums", Form.MAPS, containers, [node], Signature(("x", "i"), ("y",)), attributes=attributes)


def numbers(n: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Values for `by_index`, and the sums at the first three places."""
    rng = np.random.default_rng(0)
    x, i, sums = rng.standard_normal(n).astype(np.float32), rng.integers(0, 3, n), np.zeros(3)
    np.add.at(sums, i, x.astype(np.float64))
    return {"x": x, "i": i}, sums


@pytest.mark.skipif(not is_interpreting(), reason="a GPU chooses its order of programs itself")
def test_without_the_setting_the_order_of_programs_shows(order: Callable[[bool], None], atomics: list[DType]) -> None:
    p, (values, _) = by_index(1000, 3, False), numbers(1000)
    schedule_for(p, "triton")
    found = bits(run(p, values))
    assert atomics == [float32]
    order(True)
    assert bits(run(p, values)) != found


def test_with_the_setting_it_does_not(order: Callable[[bool], None], atomics: list[DType]) -> None:
    p, (values, sums) = by_index(1000, 3, True), numbers(1000)
    schedule_for(p, "triton")
    assert [n.function for n in p.nodes if isinstance(n, LibraryCall)] == ["ordered_sum"]
    found = run(p, values)
    np.testing.assert_allclose(found["y"], sums, rtol=1e-4)
    order(True)
    assert bits(run(p, values)) == bits(found)
    assert not atomics


def test_what_cannot_be_sorted_is_added_one_after_the_other(order: Callable[[bool], None], atomics: list[DType]) -> None:
    """Another kernel writes a part of the result."""
    p, (values, sums) = by_index(200, 4, True), numbers(200)
    with p.edit("Other") as edit:
        edit.add(make_map((), {}, {"y": at("y", 3)}, lambda: {"y": const(7, float32)}, {}))
    schedule_for(p, "triton")
    assert all(isinstance(n, Map) for n in p.nodes)
    found = run(p, values)
    np.testing.assert_allclose(found["y"], [*sums, 7], rtol=1e-4)
    order(True)
    assert bits(run(p, values)) == bits(found)
    assert not atomics


@pytest.mark.parametrize("combine", ["sum", "prod", "max"])
def test_windows_that_overlap_are_combined_one_after_the_other(combine: str, order: Callable[[bool], None]) -> None:
    containers = {"x": Container("x", float64, (40, 3), role="input"), "y": Container("y", float64, (81,), role="output")}
    p, tap = fresh_params((40, 3))
    write = at("y", 2 * p + tap, combine=combine)
    node = make_map((p, tap), {"x": at("x", p, tap)}, {"y": write}, lambda x: {"y": x}, {"x": float64})
    program = Program("windows", Form.MAPS, containers, [node], Signature(("x",), ("y",)), attributes={"deterministic": True})
    values = {"x": np.random.default_rng(0).standard_normal((40, 3))}
    expected = interpret(program.clone(), values)
    _schedule(program)
    found = run(program, values)
    same(found["y"], expected["y"], 1e-12, combine)
    order(True)
    assert bits(run(program, values)) == bits(found)


# programs ---------------------------------------------------------------------------------------------------------------
class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.bag, self.out = nn.Embedding(9, 8), nn.EmbeddingBag(9, 8, mode="mean"), nn.Linear(8, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.out(torch.tanh(self.table(words).mean(1) + self.bag(words)))


class Added(nn.Module):
    """index_add, scatter_add, scatter_reduce and index_put with accumulation, and their gradients."""

    def forward(self, x: Tensor, i: Tensor) -> Tensor:
        rows = torch.zeros(4, x.shape[1], dtype=x.dtype, device=x.device).index_add(0, i, torch.sin(x))
        each = torch.zeros_like(x).scatter_add(1, i[:, None].expand_as(x), x * x)
        means = torch.zeros_like(x).scatter_reduce(0, (i[:, None] + 1).expand_as(x), x, "mean", include_self=False)
        put = torch.zeros_like(x).index_put((i, i), x[:, 0], accumulate=True)
        return torch.tanh(each + means + put) + rows.sum(0) * rows[i]


class Images(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.max_pool2d(x, 3, 1)
        y = nn.functional.interpolate(y, size=(5, 3), mode="bilinear", align_corners=True)
        grid = torch.tanh(y[:, :2].permute(0, 2, 3, 1))
        return y.mean() + nn.functional.grid_sample(x, grid, align_corners=False) + nn.functional.adaptive_avg_pool2d(x, (5, 3))


I = torch.tensor([2, 0, 2, 2, 1, 0, 3])
PROGRAMS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "words": (Words, (torch.tensor([[1, 2, 2, 5, 7], [0, 8, 2, 2, 3], [2, 2, 2, 1, 1]]),)),
    "added": (Added, (torch.randn(7, 4, generator=torch.Generator().manual_seed(0)), I)),
    "images": (Images, (torch.randn(2, 3, 7, 6, generator=torch.Generator().manual_seed(0)),)),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("level", [0, 4])
def test_programs(name: str, level: int, atomics: list[DType]) -> None:
    make, inputs = PROGRAMS[name]
    assert_agrees(of_module(make, *inputs), torch.float64, level=level)
    assert not any(d.is_float for d in atomics)


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_give_the_same_bits(name: str, order: Callable[[bool], None]) -> None:
    make, inputs = PROGRAMS[name]
    torch.manual_seed(0)
    module = make().to(DEVICE)
    compiled: Any = torch.compile(module, backend=functools.partial(backend, options=Options(strict=True, target="triton")))
    placed = [x.to(DEVICE).requires_grad_(x.is_floating_point()) for x in inputs]

    def gradients() -> list[Tensor]:
        loss = compiled(*placed).square().sum()
        return list(torch.autograd.grad(loss, [t for t in (*module.parameters(), *placed) if t.requires_grad]))

    first = gradients()
    for k in range(4):
        order(k % 2 == 0)
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))


def test_sizes_that_change(atomics: list[DType]) -> None:
    eager = Words().to(DEVICE, torch.float64)
    ours = copy.deepcopy(eager)
    compiled: Any = torch.compile(ours, dynamic=True, backend=functools.partial(backend, options=Options(strict=True, target="triton")))
    for n in (3, 5, 8):
        words = torch.randint(0, 9, (n, 4), generator=torch.Generator().manual_seed(n)).to(DEVICE)
        for m, run_ in ((eager, eager), (ours, compiled)):
            m.zero_grad()
            run_(words).square().sum().backward()
        for a, b in zip(ours.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)
    assert not any(d.is_float for d in atomics)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_whole_steps(optimizer: Any, order: Callable[[bool], None], atomics: list[DType]) -> None:
    """With rows updated alone (SGD) and all of them (AdamW)."""
    torch.manual_seed(0)
    start = Words().to(DEVICE)
    words, target = PROGRAMS["words"][1][0].to(DEVICE), torch.randn(3, 3, device=DEVICE)
    found = []
    for k in range(2):
        order(k == 1)
        module = copy.deepcopy(start)
        step = TrainStep(module, nn.functional.mse_loss, optimizer(module.parameters(), lr=0.1), target="triton", strict=True)
        for _ in range(3):
            step(words, target)
        assert step.program is not None and step.program.deterministic
        found.append(module.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(found[0].values(), found[1].values(), strict=True))
    assert not any(d.is_float for d in atomics)


def test_the_setting_is_a_part_of_what_was_compiled(atomics: list[DType]) -> None:
    """Dynamo compiles anew when it changes."""
    module = Words().to(DEVICE)
    compiled: Any = torch.compile(module, backend=functools.partial(backend, options=Options(strict=True, target="triton")))
    words = PROGRAMS["words"][1][0].to(DEVICE)
    compiled(words).sum().backward()
    assert not any(d.is_float for d in atomics)
    torch.use_deterministic_algorithms(False)
    compiled(words).sum().backward()
    assert any(d.is_float for d in atomics)
