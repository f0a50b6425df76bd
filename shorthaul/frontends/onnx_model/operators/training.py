"""Optimizers of the domain ai.onnx.preview.training, as pure functions of weights, gradients and state; `Gradient` is emitted
(`flow.gradient`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shorthaul.frontends.onnx_model.table import operator

DOMAIN = "ai.onnx.preview.training"


def _groups(inputs: tuple[Tensor, ...], kinds: int) -> list[tuple[Tensor, ...]]:
    """Operands come as all weights, all gradients, all states of the first kind, ..."""
    n = len(inputs) // kinds
    return [tuple(inputs[i + k * n] for k in range(kinds)) for i in range(n)]


def _flat(results: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(r for kind in zip(*results, strict=True) for r in kind)


@operator("Adagrad", domain=DOMAIN)
def adagrad(rate: Tensor, step: Tensor, *inputs: Tensor, decay_factor: float, epsilon: float, norm_coefficient: float) -> tuple:
    rate = rate / (1 + step * decay_factor)
    results = []
    for x, g, h in _groups(inputs, 3):
        g = norm_coefficient * x + g
        h = h + g * g
        results.append((x - rate * g / (torch.sqrt(h) + epsilon), h))
    return _flat(results)


@operator("Adam", domain=DOMAIN)
def adam(
    rate: Tensor, step: Tensor, *inputs: Tensor, alpha: float, beta: float, epsilon: float, norm_coefficient: float,
    norm_coefficient_post: float,
) -> tuple:  # fmt: skip
    # the first step (number 0) is not corrected
    steps = step.to(rate.dtype)
    corrected = torch.where(step > 0, rate * torch.sqrt(1 - beta**steps) / torch.where(step > 0, 1 - alpha**steps, 1.0), rate)
    results = []
    for x, g, v, h in _groups(inputs, 4):
        g = norm_coefficient * x + g
        v = alpha * v + (1 - alpha) * g
        h = beta * h + (1 - beta) * g * g
        x = (1 - norm_coefficient_post) * (x - corrected * v / (torch.sqrt(h) + epsilon))
        results.append((x, v, h))
    return _flat(results)


@operator("Momentum", domain=DOMAIN)
def momentum(rate: Tensor, step: Tensor, *inputs: Tensor, alpha: float, beta: float, mode: str, norm_coefficient: float) -> tuple:
    results: list[tuple[Any, ...]] = []
    for x, g, v in _groups(inputs, 3):
        g = norm_coefficient * x + g
        fresh: Any = torch.where(step > 0, torch.full_like(rate, beta), torch.ones_like(rate))
        v = alpha * v + fresh * g
        results.append((x - rate * (g + alpha * v if mode == "nesterov" else v), v))
    return _flat(results)
