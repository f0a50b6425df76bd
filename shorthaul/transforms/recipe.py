"""Recipes: the list of what was done to a program, as a readable file that can be replayed, moved to other blocks, and compared.

A recipe file is Python to read and plain data to load: it is parsed, never executed. It holds one call, `Recipe(name, version, steps)`;
a step is `stage(name)`, something done to the whole program, or `at(transformation, place, **parameters)`. Places are named by
references (`ir.location`), which are the same from run to run, and from block to block but for the module path.
"""

from __future__ import annotations

import ast
import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shorthaul.ir.edit import EditError, Rewrite
from shorthaul.ir.location import common_prefix, module_of, moved
from shorthaul.ir.program import Program
from shorthaul.ir.verify import VerifyError, verify

from .base import Refusal
from .catalog import UnknownTransformation, make

VERSION = 1
Stages = Mapping[str, Callable[[Program], object]]


class RecipeError(ValueError):
    """A recipe cannot be read or replayed; the message names file or step, the reason and the remedy."""


@dataclass(frozen=True)
class Step:
    """One step. place: references by the names of the transformation's pattern; None for a stage, which sees the whole program.

    saves: bytes that it was claimed to save where the recipe was recorded (a comment, not compared).
    """

    name: str
    place: tuple[tuple[str, str], ...] | None = None
    parameters: tuple[tuple[str, Any], ...] = ()
    saves: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        if self.place is None:
            return f"stage({self.name!r})"
        given = [f", {k}={v!r}" for k, v in self.parameters]
        return f"at({self.name!r}, {dict(self.place)!r}{''.join(given)})"

    @property
    def module(self) -> str:
        """The module path that the whole place lies in, empty for a stage."""
        return common_prefix(module_of(v) for _, v in self.place or () if ": " in v)

    def moved(self, old: str, new: str) -> Step:
        """The same step with the module prefix `old` replaced by `new`."""
        if self.place is None:
            return self
        return Step(self.name, tuple((k, moved(v, old, new)) for k, v in self.place), self.parameters, self.saves)

    def inside(self, module: str) -> bool:
        """Whether the whole place lies in a module."""
        return bool(self.place) and (self.module == module or self.module.startswith(module + "."))


@dataclass
class Replay:
    """What a replay did: how many steps it took, and those that found no place, with the reasons (`missing="skip"`)."""

    applied: int = 0
    skipped: list[tuple[Step, str]] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.applied} steps applied"
        if self.skipped:
            text += f", {len(self.skipped)} skipped:\n" + "\n".join(f"  {s}: {why}" for s, why in self.skipped)
        return text


