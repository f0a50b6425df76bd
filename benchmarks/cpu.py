"""Time per training step and compile time on this CPU: eager PyTorch, torch.compile and Shorthaul.

    python benchmarks/cpu.py                        # the basic networks, all engines
    python benchmarks/cpu.py --networks mbconv chain --steps 30
    python benchmarks/cpu.py --networks ten --no-compile --steps 15     # the ten benchmark networks: an hour
    python benchmarks/cpu.py --quick                # small networks, few steps: does everything run?

What is measured, for every network:

- **step**: forward, loss, backward and an SGD step with momentum. All engines are in one process and take turns in short
  rounds, in alternating order, so that a change of the machine's speed hits all of them alike. Median, 10th and 90th percentile.
- **cold compile**: a fresh process with fresh, empty caches: from before the engine sees the module (its import
  included) to the end of the first step, less one ordinary step. Beside it the processor time, compilers included, which a busy
  machine changes less. An engine that needs longer than `--timeout` is marked so, and takes no part in the steps.
- **warm start**: other processes with the caches that the cold one filled: from their start to the end of the first step, less
  the time to import torch and to make the network and its optimizer (which imports more of torch: "whole" leaves out nothing
  but `import torch`). Median of `--starts` processes.

"shorthaul TrainStep" is the whole step as one program. For a network marked `cotangent` the step is forward and backward with a
given gradient of the output, without loss and optimizer, and there is no TrainStep. The results go to `benchmarks/results/` as JSON
and Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run by its path: the networks, and Shorthaul where it is not installed
    sys.path.insert(0, str(ROOT))
ENGINES = ("eager", "torch.compile", "shorthaul", "shorthaul TrainStep")
ROUND = 3  # steps an engine takes before the next one's turn
# Every engine's cache, so that a fresh folder makes a compilation cold.
CACHES = ("SHORTHAUL_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME")


@dataclass
class Measured:
    """One engine on one network; seconds. `error` says why there are no numbers."""

    engine: str
    steps: list[float] = field(default_factory=list)
    cold: float | None = None
    warm: float | None = None
    loss: float | None = None
    cold_cpu: float | None = None
    starts: list[dict[str, float]] = field(default_factory=list)  # the parts of every warm start
    timed_out: bool = False
    error: str = ""

    def quantile(self, q: float) -> float:
        ordered = sorted(self.steps)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]

    @property
    def median(self) -> float | None:
        return statistics.median(self.steps) if self.steps else None

    def part(self, name: str) -> float | None:
        """The median of a part of the warm starts."""
        return statistics.median(s[name] for s in self.starts) if self.starts else None


# --- in the process that runs the engines -------------------------------------------------------------------


class Trainee:
    """One engine's copy of a network, and its training step."""

    def __init__(self, name: str, small: bool, engine: str) -> None:
        import torch

        from benchmarks.networks import ON_CPU, entry, network

        found = network(name, small, size=None if small else ON_CPU.get(name))
        self.module, self.inputs, self.targets, self.loss_fn = found
        self.cotangent = entry(name).cotangent
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.01, momentum=0.9)
        self.engine = engine
        self.runnable: Any = None
        self.whole: Any = None

    def prepare(self) -> None:
        """Hand the module to the engine."""
        if self.engine == "eager":
            self.runnable = self.module
        elif self.engine == "torch.compile":
            import torch

            self.runnable = torch.compile(self.module)
        elif self.engine == "shorthaul":
            import shorthaul

            self.runnable = shorthaul.optimize(self.module)
        elif self.engine == "shorthaul TrainStep":
            import shorthaul

            if self.cotangent:
                raise ValueError("a network that is timed with a given gradient has no loss, and so no whole step")
            self.runnable = self.module
            self.whole = shorthaul.TrainStep(self.module, self.loss_fn, self.optimizer)
        else:
            raise ValueError(f"unknown engine {self.engine!r}")

    def step(self) -> float:
        """One training step; its time in seconds."""
        begin = time.perf_counter()
        if self.whole is not None:
            self.whole(*self.inputs, self.targets)
            return time.perf_counter() - begin
        self.optimizer.zero_grad()
        for x in self.inputs:
            x.grad = None
        output = self.runnable(*self.inputs)
        if self.cotangent:
            output.backward(self.targets)
        else:
            self.loss_fn(output, self.targets).backward()
            self.optimizer.step()
        return time.perf_counter() - begin

    def loss(self) -> float:
        import torch

        with torch.no_grad():
            return float(self.loss_fn(self.runnable(*self.inputs), self.targets))


