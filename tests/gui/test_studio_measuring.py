"""Measuring without the page, on a CPU and on a GPU: before and after a transformation, with nothing of the server installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from studio_networks import small

import shorthaul as sh
from shorthaul import workbench
from shorthaul.codegen.triton.emit_map import emit_map
from shorthaul.gui import Session
from shorthaul.gui.load import machine_of
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.nodes import Map
from shorthaul.transforms.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
DEVICES = ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)]
WITHOUT = ("aiohttp", "anywidget", "traitlets", "onnx", "playwright", "IPython")


@pytest.mark.parametrize("device", DEVICES)
def test_the_step_and_each_kernel_before_and_after_a_transformation(device: str) -> None:
    session = Session.of(sh.capture(*small()), level=None, checks=False)
    if device != "cpu":
        session.set_machine("h100")
    session.run_level(0)
    assert session.device == device
    for _ in range(2):
        state, found = session.current, session.measure(5)
        assert 0 < found["low"] <= found["median"] <= found["high"] and found["runs"] == 5
        assert found["device"] == workbench.devices()[device] or device == "cpu" == found["device"]
        rows = session.costliest(limit=10_000)
        timed = [r for r in rows if r["measured"]]
        assert len(timed) >= 0.9 * len(rows)  # for a GPU a kernel may be split, and is left out
        assert state.measured is not None and all(0 < t.least <= t.median <= t.most for t in state.measured.kernels.values())
        assert all(t.runs == 5 for t in state.measured.kernels.values())
        best = next(p for p in session.opportunities() if p["transformation"] == "MapFusion")
        session.apply_alike(best["transformation"], best["where"])
    one, two = session.states[1], session.states[2]
    assert one.totals["measured"] and two.totals["measured"] and two.totals["bytes"] < one.totals["bytes"]
    assert len(two.measured.kernels) < len(one.measured.kernels)  # type: ignore[union-attr]
    session.close()


@pytest.mark.parametrize("device", DEVICES)
def test_the_example_needs_nothing_of_the_server(device: str, tmp_path: Path) -> None:
    """What PyTorch, NumPy and Triton alone can import."""
    arguments = ["measure_steps", f"{ROOT / 'tests/gui/studio_networks.py'}:small", "--device", device, "--steps", "2", "--runs", "3",
                 "--recipe", str(tmp_path / "last.trace.json")]  # fmt: skip
    program = (f"import sys, runpy; sys.modules.update(dict.fromkeys({WITHOUT!r})); sys.argv = {arguments!r}; "
               "runpy.run_module('examples.measure_steps', run_name='__main__')")  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *(p for p in sys.path if p)])}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "3 runs" in lines[0] and lines[2].startswith("lowered (level 0)") and lines[4].startswith("level 4")
    numbers = [line[44:].split() for line in lines[2:5]]
    assert all(float(row[3]) > 0 and float(row[-1]) > 0 for row in numbers) and float(numbers[2][0]) < float(numbers[0][0])
    events = json.loads((tmp_path / "last.trace.json").read_text())["traceEvents"]
    assert {e["args"]["duration"] for e in events if e["ph"] == "X"} >= {"measured"}


def test_levels_choose_for_the_machine_that_is_described(tmp_path: Path) -> None:
    """Of a GPU: what is compiled there is what the state shows, also when its recipe is replayed or taken up."""
    captured: Any = sh.capture(*small())
    session = Session.of(captured, level=None, checks=False)
    session.run_level(4)
    session.set_machine("h100")
    state = session.run_level(4)
    assert state["step"] == "level 4 for h100" and session.states[1].step == "level 4"
    program = session.current.program
    assert fingerprint(program) == fingerprint(workbench.optimize(captured.clone(), 4, target="triton"))
    assert fingerprint(program) != fingerprint(session.states[1].program)
    assert all(emit_map(n, program).kernels for n in program.nodes if isinstance(n, Map))  # nothing has to be split to be measured
    session.replay(str(Recipe.of(program)))
    assert session.current.totals["bytes"] == state["totals"]["bytes"]
    session.close()


def test_a_session_on_tensors_of_a_gpu_describes_that_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class On:
        def __init__(self, device: str) -> None:
            self.device = device

    known = {"cpu": "this CPU", "cuda:0": "NVIDIA H200", "cuda:1": "NVIDIA L4"}
    monkeypatch.setattr(workbench, "devices", lambda: known)
    assert [machine_of((On(d),)) for d in ("cpu", "cuda:0", "cuda:1")] == ["cpu", "h200", "a100"]
    assert machine_of(torch.ones(2)) == "cpu" and machine_of(()) == "cpu"
    session = Session.of(sh.capture(*small()), checks=False)
    assert session.device == "cpu"
    session.set_machine("h200")
    assert session.device == "cuda:0" and session.describe()["device"] == "cuda:0"
    session.close()
