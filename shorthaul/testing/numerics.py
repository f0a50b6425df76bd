"""Does a candidate compute what eager PyTorch computes? One rule, judged against float64.

The error of a tensor x, whose float64 counterpart is x64, is

    ‖x − x64‖ / max(‖x64‖, 1e-3 · scale · √numel)

where `scale` is the root mean square, over the tensors of the same kind in the network, of each tensor's own RMS. (It
keeps a tensor that is zero in exact arithmetic, such as the gradient of a bias before a batch norm, from being judged by
the size of its rounding noise.)

- float64 runs: every error at most 1e-9.
- float32 and bfloat16 runs: the median over tensors of (candidate's error / eager's error) at most 1.5; every
  tensor's error at most 10 times eager's, or at most 64 units in the last place. Errors are pooled over seeds (`pool`) by
  their root mean square. Eager's error counts as at least half a unit in the last place, which storage rounding
  alone may cost. For bfloat16, 64 units would be half the value, so 4 are allowed.
- integers and booleans: equal to eager's.
- the set of names, every shape and every dtype: as eager's. NaN and infinity: exactly where eager has them.

Eager's error over another memory layout, where given, is printed beside: it says how much of a difference is noise. Where eager in
that layout itself breaks the rule (`Agreement.layouts`), the rule cannot tell a fault from noise, and `compare(chaotic=...)` judges the
tensors it names by the larger of eager's two errors. That happens when many steps are trained in low precision with ReLU or max
pooling: an activation that rounds to the other side of zero changes a gradient by a thousandth at once, in one run and not in
another. `training.judge_training` uses it only after the rule itself failed for eager, in the same run, and never for the gradients
of the first step; float64 runs, which do not jump, stay at 1e-9.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

FLOAT64_LIMIT = 1e-9
MEDIAN_RATIO = 1.5
WORST_RATIO = 10.0
ULPS = {torch.float32: 64.0, torch.bfloat16: 4.0, torch.float16: 4.0}
SCALE_FLOOR = 1e-3


@dataclass(frozen=True)
class Row:
    """The verdict on one tensor. `spread` is eager's error in another memory layout (None: not measured)."""

    name: str
    kind: str
    dtype: torch.dtype
    candidate: float
    eager: float
    spread: float | None = None
    chaotic: bool = False
    problem: str = ""  # a difference that no error measures: shape, dtype, NaN, an integer value

    @property
    def unit(self) -> float:
        """One unit in the last place, relative."""
        return torch.finfo(self.dtype).eps if self.dtype.is_floating_point or self.dtype.is_complex else 0.0

    @property
    def baseline(self) -> float:
        """The error that is allowed to be exceeded by a factor: eager's."""
        return max(self.eager, self.spread or 0.0) if self.chaotic else self.eager

    @property
    def limit(self) -> float:
        """The largest error that this tensor may have."""
        if self.dtype in (torch.float64, torch.complex128):
            return FLOAT64_LIMIT
        return max(WORST_RATIO * self.baseline, ULPS.get(self.dtype, 0.0) * self.unit)

    @property
    def ratio(self) -> float:
        """The candidate's error in units of eager's, which counts as at least half a unit in the last place."""
        floor = max(self.baseline, self.unit / 2)
        return self.candidate / floor if floor else 0.0

    @property
    def ok(self) -> bool:
        return not self.problem and self.candidate <= self.limit


