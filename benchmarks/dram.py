"""Predicted bytes of a training step beside the DRAM counters of an NVIDIA GPU, kernel by kernel.

    python benchmarks/dram.py efficientnet_b0 bert_large            # at full size, bfloat16; needs Nsight Compute (`ncu`)
    python benchmarks/dram.py --machine h200 mobilenet_v2

One step of `shorthaul.TrainStep` (SGD with momentum) runs under `ncu`, without a CUDA graph, each launch in a range that names its nodes.
Caches are not flushed between kernels. The prediction is `movement` on the described machine: every kernel's footprint, with what it reads
again, as if nothing of the kernel before were in the cache. Printed are the sums, and the kernels above one percent of the bytes with the
quotient of prediction and measurement; the whole table goes to `--output`.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run by its path: the networks, and Shorthaul where it is not installed
    sys.path.insert(0, str(ROOT))
READ, WRITTEN, TIME = "dram__bytes_read.sum", "dram__bytes_write.sum", "gpu__time_duration.sum"
NCU = ("ncu", "--target-processes", "application-only", "--nvtx", "--profile-from-start", "off", "--cache-control", "none",
       "--clock-control", "none", "--csv", "--page", "raw", "--metrics", f"{READ},{WRITTEN},{TIME}")  # fmt: skip
SHARE, SUM_WITHIN, KERNEL_WITHIN = 0.01, 0.15, 0.30


# --- in the process that is measured ------------------------------------------------------------------------


def run(name: str, program_file: Path | None, small: bool) -> None:
    """Four steps; the last one between the profiler's start and stop, its launches in named ranges, where a program file is wanted."""
    import torch

    import shorthaul as sh
    from benchmarks.networks import network
    from shorthaul.ir.serialize import dumps

    torch.backends.cudnn.benchmark = True
    net = network(name, small)
    module, inputs, targets = net.module.cuda(), [x.cuda() for x in net.inputs], net.targets.cuda()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4, momentum=0.9)
    step = sh.TrainStep(module, net.loss_fn, optimizer, cuda_graphs=False, strict=True)

    def go() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            step(*inputs, targets)
        torch.cuda.synchronize()

    for _ in range(3):
        go()
    if program_file is None:
        return
    assert step.program is not None
    program_file.write_text(dumps(step.program))
    mark(step.record.regions[-1].compiled.executable)
    torch.cuda.profiler.start()
    go()
    torch.cuda.profiler.stop()


def mark(executable: Any) -> None:
    """Put every step of an executable into an NVTX range that names the nodes which it runs."""
    import torch

    def ranged(function: Callable[..., Any], nodes: Sequence[int]) -> Callable[..., Any]:
        label = "nodes " + " ".join(map(str, nodes))

        def call(*arguments: Any, **named: Any) -> Any:
            torch.cuda.nvtx.range_push(label)
            try:
                return function(*arguments, **named)
            finally:
                torch.cuda.nvtx.range_pop()

        return call

    for phase, plan in executable.layout({}).plans.items():
        for i, step in enumerate(executable.host.phases[phase].steps):
            if hasattr(step, "kernels"):
                plan.steps[i] = ranged(plan.steps[i], [k.node for k in step.kernels])
            elif hasattr(plan.steps[i], "function"):
                plan.steps[i].function = ranged(plan.steps[i].function, [step.node])


# --- in the process that compares ---------------------------------------------------------------------------


def measure(name: str, small: bool) -> tuple[Any, list[dict[str, Any]]]:
    """The program of a network's step, and a row for each range: its nodes, bytes read and written, seconds, launches."""
    from shorthaul.ir.serialize import from_json

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "program.json"
        child = [sys.executable, str(Path(__file__).resolve()), "--run", name, *(["--small"] if small else [])]
        subprocess.run(child, check=True)  # compiles everything: compilers do not start under the profiler
        table = subprocess.run([*NCU, *child, "--program", str(file)], check=True, capture_output=True, text=True).stdout
        program = from_json(file.read_text())
    return program, ranges(table)


