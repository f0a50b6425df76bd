"""LinearReductionFusion: one pass for two reductions over the same data, the second of which depends linearly on the first's result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Union

from shorthaul.ir.builder import at, make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import Memlet
from shorthaul.ir.nodes import Map, Node
from shorthaul.ir.program import Program
from shorthaul.ir.rewrite import rename
from shorthaul.ir.scalar import Scalar, apply, cast, const, read, reads_of, walk
from shorthaul.symbolic import Expr, Symbol, prove_le

from .. import traffic
from ..base import Match, Refusal, Transformation, require
from .compose import merge_same_domain, used_reads
from .sibling_fusion import same_points, siblings

IntLike = Union[int, Expr]
Term = tuple[Union[Scalar, None], Union[Scalar, None]]  # factor outside the sum, summand; None is one


class LinearReductionFusion(Transformation):
    """Pull what depends on an earlier reduction out of a later one over the same data, by linearity; then one pass serves both.

    before:  map n, c, i: s[n, c] (sum) = x[n, c, i] * y[n, c, i];  t = h(s);
             map n, c, i: r[c] (sum) = (x[n, c, i] + t[n, c]) * y[n, c, i]
    after:   map n, c, i: s[n, c] (sum) = x * y;  r1[n, c] (sum) = x * y;  r2[n, c] (sum) = y
             t = h(s);  map n, c: r[c] (sum) = r1[n, c] + t[n, c] * r2[n, c]

    The gradient of a squeeze-excite gate behind a batch norm is of this form: the norm's sums need the gate's gradient, itself a sum
    over the same two tensors. max_parts: into how many partial sums the second may be taken apart.
    """

    level = 2
    allowed = {"max_parts": range(1, 65)}

    def __init__(self, max_parts: int = 6) -> None:
        self.max_parts = max_parts

    def matches(self, program: Program) -> Iterator[Match]:
        for node in list(program.nodes):
            if program.node_is_current(node):
                yield from self.matches_from(program, node)

    def matches_from(self, program: Program, node: Node) -> Iterator[Match]:
        """Later reductions that read what the node reads."""
        for m in siblings(program, node):
            if program.position(m.first) < program.position(m.second):
                yield m

    def check(self, m: Match) -> None:
        p, a, b = m.program, m.first, m.second
        require(not a.is_elementwise and not b.is_elementwise, "only reductions are merged")
        require(p.writes_of(b).isdisjoint(p.reads_of(a)), "the first reads what the second writes")
        require(all(w.combine == "sum" and w.scan is None and not w.guard and not w.is_indirect for w in b.tasklet.writes.values()),
                "the second is not a plain sum")  # fmt: skip
        late = self._depending(p, a, b)
        dependent = {k for k, x in b.tasklet.reads.items() if x.container in late}
        require(bool(dependent), "the second does not depend on the first; see SiblingFusion")
        first, sums, last = self._split(p, b, dependent)
        shared = p.containers[m.mid].size
        parts: IntLike = sum((c.size for c in sums), 0)
        require(prove_le(parts * 16, shared) is True, "the partial sums are not small beside the shared data")
        m.derived.update(stage=first, sums=sums, last=last)
        m.derived["renaming"] = same_points(p, a, first, m.mid)
        m.derived["fused"] = merge_same_domain(a, first, m.renaming)

    @staticmethod
    def _depending(p: Program, a: Map, b: Map) -> set[str]:
        """Containers that hold something computed from the results of `a` when `b` runs."""
        late = set(p.writes_of(a))
        for n in p.nodes[p.position(a) + 1 : p.position(b)]:
            if not late.isdisjoint(p.reads_of(n)):
                late |= p.writes_of(n)
        return late

    def _split(self, p: Program, b: Map, dependent: set[str]) -> tuple[Map, list[Container], Map]:
        """`b` as partial sums over the points that what depends on the first does not distinguish, and their combination."""
        t = b.tasklet
        assert t is not None
        varying: set[Symbol] = set().union(*(t.reads[k].symbols for k in dependent), *(w.symbols for w in t.writes.values()))
        kept = tuple(q for q in b.params if q in varying)
        require(len(kept) < len(b.params), "what depends on the first differs from element to element")
        require(not any(t.reads[k].is_indirect for k in dependent), "what depends on the first is addressed by data")

        def fixed(code: Scalar) -> bool:
            names = used_reads(t, [code])
            return not code.has_index and all(t.reads[k].symbols.isdisjoint(set(b.params) - varying) for k in names)

        sums: dict[Scalar, Container] = {}
        combined: dict[str, Scalar] = {}
        taken: set[str] = set()
        for k in t.writes:
            code = t.code[k]
            target = p.containers[t.writes[k].container].dtype
            require(target is target.compute and code.dtype is target, "the sum is kept in a dtype that would round its parts")
            total: Scalar | None = None
            for factor, summand in _terms(code, dependent, fixed):
                value = summand if summand is not None else const(1, code.dtype)
                c = sums.get(value)
                if c is None:
                    c = sums[value] = Container(self._name(p, t.writes[k].container, len(sums)), code.dtype, tuple(q.size for q in kept))
                term = read(c.name, c.dtype)
                if factor is not None:
                    taken |= used_reads(t, [factor])
                    term = term * factor
                total = term if total is None else total + term
            assert total is not None
            combined[k] = total
        require(len(sums) <= self.max_parts, f"it would take {len(sums)} partial sums")
        needed = used_reads(t, sums)
        origins, phase = b.origins, b.phase
        partial = {c.name: at(c, *kept, combine="sum") for c in sums.values()}
        first = make_map(b.params, {k: x for k, x in t.reads.items() if k in needed}, partial, {c.name: v for v, c in sums.items()},
                         {c.name: c.dtype for c in p.containers.values()}, name=b.name, origins=origins, phase=phase)  # fmt: skip
        writes = {k: _final(w, kept) for k, w in t.writes.items()}
        reads = {**{c.name: at(c, *kept) for c in sums.values()}, **{k: t.reads[k] for k in sorted(taken)}}
        dtypes = {**{c.name: c.dtype for c in sums.values()}, **{x.container: p.containers[x.container].dtype for x in reads.values()
                                                                 if x.container in p.containers}}  # fmt: skip
        last = make_map(kept, reads, writes, combined, dtypes, name=b.name, origins=origins, phase=phase)
        return first, list(sums.values()), rename(last, {})

    @staticmethod
    def _name(p: Program, target: str, i: int) -> str:
        name = f"{target}_part{i}"
        return name if name not in p.containers else p.fresh(name)

    def saves(self, m: Match) -> IntLike:
        """One read of what both read, less the partial sums, which are written and read again."""
        p = m.program
        parts = {c.name for c in m.sums}
        total: IntLike = 0
        for c, found in traffic.reads_of_map(m.second).items():
            total = total + traffic.together(p, c, found)
        for stage in (m.stage, m.last):
            for c, found in traffic.reads_of_map(stage).items():
                if c not in parts:
                    total = total - traffic.together(p, c, found)
        for c in m.sums:
            total = total - 2 * c.bytes
        first = {c: list(traffic.renamed_accesses(found, m.renaming)) for c, found in traffic.reads_of_map(m.first).items()}
        return total + traffic.shared(p, first, traffic.reads_of_map(m.stage))

    def apply(self, m: Match, edit: Edit) -> None:
        for c in m.sums:
            edit.add_container(c)
        edit.replace(m.second, m.stage, m.last)
        edit.fuse([m.first, m.stage], m.fused)


def _final(w: Memlet, kept: tuple[Symbol, ...]) -> Memlet:
    """The write of the combination: still a sum if points that it does not distinguish are left."""
    return w if any(q not in w.symbols for q in kept) else w.with_(combine=None)


def _terms(code: Scalar, dependent: set[str], fixed: Callable[[Scalar], bool]) -> list[Term]:
    """`code` as a sum of products of a fixed factor and a summand free of dependent reads. Raises Refusal where it is not linear."""

    def terms(n: Scalar) -> list[Term]:
        if dependent.isdisjoint(reads_of(n)):
            return [(None, n)]
        if fixed(n):
            return [(n, None)]
        if n.op == "neg":
            return [(u, apply("neg", v)) if v is not None else (apply("neg", u), None) for u, v in terms(n.args[0])]  # type: ignore[arg-type]
        if n.op == "add":
            return terms(n.args[0]) + terms(n.args[1])
        if n.op == "sub":
            return terms(n.args[0]) + terms(apply("neg", n.args[1]))
        if n.op == "mul":
            return [(_product(u, w), _product(v, x)) for u, v in terms(n.args[0]) for w, x in terms(n.args[1])]
        if n.op == "div" and dependent.isdisjoint(reads_of(n.args[1])):
            return [(u, apply("div", v if v is not None else const(1, n.dtype), n.args[1])) for u, v in terms(n.args[0])]
        if n.op == "cast" and n.dtype.is_float and n.args[0].dtype.is_float and n.dtype.bits >= n.args[0].dtype.bits:
            return [(u if u is None else cast(u, n.dtype), v if v is None else cast(v, n.dtype)) for u, v in terms(n.args[0])]
        raise Refusal(f"the second is not linear in what depends on the first: {n.op}")

    if sum(1 for _ in walk(code)) > 400:
        raise Refusal("the summand is too long to be taken apart")
    grouped: dict[Scalar | None, list[Scalar | None]] = {}
    for u, v in terms(code):
        grouped.setdefault(u, []).append(v)
    result: list[Term] = []
    for u, vs in grouped.items():
        total = vs[0]
        for v in vs[1:]:
            total = _or_one(total, code) + _or_one(v, code)
        result.append((u, total))
    return result


def _or_one(v: Scalar | None, like: Scalar) -> Scalar:
    return const(1, like.dtype) if v is None else v


def _product(a: Scalar | None, b: Scalar | None) -> Scalar | None:
    return b if a is None else a if b is None else a * b
