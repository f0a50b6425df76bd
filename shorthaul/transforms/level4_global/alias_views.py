"""AliasViews: a copy that strides can express moves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

from shorthaul.ir.blocks import set_layout
from shorthaul.ir.containers import Alias, Container
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import Indirect, Span
from shorthaul.ir.nodes import LibraryCall, Loop, Map, Node
from shorthaul.ir.program import Program
from shorthaul.ir.sizes import container_sizes, runtime_sizes
from shorthaul.symbolic import Expr, Symbol, affine, prove_le

from .. import traffic
from ..base import Match, Transformation, require

IntLike = Union[int, Expr]


class AliasViews(Transformation):
    """Replace a copy map by an alias of its source.

    before:  map b, h, t, d: q[b, h, t, d] = x[b, t, h*D + d];  attention(q)       after:  q is x with strides (T*C, D, C, 1);  attention(q)

    Runs last: the only place, with memory planning, where containers share memory. loops: only copies beside a loop over blocks of rows,
    which reads the copy or writes its source.
    """

    level = 2

    def __init__(self, loops: bool = False) -> None:
        self.loops = loops

    def matches(self, program: Program) -> Iterator[Match]:
        for node in list(program.nodes):
            if isinstance(node, Map) and node.is_elementwise and len(program.writes_of(node)) == 1 and program.node_is_current(node):
                yield Match(program, {"copy": node, "mid": next(iter(program.writes_of(node)))})

    def check(self, m: Match) -> None:
        p, node = m.program, m.copy
        t = node.tasklet
        require(not self.loops or _beside_loop(p, node), "no loop over blocks is beside it")
        require(not node.schedule.get("pack"), "the copy makes a layout that kernels need")
        require(len(t.code) == 1, "it computes something")
        (code,), (write,) = t.code.values(), t.writes.values()
        require(code.op == "read" and len(t.reads) == 1, "it computes something")
        source = t.reads[code.attr]
        target, base = p.containers[m.mid], p.containers[source.container]
        require(not source.guard and not write.guard, "it pads")
        require(m.mid not in p.results and not target.is_external, "the caller needs it as a tensor of its own")
        require(target.dtype is base.dtype, "it converts")
        require(len(p.writers(m.mid)) == 1, "several nodes write it")
        late = runtime_sizes(p)
        require(late.isdisjoint(container_sizes(target) | container_sizes(base)), "its size is known at run time only")
        require(source.container not in p.results or base.is_external, "its source is handed to the caller, who may change it")
        updated = any(c == source.container for c, _ in p.signature.updates)
        require(not updated or all(r.phase == "forward" for r in p.readers(m.mid)), "its source changes before the backward phase reads it")
        require(not any(isinstance(s, (Span, Indirect)) for s in (*source.subset, *write.subset)), "it gathers")
        require(all(_takes_strides(r, m.mid) for r in p.readers(m.mid)), "its readers need it as it is")
        strides, offset = view_of(node, base, target)
        negative = any(prove_le(0, k) is not True for k in strides)
        require(not negative or all(isinstance(r, Map) for r in p.readers(m.mid)), "a library call takes no negative strides")
        m.derived["strides"], m.derived["offset"], m.derived["base"] = strides, offset, source.container

    def saves(self, m: Match) -> IntLike:
        """All that the copy moves; its readers move as much from the source."""
        return traffic.all_moved(m.program, m.copy)

    def apply(self, m: Match, edit: Edit) -> None:
        edit.remove(m.copy)
        c = m.program.containers[m.mid]
        view = c.with_(strides=m.strides, alias=Alias(m.base, m.offset))
        set_layout(edit, view)


def _beside_loop(p: Program, copy: Map) -> bool:
    """Whether a loop over blocks reads what the copy writes, or writes what it reads."""
    nodes = [n for c in p.writes_of(copy) for n in p.readers(c)] + [n for c in p.reads_of(copy) for n in p.writers(c)]
    return any(isinstance(n, Loop) and n.tile is not None for n in nodes)


def _takes_strides(reader: Node, name: str) -> bool:
    """Whether a node can read the container with any strides: a loop over blocks if it reads it once, as blocks."""
    if isinstance(reader, Loop):
        connectors = [k for k, x in reader.reads.items() if x.container == name]
        return reader.tile is not None and len(connectors) == 1 and connectors[0] in reader.scanned
    return isinstance(reader, (LibraryCall, Map))


def view_of(copy: Map, source: Container, target: Container) -> tuple[tuple[IntLike, ...], IntLike]:
    """(strides, offset) with which the target of a copy map is a view of its source. Raises Refusal where no strides express it."""
    t = copy.tasklet
    assert t is not None
    (read,), (write,) = t.reads.values(), t.writes.values()
    address: IntLike = 0
    for s, k in zip(read.subset, source.actual_strides, strict=True):
        require(not isinstance(s, (Span, Indirect)), "it gathers")
        assert not isinstance(s, (Span, Indirect))
        address = address + s * k
    form = affine(address, copy.params)
    require(form is not None, "no strides express it")
    assert form is not None
    strides: list[IntLike] = []
    for s, n in zip(write.subset, target.shape, strict=True):
        if isinstance(s, Symbol) and s in copy.params:
            strides.append(form[0].get(s, 0))
        else:
            require(n == 1, "it writes part of its target")
            strides.append(0 if not strides else strides[-1])
    return tuple(strides), form[1]
