"""The backend suite of onnx, run through `load_onnx`: cases by name, one run of a case, and what is known not to pass."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx.backend.test
import torch
from onnx import ModelProto, TypeProto, numpy_helper
from onnx.backend.base import Backend, BackendRep
from onnx.backend.test.loader import load_model_tests

import shorthaul as sh
from shorthaul.frontends.onnx_model.types import HELD, to_numpy, to_torch
from shorthaul.testing.numerics import compare


def encode(v: Any, t: TypeProto) -> Any:
    """A value of the suite as the module takes it: tensors, lists for sequences, None, NumPy arrays of strings."""
    kind = t.WhichOneof("value")
    if v is None:
        return None
    if kind == "optional_type":
        return encode(v, t.optional_type.elem_type)
    if kind == "sequence_type":
        return [encode(x, t.sequence_type.elem_type) for x in v]
    elem = t.tensor_type.elem_type
    return to_torch(np.asarray(v), elem) if elem in HELD else np.asarray(v, dtype=object)


def decode(v: Any, t: TypeProto) -> Any:
    """The other way."""
    kind = t.WhichOneof("value")
    if kind == "optional_type":
        return None if v is None else decode(v, t.optional_type.elem_type)
    if kind == "sequence_type":
        return [decode(x, t.sequence_type.elem_type) for x in v]
    return to_numpy(v, t.tensor_type.elem_type) if isinstance(v, torch.Tensor) else v


def input_types(module: Any) -> list[TypeProto]:
    """Types of the inputs that the module takes."""
    code = module._code
    return [v.type for v in code.proto.graph.input if v.name not in code.places]


class Rep(BackendRep):
    """A prepared model. `last`: the operands of the last run."""

    compiled = False
    last: list[Any] | None = None

    def __init__(self, model: ModelProto) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sh.FallbackWarning)  # nodes through onnx's reference implementation
            self.module = sh.load_onnx(model)
        self.call = sh.optimize(self.module) if self.compiled else self.module

    def run(self, inputs: Any, **_: Any) -> tuple:
        operands = [encode(v, t) for v, t in zip(inputs, input_types(self.module), strict=True)]
        Rep.last = operands
        with torch.no_grad():
            results = self.call(*operands)
        results = results if isinstance(results, tuple) else (results,)
        return tuple(decode(v, o.type) for v, o in zip(results, self.module._code.proto.graph.output, strict=True))


class CompiledRep(Rep):
    compiled = True


def _backend(rep: type[Rep]) -> type[Backend]:
    class OurBackend(Backend):
        @classmethod
        def prepare(cls, model: ModelProto, device: str = "CPU", **_: Any) -> Rep:
            return rep(model)

        @classmethod
        def supports_device(cls, device: str) -> bool:
            return device == "CPU"

    return OurBackend


@functools.cache
def cases_of(compiled: bool) -> dict[str, Any]:
    """A function that runs a case, by the case's name; it raises what the suite's runner raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        suite = onnx.backend.test.BackendTest(_backend(CompiledRep if compiled else Rep), __name__)
    found = {}
    for case in suite.test_cases.values():
        for name in dir(case):
            if name.startswith("test_") and name.endswith("_cpu"):
                found[name.removesuffix("_cpu")] = getattr(case(name), name)
    return found


LIGHT = Path(onnx.backend.test.__file__).parent / "data" / "light"
WHOLE = sorted(p.stem.removeprefix("light_") for p in LIGHT.glob("light_*.onnx"))


def judged_here(name: str, operands: list[torch.Tensor], compiled: bool) -> str:
    """What is wrong with a whole network, judged on this machine; empty where nothing is.

    The expected outputs come from another machine. The weights of these networks are all one number, so that the logits are huge (up to
    1e12) and equal but for their rounding, which the softmax at the end turns into probabilities. So the expected outputs are held
    against a run in float64, and the logits in float32 against that run (by the suite's tolerance) and against eager mode here (at most
    ten times its error, as the rule of agreement has it for a tensor).
    """
    model = onnx.load(LIGHT / f"light_{name}.onnx")
    expected = numpy_helper.to_array(onnx.load_tensor(LIGHT / f"light_{name}_output_0.pb"))
    wide = [v.double() if v.dtype is torch.float32 else v for v in operands]
    with torch.no_grad():
        found = run_filled(sh.load_onnx(model).double(), wide, filled_double)[0].numpy()
        if not np.allclose(found, expected, rtol=1e-3, atol=1e-7):
            return f"in float64 the output is off by up to {np.abs(found - expected).max()}"
        (last,) = [n for n in model.graph.node if model.graph.output[0].name in n.output]
        if last.op_type != "Softmax":
            return "the outputs are not those of a softmax: expected outputs must be met"
        model.graph.output[0].name = last.input[0]  # of the same shape
        model.graph.node.remove(last)
        module = sh.load_onnx(model)
        eager = run_filled(module, operands, filled)[0]
        exact = run_filled(sh.load_onnx(model).double(), wide, filled_double)[0]
        torch._dynamo.reset()
        candidate = sh.optimize(module)(*operands) if compiled else eager
    if not np.allclose(eager, exact, rtol=1e-3):
        return f"the logits are off by up to {(eager - exact).abs().max()} from those in float64"
    verdict = compare(*({"result/logits": v} for v in (candidate, eager, exact)), title=name)
    return "" if verdict.rows[0].ok else str(verdict)  # of one tensor there is no median


def run_filled(module: Any, operands: list[torch.Tensor], fill: Callable[..., torch.Tensor]) -> tuple:
    """The module's results in eager mode with the weights that its graph makes (`ConstantOfShape`) made by `fill`."""
    code = module._code
    names = dict(code.source.names)
    names.update((k, fill) for k in names if k.startswith("ConstantOfShape") and not k.endswith("_on_host"))
    exec(compile(code.source.text, fill.__name__, "exec"), names)
    return names["run"](module, torch.device("cpu"), *operands)


def filled(shape: tuple, *, value: tuple | None, device: torch.device) -> torch.Tensor:
    number, dtype = value or (0.0, torch.float32)
    return torch.full(tuple(shape), number, dtype=dtype, device=device)


def filled_double(shape: tuple, *, value: tuple | None, device: torch.device) -> torch.Tensor:
    number, dtype = value or (0.0, torch.float32)
    return filled(shape, value=(number, torch.float64 if dtype is torch.float32 else dtype), device=device)


@functools.cache
def node_cases() -> dict[str, Any]:
    """The cases of single nodes: model and data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {t.name: t for t in load_model_tests(kind="node")}
