"""AliasViews: a copy that strides can express moves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

from shorthaul.ir.containers import Alias
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import Indirect, Span
from shorthaul.ir.nodes import LibraryCall, Map
from shorthaul.ir.program import Program
from shorthaul.ir.sizes import container_sizes, runtime_sizes
from shorthaul.symbolic import Expr, Symbol, affine, prove_le

from .. import traffic
from ..base import Match, Transformation, require

IntLike = Union[int, Expr]


class AliasViews(Transformation):
    """Replace a copy map by an alias of its source.

    before:  map b, h, t, d: q[b, h, t, d] = x[b, t, h*D + d];  attention(q)       after:  q is x with strides (T*C, D, C, 1);  attention(q)

    Runs last: the only place, with memory planning, where containers share memory.
    """

    level = 2

    def matches(self, program: Program) -> Iterator[Match]:
        for node in list(program.nodes):
            if isinstance(node, Map) and node.is_elementwise and len(program.writes_of(node)) == 1 and program.node_is_current(node):
                yield Match(program, {"copy": node, "mid": next(iter(program.writes_of(node)))})

    def check(self, m: Match) -> None:
        p, node = m.program, m.copy
        t = node.tasklet
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
        require(all(isinstance(r, (LibraryCall, Map)) for r in p.readers(m.mid)), "its readers need it as it is")
        address: IntLike = 0
        for s, k in zip(source.subset, base.actual_strides, strict=True):
            address = address + s * k
        form = affine(address, node.params)
        require(form is not None, "no strides express it")
        assert form is not None
        strides: list[IntLike] = []
        for s, n in zip(write.subset, target.shape, strict=True):
            if isinstance(s, Symbol) and s in node.params:
                strides.append(form[0].get(s, 0))
            else:
                require(n == 1, "it writes part of its target")
                strides.append(0 if not strides else strides[-1])
        negative = any(prove_le(0, k) is not True for k in strides)
        require(not negative or not any(isinstance(r, LibraryCall) for r in p.readers(m.mid)), "a library call takes no negative strides")
        m.derived["strides"], m.derived["offset"], m.derived["base"] = tuple(strides), form[1], source.container

    def saves(self, m: Match) -> IntLike:
        """All that the copy moves; its readers move as much from the source."""
        return traffic.all_moved(m.program, m.copy)

    def apply(self, m: Match, edit: Edit) -> None:
        edit.remove(m.copy)
        c = m.program.containers[m.mid]
        edit.set_container(c.with_(strides=m.strides, alias=Alias(m.base, m.offset)))