def take_turns(
    name: str, small: bool, engines: Sequence[str], steps: int, seconds: float, threads: int
) -> dict[str, Any]:
    """Measured steps of every engine, in rounds; stops early when `seconds` are over and 5 steps are done."""
    import torch

    torch.set_num_threads(threads)
    results = {engine: Measured(engine) for engine in engines}
    ready = []
    for engine in engines:
        trainee = Trainee(name, small, engine)
        try:
            trainee.prepare()
            for _ in range(2):
                trainee.step()
            ready.append(trainee)
        except Exception as error:
            results[engine].error = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    begin, turn = time.perf_counter(), 0
    while ready:
        done = min(len(results[t.engine].steps) for t in ready)
        if done >= steps or (done >= 5 and time.perf_counter() - begin > seconds):
            break
        for trainee in ready if turn % 2 == 0 else ready[::-1]:
            results[trainee.engine].steps += [trainee.step() for _ in range(ROUND)]
        turn += 1
    for trainee in ready:
        results[trainee.engine].loss = trainee.loss()
    return {engine: asdict(result) for engine, result in results.items()}


def start(name: str, small: bool, engine: str, threads: int, began: float) -> dict[str, float]:
    """In a fresh process that began at `began` (`time.time()`): the seconds each part of the first step takes."""
    before = time.time()
    import torch

    imported = time.time()
    torch.set_num_threads(threads)
    trainee = Trainee(name, small, engine)
    made, made_cpu = time.time(), processor_time()
    trainee.prepare()
    trainee.step()
    first, first_cpu = time.time(), processor_time()
    ordinary = min(trainee.step() for _ in range(3))
    return {
        "compile": first - made - ordinary,
        "start": (before - began) + (first - made),
        "import_torch": imported - before,
        "make_network": made - imported,
        "whole": (before - began) + (first - imported),
        "compile_cpu": first_cpu - made_cpu,
    }


def processor_time() -> float:
    """Seconds of processor time of this process and of the ones that it ran and waited for."""
    return sum(os.times()[:4])


# --- in the process that directs ----------------------------------------------------------------------------


class TimedOut(RuntimeError):
    """A process was ended because it took too long."""


