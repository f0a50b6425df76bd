"""Footprints of lowered and fused training programs against what the interpreter counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import shorthaul.api as api
from shorthaul import pipeline
from shorthaul.analysis import footprints, movement
from shorthaul.config import Options
from shorthaul.ir.interpreter import Counts, interpret
from shorthaul.ir.nodes import Map
from shorthaul.ir.program import Program

ROWS, CLASSES = 8, 6


class Mixed(nn.Module):
    """Norms, activations, a gate, pooling, slicing, softmax and cross-entropy: everything but products."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.batch = nn.LayerNorm(2 * CLASSES), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        y = F.softmax(self.norm(torch.tanh(x) * torch.sigmoid(x)), -1)
        w = F.silu(self.batch(z))
        gate = torch.sigmoid(w.mean((2, 3), keepdim=True))
        pooled = (F.max_pool2d(w * gate, 2) * F.avg_pool2d(w, 2)).sum()
        return y.square().mean() + pooled + F.cross_entropy(x[:, ::2], labels)


@pytest.fixture(scope="module")
def captured() -> Program:
    inputs = (torch.randn(ROWS, 2 * CLASSES, requires_grad=True), torch.randn(4, 3, 6, 6, requires_grad=True), torch.arange(ROWS) % CLASSES)
    return api.capture(Mixed().train(), inputs, train=True)


def values(p: Program) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    found = {}
    for name in (*p.signature.inputs, *(g for _, g in p.signature.cotangents)):
        c = p.containers[name]
        found[name] = rng.normal(size=c.shape) if c.dtype.is_float else rng.integers(0, CLASSES, size=c.shape)
    return found


@pytest.mark.parametrize("level", [0, 2, 4])
def test_every_kernel_moves_what_the_interpreter_counts(captured: Program, level: int) -> None:
    p = captured.clone()
    pipeline.optimize(p, Options(level, False))
    counts = Counts()
    interpret(p, values(p), count=counts)
    maps = [n for n in p.nodes if isinstance(n, Map)]
    assert maps and len(maps) == len(p.nodes)
    for n in maps:
        for (name, side), f in footprints(n, p.containers).items():
            counted = counts.elements.get((n.id, name, side), 0)
            assert f.elements == counted if f.exact else f.elements >= counted, f"{n} {side} {name}"


def test_fusion_moves_less_and_no_less_than_the_bound(captured: Program) -> None:
    found = []
    for level in (0, 4):
        p = captured.clone()
        pipeline.optimize(p, Options(level, False))
        found.append(movement(p))
    plain, fused = found
    assert fused.lower_bound <= fused.bytes < plain.bytes
    assert fused.lower_bound == plain.lower_bound and fused.eager_bytes == plain.eager_bytes
