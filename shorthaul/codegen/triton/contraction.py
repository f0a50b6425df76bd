"""Finding a matrix product in scalar code.

C[m, n] (sum) = f(...) is a contraction if f is a product of a factor that does not depend on n and one that does not depend on m,
both may depend on the reduced k. The factors may be any scalar code: a normalization, an activation, a padding selected by `where`:
whatever was substituted into the reads becomes the prologue of the loads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Union

from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32
from shorthaul.ir.memlet import Memlet
from shorthaul.ir.nodes import Tasklet
from shorthaul.ir.scalar import Scalar, walk
from shorthaul.symbolic import Expr, Symbol, free_symbols

if TYPE_CHECKING:
    from .plan import Write

IntLike = Union[int, Expr]


@dataclass(frozen=True, eq=False)
class Contraction:
    """a depends on (left, shared), b on (shared, right). `flat`: the sum goes to a global container, not to a local."""

    tasklet: Tasklet
    connector: str
    a: Scalar
    b: Scalar
    left: frozenset[Symbol]
    right: frozenset[Symbol]
    shared: frozenset[Symbol]
    flat: bool

    def swapped(self) -> Contraction:
        """The transposed product."""
        return replace(self, a=self.b, b=self.a, left=self.right, right=self.left)

    def reads_left(self, memlet: Memlet) -> bool:
        names = {n.attr for n in walk(self.a) if n.op == "read"}
        return any(m is memlet for k, m in self.tasklet.reads.items() if k in names)


def find_contraction(w: Write, container: Callable[[str], Container], unit: Mapping[Symbol, int]) -> Contraction | None:
    """The contraction of a combining write, or None where its code is not one."""
    if w.combine != "sum" or not w.reduced or len(w.connectors) != 1:
        return None
    code = strip_cast(w.tasklet.code[w.connectors[0]])
    if not code.dtype.is_float:
        return None
    kept = w.scope - w.reduced

    def depends(node: Scalar) -> frozenset[Symbol]:
        found: frozenset[Symbol] = frozenset()
        for n in walk(node):
            if n.op == "read":
                memlet = w.tasklet.reads[n.attr]  # type: ignore[index]
                if memlet.is_indirect:
                    return frozenset(w.scope)
                found |= memlet.symbols
            elif n.op == "index":
                found |= free_symbols(n.attr)  # type: ignore[arg-type]
        return found & w.scope

    factors = [(f, depends(f)) for f in _factors(code)]
    if len(factors) < 2:
        return None
    # parameters that occur in exactly one factor with the reduced ones tell the sides apart
    sides: list[tuple[list[Scalar], frozenset[Symbol]]] = []
    loose: list[Scalar] = []
    for f, d in factors:
        own = d & kept
        if not own:
            loose.append(f)
            continue
        for at, (members, have) in enumerate(sides):
            if have & own - _everywhere(factors, kept):
                sides[at] = ([*members, f], have | own)
                break
        else:
            sides.append(([f], own))
    if len(sides) != 2:
        return None
    (left, dl), (right, dr) = sides
    if not (dl - dr) or not (dr - dl):
        return None
    big = {p for f in (*left, *right) for p in depends(f)} & w.reduced
    if not big or not all(depends_on_shared(side, depends, w.reduced) for side in (left, right)):
        return None
    a = reduce(lambda x, y: x * y, [*left, *loose])
    b = reduce(lambda x, y: x * y, right)
    return Contraction(w.tasklet, w.connectors[0], a, b, dl - dr, dr - dl, w.reduced, not w.is_local)


def depends_on_shared(
    side: list[Scalar], depends: Callable[[Scalar], frozenset[Symbol]], reduced: frozenset[Symbol]
) -> bool:
    """Whether a side of the product varies along the summed parameters."""
    return any(depends(f) & reduced for f in side)


def _everywhere(factors: list[tuple[Scalar, frozenset[Symbol]]], kept: frozenset[Symbol]) -> frozenset[Symbol]:
    """Kept parameters that every factor with kept parameters depends on: batches."""
    own = [d & kept for _, d in factors if d & kept]
    return frozenset.intersection(*own) if own else frozenset()


def strip_cast(node: Scalar) -> Scalar:
    """Code without a rounding at its root: sums accumulate in the wider type."""
    while (
        node.op == "cast"
        and node.dtype.is_float
        and node.args[0].dtype.is_float
        and node.dtype.bits < node.args[0].dtype.bits
    ):
        node = node.args[0]
    return node


def _factors(node: Scalar) -> list[Scalar]:
    return _factors(node.args[0]) + _factors(node.args[1]) if node.op == "mul" else [node]


def strip_widening(node: Scalar) -> Scalar:
    """The 16-bit value behind a cast to float32: tensor cores widen for themselves."""
    if node.op == "cast" and node.dtype is float32 and node.args[0].dtype.is_float and node.args[0].dtype.bits == 16:
        return node.args[0]
    return node
