"""`shorthaul.verify`: does the optimized model compute what eager PyTorch computes, and if not, what is at fault?

The verdict is that of `shorthaul.testing.numerics`: every output, gradient and buffer of the optimized model is compared with eager's and
with float64. Where they differ, each compiled region is taken apart (`locate`): its operators against ATen in float64, its program before
and after each rewrite, its kernels against the interpreter; the first of these that is wrong is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shorthaul.config import Options
from shorthaul.ir.nodes import Origin
from shorthaul.modules import optimize_with
from shorthaul.runtime.report import Region
from shorthaul.testing.numerics import Agreement, Row, compare, pool

from .locate import Fault, Recorded, locate, record
from .runs import copy_of, run, same, sampled, without_dropout

VARIANTS = ("layout", "nudge 0", "nudge 1", "nudge 2")  # of eager: how its own rounding spreads

__all__ = ["Fault", "Verification", "verify"]


@dataclass
class Verification:
    """What `verify` found; print it. `ok`: whether the optimized model agrees with eager.

    agreement: the verdict on every tensor. faults: what is at fault, one a wrong region, where it does not agree. notes: how random numbers
    were treated, and what runs in eager mode. origins: module and source line behind a tensor's name.
    """

    agreement: Agreement
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    origins: dict[str, Origin] = field(default_factory=dict, repr=False)

    @property
    def ok(self) -> bool:
        return self.agreement.ok

    def table(self, worst: int = 10) -> str:
        """The verdict, the `worst` tensors with where they come from, and what is at fault."""
        lines = [self.agreement.table(worst)]
        shown = [r.name for r in sorted(self.agreement.rows, key=_badness, reverse=True)[:worst] if r.name in self.origins]
        if shown:
            lines += ["", "where they come from:", *(f"  {n}: {self.origins[n]}" for n in shown)]
        lines += [f"note: {n}" for n in self.notes]
        if not self.ok:
            lines += ["", *(str(f) for f in self.faults)]
            if not self.faults:
                lines.append("at fault: not found; no compiled region is wrong by itself (graph breaks, hooks and eager parts lie between)")
        return "\n".join(lines)

    __str__ = table


def _badness(row: Row) -> float:
    return float("inf") if row.problem else row.candidate / row.limit if row.limit else float(row.candidate > 0)


def verify(
    model: nn.Module,
    inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    level: int = 4,
    seeds: Sequence[int] = (0, 1, 2),
    find_fault: bool = True,
) -> Verification:
    """Run a model optimized, in eager mode and in float64, forward and backward, and judge every tensor.

    model: plain or optimized; copies of it run, in its mode (training or evaluation), and it is left as it is. inputs: a tuple of
    positional arguments, or one tensor; those that require grad are compared too. loss: a function of the outputs that gives a scalar, by
    default a random linear function of them. level: of the optimization. seeds: one run each, of the given inputs and of near ones; errors
    are pooled. find_fault: where they differ, look for the transformation, the operator or the kernel at fault, which takes a while.

    Dropout in eager mode gets the masks of the optimized model, or, where that is not possible, is switched off (a note says so).
    Raises TypeError for a model that cannot be copied or does not run in float64, ValueError for one that draws random numbers that eager
    mode cannot repeat.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"verify takes a torch.nn.Module, not {type(model).__name__}")
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    work = _Work(model, args, dict(kwargs or {}), loss, Options(level, trace=True))
    return work.verification(tuple(seeds), find_fault)


