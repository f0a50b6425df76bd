"""Explanations: where a transformation applies and what it would save, where it does not and why.

An explanation is a list of places, each checked against the program as it is now, and prints as text that names layers and source lines.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches

from shorthaul.analysis.movement import human
from shorthaul.ir.edit import EditError, Rewrite
from shorthaul.ir.location import find, reference
from shorthaul.ir.nodes import LibraryCall, Map, Node, Operator
from shorthaul.ir.program import Program

from . import traffic
from .base import Match, Refusal, Transformation, hint_value
from .catalog import catalog

SHOWN = 10


@dataclass
class Place:
    """One place of one transformation.

    saves: bytes of memory traffic that applying it saves, at the program's size hints (negative where it pays only by what it makes
    possible); None where it does not apply. at_stake: the bytes in question. reason: why it does not apply, empty where it does. where:
    references that name the place, in recipes and for `program.apply`.
    """

    transformation: Transformation
    match: Match
    where: dict[str, str]
    saves: int | None
    at_stake: int
    reason: str = ""

    @property
    def applies(self) -> bool:
        return not self.reason

    def __str__(self) -> str:
        text = " → ".join(v for v in self.where.values() if ": " in v) or "the whole program"
        line = next((o.source for n in self.match.nodes for o in n.origins if o.source), "")
        number = human(self.saves if self.saves is not None else self.at_stake)
        changes = "  changes numbers" if self.applies and self.transformation.rounding else ""
        return f"{number:>10}  {text}" + (f"  ({line})" if line else "") + changes + (f"\n{'':12}{self.reason}" if self.reason else "")


def place_of(t: Transformation, m: Match) -> Place:
    """Check a transformation at a match."""
    try:
        t.check(m)
        saves = hint_value(m.program, t.saves(m))
    except (Refusal, EditError) as e:
        return Place(t, m, m.place(), None, hint_value(m.program, t.at_stake(m)), str(e) or "it refuses without a reason")
    return Place(t, m, m.place(), saves, abs(saves))


def places(program: Program, t: Transformation, node: Node | None = None) -> list[Place]:
    """Every place of a transformation (around one node): first those where it applies, most bytes first."""
    found = t.matches(program) if node is None else t.matches_from(program, node)
    return sorted((place_of(t, m) for m in list(found)), key=lambda p: (not p.applies, -(p.saves or 0), -p.at_stake))


@dataclass
class Explanation:
    """Places under a heading. `applies` and `refused` list them; `str()` is the text."""

    title: str
    notes: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    applied: list[Rewrite] = field(default_factory=list)
    shown: int = SHOWN
    named: bool = False  # whether each place names its transformation

    @property
    def applies(self) -> list[Place]:
        return [p for p in self.places if p.applies]

    @property
    def refused(self) -> list[Place]:
        return [p for p in self.places if not p.applies]

    def __str__(self) -> str:
        lines = [self.title, *(f"  {n}" for n in self.notes)]
        if self.applied:
            saved = sum(r.notes["saves"] for r in self.applied if isinstance(r.notes.get("saves"), int))
            lines.append(f"applied {_times(len(self.applied))}, saving {human(saved)}:")
            for r in self.applied[: self.shown]:
                lines.append(f"  {r.name + ' at ' if self.named else ''}{r.notes.get('where') or 'the whole program'}")
            lines += _more(len(self.applied), self.shown)
        for head, bytes, group in (("applies now", "saves", self.applies), ("does not apply", "at stake", self.refused)):
            if group:
                lines.append(f"{head} at {len(group)} place{'s' if len(group) > 1 else ''} ({bytes}):")
                lines += [f"{p.transformation.name + ':' if self.named else ''}{p}" for p in group[: self.shown]]
                lines += _more(len(group), self.shown)
        if not self.places and not self.applied:
            lines.append("it occurs nowhere in this program")
        return "\n".join(lines)


def explain_transformation(program: Program, t: Transformation) -> Explanation:
    """Where a transformation was applied, where it applies now, and where not and why."""
    summary = (type(t).__doc__ or "").strip().split("\n")[0]
    applied = [r for r in program.log if r.name == t.name and r.notes.get("place") is not None]
    notes = [f"changes numbers: values are rounded by at most {t.rounding:.1e} of themselves"] if t.rounding else []
    return Explanation(f"{t.name} (level {t.level}): {summary}", notes, places(program, t), applied)


def explain_node(program: Program, node: Node) -> Explanation:
    """What a node computes, moves and comes from, and what can be done with it."""
    kind = {Map: "kernel", LibraryCall: "library call", Operator: "operator"}.get(type(node), node.kind)
    notes = [f"{kind}, moves {human(hint_value(program, traffic.all_moved(program, node)))}"]
    for side, names in (("reads", program.reads_of(node)), ("writes", program.writes_of(node))):
        notes += [f"{side} {program.containers[c]}" for c in sorted(names)]
    notes += [f"from {o}" for o in node.origins[:SHOWN]]
    found = [p for t in _all() for p in places(program, t, node)]
    return Explanation(reference(program, node), notes, _by_bytes(found), _history_of(program, node), named=True)


def explain_pair(program: Program, first: Node, second: Node) -> Explanation:
    """Whether two nodes can become one, and if not, why: every transformation that sees both."""
    found = [p for t in _all() for p in places(program, t, first) if any(n is second for n in p.match.nodes)]
    shared = (program.writes_of(first) | program.reads_of(first)) & (program.writes_of(second) | program.reads_of(second))
    notes = [f"share {program.containers[c]}" for c in sorted(shared)]
    if not shared:
        notes.append("they share no data, so nothing can be saved by joining them")
    elif first.phase != second.phase:
        notes.append("one runs in the forward phase and one in the backward phase: only Recompute moves work between them")
    return Explanation(f"{reference(program, first)} and {reference(program, second)}", notes, _by_bytes(found), named=True)


def _all() -> Iterable[Transformation]:
    """Those that can say by themselves whether they apply: what only sets parameters of one kernel needs to be given some."""
    return (t() for t in catalog().values() if not t.at_places)


def _by_bytes(found: list[Place]) -> list[Place]:
    return sorted(found, key=lambda p: (not p.applies, -(p.saves or 0), -p.at_stake))


def _history_of(program: Program, node: Node) -> list[Rewrite]:
    """The rewrites, oldest first, that led to the node."""
    ids, found = {node.id}, []
    for r in reversed(program.log):
        if ids & r.created and r.notes.get("place") is not None:
            ids |= r.removed
            found.append(r)
    return found[::-1]


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _more(n: int, shown: int) -> list[str]:
    return [f"  ... and {n - shown} more"] if n > shown else []


def node_of(program: Program, what: object) -> Node:
    """A node from a node, its id, or its reference. Raises KeyError naming references that look alike."""
    if isinstance(what, Node):
        return program.node(what.id)
    if isinstance(what, int):
        return program.node(what)
    node = find(program, str(what))
    if node is None:
        known = [reference(program, n) for n in program.nodes]
        near = [k for k in known if str(what) in k][:4] or get_close_matches(str(what), known, n=4, cutoff=0.3)
        raise KeyError(f"no node of {program.name} is called {what!r}" + (f"; near it are {', '.join(map(repr, near))}" if near else ""))
    return node
