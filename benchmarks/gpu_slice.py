"""The GPU slice: an MBConv block, forward and backward, as generated Triton kernels, against eager and torch.compile.

    python -m benchmarks.gpu_slice            # on a machine with a CUDA device; writes gpu_slice.json to $OUT if that is set

Parts, each of which may fail without the others:
  1. numbers: outputs, gradients and buffers of the block against float64, beside eager's own errors;
  2. time: medians of CUDA events, forward + backward; every engine also with the step captured in one CUDA graph;
  3. bytes: DRAM bytes of every kernel by Nsight Compute beside the bytes that the memlets predict (needs ncu and its permission).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import gc
import importlib.util
import io
import itertools
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.mbconv_run import FusedBlock, MBConv, make_block, reference, sizes_of
from shorthaul.codegen.triton.launch import Launch
from shorthaul.codegen.triton.tiles import candidate_tiles

# name: n, h, w, input, expanded, output, squeezed channels, taps, stride (EfficientNet-B0's blocks at batch 128)
SHAPES = {
    "112x112 16-96-24 s2": (128, 112, 112, 16, 96, 24, 4, 3, 2),
    "56x56 24-144-24": (128, 56, 56, 24, 144, 24, 6, 3, 1),
    "28x28 40-240-40 5x5": (128, 28, 28, 40, 240, 40, 10, 5, 1),
    "14x14 112-672-112 5x5": (128, 14, 14, 112, 672, 112, 28, 5, 1),
}
PRECISIONS = {"bf16": "bfloat16", "tf32": "float32"}
START = time.perf_counter()


@dataclass
class Case:
    """One shape at one precision. keep: the first activation is stored instead of recomputed for each tap."""

    shape: str
    precision: str
    keep: bool = False

    @property
    def label(self) -> str:
        return f"{self.precision} {self.shape}" + (", activation kept" if self.keep else "")

    def block(self) -> Any:
        _, _, _, ci, _, co, _, taps, stride = SHAPES[self.shape]
        return make_block(PRECISIONS[self.precision], ci, co, taps, stride, self.keep)

    def fused(self, device: str) -> FusedBlock:
        return FusedBlock(self.block(), sizes_of(*SHAPES[self.shape]), device, {"precision": "tf32"})

    def module(self) -> MBConv:
        _, _, _, ci, ce, co, cr, taps, stride = SHAPES[self.shape]
        torch.manual_seed(0)
        module = MBConv(ci, ce, co, cr, taps, stride)
        for norm in (module.norm1, module.norm2, module.norm3):
            torch.nn.init.normal_(norm.weight, 1, 0.2)
            torch.nn.init.normal_(norm.bias, 0, 0.2)
        return module.cuda().to(memory_format=torch.channels_last)

    @property
    def autocast(self) -> torch.dtype | None:
        return torch.bfloat16 if self.precision == "bf16" else None


@dataclass
class Report:
    """What was measured; printed and written at the end, also after a failure."""

    numbers: list[dict[str, Any]] = field(default_factory=list)
    times: list[dict[str, Any]] = field(default_factory=list)
    kernels: list[dict[str, Any]] = field(default_factory=list)
    traffic: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    machine: dict[str, str] = field(default_factory=dict)

    def write(self) -> None:
        out = os.environ.get("OUT")
        if out:
            Path(out, "gpu_slice.json").write_text(json.dumps(self.__dict__, indent=1))


def say(text: str) -> None:
    print(f"[{time.perf_counter() - START:6.1f} s] {text}", flush=True)


def guarded(report: Report, what: str, part: Callable[[], None]) -> None:
    """Run a part; a failure is recorded and the others go on."""
    try:
        part()
    except Exception as error:
        report.failures.append(f"{what}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        say(f"FAILED {what}")
        traceback.print_exc(limit=6)
        print(flush=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    report.write()


# compilation ------------------------------------------------------------------------------------------------------------
def compile_kernels(case: Case, part: int, parts: int) -> int:
    """Compile every `parts`-th kernel of a case into Triton's cache without running it (in a worker process)."""
    fused = case.fused("meta")
    tops = [
        variant
        for phase in ("forward", "backward")
        for top in fused.launches[phase]
        for variant in (top, *alternatives(fused, top))
    ]
    launches = [stage for top in tops for stage in (top, *top.finish)]
    for launch in launches[part::parts]:
        arguments = [a.dtype if isinstance(a, torch.Tensor) else a for a in launch.arguments]
        try:
            launch.function.warmup(*arguments, grid=(1,), **launch.constants, **launch.meta)
        except Exception as error:  # said again, with its consequence, where the kernel is run
            print(f"{launch.kernel.name} {launch.chosen} does not compile: {error}", flush=True)
    return len(launches[part::parts])


