"""WriteThrough: a library call writes its result where a copy would have put it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

from shorthaul.ir.edit import Edit
from shorthaul.ir.nodes import LibraryCall, Map
from shorthaul.ir.program import Program
from shorthaul.ir.rewrite import rename
from shorthaul.symbolic import Expr, Symbol

from .. import traffic
from ..base import Match, Transformation, require

IntLike = Union[int, Expr]


class WriteThrough(Transformation):
    """Give a library call's result the place of its copy, where nothing else reads it.

    before:  t = library(x);  map i: y[i] = t[i]   (y a result of the program)        after:  y = library(x)

    The gradients of operators that run through PyTorch end in such copies, because a gradient must be a tensor of its own. A call whose
    result may share memory with an operand keeps its copy: of PyTorch's operators those are left that do not say that they allocate.
    """

    level = 2

    def matches(self, program: Program) -> Iterator[Match]:
        for node in list(program.nodes):
            if isinstance(node, Map) and node.is_elementwise and program.node_is_current(node):
                for c in sorted(program.reads_of(node)):
                    for w in program.writers(c):
                        if isinstance(w, LibraryCall) and w.phase == node.phase:
                            yield Match(program, {"call": w, "mid": c, "copy": node})

    def check(self, m: Match) -> None:
        p, call, copy = m.program, m.call, m.copy
        t = copy.tasklet
        require(len(t.code) == 1 and len(t.reads) == 1, "it computes something")
        (code,), (write,), (read,) = t.code.values(), t.writes.values(), t.reads.values()
        source, target = p.containers[m.mid], p.containers[write.container]
        require(code.op == "read" and source.dtype is target.dtype, "it computes something")
        require(not copy.schedule.get("pack"), "the copy makes a layout that kernels need")
        require(read.subset == write.subset and not read.guard and not write.guard, "it moves elements to other places")
        require(all(isinstance(s, Symbol) and s in copy.params for s in write.subset), "it copies a part")
        require(len(set(write.subset)) == len(write.subset) and source.shape == target.shape, "it copies a part")
        require(source.actual_strides == target.actual_strides, "the copy has another layout")
        require(source.role == "transient" and m.mid not in p.results, "the caller gets the result, too")
        require(len(p.readers(m.mid)) == 1 and len(p.writers(m.mid)) == 1, "something else needs the result")
        require(len(p.writers(target.name)) == 1 and not target.is_external, "several nodes write the copy")
        require(source.alias is None and target.alias is None, "containers share memory")
        require(not p.aliases(m.mid) and not p.aliases(target.name), "containers share memory")
        require(target.name not in p.reads_of(call), "the call reads the copy")
        owned = call.function != "aten::call" or call.attributes.get("allocates")
        require(owned, "the result may share memory with an operand")
        m.derived["target"] = target.name

    def saves(self, m: Match) -> IntLike:
        """All that the copy moves."""
        return traffic.all_moved(m.program, m.copy)

    def apply(self, m: Match, edit: Edit) -> None:
        edit.fuse([m.call, m.copy], rename(m.call, {m.mid: m.target}, fresh=False))
        edit.drop_unused([m.mid])
