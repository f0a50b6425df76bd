"""NarrowStorage: what every reader rounds is stored rounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Union

from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import Indirect, Memlet
from shorthaul.ir.nodes import Map, Node, Tasklet
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import Scalar, cast, read, rewrite, walk
from shorthaul.symbolic import Expr, Symbol, product

from .. import traffic
from ..base import Match, Transformation, require
from ..level2_fusion.compose import used_reads

IntLike = Union[int, Expr]


class NarrowStorage(Transformation):
    """Store a value in the type to which all its readers round it.

    before:  map i, k: s[i] (sum) = x[i, k]              (f32)       after:  map i: (a: f32;  map k: a (sum) = x[i, k];
             map i: y[i] = bf16(s[i])                                               y[i] = bf16(a))
             map i: z[i] = g(bf16(s[i]))                                     map i: z[i] = g(y[i])

    A window in a narrow type (a depthwise convolution under autocast) sums in float32. Where its result meets several kernels, the sum
    would be stored wide, and rounded by each; now it stays in registers. A reader that only stores the rounded value falls away: its
    copy is what is written.

    Where the rounded value is stored, it is the value that the network's author sees; a reader that fusion gave the sum itself then
    takes the rounded value, as in eager mode. Otherwise nothing is rounded that was not rounded before.
    """

    level = 3

    def matches(self, program: Program) -> Iterator[Match]:
        for node in list(program.nodes):
            if isinstance(node, Map) and node.tasklet is not None and program.node_is_current(node):
                for w in node.tasklet.writes.values():
                    if program.containers[w.container].dtype.is_float and program.readers(w.container):
                        yield Match(program, {"writer": node, "mid": w.container})

    def check(self, m: Match) -> None:
        p, t = m.program, m.writer.tasklet
        s = p.containers[m.mid]
        require(not s.is_external and m.mid not in p.results, "the caller gets it as it is")
        require(s.alias is None and not p.aliases(m.mid), "it shares memory with others")
        require(len(p.writers(m.mid)) == 1 and len(t.writes) == 1, "it is not all that its kernel writes, or not all of it")
        (w,) = t.writes.values()
        kept = [x for x in w.subset if isinstance(x, Symbol)]
        require(not w.guard and len(kept) == len(w.subset) == len(set(kept)), "it is not written point by point")
        require(w.scan is None, "it is a scan")
        m.derived["kept"] = tuple(kept)
        terms = product(q.size for q in m.writer.params if q not in kept)
        require(w.combine is not None or terms == 1, "an element is written several times")
        require(isinstance(terms, int) and terms <= 64, "it is a long sum, which a kernel of its own may split")
        readers = _readers(p, m.mid)
        m.derived["copy"] = next(_copies(p, m.writer, s, readers), None)
        if m.copy is not None:
            m.derived["narrow"] = p.containers[m.copy[1]].dtype
        else:
            m.derived["narrow"] = _rounded_to(s, readers)

    def saves(self, m: Match) -> IntLike:
        """The writer and every reader move narrow elements; a copy is not written again, and its kernel, if that was all, is gone."""
        p, s = m.program, m.program.containers[m.mid]
        less = s.dtype.itemsize - m.narrow.itemsize
        total: IntLike = traffic.moved(p, m.writer, m.mid, "write") // s.dtype.itemsize * less
        for r in _readers(p, m.mid):
            elements = traffic.moved(p, r, m.mid, "read") // s.dtype.itemsize
            mine = m.copy is not None and r is m.copy[0]
            gone = mine and sum(len(t.writes) for t in _tasklets(r)) == 1
            total = total + elements * (s.dtype.itemsize if gone else less)
            if mine:
                total = total + traffic.moved(p, r, m.copy[1], "write")
        return total

    def apply(self, m: Match, edit: Edit) -> None:
        p, s = m.program, m.program.containers[m.mid]
        readers = _readers(p, m.mid)
        if m.copy is None:
            target = edit.set_container(s.with_(dtype=m.narrow))
        else:
            target = p.containers[m.copy[1]]
        for r in readers:
            copied = m.copy[1] if m.copy is not None and r is m.copy[0] else ""
            left = _reading(r, s, target, copied)
            if left is None:
                edit.remove(r)
            else:
                edit.replace(r, left)
        edit.replace(m.writer, _rounding(m.writer, s, target, m.kept, p.fresh(f"{s.name}_sum")))
        if m.copy is not None:
            edit.drop_unused([m.mid])


def _tasklets(m: Map) -> Iterator[Tasklet]:
    for n in m.body:
        if isinstance(n, Map):
            yield from _tasklets(n)
        elif isinstance(n, Tasklet):
            yield n


def _readers(p: Program, name: str) -> list[Map]:
    """The maps that read a container. Raises Refusal where a library does."""
    found = [r for r in p.readers(name) if isinstance(r, Map)]
    require(len(found) == len(p.readers(name)), "a library reads it")
    return found


def _rounded_to(s: Container, readers: Sequence[Map]) -> DType:
    """The type to which every use of a container is rounded. Raises Refusal where one is not, or they differ."""
    found: set[DType] = set()
    for r in readers:
        for t in _tasklets(r):
            mine = {k for k, x in t.reads.items() if x.container == s.name}
            uses = [n for n in walk(*t.code.values()) if any(a.op == "read" and a.attr in mine for a in n.args)]
            as_it_is = any(c.op == "read" and c.attr in mine for c in t.code.values())
            require(not as_it_is and all(n.op == "cast" for n in uses), "a reader uses it as it is")
            found |= {n.dtype for n in uses}
    require(len(found) == 1, "its readers round it to different types")
    (narrow,) = found
    require(_is_narrower(narrow, s.dtype), "its readers do not round it")
    return narrow


def _is_narrower(a: DType, b: DType) -> bool:
    return a.is_float and a.itemsize < b.itemsize


def _copies(p: Program, writer: Map, s: Container, readers: Sequence[Map]) -> Iterator[tuple[Map, str]]:
    """Readers that store the rounded value at its own place, and where."""
    for r in readers:
        if r.tasklet is None or r.phase != writer.phase:
            continue
        t = r.tasklet
        for k, w in t.writes.items():
            c, code = p.containers[w.container], t.code[k]
            if code.op != "cast" or code.args[0].op != "read" or w.combine is not None or w.guard:
                continue
            source = t.reads[str(code.args[0].attr)]
            whole = source.container == s.name and source.subset == w.subset and not source.guard and c.shape == s.shape
            points = whole and len(set(w.subset)) == len(w.subset) and all(isinstance(x, Symbol) and x in r.params for x in w.subset)
            points = points and code.dtype is c.dtype and _is_narrower(c.dtype, s.dtype)
            free = not c.is_external and c.alias is None and not p.aliases(c.name) and len(p.writers(c.name)) == 1
            if points and free and c.name not in p.reads_of(writer):
                yield r, c.name


def _reading(node: Map, s: Container, target: Container, copied: str) -> Map | None:
    """A reader on the rounded value, without the write of `copied`. None where nothing is left."""
    body: list[Node] = []
    for n in node.body:
        left: Node | None = n
        if isinstance(n, Map):
            left = _reading(n, s, target, copied)
        elif isinstance(n, Tasklet):
            left = _tasklet_reading(n, s, target, copied)
        if left is not None:
            body.append(left)
    return node.with_(body=tuple(body)) if body else None


def _tasklet_reading(t: Tasklet, s: Container, target: Container, copied: str) -> Tasklet | None:
    mine = {k for k, x in t.reads.items() if x.container == s.name}
    if not mine:
        return t

    def rounded(n: Scalar) -> Scalar | None:
        if n.op == "cast" and n.dtype is target.dtype and n.args[0].op == "read" and n.args[0].attr in mine:
            return read(str(n.args[0].attr), target.dtype)
        return cast(read(str(n.attr), target.dtype), s.dtype) if n.op == "read" and n.attr in mine else None

    writes = {k: w for k, w in t.writes.items() if w.container != copied}
    if not writes:
        return None
    code = {k: rewrite(t.code[k], rounded) for k in writes}
    reads = {k: x.with_(container=target.name) if k in mine else x for k, x in t.reads.items()}
    used = used_reads(t, code.values()) | {i.name for w in writes.values() for i in w.subset if isinstance(i, Indirect)}
    return t.with_(code=code, reads={k: x for k, x in reads.items() if k in used}, writes=writes)


def _rounding(writer: Map, s: Container, target: Container, kept: tuple[Symbol, ...], name: str) -> Map:
    """The writer, with its sum in a register and the rounded value stored."""
    t = writer.tasklet
    assert t is not None
    ((connector, w),) = t.writes.items()
    if w.combine is None:
        return writer.with_(body=(t.with_(code={connector: cast(t.code[connector], target.dtype)},
                                          writes={connector: w.with_(container=target.name)}),))  # fmt: skip
    local = Container(name, s.dtype, (), storage="register")
    inner = tuple(q for q in writer.params if q not in kept)
    term = t.with_(writes={connector: Memlet(local.name, (), combine=w.combine)})
    store = Tasklet({"out": cast(read("value", s.dtype), target.dtype)}, reads={"value": Memlet(local.name, ())},
                    writes={"out": w.with_(container=target.name, combine=None)}, origins=t.origins, phase=t.phase)  # fmt: skip
    body = (Map(inner, (term,), name=writer.name, origins=writer.origins, phase=writer.phase), store)
    outer = tuple(q for q in writer.params if q in kept)
    return Map(outer, body, {local.name: local}, writer.schedule, name=writer.name, origins=writer.origins, phase=writer.phase)