@dataclass
class Recipe:
    """See the module's page. program: the name of the program that it was recorded on."""

    program: str
    steps: list[Step] = field(default_factory=list)

    @classmethod
    def of(cls, program: Program) -> Recipe:
        """What was done to a program since it was captured and differentiated."""
        return cls(program.name, list(_steps(program.log)))

    def __len__(self) -> int:
        return len(self.steps)

    def __str__(self) -> str:
        lines = [
            f'"""Recipe of {self.program}. `program.replay(FILE)` applies it; `sh.optimize(model, recipe=FILE)` compiles by it."""',
            "",
            "from shorthaul.transforms.recipe import Recipe, at, stage",
            "",
            f"recipe = Recipe({self.program!r}, version={VERSION}, steps=[",
        ]
        for s in self.steps:
            lines.append(f"    {s}," + (f"  # saves {s.saves} bytes" if s.saves else ""))
        return "\n".join([*lines, "])", ""])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file (beside its place, then renamed, so that an interrupted save leaves the old one). Raises RecipeError where a step
        was an edit by hand, which no file can hold."""
        for i, s in enumerate(self.steps, 1):
            if s.name.startswith("edit by hand"):
                raise RecipeError(f"step {i} is an {s.name}: a recipe holds transformations only; make it one (transforms/base.py)")
        target = Path(path)
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        draft.write_text(str(self))
        draft.replace(target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a file. Raises RecipeError naming the line that is not a recipe's."""
        try:
            text = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as e:
            raise RecipeError(f"cannot read the recipe {path}: {e}") from e
        return parse(text, str(path))

    def replay(self, program: Program, stages: Stages, *, missing: str = "raise") -> Replay:
        """Apply the steps to a program in order. stages: what the steps without a place call.

        missing: "raise" (default) stops with RecipeError at a step that does not apply and leaves the program as it was; "skip" goes on and
        lists it. The program is verified at the end. A step that fails, or after which the program is not well formed, is an error that
        names it; the program is as it was then, too.
        """
        if missing not in ("raise", "skip"):
            raise ValueError(f"missing is 'raise' or 'skip', not {missing!r}")
        done, before = Replay(), len(program.log)
        try:
            for i, s in enumerate(self.steps, 1):
                try:
                    _take(s, program, stages)
                    done.applied += 1
                except (Refusal, EditError, UnknownTransformation, TypeError, ValueError) as e:
                    if missing == "raise":
                        raise RecipeError(f"step {i} of the recipe of {self.program} does not apply to {program.name}: {s}: {e}; "
                                          "replay with missing='skip' to go on without such steps") from e  # fmt: skip
                    done.skipped.append((s, str(e)))
            verify(program, program.form)
        except RecipeError:
            program.undo(len(program.log) - before)
            raise
        except Exception as e:  # a transformation from outside may fail in any way
            program.undo(len(program.log) - before)
            i, s, why = self._culprit(program.clone(), stages, missing, e)
            raise RecipeError(f"step {i} of the recipe of {self.program} {why} ({program.name} is as it was): {s}: {e}") from e
        return done

    def _culprit(self, program: Program, stages: Stages, missing: str, error: Exception) -> tuple[int, Step, str]:
        """Which step of a replay fails, or breaks the program: the steps once more, with a look after each."""
        for i, s in enumerate(self.steps, 1):
            try:
                _take(s, program, stages)
            except (Refusal, EditError, UnknownTransformation, TypeError, ValueError):
                continue  # with missing="raise" the replay would not have come past it
            except Exception:
                return i, s, "failed"
            try:
                verify(program, program.form)
            except VerifyError:
                return i, s, "broke the program"
        return len(self.steps), self.steps[-1], f"or one before it failed ({type(error).__name__})"

    def moved(self, old: str, new: str) -> Recipe:
        """The recipe with the module prefix `old` replaced by `new`."""
        return Recipe(self.program, [s.moved(old, new) for s in self.steps])

    def spread(self, module: str, others: list[str]) -> Recipe:
        """The recipe with each step that lies inside `module` followed by the same step in each of the other modules.

        `isomorphic_modules` lists the modules that are built alike. Steps taken there already are not repeated.
        """
        present = set(self.steps)
        steps: list[Step] = []
        for s in self.steps:
            steps.append(s)
            if s.inside(module):
                steps += [t for o in others if (t := s.moved(module, o)) not in present]
        return Recipe(self.program, steps)

    def only(self, module: str) -> Recipe:
        """The steps inside a module, and those that see the whole program."""
        return Recipe(self.program, [s for s in self.steps if not s.place or s.inside(module)])

    def diff(self, other: Recipe) -> str:
        """The steps of both as a unified diff, empty where they are equal."""
        a, b = ([f"{s}\n" for s in r.steps] for r in (self, other))
        return "".join(difflib.unified_diff(a, b, self.program, other.program))


def _take(s: Step, program: Program, stages: Stages) -> None:
    if s.place is None:
        if s.name not in stages:
            raise ValueError(f"no stage is called {s.name!r}; known are {', '.join(stages)}")
        stages[s.name](program)
        return
    t = make(s.name, **dict(s.parameters))
    m = t.match_at(program, dict(s.place))
    t.run(m)


