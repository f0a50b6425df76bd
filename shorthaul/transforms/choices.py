"""Choices: where a lowering differs from the default one. What the tuner varies, and what the pipeline takes besides its options."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shorthaul.ir.program import Program

from .base import Transformation
from .catalog import make
from .recipe import Step

FUSION = "fusion"


@dataclass(frozen=True)
class Choices:
    """first: steps that are taken before everything else (which expansion lowers an operator). without: values that a transformation
    leaves as they are, as (transformation, container); FUSION stands for every transformation of level 2: such a value stays in memory.
    parameters: of transformations wherever the pipeline uses them, as (transformation, name, value).
    last: steps that are taken when the program is scheduled (a kernel's tiles). inside: a module; nothing
    is done where a node of another one takes part, so that what is done there is a recipe for every block that is built alike."""

    first: tuple[Step, ...] = ()
    without: frozenset[tuple[str, str]] = frozenset()
    parameters: tuple[tuple[str, str, Any], ...] = ()
    last: tuple[Step, ...] = ()
    inside: str = ""

    def adjust(self, transformations: Iterable[Transformation]) -> list[Transformation]:
        """The transformations with the parameters and the places left out that were chosen."""
        return [self._adjusted(t) for t in transformations]

    def _adjusted(self, t: Transformation) -> Transformation:
        given = {name: value for owner, name, value in self.parameters if owner == t.name}
        values = frozenset(c for owner, c in self.without if owner == t.name or (owner == FUSION and t.level == 2))
        if given:
            t = make(type(t), **{**t.parameters, **given})
        t = t.leave_out(values) if values else t
        return t.keep_inside(self.inside) if self.inside else t

    def take(self, program: Program, steps: Sequence[Step]) -> None:
        """Apply steps by their places. Raises Refusal where one does not apply."""
        for s in steps:
            t = make(s.name, **dict(s.parameters))
            t.run(t.match_at(program, dict(s.place or ())))

    def with_parameter(self, owner: str, name: str, value: Any) -> Choices:
        """The same with one parameter set."""
        kept = [p for p in self.parameters if p[:2] != (owner, name)]
        return replace(self, parameters=tuple(sorted([*kept, (owner, name, value)], key=lambda p: p[:2])))

    @property
    def key(self) -> str:
        """Text that is equal for equal choices: a key of the tuning database."""
        value = {"first": [str(s) for s in self.first], "without": sorted(self.without), "parameters": [list(p) for p in self.parameters],
                 "last": [str(s) for s in self.last], "inside": self.inside}  # fmt: skip
        return json.dumps(value, sort_keys=True, default=repr)


DEFAULT = Choices()
