"""Footprints against the distinct elements that the interpreter counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import shorthaul.ops  # noqa: F401
from shorthaul.analysis import footprints
from shorthaul.ir.builder import at, inside, make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import bool_, float32, int64
from shorthaul.ir.interpreter import Counts, interpret
from shorthaul.ir.memlet import Condition, Indirect
from shorthaul.ir.nodes import Map, Tasklet
from shorthaul.ir.program import Form, Program
from shorthaul.ir.scalar import read
from shorthaul.ops.builder import OpBuilder
from shorthaul.ops.expand import choose_maps, expand
from shorthaul.ops.registry import REGISTRY, Sample, TensorType
from shorthaul.symbolic import Symbol, evaluate, index


def agree(p: Program, values: Mapping[str, np.ndarray], sizes: Mapping[str, int] | None = None, exact: bool = True) -> None:
    """Every footprint equals the interpreter's count; where it is declared an upper bound it is one."""
    counts = Counts()
    interpret(p, values, sizes=sizes, count=counts)
    for n in p.nodes:
        if not isinstance(n, Map):
            continue
        for (name, side), f in footprints(n, p.containers).items():
            expected = counts.elements.get((n.id, name, side), 0)
            found = f.elements if isinstance(f.elements, int) else evaluate(f.elements, dict(sizes or {}))
            where = f"{p.name}: {n} {side} {name}"
            if f.exact:
                assert found == expected, where
            else:
                assert not exact, f"{where} is only bounded"
                assert found >= expected, where


def net(maps: Any, *containers: Container) -> Program:
    p = Program("net", Form.MAPS)
    with p.edit("Build") as edit:
        for c in containers:
            edit.add_container(c)
        edit.add(*(maps if isinstance(maps, (list, tuple)) else [maps]))
    return p


def tensor(name: str, *shape: Any, role: str = "input", dtype: Any = float32) -> Container:
    return Container(name, dtype, shape, role=role)


def samples() -> list[Any]:
    cases = []
    for name, d in sorted(REGISTRY.items()):
        for i, s in enumerate(d.samples()):
            if not name.startswith("bitwise") and not s.error and all(isinstance(t, TensorType) for t in s.operands.values()):
                cases.append(pytest.param(name, s, id=f"{name}-{i}"))
    return cases


@pytest.mark.parametrize(("name", "sample"), samples())
def test_every_operator(name: str, sample: Sample) -> None:
    p = Program(name)
    rng = np.random.default_rng(0)
    values: dict[str, np.ndarray] = {}
    with p.edit("Build") as edit:
        given = {k: edit.add_container(Container(k, t.dtype, t.shape, role="input")) for k, t in sample.operands.items()}
        b = OpBuilder(edit, "forward")
        b.op(name, sample.attributes, **given)
        edit.add(*b.nodes)
    for k, c in given.items():
        if c.dtype.is_float:
            values[k] = rng.uniform(0.2, 0.9, size=c.shape)
        else:
            values[k] = rng.integers(0, 2, size=c.shape).astype(bool if c.dtype is bool_ else np.int64)
    expand(p, choose_maps)
    agree(p, values, exact=not any(m.is_indirect for n in p.nodes if isinstance(n, Map) for m in (a.memlet for a in n.accesses())))


def copy_map(params: Any, source: Any, target: Any) -> Map:
    return make_map(params, {"x": source}, {"y": target}, lambda x: {"y": x}, {source.container: float32})


N = Symbol("N", lower=1)


def test_symbolic_elementwise_and_broadcast() -> None:
    x, b, y = tensor("x", N, 4), tensor("b", 4), tensor("y", N, 4, role="transient")
    i, j = index("i", N), index("j", 4)
    m = make_map((i, j), {"x": at(x, i, j), "b": at(b, j)}, {"y": at(y, i, j)}, lambda x, b: {"y": x + b}, {"x": float32, "b": float32})
    found = footprints(m, {c.name: c for c in (x, b, y)})
    assert found["x", "read"].elements is 4 * N and found["b", "read"].elements == 4 and found["y", "write"].elements is 4 * N
    agree(net(m, x, b, y), {"x": np.ones((5, 4)), "b": np.ones(4)}, {"N": 5})