def _steps(log: list[Rewrite]) -> Iterator[Step]:
    began = False  # what comes before the first transformation made the program
    for r in log:
        place = r.notes.get("place")
        if place is None and r.name not in WHOLE:
            if began:
                yield Step(f"edit by hand ({r.name})")
            continue
        began = True
        if place is None:
            yield Step(r.name)
        else:
            saves = r.notes.get("saves")
            yield Step(r.name, tuple(place.items()), tuple(_changed(r)), saves if isinstance(saves, int) else None)


WHOLE = frozenset({"Expand", "DeadCode", "Schedule", "InlineCustomFunction"})  # rewrites of the whole program: stages of the pipeline


def _changed(r: Rewrite) -> Iterator[tuple[str, Any]]:
    """Parameters that are not the default."""
    default = make(r.name).parameters
    yield from ((k, v) for k, v in r.parameters.items() if k not in default or default[k] != v)


# --- reading ---------------------------------------------------------------------------------------------------------


def parse(text: str, where: str = "recipe") -> Recipe:
    """A recipe from the text of its file; nothing in it is executed."""
    try:
        tree = ast.parse(text)
    except SyntaxError as e:
        raise RecipeError(f"{where}:{e.lineno}: not Python: {e.msg}") from e
    found = [n.value for n in tree.body if isinstance(n, ast.Assign) and [getattr(t, "id", "") for t in n.targets] == ["recipe"]]
    if len(found) != 1:
        raise RecipeError(f"{where}: a recipe file holds one `recipe = Recipe(...)`, this one has {len(found)}")
    _, (name, *rest), keywords = _call(found[0], where, "Recipe")
    given = {k: v for k, v in keywords.items() if k != "steps"}
    version = _literal(given.get("version"), where) if "version" in given else VERSION
    if version != VERSION:
        raise RecipeError(f"{where}: a recipe of version {version}; this Shorthaul reads version {VERSION}; record it again")
    steps = keywords.get("steps", rest[0] if rest else None)
    if not isinstance(steps, ast.List):
        raise RecipeError(f"{where}: the recipe has no list of steps")
    return Recipe(str(_literal(name, where)), [_step(e, where) for e in steps.elts])


def _step(node: ast.expr, where: str) -> Step:
    kind, positional, keywords = _call(node, where, "stage", "at")
    values = [_literal(v, where) for v in positional]
    if kind == "stage" and len(values) == 1 and not keywords:
        return Step(str(values[0]))
    if kind == "at" and len(values) == 2 and isinstance(values[1], dict):
        place = tuple((str(k), str(v)) for k, v in values[1].items())
        return Step(str(values[0]), place, tuple((k, _literal(v, where)) for k, v in keywords.items()))
    raise RecipeError(f"{where}:{node.lineno}: write stage(name) or at(transformation, {{name: reference}}, parameter=value)")


def _call(node: ast.expr, where: str, *names: str) -> tuple[str, list[ast.expr], dict[str, ast.expr]]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names and node.args:
        keywords = {k.arg: k.value for k in node.keywords if k.arg is not None}
        if len(keywords) == len(node.keywords):
            return node.func.id, node.args, keywords
    raise RecipeError(f"{where}:{node.lineno}: expected {' or '.join(n + '(...)' for n in names)}, found {ast.unparse(node)[:60]}")


def _literal(node: ast.expr | None, where: str) -> Any:
    assert node is not None
    try:
        return ast.literal_eval(node)
    except ValueError as e:
        raise RecipeError(f"{where}:{node.lineno}: not a plain value: {ast.unparse(node)[:60]}") from e


def stage(name: str) -> Step:
    """A step that sees the whole program (what recipe files call)."""
    return Step(name)


def at(name: str, place: Mapping[str, str], **parameters: Any) -> Step:
    """A transformation at a place (what recipe files call)."""
    return Step(name, tuple(place.items()), tuple(parameters.items()))
