"""One tuning run."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from shorthaul.analysis.cost import CostModel
from shorthaul.analysis.movement import movement
from shorthaul.ir.edit import EditError
from shorthaul.ir.fingerprint import fingerprint, node_fingerprint
from shorthaul.ir.location import reference
from shorthaul.ir.nodes import AUTO, Map
from shorthaul.ir.program import Program
from shorthaul.ir.verify import VerifyError
from shorthaul.transforms.base import Refusal
from shorthaul.transforms.catalog import catalog, make
from shorthaul.transforms.choices import Choices
from shorthaul.transforms.recipe import Recipe, RecipeError, Step, parse

from .database import Database, Known
from .measure import MARGIN, Clock, Comparison, Run, in_turns
from .result import Trial, Tuned
from .search import Search
from .space import Move, moves

FINAL = 0.08  # of the budget: kept for measuring the best against the start once more
FRACTION = 0.3  # of the start's compile time: most of a candidate's kernels are the start's
KERNEL_ROUNDS = 15


class OutOfTime(Exception):
    """The budget does not allow what comes next."""


class Subject(Protocol):
    """What is tuned: how choices become a program, and programs and kernels something that runs."""

    name: str
    operators: Program
    device: str

    def lower(self, choices: Choices) -> Program:
        """The scheduled program. Raises Refusal or EditError where a place is not there."""

    def build(self, program: Program, seconds: float) -> Run:
        """Compile; a callable that runs a step. Raises OutOfTime where that takes longer, RuntimeError where it fails."""

    def kernels(self, program: Program, variants: Sequence[Map], seconds: float) -> list[Run]:
        """The same for variants of one kernel, each on operands of its own; equal variants may give one callable."""

    def text(self, program: Program, kernel: Map) -> str:
        """What tells kernels apart: variants of equal text run alike."""


Report = Callable[["Session"], None]


class Session:
    """See the module's page. budget: seconds from now on. report: called after everything that was tried (for progress displays)."""

    def __init__(self, subject: Subject, database: Database, model: CostModel, budget: float, *, clock: Clock = time.perf_counter,
                 report: Report | None = None, began: float | None = None) -> None:  # fmt: skip
        if not budget > 0:
            raise ValueError(f"the budget is a number of seconds above 0, not {budget!r}")
        self.subject, self.database, self.model, self.budget = subject, database, model, budget
        self.clock, self.report = clock, report
        self.began = clock() if began is None else began
        self.trials: list[Trial] = []
        self.doing = "lowering"
        self.region = fingerprint(subject.operators)
        self._programs: dict[str, Program] = {}  # by the key of the choices
        self._seen: dict[str, Trial] = {}  # by fingerprint of what was measured
        self._runs: dict[str, Run] = {}  # of the start and of the best
        self._cost = self._kernel_cost = 0.0  # seconds that compiling and measuring took lately, of a candidate and of a kernel's variants
        self._lowering = 0.0  # and lowering
        self._ratio = 1.0  # of the best to the start
        self._moves: list[Move] | None = None
        self.notes: list[str] = []

    # time -------------------------------------------------------------------------------------------------------------
    @property
    def spent(self) -> float:
        """Seconds since the run began."""
        return self.clock() - self.began

    @property
    def left(self) -> float:
        """Seconds for searching: what the last comparison needs is set aside."""
        return self.budget - self._reserve - self.spent

    @property
    def _reserve(self) -> float:
        start = self.start.seconds if self.trials else None
        return min(FINAL * self.budget, 24 * start if start is not None else math.inf)

    # the space --------------------------------------------------------------------------------------------------------
    @property
    def start(self) -> Trial:
        return self.trials[0]

    @property
    def best(self) -> Any:
        """The trial with the best choices so far (a Trial whose `choices` are given)."""
        return next(t for t in reversed(self.trials) if t.status == "best")

    @property
    def best_program(self) -> Program:
        return self.program(self.best.choices)

    @property
    def best_predicted(self) -> float:
        return self.model.seconds(self.best_program)

    @property
    def ratio(self) -> float:
        """The best so far: its time over the start's."""
        return self._ratio

    @property
    def moves(self) -> list[Move]:
        """What can be changed about the start's plan."""
        if self._moves is None:
            self._moves = moves(self.subject.operators, self.program(Choices()), self.subject.device)
        return self._moves

    def program(self, choices: Choices) -> Program:
        """The program that choices give, lowered once."""
        key = choices.key
        if key not in self._programs:
            self._programs[key] = self.subject.lower(choices)
        return self._programs[key]

    def predict(self, kind: str, what: str, choices: Choices) -> float | None:
        """Seconds by the cost model; None where the choices cannot be made (noted as a trial). Raises OutOfTime."""
        if self.left < self._lowering:
            raise OutOfTime
        began = self.clock()
        self.doing = what
        try:
            program = self.program(choices)
        except (Refusal, EditError, RecipeError, VerifyError) as e:
            self._note(Trial(kind, what, "refused", choices, reason=str(e)))
            return None
        self._lowering = self.clock() - began
        return self.model.seconds(program)

    def skip(self, kind: str, what: str, choices: Choices, why: str) -> None:
        """Note something that is not measured."""
        program = self.program(choices)
        self._note(Trial(kind, what, why, choices, self.model.seconds(program), _bytes(program)))

    def remembered(self) -> Iterator[tuple[str, Choices]]:
        """Choices that earlier runs found faster for this very network, the fastest first (at most three)."""
        found = [k for k in self.database.of(self.region) if k.ratio is not None and k.ratio < 1 and k.status == "faster"]
        for k in found[:3]:
            yield f"found before ({1 / (k.ratio or 1):.3f} times)", from_key(k.choice)

    # running ----------------------------------------------------------------------------------------------------------
    def run(self, search: Search) -> Tuned:
        """The whole run; an interrupt (Ctrl-C) ends it with what was found so far."""
        interrupted, final = False, False
        program = self.program(Choices())
        self._note(Trial("start", "the defaults", "best", Choices(), self.model.seconds(program), _bytes(program)))
        try:
            self.doing = "compiling the start"
            began = self.clock()
            self._runs["start"] = self._runs["best"] = self.subject.build(program, self.left)
            self._cost = FRACTION * (self.clock() - began)
            self._seen[fingerprint(program)] = self.start
            search.run(self)
        except OutOfTime:
            if "start" not in self._runs:
                self.notes.append("the budget ended before the start was compiled: give more seconds")
        except KeyboardInterrupt:
            interrupted = True
        if not interrupted and self._ratio < 1:
            try:
                final = self._decide()
            except KeyboardInterrupt:
                interrupted = True
        best = self.best
        recipe = Recipe.of(self.program(best.choices))
        return Tuned(self.subject.name, recipe, best.choices, self.trials, self._ratio, self.spent, self.budget, interrupted, final,
                     self.notes)  # fmt: skip

    def _decide(self) -> bool:
        """The best against the start once more: what is returned was shown to be faster, or is the start."""
        self.doing = "the best against the start"
        seconds = max(0.0, 0.5 * (self.budget - self.spent))
        found = in_turns(self._runs["start"], self._runs["best"], self.clock, rounds=25, least=9, seconds=seconds)
        self.start.seconds = found.incumbent.median
        if found.ratio < 1 and not found.slower:
            self._ratio = found.ratio
            return True
        self.notes.append(f"the best so far was not faster when it was measured once more ({found.ratio:.3f}): the start stays")
        self._ratio = 1.0
        for t in self.trials[1:]:
            t.status = "faster" if t.status == "best" else t.status
        return True

    def measure(self, kind: str, what: str, choices: Choices) -> Trial:
        """Lower, compile and measure choices in turns with the best so far. Raises OutOfTime where the budget does not allow it."""
        known = self.database.get(self.region, choices.key)
        predicted = self.predict(kind, what, choices)
        if predicted is None:
            return self.trials[-1]
        program = self.program(choices)
        trial = Trial(kind, what, "", choices, predicted, _bytes(program))
        same = self._seen.get(fingerprint(program))
        if same is not None:
            return self._note(replace(trial, status="same", ratio=same.ratio, reason=f"as {same.what}"))
        if known is not None and (known.ratio is None or known.ratio > (1 - MARGIN) * self._ratio):
            # measured in an earlier run, and no better than what there is
            status = known.status if known.ratio is None else "known"
            return self._note(replace(trial, status=status, ratio=known.ratio, seconds=known.seconds))
        if self._cost > self.left:
            raise OutOfTime
        began = self.clock()
        self.doing = what
        try:
            run = self.subject.build(program, self.left)
            found = in_turns(self._runs["best"], run, self.clock, seconds=max(0.0, min(self.left, 0.1 * self.budget)))
        except OutOfTime:
            self._note(replace(trial, status="out of time"))
            raise
        except RuntimeError as e:
            self.database.put(self.region, Known(choices.key, None, None, "failed"))
            return self._note(replace(trial, status="failed", reason=str(e).split("\n")[0][:200]))
        self._cost = max(self.clock() - began, 0.7 * self._cost)
        return self._judge(trial, found, run, fingerprint(program))

    def _judge(self, trial: Trial, found: Comparison, run: Run, seen: str) -> Trial:
        ratio = found.ratio * self._ratio
        if self.start.seconds is None:
            self.start.seconds, self.start.ratio = found.incumbent.median, 1.0
        status = "best" if found.faster else "slower" if found.slower else "not faster"
        trial = replace(trial, status=status, seconds=found.candidate.median, ratio=ratio)
        assert trial.choices is not None
        stored = "faster" if found.faster else status
        self.database.put(self.region, Known(trial.choices.key, ratio, found.candidate.median, stored))
        if found.faster:
            self._ratio, self._runs["best"] = ratio, run
        self._seen[seen] = trial
        return self._note(trial)

    def _note(self, trial: Trial) -> Trial:
        trial.at = self.spent
        self.trials.append(trial)
        if self.report is not None:
            self.report(self)
        return trial

    # kernels ----------------------------------------------------------------------------------------------------------
    def tune_kernels(self) -> None:
        """Schedules of the best program's kernels: each distinct kernel by itself, most time first; then all that won, as a whole.

        On a CPU only: the plans of Triton's kernels have no parameters yet.
        """
        if self.subject.device != "cpu":
            return
        program = self.best_program
        groups: dict[str, list[Map]] = {}
        for n in program.nodes:
            if isinstance(n, Map):
                groups.setdefault(kernel_region(n, program), []).append(n)
        times = {k.node: k.seconds for k in self.model.kernels(program)}
        order = sorted(groups, key=lambda g: -sum(times.get(n.id, 0.0) for n in groups[g]))
        won: list[tuple[Step, ...]] = []
        for region in order:
            nodes = groups[region]
            try:
                chosen = self._tune_kernel(program, nodes[0], region, len(nodes))
            except OutOfTime:
                break
            if chosen is not None:
                name, parameters = chosen
                won.append(tuple(Step(name, (("node", reference(program, n)),), tuple(sorted(parameters.items()))) for n in nodes))
        while won:
            steps = tuple(s for group in won for s in group)
            choices = replace(self.best.choices, last=(*self.best.choices.last, *steps))
            if self.measure("schedule", f"schedules of {len(steps)} kernels", choices).status != "not faster" or len(won) == 1:
                break
            won = won[: len(won) // 2]  # what promised most

    def _tune_kernel(self, program: Program, node: Map, region: str, count: int) -> tuple[str, dict[str, Any]] | None:
        """The transformation and parameters that make one kernel fastest, None where the defaults are."""
        best: tuple[str, dict[str, Any]] | None = None
        best_ratio = 1.0
        what = f"{node.label} @ {node.origin.module}" + (f" ({count} kernels)" if count > 1 else "")
        for name, t in catalog().items():
            if not t.at_places:
                continue
            chosen: dict[str, Any] = {}
            for parameter, values in t.tunable.items():
                ratios = self._variants(program, node, region, name, [{**chosen, parameter: v} for v in values], what, best_ratio)
                fastest = min(ratios, key=lambda r: r[1], default=None)
                if fastest is not None and fastest[1] < best_ratio:
                    chosen, best_ratio = fastest
                    best = (name, chosen)
        return best

    def _variants(self, program: Program, node: Map, region: str, name: str, wanted: list[dict[str, Any]], what: str,
                  beat: float) -> list[tuple[dict[str, Any], float]]:  # fmt: skip
        """Variants of a kernel that are faster than the defaults by the ratio `beat` at least, with their ratios."""
        found: list[tuple[dict[str, Any], float]] = []
        new: list[tuple[dict[str, Any], str, Map]] = []
        texts = {self.subject.text(program, node)}
        for parameters in wanted:
            key = repr((name, sorted(parameters.items())))
            known = self.database.get(region, key)
            if known is not None:
                if known.ratio is not None and known.status == "faster" and known.ratio < beat:
                    found.append((parameters, known.ratio))
                continue
            variant = self._variant(program, node, name, parameters)
            if variant is None or (text := self.subject.text(program, variant)) in texts:
                continue
            texts.add(text)
            new.append((parameters, key, variant))
        if not new:
            return found
        if 1.5 * self._kernel_cost > self.left - self._cost:  # the result has to be compiled and measured as a whole, too
            raise OutOfTime
        began = self.clock()
        self.doing = f"{what} {name}"
        try:
            plain, *runs = self.subject.kernels(program, [node, *[v for _, _, v in new]], self.left)
        except RuntimeError as e:
            self._note(Trial("kernel", what, "failed", reason=str(e).split("\n")[0][:200]))
            return found
        for (parameters, key, _), run in zip(new, runs, strict=True):
            compared = in_turns(plain, run, self.clock, rounds=KERNEL_ROUNDS, seconds=max(0.0, min(self.left, 0.02 * self.budget)))
            status = "faster" if compared.faster else "slower" if compared.slower else "not faster"
            self.database.put(region, Known(key, compared.ratio, compared.candidate.median, status))
            self._note(Trial("kernel", f"{what} {name} {parameters}", status, seconds=compared.candidate.median, ratio=compared.ratio))
            if compared.faster and compared.ratio < beat:
                found.append((parameters, compared.ratio))
        self._kernel_cost = max(self.clock() - began, 0.7 * self._kernel_cost)
        return found

    def _variant(self, program: Program, node: Map, name: str, parameters: dict[str, Any]) -> Map | None:
        """The kernel after a transformation, which is taken back."""
        steps = len(program.log)
        try:
            t = make(name, **parameters)
            t.run(next(iter(t.matches_from(program, node))))
            now = program.node(node.id)  # a transformation that replaces the kernel by another one has no variant of it
            return now if isinstance(now, Map) else None
        except (Refusal, EditError, StopIteration, KeyError):
            return None
        finally:
            program.undo(len(program.log) - steps)


def kernel_region(node: Map, program: Program) -> str:
    """The fingerprint of a kernel, whatever its schedule."""
    return node_fingerprint(node.with_(schedule=AUTO), program.containers)


def from_key(key: str) -> Choices:
    """Choices from `Choices.key`."""
    value = json.loads(key)

    def steps(texts: list[str]) -> tuple[Step, ...]:
        return tuple(parse(f"recipe = Recipe('database', steps=[{', '.join(texts)}])").steps)

    parameters = tuple((a, b, c) for a, b, c in value["parameters"])
    without = frozenset((a, b) for a, b in value["without"])
    return Choices(steps(value["first"]), without, parameters, steps(value["last"]), value["inside"])


def _bytes(program: Program) -> int:
    return int(movement(program).at().bytes)  # type: ignore[arg-type]
