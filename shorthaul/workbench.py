"""Working on a program by hand: what a `Program` can do beside holding data. `install` makes these its methods.

    program.optimize(level=2)                    lower it, in place; every rewrite is in the log
    program.explain("MapFusion")                 where it applies, where not and why; also a node, or two
    program.places("MapFusion")                  the same as objects, for `apply`
    program.apply("MapFusion", place)            one rewrite, checked; a program that it would break is left as it was
    program.history(), program.undo()            what was done, with bytes before and after; take it back
    program.measure()                            the time of the step and of each kernel
    program.recipe, program.replay(recipe)       what was done as a file, and doing it again here or elsewhere
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shorthaul import pipeline
from shorthaul.analysis.flops import node_flops
from shorthaul.analysis.movement import human, movement, node_movement
from shorthaul.codegen.library.interpreting import library_for_interpreter
from shorthaul.config import Options
from shorthaul.ir.edit import EditError, Rewrite
from shorthaul.ir.interpreter import interpret
from shorthaul.ir.location import MODEL, common_prefix, isomorphic_modules, module_of, moved
from shorthaul.ir.nodes import Node
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ir.verify import VerifyError, verify
from shorthaul.symbolic import evaluate
from shorthaul.transforms.base import Match, Refusal, Transformation, hint_value
from shorthaul.transforms.catalog import Chosen, make
from shorthaul.transforms.choices import Choices
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

if TYPE_CHECKING:
    from shorthaul.runtime.profile import Profile


class TransformationError(RuntimeError):
    """A transformation broke the program or changed its numbers; the message names it and the place. The program is as it was."""


def optimize(program: Program, level: int = 4, *, check: bool = False, recipe: Recipe | str | os.PathLike[str] | None = None,
             inside: str = "", target: str = "cpp", saved: str | None = None) -> Program:  # fmt: skip
    """Lower the program in place with the transformations up to `level` (or by a recipe alone); returns it.

    check: verify it after every stage. inside: a module path; transformations are applied only where all nodes at a place are of that
    module, so that `recipe` is one for the block alone, which `spread` and `moved` take to others. target: "cpp" (this CPU) or "triton" (a
    GPU): some choices differ. saved: another form for values saved for the backward phase: "bits", or "bfloat16" or "float16",
    which change gradients. Raises RecipeError where the recipe does not fit, KeyError for a module that no node comes from.
    """
    if inside and not any((n.origin.module + ".").startswith(inside + ".") for n in program.nodes):
        known = sorted({n.origin.module for n in program.nodes if n.origin.module})
        raise KeyError(f"no node of program {program.name} comes from a module {inside!r}; there are {', '.join(known[:8])}, ...")
    options = Options(level, recipe=None if recipe is None else str(_recipe(recipe)), target=target, saved=saved)
    pipeline.optimize(program, options, check=check, choices=Choices(inside=inside))
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
    apply, TransformationError where it broke the program; either way the program is as it was. A transformation that rounds values
    (`Transformation.rounding`) may change results by a few times that.
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
            _require_same(program, before, interpret(program, values, library=library_for_interpreter()), t.rounding)
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
    loose = any(v.startswith(f"{MODEL}: ") for v in place.where.values())
    for where in (place.where, *(() if loose else _alike(program, place.where))):
        try:
            done.append(apply(program, place.transformation, where, **options))
        except (Refusal, EditError):
            continue
    tried: list[Mapping[str, str]] = [] if loose else [place.where]
    while loose:  # nodes without a module are known by their number alone, which changes with every rewrite: look again each time
        found = (p for p in places(program, place.transformation) if p.applies and p.where not in tried)
        other = next((p for p in found if _same_shape(p.where, place.where)), None)
        if other is None:
            break
        tried.append(other.where)
        try:
            done.append(apply(program, other, **options))
            tried.clear()
        except (Refusal, EditError):
            continue
    return done


def _same_shape(a: Mapping[str, str], b: Mapping[str, str]) -> bool:
    """Whether two places differ in a module prefix, and in the numbers of nodes that have no module, alone."""

    def shape(where: Mapping[str, str]) -> list[tuple[str, str]]:
        module = common_prefix(module_of(v) for v in where.values() if ": " in v and module_of(v) != MODEL)
        known = {k: v.rpartition(" #")[0] or v for k, v in where.items() if module_of(v) == MODEL}
        return [(k, known.get(k) or (moved(v, module, "") if module else v)) for k, v in where.items()]

    def depth(where: Mapping[str, str]) -> int:
        return common_prefix(module_of(v) for v in where.values() if ": " in v and module_of(v) != MODEL).count(".")

    return a.keys() == b.keys() and depth(a) == depth(b) and shape(a) == shape(b)


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


def replay(program: Program, recipe: Recipe | str | os.PathLike[str], *, missing: str = "raise", target: str = "cpp") -> Replay:
    """Apply a recipe (an object or the path of its file). See `Recipe.replay`; target: as in `optimize`."""
    return _recipe(recipe).replay(program, pipeline.stages_for(target), missing=missing)


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


# --- time --------------------------------------------------------------------------------------------------------------


def measure(program: Program, *, runs: int = 15, device: str = "cpu", progress: Callable[[str, float], None] | None = None) -> Profile:
    """Compile the program for this CPU, or a GPU ("cuda:0"), and time the whole step and each kernel (`.step`, `.kernels` by node id) on
    random values.

    progress(what, part done) is called between runs; what it raises ends the measurement. A program of maps is scheduled in a copy; for a
    GPU kernels that it cannot run as one are split there, and are not in `.kernels`. Raises ValueError for operators, NoCompiler,
    BuildError, DeviceError.
    """
    from shorthaul.runtime.profile import profile  # imports torch

    if program.form is Form.OPERATORS:
        raise ValueError(f"program {program.name} consists of operators, which have no code to time; run a level first")
    target = "triton" if device.startswith("cuda") else "cpp"
    if program.form is Form.MAPS or target == "triton":
        program = program.clone()
        pipeline.schedule_for(program, target)
    return profile(program, _values(program), runs=runs, progress=progress, device=device)


def devices() -> dict[str, str]:
    """What `measure` can run on here, "cpu" first: device -> its name."""
    from shorthaul.runtime.profile import devices  # imports torch

    return devices()


def cache_directory() -> Path:
    """Where what outlives a process is kept."""
    from shorthaul.runtime.cache import default_directory

    return default_directory()


def threads() -> int:
    """How many threads kernels use in this process."""
    from shorthaul.runtime.profile import threads  # imports torch

    return threads()


# --- numbers ---------------------------------------------------------------------------------------------------------


class _Differs(ValueError):
    """Results differ by more than rounding."""


@dataclass(frozen=True)
class NumericCheck:
    """Two programs run by the interpreter on the same random values.

    error: the largest difference of a result, relative to the largest value of that result, which is `container`; limit: what rounding
    may cause, that of rewrites which store values in a narrower type included. whole: the programs were run as a whole, not only what
    differs between them. nodes: how many were run. wide: they were run in float64, because in its own type a result (a gradient that is
    nothing but rounding, of a bias before a batch norm) could not be judged. reason: why nothing was run, empty where it was.
    """

    error: float = 0.0
    limit: float = 0.0
    container: str = ""
    whole: bool = False
    nodes: int = 0
    wide: bool = False
    reason: str = ""

    @property
    def ok(self) -> bool | None:
        """Whether they agree; None where nothing was run."""
        return None if self.reason else self.error <= self.limit

    def __str__(self) -> str:
        if self.reason:
            return f"not checked: {self.reason}"
        what = "the whole program" if self.whole else f"{self.nodes} node{'s' if self.nodes != 1 else ''}"
        found = f"largest difference {self.error:.1e} (limit {self.limit:.0e})" + (f" in {self.container}" if self.container else "")
        return f"{'agrees' if self.ok else 'DIFFERS'}: {found}, by interpreting {what} on random values{' in float64' if self.wide else ''}"


ROUNDINGS = 8.0  # how often the rounding of one value may occur in a result, by which rewrites that round values are judged
ROUNDS = 8  # of looking for what else belongs to the part that is interpreted
WORK = 2_000_000_000  # scalar operations that a check may take: half a minute of the interpreter


def check_numbers(before: Program, after: Program, *, work: int = WORK) -> NumericCheck:
    """Whether a rewrite kept the meaning: what differs between the two programs is interpreted before and after it.

    Where memory changed (aliases, layouts), or what differs has other results, both programs are run whole. More than `work` scalar
    operations are not begun; `reason` says so. Bodies of branches and loops count as their nodes.
    """
    if Form.OPERATORS in (before.form, after.form):
        return NumericCheck(reason="operators have no maps to interpret; run a level first")
    old = [n for n in before.nodes if not after.node_is_current(n)]
    new = [n for n in after.nodes if not before.node_is_current(n)]
    used = {c for p, nodes in ((before, old), (after, new)) for n in nodes for c in p.reads_of(n) | p.writes_of(n)}
    moved = [c for c in used if before.containers.get(c) is not after.containers.get(c)
             and c in before.containers and c in after.containers]  # fmt: skip
    relaid = any(c.alias is not None or before.containers.get(n) not in (None, c) for n, c in after.containers.items()
                 if n in moved or n not in before.containers)  # fmt: skip
    aliased = any(after.containers[c].alias is not None for c in used if c in after.containers)
    if not old and not new and all(before.containers.get(n) is c for n, c in after.containers.items()):
        return NumericCheck(nodes=0, limit=1e-4)
    whole = bool(relaid or moved or aliased or not (old or new))
    for _ in range(ROUNDS):  # what computes a value that only one side takes from elsewhere (recomputation) belongs to both
        mine, theirs = _given(before, old), _given(after, new)
        more = [w for c in sorted(mine ^ theirs) for w in before.writers(c) if after.node_is_current(w)]
        if whole or mine == theirs or not more:
            break
        old, new = ([n for n in p.nodes if n in nodes or n in more] for p, nodes in ((before, old), (after, new)))
    whole = whole or _given(before, old) != _given(after, new)
    left, right = (before, after) if whole else (_part(before, old, after, new), _part(after, new, before, old))
    total = sum(_work(p) for p in (left, right))
    if total > work:
        return NumericCheck(whole=whole, reason=f"{total:.1e} operations are too many for the interpreter")
    values = _values(left) | {n: v for n, v in _values(right).items() if n not in left.containers}
    a, b = (interpret(p, {n: values[n] for n in p.containers if n in values}, library=library_for_interpreter()) for p in (left, right))
    done = {id(r) for r in before.log}
    rounding = max((r.notes.get("rounding", 0.0) for r in after.log if id(r) not in done), default=0.0)
    name, error, limit = _difference(left, a, b, rounding=rounding)
    wide = error > limit
    if wide:  # wrong, or rounding alone: where that is, it is gone in float64, measured by the size that the result had
        c, d = (interpret(p, {n: values[n] for n in p.containers if n in values}, library=library_for_interpreter(), wide=True)
                for p in (left, right))  # fmt: skip
        name, error, limit = _difference(left, c, d, a)
    return NumericCheck(error, limit, name, whole, len(right.nodes), wide)


def _given(program: Program, nodes: list[Node]) -> set[str]:
    """What these nodes read that others computed; what comes from outside is the same for both programs."""
    writes = {c for n in nodes for c in program.writes_of(n)}
    return {c for n in nodes for c in program.reads_of(n) if c not in writes and not program.containers[c].is_external}


def _part(program: Program, nodes: list[Node], other: Program, theirs: list[Node]) -> Program:
    """The nodes as a program of their own: it takes what they read from elsewhere, and gives what others read of what they write."""
    mine = {n.id for n in nodes}
    reads = {c for n in nodes for c in program.reads_of(n)}
    writes = {c for n in nodes for c in program.writes_of(n)}
    same = {c for n in theirs for c in other.writes_of(n)}
    given = sorted(reads - writes)
    shown = sorted(c for c in writes & same if c in program.results or any(r.id not in mine for r in program.readers(c)))
    containers = {c: program.containers[c] for c in sorted(reads | writes)}
    containers |= {c: containers[c].with_(role="input") for c in given if not containers[c].is_external}
    constants = {c: v for c, v in program.constants.items() if c in containers}
    return Program(program.name, program.form, containers, list(nodes), Signature(tuple(given), tuple(shown)), program.symbols, constants,
                   attributes={k: v for k, v in program.attributes.items() if k == "size_hints"})  # fmt: skip


def _work(program: Program) -> int:
    return sum(hint_value(program, f) for n in program.nodes if (f := node_flops(n, program.containers)) is not None)


def _values(program: Program) -> dict[str, np.ndarray]:
    """Random values for everything that comes from outside, at the program's size hints; integers are 0 or 1, valid as indices."""
    sizes = {s: program.attributes.get("size_hints", {}).get(s.name, 4) for s in program.symbols}
    given = {}
    for name, c in program.containers.items():
        if c.is_external and c.role != "constant":
            rng = np.random.default_rng(zlib.crc32(name.encode()))  # by name: programs that share a container share its values
            shape = tuple(n if isinstance(n, int) else int(evaluate(n, sizes)) for n in c.shape)
            drawn = rng.uniform(0.1, 1.0, shape) if c.dtype.is_float else rng.integers(0, 2, shape)
            given[name] = drawn.astype(c.dtype.numpy)
    return given


