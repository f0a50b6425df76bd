"""What the tests of transformations share: small training programs, their values, and the checks that every rewrite must pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import shorthaul.ops
from shorthaul.analysis.movement import movement
from shorthaul.autodiff import differentiate
from shorthaul.codegen.library.interpreting import library_for_interpreter
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType, float64
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.interpreter import interpret
from shorthaul.ir.nodes import Map, Operator
from shorthaul.ir.program import Program, Signature
from shorthaul.ir.verify import verify
from shorthaul.ops.builder import OpBuilder
from shorthaul.ops.expand import choose_maps, expand
from shorthaul.symbolic import Symbol, evaluate
from shorthaul.transforms.base import Match, Refusal, Transformation

assert shorthaul.ops

Shapes = Mapping[str, Sequence[Any]]


def network(build: Callable[..., Any], *, parameters: Shapes | None = None, train: bool = True, maps: bool = True,
            dtypes: Mapping[str, DType] | None = None, sizes: Sequence[Symbol] = (), **inputs: Sequence[Any]) -> Program:  # fmt: skip
    """A program of float64 operators: `build(b, *containers)` gets an OpBuilder and the inputs, then the parameters, and returns the
    outputs.

    train: differentiate with respect to everything. maps: expand everything into maps.
    """
    p = Program("network", symbols=tuple(sizes))
    shapes = {
        **{k: (v, "input") for k, v in inputs.items()},
        **{k: (v, "parameter") for k, v in (parameters or {}).items()},
    }
    with p.edit("build") as edit:
        declared = [
            edit.add_container(Container(k, (dtypes or {}).get(k, float64), tuple(shape), role=role))
            for k, (shape, role) in shapes.items()
        ]
        b = OpBuilder(edit, "forward", hint="")
        results = build(b, *declared)
        results = results if isinstance(results, (list, tuple)) else [results]
        edit.add(*b.nodes)
        outputs = list(dict.fromkeys(c.name for c in results))
        for name in outputs:
            edit.set_container(p.containers[name].with_(role="output"))
        edit.set_signature(Signature(tuple(shapes), tuple(outputs)))
    if train:
        differentiate(
            p,
            [o for o in outputs if p.containers[o].dtype.is_float],
            [k for k in shapes if p.containers[k].dtype.is_float],
        )
    verify(p)
    if maps:
        expand(p, choose_maps)
        verify(p)
    return p


def values(p: Program, seed: int = 0, sizes: Mapping[Symbol, int] | None = None) -> dict[str, np.ndarray]:
    """Random values of everything that comes from outside; integers are indices from 0 to 1."""
    rng = np.random.default_rng(seed)
    given = {}
    for name, c in p.containers.items():
        if c.is_external and c.role != "constant":
            shape = [n if isinstance(n, int) else evaluate(n, sizes or {}) for n in c.shape]
            given[name] = (
                rng.uniform(-2, 2, shape) if c.dtype.is_float else rng.integers(0, 2, shape).astype(c.dtype.numpy)
            )
    return given


def results(p: Program, inputs: Mapping[str, np.ndarray], *, wide: bool = False) -> dict[str, np.ndarray]:
    """Outputs, gradients and updates; operators are run as their maps. wide: without rounding to narrower types than float64."""

    def lower(program: Program, operator: Operator) -> None:
        if program.node_is_current(operator):
            expand(program, choose_maps)

    computed = interpret(p, inputs, library=library_for_interpreter(), expand=lower, wide=wide)
    return {k: computed[k] for k in sorted(p.results)}


def assert_same(
    p: Program, inputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], rounding: float = 0.0, wide: bool = False
) -> None:
    """The program computes what is expected; `rounding` of values that it stores in a narrower type may show, relative to the largest."""
    for k, v in results(p, inputs, wide=wide).items():
        scale = max(1.0, float(np.abs(expected[k]).max(initial=0)))
        np.testing.assert_allclose(v, expected[k], rtol=1e-9, atol=(1e-11 + 8 * rounding) * scale, err_msg=k)


def kernels(p: Program, phase: str | None = None) -> list[Map]:
    return [n for n in p.nodes if isinstance(n, Map) and (phase is None or n.phase == phase)]


def matches(t: Transformation, p: Program, **wanted: str) -> list[Match]:
    """Places where the transformation's pattern occurs, narrowed by container (`mid="x"`) or part of a node's name (`first="tanh"`)."""

    def fits(m: Match) -> bool:
        return all(m.items[k] == v if isinstance(m.items[k], str) else v in m.items[k].label for k, v in wanted.items())

    return [m for m in t.matches(p) if fits(m)]


def apply_checked(
    t: Transformation, m: Match, *, sizes: Mapping[Symbol, int] | None = None, claims: bool = True
) -> None:
    """Apply at a place;
    the program verifies, computes the same, moves as many bytes less as claimed, and undo gives the old program back.
    """
    p = m.program
    inputs = values(p, 1, sizes)
    expected = results(p, inputs)
    before, moved = fingerprint(p), movement(p).bytes
    t.check(m)
    claim = t.saves(m)
    assert t.try_apply(m), "check passed, but try_apply refused"
    assert p.log[-1].name == t.name and p.log[-1].parameters == t.parameters
    verify(p)
    assert_same(p, inputs, expected, t.rounding)
    if claims:
        assert moved - movement(p).bytes - claim == 0, (
            f"{t.name} claims {claim} bytes, movement fell by {moved - movement(p).bytes}"
        )
    after = fingerprint(p)
    p.undo()
    assert fingerprint(p) == before
    verify(p)
    # again on the restored program, so that callers can go on from the result
    again = next(
        x
        for x in t.matches(p)
        if [n.id for n in x.nodes] == [n.id for n in m.nodes] and x.items.get("mid") == m.items.get("mid")
    )
    assert t.try_apply(again)
    assert fingerprint(p) == after


def assert_refuses(t: Transformation, m: Match, reason: str) -> None:
    """The check refuses with these words, and nothing changes."""
    before = fingerprint(m.program)
    with pytest.raises(Refusal, match=reason):
        t.check(m)
    notes: list[Any] = []
    assert not t.try_apply(m, notes)
    assert reason in notes[0].reason and notes[0].transformation == t.name
    assert fingerprint(m.program) == before


def only(found: Iterable[Match]) -> Match:
    (m,) = found
    return m
