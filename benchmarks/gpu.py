"""Time per training step on one NVIDIA GPU: eager PyTorch, torch.compile and Shorthaul, on the ten networks.

    python benchmarks/gpu.py                                  # the ten networks in bfloat16, all engines
    python benchmarks/gpu.py --networks resnet50 dlrm --engines eager shorthaul
    python benchmarks/gpu.py --check                          # gradients against float64 instead of times
    python benchmarks/gpu.py --train 20 --small               # twenty training steps against float64

A row is (network, precision, engine). Every engine runs in a process of its own, so that one that crashes spoils no other; the engines of
some networks are started together and compile at the same time, then the GPU is given to one after the other. Results are appended to
`benchmarks/results/gpu.json` as they come; rows that are there for this GPU and these sources are not measured again (`--again` does).
A ratio is formed only between rows of one run, which each row names with its GPU.

"torch.compile graph" is the strongest peer: the whole step of the module compiled in the default mode, optimizer included, captured by hand
in one CUDA graph (inputs stay in place), so that it does not depend on the host.

A step: gradients set to None, forward (autocast to bfloat16, or float32 with TF32), loss, backward, SGD with momentum. Where PyTorch's
optimizer steps, its default and its fused form are both timed, and the faster counts. Median, 10th and 90th percentile of single steps by
CUDA events, `cudnn.benchmark` on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run by its path: the networks, and Shorthaul where it is not installed
    sys.path.insert(0, str(ROOT))
ENGINES = ("eager", "eager channels-last", "torch.compile", "torch.compile channels-last", "torch.compile reduce-overhead",
           "torch.compile graph", "shorthaul", "shorthaul TrainStep")  # fmt: skip
LAZY = "shorthaul TrainStep lazy"  # rows of embedding tables that a batch does not touch are stepped later
PRECISIONS = ("bf16", "tf32", "fp32")
LOCKSTEP = ("yolov4",)  # see tests/models/test_ten.py
TOGETHER = 10  # processes that compile at the same time


# --- in the process of one row ------------------------------------------------------------------------------


class Trainee:
    """One engine's copy of a network on the GPU, and its training step."""

    def __init__(self, name: str, precision: str, engine: str, size: int | None, small: bool) -> None:
        import torch

        from benchmarks.networks import network

        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        net = network(name, small, size=size)
        layout = torch.channels_last if engine.endswith("channels-last") else torch.preserve_format
        self.module = net.module.cuda().to(memory_format=layout)
        self.inputs = tuple(x.cuda().contiguous(memory_format=layout if x.dim() == 4 else torch.preserve_format)
                            if layout is torch.channels_last else x.cuda() for x in net.inputs)  # fmt: skip
        self.targets, self.loss_fn = net.targets.cuda(), net.loss_fn
        self.use_optimizer("default")
        self.precision, self.engine = precision, engine
        self.runnable: Any = self.module
        if engine.startswith("torch.compile"):
            self.runnable = torch.compile(self.module, mode="reduce-overhead" if engine.endswith("overhead") else None)
        elif engine == "shorthaul":
            import shorthaul

            self.runnable = shorthaul.optimize(self.module)
        self.whole: Any = None
        if engine in ("shorthaul TrainStep", LAZY):
            import shorthaul

            sparse = "lazy" if engine == LAZY else "exact"
            self.whole = shorthaul.TrainStep(self.module, self.loss_fn, self.optimizer, sparse=sparse)

    def use_optimizer(self, form: str) -> None:
        """Go on with a new optimizer of PyTorch, "default" or "fused"."""
        import torch

        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=1e-4, momentum=0.9, fused=True if form == "fused" else None)
        self.steps, self.loss = 0, None
        self.graph: Any = None

    def step(self) -> Any:
        import torch

        if self.whole is not None:
            with torch.autocast("cuda", torch.bfloat16) if self.precision == "bf16" else nullcontext():
                return self.whole(*self.inputs, self.targets)
        if not self.engine.endswith("graph"):
            return self._step()
        self.steps += 1
        if self.steps <= 3:
            side = torch.cuda.Stream()  # a capture wants what it runs to have run on another stream before
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                loss = self._step()
            torch.cuda.current_stream().wait_stream(side)
            return loss
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            self.optimizer.zero_grad(set_to_none=True)
            with torch.cuda.graph(self.graph):
                self.loss = self._step()
        self.graph.replay()
        return self.loss

    def _step(self) -> Any:
        import torch

        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16) if self.precision == "bf16" else nullcontext():
            loss = self.loss_fn(self.runnable(*self.inputs), self.targets)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def report(self) -> dict[str, Any]:
        """What Shorthaul says about itself."""
        if not self.engine.startswith("shorthaul"):
            return {}
        report = self.whole.report() if self.whole is not None else self.module.report()  # type: ignore[operator]
        regions = report.regions
        return {
            "stages": {k: round(v, 2) for r in regions for k, v in r.seconds.items()},
            "kernels": sum(len(r.kernels) for r in regions),
            "library_calls": sum(sum(r.library_calls.values()) for r in regions),
            "fallback": "; ".join(filter(None, [*(r.fallback for r in regions), *(getattr(report, k, "") for k in ("outside", "loop"))])),
            "regions": len(regions),
        }


