"""Flat maps: elementwise maps that run over memory without gaps, said as a loop over one index.

Maps that compute the same thing for arrays of other sizes and shapes (the update of every parameter of a network, the cast of every
weight) have the same flat form. That is what lets one kernel do the work of many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Union

from shorthaul.symbolic import Expr, Symbol, affine, index, product, prove_eq

from .builder import at, make_map
from .containers import Container
from .dtypes import DType
from .memlet import Indirect, Memlet, Span
from .nodes import Map
from .scalar import Scalar, read, reads_of, substitute_reads

IntLike = Union[int, Expr]
ELEMENTS = Symbol("N", 1)


@dataclass(frozen=True)
class Flat:
    """The flat form of a map.

    key: equal for maps that differ in names, sizes and shapes alone. elements: how many the map writes. names: the program's container
    behind each operand, whose name in `tree` is "c" and its place. tree: the map over `ELEMENTS` elements. containers: of the tree.
    """

    key: tuple
    elements: IntLike
    names: tuple[str, ...]
    tree: Map
    containers: Mapping[str, Container]

    @property
    def single(self) -> frozenset[str]:
        """The program's containers of which every element reads the first value."""
        return frozenset(n for k, n in enumerate(self.names) if not self.containers[f"c{k}"].shape)


def flat_form(m: Map, containers: Mapping[str, Container]) -> Flat | None:
    """The flat form of a map, or None: it combines or looks up values, or its operands lie differently in memory."""
    t = m.tasklet
    if t is None or m.locals or any(s.has_index for s in t.code.values()):
        return None
    memlets = [*t.reads.values(), *t.writes.values()]
    if any(x.guard or x.combine or x.scan is not None or x.is_indirect or any(isinstance(s, Span) for s in x.subset) for x in memlets):
        return None
    elements = product(p.size for p in m.params)
    layouts = {x: _layout(x, containers[x.container], m.params) for x in memlets}
    if any(found is None for found in layouts.values()):
        return None
    one = elements == 1  # everything has one element: nothing tells operands of one element from others
    moving = {found for found in layouts.values() if found}
    if not one and (len(moving) != 1 or not all(layouts[w] for w in t.writes.values()) or not _dense(next(iter(moving)), m.params)):
        return None
    i = index("i", ELEMENTS)
    order = list(dict.fromkeys([*(r for s in t.code.values() for r in reads_of(s)), *t.code]))
    names: list[str] = []
    made: dict[str, Container] = {}
    reads: dict[str, Memlet] = {}
    writes: dict[str, Memlet] = {}
    renamed: dict[str, Scalar] = {}
    dtypes: dict[str, DType] = {}
    key: list[object] = []

    def operand(x: Memlet) -> tuple[str, Memlet, DType]:
        c, whole = containers[x.container], one or bool(layouts[x])
        own = f"c{len(names)}"
        names.append(x.container)
        made[own] = Container(own, c.dtype, (ELEMENTS,) if whole else ())
        key.append((c.dtype.name, whole))
        return own, at(made[own], i) if whole else at(made[own]), c.dtype

    for connector in order:
        if connector in t.reads:
            own, memlet, dtype = operand(t.reads[connector])
            reads[own], dtypes[own], renamed[connector] = memlet, dtype, read(own, dtype)
    code: dict[str, Scalar] = {}
    for connector, value in t.code.items():
        own, memlet, _ = operand(t.writes[connector])
        writes[own], code[own] = memlet, substitute_reads(value, renamed)
    tree = make_map((i,), reads, writes, code, dtypes, name=m.name)
    return Flat((*key, *code.items()), elements, tuple(names), tree, made)


def _layout(x: Memlet, c: Container, params: tuple[Symbol, ...]) -> tuple[tuple[Symbol, IntLike], ...] | None:
    """The strides of the parameters in an element's address, without those of one value; None where it is not a sum of them alone."""
    address: IntLike = 0
    for s, stride in zip(x.subset, c.actual_strides, strict=True):
        assert not isinstance(s, (Indirect, Span))
        address = address + s * stride
    found = affine(address, params)
    if found is None or found[1] != 0:
        return None
    return tuple((p, found[0][p]) for p in params if p in found[0] and p.size != 1)


def _dense(layout: tuple[tuple[Symbol, IntLike], ...], params: tuple[Symbol, ...]) -> bool:
    """Whether the addresses are all numbers from 0 to the product of the sizes, each once."""
    if {p for p, _ in layout} != {p for p in params if p.size != 1} or any(p.lower != 0 for p, _ in layout):
        return False
    left, reached = list(layout), 1
    while left:
        following = next((x for x in left if prove_eq(x[1], reached) is True), None)
        if following is None:
            return False
        left.remove(following)
        reached = reached * following[0].size  # type: ignore[assignment]
    return True
