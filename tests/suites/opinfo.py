"""PyTorch's operator database against Shorthaul: forward and first gradient of every operator, compared with eager mode.

    python tests/suites/opinfo.py [--dtype float32] [--samples 3] [--start 0] [--count 70] [--results FILE] [--only NAME] [--imports]

runs entries of `op_db` through `torch.compile(backend="shorthaul")`, appends a JSON line an entry to the results file (entries that
stand there already are not run again) and prints the table. `--imports` stops after import and differentiation: it says what would be
a fallback, in a tenth of the time, and compares nothing.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten, tree_map

from shorthaul.api import backend, import_training
from shorthaul.frontends.functional import functionalize
from shorthaul.ir.nodes import LibraryCall, Operator
from shorthaul.ops.registry import REGISTRY
from shorthaul.runtime.report import Record

SAMPLES = 3
UNINITIALIZED = {"empty", "empty_like", "new_empty", "new_empty_strided", "empty_strided", "empty_permuted"}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}
# library calls that are not fallbacks: contractions and attention
OWN_CALLS = ("aten::call",)
STATES = ("native", "fallback", "eager", "unreached", "random", "mismatch", "error", "unusable")


@dataclass
class Outcome:
    """What became of an entry: a state of STATES, why, and the PyTorch operators that were called."""

    name: str
    state: str
    detail: str = ""
    fallbacks: list[str] = field(default_factory=list)
    samples: int = 0
    seconds: float = 0.0


def entries(dtype: torch.dtype = torch.float32) -> list[Any]:
    """The entries of the database with samples of that dtype on the CPU and results that are defined."""
    return [op for op in op_db if dtype in op.dtypes and op.name not in UNINITIALIZED]


def evaluate(f: Callable[..., Any], s: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Results of f on a sample, and the gradients of their sum."""

    def own(t: Any) -> Any:
        return t.detach().clone().requires_grad_(t.requires_grad) if isinstance(t, torch.Tensor) else t

    given, args, kwargs = tree_map(own, (s.input, s.args, s.kwargs))
    torch.manual_seed(0)
    outputs = [o for o in tree_flatten(f(given, *args, **kwargs))[0] if isinstance(o, torch.Tensor)]
    leaves = [t for t in tree_flatten((given, args, kwargs))[0] if isinstance(t, torch.Tensor) and t.requires_grad]
    wanted = [o for o in outputs if o.requires_grad and (o.is_floating_point() or o.is_complex())]
    if not wanted or not leaves:
        return outputs, []
    total = [o.abs().sum() if o.is_complex() else o.sum() for o in wanted]
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return outputs, [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


class Probe:
    """A Dynamo backend that notes what becomes of each graph. A graph that cannot be compiled runs in eager mode."""

    def __init__(self, compiles: bool = True) -> None:
        self.compiles = compiles
        self.record = Record()
        self.fallbacks: collections.Counter[str] = collections.Counter()
        self.eager: list[str] = []
        self.random = False

    def __call__(self, gm: torch.fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        if self.compiles:
            compiled = backend(gm, examples, record=self.record)
            region = self.record.regions[-1]
            if region.fallback:
                self.eager.append(region.fallback.split("\n")[0])
                return compiled
            program: Any = region.program
        else:
            compiled = gm.forward
            self.record.region()
            try:
                program = import_training(functionalize(gm, examples), train=torch.is_grad_enabled(), strict=False, name="region").program
            except Exception as e:
                self.eager.append(f"{type(e).__name__}: {e}".split("\n")[0])
                return compiled
        self.random |= "rng_seed" in program.containers
        for n in program.nodes:
            if isinstance(n, LibraryCall) and n.function in OWN_CALLS:
                self.fallbacks[f"{n.attributes['target']} {n.phase}"] += 1
                self.random |= bool(n.attributes.get("random"))
            elif isinstance(n, Operator) and "maps" not in REGISTRY[n.op].expansions():
                self.fallbacks[f"{n.op} {n.phase}"] += 1
        return compiled


def outcome(op: Any, dtype: torch.dtype = torch.float32, samples: int = SAMPLES, compiles: bool = True) -> Outcome:
    """Run the first samples of an entry both ways. Samples that eager mode refuses do not count."""
    start = time.perf_counter()
    result = Outcome(op.full_name, "unusable")
    rank = {s: i for i, s in enumerate(("unusable", "unreached", "native", "random", "fallback", "eager"))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for s in _samples(op, dtype, samples):
            try:
                expected = evaluate(op.op, s)
            except Exception:
                continue
            probe = Probe(compiles)
            torch._dynamo.reset()
            result.samples += 1
            try:
                actual = evaluate(torch.compile(lambda *a, **k: op.op(*a, **k), backend=probe), s)
                if probe.random:
                    same_types(actual, expected)
                else:
                    compare(op, s, actual, expected, TOLERANCE[dtype])
            except AssertionError as e:
                return failed(result, "mismatch", f"sample {result.samples - 1}: {short(e)}", start)
            except Exception as e:
                return failed(result, "error", f"sample {result.samples - 1}: {type(e).__name__}: {short(e)}", start)
            result.fallbacks = sorted({*result.fallbacks, *probe.fallbacks})
            state = ("eager" if probe.eager else "fallback" if probe.fallbacks else "unreached" if not probe.record.regions
                     else "random" if probe.random else "native")  # fmt: skip
            if rank[state] > rank[result.state]:
                result.state = state
            if probe.eager and not result.detail:
                result.detail = probe.eager[0][:300]
    result.seconds = round(time.perf_counter() - start, 2)
    return result


def compare(op: Any, s: Any, actual: Any, expected: Any, tolerance: float) -> None:
    """Agreement with eager; where eager itself is further from float64 than the tolerance, an error of at most twice eager's."""
    try:
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    except AssertionError:
        exact = _flat(evaluate(op.op, _widened(s)))
        for a, e, x in zip(_flat(actual), _flat(expected), exact, strict=True):
            if not a.is_floating_point() or not torch.isfinite(x).all():
                torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance, equal_nan=True)
                continue
            allowed = tolerance * x.abs().max().item() if x.numel() else 0.0
            own, eager = ((v.double() - x).abs().max().item() if x.numel() else 0.0 for v in (a, e))
            if own > max(allowed, 2 * eager):
                raise


def _flat(values: Any) -> list[torch.Tensor]:
    return [v.detach() for v in tree_flatten(values)[0]]


def _widened(s: Any) -> Any:
    """The sample in float64."""

    def wide(t: Any) -> Any:
        if not isinstance(t, torch.Tensor) or not t.is_floating_point():
            return torch.float64 if t in (torch.float32, torch.bfloat16, torch.float16) else t
        return t.detach().double().requires_grad_(t.requires_grad)

    return types.SimpleNamespace(**{k: tree_map(wide, getattr(s, k)) for k in ("input", "args", "kwargs")})


def _samples(op: Any, dtype: torch.dtype, count: int) -> Iterator[Any]:
    for i, s in enumerate(op.sample_inputs("cpu", dtype, requires_grad=op.supports_autograd)):
        if i >= count:
            return
        yield s


def same_types(actual: Any, expected: Any) -> None:
    """Random results: shapes and dtypes only (moments and masks are tested by name)."""
    for a, e in zip(tree_flatten(actual)[0], tree_flatten(expected)[0], strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype), f"{a.dtype}{list(a.shape)}, expected {e.dtype}{list(e.shape)}"


def failed(result: Outcome, state: str, detail: str, start: float) -> Outcome:
    result.state, result.detail = state, detail
    result.seconds = round(time.perf_counter() - start, 2)
    return result


def short(e: BaseException) -> str:
    return " ".join(str(e).split())[:400]


def table(outcomes: Sequence[Outcome]) -> str:
    """Counts by state, what fails, and the fallbacks, the most frequent first."""
    counts = collections.Counter(o.state for o in outcomes)
    reached = sum(counts[s] for s in ("native", "random", "fallback", "eager", "mismatch", "error"))
    own = counts["native"] + counts["random"]
    lines = [f"{len(outcomes)} entries: " + ", ".join(f"{counts[s]} {s}" for s in STATES if counts[s])]
    lines.append(
        f"of {reached} that reach the backend {own} run as maps and contractions: {100 * own / max(1, reached):.1f} %"
    )
    for state in ("mismatch", "error", "eager", "unreached", "unusable"):
        found = [o for o in outcomes if o.state == state]
        lines += [f"\n{state}:"] * bool(found) + [f"  {o.name:40} {o.detail}" for o in found]
    by_call: dict[str, set[str]] = collections.defaultdict(set)
    for o in outcomes:
        for f in o.fallbacks:
            by_call[f].add(o.name)
    ranked = sorted(by_call.items(), key=lambda kv: -len(kv[1]))
    lines += ["\nfallbacks:"] * bool(ranked) + [f"  {len(v):3} {k:60} {', '.join(sorted(v))[:150]}" for k, v in ranked]
    return "\n".join(lines)


def read(path: Path) -> list[Outcome]:
    """Outcomes of a results file; the last one of a name counts."""
    found = {o["name"]: Outcome(**o) for o in map(json.loads, path.read_text().splitlines())} if path.exists() else {}
    return list(found.values())


@functools.cache
def by_name() -> dict[str, Any]:
    return {op.full_name: op for op in op_db}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--start", type=int, default=0, help="first entry")
    parser.add_argument("--count", type=int, help="number of entries (default: all)")
    parser.add_argument("--only", nargs="*", help="names of entries")
    parser.add_argument("--results", type=Path, help="JSON lines; entries that stand there are not run again")
    parser.add_argument("--imports", action="store_true", help="stop after import and differentiation")
    parser.add_argument("--table", action="store_true", help="only print the table of the results file")
    a = parser.parse_args()
    dtype = getattr(torch, a.dtype)
    done = read(a.results) if a.results else []
    chosen = [by_name()[n] for n in a.only] if a.only else entries(dtype)[a.start :][: a.count]
    known = {o.name for o in done} if not a.only else set()
    for op in [] if a.table else chosen:
        if op.full_name in known:
            continue
        found = outcome(op, dtype, a.samples, not a.imports)
        done.append(found)
        print(
            f"{found.name:40} {found.state:10} {found.seconds:6.1f} s  {found.detail or ', '.join(found.fallbacks)}"[
                :250
            ],
            flush=True,
        )
        if a.results:
            with a.results.open("a") as file:
                file.write(json.dumps(asdict(found)) + "\n")
    print(table(done if a.results is None or a.only is None else read(a.results)))


if __name__ == "__main__":
    main()
