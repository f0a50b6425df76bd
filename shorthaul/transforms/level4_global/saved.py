"""What is saved for the backward phase: who writes it, who reads it later, and where another form of it can be stored beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from shorthaul.ir.containers import Container
from shorthaul.ir.nodes import Access, Map, Node, Tasklet
from shorthaul.ir.program import Form, Program
from shorthaul.symbolic import Symbol, prove_eq

from ..base import Match, hint_value, require


def family(p: Program, name: str) -> list[str]:
    """The container and all that lies in its memory."""
    return [name, *sorted(p.aliases(name))]


def later_readers(p: Program, names: list[str]) -> list[Node]:
    """Nodes of a later phase that read one of the containers, in program order."""
    found = {r.id: r for n in names for r in p.readers(n) if r.phase != "forward"}
    return sorted(found.values(), key=p.position)


def saved_values(p: Program) -> Iterator[Match]:
    """A place for every container with memory of its own that is written in the forward phase and read in a later one."""
    if p.form < Form.MAPS:
        return
    for node in list(p.nodes):
        if node.phase == "forward" and p.node_is_current(node):
            for c in sorted(p.writes_of(node)):
                if p.containers[c].alias is None and later_readers(p, family(p, c)):
                    yield Match(p, {"writer": node, "mid": c})


def require_own(p: Program, m: Match, least: int) -> None:
    """The value is the program's own, written by one node, and large enough. Raises Refusal with the reason."""
    c, names = p.containers[m.mid], family(p, m.mid)
    require(p.results.isdisjoint(names), "the caller gets it, and keeps it")
    require(all(w is m.writer for n in names for w in p.writers(n)), "several nodes write its memory")
    require(all(p.containers[n].dtype is c.dtype for n in names), "its memory is read as another type, too")
    require(hint_value(p, c.bytes) >= least, f"it has only {hint_value(p, c.bytes)} bytes")


def visits_once(a: Access, c: Container) -> bool:
    """Whether an access goes through all elements of a container, each once."""
    seen = set()
    if a.memlet.guard or a.memlet.combine is not None:
        return False
    for s, n in zip(a.memlet.subset, c.shape, strict=True):
        if isinstance(s, Symbol):
            if s in seen or s not in a.params or s.lower != 0 or prove_eq(s.size, n) is not True:
                return False
            seen.add(s)
        elif not (isinstance(s, int) and s == 0 and prove_eq(n, 1) is True):
            return False
    return all(q in seen or prove_eq(q.size, 1) is True for q in a.params)


def over_tasklets(node: Map, change: Callable[[Tasklet], Tasklet]) -> Map:
    """The map with every tasklet below changed."""
    body: list[Node] = []
    for n in node.body:
        body.append(over_tasklets(n, change) if isinstance(n, Map) else change(n) if isinstance(n, Tasklet) else n)
    return node.with_(body=tuple(body))
