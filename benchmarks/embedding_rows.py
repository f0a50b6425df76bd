"""How the time of a training step of DLRM depends on the number of rows of its embedding tables.

    python -m benchmarks.embedding_rows                              # 10^5 against 10^7 rows, SGD without and with momentum
    python -m benchmarks.embedding_rows --rows 100000 1000000 --batch 2048 --engines sparse eager

The network is that of `benchmarks/networks/dlrm.py` with `--tables` equal tables of `--width` columns that have the given number of rows
together, or, with `--tables 0`, the 26 tables of the data scaled to that many (a few large ones, many small ones). Every optimizer is
measured for all numbers of rows in one process: steps are taken in turns, so that a change of the machine's speed hits all alike, and the
medians are compared. Indices are drawn anew for every step, skewed as those of that network (a few rows are asked for far more often than
the others), or with `--uniform` evenly, where nearly every lookup is a row that is in no cache.

Besides TrainStep with sparse updates ("sparse": exact for SGD without momentum, `sparse="lazy"` with momentum) there are TrainStep with
dense gradients ("dense") and eager PyTorch ("eager"). The pass over all rows that `step.sync()` makes, by itself every 4096 steps, is timed
apart and printed with its share of a step. With `--cpu-time` a step takes the processor time of the process, which on a busy machine says
more than the clock; use one thread then.
Results go to `benchmarks/results/embedding_rows.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import shorthaul as sh
from benchmarks.networks.dlrm import CRITEO, DENSE, DLRM
from shorthaul.training.lazy import WINDOW

RESULTS = Path(__file__).resolve().parent / "results"
OPTIMIZERS: dict[str, dict[str, float]] = {"sgd": {}, "momentum": {"momentum": 0.9}}
LOSS = torch.nn.functional.binary_cross_entropy_with_logits


class Run:
    """A network of that many rows, trained by one engine."""

    def __init__(self, engine: str, optimizer: str, rows: tuple[int, ...], width: int, batch: int, skew: int,
                 cpu_time: bool) -> None:  # fmt: skip
        torch.manual_seed(0)
        self.rows, self.batch, self.skew = torch.tensor(rows).unsqueeze(1), batch, skew
        self.model = DLRM(rows, width)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, **OPTIMIZERS[optimizer])
        self.generator = torch.Generator().manual_seed(1)
        self.times: list[float] = []
        self.clock = time.process_time if cpu_time else time.perf_counter
        self.lazy = engine == "sparse" and optimizer == "momentum"
        self.compiled: Any = None
        if engine != "eager":
            sparse = "off" if engine == "dense" else "lazy" if self.lazy else "exact"
            self.compiled = sh.TrainStep(self.model, LOSS, self.optimizer, sparse=sparse, strict=True)
        self.call: Callable[..., Any] = self.compiled or self._eager

    def _eager(self, dense: torch.Tensor, index: torch.Tensor, clicks: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        LOSS(self.model(dense, index), clicks).backward()
        self.optimizer.step()

    def step(self) -> float:
        """Seconds of one step."""
        dense = torch.rand(self.batch, DENSE, generator=self.generator)
        drawn = torch.rand(len(self.rows), self.batch, generator=self.generator, dtype=torch.float64) ** self.skew
        index = torch.minimum((drawn * self.rows).long(), self.rows - 1)
        clicks = torch.randint(0, 2, (self.batch,), generator=self.generator).float()
        begin = self.clock()
        self.call(dense, index, clicks)
        return self.clock() - begin

    def sync(self) -> float:
        """Seconds of the pass over all rows."""
        begin = self.clock()
        self.compiled.sync()
        return self.clock() - begin


def sizes(rows: int, tables: int) -> tuple[int, ...]:
    """The rows of each table: equal ones, or for 0 tables those of the data, scaled to that many together."""
    if tables:
        return (rows // tables,) * tables
    return tuple(max(3, round(n * rows / sum(CRITEO))) for n in CRITEO)


def measure(optimizer: str, engine: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row of the table for every number of rows."""
    runs = {rows: Run(engine, optimizer, sizes(rows, args.tables), args.width, args.batch, 1 if args.uniform else 4, args.cpu_time)
            for rows in args.rows}  # fmt: skip
    for run in runs.values():
        for _ in range(3):
            run.step()
    for k in range(args.steps):
        for run in list(runs.values())[:: 1 if k % 2 else -1]:
            run.times.append(run.step())
    found = []
    for rows, run in runs.items():
        low, median, high = statistics.quantiles(run.times, n=4)
        row: dict[str, Any] = {"optimizer": optimizer, "engine": engine, "rows": rows, "median": median, "quartiles": [low, high]}
        if run.lazy:
            row["sync"] = run.sync()
        found.append(row)
    for row in found:
        row["ratio"] = row["median"] / found[0]["median"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**5, 10**7], help="of all tables together; ratios are to the first")
    parser.add_argument("--tables", type=int, default=8, help="equal tables; 0: those of the data, scaled")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--cpu-time", action="store_true", help="processor time instead of the clock's")
    parser.add_argument("--uniform", action="store_true", help="ask for all rows equally often")
    parser.add_argument("--steps", type=int, default=40, help="measured steps of each run")
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=list(OPTIMIZERS))
    parser.add_argument("--engines", nargs="+", choices=["sparse", "dense", "eager"], default=["sparse"])
    args = parser.parse_args()
    print(f"DLRM, {args.tables or len(CRITEO)} tables of width {args.width}, batch {args.batch}, {torch.get_num_threads()} threads")
    print(f"{'optimizer':10} {'engine':8} {'rows':>10} {'step':>10} {'quartiles':>21} {'ratio':>7}  sync, and its share of a step")
    results = []
    for optimizer in args.optimizers:
        for engine in args.engines:
            for row in measure(optimizer, engine, args):
                results.append(row)
                low, high = row["quartiles"]
                sync = f"{row['sync'] * 1e3:.0f} ms, {row['sync'] / WINDOW / row['median']:.2%}" if "sync" in row else ""
                quartiles = f"{low * 1e3:.1f} – {high * 1e3:.1f} ms"
                median = f"{row['median'] * 1e3:.1f} ms"
                print(f"{optimizer:10} {engine:8} {row['rows']:>10,} {median:>10} {quartiles:>21} {row['ratio']:>7.3f}  {sync}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    settings = {k: v for k, v in vars(args).items() if k not in ("optimizers", "engines")}
    (RESULTS / "embedding_rows.json").write_text(json.dumps({**settings, "threads": torch.get_num_threads(), "runs": results}, indent=1))


if __name__ == "__main__":
    main()
