"""From a map to axes: which parameters become blocks, grid, loops; decided from the memlets, never from operator names.

A kernel's values are blocks of rank one or two: dimension 1 is the *lane* axis (neighbouring elements in memory), dimension 0
the *row* axis. An axis is several map parameters counted as one. How an axis runs is its `mode`:

    tile      blocks over the grid (kept parameters)
    program   one value a program (kept by one write, reduced by another; batches)
    chunk     a loop over blocks within a chunk, chunks over the grid (reduced parameters; partial results are merged by a second kernel)
    loop      a loop over blocks (reduced parameters, long rows)
    whole     one block that holds the whole axis (rows that stay in registers)
    serial    a loop over single values (window taps that are reduced)
    unroll    written out once for each value (window taps that are kept: one accumulator each)
    contract  the loop over the shared axis of a matrix product

A map parameter p_i of an axis (p_1 .. p_m) is index // (n_{i+1} .. n_m) % n_i; where a memlet's address is linear in the axis the
quotients vanish by the symbolic simplification, and where it is not (a per-image gate over rows) they are computed once a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Union

from shorthaul.ir.containers import Container
from shorthaul.ir.memlet import Indirect, Memlet, Span
from shorthaul.ir.nodes import Map, Tasklet
from shorthaul.ir.scalar import Scalar, walk
from shorthaul.symbolic import Expr, Symbol, affine, bounds, free_symbols, index, product, substitute

from .contraction import Contraction, find_contraction

IntLike = Union[int, Expr]
MAX_TAPS = 16
WHOLE_LIMIT = 8192


class NotSchedulable(ValueError):
    """The map has no Triton schedule; the message says which part of it and what would help."""


@dataclass(frozen=True)
class Axis:
    """One axis of the kernel. `name` is its variable; `dim` the block dimension (None: a single value)."""

    name: str
    index: Symbol
    params: tuple[Symbol, ...]
    mode: str
    dim: int | None = None
    split: bool = False  # a contraction's axis whose blocks are dealt to several programs
    resident: bool = False  # a contraction's axis that is one block: an operand that the rows share is loaded once

    @property
    def size(self) -> IntLike:
        return self.index.size

    @property
    def block(self) -> str:
        return f"BLOCK_{self.name.upper()}"


@dataclass(frozen=True)
class Write:
    """A combining write: its tasklet's connectors (all components of the combiner) and what it reduces and keeps."""

    tasklet: Tasklet
    connectors: tuple[str, ...]
    combine: str
    scope: frozenset[Symbol]
    reduced: frozenset[Symbol]
    is_local: bool


@dataclass
class Plan:
    """The axes of a map and where each parameter is found in them."""

    map: Map
    containers: Mapping[str, Container]
    axes: list[Axis] = field(default_factory=list)
    values: dict[Symbol, IntLike] = field(default_factory=dict)
    writes: list[Write] = field(default_factory=list)
    contractions: dict[int, Contraction] = field(default_factory=dict)
    local_names: frozenset[str] = frozenset()
    owner: dict[Symbol, int] = field(default_factory=dict)  # parameter -> id of its map

    @property
    def rank(self) -> int:
        return max((a.dim + 1 for a in self.axes if a.dim is not None), default=1)

    @property
    def chunk(self) -> Axis | None:
        return next((a for a in self.axes if a.mode == "chunk" or a.split), None)

    def axis_of(self, param: Symbol) -> Axis:
        return next(a for a in self.axes if param in a.params)

    def expr(self, e: IntLike) -> IntLike:
        """An expression of map parameters as one of axis indices."""
        return e if isinstance(e, int) else substitute(e, self.values)

    def container(self, name: str) -> Container:
        found = self.containers.get(name)
        if found is None:
            raise NotSchedulable(f"map {self.map.label}: container {name} is not declared")
        return found

    def address(self, memlet: Memlet) -> tuple[IntLike, tuple[tuple[str, IntLike], ...]]:
        """Element offset of a memlet in axis indices, and (read name, stride) of its indirect subscripts."""
        base, indirect = address(memlet, self.container(memlet.container))
        return self.expr(base), indirect


