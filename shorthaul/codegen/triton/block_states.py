"""The running states of reductions, and the scratch memory of partial results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType
from shorthaul.ir.memlet import Memlet
from shorthaul.ir.nodes import Tasklet
from shorthaul.ir.scalar import Scalar, read, reads_of
from shorthaul.ir.scalar_ops import COMBINERS
from shorthaul.symbolic import Symbol

from .blocks import BlockAxis, Group

Deps = frozenset[int]  # block dimensions along which a value varies


@dataclass
class State:
    """The running state of a combining group. level: "stage" (finished with the stage's own loops) or "kernel" (after the loop over a).

    at: which copy of a window it is. each: the dimensions of every component, fewer than `dims` for a count.
    """

    group: Group
    tasklet: Tasklet
    names: list[str]
    dtypes: tuple[DType, ...]
    codes: list[Scalar]
    dims: Deps
    level: str
    axes: tuple[BlockAxis, ...]
    at: dict[Symbol, int] = field(default_factory=dict)
    each: tuple[Deps, ...] = ()


@dataclass
class Partial:
    """A state whose parts lie in scratch memory, one row a chunk; kept: the parameters along which a row runs."""

    state: State
    kept: tuple[Symbol, ...]


def counting(combine: str, codes: Sequence[Scalar]) -> frozenset[int]:
    """Components that are the same for all results, because constants are merged into them and nothing else: a count.

    Their blocks have only the dimensions that are reduced, so that a Welford step divides once a row and not once an element.
    """
    c = COMBINERS[combine]
    if len(codes) == 1:
        return frozenset()
    left, right = (tuple(read(f"{i}", x.dtype) for i, x in enumerate(codes)) for _ in range(2))
    merged = c.merge(left, right)
    found = {i for i, code in enumerate(codes) if code.op == "const"}
    while True:
        kept = {i for i in found if {int(n) for n in reads_of(merged[i])} <= found}
        if kept == found:
            return frozenset(found)
        found = kept


def partial_name(m: Memlet) -> str:
    return f"{m.container}_partial"


def partial_container(m: Memlet, dtype: DType, kept: Sequence[Symbol], parts: Symbol) -> Container:
    """The scratch memory of a partial result: a row a chunk, dense along the kept parameters."""
    return Container(partial_name(m), dtype, (parts, *(p.size for p in kept)))
