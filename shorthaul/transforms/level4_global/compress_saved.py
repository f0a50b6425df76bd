"""CompressSaved: on request, what is saved for the backward phase is stored in a narrower type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Union

from shorthaul.analysis.footprint import footprints
from shorthaul.analysis.movement import distinct
from shorthaul.ir.builder import at, fresh_params, make_map
from shorthaul.ir.containers import Alias, Container
from shorthaul.ir.dtypes import DType, bfloat16, float16
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import Memlet
from shorthaul.ir.nodes import Access, Map, Node, Tasklet
from shorthaul.ir.program import Program
from shorthaul.ir.rewrite import rename
from shorthaul.ir.scalar import Scalar, cast, read, rewrite
from shorthaul.symbolic import Expr

from ..base import Match, Transformation, hint_value, require
from ..level2_fusion.compose import unique_write
from .saved import family, later_readers, over_tasklets, require_own, saved_values, visits_once

IntLike = Union[int, Expr]
NARROW = {d.name: d for d in (bfloat16, float16)}
ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # half a unit in the last of 8 and 11 digits, relative to the value
LEAST = 1 << 16  # bytes: statistics of rows and channels are small, and exactness of a normalization's gradient hangs on them


class CompressSaved(Transformation):
    """Save a narrower copy of a value for the backward phase.

    before:  forward: h[i] = f(x[i]);  y[i] = g(h[i])                   backward: gx[i] = k(h[i], gy[i])      (h: f32, saved)
    after:   forward: h[i] = f(x[i]), s[i] = bf16(h[i]);  y[i] = g(h[i])    backward: gx[i] = k(f32(s[i]), gy[i])  (s: bf16, saved)

    It changes numbers, so nothing does it by default: the forward phase computes what it did, gradients are those of saved values that
    were rounded. A rounded value is off by at most 2^-8 of itself in bfloat16, by 2^-11 in float16, which has no numbers beyond 65504
    (they become infinite) and fewer digits below 6e-5. The rewrite's note "rounding" says so, the report lists it, and a check of numbers
    allows for it. Compressed activations are an old means against the memory of training (Jain et al., ISCA 2018: Gist); only what the
    backward phase reads is rounded, so that errors do not add up from layer to layer in the forward phase.

    The copy is stored by the kernel that writes the value, else by one that reads all of it, else by a kernel of its own; where only the
    backward phase reads the value, it is stored in no other form. Kernels take the narrow value; library calls, loops and branches take
    a wide one, which the backward phase makes of it.

    dtype: the narrow type. goal: "traffic" applies where fewer bytes move, "memory" wherever less is saved (the rewrite's note "memory"
    says how much less), also at the price of copies. least: values of fewer bytes are left as they are.
    """

    level = 4
    allowed = {"dtype": tuple(NARROW), "goal": ("traffic", "memory"), "least": range(1 << 40)}

    def __init__(self, dtype: str = "bfloat16", goal: str = "traffic", least: int = LEAST) -> None:
        self.dtype = dtype
        self.goal = goal
        self.least = least

    @property
    def rounding(self) -> float:
        return ROUNDING[self.dtype]

    def matches(self, program: Program) -> Iterator[Match]:
        return (m for m in saved_values(program) if program.containers[m.mid].dtype.is_float)

    def check(self, m: Match) -> None:
        p, c = m.program, m.program.containers[m.mid]
        require(NARROW[self.dtype].itemsize < c.dtype.itemsize, f"it is stored in {c.dtype} already")
        require_own(p, m, self.least)
        names = family(p, m.mid)
        m.derived["names"], m.derived["later"] = names, later_readers(p, names)
        m.derived["alone"] = not any(r.phase == "forward" for n in names for r in p.readers(n)) and bool(_stores(m.writer, c))
        m.derived["beside"] = next(_places(p, m.writer, c, names), None)
        if self.goal == "traffic":
            saved = hint_value(p, self.saves(m))
            why = "storing the copy moves as much as reading it saves" if saved == 0 else f"it would move {-saved} bytes more"
            require(saved > 0, f"{why}; with goal='memory' it is done for the memory")

    def saves(self, m: Match) -> IntLike:
        """Readers move narrow elements. The copy is written, by a kernel of its own also read; for library calls it is made wide again."""
        p, c, narrow = m.program, m.program.containers[m.mid], NARROW[self.dtype].itemsize
        less = c.dtype.itemsize - narrow
        total: IntLike = 0
        for r in m.later:
            if isinstance(r, Map):
                for n in m.names:
                    total = total + _elements(p, r, n, "read") * less
        if not all(isinstance(r, Map) for r in m.later):
            total = total - c.size * (narrow + c.dtype.itemsize)
        if m.alone:
            return total + _elements(p, m.writer, m.mid, "write") * less
        if m.beside is None:
            return total - c.size * (narrow + c.dtype.itemsize)
        node, _ = m.beside
        return total - (_elements(p, node, m.mid, "write") if node is m.writer else c.size) * narrow

    def apply(self, m: Match, edit: Edit) -> None:
        p, c = m.program, m.program.containers[m.mid]
        narrow = NARROW[self.dtype]
        kept = edit.add_container(c.with_(name=p.fresh(f"{m.mid}_{narrow.name}"), dtype=narrow, role="transient"))
        copies = _copies(p, edit, m.names, kept, [r for r in m.later if isinstance(r, Map)])
        others = [r for r in m.later if not isinstance(r, Map)]
        if others:
            again = edit.add_container(c.with_(name=p.fresh(f"{m.mid}_again"), role="transient"))
            edit.add(_converting(kept, again, others[0]), before=others[0])
            wide = _copies(p, edit, m.names, again, others)
            for r in others:
                edit.replace(r, rename(r, wide, fresh=False))
        for r in m.later:
            if isinstance(r, Map):
                edit.replace(r, _reading(r, copies, narrow))
        if m.alone or m.beside is not None:
            node, accesses = (m.writer, _stores(m.writer, c)) if m.alone else m.beside
            edit.replace(node, _storing(node, accesses, c, kept, instead=m.alone))
        else:
            edit.add(_converting(c, kept, m.writer), after=m.writer)
        edit.drop_unused(m.names[1:])
        edit.drop_unused(m.names[:1])
        edit.rewrite.notes["memory"] = hint_value(p, c.bytes - kept.bytes)


def _elements(p: Program, node: Map, name: str, side: str) -> IntLike:
    """Elements of a container that a map moves, as the movement analysis counts them."""
    found = footprints(node, p.containers).get((name, side))
    c = p.containers[name]
    return 0 if found is None else found.elements if c.strides is None else distinct(c, found.elements)


def _stores(writer: Node, c: Container) -> list[Access]:
    """The writes of a container, where each is of a value that the map has at that point; else none."""
    if not isinstance(writer, Map):
        return []
    found = [a for a in writer.accesses() if a.is_write and a.memlet.container == c.name]
    return found if all(a.memlet.combine is None and not a.memlet.is_indirect for a in found) else []


def _places(p: Program, writer: Node, c: Container, names: list[str]) -> Iterator[tuple[Map, list[Access]]]:
    """Where the copy can be stored in passing: by the writer, else by a map of the forward phase that goes through all elements."""
    if found := _stores(writer, c):
        assert isinstance(writer, Map)
        yield writer, found
    readers = [r for r in p.readers(c.name) if isinstance(r, Map) and r.phase == "forward" and not r.schedule.get("pack")]
    for r in sorted(readers, key=lambda r: (not r.is_elementwise, p.position(r))):
        for a in r.accesses():
            if not a.is_write and a.memlet.container == c.name and visits_once(a, c):
                yield r, [a]
                break


def _copies(p: Program, edit: Edit, names: list[str], base: Container, readers: list[Node]) -> dict[str, str]:
    """What stands for each of the containers that these nodes read: the copy itself, or a view of it as they had one of the value."""
    found = {names[0]: base.name}
    for n in names[1:]:
        if any(n in p.reads_of(r) for r in readers):
            c, offset = p.containers[n], _offset(p, n)
            view = c.with_(name=p.fresh(f"{n}_{base.dtype.name}"), dtype=base.dtype, alias=Alias(base.name, offset))
            found[n] = edit.add_container(view).name
    return found


def _offset(p: Program, name: str) -> IntLike:
    """Where a view begins in the container whose memory it lies in."""
    total: IntLike = 0
    c = p.containers[name]
    while c.alias is not None:
        total = total + c.alias.offset
        c = p.containers[c.alias.base]
    return total


def _converting(source: Container, target: Container, like: Node) -> Map:
    """A kernel that stores a container in another type; it comes from what `like` comes from."""
    q = fresh_params(source.shape)
    return make_map(q, {"x": at(source, *q)}, {"y": at(target, *q)}, lambda x: {"y": cast(x, target.dtype)}, {source.name: source.dtype},
                    name="convert", origins=like.origins, phase=like.phase)  # fmt: skip


def _reading(node: Map, copies: Mapping[str, str], narrow: DType) -> Map:
    """The map with the copies in the places of the values."""

    def change(t: Tasklet) -> Tasklet:
        mine = {k for k, a in t.reads.items() if a.container in copies}
        if not mine:
            return t

        def leaf(n: Scalar) -> Scalar | None:
            return cast(read(str(n.attr), narrow), n.dtype) if n.op == "read" and n.attr in mine else None

        reads = {k: a.with_(container=copies[a.container]) if k in mine else a for k, a in t.reads.items()}
        return t.with_(reads=reads, code={k: rewrite(v, leaf) for k, v in t.code.items()})

    return over_tasklets(node, change)


def _storing(node: Map, accesses: list[Access], c: Container, kept: Container, instead: bool) -> Map:
    """The map that also stores, where it has the value, the rounded one; `instead` of the value itself."""

    def change(t: Tasklet) -> Tasklet:
        code, writes = dict(t.code), dict(t.writes)
        for a in accesses:
            if a.tasklet is t:
                value = t.code[a.connector] if a.is_write else read(a.connector, c.dtype)
                to = Memlet(kept.name, a.memlet.subset, a.memlet.guard if a.is_write else ())
                label = a.connector if instead else unique_write(writes, "saved", to)
                code[label], writes[label] = cast(value, kept.dtype), to
        return t.with_(code=code, writes=writes)

    return over_tasklets(node, change)
