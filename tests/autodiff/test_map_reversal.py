"""Map reversal against registered gradients and float64 finite differences, with the interpreter in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from shorthaul.autodiff import differentiate
from shorthaul.autodiff.map_reversal import reverse_operator
from shorthaul.ir.builder import at, fresh_params, inside, make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.derivative import NotDifferentiable
from shorthaul.ir.dtypes import bfloat16, bool_, float32, float64, int64
from shorthaul.ir.interpreter import interpret
from shorthaul.ir.memlet import Condition, Indirect
from shorthaul.ir.nodes import Map, Operator, Tasklet
from shorthaul.ir.program import Program, Signature
from shorthaul.ir.scalar import apply, const, index_value, read
from shorthaul.ir.verify import verify
from shorthaul.ops.builder import OpBuilder
from shorthaul.ops.expand import choose_maps, expand
from shorthaul.ops.registry import REGISTRY, OperatorDefinition, Sample, TensorType, definition
from shorthaul.symbolic import Symbol, evaluate
from shorthaul.testing.sampling import sample as sample_of


def program_of(op: str, operands: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> Program:
    """One operator whose floating operands are inputs with gradients and whose results are outputs; float32 becomes float64."""
    p = Program(op)
    operands = {k: TensorType(float64, t.shape) if t.dtype is float32 else t for k, t in operands.items()}
    attributes = {k: float64 if v is float32 else v for k, v in attributes.items()}
    with p.edit("Build") as edit:
        given = {k: edit.add_container(Container(k, t.dtype, t.shape, role="input")) for k, t in operands.items()}
        b = OpBuilder(edit, "forward", hint="")
        results = b.op(op, attributes, **given)
        results = results if isinstance(results, tuple) else (results,)
        edit.add(*b.nodes)
        for c in results:
            edit.set_container(c.with_(role="output"))
        edit.set_signature(Signature(inputs=tuple(given), outputs=tuple(c.name for c in results)))
    return p


# results that registered gradients take for statistics that nobody differentiates
STATISTICS = {"mean", "rstd", "new_mean", "new_var", "lse", "total_weight"}


def gradients(p: Program, values: Mapping[str, np.ndarray], by_maps: bool, monkeypatch: Any,
              statistics: bool = True) -> dict[str, np.ndarray]:  # fmt: skip
    p = p.clone()
    floats = [k for k in p.signature.inputs if p.containers[k].dtype.is_float]
    (node,) = p.nodes
    names = [m.container for k, m in node.writes.items() if statistics or k not in STATISTICS]
    outputs = [o for o in names if p.containers[o].dtype.is_float]
    if by_maps:
        monkeypatch.setattr(type(definition(node)), "gradient", None)
    differentiate(p, outputs, floats)
    monkeypatch.undo()
    expand(p, choose_maps)
    verify(p)
    run = interpret(p, {**values, **cotangents(p)}, wide=True)
    return {k: run[g] for k, g in p.signature.gradients}


def cotangents(p: Program) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {g: rng.normal(size=p.containers[g].shape) for _, g in p.signature.cotangents}


def finite_differences(p: Program, values: Mapping[str, np.ndarray], wrt: list[str]) -> dict[str, np.ndarray]:
    q = p.clone()
    differentiate(q, [o for o in p.signature.outputs if p.containers[o].dtype.is_float], [])
    weights = {o: w for (o, _), w in zip(q.signature.cotangents, cotangents(q).values(), strict=True)}
    forward = p.clone()
    expand(forward, choose_maps)

    def loss(changed: Mapping[str, np.ndarray]) -> float:
        out = interpret(forward, {**values, **changed}, wide=True)
        return float(sum((out[o] * w).sum() for o, w in weights.items()))

    found = {}
    for k in wrt:
        g = np.zeros(values[k].shape)
        for i in np.ndindex(*g.shape):
            ends = []
            for h in (1e-5, -1e-5):
                x = values[k].copy()
                x[i] += h
                ends.append(loss({k: x}))
            g[i] = (ends[0] - ends[1]) / 2e-5
        found[k] = g
    return found


def random_values(operands: Mapping[str, TensorType], low: float = 0.2, high: float = 0.9, top: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    values: dict[str, np.ndarray] = {}
    for k, t in operands.items():
        if t.dtype.is_float:
            values[k] = rng.uniform(low, high, size=t.shape)
        elif t.dtype is bool_:
            values[k] = rng.integers(0, 2, size=t.shape).astype(bool)
        else:
            values[k] = rng.integers(0, top, size=t.shape)
    return values


def check(p: Program, values: Mapping[str, np.ndarray], monkeypatch: Any) -> None:
    found = gradients(p, values, True, monkeypatch)
    if not found:  # nothing depends smoothly on the operands: then nothing may change with them
        found = {k: np.zeros(v.shape) for k, v in values.items() if v.dtype.kind == "f"}
    expected = finite_differences(p, values, list(found))
    for k, g in found.items():
        np.testing.assert_allclose(g, expected[k], rtol=2e-6, atol=2e-7, err_msg=f"{p.name}: {k}")


def samples() -> list[Any]:
    cases = []
    for name, d in sorted(REGISTRY.items()):
        for i, s in enumerate(d.samples()):
            usable = not s.error and all(isinstance(t, TensorType) for t in s.operands.values())
            floating = any(t.dtype.is_float for t in s.operands.values() if isinstance(t, TensorType))
            if usable and floating and not d.is_random:
                cases.append(pytest.param(name, s, id=f"{name}-{i}"))
    return cases


# operators all of whose results have a zero or no derivative: reversal must leave their operands without a gradient
FLAT = {"all", "any", "argmax", "argmin", "eq", "ne", "lt", "le", "gt", "ge", "isinf", "isnan", "logical_and", "logical_not", "logical_or",
        "logical_xor", "bernoulli_of"}  # fmt: skip
STEPS = {"floor", "ceil", "round", "trunc", "sign", "floor_divide"}
# no derivative rule (orders of special functions, prefixes of products and extrema: their gradients are written, or refused by
# name), the gradient is a matter of definition (detach, with_value), or the meaning is no map;
# of elements unpooled to one place the last counts, and PyTorch gives all of them its gradient
EXCEPT = {"max_unpool", "detach", "with_value", "custom_function", "map_gradient",
          "airy_ai", "hermite_h", "hermite_he", "igamma", "igammac", "laguerre_l", "legendre_p", "zeta",
          "cummax", "cummin", "cumprod", "cumprod_backward", "logcumsumexp", "logcumsumexp_backward",
          *(f"{s}chebyshev_{k}" for s in ("", "shifted_") for k in "tuvw")}  # fmt: skip


# beside a pole finite differences are off by more than the tolerance
POLES_BELOW = {"mvlgamma": (1.5, 4.0)}


def cases() -> list[Any]:
    return [c for c in samples() if c.values[0] not in FLAT | STEPS | EXCEPT]


@pytest.mark.parametrize(("name", "sample"), sample_of(cases(), 60))
def test_every_operator_against_finite_differences(name: str, sample: Sample, monkeypatch: Any) -> None:
    low, high = POLES_BELOW.get(name, (0.2, 0.9))
    check(program_of(name, sample.operands, sample.attributes), random_values(sample.operands, low, high), monkeypatch)


@pytest.mark.parametrize(("name", "sample"), sample_of([c for c in cases() if definition(c.values[0]).gradient is not None], 60))
def test_every_operator_against_its_registered_gradient(name: str, sample: Sample, monkeypatch: Any) -> None:
    p = program_of(name, sample.operands, sample.attributes)
    values = random_values(sample.operands)
    found, expected = (gradients(p, values, by_maps, monkeypatch, statistics=False) for by_maps in (True, False))
    found = found or {k: np.zeros_like(g) for k, g in expected.items()}
    assert found.keys() >= expected.keys(), "map reversal may find gradients that PyTorch does not offer (weights of a loss)"
    for k in expected:
        np.testing.assert_allclose(found[k], expected[k], rtol=1e-9, atol=1e-12, err_msg=k)


@pytest.mark.parametrize("name", sorted(FLAT & set(REGISTRY)))
def test_no_gradient_where_nothing_depends(name: str, monkeypatch: Any) -> None:
    for sample in REGISTRY[name].samples():
        if sample.error or any(not isinstance(t, TensorType) for t in sample.operands.values()):
            continue
        p = program_of(name, sample.operands, sample.attributes)
        monkeypatch.setattr(type(definition(p.nodes[0])), "gradient", None)
        differentiate(p, [o for o in p.signature.outputs if p.containers[o].dtype.is_float], list(p.signature.inputs))
        monkeypatch.undo()
        assert p.signature.gradients == ()


def test_an_operation_without_a_derivative_is_named() -> None:
    sample = next(iter(definition("zeta").samples()))
    p = program_of("zeta", sample.operands, {})
    with pytest.raises(NotDifferentiable, match=r"zeta .*zeta has no derivative rule for its operand 0"):
        differentiate(p, list(p.signature.outputs), list(p.signature.inputs))


def reverse_maps(build: Any, operands: Mapping[str, TensorType], results: Mapping[str, TensorType], monkeypatch: Any,
                 values: Mapping[str, np.ndarray] | None = None) -> Program:  # fmt: skip
    """Register an operator for one test whose maps are `build(expansion)`, check its reversal, and return the gradient's program."""

    class Local(OperatorDefinition):
        name = "local_test_operator"

        def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
            return dict(results)

        def maps(self, c: Any) -> None:
            build(c)

    monkeypatch.setitem(REGISTRY, Local.name, Local())
    p = program_of(Local.name, operands, {})
    values = values or random_values(operands)
    floats = [k for k in p.signature.inputs if p.containers[k].dtype.is_float]
    outputs = [o for o in p.signature.outputs if p.containers[o].dtype.is_float]
    expected = finite_differences(p, values, floats)
    differentiate(p, outputs, floats)
    (gradient,) = [n for n in p.nodes if isinstance(n, Operator) and n.op == "map_gradient"]
    body = gradient.attributes["body"]
    expand(p, choose_maps)
    verify(p)
    run = interpret(p, {**values, **cotangents(p)}, wide=True)
    for k, g in p.signature.gradients:
        np.testing.assert_allclose(run[g], expected[k], rtol=2e-6, atol=2e-7, err_msg=k)
    assert {k for k, _ in p.signature.gradients} == set(floats)
    return body


