"""MaskFromResult: the gradient of a ReLU takes its mask from the result, which is saved anyway, and not from the operand."""

from __future__ import annotations

from collections.abc import Iterator

from shorthaul.ir.edit import Edit
from shorthaul.ir.nodes import Map, Node, Tasklet
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import Scalar, walk
from shorthaul.symbolic import Expr

from .. import traffic
from ..base import Match, Transformation, require

IntLike = int | Expr


class MaskFromResult(Transformation):
    """Ask the result of a ReLU where its operand was positive.

    before:  y = relu(x) (saved for the next layer's weights);  gx = where(x <= 0, 0, gy)        (x saved)
    after:   y = relu(x);                                       gx = where(y <= 0, 0, gy)        (x is not needed any more)

    Exact, NaN included: y <= 0 holds where x <= 0 does. Only where the operand is saved for nothing else, and the result lies in memory
    anyway. Where the operand is cheaper to compute again from what the kernel reads (behind a batch norm), `Recompute` did so before.
    """

    level = 4

    def matches(self, program: Program) -> Iterator[Match]:
        for node in list(program.nodes):
            if isinstance(node, Map) and node.phase == "forward" and node.tasklet is not None and program.node_is_current(node):
                for k, code in node.tasklet.code.items():
                    x = _operand(code)
                    if x is not None:
                        yield Match(program, {"relu": node, "mid": node.tasklet.reads[x].container}, {"write": k, "operand": x})

    def check(self, m: Match) -> None:
        p, t = m.program, m.relu.tasklet
        read, write = t.reads[m.operand], t.writes[m.write]
        x, y = p.containers[m.mid], p.containers[write.container]
        whole = read.subset == write.subset and not read.guard and not write.guard and write.combine is None and m.relu.is_elementwise
        require(whole and x.shape == y.shape and x.dtype is y.dtype, "the result is not the operand's, element by element")
        require(len(p.writers(y.name)) == 1, "several nodes write the result")
        require(not x.is_external and m.mid not in p.results, "the operand is the caller's")
        masks = [r for r in p.readers(m.mid) if r.phase == "backward"]
        require(bool(masks), "the backward phase does not read the operand")
        for r in masks:
            require(isinstance(r, Map), f"{r.label} reads the operand itself")
            assert isinstance(r, Map)
            for mine in _tasklets(r):
                names = {k for k, a in mine.reads.items() if a.container == m.mid}
                require(not names or _only_signs(mine, names), f"{r.label} uses the operand itself")
        others = [r for r in p.readers(y.name) if r.phase == "backward" or not isinstance(r, Map)]
        require(bool(others) or y.name in p.results, "the result is not kept in memory")
        m.derived["masks"], m.derived["result"] = masks, y.name

    def saves(self, m: Match) -> IntLike:
        """One read in kernels that read the result, too. What is not stored any more shows when the operand's computation is fused."""
        p = m.program
        total: IntLike = 0
        for r in m.masks:
            if m.result in p.reads_of(r):
                total = total + traffic.moved(p, r, m.mid, "read") + traffic.moved(p, r, m.result, "read")
                total = total - traffic.together(p, m.result, [a for a in _renamed(r, m).accesses() if a.memlet.container == m.result])
        return total

    def apply(self, m: Match, edit: Edit) -> None:
        for r in m.masks:
            edit.replace(r, _renamed(r, m))


def _operand(code: Scalar) -> str | None:
    """The connector of which the code is the ReLU: where(x <= 0, 0, x), in a wider type or not."""
    code = _plain(code)
    if code.op != "where" or not _is_zero(code.args[1]):
        return None
    condition, value = code.args[0], _plain(code.args[2])
    if condition.op != "le" or not _is_zero(condition.args[1]) or value.op != "read" or _plain(condition.args[0]) is not value:
        return None
    return str(value.attr)


def _plain(code: Scalar) -> Scalar:
    """Without casts between floating types, which keep the sign of what was read."""
    while code.op == "cast" and code.dtype.is_float and code.args[0].dtype.is_float:
        code = code.args[0]
    return code


def _is_zero(code: Scalar) -> bool:
    return code.op == "const" and code.attr == 0


def _tasklets(node: Map) -> Iterator[Tasklet]:
    for n in node.body:
        if isinstance(n, Map):
            yield from _tasklets(n)
        elif isinstance(n, Tasklet):
            yield n


def _only_signs(t: Tasklet, names: set[str]) -> bool:
    """Whether the tasklet does nothing with these reads but compare them with zero, or widen them for that."""

    def is_read(n: Scalar) -> bool:
        return _plain(n).op == "read" and _plain(n).attr in names

    for n in walk(*t.code.values()):
        for at, a in enumerate(n.args):
            if is_read(a):
                widens = n.op == "cast" and n.dtype.is_float and n.dtype.bits >= a.dtype.bits
                compares = n.op in ("le", "gt") and at == 0 and _is_zero(n.args[1])
                if not (widens or compares):
                    return False
    return not any(is_read(c) for c in t.code.values())


def _renamed(node: Map, m: Match) -> Map:
    """The map with the result in the operand's place."""
    body: list[Node] = []
    for n in node.body:
        if isinstance(n, Map):
            body.append(_renamed(n, m))
        elif isinstance(n, Tasklet):
            reads = {k: a.with_(container=m.result) if a.container == m.mid else a for k, a in n.reads.items()}
            body.append(n.with_(reads=reads))
        else:
            body.append(n)
    return node.with_(body=tuple(body))