def kernel_times(trainee: Trainee, steps: int = 3) -> list[tuple[str, float, int]]:
    """The kernels of a step that take longest: name, microseconds a step, launches a step."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as p:
        for _ in range(steps):
            trainee.step()
        torch.cuda.synchronize()
    rows = [(e.key, e.self_device_time_total / steps, e.count // steps) for e in p.key_averages() if e.self_device_time_total > 0]
    return sorted(rows, key=lambda r: -r[1])


def step_times(trainee: Trainee, options: dict[str, Any]) -> dict[str, float]:
    """Median, 10th and 90th percentile of a step's time, in milliseconds, after some that do not count."""
    import torch

    for _ in range(options["warmup"]):
        trainee.step()
    torch.cuda.synchronize()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(options["steps"] + 1)]
    marks[0].record()
    for mark in marks[1:]:
        trainee.step()
        mark.record()
    torch.cuda.synchronize()
    times = sorted(a.elapsed_time(b) for a, b in itertools.pairwise(marks))
    return {f"{k}_ms": times[min(len(times) - 1, int(q * len(times)))] for k, q in (("p10", 0.1), ("median", 0.5), ("p90", 0.9))}


def peak() -> int:
    """Bytes of the GPU that were in use at most, with those that captured graphs keep for themselves, which PyTorch counts as free."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # which leaves what is in use, and the graphs' own memory
    return max(torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved())


def measure(name: str, precision: str, engine: str, options: dict[str, Any]) -> None:
    """Compile, wait for the GPU, time; prints the row as JSON."""
    import torch

    row: dict[str, Any] = {"network": name, "precision": precision, "engine": engine}
    try:
        trainee = Trainee(name, precision, engine, options["size"], options["small"])
        begin = time.perf_counter()
        loss = trainee.step()
        torch.cuda.synchronize()
        row["first_step_s"] = time.perf_counter() - begin
        for _ in range(2):
            trainee.step()
        torch.cuda.synchronize()
        row |= {"loss": float(loss), **trainee.report()}
        torch.cuda.empty_cache()
        print("ready", flush=True)
        sys.stdin.readline()
        torch.cuda.reset_peak_memory_stats()
        best = step_times(trainee, options)
        row["optimizer"], row["peak_gib"] = "default", peak() / 2**30
        if trainee.whole is None:
            trainee.use_optimizer("fused")
            fused = step_times(trainee, options)
            row["optimizers_ms"] = {"default": best["median_ms"], "fused": fused["median_ms"]}
            if fused["median_ms"] < best["median_ms"]:
                best, row["optimizer"] = fused, "fused"
            else:
                trainee.use_optimizer("default")
                for _ in range(options["warmup"]):
                    trainee.step()
        row |= best
        if options["profile"]:
            kernels = kernel_times(trainee)
            row["busy_ms"] = sum(us for _, us, _ in kernels) / 1e3
            row["launches"] = sum(n for _, _, n in kernels)
            row["top"] = [(k[:90], round(us, 1), n) for k, us, n in kernels[: options["profile"]]]
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[-1500:]
        print("ready", flush=True)
        sys.stdin.readline()
    print(json.dumps(row), flush=True)


def check(name: str, precision: str, options: dict[str, Any]) -> None:
    """Loss, gradients and buffers of the last of some equal steps against float64 and eager; prints the row as JSON."""
    import torch

    from benchmarks.networks import network
    from shorthaul.testing.numerics import compare

    row: dict[str, Any] = {"network": name, "precision": precision, "engine": "check"}
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"

    def run(engine: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        net = network(name, options["small"], dropout=0.0, size=options["size"])
        layout = torch.channels_last if engine.endswith("channels-last") else torch.preserve_format
        module = net.module.cuda().to(dtype, memory_format=layout)
        inputs = [x.cuda().to(dtype) if x.is_floating_point() else x.cuda() for x in net.inputs]
        inputs = [x.contiguous(memory_format=layout) if x.dim() == 4 and layout is torch.channels_last else x for x in inputs]
        targets = net.targets.cuda().to(dtype) if net.targets.is_floating_point() else net.targets.cuda()
        runnable: Any = module
        if engine == "shorthaul":
            import shorthaul

            runnable = shorthaul.optimize(module, strict=True)
        for _ in range(options["repeats"]):  # later calls replay CUDA graphs
            module.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16" and dtype != torch.float64):
                loss = net.loss_fn(runnable(*inputs), targets)
            loss.backward()
        found = {"loss/loss": loss.detach().cpu()}
        found |= {f"gradient/{n}": p.grad.cpu() for n, p in module.named_parameters() if p.grad is not None}
        if engine == "shorthaul":
            row["graphs"] = [getattr(r.compiled.executable, "status", "") for r in module.report().regions if r.compiled is not None]
        return found | {f"buffer/{n}": b.cpu() for n, b in module.named_buffers()}

    try:
        begin = time.perf_counter()
        exact, eager = run("eager", torch.float64), run("eager", torch.float32)
        # cuDNN takes TF32 in one layout where it has none in the other: eager's error is the larger of the two
        spread = run("eager channels-last", torch.float32) if precision == "tf32" else None
        found = run("shorthaul", torch.float32)
        missing = sorted(exact.keys() ^ found.keys())
        verdict = compare(found, eager, exact, spread=spread, chaotic=spread is not None)
        row |= {"ok": verdict.ok and not missing, "missing": missing[:5], "verdict": str(verdict)[:1500]}
        row["seconds"] = time.perf_counter() - begin
    except Exception as error:
        import traceback

        row |= {"ok": False, "error": f"{type(error).__name__}: {error}"[-1500:], "trace": traceback.format_exc()[-1500:]}
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(row), flush=True)


def train(name: str, precision: str, options: dict[str, Any]) -> None:
    """Losses, gradients, parameters and buffers after many steps against float64 and eager, by the rule of the tests on a CPU: a network
    whose rounding errors explode takes each step from eager's state. Prints the row as JSON."""
    import torch

    from benchmarks.networks import batch, entry
    from shorthaul.testing.training import judge_training

    row: dict[str, Any] = {"network": name, "precision": precision, "engine": "train"}
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    found = entry(name)

    def factory() -> Any:
        return found.build(options["small"], 0.0).cuda()

    def moved(x: Any) -> Any:
        return tuple(y.cuda() for y in x) if isinstance(x, tuple) else x.cuda()

    def engine(optimized: bool) -> Any:
        def make(module: Any) -> Any:
            import shorthaul

            run = shorthaul.optimize(module, strict=True) if optimized else module

            def call(*inputs: Any) -> Any:
                with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
                    return run(*inputs)

            return call

        return make

    try:
        begin = time.perf_counter()
        verdict = judge_training(
            factory, found.loss_fn,
            lambda seed: [tuple(map(moved, batch(name, options["small"], size=options["size"], seed=i))) for i in range(options["train"])],
            engine=engine(True), baseline=engine(False), seeds=(0,), chaotic=True, lockstep=name in LOCKSTEP, title=f"{name}, {precision}",
        )  # fmt: skip
        row |= {"ok": verdict.ok, "verdict": str(verdict)[:1500], "seconds": time.perf_counter() - begin}
    except Exception as error:
        import traceback

        row |= {"ok": False, "error": f"{type(error).__name__}: {error}"[-1500:], "trace": traceback.format_exc()[-1500:]}
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(row), flush=True)


