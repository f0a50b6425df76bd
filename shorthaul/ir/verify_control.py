"""The verifier's rules for loops and branches: their bodies are functions that fit what the node reads and writes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Union

from shorthaul.symbolic import Expr, prove_eq

from .blocks import block_of, block_shape, grid
from .containers import Container
from .dtypes import bool_, int64
from .nodes import Branch, Loop
from .program import Program

IntLike = Union[int, Expr]
Problems = Iterator[tuple[str, str]]


def check_branch(n: Branch, containers: Mapping[str, Container]) -> Problems:
    """Violations of rule "body" by a branch, apart from those inside its bodies."""
    condition = n.reads.get("condition")
    if condition is None:
        yield "body", "has no read 'condition'"
    elif condition.container in containers and not _is_scalar(containers[condition.container]):
        yield "body", f"decides by {containers[condition.container]}, which is not one value"
    for body in n.bodies:
        yield from _inputs(body, [k for k in n.reads if k != "condition"])
        for name, m in n.writes.items():
            yield from _output(body, name, containers.get(m.container))
        for name, m in n.reads.items():
            if name in body.signature.inputs:
                yield from _fits(body.containers[name], containers.get(m.container), f"reads {name} of {body.name}")


def check_loop(n: Loop, containers: Mapping[str, Container]) -> Problems:
    """Violations of rule "body" by a loop, apart from those inside its body."""
    body = n.body
    yield from _inputs(body, [*n.reads, *([n.index] if n.index else [])])
    starts = {start for start, _ in n.carried}
    for start, end in n.carried:
        if start not in body.containers or end not in body.containers:
            yield "body", f"carries {end} to {start}, which are not both containers of the body"
            continue
        a, b = body.containers[start], body.containers[end]
        if a.dtype is not b.dtype or _differ(a.shape, b.shape):
            yield "body", f"carries {b} to {a}"
        if start not in n.reads:
            yield "body", f"the carried {start} has no value to start from"
    yield from _tiles(n, containers)
    written = {end for _, end in n.carried} | set(n.stacked) | set(n.summed)
    for name in n.writes:
        if name not in written:
            yield "body", f"writes {name}, which is neither carried nor stacked nor summed"
    for name in n.scanned:
        if name in starts or name not in n.reads:
            yield "body", f"scans {name}, which is " + ("carried" if name in starts else "not read")
    yield from _ends(n)
    sizes = {d.connector: d.symbol for d in n.defines}
    for name, m in n.writes.items():
        outer = containers.get(m.container)
        if name in n.stacked and outer is not None and n.tile is None:
            trips = sizes.get(name, n.count if n.condition is None else None)
            if trips is None:
                trips = next((s for s in sizes.values() if outer.shape and outer.shape[0] is s), None)
            if trips is None:
                yield "body", f"stacks {name} for a number of iterations that is no size"
            else:
                yield from _output(body, name, outer, (trips,))
        else:
            yield from _output(body, name, outer if n.tile is None or name not in n.stacked else _rows(outer, n.tile))
    for name, m in n.reads.items():
        if name in body.signature.inputs and n.tile is not None and name in n.scanned:
            yield from _fits(body.containers[name], _rows(containers.get(m.container), n.tile), f"reads rows of {name} of {body.name}")
        elif name in body.signature.inputs:
            leading = (n.count,) if name in n.scanned else ()
            yield from _fits(body.containers[name], containers.get(m.container), f"reads {name} of {body.name}", leading)


def _tiles(n: Loop, containers: Mapping[str, Container]) -> Problems:
    """Whether the rows of a tiled loop make up what it scans and stacks."""
    if n.tile is None:
        if n.summed:
            yield "body", f"sums {', '.join(n.summed)} without rows to run over"
        return
    if not isinstance(n.count, int) or n.carried or n.condition is not None or n.reverse:
        yield "body", "runs over rows without a number of iterations, or carries values from row to row"
        return
    rows = {}
    for name in (*n.scanned, *n.stacked):
        m = n.reads.get(name) or n.writes.get(name)
        c = containers.get(m.container) if m is not None else None
        if c is not None:
            leading = [s for s in c.shape[: len(n.tile)] if isinstance(s, int)]
            if len(leading) < len(n.tile):
                yield "body", f"runs over rows of {c}, which has not {len(n.tile)} dimensions of known size for them"
                return
            rows[name] = c, leading
    blocks = grid(n.tile, (leading for _, leading in rows.values()))
    for name, (c, leading) in rows.items():
        whole = [g * t for g, t in zip(blocks, n.tile, strict=True)]
        if math.prod(blocks) != n.count or any(s != w and (s != 1 or name in n.stacked) for s, w in zip(leading, whole, strict=True)):
            yield "body", f"runs over {n.count} times {' x '.join(map(str, n.tile))} rows of {c}"
            return
    for name, m in (*n.reads.items(), *n.writes.items()):
        c, inner = containers.get(m.container), n.body.containers.get(name)
        if c is None or inner is None or len(c.shape) != len(inner.shape):
            continue
        like = block_of(c.with_(role="output"), n.tile) if name in rows else c
        if any(a != b and s != 1 for a, b, s in zip(inner.actual_strides, like.actual_strides, inner.shape, strict=True)):
            yield "body", f"takes {inner} for {'a block of ' if name in rows else ''}{c}, which lies in memory otherwise"
    both = set(n.stacked) & set(n.summed)
    if both:
        yield "body", f"stacks and sums {', '.join(sorted(both))}"


def _rows(c: Container | None, tile: tuple[int, ...]) -> Container | None:
    return None if c is None or len(c.shape) < len(tile) else c.with_(shape=block_shape(c.shape, tile))  # type: ignore[arg-type]


def _ends(n: Loop) -> Problems:
    """Whether the loop comes to an end, and what its condition and index are."""
    inner = n.body.containers
    if n.count is None and n.condition is None:
        yield "body", "has neither a count nor a condition"
    if n.count is None and (n.scanned or n.reverse):
        yield "body", "scans or runs in reverse without a count"
    if n.condition is not None:
        if n.condition not in {start for start, _ in n.carried}:
            yield "body", f"runs while {n.condition}, which is not carried"
        elif n.condition in inner and (inner[n.condition].dtype is not bool_ or not _is_scalar(inner[n.condition])):
            yield "body", f"runs while {inner[n.condition]}, which is not one bool"
    if n.index is not None:
        if n.index in n.reads:
            yield "body", f"numbers its iterations in {n.index}, which it reads"
        elif n.index in inner and (inner[n.index].dtype is not int64 or inner[n.index].shape):
            yield "body", f"numbers its iterations in {inner[n.index]}, which is not one int64"


def _inputs(body: Program, given: Collection[str]) -> Problems:
    for name in body.signature.inputs:
        if name not in given:
            yield "body", f"the input {name} of {body.name} is not read by the node"
    if body.signature.cotangents or body.signature.gradients or body.signature.updates:
        yield "body", f"{body.name} is not a function: it has gradients or updates"
    if any(node.phase != "forward" for node in body.nodes):
        yield "body", f"{body.name} has more than one phase"


def _output(body: Program, name: str, outer: Container | None, leading: Sequence[IntLike] = ()) -> Problems:
    if name not in body.containers:
        yield "body", f"writes {name}, which {body.name} does not have"
    elif name not in body.signature.outputs:
        yield "body", f"writes {name}, which is no output of {body.name}"
    else:
        yield from _fits(body.containers[name], outer, f"writes {name} of {body.name}", leading)


def _fits(inner: Container, outer: Container | None, what: str, leading: Sequence[Any] = ()) -> Problems:
    """The container outside has the dtype and shape of the one inside, with one size more for slices."""
    if outer is None:
        return
    shape = (*(outer.shape[:1] if leading and leading[0] is None else leading), *inner.shape)
    if inner.dtype is not outer.dtype or _differ(shape, outer.shape):
        yield "body", f"{what}, {inner}, as {outer}"


def _differ(a: Sequence[IntLike], b: Sequence[IntLike]) -> bool:
    return len(a) != len(b) or any(prove_eq(m, n) is False for m, n in zip(a, b, strict=True))


def _is_scalar(c: Container) -> bool:
    return prove_eq(c.size, 1) is True
