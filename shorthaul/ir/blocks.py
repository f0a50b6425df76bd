"""Blocks of rows: the part of an array on which one iteration of a tiled loop works.

A tile has a size for each of the leading dimensions of what the loop scans and stacks. Blocks are numbered in row-major order. A dimension
of size one does not take part: it is the same in every block, as in broadcasting.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .containers import Container, strides_in_order
from .edit import Edit
from .nodes import Loop
from .program import Program

Sizes = Sequence[int]


def grid(tile: Sizes, shapes: Iterable[Sizes]) -> tuple[int, ...]:
    """Number of blocks along each tiled dimension of arrays of these shapes together."""
    listing = list(shapes)
    return tuple(max([1, *(s[d] // t for s in listing)]) for d, t in enumerate(tile))


def place(number: int, blocks: Sizes) -> tuple[int, ...]:
    """Where a block is, along each dimension.

    >>> place(5, (2, 3))
    (1, 2)
    """
    at = []
    for n in reversed(blocks):
        at.append(number % n)
        number //= n
    return tuple(reversed(at))


def block(shape: Sizes, tile: Sizes, at: Sizes) -> tuple[slice, ...]:
    """The part of an array of that shape that belongs to the block at that place."""
    return tuple(slice(0, 1) if n == 1 else slice(i * t, i * t + t) for n, t, i in zip(shape, tile, at, strict=False))


def block_shape(shape: Sizes, tile: Sizes) -> tuple[int, ...]:
    """The shape of each block of an array."""
    return (*(1 if n == 1 else t for n, t in zip(shape, tile, strict=False)), *shape[len(tile) :])


def visits(shape: Sizes, tile: Sizes, blocks: Sizes) -> int:
    """How often the block of an array changes from one iteration to the next, the first one included: along dimensions of size one behind
    its last other one it stays."""
    varies = [d for d in range(len(tile)) if shape[d] != 1]
    return math.prod(blocks[: varies[-1] + 1]) if varies else 1


def block_of(c: Container, tile: Sizes) -> Container:
    """The container of a block of rows. What comes from outside or goes there lies as it does there; the rest is dense, dimensions in the
    same order."""
    shape = block_shape(c.shape, tile)  # type: ignore[arg-type]
    strides = c.actual_strides
    if c.role == "transient" and c.strides is not None:
        strides = strides_in_order(shape, tuple(sorted(range(len(shape)), key=lambda d: (-strides[d], d))))  # type: ignore[operator]
    same = c.with_(shape=shape, strides=strides)
    return (
        c.with_(shape=shape, strides=None)
        if c.strides is None and (c.role == "transient" or same.is_contiguous)
        else same
    )


def with_layout(loop: Loop, connector: str, outer: Container) -> Loop:
    """A tiled loop whose body reads or writes blocks of a container that lies in memory as `outer` does."""
    assert loop.tile is not None
    body = loop.body
    own = body.containers[connector]
    like = outer.with_(name=own.name, role=own.role, alias=None)
    new = block_of(like, loop.tile) if connector in loop.scanned or connector in loop.stacked else like
    containers = {**body.containers, connector: new}
    return loop.with_bodies((Program(body.name, body.form, containers, list(body.nodes), body.signature, body.symbols, dict(body.constants),
                                     attributes=dict(body.attributes)),))  # fmt: skip


def set_layout(edit: Edit, container: Container) -> None:
    """Replace a container by one with another layout, in the bodies of the loops over blocks that use it, too."""
    p = edit.program
    edit.set_container(container)
    for n in dict.fromkeys((*p.readers(container.name), *p.writers(container.name))):
        if isinstance(n, Loop) and n.tile is not None:
            new = n
            for k, m in (*n.reads.items(), *n.writes.items()):
                if m.container == container.name:
                    new = with_layout(new, k, container)
            edit.replace(n, new)
