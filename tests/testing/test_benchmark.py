"""The benchmark's harness: it runs every engine it is given, reports failures, and computes what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cpu


def test_quick_run_writes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = cpu.main(
        ["--quick", "--networks", "mlp", "chain", "--engines", "eager", "--threads", "1", "--output", str(tmp_path)]
    )
    assert status == 0
    assert "| mlp | eager |" in capsys.readouterr().out
    saved = json.loads((tmp_path / "cpu-quick.json").read_text())
    assert len(saved["results"]["chain"]["eager"]["steps"]) >= 6


def test_an_engine_that_fails_is_reported_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: cpu.Trainee) -> None:
        if self.engine == "shorthaul":
            raise RuntimeError("no such operator")
        self.runnable = self.module

    monkeypatch.setattr(cpu.Trainee, "prepare", broken)
    results = cpu.take_turns("mlp", True, ["eager", "shorthaul"], steps=6, seconds=5, threads=1)
    assert results["shorthaul"]["error"] == "RuntimeError: no such operator"
    assert len(results["eager"]["steps"]) >= 6


def test_start_takes_the_parts_apart() -> None:
    parts = cpu.in_subprocess("start", {"name": "mlp", "small": True, "threads": 1, "engine": "eager"}, None, 120)
    assert all(seconds > 0 for part, seconds in parts.items() if not part.startswith("compile"))


def test_a_subprocess_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="no network named 'vgg'"):
        cpu.in_subprocess("start", {"name": "vgg", "small": True, "threads": 1, "engine": "eager"}, None, 120)


def test_the_table_states_slowdowns_as_they_are() -> None:
    results = {
        "net": {
            "eager": cpu.Measured("eager", [0.010, 0.011, 0.012], warm=0.5),
            "torch.compile": cpu.Measured("torch.compile", [0.005, 0.006, 0.007], cold=30.0, warm=5.0),
            "shorthaul": cpu.Measured("shorthaul", [0.012, 0.012, 0.012], cold=3.0, warm=1.0),
        }
    }
    about = {"cpu": "CPU", "cores": 2, "vector": "AVX2", "torch": "2", "python": "3", "load_before": 0.0}
    rows = cpu.markdown(results, about, 2).splitlines()
    assert "| 1.83× |" in rows[3]
    assert "| 0.92× | 0.50× | 3.0 s | 1.0 s |" in rows[4]
    results["net"]["shorthaul"] = cpu.Measured("shorthaul", error="it broke")
    assert "failed: it broke" in cpu.markdown(results, about, 2)


PARTS = {"compile": 2.0, "compile_cpu": 1.5, "start": 0.5, "import_torch": 2.0, "make_network": 1.0, "whole": 1.5}


def scripted(monkeypatch: pytest.MonkeyPatch, fails: dict[tuple[str, str], Exception]) -> list[list[str]]:
    """`in_subprocess` by a script; returns the engines of every process that takes steps."""
    turns: list[list[str]] = []

    def answer(call: str, arguments: dict[str, Any], caches: Path | None, timeout: float) -> Any:
        engines = [arguments["engine"]] if call == "start" else arguments["engines"]
        for engine in engines:
            if (call, engine) in fails:
                raise fails[call, engine]
        if call == "start":
            slower = 5 if arguments["engine"] == "torch.compile" else 1
            return {**PARTS, "compile": PARTS["compile"] * slower}
        turns.append(engines)
        return {e: {"steps": [0.01] * 6, "loss": 1.0, "error": ""} for e in engines}

    monkeypatch.setattr(cpu, "in_subprocess", answer)
    return turns


def test_starts_are_set_beside_those_of_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, {})
    results = {"mlp": cpu.measure("mlp", cpu.parse(["--starts", "2"]))}
    assert len(results["mlp"]["shorthaul"].starts) == 2
    row = next(line for line in cpu.starts_table(results) if line.startswith("| mlp | shorthaul |"))
    assert row == "| mlp | shorthaul | 2.0 s | 1.5 s | 1/5.0 | 2.0 s | 0.50 s (0.50 – 0.50) | 1.50 s |"


def test_a_peer_that_needs_too_long_is_marked_and_takes_no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = scripted(monkeypatch, {("start", "torch.compile"): cpu.TimedOut("not finished after 600 s")})
    results = cpu.measure("mlp", cpu.parse([]))
    assert turns == [["eager", "shorthaul", "shorthaul TrainStep"]]
    assert results["torch.compile"].error == "cold start: not finished after 600 s"
    assert not results["torch.compile"].steps and results["shorthaul"].steps
    about = {"cpu": "CPU", "cores": 2, "vector": "AVX2", "torch": "2", "python": "3", "load_before": 0.0}
    assert "| mlp | torch.compile | failed: cold start: not finished after 600 s |" in cpu.markdown({"mlp": results}, about, 2)


def test_a_process_that_a_peer_ends_is_run_again_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = scripted(monkeypatch, {("take_turns", "torch.compile"): RuntimeError("exit status -9")})
    results = cpu.measure("mlp", cpu.parse(["--no-compile"]))
    assert turns == [["eager", "shorthaul", "shorthaul TrainStep"]]
    assert results["torch.compile"].error == "exit status -9" and not results["shorthaul"].error
