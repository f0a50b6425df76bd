"""Every operator's samples, forward and backward, on the Triton target against the interpreter of the IR. Run by test_triton.py: on CPU
tensors in a process with TRITON_INTERPRET=1, and where there is a GPU also on it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ops"))

from operator_cases import (
    cotangents_for,
    differentiated,
    float_names,
    program_of,
    same,
    values_for,
    widened,
    widened_attributes,
)

from shorthaul.codegen.triton.interpreting import is_interpreting
from shorthaul.errors import DeviceError, DifferentiationError
from shorthaul.ir.derivative import NotDifferentiable
from shorthaul.ir.interpreter import interpret
from shorthaul.ir.nodes import Map
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import walk
from shorthaul.ir.scalar_ops import SCALAR_OPS
from shorthaul.ops.expand import choose_maps, expand
from shorthaul.ops.registry import REGISTRY, Sample
from shorthaul.pipeline import _schedule, _split
from shorthaul.runtime.compile import compile_triton
from shorthaul.runtime.executable import torch_dtype
from shorthaul.testing import sample
from shorthaul.transforms.fuse import default_fusions, fuse
from shorthaul.transforms.level4_global.dead_code import eliminate_dead_code

DEVICE = torch.device("cpu") if is_interpreting() else torch.device("cuda", 0)
CASES = [
    pytest.param(name, s, wide, id=f"{name}-{i}-{'float64' if wide else 'own'}")
    for name, d in sorted(REGISTRY.items())
    for i, s in enumerate(d.samples())
    for wide in (True, False)
    if not s.error
]
TOLERANCE = {"float64": 1e-9, "float32": 2e-5, "bfloat16": 3e-2, "float16": 3e-3}


def run(p: Program, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All results of both phases."""
    executable = compile_triton(p, DEVICE).executable
    layout = executable.layout({})
    tensors = {n: torch.as_tensor(v).to(DEVICE, torch_dtype(p.containers[n].dtype)) for n, v in values.items() if n in p.containers}
    inputs = {n: t for n, t in tensors.items() if n in p.signature.inputs}
    found, state = executable.forward(layout, inputs, True)
    if p.signature.gradients:
        assert state is not None
        backward = executable.backward(state, {**tensors, **found})
        for _ in executable.parts:
            found |= {g: t for i, t in executable.part(backward).items() for j, g in p.signature.gradients if i == j}
    return {n: (t.float() if t.dtype is torch.bfloat16 else t).cpu().numpy() for n, t in found.items()}


@pytest.mark.parametrize(("name", "s", "wide"), sample(CASES, 40))
def test_samples(name: str, s: Sample, wide: bool) -> None:
    d = REGISTRY[name]
    types = widened(s.operands) if wide else dict(s.operands)
    attributes = {**d.attributes, **s.attributes}
    p = program_of(name, types, widened_attributes(attributes) if wide else attributes)
    values = values_for(name, types, attributes)
    outputs = float_names(p.signature.outputs, p)
    wrt = float_names(p.signature.inputs, p)
    if outputs and wrt:
        try:
            p = differentiated(p, outputs, wrt)
        except (DifferentiationError, NotDifferentiable):
            pass
        else:
            values = {**values, **cotangents_for(p)}
    expand(p, choose_maps)
    eliminate_dead_code(p)
    expected = interpret(p.clone(), values)
    fuse(p, default_fusions("triton"))
    _schedule(p)
    _split(p)
    lacking = {n.op for m in p.nodes if isinstance(m, Map) for _, t in m.tasklets() for n in walk(*t.code.values())
               if n.op in SCALAR_OPS and not SCALAR_OPS[n.op].triton and n.op != "mod"}  # fmt: skip
    if lacking:  # refused by name, never computed wrongly
        with pytest.raises(DeviceError, match="|".join(lacking)):
            run(p, values)
        return
    found = run(p, values)
    for n, t in found.items():
        same(t, expected[n], TOLERANCE.get(p.containers[n].dtype.name, 0.0) if wide else 3e-2 if _narrow(p) else 2e-5, f"{name}: {n}")


def _narrow(p: Program) -> bool:
    return any(c.dtype.is_float and c.dtype.bits == 16 for c in p.containers.values())