def combines(body: Program) -> list[tuple[str, str | None]]:
    """(name, combiner) of the maps of a gradient's program."""
    return [(n.name.removeprefix("local_test_operator_"), w.combine) for n in body.nodes for w in n.tasklet.writes.values()]  # type: ignore[attr-defined]


X = TensorType(float64, (4, 5))


def test_elementwise_reverses_without_combining(monkeypatch: Any) -> None:
    def build(c: Any) -> None:
        p = c.params((4, 5))
        c.map(p, {"x": at(c.input(), *p)}, {"y": at(c.output(), *p)}, lambda x: {"y": apply("tanh", x) * x})

    assert combines(reverse_maps(build, {"x": X}, {"y": X}, monkeypatch)) == [("reversed", None)]


@pytest.mark.parametrize(("stride", "pad"), [(1, 0), (1, 1), (2, 0), (2, 1), (3, 2)])
def test_strided_window_becomes_a_gather(stride: int, pad: int, monkeypatch: Any) -> None:
    size, kernel = 8, 3
    out = (size + 2 * pad - kernel) // stride + 1

    def build(c: Any) -> None:
        x, w, y = c.input(), c.input("w"), c.output()
        n, o, k = c.params((2, out, kernel))
        e = o * stride + k - pad
        c.map((n, o, k), {"x": at(x, n, e, guard=inside(e, size), fill=0), "w": at(w, k)}, {"y": at(y, n, o, combine="sum")},
              lambda x, w: {"y": x * w})  # fmt: skip

    body = reverse_maps(build, {"x": TensorType(float64, (2, size)), "w": TensorType(float64, (kernel,))},
                        {"y": TensorType(float64, (2, out))}, monkeypatch)  # fmt: skip
    for m in body.nodes:
        assert isinstance(m, Map) and m.tasklet is not None
        (write,) = m.tasklet.writes.values()
        assert all(s in m.params for s in write.subset), "a gather writes each element of its own parameters"
        assert not write.guard


