"""What the suites of operators and of modules share: running a case in eager mode and compiled, the verdict, and the table."""

from __future__ import annotations

import argparse
import collections
import json
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from shorthaul.api import backend, import_training
from shorthaul.frontends.functional import functionalize
from shorthaul.ir.nodes import LibraryCall, Operator
from shorthaul.ops.registry import REGISTRY
from shorthaul.runtime.report import Record

SAMPLES = 3
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}
# library calls that are not fallbacks: contractions and attention
OWN_CALLS = ("aten::call",)
STATES = ("native", "fallback", "eager", "unreached", "random", "mismatch", "error", "unusable")
_RANK = {s: i for i, s in enumerate(("unusable", "unreached", "native", "random", "fallback", "eager"))}


@dataclass
class Outcome:
    """What became of an entry: a state of STATES, why, and the PyTorch operators that were called."""

    name: str
    state: str
    detail: str = ""
    fallbacks: list[str] = field(default_factory=list)
    samples: int = 0
    seconds: float = 0.0


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


@dataclass
class Case:
    """One call of an entry. eager: its values; raises where eager mode refuses it. compiled: the same through a Dynamo backend.
    check: raises AssertionError where (compiled, eager) values differ."""

    where: str
    eager: Callable[[], Any]
    compiled: Callable[[Any], Any]
    check: Callable[[Any, Any], None]


def judge(name: str, cases: Iterable[Case], compiles: bool = True) -> Outcome:
    """Run the cases of an entry both ways. Those that eager mode refuses do not count."""
    start = time.perf_counter()
    result = Outcome(name, "unusable")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in cases:
            try:
                expected = case.eager()
            except Exception:
                continue
            probe = Probe(compiles)
            torch._dynamo.reset()
            result.samples += 1
            try:
                (same_types if probe.random else case.check)(case.compiled(probe), expected)
            except AssertionError as e:
                result.state, result.detail = "mismatch", f"{case.where}: {short(e)}"
                break
            except Exception as e:
                result.state, result.detail = "error", f"{case.where}: {type(e).__name__}: {short(e)}"
                break
            result.fallbacks = sorted({*result.fallbacks, *probe.fallbacks})
            state = ("eager" if probe.eager else "fallback" if probe.fallbacks else "unreached" if not probe.record.regions
                     else "random" if probe.random else "native")  # fmt: skip
            result.state = max(result.state, state, key=_RANK.__getitem__)
            if probe.eager and not result.detail:
                result.detail = probe.eager[0][:300]
    result.seconds = round(time.perf_counter() - start, 2)
    return result


def fresh(values: Any) -> Any:
    """The same values in tensors of their own."""

    def copy(t: Any) -> Any:
        return t.detach().clone().requires_grad_(t.requires_grad) if isinstance(t, torch.Tensor) else t

    return tree_map(copy, values)


def same_types(actual: Any, expected: Any) -> None:
    """Random results: shapes and dtypes only (moments and masks are tested by name)."""
    for a, e in zip(tree_flatten(actual)[0], tree_flatten(expected)[0], strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype), f"{a.dtype}{list(a.shape)}, expected {e.dtype}{list(e.shape)}"


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


def run(description: str | None, entries: Callable[[torch.dtype], Sequence[Any]], name: Callable[[Any], str],
        outcome: Callable[[Any, torch.dtype, int, bool], Outcome]) -> None:  # fmt: skip
    """The command line of a suite."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    found = entries(dtype)
    chosen = [e for e in found if name(e) in a.only] if a.only else found[a.start :][: a.count]
    known = {o.name for o in done} if not a.only else set()
    for entry in [] if a.table else chosen:
        if name(entry) in known:
            continue
        o = outcome(entry, dtype, a.samples, not a.imports)
        done.append(o)
        print(f"{o.name:40} {o.state:10} {o.seconds:6.1f} s  {o.detail or ', '.join(o.fallbacks)}"[:250], flush=True)
        if a.results:
            with a.results.open("a") as file:
                file.write(json.dumps(asdict(o)) + "\n")
    print(table(done if a.results is None or a.only is None else read(a.results)))
