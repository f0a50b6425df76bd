"""ConstantFolding: what depends on constants alone is computed at compile time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

from shorthaul.ir.edit import Edit
from shorthaul.ir.interpreter import interpret
from shorthaul.ir.nodes import Map
from shorthaul.ir.program import Form, Program
from shorthaul.ir.scalar import symbols_of
from shorthaul.symbolic import Expr

from .. import traffic
from ..base import Match, Transformation, require

IntLike = Union[int, Expr]


class ConstantFolding(Transformation):
    """Replace a map all of whose operands are constants by its value.

    before:  map i: t[i] = exp(table[i])   (table a constant);  map i: y[i] = x[i]*t[i]
    after:  map i: y[i] = x[i]*t[i]   (t a constant)

    A map without operands (a fill, a range) is left to MapFusion: its readers evaluate it for nothing, where a constant would be read.
    max_elements: the largest result that is kept in the compiled program.
    """

    level = 3

    def __init__(self, max_elements: int = 65536) -> None:
        self.max_elements = max_elements

    def matches(self, program: Program) -> Iterator[Match]:
        for node in list(program.nodes):
            if isinstance(node, Map) and program.node_is_current(node):
                yield Match(program, {"node": node})

    def check(self, m: Match) -> None:
        p, node = m.program, m.node
        reads, writes = p.reads_of(node), p.writes_of(node)
        for c in sorted(reads):
            require(p.containers[c].role == "constant", f"{c} is known at run time only")
        readers = [r for c in writes for r in p.readers(c)]
        require(bool(reads) or not any(isinstance(r, Map) for r in readers), "it has no operands: its readers evaluate it for nothing")
        require(writes.isdisjoint(p.results), "the caller gets its result as a tensor of its own")
        for c in sorted(writes):
            container = p.containers[c]
            require(len(p.writers(c)) == 1, "several nodes write its result")
            require(isinstance(container.size, int), "the size of its result is known at run time only")
            require(container.size <= self.max_elements, f"its result has {container.size} elements, more than {self.max_elements}")  # type: ignore[operator]
            require(container.is_contiguous, "its result has a layout of its own")
            require(container.dtype.name != "bfloat16", "NumPy has no bfloat16")
        require(
            not any(s in p.symbols for a in node.accesses() for q in a.params for s in _sizes(q)),
            "its range is known at run time only",
        )
        sizes = frozenset(p.symbols)
        for _, t in node.tasklets():
            used = symbols_of(*t.code.values()).union(*(x.symbols for x in (*t.reads.values(), *t.writes.values())))
            require(used.isdisjoint(sizes), f"it computes with {', '.join(sorted(s.name for s in used & sizes))}, known at run time only")

    def saves(self, m: Match) -> IntLike:
        """All that the map moves."""
        return traffic.all_moved(m.program, m.node)

    def apply(self, m: Match, edit: Edit) -> None:
        p, node = m.program, m.node
        writes = p.writes_of(node)
        used = p.reads_of(node) | writes
        alone = Program("folding", Form.MAPS, {c: p.containers[c] for c in used}, [node.with_(phase="forward")],
                        constants={c: p.constants[c] for c in p.reads_of(node)})  # fmt: skip
        values = interpret(alone, {})
        edit.remove(node)
        for c in sorted(writes):
            container = p.containers[c]
            edit.set_container(container.with_(role="constant", strides=None))
            edit.set_constant(c, values[c].astype(container.dtype.numpy))
        edit.drop_unused(p.containers.keys() & used)


def _sizes(q: Expr) -> set[Expr]:
    from shorthaul.symbolic import free_symbols

    return {s for e in (q.lower, q.upper) if isinstance(e, Expr) for s in free_symbols(e)}  # type: ignore[attr-defined]