def _difference(program: Program, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray],
                sizes: Mapping[str, np.ndarray] | None = None, rounding: float = 0.0) -> tuple[str, float, float]:  # fmt: skip
    """The result that differs most by its limit: its name, the difference relative to its largest value (or that in `sizes`), the limit.

    rounding: of values on the way to the results, relative to them, where a rewrite rounds them.
    """
    worst = ("", 0.0, 1e-4)
    for name in sorted(program.results):
        a, b = np.asarray(before[name], np.float64), np.asarray(after[name], np.float64)
        limit = 1e-9 if program.containers[name].dtype.bits == 64 else 1e-4 if program.containers[name].dtype.bits == 32 else 3e-2
        limit = max(limit, ROUNDINGS * rounding)
        known = np.isfinite(a)
        if a.shape != b.shape or not np.array_equal(known, np.isfinite(b)):
            return name, float("inf"), limit
        of = [a] if sizes is None else [a, np.asarray(sizes[name], np.float64)]
        scale = max(1e-30, *(float(np.abs(x[np.isfinite(x)]).max(initial=0.0)) for x in of))
        error = float(np.abs(a[known] - b[known]).max(initial=0.0)) / scale
        if error / limit > worst[1] / worst[2] or not worst[0]:
            worst = (name, error, limit)
    return worst


def _require_same(program: Program, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], rounding: float) -> None:
    name, error, limit = _difference(program, before, after, rounding=rounding)
    if not error <= limit:
        raise _Differs(f"{name} differs by {error:.1e} of its size")


def install() -> None:
    """Give these functions to `Program` as methods."""
    for name, function in {"optimize": optimize, "movement": movement, "explain": explain, "places": places_, "apply": apply,
                           "apply_alike": apply_alike, "replay": replay, "history": history, "measure": measure,
                           "isomorphic_modules": isomorphic_modules}.items():  # fmt: skip
        setattr(Program, name, function)
    Program.recipe = property(Recipe.of)  # type: ignore[attr-defined]
