"""Contractions of two tensors by an equation, through mm, addmm and bmm on views."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .table import Tensors, library


@dataclass(frozen=True)
class Plan:
    """How an equation becomes one matrix product: dimension orders (batch, rows, columns) of operands and result, and how many of each.

    ones_a, ones_b, ones_y: dimensions of size one that take no part. swap: a and b change places, so that the result's last dimension is a column.
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
    return Plan(*ones, tuple(a.index(c) for c in batch + rows + summed), tuple(b.index(c) for c in batch + summed + columns),
                tuple(y.index(c) for c in batch + rows + columns), len(batch), len(rows), len(columns), len(summed), swap)  # fmt: skip


def _squeezed(t: torch.Tensor, ones: Sequence[int]) -> torch.Tensor:
    for d in reversed(ones):
        t = t.select(d, 0)
    return t


def _size(shape: Sequence[int]) -> int:
    n = 1
    for s in shape:
        n *= s
    return n


def _merged(t: torch.Tensor, order: Sequence[int], groups: Sequence[int]) -> tuple[torch.Tensor, list[int]]:
    """The tensor with its dimensions in that order and merged into groups (a view where strides allow it), and its ordered shape."""
    t = t.permute(order)
    shape = list(t.shape)
    sizes, at = [], 0
    for count in groups:
        sizes.append(_size(shape[at : at + count]))
        at += count
    return t.reshape(sizes), shape


def _as_view(t: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor | None:
    try:
        return t.view(sizes)
    except RuntimeError:  # its strides do not merge
        return None


@library("contract", writes_out=True)
def contract(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    """alpha * contraction of a and b + beta * bias; see the operator `contract`."""
    p = plan(attributes["equation"])
    alpha, beta = attributes.get("alpha", 1), attributes.get("beta", 1)
    first, second = (reads["b"], reads["a"]) if p.swap else (reads["a"], reads["b"])
    bias = reads.get("bias")
    left, shape_a = _merged(_squeezed(first, p.ones_a), p.order_a, (p.batch, p.rows, p.summed))
    right, shape_b = _merged(_squeezed(second, p.ones_b), p.order_b, (p.batch, p.summed, p.columns))
    shape_y = shape_a[: p.batch + p.rows] + shape_b[p.batch + p.summed :]
    destination = out.get("y")
    target = None
    if destination is not None:
        target = _as_view(_squeezed(destination, p.ones_y).permute(p.order_y), (left.shape[0], left.shape[1], right.shape[2]))
    # a bias along the columns goes into the product itself
    inside = bias is not None and bias.dim() == 1 and p.columns == 1 and p.order_y[-1] == len(p.order_y) - 1 and bias.shape[0] == right.shape[2]
    if left.shape[0] == 1:
        a, b, t = left[0], right[0], None if target is None else target[0]
        if inside:
            y = torch.addmm(bias, a, b, beta=beta, alpha=alpha, out=t)
        elif alpha != 1:
            y = torch.addmm(a.new_zeros(()), a, b, beta=0, alpha=alpha, out=t)
        else:
            y = torch.mm(a, b, out=t)
        y = y.unsqueeze(0)
    elif alpha != 1:
        y = torch.baddbmm(left.new_zeros(()), left, right, beta=0, alpha=alpha, out=target)
        inside = False
    else:
        y = torch.bmm(left, right, out=target)
        inside = False
    if destination is not None and target is not None:
        result = destination
    else:
        result = y.view(shape_y).permute([p.order_y.index(d) for d in range(len(p.order_y))])
        for d in p.ones_y:
            result = result.unsqueeze(d)
    if bias is not None and not inside:
        result.add_(bias, alpha=beta)
    return {"y": result}