def ranges(table: str) -> list[dict[str, Any]]:
    """The launches of a profiler's table, summed by range; those outside any come last, without nodes."""
    rows = [r for r in csv.DictReader(line for line in table.splitlines() if not line.startswith("==")) if r["ID"]]
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    for r in rows:
        where = next((v or "" for k, v in r.items() if k and "Push/Pop" in k), "")
        named = re.search(r":nodes ([\d ]+):", where)
        nodes = tuple(map(int, named.group(1).split())) if named else ()
        row = found.setdefault(nodes, {"nodes": nodes, "read": 0, "written": 0, "seconds": 0.0, "launches": 0})
        row["read"] += _number(r[READ])
        row["written"] += _number(r[WRITTEN])
        row["seconds"] += _number(r[TIME]) / 1e9
        row["launches"] += 1
    return sorted(found.values(), key=lambda r: not r["nodes"])


def _number(text: str) -> int:
    return int(float(text.replace(",", "")))


def compare(program: Any, rows: Sequence[dict[str, Any]], machine: str) -> list[dict[str, Any]]:
    """The rows of kernels with what is predicted for them, the largest first."""
    from shorthaul.analysis.movement import movement

    predicted: dict[int, list[int]] = {}
    for m in movement(program, {}, machine).moved:
        predicted.setdefault(m.node.id, [0, 0])[m.side == "write"] += int(m.bytes)
    labels = {n.id: getattr(n, "function", "") or n.label for n in program.nodes}
    found = []
    for r in rows:
        if r["nodes"]:
            read, written = (sum(predicted.get(n, (0, 0))[side] for n in r["nodes"]) for side in (0, 1))
            more = f" and {len(r['nodes']) - 1} more" if len(r["nodes"]) > 1 else ""
            found.append({**r, "label": labels[r["nodes"][0]] + more, "predicted_read": read, "predicted_written": written})
    return sorted(found, key=lambda r: -(r["read"] + r["written"]))


def summary(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """The sums, and a line for every kernel above `SHARE` of the bytes, measured or predicted."""
    measured, predicted = (sum(r[a] + r[b] for r in rows) for a, b in (("read", "written"), ("predicted_read", "predicted_written")))
    lines = [f"{name}: predicted {predicted / 1e9:.2f} GB, measured {measured / 1e9:.2f} GB, quotient {predicted / measured:.3f} "
             f"({'within' if abs(predicted / measured - 1) <= SUM_WITHIN else 'NOT within'} {SUM_WITHIN:.0%}); "
             f"{sum(r['seconds'] for r in rows) * 1e3:.2f} ms in {sum(r['launches'] for r in rows)} launches"]  # fmt: skip
    large = off = 0
    for r in rows:
        found, said = r["read"] + r["written"], r["predicted_read"] + r["predicted_written"]
        if found > SHARE * measured or said > SHARE * predicted:
            beyond = abs(said / max(1, found) - 1) > KERNEL_WITHIN
            large, off = large + 1, off + beyond
            megabytes = [r[k] / 1e6 for k in ("predicted_read", "predicted_written", "read", "written")]
            text = "predicted {:8.1f} + {:7.1f} MB, measured {:8.1f} + {:7.1f}, {:7.1f} µs".format(*megabytes, r["seconds"] * 1e6)
            lines.append(f"  {said / max(1, found):5.2f}{' !' if beyond else '  '} {text}  {r['label'][:70]}")
    lines.append(f"  {large} kernels above {SHARE:.0%} of the bytes, {off} of them off by more than {KERNEL_WITHIN:.0%}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["efficientnet_b0", "bert_large"])
    parser.add_argument("--machine", default="h100", help="the described machine of the prediction (default: h100)")
    parser.add_argument("--small", action="store_true", help="networks at the size of tests")
    parser.add_argument("--output", type=Path, help="write all rows here as JSON")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--program", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.run:
        run(chosen.run, chosen.program, chosen.small)
        return 0
    results = {}
    for name in chosen.networks:
        program, rows = measure(name, chosen.small)
        results[name] = compare(program, rows, chosen.machine)
        print(summary(name, results[name]), flush=True)
        if chosen.output:
            chosen.output.write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