def address(memlet: Memlet, container: Container) -> tuple[IntLike, tuple[tuple[str, IntLike], ...]]:
    """Element offset of an element memlet from its container's start, and its indirect subscripts with their strides."""
    base: IntLike = 0
    indirect: list[tuple[str, IntLike]] = []
    for sub, stride in zip(memlet.subset, container.actual_strides, strict=True):
        if isinstance(sub, Indirect):
            indirect.append((sub.name, stride))
        elif isinstance(sub, Span):
            raise NotSchedulable(f"memlet {memlet} is a span; tasklets move single elements")
        else:
            base = base + sub * stride
    return base, tuple(indirect)


@dataclass
class _Use:
    memlet: Memlet
    address: IntLike
    exprs: list[IntLike]
    params: frozenset[Symbol]
    is_local: bool


class _Planner:
    def __init__(self, m: Map, containers: Mapping[str, Container], options: Mapping[str, Any]) -> None:
        self.m = m
        self.options = options
        local: dict[str, Container] = {}
        self.local_owner: dict[str, frozenset[Symbol]] = {}
        self.plan = Plan(m, {}, owner={})
        self._collect(m, frozenset(), local)
        self.plan.containers = {**containers, **local}
        self.plan.local_names = frozenset(local)
        self.unit = {p: 0 for p in self.plan.owner if isinstance(p.size, int) and p.size == 1}

    def _collect(self, m: Map, outer: frozenset[Symbol], local: dict[str, Container]) -> None:
        scope = outer | set(m.params)
        for p in m.params:
            if p in self.plan.owner:
                raise NotSchedulable(f"map {m.label}: parameter {p} is used by two maps of one kernel; rename one")
            self.plan.owner[p] = m.id
        for name, c in m.locals.items():
            local[name] = c
            self.local_owner[name] = scope
        for node in m.body:
            if isinstance(node, Map):
                self._collect(node, scope, local)
            elif not isinstance(node, Tasklet):
                raise NotSchedulable(f"map {m.label}: a {node.kind} inside a kernel has no Triton schedule")

    # what the tree does -----------------------------------------------------------------------------------------------
    def collect_uses(self) -> None:
        self.uses: list[_Use] = []
        for a in self.m.accesses():
            if a.memlet.scan is not None:
                raise NotSchedulable(
                    f"map {self.m.label}: {a.memlet} is a scan; there is no Triton schedule for scans yet"
                )
            base, _ = address(a.memlet, self.plan.container(a.memlet.container))
            base = self._drop_unit(base)
            exprs = [base] + [self._drop_unit(c.expr) for c in a.memlet.guard]
            params = frozenset(p for p in self.plan.owner if any(p in free(e) for e in exprs))
            self.uses.append(_Use(a.memlet, base, exprs, params, a.memlet.container in self.plan.local_names))
        nodes = [n for _, t in self.m.tasklets() for n in walk(*t.code.values())]
        self.index_exprs = [self._drop_unit(n.attr) for n in nodes if n.op == "index"]  # type: ignore[arg-type]

    def _drop_unit(self, e: IntLike) -> IntLike:
        return e if isinstance(e, int) or not self.unit else substitute(e, self.unit)

    def collect_writes(self) -> None:
        for params, t in self.m.tasklets():
            groups: dict[tuple, list[str]] = {}
            for name, memlet in t.writes.items():
                if memlet.combine is not None:
                    key = (memlet.combine, tuple(map(str, memlet.subset))) if memlet.combine not in _SINGLE else (name,)
                    groups.setdefault(key, []).append(name)
            for names in groups.values():
                memlet = t.writes[names[0]]
                is_local = memlet.container in self.plan.local_names
                scope = frozenset(p for p in params if p not in self.unit)
                inside = scope - self.local_owner[memlet.container] if is_local else scope
                subset = frozenset().union(*(free(s) for s in memlet.subset if not isinstance(s, (Indirect, Span))))
                if any(isinstance(s, Indirect) for s in memlet.subset):
                    raise NotSchedulable(
                        f"map {self.m.label}: {memlet} scatters; there is no Triton schedule for scatters yet"
                    )
                self.plan.writes.append(Write(t, tuple(names), memlet.combine or "", scope, inside - subset, is_local))

    def signature(self, p: Symbol) -> frozenset[int]:
        """Which global combining writes reduce the parameter."""
        return frozenset(i for i, w in enumerate(self.plan.writes) if not w.is_local and p in w.reduced)

    # choices ----------------------------------------------------------------------------------------------------------
    def run(self) -> Plan:
        self.collect_uses()
        self.collect_writes()
        self._unify_inner()
        plan, m = self.plan, self.m
        outer = [p for p in m.params if p not in self.unit]
        inner = [p for p in plan.owner if plan.owner[p] != m.id and p not in self.unit and p not in self.alias]
        for w in plan.writes:
            c = find_contraction(w, plan.container, self.unit) if self.options.get("contract", True) else None
            if c is not None and len(w.connectors) == 1:
                return self._contraction(c, outer, inner)
        lane = self._lane(outer + inner)
        if lane is not None and lane in inner:
            return self._rows(outer, inner, lane)
        return self._flat(outer, inner, lane)

    def _unify_inner(self) -> None:
        """Inner maps over the same sizes run over the same axis: their parameters become those of the first."""
        self.alias: dict[Symbol, IntLike] = {}
        first: dict[tuple, tuple[Symbol, ...]] = {}
        for node in self.m.body:
            if isinstance(node, Map):
                params = tuple(p for p in node.params if p not in self.unit)
                key = tuple(p.size for p in params)
                if key in first:
                    self.alias.update(zip(params, first[key], strict=True))
                else:
                    first[key] = params
        if self.alias:
            for u in self.uses:
                u.address = substitute(u.address, self.alias)
                u.exprs = [substitute(e, self.alias) for e in u.exprs]
                u.params = frozenset(self.alias.get(p, p) for p in u.params)  # type: ignore[misc]
            self.index_exprs = [substitute(e, self.alias) for e in self.index_exprs]

    def _lane(self, params: list[Symbol]) -> Symbol | None:
        """The parameter along which most accesses of large containers are contiguous."""
        votes = dict.fromkeys(params, 0.0)
        for u in self.uses:
            if not u.is_local:
                for p in u.params & votes.keys():
                    if coefficient(u.address, p) == 1:
                        votes[p] += 8.0 ** len(u.params) * (1 + 1e-3 * min(64, bounds(p.size)[1] or 64))
        best = max(params, key=lambda p: votes[p], default=None)
        return best

    def _windows(self, params: Iterable[Symbol]) -> set[Symbol]:
        """Parameters that share a subscript with another one and have few values: the taps of a window."""
        found = set()
        for a in self.m.accesses():
            for s in a.memlet.subset:
                here = [p for p in params if isinstance(s, Expr) and p in free(s)]
                if len(here) > 1:
                    small = [p for p in here if isinstance(p.size, int) and p.size <= MAX_TAPS]
                    if len(small) == len(here):
                        small = [min(small, key=lambda p: int(p.size))]  # type: ignore[arg-type,call-overload]
                    found.update(small)
        return found

    def _merge(self, lane: Symbol, candidates: list[Symbol]) -> list[Symbol]:
        """The lane with the parameters that continue it in every memlet: one flat axis without quotients."""
        merged = [lane]
        exprs = [e for u in self.uses for e in u.exprs] + self.index_exprs
        changed = True
        while changed:
            changed = False
            for p in candidates:
                for outer, inner in ((p, merged[0]), (merged[-1], p)):
                    if p not in merged and all(_continues(e, outer, inner) for e in exprs):
                        merged = [p, *merged] if outer is p else [*merged, p]
                        changed = True
        return merged

    def _add(self, name: str, params: list[Symbol], mode: str, dim: int | None = None, split: bool = False,
             resident: bool = False) -> None:  # fmt: skip
        taken = {a.name for a in self.plan.axes}
        while name in taken:
            name += "_"
        size = product(p.size for p in params)
        idx = index(f"{name}.{params[0].name}", size) if len(params) > 1 else params[0]
        self.plan.axes.append(Axis(name, idx, tuple(params), mode, dim, split, resident))
        after: IntLike = size
        for at, p in enumerate(params):
            after = product(q.size for q in params[at + 1 :])
            value = idx // after if at == 0 else idx // after % p.size
            self.plan.values[p] = value if len(params) > 1 else p

    def _finish(self) -> Plan:
        plan = self.plan
        for p, q in self.alias.items():
            plan.values[p] = plan.values.get(q, q)  # type: ignore[arg-type,call-overload]
        plan.values.update(self.unit)
        if not any(a.dim is not None for a in plan.axes):
            plan.axes.append(Axis("one", index("one", 1), (), "whole", 0))
        return plan

    def _groups(self, params: list[Symbol]) -> list[list[Symbol]]:
        groups: dict[frozenset[int], list[Symbol]] = {}
        for p in params:
            groups.setdefault(self.signature(p), []).append(p)
        return list(groups.values())

    def _flat(self, outer: list[Symbol], inner: list[Symbol], lane: Symbol | None) -> Plan:
        """Elementwise maps, column reductions, windows: the lane is a parameter of the outer map."""
        windows = self._windows(outer)
        taps = [p for p in outer if p in windows and p is not lane]
        rest = [p for p in outer if p not in taps]
        if lane is None:
            return self._finish()
        same = [p for p in rest if p is not lane and self.signature(p) == self.signature(lane)]
        lanes = self._merge(lane, same)
        others = [p for p in rest if p not in lanes]
        reduced_lane = bool(self.signature(lane))
        row: list[Symbol] = []
        groups = self._groups(others)
        if groups:
            full = {i for i, w in enumerate(self.plan.writes) if not w.is_local}
            kept = [g for g in groups if not self.signature(g[0])]
            summed = [g for g in groups if self.signature(g[0])]
            wholly = [g for g in summed if self.signature(g[0]) == full]
            if reduced_lane and kept:
                row = kept[0]
            else:
                row = (wholly or summed or kept)[0]
            if not self.signature(row[0]) and not reduced_lane:  # a second contiguous parameter: a transposition
                other = self._lane(row)
                if other is not None and any(coefficient(u.address, other) == 1 and lane not in _linear(u, other)
                                             and lanes[-1] in u.params for u in self.uses if not u.is_local):  # fmt: skip
                    row = self._merge(other, [p for p in row if p is not other])
        split = self.options.get("split")
        dims = 2 if row else 1
        for p in others:
            if p not in row:
                wholly_reduced = all(i in self.signature(p) for i, w in enumerate(self.plan.writes) if not w.is_local)
                if self.signature(p) and wholly_reduced and reduced_lane:
                    self._add("step", [p], "serial")
                else:
                    self._add("outer", [p], "program")
        if row:
            if not self.signature(row[0]):
                self._add("row", row, "tile", 0)
            else:
                self._add("row", row, "chunk" if split is not False else "loop", 0)
        if reduced_lane:
            few = not any(a.mode == "tile" for a in self.plan.axes) and self.plan.chunk is None
            chunked = few if split is None else split and self.plan.chunk is None
            self._add("col", lanes, "chunk" if chunked else "loop", dims - 1)
        else:
            self._add("col", lanes, "tile", dims - 1)
        for p in taps:
            self._add("tap", [p], "serial" if self.signature(p) else "unroll")
        for p in inner:
            self._add("tap" if isinstance(p.size, int) and p.size <= MAX_TAPS else "step", [p], "serial")
        return self._finish()

    def _rows(self, outer: list[Symbol], inner: list[Symbol], lane: Symbol) -> Plan:
        """Rows that stay in a block: the outer map is the grid, inner maps are block operations over the lanes."""
        groups = self._groups(outer)
        row: list[Symbol] = []
        if groups:
            row = next((g for g in groups if self.signature(g[0])), groups[0])
        for p in outer:
            if p not in row:
                self._add("outer", [p], "program")
        dims = 2 if row else 1
        if row:
            summed = bool(self.signature(row[0]))
            self._add(
                "row", row, ("chunk" if self.options.get("split") is not False else "loop") if summed else "tile", 0
            )
        lanes = [p for p in inner if self.plan.owner[p] == self.plan.owner[lane]]
        size = product(p.size for p in lanes)
        limit = bounds(size)[1]
        mode = self.options.get("row", "looped" if limit is not None and limit > WHOLE_LIMIT else "whole")
        self._add("col", lanes, "whole" if mode == "whole" else "loop", dims - 1)
        for p in inner:
            if p not in lanes:
                self._add("step", [p], "serial")
        return self._finish()

    def _contraction(self, c: Contraction, outer: list[Symbol], inner: list[Symbol]) -> Plan:
        """A matrix product: rows x lanes with the shared axis k inside."""
        m_params = [p for p in outer if p in c.left]
        n_params = [p for p in outer if p in c.right]
        k_params = [p for p in (*outer, *inner) if p in c.shared]
        known = {*m_params, *n_params, *k_params}
        lane = self._lane([p for p in outer if p not in c.shared and self._is_written_along(p)] or n_params)
        if lane in m_params:
            m_params, n_params, c = n_params, m_params, c.swapped()
        self.plan.contractions[id(c.tasklet)] = c
        groups = self._groups(m_params)
        row = next((g for g in groups if self.signature(g[0]) and not c.flat), groups[0])
        for p in outer:
            if p not in known or (p in m_params and p not in row):
                self._add("outer", [p], "program")
        split = self.options.get("split")
        reduces_rows = bool(self.signature(row[0])) and not c.flat
        self._add("row", row, ("chunk" if split is not False else "loop") if reduces_rows else "tile", 0)
        self._add("col", n_params, "tile", 1)
        contiguous = [
            p for p in k_params if any(coefficient(u.address, p) == 1 for u in self.uses if c.reads_left(u.memlet))
        ]
        k_params = [p for p in k_params if p not in contiguous] + contiguous
        long = _degree(k_params) > _degree([*row, *n_params])
        split_k = c.flat and (long if split is None else split)
        self._add(
            "k", k_params, "contract", None, split=split_k, resident=not split_k and self.options.get("k") == "whole"
        )
        for p in inner:
            if p not in k_params:
                self._add("step", [p], "serial")
        return self._finish()

    def _is_written_along(self, p: Symbol) -> bool:
        return any(
            u.memlet.container in self.m.written_containers() and coefficient(u.address, p) == 1 for u in self.uses
        )