class _Work:
    """One verification: what is run, and how its random numbers are made equal."""

    def __init__(self, model: nn.Module, inputs: tuple, kwargs: dict, loss: Any, options: Options) -> None:
        self.model, self.inputs, self.kwargs, self.loss, self.options = model, inputs, kwargs, loss, options
        self.masked = self.no_dropout = False
        self.notes: list[str] = []
        self.regions: list[Region] = []

    def run(self, module: nn.Module, seed: int, **how: Any) -> dict[str, Tensor]:
        inputs, kwargs = sampled((self.inputs, self.kwargs), seed)
        if self.no_dropout:
            with without_dropout(module):
                return run(module, inputs, kwargs, seed=seed, loss=self.loss, **how)
        return run(module, inputs, kwargs, seed=seed, loss=self.loss, **how)

    def eager(self, seed: int, **how: Any) -> dict[str, Tensor]:
        wide = how.get("wide", False)
        module = copy_of(self.model, wide=wide, variant=how.get("variant", ""))
        try:
            return self.run(module, seed, masked=self.masked, exact=wide, **how)
        except (RuntimeError, TypeError) as e:
            if not wide:
                raise
            reason = str(e).strip().split("\n")[0]
            what = f"verify compares with a run in float64, and {type(self.model).__name__} does not run in it: {reason}"
            raise TypeError(f"{what}. Some tensor that the model or the loss holds has a type of its own: make it a buffer") from e

    def optimized(self, seed: int, *, wide: bool = False) -> dict[str, Tensor]:
        module = optimize_with(copy_of(self.model, wide=wide), self.options)
        found = self.run(module, seed, wide=wide)
        self.regions = module.report().regions  # type: ignore[operator]
        return found

    def settle_randomness(self, seed: int) -> None:
        """Find out whether eager mode draws random numbers, and how all runs can have the same."""
        if self._steady(seed):
            return
        checkpoints = any(r.program is not None and r.program.attributes.get("checkpoint") for r in self.regions)
        reason = "under a checkpoint" if checkpoints else f"{len(self.regions)} regions" if len(self.regions) != 1 else ""
        if not reason:
            self.masked = True
            try:
                self.eager(seed)
            except (NotImplementedError, RuntimeError) as e:
                reason, self.masked = str(e), False
            else:
                self.notes.append("random numbers: eager mode was given those of the optimized model")
                return
        self.no_dropout = True
        if not self._steady(seed):
            what = "the model draws random numbers that eager mode cannot be given"
            raise ValueError(f"{what} ({reason}), so nothing can be compared; verify it with that part left out")
        self.notes.append(f"random numbers: dropout layers are switched off in all runs ({reason})")

    def _steady(self, seed: int) -> bool:
        """Whether eager mode computes the same from two random states."""
        inputs, kwargs = sampled((self.inputs, self.kwargs), seed)
        found = []
        for k in range(2):
            module = copy_of(self.model)
            with without_dropout(module) if self.no_dropout else nullcontext(), torch.no_grad():
                found.append(run(module, inputs, kwargs, seed=seed + k))
        return same(*found)

    def verification(self, seeds: tuple[int, ...], find_fault: bool) -> Verification:
        first = self.optimized(seeds[0])
        self.settle_randomness(seeds[0])
        found = {s: first if s == seeds[0] and not self.no_dropout else self.optimized(s) for s in seeds}
        regions = self.regions
        eager = {s: self.eager(s) for s in seeds}
        exact = {s: self.eager(s, wide=True) for s in seeds}
        verdict = pool([compare(found[s], eager[s], exact[s]) for s in seeds])
        if not verdict.ok:
            verdict = self._unless_chaotic(verdict, seeds, found, eager, exact)
        notes = self.notes + [f"region {r.index} runs in eager mode: {r.fallback.splitlines()[0]}" for r in regions if r.fallback]
        if not regions:
            notes.append("nothing was compiled")
        result = Verification(verdict, [], notes, _origins(self.model, regions))
        if not verdict.ok and find_fault:
            result.faults = self._faults(seeds[0])
        return result

    def _unless_chaotic(self, verdict: Agreement, seeds: Sequence[int], found: Any, eager: Any, exact: Any) -> Agreement:
        """Where eager itself breaks the rule when its inputs change by a unit in the last place, or its memory layout changes, the rule
        cannot tell a fault from noise: the larger of eager's errors counts, and a float64 run, which does not jump, must agree."""
        spread = {s: _farthest([self.eager(s, variant=v) for v in VARIANTS], exact[s]) for s in seeds}
        strict = pool([compare(found[s], eager[s], exact[s], spread=spread[s]) for s in seeds])
        loose = pool([compare(found[s], eager[s], exact[s], spread=spread[s], chaotic=True) for s in seeds])
        if not strict.layouts.ok and loose.ok:
            try:
                wide = self.optimized(seeds[0], wide=True)
            except (RuntimeError, TypeError) as e:  # it makes float32 tensors of its own: no proof, no excuse
                self.notes.append(f"the optimized model does not run in float64 ({str(e).strip().splitlines()[0]}), which would tell "
                                  "whether the network is only chaotic")  # fmt: skip
                return verdict
            if compare(wide, exact[seeds[0]], exact[seeds[0]]).ok:
                self.notes.append("the network is chaotic: eager itself breaks the rule when rounding changes; its larger error "
                                  "counts, and the float64 run agrees")  # fmt: skip
                return loose
        return verdict

    def _faults(self, seed: int) -> list[Fault]:
        module = optimize_with(copy_of(self.model), self.options)
        self.run(module, seed)
        regions = module.report().regions  # type: ignore[operator]
        calls: list[Recorded] = []
        module.load_state_dict(self.model.state_dict())
        module.zero_grad(set_to_none=True)
        with record(regions, calls):
            self.run(module, seed)
        found = [locate(c) for c in calls]
        return [f for f in found if f is not None]


def _farthest(runs: Sequence[dict[str, Tensor]], exact: dict[str, Tensor]) -> dict[str, Tensor]:
    """For every tensor that of the runs which is farthest from the exact one."""

    def off(name: str, run: dict[str, Tensor]) -> float:
        return float(torch.linalg.vector_norm(run[name].double() - exact[name].double()).nan_to_num())

    return {name: max(runs, key=lambda r, n=name: off(n, r))[name] for name in exact}  # type: ignore[misc]


def _origins(model: nn.Module, regions: Sequence[Region]) -> dict[str, Origin]:
    """Module and source line of the first operator that reads each parameter and buffer."""
    found: dict[str, Origin] = {}
    names = [(f"gradient/{n}", n) for n, _ in model.named_parameters()] + [(f"buffer/{n}", n) for n, _ in model.named_buffers()]
    for name, path in names:
        for r in regions:
            if r.program is None or name in found:
                continue
            container = path.replace(".", "_")
            readers = r.program.readers(container) if container in r.program.containers else []
            origins = [o for n in sorted(readers, key=r.program.position) for o in n.origins]
            best = next((o for o in origins if path.startswith(o.module) and o.module), origins[0] if origins else None)
            if best is not None:
                found[name] = best
    return found
