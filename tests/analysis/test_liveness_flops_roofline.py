"""Peak memory and saved tensors, arithmetic, roofline times."""

from __future__ import annotations

from typing import Any

import pytest

from shorthaul.analysis import MACHINES, Machine, flops, is_contraction, liveness, machine, roofline
from shorthaul.ir.builder import at, inside, make_map
from shorthaul.ir.containers import Alias, Container
from shorthaul.ir.dtypes import bfloat16, float32
from shorthaul.ir.memlet import full
from shorthaul.ir.nodes import LibraryCall, Map
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ir.scalar import apply
from shorthaul.symbolic import Symbol, index

N = Symbol("N", lower=1)


def tensor(name: str, *shape: Any, role: str = "transient", dtype: Any = float32, **more: Any) -> Container:
    return Container(name, dtype, shape, role=role, **more)


def step(source: Container, target: Container, phase: str, op: str = "tanh", other: Container | None = None) -> Map:
    params = tuple(index(f"{target.name}{d}", n) for d, n in enumerate(target.shape))
    reads = {"a": at(source, *params), **({"b": at(other, *params)} if other else {})}
    return make_map(params, reads, {"y": at(target, *params)}, lambda a, b=None: {"y": apply(op, a) * (a if b is None else b)},
                    {c.name: float32 for c in (source, other) if c is not None}, phase=phase)  # fmt: skip


def training() -> Program:
    """x -> t -> y forward; gy -> gt -> gx backward, where t and x are read again."""
    p = Program("training", Form.MAPS, symbols=(N,), attributes={"size_hints": {"N": 4}})
    x, t, u, y = tensor("x", N, role="input"), tensor("t", N), tensor("u", N), tensor("y", N, role="output")
    gy, gt, gx = tensor("gy", N, role="cotangent"), tensor("gt", N), tensor("gx", N, role="gradient")
    with p.edit("Build") as edit:
        for c in (x, t, u, y, gy, gt, gx):
            edit.add_container(c)
        edit.add(step(x, t, "forward"), step(t, u, "forward"), step(u, y, "forward"), step(t, gt, "backward", other=gy),
                 step(x, gx, "backward", other=gt))  # fmt: skip
        edit.set_signature(Signature(("x",), ("y",), (("y", "gy"),), (("x", "gx"),)))
    return p


def test_saved_tensors_and_peaks() -> None:
    found = liveness(training())
    assert found.saved == [("t", 16)] and found.saved_bytes == 16
    # forward: t and u, then t, u and y; backward: t and gt, then gt and gx
    assert found.at == [16, 32, 48, 32, 32] and found.peak == {"forward": 48, "backward": 32}
    assert liveness(training(), {"N": 100}).peak["forward"] == 1200
    assert "x" not in found.lifetimes, "the caller's memory is not counted"


def test_aliases_extend_the_life_of_their_base() -> None:
    p = Program("aliases", Form.SCHEDULED)
    x, t, y = tensor("x", 4, role="input"), tensor("t", 4), tensor("y", 4, role="output")
    view = tensor("view", 4, alias=Alias("t"))
    with p.edit("Build") as edit:
        for c in (x, t, view, y):
            edit.add_container(c)
        edit.add(step(x, t, "forward"), step(view, y, "forward"))
        edit.set_signature(Signature(("x",), ("y",)))
    found = liveness(p)
    assert found.at == [16, 32] and set(found.lifetimes) == {"t", "y"}


def test_flops_of_maps_and_calls() -> None:
    p = Program("flops", Form.MAPS)
    a, b, y = tensor("a", 4, 6, role="input"), tensor("b", 6, 5, role="input"), tensor("y", 4, 5)
    i, j, k = index("i", 4), index("j", 5), index("k", 6)
    product = make_map((i, j, k), {"a": at(a, i, k), "b": at(b, k, j)}, {"y": at(y, i, j, combine="sum")}, lambda a, b: {"y": a * b},
                       {"a": float32, "b": float32})  # fmt: skip
    x, w, z = tensor("x", 2, 3, 8, 8, role="input"), tensor("w", 7, 3, 3, 3, role="input"), tensor("z", 2, 7, 6, 6)
    convolution = LibraryCall("aten::convolution", {}, reads={"x": full(x), "weight": full(w)}, writes={"y": full(z)})
    c, q = tensor("c", 4, 5), tensor("q", 5, role="input")
    call = LibraryCall("aten::matmul", {"equation": "mk,kn->mn"}, reads={"a": full(a), "b": full(b)}, writes={"y": full(c)})
    e, f = tensor("e", 4, 5), tensor("f", 5)
    m, n = index("m", 4), index("n", 5)
    chain = make_map((m, n), {"c": at(c, m, n), "q": at(q, n)}, {"e": at(e, m, n), "f": at(f, n, combine="sum")},
                     lambda c, q: {"e": apply("tanh", c) * q, "f": apply("tanh", c) * q}, {"c": float32, "q": float32})  # fmt: skip
    other = LibraryCall("aten::sort", {}, reads={"q": full(q)}, writes={})
    with p.edit("Build") as edit:
        for t in (a, b, y, x, w, z, c, q, e, f):
            edit.add_container(t)
        edit.add(product, convolution, call, chain, other)
    found = flops(p)
    assert found[product.id] == found[call.id] == 2 * 4 * 5 * 6
    assert found[convolution.id] == 2 * (2 * 7 * 6 * 6) * (3 * 3 * 3)
    assert found[chain.id] == 4 * 5 * 3, "a shared expression is computed once; the sum adds one"
    assert found[other.id] is None
    assert is_contraction(product) and not is_contraction(chain)


def test_a_depthwise_window_is_no_contraction_of_matrices() -> None:
    x, w, y = tensor("x", 3, 8), tensor("w", 3, 3), tensor("y", 3, 8)
    c, o, k = index("c", 3), index("o", 8), index("k", 3)
    at_x = at(x, c, o + k - 1, guard=inside(o + k - 1, 8), fill=0)
    m = make_map((c, o, k), {"x": at_x, "w": at(w, c, k)}, {"y": at(y, c, o, combine="sum")}, lambda x, w: {"y": x * w},
                 {"x": float32, "w": float32})  # fmt: skip
    assert not is_contraction(m), "the data varies with all parameters: no operand is reused as in a matrix product"


def test_roofline_is_memory_or_arithmetic() -> None:
    p = training()
    toy = Machine("toy", bandwidth=100.0, cache=1 << 20, flops={"float32": 1.0}, launch=0.5)
    times = roofline(p, toy)
    assert [t.bytes for t in times] == [32, 32, 32, 48, 48] and [t.flops for t in times] == [8] * 5
    # 4 elements: a sigmoid, which takes as long as 10 adds, and a product
    assert times[0].seconds == pytest.approx(44.5) and times[0].bound == "arithmetic"
    fast = Machine("fast", bandwidth=1.0, cache=1 << 20, flops={"float32": 1e9})
    assert roofline(p, fast)[0].seconds == 32 and roofline(p, fast)[0].bound == "memory"
    assert roofline(p, fast, {"N": 8})[0].bytes == 64


def test_machines() -> None:
    assert machine("h100") is MACHINES["h100"] and machine() is MACHINES["cpu"]
    assert machine("h200").peak("bfloat16", contraction=True) > machine("h200").peak("bfloat16")
    assert machine("cpu").peak("int32") == machine("cpu").peak("float32")
    with pytest.raises(ValueError, match="known are cpu, a100"):
        machine("tpu")
    assert bfloat16.name in machine("a100").flops
