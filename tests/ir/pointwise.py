"""A second interpreter that visits one point of a domain at a time, for comparison. Only what random programs use."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from shorthaul.ir.memlet import Indirect, Memlet
from shorthaul.ir.nodes import Map, Node, Tasklet
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import Scalar
from shorthaul.ir.scalar_ops import COMBINERS, SCALAR_OPS, identity
from shorthaul.symbolic import evaluate

Store = dict[str, np.ndarray]


def pointwise(program: Program, inputs: Mapping[str, Any], sizes: Mapping[str, int]) -> Store:
    """Values of all containers, floats in float64."""
    values: Store = {
        k: np.asarray(v, np.float64 if np.asarray(v).dtype.kind == "f" else None) for k, v in inputs.items()
    }
    for name, c in program.containers.items():
        if name not in values:
            values[name] = np.full([evaluate(n, sizes) for n in c.shape], np.nan if c.dtype.is_float else 0)
    for node in program.nodes:
        start(node, values, program.containers)
        run(node, dict(sizes), values)
    return values


def start(node: Node, values: Store, containers: Mapping[str, Any]) -> None:
    """Give what the node combines into its identity."""
    for t in [node] if isinstance(node, Tasklet) else [t for _, t in node.tasklets()]:  # type: ignore[attr-defined]
        for w in t.writes.values():
            if w.combine and w.container in containers:
                c = containers[w.container]
                values[w.container][...] = identity(w.combine, 0, c.dtype).attr


def run(node: Node, point: dict[str, int], values: Store) -> None:
    if isinstance(node, Map):
        ranges = [range(evaluate(p.lower, point), evaluate(p.upper, point) + 1) for p in node.params]
        for at in itertools.product(*ranges):
            inner = {**point, **{p.name: v for p, v in zip(node.params, at, strict=True)}}
            for name, c in node.locals.items():
                values[name] = np.full([evaluate(n, inner) for n in c.shape], np.nan)
            for child in node.body:
                start(child, values, node.locals)
                run(child, inner, values)
    elif isinstance(node, Tasklet):
        tasklet(node, point, values)


def tasklet(t: Tasklet, point: dict[str, int], values: Store) -> None:
    def place(m: Memlet) -> tuple[int, ...]:
        return tuple(int(value(s.name)) if isinstance(s, Indirect) else evaluate(s, point) for s in m.subset)

    def holds(m: Memlet) -> bool:
        return all(
            evaluate(c.expr, point) >= 0 if c.relation == "ge" else evaluate(c.expr, point) == 0 for c in m.guard
        )

    def value(name: str) -> Any:
        m = t.reads[name]
        return values[m.container][place(m)] if holds(m) else m.fill

    def code(s: Scalar) -> Any:
        if s.op == "read":
            return value(str(s.attr))
        if s.op == "const":
            return np.asarray(s.attr, np.float64 if s.dtype.is_float else None)
        assert s.op in SCALAR_OPS
        return SCALAR_OPS[s.op].numpy(*(np.asarray(code(a)) for a in s.args))

    for name, m in t.writes.items():
        result = code(t.code[name])
        if m.combine and m.scan is not None:  # the prefix before this point lies one step back along the scan
            back = {**point, m.scan.name: point[m.scan.name] - 1}
            if back[m.scan.name] >= 0:
                result = COMBINERS[m.combine].numpy(
                    values[m.container][tuple(evaluate(s, back) for s in m.subset)], result
                )  # type: ignore[arg-type,misc]
        elif m.combine:
            result = COMBINERS[m.combine].numpy(values[m.container][place(m)], result)  # type: ignore[misc]
        values[m.container][place(m)] = result