def in_subprocess(call: str, arguments: dict[str, Any], caches: Path | None, timeout: float) -> Any:
    """The result of `call(**arguments)` of this module in a fresh interpreter; `RuntimeError` with its last words.

    caches: a folder with a folder for each engine's caches.
    """
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    if caches is not None:
        for variable in CACHES:
            owner = "shorthaul" if variable.startswith("SHORTHAUL") else "torch.compile"
            folder = caches / owner / variable.lower()
            folder.mkdir(parents=True, exist_ok=True)
            environment[variable] = str(folder)
    began = ", 'began': " + repr(time.time()) if call == "start" else ""
    program = (
        f"import json, sys\nfrom benchmarks import cpu\n"
        f"print('\\n' + json.dumps(cpu.{call}(**{{**json.loads(sys.argv[1]){began}}})))"
    )
    try:
        done = subprocess.run([sys.executable, "-c", program, json.dumps(arguments)], cwd=ROOT, env=environment,
                              capture_output=True, text=True, timeout=timeout)  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise TimedOut(f"not finished after {timeout:.0f} s") from error
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:300])
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Measured]:
    """All measurements of one network. The step times use the caches that the compile measurements filled."""
    from benchmarks.networks import entry

    whole = not entry(name).cotangent  # else there is no loss, and no whole step
    results = {engine: Measured(engine) for engine in arguments.engines if whole or engine != "shorthaul TrainStep"}
    common = {"name": name, "small": arguments.small, "threads": arguments.threads}
    with tempfile.TemporaryDirectory(prefix="shorthaul-bench-") as folder:
        caches = Path(folder)
        if not arguments.no_compile:
            for engine, result in results.items():
                try:
                    for kind in ("cold", *["warm"] * arguments.starts):
                        note(f"{name}: {engine}, {kind} start")
                        parts = in_subprocess("start", {**common, "engine": engine}, caches, arguments.timeout)
                        if kind == "cold":
                            result.cold, result.cold_cpu = parts["compile"], parts["compile_cpu"]
                        else:
                            result.starts.append(parts)
                except RuntimeError as error:
                    result.error = f"{kind} start: {error}"
                    result.timed_out = isinstance(error, TimedOut)
                result.warm = result.part("start")
        note(f"{name}: training steps, engines in turn")
        ready = [engine for engine, result in results.items() if not result.timed_out]
        call = {**common, "steps": arguments.steps, "seconds": arguments.seconds}
        while ready:
            try:
                found = in_subprocess("take_turns", {**call, "engines": ready}, caches, arguments.timeout * 2)
            except RuntimeError as error:
                # a process that ended takes all engines with it: once more without the peer that may have ended it
                lost = [e for e in ready if e == "torch.compile"] if len(ready) > 1 else []
                for engine in lost or ready:
                    results[engine].error = results[engine].error or str(error)
                ready = [e for e in ready if e not in lost] if lost else []
                continue
            for engine, raw in found.items():
                result = results[engine]
                result.steps, result.loss = raw["steps"], raw["loss"]
                result.error = result.error or raw["error"]
            break
    return results


def note(text: str) -> None:
    print(f"  {text} ...", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vector": torch.backends.cpu.get_cpu_capability(),
    }