@dataclass(frozen=True)
class Agreement:
    """The verdict on all tensors of a network. `print` it; `assert agreement.ok, agreement`."""

    rows: Sequence[Row]
    seeds: int = 1
    missing: Sequence[str] = ()  # named by eager only
    unexpected: Sequence[str] = ()  # named by the candidate only
    title: str = field(default="", compare=False)

    @property
    def median_ratio(self) -> float:
        """The median over the low-precision floating tensors of the ratio of errors; 0 where there are none."""
        ratios = sorted(r.ratio for r in self.rows if not r.problem and r.dtype in ULPS)
        if not ratios:
            return 0.0
        middle = len(ratios) // 2
        return ratios[middle] if len(ratios) % 2 else (ratios[middle - 1] + ratios[middle]) / 2

    @property
    def layouts(self) -> Agreement:
        """The verdict on eager in the other memory layout by the unloosened rule, as if it were the candidate."""
        rows = [replace(r, candidate=r.spread, chaotic=False) for r in self.rows if r.spread is not None and not r.problem]
        return Agreement(rows, self.seeds, title="eager in another memory layout")

    @property
    def failures(self) -> list[str]:
        """One sentence for each broken part of the rule; empty where everything agrees."""
        found = [f"{name}: eager has it, the candidate has not" for name in self.missing]
        found += [f"{name}: the candidate has it, eager has not" for name in self.unexpected]
        for row in self.rows:
            if row.problem:
                found.append(f"{row.name}: {row.problem}")
            elif not row.ok:
                found.append(f"{row.name} ({row.kind}): error {row.candidate:.2e}, at most {row.limit:.2e} "
                             f"(eager's own is {row.eager:.2e})")  # fmt: skip
        if self.median_ratio > MEDIAN_RATIO:
            found.append(f"the median error is {self.median_ratio:.2f} times eager's, at most {MEDIAN_RATIO}")
        if not self.rows:
            found.append("nothing was compared")
        return found

    @property
    def ok(self) -> bool:
        return not self.failures

    def table(self, worst: int = 10) -> str:
        """The `worst` tensors, the most wrong first, and the verdict."""

        def badness(row: Row) -> float:
            return math.inf if row.problem else row.candidate / row.limit if row.limit else float(row.candidate > 0)

        rows = sorted(self.rows, key=badness, reverse=True)[:worst]
        wide = max([len(r.name) for r in rows] + [6])
        lines = [f"{'tensor':{wide}}  {'kind':10} {'error':>9} {'eager':>9} {'layouts':>9} {'limit':>9}  verdict"]
        for r in rows:
            spread = f"{r.spread:9.2e}" if r.spread is not None else " " * 9
            verdict = r.problem or ("ok" if r.ok else "WRONG")
            lines.append(
                f"{r.name:{wide}}  {r.kind:10} {r.candidate:9.2e} {r.eager:9.2e} {spread} {r.limit:9.2e}  {verdict}"
            )
        if len(self.rows) > worst:
            lines.append(f"... and {len(self.rows) - worst} tensors nearer to their reference")
        head = f"{self.title}: " if self.title else ""
        seeds = f"{self.seeds} seed{'s' if self.seeds > 1 else ''}"
        summary = f"{len(self.rows)} tensors, {seeds}, median ratio {self.median_ratio:.2f}"
        failures = self.failures
        verdict = "agrees with eager" if not failures else f"DOES NOT AGREE with eager ({len(failures)} reasons)"
        return "\n".join([f"{head}{verdict}; {summary}", *lines, *(f"- {f}" for f in failures[:worst])])

    __str__ = table


def compare(
    candidate: Mapping[str, Tensor],
    eager: Mapping[str, Tensor],
    reference64: Mapping[str, Tensor],
    kinds: Mapping[str, str] | None = None,
    *,
    spread: Mapping[str, Tensor] | None = None,
    chaotic: bool | Callable[[str], bool] = False,
    title: str = "",
) -> Agreement:
    """Judge `candidate` by the module's rule.

    `eager` is eager PyTorch in the candidate's dtype, `reference64` eager PyTorch in float64 (in a float64 run, the
    same as `eager`); `spread`, where given, is eager in another memory layout, and `chaotic` makes it part of the
    rule, for all tensors or for the names it is true of. `kinds` names each tensor's kind ("gradient",
    "parameter", ...); a name without a kind takes what stands before its first "/".
    Raises `KeyError` where the reference lacks a tensor that eager has: that is a fault of the test.
    """
    kinds = kinds or {}
    lacking = sorted(set(eager) - set(reference64))
    if lacking:
        raise KeyError(f"the float64 reference lacks {', '.join(lacking[:5])}")

    def kind_of(name: str) -> str:
        return kinds.get(name, name.split("/", 1)[0])

    scales = _scales((kind_of(name), reference64[name]) for name in eager)
    rows = []
    for name in eager:
        if name in candidate:
            other = spread.get(name) if spread is not None else None
            kind = kind_of(name)
            loose = chaotic(name) if callable(chaotic) else chaotic
            rows.append(_judge(name, kind, candidate[name], eager[name], reference64[name], other, scales.get(kind, 0.0), loose))
    return Agreement(
        rows,
        missing=[name for name in eager if name not in candidate],
        unexpected=[name for name in candidate if name not in eager],
        title=title,
    )


