"""The base of all transformations: pattern, check with reasons, claimed saving, apply, log.

A transformation finds places (`matches`), says for each whether it applies (`check` raises `Refusal` with the reason), what it saves in
bytes (`saves`, derived without applying it) and rewrites the program inside an edit (`apply`). Refusals are results: they answer "why was
this not fused".
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Union

from shorthaul.ir.containers import Container
from shorthaul.ir.edit import Edit, EditError, fusing_order
from shorthaul.ir.location import common_prefix, container_reference, find, module_of, reference
from shorthaul.ir.nodes import Map, Node, Operator
from shorthaul.ir.program import Form, Program
from shorthaul.symbolic import Expr, evaluate

IntLike = Union[int, Expr]


class Refusal(Exception):
    """A transformation does not apply at a place; `str()` is the reason."""


def require(condition: bool | None, reason: str) -> None:
    """Raise Refusal unless the condition is proven (None, "don't know", counts as no)."""
    if not condition:
        raise Refusal(reason)


def require_no_cycle(program: Program, nodes: Sequence[Node]) -> None:
    """Raise Refusal if one of the nodes needs what another one makes by way of a third node: fused they would close a cycle."""
    try:
        fusing_order(program, nodes)
    except EditError as e:
        raise Refusal(str(e)) from None


@dataclass
class Match:
    """A place: the program and the nodes and containers that the pattern's names stand for, as attributes.

    derived: what `check` found out for `saves` and `apply`, such as the fused map; also attributes.
    """

    program: Program
    items: dict[str, Any]
    derived: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        for table in ("items", "derived"):
            found = self.__dict__.get(table, {})
            if name in found:
                return found[name]
        raise AttributeError(name)

    def container(self, name: str) -> Container:
        return self.program.containers[name]

    @property
    def nodes(self) -> list[Node]:
        return [v for v in self.items.values() if isinstance(v, Node)]

    def place(self) -> dict[str, str]:
        """The pattern's names with references that survive a rerun (see `ir.location`)."""
        nodes = {k: v for k, v in self.items.items() if isinstance(v, Node)}
        found = {k: reference(self.program, v) for k, v in nodes.items()}
        found |= {k: container_reference(v, nodes) for k, v in self.items.items() if isinstance(v, str) and v in self.program.containers}
        return found

    def describe(self) -> str:
        """Where it is, in the user's words: module paths and operators."""
        return " → ".join(describe(n) for n in self.nodes)


def describe(node: Node) -> str:
    """A node in the user's words."""
    origin = node.origin
    label = node.label.split(";")[0][:40]
    return f"{label} of {origin.module}" if origin.module else label


@dataclass
class Refused:
    """A place where a transformation did not apply, with the bytes it would have saved."""

    transformation: str
    where: str
    reason: str
    bytes: int


class Path:
    """A pattern: node, container, node, ... along the dataflow. Elements are `MapNode(name)`, `OperatorNode(name, op)`, `Data(name)`."""

    def __init__(self, *elements: Element) -> None:
        self.elements = elements

    def starts(self, program: Program) -> Iterator[Node]:
        first = self.elements[0]
        yield from (n for n in program.nodes if first.accepts(n))

    def match_from(self, program: Program, start: Node) -> Iterator[Match]:
        """All matches whose first node is `start`."""
        yield from self._extend(program, start, 1, {self.elements[0].name: start})

    def _extend(self, program: Program, node: Node, at: int, items: dict[str, Any]) -> Iterator[Match]:
        if at == len(self.elements):
            yield Match(program, dict(items))
            return
        data, following = self.elements[at], self.elements[at + 1]
        for c in sorted(program.writes_of(node)):
            for reader in program.readers(c):
                if following.accepts(reader) and reader.phase == node.phase:
                    yield from self._extend(program, reader, at + 2, {**items, data.name: c, following.name: reader})


@dataclass(frozen=True)
class Element:
    """One element of a Path."""

    name: str
    test: Callable[[Any], bool] | None = None

    def accepts(self, node: Any) -> bool:
        return self.test is None or self.test(node)


def MapNode(name: str) -> Element:
    """Any map."""
    return Element(name, lambda n: isinstance(n, Map))


def OperatorNode(name: str, *ops: str) -> Element:
    """An operator, of the given names if there are any."""
    return Element(name, lambda n: isinstance(n, Operator) and (not ops or n.op in ops))


def Data(name: str) -> Element:
    """The container between two nodes."""
    return Element(name)


