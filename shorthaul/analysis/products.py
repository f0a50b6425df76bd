"""Contractions as matrix products: which dimensions are rows, columns and sums, and which operands a library would copy first.

A contraction "a,b->y" is one product of (batches of) matrices whose rows, columns and sums are groups of dimensions. A library takes an
operand as it lies in memory where each group walks through it in equal steps and rows or columns are next to each other; otherwise it
is copied.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

from shorthaul.ir.containers import Container
from shorthaul.symbolic import Expr, prove_eq

IntLike = Union[int, Expr]


@dataclass(frozen=True)
class Plan:
    """How an equation becomes one matrix product: dimension orders (batch, rows, columns) of operands and result, and how many of each.

    ones_a, ones_b, ones_y: dimensions of size one that take no part. swap: a and b change places, so that the
    result's last dimension is a column.
    """

    ones_a: tuple[int, ...]
    ones_b: tuple[int, ...]
    ones_y: tuple[int, ...]
    order_a: tuple[int, ...]
    order_b: tuple[int, ...]
    order_y: tuple[int, ...]
    batch: int
    rows: int
    columns: int
    summed: int
    swap: bool


@functools.lru_cache(maxsize=4096)
def plan(equation: str) -> Plan:
    """The plan of an equation "a,b->y" ("1" is a dimension of size one)."""
    operands, _, y = equation.partition("->")
    a, _, b = operands.partition(",")
    ones = [tuple(i for i, c in enumerate(letters) if c == "1") for letters in (a, b, y)]
    a, b, y = (letters.replace("1", "") for letters in (a, b, y))
    batch = [c for c in y if c in a and c in b]
    rows = [c for c in y if c in a and c not in b]
    columns = [c for c in y if c in b and c not in a]
    swap = bool(y) and y[-1] in rows
    if swap:
        a, b, rows, columns = b, a, columns, rows
        ones[0], ones[1] = ones[1], ones[0]
    # the order of the summed dimensions: that of the operand in which they are together at the end or the start
    summed = [c for c in a if c in b and c not in y]
    return Plan(
        ones[0],
        ones[1],
        ones[2],
        tuple(a.index(c) for c in batch + rows + summed),
        tuple(b.index(c) for c in batch + summed + columns),
        tuple(y.index(c) for c in batch + rows + columns),
        len(batch),
        len(rows),
        len(columns),
        len(summed),
        swap,
    )


def copied(equation: str, a: Container, b: Container, y: Container) -> list[str]:
    """Which of the operands "a" and "b" and the result "y" a library copies, because they are no matrices as they lie in memory."""
    p = plan(equation)
    first, second = ("b", "a") if p.swap else ("a", "b")
    views = {first: (p.ones_a, p.order_a, (p.batch, p.rows, p.summed)), second: (p.ones_b, p.order_b, (p.batch, p.summed, p.columns)),
             "y": (p.ones_y, p.order_y, (p.batch, p.rows, p.columns))}  # fmt: skip
    containers = {"a": a, "b": b, "y": y}
    return [k for k in ("a", "b", "y") if not _is_matrix(containers[k], *views[k])]


def _is_matrix(c: Container, ones: Sequence[int], order: Sequence[int], groups: Sequence[int]) -> bool:
    dims = [(n, s) for d, (n, s) in enumerate(zip(c.shape, c.actual_strides, strict=True)) if d not in ones]
    dims = [dims[d] for d in order]
    steps: list[IntLike | None] = []
    for count in groups:
        group, dims = [(n, s) for n, s in dims[:count] if not _same(n, 1)], dims[count:]
        for (_, outer), (n, inner) in itertools.pairwise(group):
            if not _same(outer, inner * n):
                return False
        steps.append(group[-1][1] if group else None)
    return any(s is None or _same(s, 1) for s in steps[1:])


def _same(a: IntLike, b: IntLike) -> bool:
    return a is b or a == b or prove_eq(a, b) is True
