"""OrderedScatter: a floating sum by index that is made in the same order at every run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

from shorthaul.analysis.collisions import may_meet
from shorthaul.ir.builder import at, make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import int64
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import Condition, Indirect, Memlet, Subscript, full
from shorthaul.ir.nodes import LibraryCall, Map, Tasklet
from shorthaul.ir.program import Form, Program
from shorthaul.ir.rewrite import rename
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value, read, where
from shorthaul.symbolic import Expr, Symbol, free_symbols, prove_eq

from .. import traffic
from ..base import Match, Transformation, require
from ..level2_fusion.compose import used_reads

IntLike = Union[int, Expr]
SORTED = 2 * int64.itemsize  # bytes for each point: what the library sorts by, and from where


class OrderedScatter(Transformation):
    """Add up values that meet in one element in the order of the map, by a library that sorts them by where they go.

    before:  map k, j, c: y[i[k], c] (sum) = f(x[k, j, c])      (where two i[k] are equal, atomics add in any order)
    after:   map k, j, c: v[k, c] (sum) = f(x[k, j, c]);  map k: t[k] = i[k];  y = ordered_sum(t, v)

    For programs that must give the same bits at every run, on a target that adds by atomics. It costs bytes: the values, where each goes,
    and what the library sorts go through memory. Integers, and minima and maxima, need no order and are left as they are.

    A dimension of y along which the map only counts is one of the rows that are added as wholes; all others are numbered together. A point
    that a guard leaves out adds zero to an element that exists; an index that is out of range gets the number -1, which the library
    refuses.
    """

    level = 1

    def matches(self, program: Program) -> Iterator[Match]:
        if program.form < Form.MAPS:
            return
        for node in list(program.nodes):
            if isinstance(node, Map) and program.node_is_current(node):
                for name in dict.fromkeys(w.container for _, w in _sums_that_meet(node, program)):
                    yield Match(program, {"node": node, "mid": name})

    def check(self, m: Match) -> None:
        p, node = m.program, m.node
        require(node.tasklet is not None and not node.locals, "it is inside a nested kernel; see Fission")
        require(len(p.writers(m.mid)) == 1, "several kernels write parts of it")
        found = [k for k, w in node.tasklet.writes.items() if w.container == m.mid]
        require(len(found) == 1, "its kernel adds to it in several places")
        require(m.mid not in node.read_containers(), "its kernel also reads it")
        sizes = frozenset().union(*(free_symbols(q.size) for q in node.params if isinstance(q.size, Expr)))
        counted = all(q.lower == 0 for q in node.params) and sizes.isdisjoint(node.params)
        require(counted, "a parameter starts elsewhere than at 0, or its range depends on another one")
        m.derived.update(plan=_Plan(p, node, found[0]))

    def saves(self, m: Match) -> IntLike:
        """Less than nothing: values and targets are written and read, and what is sorted is, too."""
        p, plan = m.program, m.plan
        known = {**p.containers, plan.values.name: plan.values, plan.target.name: plan.target}
        after = traffic.map_bytes(plan.main, known) + traffic.map_bytes(plan.places, known)
        call = plan.values.bytes + plan.target.bytes + p.containers[m.mid].bytes + 2 * plan.workspace
        return traffic.map_bytes(m.node, p.containers) - after - call

    def apply(self, m: Match, edit: Edit) -> None:
        plan = m.plan
        edit.add_container(plan.values)
        edit.add_container(plan.target)
        call = LibraryCall("ordered_sum", {"dims": plan.dims, "shape": plan.result.shape, "where": str(m.node.origin),
                                           "workspace_bytes": plan.workspace},
                           reads={"target": full(plan.target), "values": full(plan.values)}, writes={"y": full(plan.result)},
                           origins=m.node.origins, phase=m.node.phase)  # fmt: skip
        edit.replace(m.node, plan.main, rename(plan.places, {}), call)


def _sums_that_meet(node: Map, p: Program) -> Iterator[tuple[Tasklet, Memlet]]:
    for params, t in node.tasklets():
        for w in t.writes.values():
            c = p.containers.get(w.container)
            if c is not None and w.combine == "sum" and w.scan is None and c.dtype.is_float and may_meet(w, params, c):
                yield t, w


class _Plan:
    """What replaces a flat map: it itself with its values side by side (`main`), the map of where each goes (`places`), and the containers.

    dims: the dimensions of the result that targets number; workspace: bytes that the library writes and reads again.
    """

    def __init__(self, p: Program, node: Map, connector: str) -> None:
        t = node.tasklet
        assert t is not None
        w = t.writes[connector]
        self.result = result = p.containers[w.container]
        rows = _rows(node, t, w, result)
        self.dims = tuple(d for d in range(len(w.subset)) if d not in rows)
        fixed = _symbols_of(t, [w.subset[d] for d in self.dims], w.guard)
        lead = [q for q in node.params if q in fixed]
        row = [w.subset[d] for d in sorted(rows)]
        shape = (*(q.size for q in lead), *(result.shape[d] for d in sorted(rows)))
        self.values = Container(p.fresh(f"{result.name}_values"), result.dtype, shape)
        self.target = Container(p.fresh(f"{result.name}_target"), int64, tuple(q.size for q in lead))
        copied = self.dims != tuple(range(len(self.dims))) or not result.is_contiguous
        self.workspace = SORTED * self.target.size + (result.bytes if copied else 0)

        summed = len(lead) + len(row) < len(node.params)
        value = _guarded(w.guard, t.code[connector], 0)
        writes = {**t.writes, connector: at(self.values, *lead, *row, combine="sum" if summed else None)}
        self.main: Map = node.with_(body=(_used(t.with_(code={**t.code, connector: value}, writes=writes)),))

        number, inside = const(0, int64), list[Scalar]()
        for d in self.dims:
            s, n = w.subset[d], index_value(result.shape[d])
            if isinstance(s, Indirect):
                place = cast(read(s.name, p.containers[t.reads[s.name].container].dtype), int64)
                inside += [apply("ge", place, 0), apply("lt", place, n)]
            else:
                place = index_value(s)  # type: ignore[arg-type]
            number = number * n + place
        for condition in inside:
            number = where(condition, number, -1)
        indices = used_reads(t, [number])
        reads = {k: x for k, x in t.reads.items() if k in indices}
        dtypes = {x.container: p.containers[x.container].dtype for x in reads.values()}
        self.places = make_map(lead, reads, {"t": at(self.target, *lead)}, {"t": _guarded(w.guard, number, 0)}, dtypes,
                               name=f"places in {result.name}", origins=t.origins, phase=node.phase)  # fmt: skip


def _rows(node: Map, t: Tasklet, w: Memlet, result: Container) -> set[int]:
    """The dimensions of the result along which a parameter of the map counts that nothing else about the place depends on."""
    found = set()
    for d, s in enumerate(w.subset):
        others = _symbols_of(t, [x for e, x in enumerate(w.subset) if e != d], w.guard)
        if isinstance(s, Symbol) and s in node.params and s not in others and prove_eq(s.size, result.shape[d]) is True:
            found.add(d)
    return found


def _symbols_of(t: Tasklet, subset: list[Subscript], guard: tuple[Condition, ...]) -> frozenset[Symbol]:
    """The symbols that subscripts depend on, through the values that they read too, and those of the guard."""
    found: frozenset[Symbol] = frozenset().union(*(free_symbols(c.expr) for c in guard if isinstance(c.expr, Expr)))
    for s in subset:
        if isinstance(s, Indirect):
            index = t.reads[s.name]
            found |= index.symbols | _symbols_of(t, list(index.subset), ())
        elif isinstance(s, Expr):
            found |= free_symbols(s)
    return found


def _guarded(guard: tuple[Condition, ...], value: Scalar, other: int) -> Scalar:
    """The value where the guard holds."""
    for c in guard:
        value = where(apply("ge" if c.relation == "ge" else "eq", index_value(c.expr), 0), value, other)
    return value


def _used(t: Tasklet) -> Tasklet:
    """Without indices that nothing needs any more."""
    needed = used_reads(t, t.code.values())
    indices = [i.name for w in t.writes.values() for i in w.subset if isinstance(i, Indirect)]
    needed |= used_reads(t, [read(i, int64) for i in indices])
    return t.with_(reads={k: x for k, x in t.reads.items() if k in needed})


__all__ = ["OrderedScatter"]