def _degree(params: list[Symbol]) -> float:
    """How large the domain is: the logarithm of known sizes, 10 for an unknown one."""
    return sum(math.log(p.size) if isinstance(p.size, int) else 10 for p in params)


_SINGLE = ("sum", "prod", "max", "max0", "min", "any", "all")


def make_plan(m: Map, containers: Mapping[str, Container], options: Mapping[str, Any] | None = None) -> Plan:
    """Choose the axes of a map. Raises NotSchedulable with the reason.

    options: split (False: no second stage; True: also rows are split), row ("whole" or "looped"), contract (False: no matrix unit),
    k ("whole": the shared axis of a matrix product is one block; what does not vary along rows is loaded once a program).
    """
    return _Planner(m, containers, options or {}).run()


def free(e: object) -> frozenset[Symbol]:
    return free_symbols(e) if isinstance(e, Expr) else frozenset()


def coefficient(e: IntLike, p: Symbol) -> IntLike | None:
    """The factor of p in a linear expression, 0 if it is not there, None if it is not linear."""
    found = affine(e, [p])
    return None if found is None else found[0].get(p, 0)


def _continues(e: IntLike, outer: Symbol, inner: Symbol) -> bool:
    a, b = coefficient(e, outer), coefficient(e, inner)
    return a is not None and b is not None and a == b * inner.size


def _linear(u: _Use, other: Symbol) -> frozenset[Symbol]:
    """Parameters with coefficient 1 in the access, without `other`."""
    return frozenset(p for p in u.params if p is not other and coefficient(u.address, p) == 1)


def scalar_symbols(node: Scalar) -> frozenset[Symbol]:
    """Symbols of an index leaf."""
    return free(node.attr) if node.op == "index" else frozenset()


def next_power_of_two(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(0, math.ceil(math.log2(max(1, n))))