@pytest.mark.parametrize(("stride", "pad", "kernel"), [(1, 1, 3), (2, 0, 3), (2, 1, 3), (3, 0, 2), (1, 2, 5), (4, 0, 1)])
def test_padded_strided_window(stride: int, pad: int, kernel: int) -> None:
    size = 9
    out = (size + 2 * pad - kernel) // stride + 1
    x, y = tensor("x", 2, size, size), tensor("y", 2, out, out, role="transient")
    c, h, w, kh, kw = (index(s, n) for s, n in zip(("c", "h", "w", "kh", "kw"), (2, out, out, kernel, kernel), strict=True))
    a, b = h * stride + kh - pad, w * stride + kw - pad
    source = at(x, c, a, b, guard=(*inside(a, size), *inside(b, size)), fill=0)
    m = make_map((c, h, w, kh, kw), {"x": source}, {"y": at(y, c, h, w, combine="sum")}, lambda x: {"y": x}, {"x": float32})
    agree(net(m, x, y), {"x": np.ones((2, size, size))})


def test_conditions_that_couple_dimensions() -> None:
    x, y = tensor("x", 6, 6), tensor("y", 6, role="transient")
    i, j = index("i", 6), index("j", 6)
    causal = make_map((i, j), {"x": at(x, i, j, guard=(Condition(i - j),), fill=0)}, {"y": at(y, i, combine="sum")}, lambda x: {"y": x},
                      {"x": float32})  # fmt: skip
    p = net(causal, x, y)
    assert footprints(causal, p.containers)["x", "read"].elements == 21
    agree(p, {"x": np.ones((6, 6))})


def test_ragged_range() -> None:
    x, y = tensor("x", 6, 6), tensor("y", 6, role="transient")
    i = index("i", 6)
    j = Symbol("j", lower=0, upper=i)
    m = make_map((i, j), {"x": at(x, i, j)}, {"y": at(y, i, combine="sum")}, lambda x: {"y": x}, {"x": float32})
    p = net(m, x, y)
    assert footprints(m, p.containers)["x", "read"].elements == 21
    agree(p, {"x": np.ones((6, 6))})


