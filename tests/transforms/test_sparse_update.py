"""SparseUpdate: only the rows that were looked up are summed and updated, and everything else is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from shorthaul.analysis.movement import movement
from shorthaul.config import Options
from shorthaul.ir.builder import MapBuilder, at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType, float32, float64, int64
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.interpreter import interpret
from shorthaul.ir.memlet import full
from shorthaul.ir.nodes import Operator
from shorthaul.ir.pointwise_program import folded, nonlinear
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ir.scalar import Scalar, apply, cast, const, read
from shorthaul.ir.verify import verify
from shorthaul.ops.builder import OpBuilder
from shorthaul.ops.expand import choose_maps, expand
from shorthaul.pipeline import optimize
from shorthaul.transforms.base import Match, Refusal
from shorthaul.transforms.catalog import make
from shorthaul.transforms.level4_global.sparse_update import SparseUpdate
from shorthaul.transforms.level4_global.update_in_place import UpdateInPlace

ROWS, WIDTH = 60, 3
Code = Callable[..., Scalar]


def sgd(w: Scalar, g: Scalar, lr: Scalar) -> Scalar:
    return w - g * lr


def body(code: Code, states: int = 0) -> Program:
    """w' = code(w, g, lr); each state s' = s + g*g."""
    p = Program("update", form=Form.MAPS)
    names = ["w", "g", "lr", *(f"s{k}" for k in range(states))]
    with p.edit("Build") as edit:
        for n in names:
            edit.add_container(Container(n, float64, () if n == "lr" else (ROWS, WIDTH), role="input"))
        outs = [edit.add_container(Container(f"new{k}", float64, (ROWS, WIDTH), role="output")) for k in range(states + 1)]
        b = MapBuilder(edit)
        q = b.params((ROWS, WIDTH))
        reads = {n: at(p.containers[n], *(() if n == "lr" else q)) for n in names}
        b.map(q, reads, {"y": at(outs[0], *q)}, lambda w, g, lr, **s: {"y": code(w, g, lr, *s.values())})
        for k in range(states):
            q = b.params((ROWS, WIDTH))
            b.map(q, {"s": at(f"s{k}", *q), "g": at("g", *q)}, {"y": at(outs[k + 1], *q)}, lambda s, g: {"y": s + g * g})
        edit.add(*b.nodes)
        edit.set_signature(Signature(tuple(names), tuple(o.name for o in outs)))
    return p


def step(code: Code = sgd, *, lookups: int = 1, states: int = 0, padding: int = -1, between: Any = None, dense: bool = False,
         grads: bool = False, whole: bool = True, skipped: bool = False, shape: Sequence[int] = (2, 3)) -> Program:  # fmt: skip
    """A step that reads a table by rows and is trained by them. between: what happens to the gradient. skipped: a flag keeps old values."""
    p = Program("step")
    with p.edit("Build") as edit:

        def declare(name: str, dims: Sequence[int], role: str = "input", dtype: DType = float64) -> Container:
            return edit.add_container(Container(name, dtype, tuple(dims), role=role))

        w, lr = declare("w", (ROWS, WIDTH), "parameter"), declare("lr", ())
        ss = [declare(f"s{k}", (ROWS, WIDTH), "buffer") for k in range(states)]
        inputs = ["w", "lr", *(s.name for s in ss)]
        b = OpBuilder(edit, "forward", hint="")
        gradient, total = None, None
        for k in range(lookups):
            i = declare(f"i{k}", shape, dtype=int64)
            inputs.append(i.name)
            y = b.op("embedding", {"padding_idx": padding}, weight=w, indices=i)
            gy = b.pointwise(lambda y: y * y, y)
            part = b.op("embedding_backward", {"rows": ROWS, "padding_idx": padding}, g=gy, indices=i)
            gradient = part if gradient is None else b.op("add", a=gradient, b=part)
            own = b.op("sum", {"dims": ()}, x=y)
            total = own if total is None else b.op("add", a=total, b=own)
        if dense:
            gradient = b.op("add", a=gradient, b=b.pointwise(lambda w: w * 0.1, w))
        if between is not None:
            gradient = between(b, gradient, lr)
        news = [edit.add_container(Container(f"{c.name}_new", float64, c.shape)) for c in (w, *ss)]
        reads = {f"x{k}": full(c) for k, c in enumerate((w, gradient, lr, *ss))}
        b.nodes.append(Operator("parameter_update", {"body": body(code, states)}, reads=reads,
                                writes={f"y{k}": full(c) for k, c in enumerate(news)}))  # fmt: skip
        if skipped:
            flag = declare("flag", ())
            inputs.append("flag")
            condition = b.op("pointwise", {"code": read("x0", float64) > 0}, x0=flag)
            news = [b.op("where", {}, condition=condition, a=old, b=new) for old, new in zip((w, *ss), news, strict=True)]
        edit.add(*b.nodes)
        for c in (total, *news):
            edit.set_container(p.containers[c.name].with_(role="output"))
        outputs = (total.name, *([gradient.name] if grads else ()))
        updates = tuple((old.name, new.name) for old, new in zip((w, *ss), news, strict=True))
        edit.set_signature(Signature(tuple(inputs), outputs, updates=updates))
    if whole:
        p.attributes["whole_step"] = True
    verify(p)
    return p


def given(p: Program, seed: int = 0) -> dict[str, np.ndarray]:
    """Random values; few different row numbers, so that rows are looked up several times."""
    rng = np.random.default_rng(seed)
    return {n: rng.uniform(0.1, 1, c.shape) if (c := p.containers[n]).dtype.is_float else rng.integers(0, 5, c.shape)
            for n in p.signature.inputs}  # fmt: skip


def expanded(p: Program, op: Operator) -> None:
    q = p.clone()
    expand(q, choose_maps)
    p.nodes[:], p.containers = q.nodes, q.containers


def results(p: Program, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    q = p.clone()
    expand(q, choose_maps)
    found = interpret(q, inputs)
    return [found[n] for n in (*p.signature.outputs, *(u for _, u in p.signature.updates))]


def only(p: Program) -> Match:
    (m,) = list(SparseUpdate().matches(p))
    return m


def clipped(b: OpBuilder, g: Container, lr: Container) -> Container:
    """Scaled by one over one and the norm."""
    norm = b.op("sum", {"dims": ()}, x=b.pointwise(lambda g: g * g, g))
    return b.pointwise(lambda g, n: g / (n + 1), g, norm)


CASES: dict[str, dict[str, Any]] = {
    "plain": {}, "several lookups": {"lookups": 3}, "padding": {"padding": 2}, "norm": {"between": clipped}, "skipped": {"skipped": True},
    "adagrad": {"code": lambda w, g, lr, s: w - g * lr / (apply("sqrt", s) + 1e-10), "states": 1}, "one index": {"shape": ()},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_rows_alone_are_updated_with_the_same_numbers_and_as_many_bytes_less_as_claimed(name: str) -> None:
    p = step(**CASES[name])
    t, m = SparseUpdate(), only(p)
    inputs = given(p)
    expected, before, moved = results(p, inputs), fingerprint(p), movement(p).bytes
    t.check(m)
    claim = t.saves(m)
    assert t.try_apply(m)
    verify(p)
    for a, b in zip(results(p, inputs), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert movement(p).bytes == moved - claim
    assert not any(isinstance(n, Operator) and n.op in ("embedding_backward", "parameter_update") for n in p.nodes)
    p.undo()
    assert fingerprint(p) == before
    verify(p)


def test_no_container_of_the_tables_size_is_left_and_the_rest_is_written_in_place() -> None:
    p = step(lookups=2)
    dense = p.clone()
    optimize(p, Options(4), check=True)
    large = [n for n, c in p.containers.items() if c.size == ROWS * WIDTH and not c.is_external and c.alias is None]
    assert large == []
    optimize(dense, Options(4, sparse=False), check=True)
    assert movement(p).bytes < movement(dense).bytes


def test_writing_rows_in_place_saves_the_copy_of_the_table() -> None:
    p = step()
    assert SparseUpdate().try_apply(only(p))
    expand(p, lambda node, d, containers: "library" if node.op == "write_rows" else "maps")
    with p.edit("Schedule") as edit:
        for n in list(p.nodes):
            if hasattr(n, "schedule"):
                edit.replace(n, n.with_(schedule=type(n.schedule)("parallel")))
        edit.set_form(Form.SCHEDULED)
    t = UpdateInPlace()
    (m,) = [x for x in t.matches(p) if x.mid == "w_new"]
    moved = movement(p).bytes
    t.check(m)
    claim, copy = t.saves(m), 2 * ROWS * WIDTH * 8  # the copy back is the caller's
    assert t.try_apply(m)
    verify(p)
    assert movement(p).bytes == moved - (claim - copy)


def ones(b: OpBuilder, g: Container) -> Container:
    return b.pointwise(lambda g: g + 1.0, g)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "weight decay": ({"code": lambda w, g, lr: w - (g + w * 0.01) * lr}, r"every row of w changes .*lazy"),
    "not linear": ({"code": lambda w, g, lr: w - apply("tanh", w) * lr + g}, "tanh of its values.*no closed form"),
    "dense": ({"dense": True}, "its gradient is combined with pointwise.*every row"),
    "grads": ({"grads": True}, "the caller gets the gradient of every row"),
    "many lookups": ({"shape": (50, 10)}, "500 lookups of 60 rows move"),
    "counted": ({"between": lambda b, g, lr: b.pointwise(lambda g, n: g * n, g, b.op("sum", {"dims": ()}, x=ones(b, g)))},
                "also counts the untouched rows"),
    "shifted": ({"between": lambda b, g, lr: b.pointwise(lambda g, lr: g + lr, g, lr)}, "not known to be one number"),
    "by column": ({"between": lambda b, g, lr: b.pointwise(lambda g, s: g / (s + 1), g, b.op("sum", {"dims": (0,)}, x=g))},
                  "sum.* reads the whole gradient"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_with_the_reason_and_changes_nothing(name: str) -> None:
    build, why = REFUSED[name]
    p = step(**build)
    before = fingerprint(p)
    with pytest.raises(Refusal, match=why):
        SparseUpdate().run(only(p))
    assert fingerprint(p) == before


def test_only_programs_of_a_whole_step() -> None:
    assert not list(SparseUpdate().matches(step(whole=False)))


def test_its_parameter_is_in_the_catalog() -> None:
    assert make("SparseUpdate", static=True).parameters == {"static": True}
    with pytest.raises(TypeError, match="static"):
        make("SparseUpdate", static=3)


def test_what_an_update_does_to_an_element_without_a_gradient() -> None:
    w, b, lr = (read(n, float64) for n in ("w", "b", "lr"))
    zero = {"g": const(0, float64)}
    g = read("g", float64)
    assert folded(w - g * lr, zero) is w and folded(w + g / b, zero) is w
    narrow = read("n", float32)
    assert folded(cast(cast(narrow, float64) - g * lr, float32), zero) is narrow
    assert folded(w - b * lr, zero) is not w
    assert nonlinear(w - b * lr, {"w", "b"}) == ""
    assert "mul" in nonlinear(w * b, {"w", "b"}) and "adding" in nonlinear(w + 1.0, {"w"}) and "div" in nonlinear(lr / w, {"w"})
    assert nonlinear(lr, {"w"}) != ""
