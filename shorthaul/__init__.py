"""Shorthaul: faster training of neural networks by moving less data.

    import shorthaul as sh

    model = sh.optimize(model)                        # the same module, optimized; or torch.compile(model, backend="shorthaul")
    step = sh.TrainStep(model, loss_fn, optimizer)    # a whole training step as one program
    program = sh.capture(model, (x,), train=True)     # the training step as a program that can be read and changed
    print(sh.verify(model, (x,)))                     # optimized, eager and float64 compared; what is at fault where they differ
    tuned = sh.tune(model, (x,), budget=60)           # seconds of searching and measuring; tuned.recipe is the plan that won

Names are loaded when they are first used, so that importing the package is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import backend, capture
    from .config import Options
    from .errors import DifferentiationError, FallbackWarning, OnnxError
    from .frontends.functional import Unsupported
    from .gui import studio
    from .ir.program import Program
    from .modules import disable, optimize
    from .onnx_models import load_onnx, save_onnx
    from .training import TrainStep
    from .tuner import tune
    from .tuning.result import Tuned
    from .verification import Verification, verify

__version__ = "0.1.0.dev0"

_HOMES = {
    "optimize": "modules", "disable": "modules", "capture": "api", "backend": "api", "Program": "api", "Options": "config",
    "TrainStep": "training", "Unsupported": "frontends.functional", "CallError": "runtime.executable",
    "DifferentiationError": "errors", "FallbackWarning": "errors", "verify": "verification", "Verification": "verification",
    "tune": "tuner", "Tuned": "tuning.result",
    "OnnxError": "errors", "load_onnx": "onnx_models", "save_onnx": "onnx_models", "studio": "gui",
}  # fmt: skip

__all__ = ["CallError", "DifferentiationError", "FallbackWarning", "OnnxError", "Options", "Program", "TrainStep", "Tuned", "Unsupported",
           "Verification", "backend", "capture", "disable", "load_onnx", "optimize", "save_onnx", "studio", "tune", "verify"]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shorthaul' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
