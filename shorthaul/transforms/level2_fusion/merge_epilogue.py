"""MergeEpilogue: what is computed from the results of a split reduction runs in the kernel that merges its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from shorthaul.ir.edit import Edit
from shorthaul.ir.flat import flat_form
from shorthaul.ir.launches import fresh_mark, launched_together
from shorthaul.ir.nodes import Map, Node
from shorthaul.ir.program import Form, Program
from shorthaul.symbolic import prove_eq

from ..base import Match, Transformation, require


class MergeEpilogue(Transformation):
    """Put flat maps over the results of a reduction behind it, and have the target run them with its last kernel.

    before:  map n, c: (count, mean, m2)[c] welford= x[n, c];   map c: rstd[c] = rsqrt(m2[c] / N + eps)       three launches
    after:   the same, epilogue=1                                                                            two launches

    A GPU sums long columns in two kernels: many programs make parts, few merge them. The second has its results in registers, and the
    statistics of a batch norm, the update of a bias and the like are one element of work for each. Bytes stay the same: what others read
    is still written. Targets that merge parts in the same kernel (C++) run the maps one after the other, as before; so do kernels
    whose reduction is not split.
    """

    level = 2

    def __init__(self, joins: Callable[[Map, list[Map], Program], bool] | None = None) -> None:
        """joins: whether a target can run these maps with that reduction's last kernel (by default where the program allows it)."""
        self._joins = joins

    def matches(self, program: Program) -> Iterator[Match]:
        """Reductions with a map that reads their results."""
        if program.form is not Form.SCHEDULED:
            return
        for node in list(program.nodes):
            if isinstance(node, Map) and program.node_is_current(node):
                yield from _behind(program, node)

    def matches_from(self, program: Program, node: Node) -> Iterator[Match]:
        if program.form is not Form.SCHEDULED or not isinstance(node, Map):
            return
        yield from _behind(program, node)
        for c in sorted(program.reads_of(node)):
            for w in program.writers(c):
                if isinstance(w, Map) and c in _results(w):
                    yield from (m for m in _behind(program, w) if m.epilogue is node and m.mid == c)

    def check(self, m: Match) -> None:
        p, a, b = m.program, m.reduction, m.epilogue
        require(a.schedule.kind != "auto" and b.schedule.kind != "auto", "they are no scheduled kernels")
        require(b.schedule.get("batch") is None, "it is launched together with others already")
        require(b.schedule.get("epilogue") is None, "it runs with a reduction already")
        form = flat_form(b, p.containers)
        require(form is not None, "it is not elementwise over memory without gaps")
        assert form is not None
        require(prove_eq(form.elements, p.containers[m.mid].size), f"it does not run over the elements of {m.mid} alone")
        made = [a, *(n for n in p.nodes[p.position(a) + 1 : p.position(b)] if launched_together(a, n, "epilogue"))]
        alone = p.roots(form.single).isdisjoint(frozenset().union(*(p.roots(p.writes_of(n)) for n in made)))
        require(alone, "all of it needs one element of a result, which may not be there yet")
        reads, writes = p.roots(p.reads_of(b)), p.roots(p.writes_of(b))
        for n in p.nodes[p.position(a) + 1 : p.position(b)]:
            if not launched_together(a, n, "epilogue"):
                before, after = p.roots(p.reads_of(n)), p.roots(p.writes_of(n))
                free = writes.isdisjoint(before | after) and reads.isdisjoint(after)
                require(free and not n.defines, f"{n.label} has to run between them")
        if self._joins is not None:
            joined = [n for n in p.nodes[p.position(a) + 1 : p.position(b)] if isinstance(n, Map) and launched_together(a, n, "epilogue")]
            require(self._joins(a, [*joined, b], p), "no kernel that merges parts of the reduction runs over these elements as they lie")

    def apply(self, m: Match, edit: Edit) -> None:
        p, a, b = m.program, m.reduction, m.epilogue
        number = a.schedule.get("epilogue")
        if number is None:
            number = fresh_mark(p, "epilogue")
            made = a.with_(schedule=a.schedule.with_options(epilogue=number))
            edit.replace(a, made)
            a = made
        last = p.position(a)
        while last + 1 < len(p.nodes) and launched_together(a, p.nodes[last + 1], "epilogue"):
            last += 1
        behind = p.nodes[last]
        edit.remove(b)
        edit.add(b.with_(schedule=b.schedule.with_options(epilogue=number)), after=behind)


def _behind(program: Program, node: Map) -> Iterator[Match]:
    for c in sorted(_results(node)):
        for reader in program.readers(c):
            if isinstance(reader, Map) and reader is not node and reader.phase == node.phase:
                yield Match(program, {"reduction": node, "mid": c, "epilogue": reader})


def _results(node: Map) -> set[str]:
    """What a map sums up over some of its parameters, not by places that are data."""
    return {x.memlet.container for x in node.accesses() if x.is_write and not x.is_local and x.memlet.combine is not None
            and x.memlet.scan is None and not x.memlet.is_indirect}  # fmt: skip
