"""Checkpoint: compute the values of the user's checkpoint regions again in the backward phase."""

from __future__ import annotations

from collections.abc import Iterator

from shorthaul.ir.edit import Edit
from shorthaul.ir.nodes import LibraryCall, Node
from shorthaul.ir.program import Program
from shorthaul.ir.rewrite import rename

from ..base import IntLike, Match, Transformation, require


class Checkpoint(Transformation):
    """Do in the backward phase again what `torch.utils.checkpoint` marked.

    before:  forward: h = f(x) (saved), y = g(h);  backward: dh = g'(h, dy), dx = f'(h, dh)
    after:   forward: h = f(x), y = g(h) (x is kept);  backward: h' = f(x);  dh = g'(h', dy), dx = f'(h', dh)

    A region's values are in `program.attributes["checkpoint"]` (container: region). Values that leave the region, or that a library call
    drew at random, are kept where the backward phase reads them. Our own random operators draw the same numbers again.
    It runs first, on the form OPERATORS, whatever the level: the user asked for it, so no bytes are weighed.
    """

    level = 4

    def matches(self, program: Program) -> Iterator[Match]:
        marked = program.attributes.get("checkpoint", {})
        for region in dict.fromkeys(marked.values()):
            nodes = [n for n in program.nodes if n.phase == "forward" and any(marked.get(c) == region for c in program.writes_of(n))]
            if nodes:
                yield Match(program, {"first": nodes[0], "region": region, "inside": nodes})

    def check(self, m: Match) -> None:
        require(bool(self._again(m)), "the backward phase reads nothing from inside the region")

    def saves(self, m: Match) -> IntLike:
        """Nothing: it saves memory, and moves the bytes of the values that are computed again."""
        return 0

    def _again(self, m: Match) -> list[Node]:
        """The nodes of the region to run again, in program order."""
        p: Program = m.program
        kept = self._kept(m)
        needed: set[str] = set()
        again: list[Node] = []
        for node in reversed(m.inside):
            written = p.writes_of(node) - kept
            wanted = any(c in needed or any(r.phase == "backward" for r in p.readers(c)) for c in written)
            if wanted and not _draws(node):
                needed |= p.reads_of(node)
                again.append(node)
        return again[::-1]

    def _kept(self, m: Match) -> set[str]:
        """Values of the region that the backward phase may read as they are: those that leave it."""
        p: Program = m.program
        inside = {n.id for n in m.inside}
        return {c for n in m.inside for c in p.writes_of(n)
                if c in p.results or any(r.phase == "forward" and r.id not in inside for r in p.readers(c))}  # fmt: skip

    def apply(self, m: Match, edit: Edit) -> None:
        p: Program = m.program
        again = self._again(m)
        kept = self._kept(m)
        twins: dict[str, str] = {}
        for node in again:
            for c in sorted(p.writes_of(node)):
                twins[c] = edit.add_container(p.containers[c].with_(name=p.fresh(f"{c}_again"), role="transient", strides=None)).name
        read = {c: t for c, t in twins.items() if c not in kept}
        readers = [n for n in p.nodes if n.phase == "backward" and not p.reads_of(n).isdisjoint(read)]
        copies = [
            rename(
                n,
                {**{c: read[c] for c in p.reads_of(n) if c in read}, **{c: twins[c] for c in p.writes_of(n)}},
                phase="backward",
            )
            for n in again
        ]
        edit.add(*copies, before=readers[0])
        for r in readers:
            edit.replace(r, rename(r, read, fresh=False))


def _draws(node: Node) -> bool:
    """Whether running the node again gives other numbers, or defines a size a second time."""
    return bool(node.defines) or (isinstance(node, LibraryCall) and bool(node.attributes.get("random")))
