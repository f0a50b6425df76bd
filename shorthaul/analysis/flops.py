"""Arithmetic: how many scalar operations a node performs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Union

from shorthaul.ir.containers import Container
from shorthaul.ir.nodes import LibraryCall, Map, Node, Operator, Tasklet
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import walk
from shorthaul.ir.scalar_ops import COMBINERS, SCALAR_OPS
from shorthaul.symbolic import Expr, product

IntLike = Union[int, Expr]
_FREE = ("read", "const", "index", "cast")


def tasklet_flops(t: Tasklet, weighted: bool = False) -> int:
    """Operations of one execution: each distinct one once, and one merge per combining write. `weighted`: by their cost in adds."""
    total = sum(SCALAR_OPS[n.op].cost if weighted else 1 for n in walk(*t.code.values()) if n.op not in _FREE)
    seen: set[str] = set()
    for w in t.writes.values():
        if w.combine is not None and (w.combine not in seen or len(COMBINERS[w.combine].components) == 1):
            seen.add(w.combine)
            total += len(COMBINERS[w.combine].components)
    return total


def map_flops(m: Map, weighted: bool = False) -> IntLike:
    """Operations of a whole map; iterations outside a guard count too. A matrix product is 2*M*N*K."""
    total: IntLike = 0
    for params, t in m.tasklets():
        total = total + product(p.size for p in params) * tasklet_flops(t, weighted)
    return total


def is_contraction(m: Map) -> bool:
    """Flat, summing products of reads that do not share all parameters."""
    t = m.tasklet
    if t is None or [w.combine for w in t.writes.values()] != ["sum"]:
        return False
    (write,) = t.writes.values()
    reduced = set(m.params) - set(write.symbols)
    reads = [set(r.symbols) & set(m.params) for r in t.reads.values()]
    return bool(reduced) and len([r for r in reads if r & reduced and r != set(m.params)]) >= 2


def node_flops(node: Node, containers: Mapping[str, Container]) -> IntLike | None:
    """Operations of a top-level node; None where they are not known (library calls other than products, loops)."""
    if isinstance(node, Map):
        return map_flops(node)
    if isinstance(node, (Operator, LibraryCall)):
        equation = node.attributes.get("equation")
        if isinstance(equation, str) and {"a", "b"} <= set(node.reads):
            return _equation_flops(equation, containers[node.reads["a"].container], containers[node.reads["b"].container])
        shapes = {k: containers[m.container].shape for k, m in {**node.reads, **node.writes}.items()}
        if {"x", "weight", "y"} <= set(shapes) and len(shapes["weight"]) == len(shapes["x"]) >= 3:  # convolution
            return product(shapes["y"]) * product(shapes["weight"][1:]) * 2
    return None


def _equation_flops(equation: str, a: Container, b: Container) -> IntLike:
    operands, _, _ = equation.partition("->")
    left, _, right = operands.partition(",")
    sizes: dict[str, IntLike] = {}
    for letters, c in ((left, a), (right, b)):
        for letter, n in zip(letters, c.shape, strict=True):
            if letter != "1":
                sizes[letter] = n
    return product(sizes.values()) * 2


def flops(program: Program) -> dict[int, IntLike | None]:
    """Operations of each top-level node by id; None where they are not known."""
    return {n.id: node_flops(n, program.containers) for n in program.nodes}