def alternatives(fused: FusedBlock, launch: Launch) -> list[Launch]:
    """Other tiles for a kernel that moves enough bytes to matter."""
    m = next(m for m in fused.block.maps if m.name == launch.kernel.name)
    if sum(fused.predicted_bytes(m)) < 20e6:
        return []
    return [
        Launch(launch.kernel, fused.tensors, fused.sizes, **tiles)
        for tiles in candidate_tiles(launch.kernel.plan, launch.chosen)
    ]


def tune(fused: FusedBlock) -> int:
    """Put the fastest tiles in the place of the heuristic's; gives how many kernels changed."""
    changed = 0
    for launches in fused.launches.values():
        for at, launch in enumerate(launches):
            best = launch_time(launch)
            for other in alternatives(fused, launch):
                try:
                    us = launch_time(other)
                except Exception as error:  # tiles that do not fit the chip
                    say(f"{launch.kernel.name} {other.chosen}: {type(error).__name__}")
                    continue
                if us < 0.97 * best:
                    changed += launches[at] is launch
                    best, launches[at] = us, other
    return changed


def launch_time(launch: Launch, runs: int = 5) -> float:
    """Microseconds of a kernel and the merge of its partial results: the median of graph replays with `runs` copies."""

    def repeat() -> None:
        for _ in range(runs):
            launch()

    return median_ms(capture(repeat), 5)[0] / runs * 1e3


