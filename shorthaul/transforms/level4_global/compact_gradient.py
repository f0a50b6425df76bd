"""CompactGradient: a sum of rows by index is kept for the rows that occur, and found again through a number for each row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Union

from shorthaul.ir.builder import at, fresh_params, make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import int32
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import Indirect, Memlet, Span
from shorthaul.ir.nodes import Map, Node, Tasklet
from shorthaul.ir.program import Form, Program
from shorthaul.ir.scalar import cast, index_value
from shorthaul.symbolic import Expr, Symbol, product

from .. import traffic
from ..base import Match, Transformation, hint_value, require
from ..level2_fusion.compose import used_reads

IntLike = Union[int, Expr]
LEAST = 1 << 24  # bytes: what pays for two small kernels more
TOO_MANY = 1 << 31  # lookups that the numbers of rows cannot count


class CompactGradient(Transformation):
    """Do not store the rows of a gradient that nothing was added to.

    before:  map k, c: g[i[k], c] (sum) = gy[k, c]            (g: rows x width, mostly zeros)
             map r, c: w'[r, c] = step(w[r, c], g[r, c])
    after:   map k: s[i[k]] (max) = k + 1;  map k: o[k] = s[i[k]]
             map k, c: h[o[k], c] (sum) = gy[k, c]            (h: K + 1 rows, the first one stays zero)
             map r, c: w'[r, c] = step(w[r, c], h[s[r], c])

    A table's dense gradient is written, and read by the optimizer, as often as the table itself; the number s of a row takes four bytes.
    Every row is still stepped, so any optimizer does the same as before, bit for bit where the sums are made in the same order
    (`SparseUpdate` leaves rows out, where that is the same). Only where nothing but maps read the gradient, element by element.

    least: bytes that must be saved.
    """

    level = 4

    def __init__(self, least: int = LEAST) -> None:
        self.least = least

    def matches(self, program: Program) -> Iterator[Match]:
        if program.form < Form.MAPS:
            return
        for node in list(program.nodes):
            if isinstance(node, Map) and program.node_is_current(node):
                for t in _tasklets(node):
                    for w in t.writes.values():
                        if w.combine == "sum" and w.container in program.containers and w.subset and isinstance(w.subset[0], Indirect):
                            yield Match(program, {"node": node, "mid": w.container})

    def check(self, m: Match) -> None:
        p, node = m.program, m.node
        g = p.containers[m.mid]
        require(not g.is_external and m.mid not in p.results, "the caller gets every row")
        require(g.alias is None and not p.aliases(m.mid) and g.is_contiguous, "it shares memory with others, or has another layout")
        require(len(p.writers(m.mid)) == 1, "several kernels add to it")
        found = [(t, w) for t in _tasklets(node) for w in t.writes.values() if w.container == m.mid]
        require(len(found) == 1, "its kernel adds to it in several places")
        t, w = found[0]
        require(not w.guard and w.combine == "sum" and w.scan is None, "it is not a plain sum by index")
        require(not any(isinstance(s, (Indirect, Span)) for s in w.subset[1:]), "it is not a sum of rows")
        to = w.subset[0]
        assert isinstance(to, Indirect)
        index = t.reads[to.name]
        require(index.container in p.containers, "its indices are computed inside its kernel")
        q = tuple(s for s in index.subset if isinstance(s, Symbol))
        plain = len(set(q)) == len(q) and all(isinstance(s, (Symbol, int)) for s in index.subset) and not index.guard
        plain = plain and all(s in _params(node) for s in q)
        require(plain, "its indices are not read one by one")
        count = product(s.size for s in q)
        require(hint_value(p, count) < TOO_MANY, "it has too many lookups to be numbered")
        readers = [r for r in p.readers(m.mid) if isinstance(r, Map)]
        require(bool(readers) and len(readers) == len(p.readers(m.mid)), "a library reads it")
        for r in readers:
            for a in r.accesses():
                if a.memlet.container == m.mid:
                    inside = not a.memlet.guard and not any(isinstance(s, (Indirect, Span)) for s in a.memlet.subset)
                    require(inside, f"{r.label} does not read it element by element")
        m.derived.update(plan=_plan(p, node, t, g, index, q, count))
        saved = hint_value(p, self.saves(m))
        rows = f"{hint_value(p, count)} lookups of {hint_value(p, g.shape[0])} rows"
        require(saved >= max(1, self.least), f"{rows} save {saved} bytes, less than the {self.least} that pay for it")

    def saves(self, m: Match) -> IntLike:
        """The dense rows, written once and read by every reader, less the numbers of the rows and the sums that take their place."""
        p, (new, containers) = m.program, m.plan
        known = {**p.containers, **{c.name: c for c in containers}}
        before = [m.node, *p.readers(m.mid)]
        total: IntLike = 0
        for sign, nodes in ((1, before), (-1, [n for part in new for n in part])):
            for n in nodes:
                total = total + sign * traffic.map_bytes(n, known)
        return total

    def apply(self, m: Match, edit: Edit) -> None:
        p, (new, containers) = m.program, m.plan
        for c in containers:
            edit.add_container(c)
        for old, nodes in zip([m.node, *p.readers(m.mid)], new, strict=True):
            edit.replace(old, *nodes)
        edit.drop_unused([m.mid])


def _tasklets(node: Map) -> Iterator[Tasklet]:
    for n in node.body:
        if isinstance(n, Map):
            yield from _tasklets(n)
        elif isinstance(n, Tasklet):
            yield n


def _params(node: Map) -> set[Symbol]:
    return set(node.params).union(*(_params(n) for n in node.body if isinstance(n, Map)))


def _plan(p: Program, node: Map, t: Tasklet, g: Container, index: Memlet, q: tuple[Symbol, ...], count: IntLike,
          ) -> tuple[list[list[Node]], list[Container]]:  # fmt: skip
    """What replaces the writer and each of its readers, and the containers that it needs."""
    rows, rest = g.shape[0], g.shape[1:]
    slot = Container(p.fresh(f"{g.name}_slot"), int32, (rows,))
    own = Container(p.fresh(f"{g.name}_own"), int32, tuple(s.size for s in q))
    sums = Container(p.fresh(f"{g.name}_rows"), g.dtype, (count + 1, *rest))
    containers = [slot, own, sums]
    dtypes = {c.name: c.dtype for c in containers} | {index.container: p.containers[index.container].dtype}

    def build(sizes: tuple[IntLike, ...], made: Callable[..., tuple[Any, Any, Any]], name: str) -> Map:
        params = fresh_params(sizes)
        return make_map(params, *made(*params), dtypes, name=f"{name} of {g.name}", origins=t.origins, phase=node.phase)

    def looked_up(*r: Symbol) -> Memlet:
        return index.substitute(dict(zip(q, r, strict=True)))

    def number(*r: Symbol) -> IntLike:
        at_: IntLike = 0
        for s in r:
            at_ = at_ * s.size + s
        return at_

    sizes = tuple(s.size for s in q)
    nodes: list[Node] = [
        build(sizes, lambda *r: ({"i": looked_up(*r)}, {"s": at(slot, Indirect("i"), combine="max0")},
                                 {"s": cast(index_value(number(*r) + 1), int32)}), "lookups"),
        build(sizes, lambda *r: ({"i": looked_up(*r), "s": at(slot, Indirect("i"))}, {"o": at(own, *r)},
                                 lambda i, s: {"o": s}), "places"),
    ]  # fmt: skip
    new: list[list[Node]] = [[*nodes, _rewritten(node, t, _adding(t, g, own, sums, q))]]
    for r in p.readers(g.name):
        assert isinstance(r, Map)
        done: Node = r
        for reader in _tasklets(r):
            if any(x.container == g.name for x in reader.reads.values()):
                done = _rewritten(done, reader, _reading(reader, g, slot, sums))  # type: ignore[arg-type]
        new.append([done])
    return new, containers


def _rewritten(node: Map, old: Tasklet, new: Tasklet) -> Map:
    """The map with a tasklet replaced."""
    body = tuple(new if n is old else _rewritten(n, old, new) if isinstance(n, Map) else n for n in node.body)
    return node if all(a is b for a, b in zip(body, node.body, strict=True)) else node.with_(body=body)


def _name(t: Tasklet, hint: str) -> str:
    """A connector that the tasklet does not have yet."""
    while hint in t.reads or hint in t.writes:
        hint += "_"
    return hint


def _adding(t: Tasklet, g: Container, own: Container, sums: Container, q: tuple[Symbol, ...]) -> Tasklet:
    """The tasklet that adds rows up, at the places of their sums."""
    place = _name(t, "place")
    writes = {k: w.with_(container=sums.name, subset=(Indirect(place), *w.subset[1:])) if w.container == g.name else w
              for k, w in t.writes.items()}  # fmt: skip
    return _used(t.with_(reads={**t.reads, place: at(own, *q)}, writes=writes))


def _reading(t: Tasklet, g: Container, slot: Container, sums: Container) -> Tasklet:
    """A tasklet that reads the gradient, through the numbers of its rows."""
    reads: dict[str, Memlet] = {}
    taken: dict[object, str] = {}
    for k, x in t.reads.items():
        if x.container != g.name:
            reads[k] = x
            continue
        row = x.subset[0]
        if row not in taken:
            taken[row] = name = _name(t.with_(reads={**t.reads, **reads}), "slot")
            reads[name] = at(slot, row)
        reads[k] = x.with_(container=sums.name, subset=(Indirect(taken[row]), *x.subset[1:]))
    return t.with_(reads=reads)


def _used(t: Tasklet) -> Tasklet:
    """Without indices that nothing needs any more."""
    needed = used_reads(t, t.code.values())
    for m in [*t.writes.values(), *t.reads.values()]:
        needed |= {i.name for i in m.subset if isinstance(i, Indirect)}
    return t.with_(reads={k: x for k, x in t.reads.items() if k in needed})
