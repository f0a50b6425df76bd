"""The report of an optimized model as plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from shorthaul.analysis.movement import movement
from shorthaul.ir.program import Program
from shorthaul.symbolic import Expr, evaluate, free_symbols

if TYPE_CHECKING:
    from .report import Record, Region

WIDTH = 100
TOP = 10  # how many refusals are shown
NOTHING = (
    "Nothing is compiled yet: call the model once. If it was called, Dynamo left all of it to eager mode, as it does with\n"
    "nn.LSTM, nn.GRU and nn.RNN; the environment variable TORCH_LOGS=graph_breaks makes it say why."
)
COPY = "This copy of an optimized model is not optimized: call shorthaul.optimize on it."
NOT_TRANSFORMATIONS = frozenset({"Import", "Differentiate", "Expand", "DeadCode", "Schedule", "InlineCustomFunction", "WholeStep",
                                 "Outputs", "Optimizer", "State", "Scalar", "Gradients", "Updates", "MergePhases"})  # fmt: skip


def render(record: Record) -> str:
    """All regions of a model: captured, compiled, fused, not fused and why, fallbacks, bytes before and after."""
    if not record.regions:
        return NOTHING if record.owner is not None else COPY
    compiled = [r for r in record.regions if r.program is not None]
    seconds = sum(r.seconds.get("compile", 0.0) for r in record.regions)
    lines = [f"{_count(len(record.regions), 'region')}, {len(compiled)} compiled, in {seconds:.2f} s"]
    if compiled and record.unused:
        names = record.unused
        more = f" and {len(names) - TOP} more" if len(names) > TOP else ""
        what = "parameters that no compiled region takes (unused, or left to eager mode around a graph break)"
        lines.append(f"{what}: {', '.join(names[:TOP])}{more}")
        if not any(r.graph_break for r in record.regions):
            lines += [f"Dynamo's reason to leave code to eager mode: {reason}" for reason in record.breaks[:TOP]]
    for region in record.regions:
        lines += ["", *_region(region)]
    return "\n".join(lines)


def _region(region: Region) -> list[str]:
    title = f"Region {region.index}" + (f" ({region.reason})" if region.reason else "")
    lines = [title, "-" * len(title)]
    if region.fallback:
        lines += _wrapped("runs in eager mode: ", region.fallback.split("\n"))
    if region.operators:
        lines.append(f"captured      {_count(sum(region.operators.values()), 'operator')}: {_listing(region.operators)}")
    if region.program is not None:
        lines += _compiled(region, region.program)
    status = getattr(getattr(region.compiled, "executable", None), "status", "")
    if status:
        lines.append(f"CUDA graphs   {status}")
    if region.graph_break:
        lines.append(f"graph break   {region.graph_break}")
    if region.start:
        lines.append(f"start         {region.start}")
    if region.seconds:
        stages = ", ".join(f"{k} {v * 1e3:.0f} ms" for k, v in region.seconds.items() if k != "compile")
        lines.append(f"compile time  {region.seconds.get('compile', 0.0):.2f} s" + (f": {stages}" if stages else ""))
    if region.fallbacks:
        lines.append(f"fallbacks     {_count(len(region.fallbacks), 'operator')} through PyTorch:")
        lines += [f"  {reason}  {origin}" for reason, origin in region.fallbacks]
    return lines


def _compiled(region: Region, program: Program) -> list[str]:
    lines = []
    kernels = region.kernels
    phases = Counter(k.phase for k in kernels)
    distinct = len({k.name for k in region.compiled.kernels.values()}) if region.compiled is not None else len(kernels)
    lines.append(f"kernels       {len(kernels)} ({phases['forward']} forward, {phases['backward']} backward; {distinct} distinct)")
    calls = region.library_calls
    lines.append(f"library calls {sum(calls.values())}" + (f": {_listing(calls)}" if calls else ""))
    applied = Counter(r.name for r in program.log if r.name not in NOT_TRANSFORMATIONS)
    if applied:
        lines.append("transformed   " + ", ".join(f"{name} {n}×" for name, n in applied.most_common()))
    lines += _bytes(program)
    rounded = [r for r in program.log if r.notes.get("rounding")]
    if rounded:
        most, less = max(r.notes["rounding"] for r in rounded), sum(r.notes.get("memory", 0) for r in rounded)
        what = f"{_count(len(rounded), 'value')} saved for the backward phase, by at most {most:.1e} of themselves"
        lines.append(f"rounded       {what} ({_size(less)} less); gradients are those of the rounded values")
    refused = sorted(program.attributes.get("refusals", ()), key=lambda r: -r.bytes)
    if refused:
        shown = _distinct(refused)
        lines.append(f"not applied   {_count(len(refused), 'place')}; those with the most bytes at stake:")
        lines += [f"  {_size(r.bytes):>9}  {r.transformation} at {r.where}: {r.reason}" for r in shown]
    return lines


def _bytes(program: Program) -> list[str]:
    try:
        moved = movement(program).at()
    except KeyError:
        return []  # a size without a hint
    if moved.eager_bytes is None or not moved.bytes:
        return [f"bytes moved   {_size(_number(program, moved.bytes))}"]
    before, after = _number(program, moved.eager_bytes), _number(program, moved.bytes)
    return [f"bytes moved   {_size(after)}, eager {_size(before)}: {after / max(before, 1):.2f} of it"]


def _number(program: Program, e: int | Expr) -> int:
    if not isinstance(e, Expr):
        return int(e)
    hints = program.attributes.get("size_hints", {})
    return int(evaluate(e, {s: hints[s.name] for s in free_symbols(e)}))


def _distinct(refused: Iterable[Any]) -> list[Any]:
    """The first refusals that say something new."""
    seen: dict[tuple, Any] = {}
    for r in refused:
        seen.setdefault((r.transformation, r.where, r.reason), r)
        if len(seen) == TOP:
            break
    return list(seen.values())


def _listing(counts: Counter[str]) -> str:
    text = ", ".join(f"{name} {n}" for name, n in counts.most_common())
    return text if len(text) <= WIDTH else text[: WIDTH - 2] + " …"


def _wrapped(head: str, lines: list[str]) -> list[str]:
    return [head + lines[0].strip(), *("  " + line.strip() for line in lines[1:])]


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _size(n: int) -> str:
    """Bytes with a binary unit."""
    value = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