def test_padding_with_a_value_that_is_not_zero(monkeypatch: Any) -> None:
    def build(c: Any) -> None:
        p = c.params((4, 8))
        e = p[1] - 2
        c.map(p, {"x": at(c.input(), p[0], e, guard=inside(e, 5), fill=2.0)}, {"y": at(c.output(), *p)}, lambda x: {"y": 1 / x})

    reverse_maps(build, {"x": X}, {"y": TensorType(float64, (4, 8))}, monkeypatch)


def test_a_diagonal_and_a_transposed_read_of_the_same_operand(monkeypatch: Any) -> None:
    square = TensorType(float64, (4, 4))

    def build(c: Any) -> None:
        i, j = c.params((4, 4))
        x = c.input()
        c.map((i, j), {"a": at(x, i, i), "b": at(x, j, i), "c": at(x, 3 - i, 1)}, {"y": at(c.output(), i, j)},
              lambda a, b, c: {"y": a * b + apply("sin", c)})  # fmt: skip

    body = reverse_maps(build, {"x": square}, {"y": square}, monkeypatch)
    assert combines(body)[-1] == ("sum_gradients", None)


def test_an_operand_that_is_given_twice_gets_two_gradients() -> None:
    p = Program("twice")
    with p.edit("Build") as edit:
        x = edit.add_container(Container("x", float64, (3,), role="input"))
        b = OpBuilder(edit, "forward", hint="")
        y = b.op("atan2", {}, a=x, b=x)
        edit.add(*b.nodes)
        edit.set_signature(Signature(inputs=("x",), outputs=(y.name,)))
    (node,) = p.nodes
    assert isinstance(node, Operator)
    with p.edit("Reverse") as edit:
        g = edit.add_container(Container("g", float64, (3,), role="cotangent"))
        found = reverse_operator(edit, node, {"y": g}, frozenset({"a", "b"}))
    assert set(found) == {"a", "b"} and found["a"].name != found["b"].name