class Transformation:
    """Base class. Subclasses set `level` and `pattern` (or override `matches`) and give check, saves and apply."""

    level: ClassVar[int] = 0
    pattern: ClassVar[Path | None] = None
    allowed: ClassVar[Mapping[str, Collection[Any]]] = {}  # values that a parameter may have, where its type does not say it
    # values of parameters that the tuner tries: wherever the pipeline uses the transformation, or, with `at_places`, kernel by kernel
    tunable: ClassVar[Mapping[str, Collection[Any]]] = {}
    at_places: ClassVar[bool] = False
    _left_out: frozenset[str] = frozenset()
    _inside: str = ""

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters as they are logged and saved in recipes."""
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}

    @property
    def rounding(self) -> float:
        """By how much it changes a value at most, relative to it, where it rounds what was not rounded before; 0 for nearly all."""
        return 0.0

    def matches(self, program: Program) -> Iterator[Match]:
        """All places where the pattern occurs, in program order."""
        assert self.pattern is not None, f"{self.name} has neither a pattern nor matches()"
        for start in list(self.pattern.starts(program)):
            if program.node_is_current(start):
                yield from self.pattern.match_from(program, start)

    def matches_from(self, program: Program, node: Node) -> Iterator[Match]:
        """The places that a node is part of. Override where they can be found without visiting the whole program."""
        yield from (m for m in self.matches(program) if node in m.nodes)

    def match_at(self, program: Program, place: Mapping[str, str]) -> Match:
        """The match whose `place()` this is. Raises Refusal that says what is not there."""
        node = None
        for role, text in place.items():
            if not text.startswith("=") and ": " in text:
                named = find(program, text)
                require(named is not None, f"there is no {text!r} ({role})")
                node = node or named
        found = self.matches(program) if node is None else self.matches_from(program, node)
        match = next((m for m in found if m.place() == place), None)
        require(match is not None, f"{self.name} does not occur at {', '.join(place.values()) or 'this program'}")
        assert match is not None
        return match

    def check(self, m: Match) -> None:
        """Raise Refusal with the reason if the transformation does not apply here."""

    def saves(self, m: Match) -> IntLike:
        """Bytes of global memory traffic that applying it here saves, as an expression of the program's sizes."""
        return 0

    def apply(self, m: Match, edit: Edit) -> None:
        """Rewrite the program."""
        raise NotImplementedError

    # driving ----------------------------------------------------------------------------------------------------------
    def try_apply(self, m: Match, refused: list[Refused] | None = None) -> bool:
        """Check and apply at one place; a refusal is noted with the bytes at stake and gives False."""
        try:
            self.run(m)
        except (Refusal, EditError) as e:
            if refused is not None:
                refused.append(Refused(self.name, m.describe(), str(e), hint_value(m.program, self.at_stake(m))))
            return False
        return True

    def leave_out(self, containers: frozenset[str]) -> Transformation:
        """The same transformation, which refuses where one of these containers is what its pattern calls `mid`."""
        other = copy.copy(self)
        other._left_out = containers
        return other

    def keep_inside(self, module: str) -> Transformation:
        """The same transformation, which refuses where one of its nodes is of another module."""
        other = copy.copy(self)
        other._inside = module
        return other

    def run(self, m: Match) -> None:
        """Check and apply at one place, as one rewrite of the log. Raises Refusal or EditError with the reason and changes nothing then."""
        mid = m.items.get("mid")
        require(mid not in self._left_out, f"{mid} is left as it is by choice")
        if self._inside:
            where = common_prefix(module_of(reference) for reference in m.place().values() if ": " in reference)
            require(not m.nodes or (where + ".").startswith(self._inside + "."), f"it is not inside {self._inside}")
        self.check(m)
        with m.program.edit(self.name, self.parameters, where=m.describe(), place=m.place(), level=self.level) as edit:
            edit.rewrite.notes["saves"] = self.saves(m)
            edit.rewrite.notes["mid"] = mid
            if self.rounding:
                edit.rewrite.notes["rounding"] = self.rounding
            self.apply(m, edit)
            if m.program.form is Form.SCHEDULED:  # what it made is a kernel there
                edit.schedule()

    def at_stake(self, m: Match) -> IntLike:
        """Bytes in question at a place where it does not apply (for ranking refusals)."""
        mid = m.items.get("mid")
        return m.program.containers[mid].bytes * 2 if mid in m.program.containers else 0


@dataclass
class Result:
    """What a pass did: number of applications and the places it refused."""

    applied: int = 0
    refused: list[Refused] = field(default_factory=list)


def hint_value(program: Program, e: IntLike) -> int:
    """A number for a symbolic size: evaluated at the program's size hints (64 where none is known)."""
    if isinstance(e, int):
        return e
    hints = program.attributes.get("size_hints", {})
    from shorthaul.symbolic import free_symbols

    return int(evaluate(e, {s: hints.get(s.name, 64) for s in free_symbols(e)}))


def apply_everywhere(program: Program, transformations: Iterable[Transformation]) -> Result:
    """Apply each transformation at every place until none applies any more."""
    result = Result()
    for t in transformations:
        changed = True
        while changed:
            changed = False
            for m in list(t.matches(program)):
                if all(program.node_is_current(n) for n in m.nodes) and t.try_apply(m, result.refused):
                    result.applied += 1
                    changed = True
    return result
