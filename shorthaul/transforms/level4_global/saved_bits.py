"""SavedBits: where the backward phase asks a saved value only yes or no, a bit of each answer is saved, eight to a byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Union

from shorthaul.ir.builder import at, fresh_params
from shorthaul.ir.containers import Container, strides_in_order
from shorthaul.ir.dtypes import bool_, int32, uint8
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import Indirect, Memlet, Span
from shorthaul.ir.nodes import Access, Map, Node, Tasklet
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import (
    Scalar,
    apply,
    cast,
    const,
    index_value,
    read,
    reads_of,
    rewrite,
    substitute_reads,
    walk,
    where,
)
from shorthaul.symbolic import Expr, Symbol, floordiv, mod, prove_eq

from .. import traffic
from ..base import Match, Refusal, Transformation, hint_value, require
from ..level2_fusion.compose import Connectors, renamed, used_reads
from .saved import family, later_readers, over_tasklets, require_own, saved_values, visits_once

IntLike = Union[int, Expr]
BITS = uint8.bits
LONGEST = 48  # operations an element of a kernel that is written out eight times
VALUE = "value"


class SavedBits(Transformation):
    """Save a bit of an element where the backward phase asks for no more.

    before:  forward: y[i, j] = relu(x[i, j])          backward: gx[i, j] = where(x[i, j] <= 0, 0, gy[i, j])          (x: f32, saved)
    after:   forward: y[8i+k, j] = relu(x[8i+k, j]) for k = 0 … 7;  b[i, j] = Σ 2^k (x[8i+k, j] <= 0)
             backward: gx[i, j] = where(b[i / 8, j] & 2^(i % 8), 0, gy[i, j])        (b: a byte for eight elements, saved instead of x)

    Exact: the answer is computed once, from the same value. A mask (bool, a byte an element) is packed, and so is any condition on one
    saved value that all kernels of the backward phase ask alike; a library call beside them keeps the value for itself, and the kernels
    still read the bits instead. Eight neighbours along the fastest dimension but the innermost share a byte, so that vectors stay
    vectors: their loop becomes a loop over eights with a body written out eight times. Only elementwise kernels are written out so.

    Fewer bytes move, but on a CPU not in less time: a result that had its operand's memory gets one of its own, and bits are tested lane by
    lane. Nothing does it by default.

    goal: "traffic" applies where fewer bytes move, "memory" wherever less is saved, if need be by a kernel that only packs. least:
    values of fewer bytes are left as they are.
    """

    level = 4
    allowed = {"goal": ("traffic", "memory"), "least": range(1 << 40)}

    def __init__(self, goal: str = "traffic", least: int = 1 << 16) -> None:
        self.goal = goal
        self.least = least

    def matches(self, program: Program) -> Iterator[Match]:
        for m in saved_values(program):
            dtype = program.containers[m.mid].dtype
            if dtype is bool_ or dtype.is_float:
                yield m

    def check(self, m: Match) -> None:
        p, c = m.program, m.program.containers[m.mid]
        require_own(p, m, self.least)
        require(family(p, m.mid) == [m.mid], "its memory has views")
        later = later_readers(p, [m.mid])
        asked = {r.id: q for r in later if isinstance(r, Map) and (q := _questions(r, c))}
        require(bool(asked), "the backward phase needs the value itself")
        questions = set().union(*asked.values())
        require(len(questions) == 1, "different conditions on it are asked")
        (m.derived["question"],) = questions
        m.derived["asking"] = [r for r in later if r.id in asked]
        others = [r for r in later if r.id not in asked]
        require(self.goal == "traffic" or not others, "the backward phase needs the value itself, too")
        dim = m.derived["dim"] = _dimension(c)
        m.derived["bits"] = _bits(p, c, dim)
        m.derived["holder"] = next(_holders(p, m.writer, c), None)
        m.derived["alone"] = m.holder is not None and m.holder[0] is m.writer and not others and not _read_before(p, m.mid)
        m.derived["answers"] = {r.id: _answering(r, c, m.bits, dim, m.question) for r in m.asking}
        if self.goal == "traffic":
            require(m.holder is not None, "no elementwise kernel of the forward phase, of few operations, goes through it")
            saved = hint_value(p, self.saves(m))
            require(saved > 0, f"storing the bits moves {-saved} bytes more than reading them saves")

    def saves(self, m: Match) -> IntLike:
        """Kernels of the backward phase read bits instead of elements. The bits are written; a value that nobody else needs is not."""
        p, c = m.program, m.program.containers[m.mid]
        total: IntLike = -m.bits.bytes
        for r in m.asking:
            mine = [a for a in m.answers[r.id].accesses() if a.memlet.container == m.bits.name]
            total = total + traffic.moved(p, r, m.mid, "read") - traffic.footprint_of(mine, m.bits).elements * m.bits.dtype.itemsize
        if m.holder is None:
            return total - c.bytes
        return total + traffic.moved(p, m.writer, m.mid, "write") if m.alone else total

    def apply(self, m: Match, edit: Edit) -> None:
        p, c = m.program, m.program.containers[m.mid]
        bits = edit.add_container(m.bits)
        for r in m.asking:
            edit.replace(r, m.answers[r.id])
        if m.holder is not None:
            node, access = m.holder
            value = node.tasklet.code[access.connector] if access.is_write else read(access.connector, c.dtype)
            answer = substitute_reads(m.question, {VALUE: value})
            edit.replace(node, _packing(node, access.memlet, answer, bits, m.dim, m.mid if m.alone else None))
        else:
            q = fresh_params(c.shape)
            whole = at(c, *q)
            look = Tasklet({}, reads={VALUE: whole}, writes={}, origins=m.writer.origins, phase=m.writer.phase)
            alone = Map(q, (look,), name="pack_bits", origins=m.writer.origins, phase=m.writer.phase)
            edit.add(_packing(alone, whole, m.question, bits, m.dim, None), after=m.writer)
        edit.drop_unused([m.mid])
        edit.rewrite.notes["memory"] = hint_value(p, (0 if later_readers(p, [m.mid]) else c.bytes) - bits.bytes)


def _read_before(p: Program, name: str) -> bool:
    return any(r.phase == "forward" for r in p.readers(name))


def _questions(node: Map, c: Container) -> set[Scalar]:
    """The conditions on one element, read as VALUE, which are all that a map uses the container for; none where they are not all."""
    found: set[Scalar] = set()
    for _, t in node.tasklets():
        mine = {k for k, a in t.reads.items() if a.container == c.name}
        if not mine:
            continue
        left, asked = _without_questions(t, mine)
        if not mine.isdisjoint(reads_of(*left)):
            return set()
        found |= {substitute_reads(q, {k: read(VALUE, c.dtype)}) for k, q in asked}
    return found


def _without_questions(t: Tasklet, mine: set[str]) -> tuple[list[Scalar], list[tuple[str, Scalar]]]:
    """The code without the conditions on one of these reads alone, and those with the read."""
    asked: list[tuple[str, Scalar]] = []

    def leaf(n: Scalar) -> Scalar | None:
        k = _asks(n, t, mine)
        if k is None:
            return None
        asked.append((k, n))
        return read("?", bool_)  # not a constant, for which a branch that reads the value itself would vanish

    memo: dict[Scalar, Scalar] = {}
    return [rewrite(code, leaf, memo) for code in t.code.values()], asked


def _asks(n: Scalar, t: Tasklet, mine: set[str]) -> str | None:
    """The read of which alone a piece of code is a condition."""
    if n.dtype is not bool_ or n.has_index:
        return None
    if n.op != "read" and any(x.op == "read" and x.dtype is bool_ for x in walk(n)):
        return None  # of a mask the bit itself is saved
    names = reads_of(n)
    return names[0] if len(names) == 1 and names[0] in mine else None


def _dimension(c: Container) -> int:
    """The fastest dimension but the innermost whose size is a multiple of eight. Raises Refusal where there is none."""
    order = _order(c)
    sized = [d for d in order if prove_eq(c.shape[d], 1) is not True]
    found = next((d for d in reversed(sized[:-1]) if prove_eq(mod(c.shape[d], BITS), 0) is True), None)
    require(found is not None, f"no dimension but the innermost is a multiple of {BITS}")
    assert found is not None
    return found


def _order(c: Container) -> list[int]:
    """The dimensions from the slowest to the fastest."""
    dims = list(range(len(c.shape)))
    if c.is_contiguous:
        return dims
    strides = c.actual_strides
    require(all(isinstance(s, int) and s > 0 for s in strides), "its layout is not known")
    return sorted(dims, key=lambda d: (-strides[d], d))  # type: ignore[operator]


def _bits(p: Program, c: Container, dim: int) -> Container:
    shape = tuple(floordiv(n, BITS) if d == dim else n for d, n in enumerate(c.shape))
    strides = None if c.is_contiguous else strides_in_order(shape, tuple(_order(c)))
    return Container(p.fresh(f"{c.name}_bits"), uint8, shape, strides)


def _holders(p: Program, writer: Node, c: Container) -> Iterator[tuple[Map, Access]]:
    """Elementwise kernels of the forward phase that have every element of a container once: who writes it, else who reads it."""
    readers = [r for r in p.readers(c.name) if r.phase == "forward"]
    for node in (writer, *sorted(readers, key=p.position)):
        if not isinstance(node, Map) or not node.is_elementwise or node.schedule.get("pack"):
            continue
        t = node.tasklet
        assert t is not None
        if sum(n.op != "read" for n in walk(*t.code.values())) > LONGEST:
            continue
        for a in node.accesses():
            if a.memlet.container == c.name and not a.memlet.is_indirect and visits_once(a, c):
                yield node, a
                break


def _packing(node: Map, element: Memlet, answer: Scalar, bits: Container, dim: int, without: str | None) -> Map:
    """A flat map over eights of elements along a dimension, which also stores a byte of their answers.

    element: how the map accesses the value; answer: code of its tasklet. without: a result that is not written any more.
    """
    t, along = node.tasklet, element.subset[dim]
    assert t is not None and isinstance(along, Symbol)
    (eight,) = fresh_params([floordiv(along.size, BITS)])
    pool = Connectors()
    code: dict[str, Scalar] = {}
    writes: dict[str, Memlet] = {}
    byte: Scalar | None = None
    for k in range(BITS):
        values: Mapping[Symbol, IntLike] = {along: eight * BITS + k}
        names = pool.take(t.reads, values)
        memo: dict[Scalar, Scalar] = {}
        for w, to in t.writes.items():
            if to.container != without:
                code[f"{w}_{k}"] = renamed(t.code[w], names, values, memo)
                writes[f"{w}_{k}"] = to.substitute(values).rename_reads(names)
        bit = where(renamed(answer, names, values, memo), const(1 << k, int32), 0)
        byte = bit if byte is None else apply("or", byte, bit)
    assert byte is not None
    code["bits"], writes["bits"] = cast(byte, uint8), Memlet(bits.name, (*element.subset[:dim], eight, *element.subset[dim + 1 :]))
    whole = t.with_(code=code, writes=writes, reads=pool.reads)
    used = used_reads(whole, code.values()) | {s.name for w in writes.values() for s in w.subset if isinstance(s, Indirect)}
    whole = whole.with_(reads={k: a for k, a in pool.reads.items() if k in used})
    return node.with_(params=tuple(eight if q is along else q for q in node.params), body=(whole,))


def _answering(node: Map, c: Container, bits: Container, dim: int, question: Scalar) -> Map:
    """The map that reads bits where it asked the question."""

    def change(t: Tasklet) -> Tasklet:
        mine = {k for k, a in t.reads.items() if a.container == c.name}
        if not mine:
            return t
        reads, tests = dict(t.reads), {}
        for k in mine:
            reads[k], tests[k] = _bit_of(k, t.reads[k], c, bits, dim, question)

        def leaf(n: Scalar) -> Scalar | None:
            asked = _asks(n, t, mine)
            return None if asked is None else tests[asked]

        memo: dict[Scalar, Scalar] = {}
        return t.with_(reads=reads, code={w: rewrite(code, leaf, memo) for w, code in t.code.items()})

    return over_tasklets(node, change)


def _bit_of(k: str, a: Memlet, c: Container, bits: Container, dim: int, question: Scalar) -> tuple[Memlet, Scalar]:
    """How the answer for an element is read: the byte's memlet, and the code that takes its bit."""
    place = a.subset[dim]
    if isinstance(place, (Indirect, Span)):
        raise Refusal("an index that is data chooses the eight")
    fill = a.fill
    if fill is not None:  # outside every bit is the answer there
        yes = substitute_reads(question, {VALUE: const(fill, c.dtype)})
        require(yes.op == "const", "what is asked outside of it is not known")
        fill = (1 << BITS) - 1 if yes.attr else 0
    number = mod(place, BITS)
    one = const(1 << number, int32) if isinstance(number, int) else apply("shl", const(1, int32), cast(index_value(number), int32))
    memlet = a.with_(container=bits.name, subset=_replaced(a.subset, dim, floordiv(place, BITS)), fill=fill)
    return memlet, apply("ne", cast(read(k, uint8), int32) & one, 0)  # in lanes as wide as most values have


def _replaced(subset: Sequence[object], dim: int, by: object) -> tuple:
    return (*subset[:dim], by, *subset[dim + 1 :])


