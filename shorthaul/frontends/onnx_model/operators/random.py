"""Random tensors. Without a seed they are drawn from PyTorch's generator; with one, each call draws the same numbers."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shorthaul.frontends.onnx_model.operators.shapes import check_memory
from shorthaul.frontends.onnx_model.table import operator
from shorthaul.frontends.onnx_model.types import held


def generator(seed: float | None, device: torch.device) -> torch.Generator | None:
    """A generator seeded by the attribute `seed` (a float: its bits are the seed), None without one."""
    if seed is None:
        return None
    return torch.Generator(device).manual_seed(struct.unpack("<I", struct.pack("<f", float(seed)))[0])


@torch.compiler.disable
def seeded_uniform(seed: int, shape: Any, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1), in float64, as onnx's reference implementation draws them from a seed."""
    return torch.from_numpy(np.random.RandomState(seed).uniform(0.0, 1.0, tuple(shape))).to(device)


def _normal(shape: Any, dtype: torch.dtype, device: Any, mean: float, scale: float, seed: float | None) -> Tensor:
    check_memory(shape, dtype.itemsize)
    return torch.randn(tuple(shape), dtype=dtype, device=device, generator=generator(seed, device)) * scale + mean


def _uniform(shape: Any, dtype: torch.dtype, device: Any, low: float, high: float, seed: float | None) -> Tensor:
    check_memory(shape, dtype.itemsize)
    return torch.rand(tuple(shape), dtype=dtype, device=device, generator=generator(seed, device)) * (high - low) + low


@operator("RandomNormal")
def random_normal(*, dtype: int, mean: float, scale: float, seed: float | None, shape: Any, device: Any) -> Tensor:
    return _normal(shape, held(dtype, "RandomNormal"), device, mean, scale, seed)


@operator("RandomUniform")
def random_uniform(*, dtype: int, low: float, high: float, seed: float | None, shape: Any, device: Any) -> Tensor:
    return _uniform(shape, held(dtype, "RandomUniform"), device, low, high, seed)


@operator("RandomNormalLike")
def random_normal_like(x: Tensor, *, dtype: int | None, mean: float, scale: float, seed: float | None) -> Tensor:
    return _normal(x.shape, x.dtype if dtype is None else held(dtype, "RandomNormalLike"), x.device, mean, scale, seed)


@operator("RandomUniformLike")
def random_uniform_like(x: Tensor, *, dtype: int | None, low: float, high: float, seed: float | None) -> Tensor:
    return _uniform(x.shape, x.dtype if dtype is None else held(dtype, "RandomUniformLike"), x.device, low, high, seed)


@operator("Bernoulli")
def bernoulli(x: Tensor, *, dtype: int | None, seed: float | None) -> Tensor:
    drawn = torch.bernoulli(x, generator=generator(seed, x.device))
    return drawn if dtype is None else drawn.to(held(dtype, "Bernoulli"))