def test_gather_scatters_its_gradient(monkeypatch: Any) -> None:
    table = TensorType(float64, (6, 3))
    ids = TensorType(int64, (7,))

    def build(c: Any) -> None:
        i, d = c.params((7, 3))
        w, ids, y = c.input("w"), c.input("ids"), c.output()
        reads = {"i": at(ids, i), "w": at(w, Indirect("i"), d)}
        t = Tasklet({"y": apply("exp", read("w", float64))}, reads=reads, writes={"y": at(y, i, d)})
        c.nodes.append(Map((i, d), (t,)))

    values = {"w": np.random.default_rng(0).normal(size=(6, 3)), "ids": np.array([0, 5, 5, 2, 0, 0, 3])}
    body = reverse_maps(build, {"w": table, "ids": ids}, {"y": TensorType(float64, (7, 3))}, monkeypatch, values)
    assert combines(body) == [("reversed", "sum")]


@pytest.mark.parametrize("combine", ["sum", "prod", "max", "min"])
def test_reductions(combine: str, monkeypatch: Any) -> None:
    def build(c: Any) -> None:
        p = c.params((4, 5))
        c.map(p, {"x": at(c.input(), *p)}, {"y": at(c.output(), p[0], combine=combine)}, lambda x: {"y": x * x})

    reverse_maps(build, {"x": X}, {"y": TensorType(float64, (4,))}, monkeypatch)


def test_product_with_zeros(monkeypatch: Any) -> None:
    def build(c: Any) -> None:
        p = c.params((3, 4))
        c.map(p, {"x": at(c.input(), *p)}, {"y": at(c.output(), p[0], combine="prod")}, lambda x: {"y": x})

    values = {"x": np.array([[1.5, 2, 3, 4], [1.5, 0, 3, 4], [0, 2, 0, 4]])}
    reverse_maps(build, {"x": TensorType(float64, (3, 4))}, {"y": TensorType(float64, (3,))}, monkeypatch, values)


def test_ties_share_the_gradient_of_a_maximum(monkeypatch: Any) -> None:
    x = np.array([[1.0, 3.0, 3.0, 2.0]])
    p = program_of("amax", {"x": TensorType(float64, (1, 4))}, {"dims": (1,)})
    found, expected = (gradients(p, {"x": x}, by_maps, monkeypatch) for by_maps in (True, False))
    np.testing.assert_array_equal(found["x"], expected["x"])
    assert found["x"][0, 1] == found["x"][0, 2] != 0


