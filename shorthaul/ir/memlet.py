"""Memlets: what moves along an edge.

A memlet names a container and one subscript per dimension:

- an integer expression: one element along that dimension;
- `Span(start, size, step)`: a range of elements;
- `Indirect(name)`: the value of the integer that the same node reads as `name` (embedding, gather, scatter).

`guard` is a conjunction of conditions: where it fails a read yields `fill` and a write does not happen. `combine` names
the combiner of a write that reduces; `scan` names the map parameter along which the prefixes are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Union

from shorthaul.symbolic import Expr, Symbol, evaluate, free_symbols, product, substitute

from .containers import Container

IntLike = Union[int, Expr]


@dataclass(frozen=True)
class Span:
    """`size` elements from `start` on, `step` apart."""

    start: IntLike
    size: IntLike
    step: IntLike = 1

    def __repr__(self) -> str:
        end = self.start + self.size if self.step == 1 else self.start + (self.size - 1) * self.step + 1
        return f"{self.start}:{end}" if self.step == 1 else f"{self.start}:{end}:{self.step}"


@dataclass(frozen=True)
class Indirect:
    """The value of the integer read named `name` of the same node."""

    name: str

    def __repr__(self) -> str:
        return f"<{self.name}>"


@dataclass(frozen=True)
class Condition:
    """`expr >= 0` (relation "ge") or `expr == 0` (relation "eq") of map parameters and sizes."""

    expr: IntLike
    relation: str = "ge"

    def holds(self, values: Mapping[Symbol, int]) -> bool:
        """Whether it holds for these values of its symbols."""
        value = self.expr if isinstance(self.expr, int) else evaluate(self.expr, values)
        return value >= 0 if self.relation == "ge" else value == 0

    def __repr__(self) -> str:
        return f"{self.expr} {'>=' if self.relation == 'ge' else '=='} 0"


Subscript = Union[int, Expr, Span, Indirect]
Guard = tuple[Condition, ...]


@dataclass(frozen=True)
class Memlet:
    """What moves between a container and a node. See the module's page for the fields."""

    container: str
    subset: tuple[Subscript, ...]
    guard: Guard = ()
    fill: int | float | bool | None = None
    combine: str | None = None
    scan: Symbol | None = None

    @property
    def is_indirect(self) -> bool:
        return any(isinstance(s, Indirect) for s in self.subset)

    @property
    def is_element(self) -> bool:
        """One element a time (no spans)."""
        return not any(isinstance(s, Span) for s in self.subset)

    @cached_property
    def symbols(self) -> frozenset[Symbol]:
        """Map parameters and sizes that the subset and the guard use."""
        return frozenset().union(*[free_symbols(e) for e in self._expressions() if isinstance(e, Expr)])

    @property
    def volume(self) -> IntLike:
        """Elements that move at one execution."""
        return product(s.size for s in self.subset if isinstance(s, Span))

    def _expressions(self) -> list[IntLike]:
        out: list[IntLike] = []
        for s in self.subset:
            if isinstance(s, Span):
                out += [s.start, s.size, s.step]
            elif not isinstance(s, Indirect):
                out.append(s)
        return out + [c.expr for c in self.guard]

    def map_expressions(self, fn: Callable[[IntLike], IntLike]) -> Memlet:
        """The memlet with `fn` applied to every expression of subset and guard. Conditions that became true are dropped."""

        def one(s: Subscript) -> Subscript:
            if isinstance(s, Span):
                return Span(fn(s.start), fn(s.size), fn(s.step))
            return s if isinstance(s, Indirect) else fn(s)

        guard = simplify_guard(tuple(Condition(fn(c.expr), c.relation) for c in self.guard)) if self.guard else ()
        return Memlet(self.container, tuple(one(s) for s in self.subset), guard, self.fill, self.combine, self.scan)

    def substitute(self, values: Mapping[Symbol, IntLike | Indirect]) -> Memlet:
        """Replace map parameters (the scan parameter only by another symbol, or where it has one value; one that is a subscript by itself
        also by an `Indirect`)."""
        if self.symbols.isdisjoint(values) and self.scan is None:
            return self
        # a plain parameter is by far the most frequent subscript
        numbers = {p: e for p, e in values.items() if not isinstance(e, Indirect)}
        m = self.map_expressions(lambda e: e if isinstance(e, int) else values[e] if e in values else substitute(e, numbers))  # type: ignore[index,arg-type,return-value]
        if m.scan is not None and m.scan in values:
            new = values[m.scan]
            if not isinstance(new, Symbol) and m.scan.size == 1:
                return m.with_(scan=None)  # the only prefix
            if not isinstance(new, Symbol):
                raise ValueError(f"scan parameter {m.scan} can only be renamed, not replaced by {new}")
            m = m.with_(scan=new)
        return m

    def rename_reads(self, names: Mapping[str, str]) -> Memlet:
        """Rename the connectors that indirect subscripts refer to."""
        if not self.is_indirect:
            return self
        return self.with_(subset=tuple(Indirect(names.get(s.name, s.name)) if isinstance(s, Indirect) else s for s in self.subset))

    def with_(self, **changes: object) -> Memlet:
        """A copy with fields changed."""
        fields = {k: getattr(self, k) for k in ("container", "subset", "guard", "fill", "combine", "scan")}
        return Memlet(**{**fields, **changes})  # type: ignore[arg-type]

    def __repr__(self) -> str:
        text = f"{self.container}[{', '.join(map(str, self.subset))}]"
        if self.guard:
            text += f" if {' and '.join(map(str, self.guard))}" + ("" if self.fill is None else f" else {self.fill}")
        if self.combine:
            text += f" ({'' if self.scan is None else f'scan {self.scan} '}{self.combine})"
        return text


def simplify_guard(guard: Guard) -> Guard:
    """Drop conditions that always hold, and duplicates, keeping the order."""
    from shorthaul.symbolic import prove_eq, prove_le

    kept: list[Condition] = []
    for c in guard:
        holds = prove_le(0, c.expr) if c.relation == "ge" else prove_eq(c.expr, 0)
        if holds is not True and c not in kept:
            kept.append(c)
    return tuple(kept)


def full(container: Container) -> Memlet:
    """The memlet of the whole container."""
    return Memlet(container.name, tuple(Span(0, n) for n in container.shape))


def is_full(memlet: Memlet, container: Container) -> bool:
    """Whether the memlet is the whole container, unguarded."""
    if memlet.guard:
        return False
    return all(
        isinstance(s, Span) and s.start == 0 and s.step == 1 and (s.size is n or s.size == n)
        for s, n in zip(memlet.subset, container.shape, strict=True)
    )
