"""Measuring in a process of its own, so that a crash takes neither the studio nor its states with it, and stopping is at once.

The child (`python -m shorthaul.gui.measuring`) reads a request as one line of JSON, {program, runs, device}, and writes lines:
{what, part} as it goes on, at the end {step, kernels, threads, device} with kernels by position among the program's nodes, or {error}.
What a library call of the program runs must be importable there: what only a script registers is not known to it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from shorthaul import workbench
from shorthaul.ir.program import Program
from shorthaul.ir.serialize import from_json, to_json

Json = Any
COMMAND = (sys.executable, "-m", "shorthaul.gui.measuring")
CLEARED = ("PYTHONSTARTUP", "PYTHONINSPECT")  # what would make the child wait for a person


class MeasuringFailed(RuntimeError):
    """What was measured did not build, did not run, or crashed; the message says which."""


class Stopped(Exception):
    """The measurement was stopped as it was asked to."""


@dataclass(frozen=True)
class Spread:
    """Seconds of repeated runs: median, quartiles, extremes, number of runs."""

    median: float
    low: float
    high: float
    least: float
    most: float
    runs: int


@dataclass(frozen=True)
class Measurement:
    """step: forward and backward together. kernels: by node id. threads: that the kernels used. device: the name of what it ran on."""

    step: Spread
    kernels: dict[int, Spread]
    threads: int
    device: str


def measure(program: Program, *, runs: int, device: str, progress: Callable[[str, float], None], stop: threading.Event) -> Measurement:
    """`workbench.measure` in a child. progress(what, part done) is called as it goes on; setting `stop` ends the child.

    Raises MeasuringFailed, Stopped.
    """
    environment = {k: v for k, v in os.environ.items() if k not in CLEARED}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)  # what can be imported here can be there
    environment["OMP_NUM_THREADS"] = str(workbench.threads())
    request = json.dumps({"program": to_json(program), "runs": runs, "device": device})
    progress("starting", 0.0)
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        threading.Thread(target=_end_when, args=(stop, child), daemon=True, name="studio-stop").start()
        try:
            found, last = _listen(child, request, progress)
        finally:
            child.kill()
            child.wait()
        if stop.is_set():
            raise Stopped
        if found is None:
            errors.seek(0)
            told = errors.read().strip().splitlines()[-1:]
            code = child.returncode
            how = f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with status {code}"
            raise MeasuringFailed(f"the program {how} while {last}" + (f": {told[0]}" if told else "") + ". The session is as it was: undo "
                                  "the last step, or look at the code of its kernels, before you measure again")  # fmt: skip
    if "error" in found:
        raise MeasuringFailed(found["error"])
    ids = [n.id for n in program.nodes]
    kernels = {ids[int(k)]: Spread(**v) for k, v in found["kernels"].items()}
    return Measurement(Spread(**found["step"]), kernels, found["threads"], found["device"])


def _listen(child: subprocess.Popen[str], request: str, progress: Callable[[str, float], None]) -> tuple[Json, str]:
    """The child's last word (None where it ended without one), and what it was at."""
    assert child.stdin is not None and child.stdout is not None
    last = "starting"
    try:
        child.stdin.write(request + "\n")
        child.stdin.close()
    except BrokenPipeError:
        pass  # it has ended already: its status says how
    for line in child.stdout:
        said = json.loads(line)
        if "error" in said or "step" in said:
            child.wait()
            return said, last
        last = said["what"]
        progress(last, said["part"])
    child.wait()
    return None, last


def _end_when(stop: threading.Event, child: subprocess.Popen[str]) -> None:
    while child.poll() is None:
        if stop.wait(0.2):
            child.kill()
            return


def main() -> None:
    """The child."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no line of ours

    def say(**line: Json) -> None:
        out.write(json.dumps(line) + "\n")

    request = json.loads(sys.stdin.readline())
    try:
        program = from_json(request["program"])
        places = {n.id: i for i, n in enumerate(program.nodes)}
        found = workbench.measure(program, runs=request["runs"], device=request["device"],
                                  progress=lambda what, part: say(what=what, part=part))  # fmt: skip
    except Exception as e:  # whatever does not build or run: told in one line
        say(error=f"{type(e).__name__}: {e}")
        return
    kernels = {places[i]: asdict(t) for i, t in found.kernels.items() if i in places}
    say(step=asdict(found.step), kernels=kernels, threads=found.threads, device=found.device)


if __name__ == "__main__":
    main()
