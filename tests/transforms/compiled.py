"""Programs run as compiled code, for tests that compare it with the interpreter."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from shorthaul import pipeline
from shorthaul.ir.program import Form, Program
from shorthaul.runtime.compile import compile_program
from shorthaul.runtime.executable import torch_dtype


def compiled_results(p: Program, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs, updates and gradients of a program without symbolic sizes, by the C++ target; a program of maps is scheduled in a copy.

    The backward phase runs twice: as one that may run again, and as the last one.
    """
    if p.form is Form.MAPS:
        p = p.clone()
        pipeline.STAGES["Schedule"](p)
    executable = compile_program(p).executable

    def tensor(name: str) -> torch.Tensor:
        c = p.containers[name]
        t = torch.empty_strided([int(n) for n in c.shape], [int(s) for s in c.actual_strides], dtype=torch_dtype(c.dtype))  # type: ignore[arg-type]
        return t.copy_(torch.from_numpy(np.ascontiguousarray(values[name])))

    inputs = {n: tensor(n) for n in p.signature.inputs}
    found, run = executable.forward(executable.layout({}), inputs, any(n.phase == "backward" for n in p.nodes))
    if run is not None:
        given = {**inputs, **found, **{c: tensor(c) for _, c in p.signature.cotangents}}
        gradients = dict(p.signature.gradients)
        runs: list[dict[str, torch.Tensor]] = []
        for again in (True, False):
            state = executable.backward(run, given, again)
            runs.append({})
            for _ in executable.parts:
                runs[-1].update({gradients[i]: g for i, g in executable.part(state).items()})
        run.release()
        for name, g in runs[1].items():
            torch.testing.assert_close(g, runs[0][name], rtol=1e-12, atol=1e-300, equal_nan=True)
        found.update(runs[1])
    return {k: v.detach().numpy() for k, v in found.items()}


def assert_compiled(p: Program, values: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Compiled code gives in float64 what was expected, but for rounding."""
    for k, v in compiled_results(p, values).items():
        scale = max(1.0, float(np.abs(expected[k]).max(initial=0)))
        np.testing.assert_allclose(v, expected[k], rtol=1e-10, atol=1e-12 * scale, err_msg=k)