def precompile(cases: list[Case]) -> None:
    """Fill Triton's cache on all cores."""
    workers = max(1, (os.cpu_count() or 2) - 1)
    parts = max(1, 3 * workers // len(cases))
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = [pool.submit(compile_kernels, case, part, parts) for case in cases for part in range(parts)]
        total = sum(job.result() for job in jobs)
    say(f"compiled {total} kernels on {workers} cores")


def start_suite() -> subprocess.Popen[str] | None:
    """The tests of single kernels on the GPU, beside the compilation; None without pytest."""
    if importlib.util.find_spec("pytest") is None or importlib.util.find_spec("hypothesis") is None:
        say("pytest or hypothesis is not installed here: the tests of single kernels are left out")
        return None
    files = ["tests/codegen/triton_maps.py", "tests/codegen/triton_contractions.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", *files]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish_suite(report: Report, process: subprocess.Popen[str] | None, seconds: float) -> None:
    if process is None:
        return
    try:
        out, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    lines = out.strip().splitlines()
    report.machine["tests of single kernels"] = lines[-1] if lines else "no output"
    say(f"tests of single kernels: {lines[-1] if lines else 'no output'}")
    if process.returncode:
        raise RuntimeError("\n".join(["some single kernels are wrong", *lines[-60:]]))


# engines ----------------------------------------------------------------------------------------------------------------
def inputs(case: Case, fused: FusedBlock) -> tuple[torch.Tensor, torch.Tensor]:
    low = getattr(torch, PRECISIONS[case.precision])
    torch.manual_seed(1)
    fused.tensors["x"].copy_(torch.randn(fused.tensors["x"].shape, device="cuda").to(low))
    fused.tensors["dout"].copy_(torch.randn(fused.tensors["out"].shape, device="cuda").to(low))
    return fused.tensors["x"], fused.tensors["dout"]


def torch_step(case: Case, module: torch.nn.Module, x: torch.Tensor, dout: torch.Tensor) -> Callable[[], None]:
    """Forward and backward of the module, gradients cleared before."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(True)

    def step() -> None:
        module.zero_grad(set_to_none=True)
        x.grad = None
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=case.autocast is not None):
            out = module(x)
        out.backward(dout)

    return step


def capture(step: Callable[[], None]) -> Callable[[], None]:
    """The step in one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def median_ms(step: Callable[[], None], runs: int = 30) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile of `runs` back-to-back steps by CUDA events, in milliseconds."""
    for _ in range(5):
        step()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    times = sorted(a.elapsed_time(b) for a, b in itertools.pairwise(events))
    return statistics.median(times), times[runs // 10], times[-1 - runs // 10]


# parts ------------------------------------------------------------------------------------------------------------------
def check_numbers(
    report: Report, case: Case, fused: FusedBlock, module: MBConv, x: torch.Tensor, dout: torch.Tensor
) -> None:
    import copy

    from shorthaul.testing.numerics import compare

    fused.load_module(module)
    fused.forward()
    fused.backward()
    torch.cuda.synchronize()
    mine = {k: v.detach().clone() for k, v in fused.results().items()}
    eager = reference(copy.deepcopy(module), x, dout, case.autocast)
    exact = reference(copy.deepcopy(module).double(), x.double(), dout.double())
    mine = {name: t.reshape(eager[name].shape).cpu() for name, t in mine.items()}
    agreement = compare(
        mine, {k: v.cpu() for k, v in eager.items()}, {k: v.cpu() for k, v in exact.items()}, title=case.label
    )
    worst = max(agreement.rows, key=lambda r: r.candidate / r.limit if r.limit else 0.0)
    report.numbers.append({"case": case.label, "ok": agreement.ok, "median_ratio": agreement.median_ratio, "worst": worst.name,
                           "worst_error": worst.candidate, "worst_eager": worst.eager, "failures": agreement.failures})  # fmt: skip
    say(
        str(agreement)
        if not agreement.ok
        else f"{case.label}: agrees with float64, median error {agreement.median_ratio:.2f} of eager's"
    )


def measure(report: Report, case: Case, peers: bool) -> None:
    """Numbers and times of one case."""
    fused = case.fused("cuda")
    module = case.module()
    x, dout = inputs(case, fused)

    def step() -> None:
        fused.forward()
        fused.backward()

    def record(engine: str, make: Callable[[], Callable[[], None]]) -> None:
        def part() -> None:
            ms, low, high = median_ms(make())
            report.times.append(
                {
                    "case": case.label,
                    "shape": case.shape,
                    "precision": case.precision,
                    "engine": engine,
                    "ms": ms,
                    "p10": low,
                    "p90": high,
                }
            )
            say(f"{case.label}: {engine} {ms:.3f} ms ({low:.3f} to {high:.3f})")

        guarded(report, f"{engine} {case.label}", part)

    name = "shorthaul, kept" if case.keep else "shorthaul"
    fused.load_module(module)
    record(f"{name}, untuned + graph", lambda: capture(step))
    guarded(
        report, f"tuning {case.label}", lambda: say(f"{case.label}: tuning changed the tiles of {tune(fused)} kernels")
    )
    guarded(report, f"numbers {case.label}", lambda: check_numbers(report, case, fused, module, x, dout))
    record(name, lambda: step)
    record(f"{name} + graph", lambda: capture(step))

    def kernels() -> None:
        read_written = {m.name: fused.predicted_bytes(m) for m in fused.block.maps}
        for launch in fused.launches["forward"] + fused.launches["backward"]:
            us, predicted = launch_time(launch), sum(read_written[launch.kernel.name])
            tiles = {k: v for k, v in launch.chosen.items() if not k.endswith("_BLOCKS")}
            report.kernels.append({"case": case.label, "kernel": launch.kernel.name, "us": us, "predicted_bytes": predicted,
                                   "rate": predicted / us / 1e6, "tiles": tiles})  # fmt: skip

    guarded(report, f"kernel times {case.label}", kernels)

    if peers:
        record("eager", lambda: torch_step(case, module, x, dout))
        record("eager + graph", lambda: capture(torch_step(case, module, x, dout)))
        torch._dynamo.reset()
        compiled = torch.compile(module, dynamic=False)
        record("compile", lambda: torch_step(case, compiled, x, dout))  # type: ignore[arg-type]
        record("compile + graph", lambda: capture(torch_step(case, compiled, x, dout)))  # type: ignore[arg-type]


# bytes ------------------------------------------------------------------------------------------------------------------
METRICS = "dram__bytes_read.sum,dram__bytes_write.sum,gpu__time_duration.sum"


def profiled(case: Case, engine: str) -> None:
    """What runs under Nsight Compute: one step between profiler start and stop."""
    fused = case.fused("cuda")
    module = case.module()
    x, dout = inputs(case, fused)
    fused.load_module(module)
    if engine == "shorthaul":

        def step() -> None:
            fused.forward()
            fused.backward()
    else:
        step = torch_step(case, module if engine == "eager" else torch.compile(module, dynamic=False), x, dout)  # type: ignore[arg-type]
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStart()
    step()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()


def measure_bytes(report: Report, case: Case, engine: str, seconds: float) -> None:
    """DRAM bytes of one step."""
    ncu = shutil.which("ncu") or next(
        (p for p in ("/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/ncu") if Path(p).exists()), None
    )
    if ncu is None:
        raise RuntimeError("ncu (Nsight Compute) is not installed here")
    command = [
        ncu,
        "--metrics",
        METRICS,
        "--csv",
        "--print-units",
        "base",
        "--profile-from-start",
        "off",
        "--target-processes",
        "all",
        sys.executable,
        "-m",
        "benchmarks.gpu_slice",
        "--profiled",
        json.dumps([case.shape, case.precision, case.keep, engine]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    text = done.stdout
    at = text.find('"ID"')
    if at < 0:
        raise RuntimeError(f"ncu gave no table: {(text + done.stderr)[-600:]}")
    launches: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(io.StringIO(text[at:])):
        entry = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"].split("(")[0]})
        value = float(row["Metric Value"].replace(",", "")) * _SCALE[row["Metric Unit"].lower()]
        entry[row["Metric Name"]] = value
    predicted: dict[str, tuple[int, int]] = {}
    if engine == "shorthaul":
        fused = case.fused("meta")
        predicted = {m.name: fused.predicted_bytes(m) for m in fused.block.maps}
    read = sum(e.get("dram__bytes_read.sum", 0) for e in launches.values())
    written = sum(e.get("dram__bytes_write.sum", 0) for e in launches.values())
    report.traffic.append(
        {
            "case": case.label,
            "engine": engine,
            "launches": len(launches),
            "read": read,
            "written": written,
            "predicted": sum(map(sum, predicted.values())) if predicted else None,
            "kernels": [
                {
                    **e,
                    "predicted_read": predicted.get(e["kernel"], (None, None))[0],
                    "predicted_written": predicted.get(e["kernel"], (None, None))[1],
                }
                for e in launches.values()
            ],
        }
    )
    say(f"{case.label}: {engine} moves {(read + written) / 1e6:.0f} MB in {len(launches)} kernels")


_SCALE = {
    "byte": 1,
    "kbyte": 1e3,
    "mbyte": 1e6,
    "gbyte": 1e9,
    "nsecond": 1,
    "ns": 1,
    "usecond": 1e3,
    "us": 1e3,
    "msecond": 1e6,
    "ms": 1e6,
    "second": 1e9,
}


# printing ---------------------------------------------------------------------------------------------------------------
def print_report(report: Report) -> None:
    print("\n=== numbers against float64")
    for row in report.numbers:
        print(
            f"{row['case']:44} {'agrees' if row['ok'] else 'WRONG '}  median {row['median_ratio']:.2f} of eager's error; "
            f"worst {row['worst']} {row['worst_error']:.1e} (eager {row['worst_eager']:.1e})"
        )
    print("\n=== forward + backward, ms (median)")
    engines = list(dict.fromkeys(r["engine"] for r in report.times))
    print(f"{'case':30}" + "".join(f"{e:>24}" for e in engines))
    for precision, shape in dict.fromkeys((r["precision"], r["shape"]) for r in report.times):
        cells = {r["engine"]: r["ms"] for r in report.times if (r["precision"], r["shape"]) == (precision, shape)}
        print(
            f"{precision + ' ' + shape:30}" + "".join(f"{cells[e]:24.3f}" if e in cells else " " * 24 for e in engines)
        )
    for label in dict.fromkeys(r["case"] for r in report.kernels):
        print(f"\n=== kernels of {label}: us, predicted MB, TB/s by the prediction")
        rows = [r for r in report.kernels if r["case"] == label]
        for r in sorted(rows, key=lambda r: -r["us"]):
            tiles = " ".join(f"{k.removeprefix('BLOCK_').lower()}={v}" for k, v in r["tiles"].items())
            print(f"{r['kernel']:32} {r['us']:9.1f} {r['predicted_bytes'] / 1e6:9.1f} {r['rate']:7.2f}  {tiles}")
        print(f"{'sum':32} {sum(r['us'] for r in rows):9.1f} {sum(r['predicted_bytes'] for r in rows) / 1e6:9.1f}")
    for t in report.traffic:
        extra = f", predicted {t['predicted'] / 1e6:.0f} MB" if t["predicted"] else ""
        print(
            f"\n=== DRAM of {t['case']}, {t['engine']}: read {t['read'] / 1e6:.0f} MB, written {t['written'] / 1e6:.0f} MB{extra}"
        )
        if t["engine"] == "shorthaul":
            print(f"{'kernel':36} {'read':>9} {'predicted':>9} {'written':>9} {'predicted':>9} {'us':>8}   (MB)")
            for k in t["kernels"]:
                cells = [
                    k.get("dram__bytes_read.sum", 0),
                    k["predicted_read"],
                    k.get("dram__bytes_write.sum", 0),
                    k["predicted_written"],
                ]
                text = " ".join(f"{b / 1e6:9.1f}" if b is not None else " " * 9 for b in cells)
                print(f"{k['kernel'][:36]:36} {text} {k.get('gpu__time_duration.sum', 0) / 1e3:8.1f}")
    for failure in report.failures:
        print(f"FAILED {failure}")
    print(flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=460, help="seconds for everything")
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), help="which of " + "; ".join(SHAPES))
    parser.add_argument("--precisions", nargs="*", default=list(PRECISIONS))
    parser.add_argument("--profiled", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    if options.profiled:
        shape, precision, keep, engine = json.loads(options.profiled)
        profiled(Case(shape, precision, keep), engine)
        return 0
    if not torch.cuda.is_available():
        print("benchmarks.gpu_slice needs a CUDA device")
        return 1
    report = Report()
    left = lambda: options.budget - (time.perf_counter() - START)  # noqa: E731
    cases = [Case(s, p, keep) for p in options.precisions for s in options.shapes for keep in (False, True)
             if not keep or (p == "bf16" and s in options.shapes[::2])]  # fmt: skip
    report.machine = {"torch": torch.__version__, "cores": str(os.cpu_count())}
    suite = start_suite()
    guarded(report, "compilation", lambda: precompile(cases))
    guarded(report, "tests of single kernels", lambda: finish_suite(report, suite, 90))
    report.machine["device"] = torch.cuda.get_device_name()
    for case in cases:
        # every case's own numbers and times; peers in float32 only while time is left for the bytes
        if left() < 60:
            report.failures.append(f"{case.label}: left out, {left():.0f} s of the budget remain")
            continue
        guarded(
            report,
            case.label,
            lambda case=case: measure(report, case, peers=not case.keep and (case.precision == "bf16" or left() > 200)),
        )
    profiles = [(options.shapes[0], "shorthaul"), (options.shapes[0], "compile"), (options.shapes[0], "eager"),
                *[(s, e) for s in options.shapes[2:3] for e in ("shorthaul", "compile")]]  # fmt: skip
    for shape, engine in profiles:
        if left() < 25:
            report.failures.append(f"bytes of {engine}, {shape}: left out, {left():.0f} s of the budget remain")
            continue
        guarded(
            report,
            f"bytes of {engine}, {shape}",
            lambda s=shape, e=engine: measure_bytes(report, Case(s, "bf16"), e, min(90, left() - 10)),
        )
    print_report(report)
    report.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
