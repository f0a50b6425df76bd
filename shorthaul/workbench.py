"""Working on a program by hand: what a `Program` can do beside holding data. `install` makes these its methods.

    program.optimize(level=2)                    lower it, in place; every rewrite is in the log
    program.explain("MapFusion")                 where it applies, where not and why; also a node, or two
    program.places("MapFusion")                  the same as objects, for `apply`
    program.apply("MapFusion", place)            one rewrite, checked; a program that it would break is left as it was
    program.history(), program.undo()            what was done, with bytes before and after; take it back
    program.recipe, program.replay(recipe)       what was done as a file, and doing it again here or elsewhere
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shorthaul import pipeline
from shorthaul.analysis.movement import human, movement, node_movement
from shorthaul.codegen.library.interpreting import library_for_interpreter
from shorthaul.config import Options
from shorthaul.ir.edit import EditError, Rewrite
from shorthaul.ir.interpreter import interpret
from shorthaul.ir.location import common_prefix, isomorphic_modules, module_of, moved
from shorthaul.ir.nodes import Node
from shorthaul.ir.program import Program
from shorthaul.ir.verify import VerifyError, verify
from shorthaul.symbolic import evaluate
from shorthaul.transforms.base import Match, Refusal, Transformation, hint_value
from shorthaul.transforms.catalog import Chosen, make
from shorthaul.transforms.explain import (
    Explanation,
    Place,
    explain_node,
    explain_pair,
    explain_transformation,
    node_of,
    place_of,
    places,
)
from shorthaul.transforms.recipe import Recipe, Replay


class TransformationError(RuntimeError):
    """A transformation broke the program or changed its numbers; the message names it and the place. The program is as it was."""


def optimize(program: Program, level: int = 4, *, check: bool = False, recipe: Recipe | str | os.PathLike[str] | None = None) -> Program:
    """Lower the program in place with the transformations up to `level` (or by a recipe alone); returns it.

    check: verify it after every stage. Raises RecipeError where the recipe does not fit.
    """
    pipeline.optimize(program, Options(level, recipe=None if recipe is None else str(_recipe(recipe))), check=check)
    return program


def explain(program: Program, *what: Any) -> Explanation | str:
    """Why is this (not) fused? `what`: a transformation (name, class or instance), a node (object, id or reference), or two nodes.

    Without an argument: every transformation that was applied or refused by `optimize`, as text.
    """
    if not what:
        return _summary(program)
    if len(what) == 2:
        first, second = (node_of(program, w) for w in what)
        return explain_pair(program, first, second)
    if len(what) > 2:
        raise TypeError(f"explain takes a transformation, a node, or two nodes, not {len(what)} things")
    (it,) = what
    if isinstance(it, Transformation) or (isinstance(it, type) and issubclass(it, Transformation)):
        return explain_transformation(program, make(it))
    if isinstance(it, str) and ": " not in it:
        return explain_transformation(program, make(it))
    return explain_node(program, node_of(program, it))


def _summary(program: Program) -> str:
    lines = [f"applied      {r.name} at {r.notes['where'] or 'the whole program'}" for r in program.log if "where" in r.notes]
    lines += [f"not applied  {f.transformation} at {f.where}: {f.reason}" for f in program.attributes.get("refusals", ())]
    return "\n".join(lines) or f"nothing was done to program {program.name} yet"


def places_(program: Program, chosen: Chosen, node: Any = None, **parameters: Any) -> list[Place]:
    """Every place where a transformation's pattern occurs (around one node), those where it applies first, most bytes first."""
    return places(program, make(chosen, **parameters), None if node is None else node_of(program, node))


def apply(program: Program, chosen: Chosen | Place, place: Place | Match | Mapping[str, str] | None = None, *,
          check: bool | str = True, **parameters: Any) -> Place:  # fmt: skip
    """Apply a transformation at a place: a `Place`, a match, or references by the names of its pattern (`place.where`).

    Without a place: where it saves most. check: True verifies the program afterwards, "numbers" also interprets it before and after on
    random values (slow; for small programs), False trusts it. Returns the place. Raises Refusal with the reason where it does not
    apply, TransformationError where it broke the program; either way the program is as it was.
    """
    if isinstance(chosen, Place):
        t, found = chosen.transformation, chosen
    else:
        t = make(chosen, **parameters)
        if isinstance(place, Place):
            found = place
        elif isinstance(place, Match):
            found = place_of(t, place)
        elif place is not None:
            found = place_of(t, t.match_at(program, place))
        else:
            found = next(iter(places(program, t)), None) or _nowhere(program, t)
    m = found.match
    stale = [n for n in m.nodes if not program.node_is_current(n)]
    if m.program is not program or stale:
        raise Refusal(f"the place is not in the program any more ({stale[0] if stale else m.program.name}): ask for the places again")
    values = _values(program) if check == "numbers" else None
    before = None if values is None else interpret(program, values, library=library_for_interpreter())
    steps = len(program.log)
    try:
        t.run(m)
        if check:
            verify(program, program.form)
        if values is not None and before is not None:
            _require_same(program, before, interpret(program, values, library=library_for_interpreter()))
    except (Refusal, EditError):
        raise
    except Exception as e:
        program.undo(len(program.log) - steps)
        what = "broke the program" if isinstance(e, VerifyError) else "changed the numbers" if isinstance(e, _Differs) else "failed"
        raise TransformationError(f"{t.name} {what} at {m.describe() or 'the whole program'}; it was taken back: {e}") from e
    return found


def _nowhere(program: Program, t: Transformation) -> Place:
    raise Refusal(f"{t.name} occurs nowhere in program {program.name}")