def markdown(results: dict[str, dict[str, Measured]], about: dict[str, Any], threads: int) -> str:
    """The table of all measurements, and the machine under it."""
    lines = [
        "| network | engine | step (median) | p10 – p90 | against eager | against the better peer | cold compile | warm start |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, engines in results.items():
        eager = engines["eager"].median if "eager" in engines else None
        for engine, result in engines.items():
            if result.median is None:
                lines.append(f"| {name} | {engine} | failed: {result.error} | | | | | |")
                continue
            ratio = against_peers(engine, engines)
            versus = f"{eager / result.median:.2f}×" if eager and engine != "eager" else ""
            best = f"{ratio:.2f}×" if ratio is not None else ""
            cold = f"{result.cold:.1f} s" if result.cold is not None and engine != "eager" else ""
            warm = f"{result.warm:.1f} s" if result.warm is not None else ""
            lines.append(
                f"| {name} | {engine} | {result.median * 1e3:.2f} ms | {result.quantile(0.1) * 1e3:.2f} – "
                f"{result.quantile(0.9) * 1e3:.2f} | {versus} | {best} | {cold} | {warm} |"
                + (f" {result.error}" if result.error else "")
            )
    lines += [
        "",
        *means(results),
        *starts_table(results),
        "Above 1× is faster. Warm start leaves out importing torch and making the network.",
        f"{about['cpu']}, {threads} of {about['cores']} cores, {about['vector']}; torch {about['torch']}, "
        f"Python {about['python']}; load average before: {about['load_before']:.2f}.",
    ]
    return "\n".join(lines)


def against_peers(engine: str, engines: dict[str, Measured]) -> float | None:
    """How many times as fast as the better of eager mode and torch.compile one of our engines is."""
    mine = engines[engine].median
    peers = [m for e, r in engines.items() if not e.startswith("shorthaul") and (m := r.median) is not None]
    return min(peers) / mine if engine.startswith("shorthaul") and peers and mine else None


def means(results: dict[str, dict[str, Measured]]) -> list[str]:
    """Of each of our engines: the geometric mean of its ratios to the better peer, and the least."""
    lines = []
    for engine in dict.fromkeys(e for engines in results.values() for e in engines):
        ratios = [r for engines in results.values() if engine in engines and (r := against_peers(engine, engines)) is not None]
        if len(ratios) > 1:
            lines.append(f"{engine} against the better peer, {len(ratios)} networks: geometric mean "
                         f"{statistics.geometric_mean(ratios):.2f}×, least {min(ratios):.2f}×.")  # fmt: skip
    return [*lines, ""] if lines else []


def starts_table(results: dict[str, dict[str, Measured]]) -> list[str]:
    """Cold compilation and warm starts of each engine, and how many times faster than torch.compile the cold one is."""
    if not any(r.starts for engines in results.values() for r in engines.values()):
        return []
    lines = [
        "| network | engine | cold compile | its processor time | of torch.compile's | import torch | warm start (spread) | whole |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, engines in results.items():
        peer = engines.get("torch.compile")
        for engine, r in engines.items():
            if not r.starts:
                lines.append(f"| {name} | {engine} | {r.error or 'not measured'} | | | | | |")
                continue
            faster = f"1/{peer.cold / r.cold:.1f}" if peer and peer.cold and r.cold and engine.startswith("shorthaul") else ""
            cold = f"{r.cold:.1f} s | {r.cold_cpu:.1f} s" if engine != "eager" else " | "
            each = [s["start"] for s in r.starts]
            lines.append(
                f"| {name} | {engine} | {cold} | {faster} | {r.part('import_torch'):.1f} s | {r.warm:.2f} s "
                f"({min(each):.2f} – {max(each):.2f}) | {r.part('whole'):.2f} s |"
            )
    return [*lines, ""]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    import benchmarks.networks as networks

    parser = argparse.ArgumentParser(prog="shorthaul bench", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--networks", nargs="+", choices=["ten", *networks.REGISTRY], default=list(networks.BASIC), metavar="NAME",
        help="networks, or 'ten': the ten benchmark networks at batches for a CPU (default: the basic ones)",
    )  # fmt: skip
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), metavar="NAME")
    parser.add_argument("--steps", type=int, default=60, help="measured steps of every engine (default: 60)")
    parser.add_argument(
        "--seconds", type=float, default=90, help="stop measuring steps of a network after so long (default: 90)"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that one start may take (default: 600)")
    parser.add_argument("--starts", type=int, default=3, help="warm starts of every engine (default: 3)")
    parser.add_argument("--no-compile", action="store_true", help="leave out cold and warm compile times")
    parser.add_argument("--quick", action="store_true", help="small networks, few steps; the numbers mean little")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder for JSON and Markdown"
    )
    arguments = parser.parse_args(argv)
    arguments.networks = [n for name in arguments.networks for n in (networks.ON_CPU if name == "ten" else [name])]
    arguments.small = arguments.quick
    if arguments.quick:
        arguments.steps, arguments.no_compile = min(arguments.steps, 6), True
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and save; the exit status: 1 where an engine failed."""
    arguments = parse(argv)
    about = machine()
    results: dict[str, dict[str, Measured]] = {}
    arguments.output.mkdir(parents=True, exist_ok=True)
    stem = arguments.output / ("cpu-quick" if arguments.quick else "cpu")
    for name in arguments.networks:
        results[name] = measure(name, arguments)
        table = markdown(results, about, arguments.threads)  # written after every network: an interruption loses little
        saved = {n: {e: asdict(r) for e, r in found.items()} for n, found in results.items()}
        stem.with_suffix(".json").write_text(
            json.dumps({"machine": about, "threads": arguments.threads, "results": saved}, indent=1)
        )
        stem.with_suffix(".md").write_text(table + "\n")
    print(table)
    print(f"\nwritten: {stem}.json, {stem}.md")
    return int(any(r.error for found in results.values() for r in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
