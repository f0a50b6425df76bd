"""What happens to gradients before the update: accumulation, the loss scale, clipping; written as PyTorch code and captured like any."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from shorthaul.analysis.eager import eager_bytes
from shorthaul.frontends.functional import functionalize
from shorthaul.frontends.importer import import_graph
from shorthaul.ir.dtypes import DType
from shorthaul.ir.program import Program
from shorthaul.ir.rewrite import inline

NARROW = (torch.bfloat16, torch.float16)


def unscaled(gradients: Sequence[Any], scale: Any) -> tuple[list[Any], Any]:
    """Gradients divided by the loss scale, and whether one of them is not finite (float32, 0 or 1): GradScaler's `unscale_`."""
    inverse = scale.double().reciprocal().float()
    bad = torch.stack([torch.isfinite(g).logical_not().any() for g in gradients]).any()
    return [g * inverse for g in gradients], bad.float()


def clipped_by_value(gradients: Sequence[Any], limit: Any) -> list[Any]:
    """torch.nn.utils.clip_grad_value_."""
    return [torch.minimum(torch.maximum(g, -limit.to(g.dtype)), limit.to(g.dtype)) for g in gradients]


def clipped_by_norm(gradients: Sequence[Any], limit: Any, dtypes: Sequence[torch.dtype]) -> tuple[list[Any], Any]:
    """torch.nn.utils.clip_grad_norm_ with the 2-norm: gradients, and their norm before."""
    squares = []
    for g, dtype in zip(gradients, dtypes, strict=True):
        wide = g.float() if dtype in NARROW else g
        squares.append((wide * wide).sum())
    total = torch.stack(squares).sum().sqrt()
    factor = torch.clamp(limit / (total + 1e-6), max=1.0)
    return [g * factor.to(dtype) for g, dtype in zip(gradients, dtypes, strict=True)], total


def capture(function: Callable[..., Sequence[Any]], examples: Sequence[tuple[Sequence[int], torch.dtype, torch.device]]) -> Program:
    """The program of operators of a function from tensors to a sequence of tensors. examples: shape, dtype and device of each."""
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    proxies = [fx.Proxy(graph.placeholder(f"x{i}"), tracer) for i in range(len(examples))]
    graph.output(tuple(p.node for p in function(*proxies)))
    mode = FakeTensorMode()
    with mode:
        fakes = [torch.empty(tuple(shape), dtype=dtype, device=device) for shape, dtype, device in examples]
    captured = functionalize(fx.GraphModule({}, graph), fakes, grad_enabled=False)
    imported = import_graph(captured, "gradients")
    outputs = []
    for spec in captured.outputs:
        assert spec.graph_output is not None
        outputs.append(str(imported.results[spec.graph_output]))
    with imported.program.edit("Outputs") as edit:
        edit.set_signature(imported.program.signature.with_(inputs=tuple(str(n) for n in imported.inputs), outputs=tuple(outputs)))
    return imported.program


def apply(program: Program, function: Callable[..., Sequence[Any]], operands: Sequence[str], device: torch.device,
          hint: str) -> list[str]:  # fmt: skip
    """Put what the function computes of containers at the end of a program; returns the containers of its results."""
    containers = [program.containers[n] for n in operands]
    examples = [(tuple(n for n in c.shape if isinstance(n, int)), _torch(c.dtype), device) for c in containers]
    body = capture(function, examples)
    program.attributes["eager_bytes"] = program.attributes.get("eager_bytes", 0) + eager_bytes(body)
    with program.edit("Gradients") as edit:
        nodes, outputs = inline(body, edit, dict(zip(body.signature.inputs, operands, strict=True)), phase="backward", hint=hint)
        edit.add(*nodes)
    return outputs


def _torch(d: DType) -> torch.dtype:
    return getattr(torch, d.name)


def selected(program: Program, pairs: Mapping[str, str], found: str, device: torch.device) -> dict[str, str]:
    """For each (old, new): old where `found` is not zero, else new. How a step is skipped without asking the device."""

    def choose(flag: Any, *values: Any) -> list[Any]:
        half = len(values) // 2
        return [torch.where(flag > 0, a, b) for a, b in zip(values[:half], values[half:], strict=True)]

    results = apply(program, choose, [found, *pairs, *pairs.values()], device, "kept_")
    return dict(zip(pairs, results, strict=True))