# --- the run ------------------------------------------------------------------------------------------------


def rows_of(names: Sequence[tuple[str, str, str]], options: dict[str, Any], together: int) -> Any:
    """Start processes in groups, give the GPU to one after the other; yields rows as they come."""
    for at in range(0, len(names), together):
        group = []
        for key in names[at : at + together]:
            command = [sys.executable, "-m", "benchmarks.gpu", "--row", json.dumps([*key, options])]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "4"}
            child = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE if options["quiet"] else None, text=True)  # fmt: skip
            group.append((key, child))
        for _, child in group:
            _until_ready(child)
        for key, child in group:
            row = {"network": key[0], "precision": key[1], "engine": key[2], "error": "the process ended without a result"}
            try:
                out, err = child.communicate("go\n", timeout=options["timeout"])
                lines = [line for line in out.splitlines() if line.startswith("{")]
                row = json.loads(lines[-1]) if lines else {**row, "error": f"exit status {child.returncode}: {(err or '')[-1200:]}"}
            except subprocess.TimeoutExpired:
                child.kill()
                row["error"] = f"no result after {options['timeout']} s"
            yield row


def _until_ready(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    for line in iter(child.stdout.readline, ""):
        if line.strip() == "ready":
            return


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table of one run: milliseconds, and how many times as fast as the best peer (the lazy update is another one, and not counted)."""
    engines = [e for e in (*ENGINES, LAZY) if any(r["engine"] == e for r in rows)]
    lines = ["| network | precision | " + " | ".join(engines) + " | against the best peer |", "|---|---|" + "--:|" * (len(engines) + 1)]
    for name, precision in dict.fromkeys((r["network"], r["precision"]) for r in rows):
        found = {r["engine"]: r for r in rows if (r["network"], r["precision"]) == (name, precision)}
        cells = [f"{found[e]['median_ms']:.2f}" if "median_ms" in found.get(e, {}) else "failed" if e in found else "" for e in engines]
        peers = [r["median_ms"] for e, r in found.items() if not e.startswith("shorthaul") and "median_ms" in r]
        ours = min((r["median_ms"] for e, r in found.items() if e.startswith("shorthaul") and e != LAZY and "median_ms" in r), default=None)
        lines.append(f"| {name} | {precision} | {' | '.join(cells)} | {f'{min(peers) / ours:.2f}×' if ours and peers else ''} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    from benchmarks.networks import TEN

    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--networks", nargs="+", default=list(TEN))
    parser.add_argument("--precisions", nargs="+", default=["bf16"], choices=PRECISIONS)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=(*ENGINES, LAZY))
    parser.add_argument("--check", action="store_true", help="compare with float64 instead of timing")
    parser.add_argument("--train", type=int, default=0, metavar="STEPS", help="train that many steps and compare with float64")
    parser.add_argument("--size", type=int, help="samples in a batch (default: the network's own)")
    parser.add_argument("--small", action="store_true", help="networks at the size of tests")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--profile", type=int, default=12, help="how many kernels of a step are listed (0: none)")
    parser.add_argument("--together", type=int, default=TOGETHER)
    parser.add_argument("--again", action="store_true", help="measure what is there already once more")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.row:
        name, precision, engine, options = json.loads(chosen.row)
        if engine == "check":
            check(name, precision, options)
        elif engine == "train":
            train(name, precision, options)
        else:
            measure(name, precision, engine, options)
        return 0
    import torch

    if not torch.cuda.is_available():
        print("there is no CUDA device")
        return 1
    run = {"gpu": torch.cuda.get_device_name(0), "torch": torch.__version__, "run": time.strftime("%Y-%m-%d %H:%M:%S")}
    saved: list[dict[str, Any]] = json.loads(chosen.output.read_text()) if chosen.output.exists() else []
    done = {(r["network"], r["precision"], r["engine"]) for r in saved if r.get("gpu") == run["gpu"] and "error" not in r}
    engines = ["check"] if chosen.check else ["train"] if chosen.train else chosen.engines
    wanted = [(n, p, e) for n in chosen.networks for p in chosen.precisions for e in engines if chosen.again or (n, p, e) not in done]
    options = {"size": chosen.size, "small": chosen.small, "steps": chosen.steps, "warmup": chosen.warmup, "profile": chosen.profile,
               "repeats": 4, "train": chosen.train, "timeout": 300, "quiet": True}  # fmt: skip
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    mine = []
    for row in rows_of(wanted, options, chosen.together):
        mine.append({**row, **run})
        chosen.output.write_text(json.dumps([*saved, *mine], indent=1))
        short = row.get("error") or (row.get("verdict", "").splitlines() or [""])[0] or f"{row.get('median_ms', 0):.2f} ms"
        print(f"{row['network']} {row['precision']} {row['engine']}: {short[-700:]}", flush=True)
    if not (chosen.check or chosen.train):
        print(markdown(mine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
