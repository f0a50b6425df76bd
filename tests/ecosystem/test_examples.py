"""The programs in `examples/` train as they do in eager mode, and what is optimized is compiled."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from ecosystem import compiled

import shorthaul as sh

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def as_in_eager_mode(losses: list[float], eager: list[float]) -> None:
    assert len(losses) == len(eager) > 4
    assert losses == pytest.approx(eager, rel=1e-2, abs=1e-3)
    assert losses[-1] < 0.7 * losses[0]


def test_trainer_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "1" if name != "TRANSFORMERS_VERBOSITY" else "error")
    example = load("trainer")
    model = sh.optimize(example.make_model())
    as_in_eager_mode(example.train(model), example.train(example.make_model()))
    assert not any(r.fallbacks for r in compiled(model))


def test_lightning() -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # its advice on workers and logging
        warnings.simplefilter("error", sh.FallbackWarning)
        example = load("lightning_module")
        ours, eager = example.Parity(), example.Parity(optimized=False)
        as_in_eager_mode(example.train(ours), example.train(eager))
    compiled(ours.network)
