"""EarlyUpdate: an update runs as soon as its gradient is complete, so that the gradient's memory is free again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

from shorthaul.ir.edit import Edit
from shorthaul.ir.nodes import LibraryCall, Map, Node
from shorthaul.ir.program import Form, Program
from shorthaul.symbolic import Expr

from ..base import Match, Transformation, hint_value, require

IntLike = Union[int, Expr]


class EarlyUpdate(Transformation):
    """Move the node that writes new values of parameters and state behind the last node that it has to wait for.

    before:  g = ...(x);  h = ...(w, g);  k = ...(h);  w' = w - lr * g        (g lives until the end)
    after:   g = ...(x);  h = ...(w, g);  w' = w - lr * g;  k = ...(h)        (g is free here)

    It waits for what writes its operands, and for all readers of the values that it replaces, so that it may write in their place. Numbers
    that it computes with and that come from the caller's numbers alone (a learning rate as float32) are computed first of all. Bytes
    moved stay the same: fewer gradients exist at once, and the one that was just made is still in the cache. Only in programs of a whole
    step, when memory is decided (after `UpdateInPlace`), and only where it frees more than the new values take.
    """

    level = 4

    def matches(self, program: Program) -> Iterator[Match]:
        """Nodes that write nothing but new values which nobody reads."""
        if not program.attributes.get("whole_step") or program.form < Form.SCHEDULED:
            return
        new = {u for _, u in program.signature.updates}
        for node in list(program.nodes):
            written = program.writes_of(node)
            if written and written <= new and program.node_is_current(node):
                yield Match(program, {"node": node})

    def check(self, m: Match) -> None:
        p, node = m.program, m.node
        require(isinstance(node, (Map, LibraryCall)) and not node.defines, "it is no kernel")
        written = p.writes_of(node)
        for c in sorted(written):
            require(not p.readers(c) and c not in p.signature.outputs, f"{c} is read again")
            require(len(p.writers(c)) == 1, f"other nodes write parts of {c}")
        after, numbers = self._after(p, node)
        first = 0 if after is None else p.position(after) + 1
        new = {u for _, u in p.signature.updates}
        between = [n for n in p.nodes[first : p.position(node)] if not p.writes_of(n) <= new]
        require(bool(between), "it follows what it waits for already")
        freed, held = _freed(p, node), sum(hint_value(p, p.containers[c].bytes) for c in written if p.containers[c].alias is None)
        require(freed > held, f"it frees {freed} bytes, and its new values would take {held} earlier")
        m.derived.update(after=after, numbers=numbers)

    def _after(self, p: Program, node: Node) -> tuple[Node | None, list[Node]]:
        """The last node that must run before, and those that compute numbers for it, which may run first of all."""
        at = p.position(node)
        needed: list[Node] = []
        numbers: list[Node] = []
        for c in p.reads_of(node):
            for name in _family(p, c):
                for w in p.writers(name):
                    if w is not node and p.position(w) < at:
                        (numbers if _is_number(p, w) else needed).append(w)
        for old, new in p.signature.updates:
            if new in p.writes_of(node):
                for name in _family(p, old):
                    needed += [r for r in p.readers(name) if r is not node and p.position(r) < at]
        return max(needed, key=p.position, default=None), sorted(numbers, key=p.position)

    def saves(self, m: Match) -> IntLike:
        """No traffic: memory."""
        return 0

    def apply(self, m: Match, edit: Edit) -> None:
        p = m.program
        for n in reversed(m.numbers):
            if p.nodes[0] is not n:
                edit.remove(n)
                edit.add(n, before=p.nodes[0])
        edit.remove(m.node)
        after = m.after if m.after is not None else m.numbers[-1] if m.numbers else None
        if after is None:
            edit.add(m.node, before=p.nodes[0])
        else:
            edit.add(m.node, after=after)


def _is_number(p: Program, node: Node) -> bool:
    """Whether a node computes numbers from the caller's numbers alone."""
    changed = {old for old, _ in p.signature.updates}
    operands = [p.containers[c] for c in p.reads_of(node)]
    small = all(p.containers[c].size == 1 and p.containers[c].alias is None for c in p.writes_of(node))
    return isinstance(node, Map) and small and all(c.is_external and c.size == 1 and c.name not in changed for c in operands)


def _root(p: Program, name: str) -> str:
    while (alias := p.containers[name].alias) is not None:
        name = alias.base
    return name


def _family(p: Program, name: str) -> set[str]:
    """All containers in the memory of this one."""
    root = _root(p, name)
    return {root, *p.aliases(root)}


def _freed(p: Program, node: Node) -> int:
    """Bytes of memory that nothing after the node uses any more."""
    at, total = p.position(node), 0
    for root in {_root(p, c) for c in p.reads_of(node)}:
        family = _family(p, root)
        users = [u for c in family for u in (*p.readers(c), *p.writers(c))]
        kept = p.containers[root].is_external or not family.isdisjoint(p.results)
        if not kept and all(p.position(u) <= at for u in users):
            total += hint_value(p, p.containers[root].bytes)
    return total
