"""How far the cost model can be trusted: predicted against measured time of every generated kernel, on this CPU.

    python -m benchmarks.cost_model                       # the basic networks at small sizes, both descriptions of the machine
    python -m benchmarks.cost_model --networks mbconv --full --measure

Each distinct kernel of the optimized programs, forward and backward, is compiled and run by itself on random operands; its time is the
lower quartile of its calls. Predicted is the roofline on the described machine: as it ships ("cpu") and as `shorthaul doctor --measure`
measured it (`--measure` does that first). Printed are, for each network and for all, the rank correlation (Spearman: does the model order
kernels rightly, which is what a search needs), the correlation of the logarithms (Pearson), the median of measured over predicted time, and
the share of the total time that is in kernels which take more than three times what was predicted. Library calls are not in it.
Results go to `benchmarks/results/cost_model.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"
NETWORKS = ("chain", "mlp", "lenet", "mbconv", "bert", "unet")


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 0, ties shared."""
    array = np.asarray(values)
    return np.array([(array < v).sum() + ((array == v).sum() - 1) / 2 for v in array])


def correlation(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Pearson's; NaN for fewer than three pairs or a constant."""
    x, y = np.asarray(a, float), np.asarray(b, float)
    return float(np.corrcoef(x, y)[0, 1]) if len(x) > 2 and x.std() > 0 and y.std() > 0 else float("nan")


def summary(rows: Sequence[dict[str, Any]], machine: str) -> dict[str, float]:
    """The numbers of the module's page for rows with `measured` and `predicted` seconds by machine."""
    predicted, measured = [r["predicted"][machine] for r in rows], [r["measured"] for r in rows]
    slow = sum(m for m, p in zip(measured, predicted, strict=True) if m > 3 * p)
    return {
        "kernels": len(rows),
        "rank": correlation(ranks(predicted), ranks(measured)),
        "log": correlation(np.log(predicted), np.log(measured)),
        "ratio": statistics.median(m / p for m, p in zip(measured, predicted, strict=True)) if rows else float("nan"),
        "slow": slow / sum(measured) if rows else float("nan"),
    }


def kernels_of(name: str, small: bool, machines: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
    """A row for every distinct kernel of a network."""
    from benchmarks.networks import network
    from shorthaul.analysis.times import roofline
    from shorthaul.ir.nodes import Map
    from shorthaul.transforms.choices import Choices
    from shorthaul.tuner import ModelSubject
    from shorthaul.tuning.session import kernel_region

    found = network(name, small)
    subject = ModelSubject(found.module, found.inputs, None, True)
    program = subject.lower(Choices())
    distinct = {kernel_region(n, program): n for n in program.nodes if isinstance(n, Map)}
    predicted = {m: {k.node: k for k in roofline(program, described)} for m, described in machines.items()}
    rows = []
    for node, run in zip(distinct.values(), subject.kernels(program, list(distinct.values()), 600.0), strict=True):
        times = []
        run()
        end = time.perf_counter() + seconds
        while len(times) < 5 or time.perf_counter() < end:
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
        k = predicted[next(iter(machines))][node.id]
        rows.append({"network": name, "kernel": k.name, "bytes": k.bytes, "flops": k.flops, "measured": statistics.quantiles(times, n=4)[0],
                     "predicted": {m: predicted[m][node.id].seconds for m in machines}})  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_model", description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NAME", help="networks of benchmarks/networks")
    parser.add_argument("--full", action="store_true", help="full sizes instead of those for tests")
    parser.add_argument("--seconds", type=float, default=0.05, help="of calls for each kernel (default: 0.05)")
    parser.add_argument("--measure", action="store_true", help="measure the machine first")
    chosen = parser.parse_args(arguments)

    from shorthaul.analysis.roofline import MACHINES
    from shorthaul.runtime.measured import described, keep, measure, table

    if chosen.measure:
        found = measure()
        keep(found)
        print(table(found) + "\n")
    machines = {"shipped": MACHINES["cpu"], "measured": described()}
    rows: list[dict[str, Any]] = []
    print(f"{'network':12} {'machine':9} {'kernels':>7} {'rank':>6} {'log':>6} {'measured/predicted':>18} {'time in slow ones':>17}")
    for name in [*chosen.networks, "all"]:
        own = rows if name == "all" else kernels_of(name, not chosen.full, machines, chosen.seconds)
        rows = rows if name == "all" else rows + own
        for m in machines:
            s = summary(own, m)
            print(f"{name:12} {m:9} {s['kernels']:7} {s['rank']:6.2f} {s['log']:6.2f} {s['ratio']:18.2f} {s['slow']:17.0%}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "cost_model.json").write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
