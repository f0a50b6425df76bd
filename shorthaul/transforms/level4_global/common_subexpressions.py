"""CommonSubexpressions: what is computed twice from the same containers is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

from shorthaul.ir.containers import Container
from shorthaul.ir.edit import Edit
from shorthaul.ir.fingerprint import node_structure
from shorthaul.ir.nodes import Loop, Map, Node, Operator
from shorthaul.ir.program import Program
from shorthaul.ir.rewrite import rename
from shorthaul.symbolic import Expr

from .. import traffic
from ..base import Match, Transformation, require

IntLike = Union[int, Expr]


class CommonSubexpressions(Transformation):
    """Remove a node that computes from the same containers what an earlier node of the same phase computes.

    before:  map i: t[i] = f(a[i]);  map j: u[j] = f(a[j]);  g(t, u)         after:  map i: t[i] = f(a[i]);  g(t, t)

    Maps and operators are equal if their structure is: names of parameters and connectors do not matter. Random operators are equal only
    with the same seed and stream. Phases stay apart: what the backward phase recomputes is meant to be.
    """

    level = 4

    def matches(self, program: Program) -> Iterator[Match]:
        """Pairs of equal nodes, each later one with the first."""
        first: dict[tuple[str, tuple[str, ...]], Node] = {}
        for node in list(program.nodes):
            key = structure(program, node)
            if key is not None:
                kept = first.setdefault(key, node)
                if kept is not node:
                    yield Match(program, {"first": kept, "second": node})

    def matches_from(self, program: Program, node: Node) -> Iterator[Match]:
        """Pairs of the node with a node that may be equal, in program order."""
        key = structure(program, node)
        for other in program.nodes if key is not None else ():
            if other is not node and _rough(program, other) == _rough(program, node) and structure(program, other) == key:
                first, second = sorted((node, other), key=program.position)
                yield Match(program, {"first": first, "second": second})

    def check(self, m: Match) -> None:
        p = m.program
        require(p.writes_of(m.second).isdisjoint(p.results), "the caller gets both results")
        pairs = _pairs(p, m.first, m.second)
        for kept, gone in pairs.items():
            require(len(p.writers(kept)) == 1 and len(p.writers(gone)) == 1, "other nodes write parts of the result")
            a, b = p.containers[kept], p.containers[gone]
            require(a.actual_strides == b.actual_strides, "the results have different layouts")
        m.derived["pairs"] = pairs

    def saves(self, m: Match) -> IntLike:
        """All that the second node moves, and one read where a node reads both results."""
        p = m.program
        total = traffic.all_moved(p, m.second)
        for kept, gone in m.pairs.items():
            for r in p.readers(gone):
                if r not in p.readers(kept) or isinstance(r, Loop):
                    continue  # a loop reads through its connectors, which stay two
                if isinstance(r, Map):
                    reads = traffic.reads_of_map(r)
                    a, b = reads.get(kept, []), reads.get(gone, [])
                    total = total + traffic.together(p, kept, a) + traffic.together(p, gone, b) - traffic.together(p, kept, [*a, *b])
                else:
                    total = total + p.containers[gone].bytes
        return total

    def apply(self, m: Match, edit: Edit) -> None:
        p = m.program
        names = {gone: kept for kept, gone in m.pairs.items()}
        edit.remove(m.second)
        for r in {r.id: r for gone in names for r in p.readers(gone)}.values():
            edit.replace(r, rename(r, names, fresh=False))
        edit.drop_unused(names)


def structure(program: Program, node: Node) -> tuple[str, tuple[str, ...]] | None:
    """Equal for nodes that compute the same from the same containers; None for a node whose results may differ from run to run."""
    if not isinstance(node, Map) and not (isinstance(node, Operator) and node.op != "custom_function" and not node.defines):
        return None
    text, names = node_structure(node, roleless(program, node))
    written = program.writes_of(node)
    return text, tuple("" if n in written else n for n in names)


def roleless(program: Program, node: Node) -> dict[str, Container]:
    """The node's containers, those of the program's own memory as transients: an output and a transient may hold the same value."""
    used = {c: program.containers[c] for c in program.reads_of(node) | program.writes_of(node)}
    return {n: c if c.is_external or c.role == "transient" else c.with_(role="transient") for n, c in used.items()}


def _pairs(p: Program, first: Node, second: Node) -> dict[str, str]:
    """Result of the first node -> the equal result of the second."""
    a, b = (node_structure(n, roleless(p, n))[1] for n in (first, second))
    written = p.writes_of(first)
    return {x: y for x, y in zip(a, b, strict=True) if x in written}


def _rough(program: Program, node: Node) -> tuple[object, ...]:
    """Equal for equal nodes, and cheap: most nodes are told apart by it."""
    if isinstance(node, Operator):
        return node.phase, node.op, program.reads_of(node)
    if isinstance(node, Map) and node.tasklet is not None:
        return node.phase, program.reads_of(node), tuple((c.op, c.dtype) for c in node.tasklet.code.values()), len(node.params), node.domain
    return node.phase, node.kind, program.reads_of(node)


def eliminate_common_subexpressions(program: Program) -> int:
    """Apply CommonSubexpressions in program order: results found equal make their readers equal. Returns how many nodes went."""
    t = CommonSubexpressions()
    alike: dict[tuple[object, ...], list[Node]] = {}
    gone = 0
    for id in [n.id for n in program.nodes]:
        for node in program.current([id]):
            group = alike.setdefault(_rough(program, node), [])
            key = structure(program, node) if group else None
            for first in group:
                if key is not None and program.node_is_current(first) and structure(program, first) == key:
                    gone += t.try_apply(Match(program, {"first": first, "second": node}))
                    break
            else:
                group.append(node)
    return gone
