"""`sh.tune` for real, small and short: the result is a recipe that compiles; the model and random state stay as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import shorthaul as sh
from shorthaul.cli import main

ROOT = Path(__file__).resolve().parents[2]


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.SiLU(), torch.nn.Dropout(0.1))


def test_a_small_network(tmp_path: Path) -> None:
    model, x = network(), torch.randn(32, 8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    tuned = sh.tune(model, (x,), budget=10, database=tmp_path / "tuning.sqlite", progress=False)
    assert tuned.ratio <= 1 and tuned.start is not None and tuned.start.seconds
    assert len(tuned.measured) >= 2
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    tuned.save(tmp_path / "recipe.py")
    compiled = sh.optimize(model, recipe=tmp_path / "recipe.py")
    compiled(x).sum().backward()
    assert not compiled.report().regions[0].program.attributes["refusals"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"inputs": torch.ones(2, 8)}, TypeError, "inputs is a tuple"),
        ({"budget": 0}, ValueError, "seconds above 0"),
        ({"search": "gredy"}, KeyError, "did you mean greedy"),
        ({"cost_model": "rooflin"}, KeyError, "did you mean roofline"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        sh.tune(network(), **{"inputs": (torch.ones(2, 8),), **arguments})


def test_the_command(tmp_path: Path) -> None:
    text = "import torch\ndef make():\n    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()), torch.ones(2, 4)\n"
    (tmp_path / "net.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    command = [sys.executable, "-m", "shorthaul", "tune", "net.py:make", "--budget", "4", "--fresh", "--output", "r.py", "--plot", "p.svg"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tuned Sequential in" in done.stdout and (tmp_path / "r.py").read_text().count("recipe = Recipe(") == 1
    assert (tmp_path / "p.svg").stat().st_size > 1000


def test_wrong_calls_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text("import torch\ndef make():\n    return torch.nn.Tanh(), torch.ones(2, 4)\n")
    with pytest.raises(SystemExit, match="2"):
        main(["tune", "net.py:make", "--budget", "-3"])
    assert "a number of seconds above 0 is needed, not '-3'" in capsys.readouterr().err
    assert main(["tune", f"{tmp_path / 'net.py'}:make", "--search", "gredy"]) == 2
    assert "did you mean greedy" in capsys.readouterr().err