@pytest.mark.parametrize("combiner", ["welford", "online_softmax", "argmax"])
def test_tuple_combiners(combiner: str, monkeypatch: Any) -> None:
    rows = TensorType(float64, (4,))

    def build(c: Any) -> None:
        p = c.params((4, 5))
        if combiner == "welford":
            names = {"count": c.temp((4,), float64), "mean": c.output("a"), "m2": c.output("b")}
            code = lambda x: {"count": const(1, float64), "mean": x * x, "m2": const(0, float64)}  # noqa: E731
        elif combiner == "online_softmax":
            names = {"max": c.output("a"), "sum": c.output("b")}
            code = lambda x: {"max": apply("sin", x), "sum": x}  # noqa: E731
        else:
            names = {"value": c.output("a"), "index": c.temp((4,), int64)}
            code = lambda x: {"value": x * x, "index": index_value(p[1])}  # noqa: E731
        c.map(p, {"x": at(c.input(), *p)}, {k: at(v, p[0], combine=combiner) for k, v in names.items()}, code)
        if combiner == "argmax":
            q = c.params((4,))
            c.map(q, {"v": at(c.output("a"), *q)}, {"b": at(c.output("b"), *q)}, lambda v: {"b": apply("exp", v)})

    reverse_maps(build, {"x": X}, {"a": rows, "b": rows}, monkeypatch)


def test_prefix_sums(monkeypatch: Any) -> None:
    def build(c: Any) -> None:
        p = c.params((4, 5))
        c.map(p, {"x": at(c.input(), *p)}, {"y": at(c.output(), *p, combine="sum", scan=p[1])}, lambda x: {"y": x * x})

    reverse_maps(build, {"x": X}, {"y": X}, monkeypatch)


def test_a_nest_with_locals(monkeypatch: Any) -> None:
    def build(c: Any) -> None:
        x, y = c.input(), c.output()
        (i,) = c.params((4,))
        types = {x.name: float64, "top": float64, "total": float64, "row": float64}
        top, total = (Container(n, float64, (), storage="register") for n in ("top", "total"))
        row = Container("row", float64, (5,), storage="register")
        j, k, l = (fresh_params((5,)) for _ in range(3))
        maps = (
            make_map(j, {"x": at(x, i, *j)}, {"m": at(top, combine="max")}, lambda x: {"m": x}, types),
            make_map(k, {"x": at(x, i, *k), "m": at(top)}, {"e": at(row, *k), "s": at(total, combine="sum")},
                     lambda x, m: {"e": apply("exp", x - m), "s": apply("exp", x - m)}, types),
            make_map(l, {"e": at(row, *l), "s": at(total)}, {"y": at(y, i, *l)}, lambda e, s: {"y": e / s}, types),
        )  # fmt: skip
        c.nodes.append(Map((i,), maps, {"top": top, "total": total, "row": row}))

    reverse_maps(build, {"x": X}, {"y": X}, monkeypatch)


def test_conditions_on_writes(monkeypatch: Any) -> None:
    def build(c: Any) -> None:
        p, q = c.params((4, 5)), c.params((4, 5))
        low, high = (Condition(2 - p[1]),), (Condition(q[1] - 3),)
        x, y = c.input(), c.output()
        c.map(p, {"x": at(x, *p)}, {"y": at(y, *p, guard=low)}, lambda x: {"y": x * x})
        c.map(q, {"x": at(x, *q)}, {"y": at(y, *q, guard=high)}, lambda x: {"y": apply("sin", x)})

    reverse_maps(build, {"x": X}, {"y": X}, monkeypatch)


def test_bfloat16_is_accumulated_in_float32() -> None:
    p = program_of("mul", {"a": TensorType(bfloat16, (64, 8)), "b": TensorType(bfloat16, (8,))}, {})
    (node,) = p.nodes
    assert isinstance(node, Operator)
    with p.edit("Reverse") as edit:
        g = edit.add_container(Container("g", bfloat16, (64, 8), role="cotangent"))
        found = reverse_operator(edit, node, {"y": g}, frozenset({"a", "b"}))
        edit.set_signature(p.signature.with_(cotangents=(("mul", g.name),)))
    assert {k: c.dtype for k, c in found.items()} == {"a": bfloat16, "b": bfloat16}
    expand(p, choose_maps)
    sums = [p.containers[w.container].dtype for n in p.nodes for w in n.writes.values() if w.combine == "sum"]
    assert sums == [float32]