def pool(agreements: Sequence[Agreement], title: str = "") -> Agreement:
    """One verdict over several seeds: errors pooled by their root mean square; any other difference is kept."""
    if not agreements:
        raise ValueError("nothing to pool")
    by_name: dict[str, list[Row]] = {}
    for agreement in agreements:
        for row in agreement.rows:
            by_name.setdefault(row.name, []).append(row)
    rows = []
    for name, group in by_name.items():
        spreads = [r.spread for r in group if r.spread is not None]
        rows.append(
            Row(
                name,
                group[0].kind,
                group[0].dtype,
                _rms(r.candidate for r in group),
                _rms(r.eager for r in group),
                _rms(spreads) if spreads else None,
                chaotic=group[0].chaotic,
                problem=next((r.problem for r in group if r.problem), ""),
            )
        )
    missing = sorted({n for a in agreements for n in a.missing})
    unexpected = sorted({n for a in agreements for n in a.unexpected})
    return Agreement(rows, sum(a.seeds for a in agreements), missing, unexpected, title or agreements[0].title)


def _judge(name: str, kind: str, x: Tensor, eager: Tensor, exact: Tensor, spread: Tensor | None, scale: float,
           chaotic: bool) -> Row:  # fmt: skip
    def refuse(problem: str) -> Row:
        return Row(name, kind, eager.dtype, math.inf, 0.0, problem=problem)

    x, eager, exact = x.detach().cpu(), eager.detach().cpu(), exact.detach().cpu()

    if x.shape != eager.shape:
        return refuse(f"shape {tuple(x.shape)}, eager has {tuple(eager.shape)}")
    if x.dtype != eager.dtype:
        return refuse(f"dtype {x.dtype}, eager has {eager.dtype}")
    if not (eager.dtype.is_floating_point or eager.dtype.is_complex):
        wrong = int((x != eager).sum())
        return (
            refuse(f"{wrong} of {x.numel()} values differ from eager's")
            if wrong
            else Row(name, kind, eager.dtype, 0.0, 0.0)
        )
    finite = torch.isfinite(eager)
    if not torch.equal(finite, torch.isfinite(x)) or not torch.equal(torch.isnan(eager), torch.isnan(x)):
        return refuse(f"NaN or infinity: {int((~torch.isfinite(x)).sum())} values, eager has {int((~finite).sum())}")
    if not torch.equal(x[torch.isinf(x)], eager[torch.isinf(eager)]):
        return refuse("infinities of the other sign")
    finite = finite & torch.isfinite(exact)
    return Row(
        name,
        kind,
        eager.dtype,
        _error(x, exact, finite, scale),
        _error(eager, exact, finite, scale),
        None if spread is None else _error(spread.detach().cpu(), exact, finite, scale),
        chaotic,
    )


def _error(x: Tensor, exact: Tensor, finite: Tensor, scale: float) -> float:
    wide = torch.complex128 if exact.dtype.is_complex else torch.float64
    exact = exact[finite].to(wide)
    difference = float(torch.linalg.vector_norm(x[finite].to(wide) - exact))
    size = max(float(torch.linalg.vector_norm(exact)), SCALE_FLOOR * scale * math.sqrt(exact.numel()))
    if size == 0.0:
        return 0.0 if difference == 0.0 else math.inf
    return difference / size


def _scales(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
    """The RMS over the tensors of each kind of each tensor's own RMS."""
    squares: dict[str, list[float]] = {}
    for kind, x in tensors:
        if x.is_floating_point() and x.numel():
            finite = x[torch.isfinite(x)].double()
            if finite.numel():
                squares.setdefault(kind, []).append(float((finite * finite).mean()))
    return {kind: math.sqrt(sum(values) / len(values)) for kind, values in squares.items()}


def _rms(values: Iterable[float]) -> float:
    listed = list(values)
    return math.sqrt(sum(v * v for v in listed) / len(listed))