def test_diagonal_division_and_overlap() -> None:
    x, y, z, v = tensor("x", 6, 6), tensor("y", 6, role="transient"), tensor("z", 12, role="transient"), tensor("v", 5, role="transient")
    i, k, r = index("i", 6), index("k", 12), index("r", 5)
    diagonal = copy_map((i,), at(x, i, i), at(y, i))
    folded = copy_map((k,), at(x, k // 3, k % 3), at(z, k))
    overlap = make_map((r,), {"a": at(x, 0, r), "b": at(x, 0, r + 1)}, {"v": at(v, r)}, lambda a, b: {"v": a + b}, {"x": float32})
    p = net([diagonal, folded, overlap], x, y, z, v)
    agree(p, {"x": np.ones((6, 6))})
    assert [footprints(m, p.containers)["x", "read"].elements for m in (diagonal, folded, overlap)] == [6, 12, 6]


def test_concatenation_writes_its_part() -> None:
    a, b, y = tensor("a", 2, 3), tensor("b", 2, 4), tensor("y", 2, 7, role="transient")
    i, j, k = index("i", 2), index("j", 3), index("k", 4)
    maps = [copy_map((i, j), at(a, i, j), at(y, i, j)), copy_map((i, k), at(b, i, k), at(y, i, k + 3))]
    p = net(maps, a, b, y)
    agree(p, {"a": np.ones((2, 3)), "b": np.ones((2, 4))})
    assert footprints(maps[1], p.containers)["y", "write"].elements == 8


def test_nested_rows_count_once_and_locals_never() -> None:
    x, y = tensor("x", 3, 8), tensor("y", 3, 8, role="transient")
    top = Container("top", float32, (), storage="register")
    i, j, k = index("i", 3), index("j", 8), index("k", 8)
    types = {"x": float32, "top": float32}
    first = make_map((j,), {"x": at(x, i, j)}, {"m": at(top, combine="max")}, lambda x: {"m": x}, types)
    second = make_map((k,), {"x": at(x, i, k), "m": at(top)}, {"y": at(y, i, k)}, lambda x, m: {"y": x - m}, types)
    p = net(Map((i,), (first, second), {"top": top}), x, y)
    agree(p, {"x": np.ones((3, 8))})
    assert set(footprints(p.nodes[0], p.containers)) == {("x", "read"), ("y", "write")}  # type: ignore[arg-type]


def test_gather_is_bounded_by_container_and_by_volume() -> None:
    w, few, many = tensor("w", 50, 4), tensor("few", 3, dtype=int64), tensor("many", 90, dtype=int64)
    y, z = tensor("y", 3, 4, role="transient"), tensor("z", 90, 4, role="transient")
    maps = []
    for ids, out, n in ((few, y, 3), (many, z, 90)):
        i, d = index("i", n), index("d", 4)
        code = {"y": read("w", float32)}
        t = Tasklet(code, reads={"i": at(ids, i), "w": at(w, Indirect("i"), d)}, writes={"y": at(out, i, d)})
        maps.append(Map((i, d), (t,)))
    p = net(maps, w, few, many, y, z)
    found = [footprints(m, p.containers)["w", "read"] for m in maps]
    assert [(f.elements, f.exact) for f in found] == [(12, False), (200, False)]
    agree(p, {"w": np.ones((50, 4)), "few": np.arange(3), "many": np.arange(90) % 50}, exact=False)


def test_guarded_write_counts_what_is_written() -> None:
    x, y = tensor("x", 4), tensor("y", 9, role="transient")
    i, j = index("i", 9), index("j", 9)
    inner = copy_map((i,), at(x, i - 2, guard=inside(i - 2, 4), fill=0), at(y, i, guard=inside(i - 2, 4)))
    rest = copy_map((j,), at(x, 0), at(y, j, guard=(Condition(1 - j),)))
    tail = copy_map((j,), at(x, 0), at(y, j, guard=(Condition(j - 6),)))
    p = net([inner, rest, tail], x, y)
    agree(p, {"x": np.ones(4)})
    assert [footprints(m, p.containers)["y", "write"].elements for m in (inner, rest, tail)] == [4, 2, 3]


def test_strided_symbolic_slice_is_counted() -> None:
    x, y = tensor("x", 3 * N), tensor("y", N, role="transient")
    i = index("i", N)
    m = copy_map((i,), at(x, 3 * i + 1), at(y, i))
    found = footprints(m, {"x": x, "y": y})["x", "read"]
    assert found.elements is N and found.exact


def test_cache_follows_the_containers() -> None:
    x, y = tensor("x", 4), tensor("y", 4, role="transient")
    i = index("i", 4)
    m = copy_map((i,), at(x, i), at(y, i, combine="sum"))
    assert footprints(m, {"x": x, "y": y})["y", "write"].elements == 4
    assert footprints(m, {"x": x, "y": tensor("y", 7, role="transient")})["y", "write"].elements == 7


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("pad", [0, 1])
def test_symbolic_windows_evaluate_to_the_count(stride: int, pad: int) -> None:
    # a symbolic number of outputs over an input of just the size they reach
    size = (N - 1) * stride + 3 - 2 * pad
    x, y = tensor("x", size), tensor("y", N, role="transient")
    o, k = index("o", N), index("k", 3)
    e = o * stride + k - pad
    m = make_map((o, k), {"x": at(x, e, guard=inside(e, size), fill=0)}, {"y": at(y, o, combine="sum")}, lambda x: {"y": x}, {"x": float32})
    for n in (2, 5):
        p = net(m, x, y)
        p.symbols = (N,)
        agree(p, {"x": np.ones((n - 1) * stride + 3 - 2 * pad)}, {"N": n})


@pytest.mark.parametrize("seed", range(40))
def test_random_affine_accesses(seed: int) -> None:
    """Up to three reads of one container with random coefficients, offsets and conditions."""
    rng = np.random.default_rng(seed)
    x, y = tensor("x", 12, 9), tensor("y", 3, 4, 2, role="transient")
    params = tuple(index(f"p{seed}_{i}", n) for i, n in enumerate((3, 4, 2)))
    reads = {}
    for r in range(int(rng.integers(1, 4))):
        subset = []
        guard: list[Condition] = []
        for size in (12, 9):
            e: Any = int(rng.integers(-2, 4))
            for p in params:
                e = e + int(rng.integers(-1, 3)) * p * int(rng.integers(0, 2))
            subset.append(e)
            guard += inside(e, size)
        if rng.integers(2):
            guard.append(Condition(params[0] - params[1] + 1))
        reads[f"r{r}"] = at(x, *subset, guard=guard, fill=0)
    code = lambda **values: {"y": sum(list(values.values())[1:], next(iter(values.values())))}  # noqa: E731
    agree(net(make_map(params, reads, {"y": at(y, *params)}, code, {"x": float32}), x, y), {"x": np.ones((12, 9))})
