"""The search space: what can be changed about the plan by which a program is lowered.

A move changes choices in one respect, in every block that is built alike at once: what is found for one block is tried on all of them in
one measurement, which is what makes deep networks affordable.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace

from shorthaul.ir.edit import Rewrite
from shorthaul.ir.location import MODEL, kind_of_place, reference
from shorthaul.ir.nodes import LibraryCall, Operator
from shorthaul.ir.program import Program
from shorthaul.ops.registry import REGISTRY, definition
from shorthaul.transforms import traffic
from shorthaul.transforms.base import hint_value
from shorthaul.transforms.catalog import catalog
from shorthaul.transforms.choices import FUSION, Choices
from shorthaul.transforms.recipe import Step


@dataclass(frozen=True)
class Move:
    """One change. weight: what it is about, in bytes of memory traffic (of a fusion that is given up: what it saves): moves of one kind are
    tried in the order of their weight, `ascending` or not. without, first, parameter: the change itself."""

    kind: str
    what: str
    weight: int
    without: frozenset[tuple[str, str]] = frozenset()
    first: tuple[Step, ...] = ()
    parameter: tuple[str, str, object] | None = None

    def on(self, choices: Choices) -> Choices:
        """The choices with the change made; the same where it is made already."""
        if self.parameter is not None:
            return choices.with_parameter(*self.parameter)
        places = {s.place for s in self.first}
        first = (*(s for s in choices.first if s.place not in places), *self.first)
        return replace(choices, first=first, without=choices.without | self.without)


def moves(operators: Program, lowered: Program, device: str = "cpu") -> list[Move]:
    """Every move from a program of operators and what the defaults make of it: the kinds in turns, of each kind those first that promise
    most, so that a short run has tried something of everything.

    device: "cpu" or "cuda"; expansions for the other are left out.
    """
    kinds = [value_moves(lowered), parameter_moves(), expansion_moves(operators, lowered, device)]
    return [m for turn in itertools.zip_longest(*kinds) for m in turn if m is not None]


def parameter_moves() -> list[Move]:
    """Parameters of transformations wherever the pipeline uses them."""
    return [Move("parameter", f"{name}.{parameter} = {value}", 0, parameter=(name, parameter, value))
            for name, t in catalog().items() if not t.at_places for parameter, values in t.tunable.items() for value in values]  # fmt: skip


def value_moves(lowered: Program) -> list[Move]:
    """Values that stay in memory instead of being fused away, and saved instead of recomputed: those first that cost the fewest bytes."""
    groups: dict[tuple[str, str], list[Rewrite]] = {}
    for r in lowered.log:
        t = catalog().get(r.name)
        if t is None or r.notes.get("mid") is None or r.notes.get("place") is None:
            continue
        owner = FUSION if t.level == 2 else r.name
        groups.setdefault((owner, alike(" → ".join(v for v in r.notes["place"].values() if ": " in v))), []).append(r)
    found = []
    for (owner, what), rewrites in groups.items():
        saved = sum(hint_value(lowered, r.notes.get("saves") or 0) for r in rewrites)
        kind, verb = ("fusion", "not fused") if owner == FUSION else ("recompute", f"without {owner}")
        values = frozenset((owner, str(r.notes["mid"])) for r in rewrites)
        found.append(Move(kind, f"{verb}: {what}{_times(len(rewrites))}", abs(saved), without=values))
    return sorted(found, key=lambda m: (m.kind != "recompute", m.weight))


def expansion_moves(operators: Program, lowered: Program, device: str) -> list[Move]:
    """Other ways to lower an operator (a library call or maps): those first that move most bytes for their arithmetic."""
    chosen = {reference_key(o): "library" for n in lowered.nodes if isinstance(n, LibraryCall) for o in [n]}
    groups: dict[tuple[str, str], list[Operator]] = {}
    for n in operators.nodes:
        if not isinstance(n, Operator) or n.op not in REGISTRY or n.phase != "forward":
            continue
        rules = definition(n).expansions()
        for name, rule in rules.items():
            if len(rules) == 1 or (rule.device or device) != device or name == n.expansion:
                continue
            if name == chosen.get(reference_key(n), "maps") or (rule.condition is not None and not rule.condition(n, operators.containers)):
                continue
            groups.setdefault((name, alike(kind_of_place(n))), []).append(n)
    found = []
    for (name, what), nodes in groups.items():
        to = () if name == "maps" else (("to", name),)
        steps = tuple(Step("ExpansionChoice", (("node", reference(operators, n)),), to) for n in nodes)
        weight = sum(hint_value(operators, traffic.all_moved(operators, n)) for n in nodes)
        found.append(Move("expansion", f"{what} by {name}{_times(len(nodes))}", weight, first=steps))
    return sorted(found, key=lambda m: m.weight)


def reference_key(n: Operator | LibraryCall) -> tuple[str, str]:
    """What an operator and the library call that it became have in common."""
    return (n.origin.module, n.origin.operator)


def alike(place: str) -> str:
    """A place with the numbers in its module paths replaced by letters in the order of their appearance: equal for equal blocks."""
    letters: dict[str, str] = {}

    def letter(m: re.Match[str]) -> str:
        return letters.setdefault(m.group(), "ijklmnop"[len(letters) % 8])

    parts = []
    for part in place.split(" → "):
        module, colon, label = part.partition(": ")
        named = module if module == MODEL else re.sub(r"(?<![^.])\d+(?![^.])", letter, module)
        parts.append(named + colon + re.sub(r" #\d+$", "", label))
    return " → ".join(parts)


def _times(n: int) -> str:
    return f" ({n} places)" if n > 1 else ""
