"""Runs the map trees of `mbconv_maps` as Triton kernels on torch tensors, and the same block as an ordinary module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.mbconv_maps import Block
from shorthaul.codegen.triton import TritonKernel, emit_kernel
from shorthaul.codegen.triton.launch import Launch
from shorthaul.ir.dtypes import dtype
from shorthaul.ir.nodes import Map
from shorthaul.symbolic import evaluate

# program's parameter: the module's
PARAMETERS = {"w1": "expand.weight", "w2": "depthwise.weight", "w3": "project.weight", "v1": "squeeze.weight", "u1": "squeeze.bias",
              "v2": "excite.weight", "u2": "excite.bias", **{f"gamma{i}": f"norm{i}.weight" for i in (1, 2, 3)},
              **{f"beta{i}": f"norm{i}.bias" for i in (1, 2, 3)}}  # fmt: skip
BUFFERS = {f"{b}{i}": f"norm{i}.{b}" for b in ("running_mean", "running_var") for i in (1, 2, 3)}


class MBConv(nn.Module):
    """An inverted residual with squeeze-excite as PyTorch users write it."""

    def __init__(self, ci: int, ce: int, co: int, cr: int, taps: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.expand = nn.Conv2d(ci, ce, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(ce)
        self.depthwise = nn.Conv2d(ce, ce, taps, stride, taps // 2, groups=ce, bias=False)
        self.norm2 = nn.BatchNorm2d(ce)
        self.squeeze = nn.Conv2d(ce, cr, 1)
        self.excite = nn.Conv2d(cr, ce, 1)
        self.project = nn.Conv2d(ce, co, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(co)
        self.residual = stride == 1 and ci == co

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, ci, H, W]; gives [N, co, H', W']."""
        silu = nn.functional.silu
        y = silu(self.norm1(self.expand(x)))
        y = silu(self.norm2(self.depthwise(y)))
        gate = torch.sigmoid(self.excite(silu(self.squeeze(nn.functional.adaptive_avg_pool2d(y, 1)))))
        y = self.norm3(self.project(y * gate))
        return x + y if self.residual else y


class FusedBlock:
    """The block's kernels bound to tensors: `set_input`, `forward()`, `backward()`; results in `tensors`."""

    def __init__(self, block: Block, sizes: Mapping[str, int], device: str = "cpu", options: Mapping[str, Any] | None = None,
                 tiles: Mapping[str, Mapping[str, Any]] | None = None) -> None:  # fmt: skip
        """options: for `emit_kernel`, of every kernel; tiles: block sizes by kernel name."""
        self.block, self.sizes = block, dict(sizes)
        self.tensors: dict[str, Tensor] = {}
        for c in block.containers.values():
            shape = [evaluate(n, sizes) for n in c.shape]
            strides = [evaluate(s, sizes) for s in c.actual_strides]
            self.tensors[c.name] = torch.empty_strided(
                shape, strides, dtype=getattr(torch, c.dtype.name), device=device
            )
        self.kernels: list[TritonKernel] = []
        self.launches: dict[str, list[Launch]] = {"forward": [], "backward": []}
        for m in block.maps:
            chosen = {**(options or {}), **_map_options(m, sizes)}
            kernel = emit_kernel(m, block.containers, options=chosen)
            self.kernels.append(kernel)
            self.launches[m.phase].append(Launch(kernel, self.tensors, sizes, **(tiles or {}).get(kernel.name, {})))

    def load_module(self, module: MBConv) -> None:
        """Take parameters and buffers from a module."""
        state = module.state_dict()
        for ours, theirs in {**PARAMETERS, **BUFFERS}.items():
            self.tensors[ours].copy_(state[theirs].detach().reshape(self.tensors[ours].shape))

    def forward(self) -> Tensor:
        for launch in self.launches["forward"]:
            launch()
        return self.tensors["out"]

    def backward(self) -> Tensor:
        for launch in self.launches["backward"]:
            launch()
        return self.tensors["dx"]

    def results(self) -> dict[str, Tensor]:
        """Output, gradients and new buffers under the module's names."""
        named = {"output/out": self.tensors["out"], "gradient/x": self.tensors["dx"]}
        named |= {f"gradient/{theirs}": self.tensors[f"d{ours}"] for ours, theirs in PARAMETERS.items()}
        return named | {f"buffer/{theirs}": self.tensors[f"new_{ours}"] for ours, theirs in BUFFERS.items()}

    def predicted_bytes(self, m: Map) -> tuple[int, int]:
        """(read, written) by the footprint of the map's memlets, each container once; partial results too."""
        size = {c.name: evaluate(c.bytes, self.sizes) for c in self.block.containers.values()}
        return sum(size[c] for c in m.read_containers()), sum(size[c] for c in m.written_containers())


def _map_options(m: Map, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Keep a short shared axis of a product in one block, so that its weights are loaded once a program."""
    if (m.name == "expand" and sizes["CI"] <= 64) or (m.name == "project_data_gradient" and sizes["CO"] <= 64):
        return {"k": "whole"}
    return {}


def reference(module: MBConv, x: Tensor, dout: Tensor, autocast: torch.dtype | None = None) -> dict[str, Tensor]:
    """Forward and backward of the module by PyTorch, under the names of `FusedBlock.results`."""
    module.zero_grad(set_to_none=True)
    x = x.detach().clone().requires_grad_(True)
    with torch.autocast(x.device.type, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        out = module(x)
    out.backward(dout.to(out.dtype))
    named = {"output/out": out.detach(), "gradient/x": x.grad}
    named |= {f"gradient/{name}": p.grad.reshape(p.shape) for name, p in module.named_parameters()}
    return named | {f"buffer/{name}": b.clone() for name, b in module.named_buffers() if b.is_floating_point()}


def sizes_of(n: int, h: int, w: int, ci: int, ce: int, co: int, cr: int, taps: int, stride: int) -> dict[str, int]:
    """The sizes of a block by symbol name."""
    pad = taps // 2
    ho, wo = ((s + 2 * pad - taps) // stride + 1 for s in (h, w))
    return {"N": n, "H": h, "W": w, "HO": ho, "WO": wo, "CI": ci, "CE": ce, "CO": co, "CR": cr}


def make_block(dtype_name: str, ci: int, co: int, taps: int, stride: int, keep_activation: bool = False) -> Block:
    """The map trees for activations of that dtype."""
    return Block(dtype(dtype_name), taps, stride, residual=stride == 1 and ci == co, keep_activation=keep_activation)