def apply_alike(program: Program, place: Place, **options: Any) -> list[Place]:
    """Apply the transformation of a place in every module that is built alike (`blocks.0` → `blocks.1`, ...), and here if it is not done
    yet. Returns where it was applied; where it refuses, or there is no such place, is left out."""
    done = []
    for where in (place.where, *_alike(program, place.where)):
        try:
            done.append(apply(program, place.transformation, where, **options))
        except Refusal:
            continue
    return done


def _alike(program: Program, where: Mapping[str, str]) -> list[dict[str, str]]:
    """Places that differ from this one in a module prefix only."""
    module = common_prefix(module_of(v) for v in where.values() if ": " in v)
    found: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    modules = sorted({n.origin.module for n in program.nodes})
    while module:
        for other in dict.fromkeys(".".join(m.split(".")[: module.count(".") + 1]) for m in modules):
            candidate = {k: moved(v, module, other) for k, v in where.items()}
            if candidate != dict(where):
                found.setdefault(tuple(candidate.items()), candidate)
        module = module.rpartition(".")[0]
    return list(found.values())


def replay(program: Program, recipe: Recipe | str | os.PathLike[str], *, missing: str = "raise") -> Replay:
    """Apply a recipe (an object or the path of its file). See `Recipe.replay`."""
    return _recipe(recipe).replay(program, pipeline.STAGES, missing=missing)


def _recipe(recipe: Recipe | str | os.PathLike[str]) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else Recipe.load(Path(recipe))


# --- history ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HistoryRow:
    """One rewrite: bytes that the program moved before and after it (None where the log came from a file), and what it claimed to save."""

    step: int
    name: str
    where: str
    before: int | None
    after: int | None
    claimed: int | None


@dataclass
class History:
    """The rewrites of a program, oldest first; `str()` is a table."""

    rows: list[HistoryRow]

    def __str__(self) -> str:
        if not self.rows:
            return "nothing was done yet"
        lines = [f"{'step':>5}  {'bytes before':>12}  {'after':>12}  {'saved':>11}  rewrite"]
        for r in self.rows:
            saved = "" if r.before is None or r.after is None else human(r.before - r.after)
            name = f"{r.name} at {r.where}" if r.where else r.name
            lines.append(f"{r.step:5}  {_human(r.before):>12}  {_human(r.after):>12}  {saved:>11}  {name}")
        return "\n".join(lines)


def history(program: Program) -> History:
    """Each rewrite with the bytes moved before and after it, measured by going back through a copy."""
    past, known = program.clone(), _Bytes()
    numbers: list[int | None] = [known.of(past)]
    while past.log and past.log[-1].inverses:
        past.undo()
        numbers.append(known.of(past))
    numbers += [None] * (len(program.log) + 1 - len(numbers))
    numbers.reverse()
    return History([_row(program, i, r, numbers) for i, r in enumerate(program.log)])


def _row(program: Program, i: int, r: Rewrite, numbers: list[int | None]) -> HistoryRow:
    saves = r.notes.get("saves")
    claimed = None if saves is None else hint_value(program, saves)
    return HistoryRow(i + 1, r.name, r.notes.get("where", ""), numbers[i], numbers[i + 1], claimed)


class _Bytes:
    """Bytes that a program moves, node by node, each computed once for the node and the containers that it uses."""

    def __init__(self) -> None:
        self.known: dict[tuple[Any, ...], tuple[Any, int]] = {}

    def of(self, program: Program) -> int:
        return sum(self._node(program, n) for n in program.nodes)

    def _node(self, program: Program, node: Node) -> int:
        used = [program.containers[c] for c in sorted(program.reads_of(node) | program.writes_of(node))]
        key = (id(node), *map(id, used))
        if key not in self.known:
            total = sum((hint_value(program, m.bytes) for m in node_movement(node, program)), 0)
            self.known[key] = ((node, used), total)  # the objects are kept, so that an id stays theirs
        return self.known[key][1]


def _human(number: int | None) -> str:
    return "" if number is None else human(number)


# --- numbers ---------------------------------------------------------------------------------------------------------


class _Differs(ValueError):
    """Results differ by more than rounding."""


def _values(program: Program) -> dict[str, np.ndarray]:
    """Random values for everything that comes from outside, at the program's size hints; integers are 0 or 1, valid as indices."""
    rng = np.random.default_rng(0)
    sizes = {s: program.attributes.get("size_hints", {}).get(s.name, 4) for s in program.symbols}
    given = {}
    for name, c in program.containers.items():
        if c.is_external and c.role != "constant":
            shape = tuple(n if isinstance(n, int) else int(evaluate(n, sizes)) for n in c.shape)
            drawn = rng.uniform(0.1, 1.0, shape) if c.dtype.is_float else rng.integers(0, 2, shape)
            given[name] = drawn.astype(c.dtype.numpy)
    return given


def _require_same(program: Program, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> None:
    for name in sorted(program.results):
        a, b = np.asarray(before[name], np.float64), np.asarray(after[name], np.float64)
        limit = 1e-9 if program.containers[name].dtype.bits == 64 else 1e-4 if program.containers[name].dtype.bits == 32 else 3e-2
        scale = max(float(np.abs(a).max(initial=0.0)), 1e-30)
        error = float(np.abs(a - b).max(initial=0.0)) / scale
        if not error <= limit and not np.array_equal(a, b, equal_nan=True):
            raise _Differs(f"{name} differs by {error:.1e} of its size")


def install() -> None:
    """Give these functions to `Program` as methods."""
    for name, function in {"optimize": optimize, "movement": movement, "explain": explain, "places": places_, "apply": apply,
                           "apply_alike": apply_alike, "replay": replay, "history": history,
                           "isomorphic_modules": isomorphic_modules}.items():  # fmt: skip
        setattr(Program, name, function)
    Program.recipe = property(Recipe.of)  # type: ignore[attr-defined]