def test_the_second_derivative_is_map_reversal_again() -> None:
    p = program_of("atan", {"x": TensorType(float32, (5,))}, {})
    (node,) = p.nodes
    assert isinstance(node, Operator)
    with p.edit("Reverse") as edit:
        g = edit.add_container(Container("g", float32, (5,), role="input"))
        first = reverse_operator(edit, node, {"y": g}, frozenset({"x"}))["x"]
        again = next(n for n in p.nodes if isinstance(n, Operator) and n.op == "map_gradient")
        h = edit.add_container(Container("h", float32, (5,), role="input"))
        second = reverse_operator(edit, again, dict.fromkeys(again.writes, h), frozenset(again.reads))
        edit.set_signature(p.signature.with_(inputs=("x", "g", "h")))
    expand(p, choose_maps)
    x = np.linspace(-1, 1, 5)
    run = interpret(p, {"x": x, "g": np.ones(5), "h": np.ones(5)}, wide=True)
    np.testing.assert_allclose(run[first.name], 1 / (1 + x * x))
    by_operand = {again.reads[k].container: c for k, c in second.items()}
    np.testing.assert_allclose(run[by_operand["x"].name], -2 * x / (1 + x * x) ** 2, atol=1e-12)


N = Symbol("N", lower=4)


@pytest.mark.parametrize(
    ("name", "operands", "attributes"),
    [
        ("silu", {"x": (N, 3)}, {}),
        ("mul", {"a": (N, 3), "b": (3,)}, {}),
        ("softmax", {"x": (3, N)}, {"dim": -1}),
        ("layer_norm", {"x": (N, 4), "weight": (4,), "bias": (4,)}, {"normalized_shape": (4,)}),
        ("batch_norm", {"x": (N, 2, N), "weight": (2,), "bias": (2,)}, {}),
        ("slice", {"x": (N, 5)}, {"dim": 0, "start": 1, "stop": N, "step": 2}),
        ("pad", {"x": (2, N)}, {"pad": (1, 2), "value": 0.0}),
        ("flip", {"x": (N, 2)}, {"dims": (0,)}),
        ("contract", {"a": (N, 3), "b": (4, 3), "bias": (4,)}, {"equation": "mk,nk->mn", "alpha": 1, "beta": 1}),
        ("amax", {"x": (N, 3)}, {"dims": (0,), "keepdim": False, "dtype": None}),
        ("cumsum", {"x": (N, 2)}, {"dim": 0, "dtype": None}),
    ],
)
def test_symbolic_sizes(name: str, operands: dict, attributes: dict, monkeypatch: Any) -> None:
    types = {k: TensorType(float64, shape) for k, shape in operands.items()}
    p = program_of(name, types, attributes)
    p.symbols = (N,)
    monkeypatch.setattr(type(definition(name)), "gradient", None)
    differentiate(p, [m.container for k, m in p.nodes[0].writes.items() if k not in STATISTICS], list(operands))
    monkeypatch.undo()
    expand(p, choose_maps)
    verify(p)
    size = 6
    fixed = program_of(name, {k: TensorType(float64, _at(t.shape, size)) for k, t in types.items()}, _fixed(attributes, size))
    values = random_values({k: TensorType(float64, fixed.containers[k].shape) for k in operands})
    reference = fixed.clone()
    (node,) = reference.nodes
    differentiate(reference, [m.container for k, m in node.writes.items() if k not in STATISTICS], list(operands))
    expand(reference, choose_maps)
    cot = cotangents(reference)
    renamed = dict(zip([g for _, g in p.signature.cotangents], cot.values(), strict=True))
    got = interpret(p, {**values, **renamed}, sizes={"N": size}, wide=True)
    expected = interpret(reference, {**values, **cot}, wide=True)
    wanted = dict(reference.signature.gradients)
    assert {k for k, _ in p.signature.gradients} == set(wanted)
    for k, g in p.signature.gradients:
        np.testing.assert_allclose(got[g], expected[wanted[k]], rtol=1e-9, atol=1e-11, err_msg=k)


def _at(shape: Any, size: int) -> tuple[int, ...]:
    return tuple(evaluate(n, {"N": size}) for n in shape)


def _fixed(attributes: dict, size: int) -> dict:
    return {k: evaluate(v, {"N": size}) if isinstance(v, Symbol) else v for k, v in attributes.items()}
