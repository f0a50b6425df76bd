"""Real networks train through Shorthaul as they do in eager PyTorch: losses, gradients, parameters, buffers.

Twenty steps, the batch size changed midway, from the same seed; dropout and stochastic depth are 0, because engines draw different
masks. The rule is that of `shorthaul.testing.numerics`. The first step's gradients are among what is compared.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("shorthaul.api", reason="shorthaul.optimize is not there yet")

from benchmarks.networks import REGISTRY, batch, entry
from shorthaul.testing import judge_training

STEPS = 20
WITH_JUMPS = {"resnet18"}  # ReLU on many activations: twenty steps in float32 are chaotic (see the rule)


def batches(name: str, seed: int) -> list[tuple[tuple[Tensor, ...], Tensor]]:
    """Ten batches of one size, then ten of another."""
    return [batch(name, small=True, size=8 if i < STEPS // 2 else 6, seed=1000 * seed + i) for i in range(STEPS)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", REGISTRY)
def test_trains_like_eager(name: str, optimizer: str, dtype: torch.dtype) -> None:
    verdict = judge_training(
        lambda: entry(name).build(True, 0.0),
        entry(name).loss_fn,
        lambda seed: batches(name, seed),
        engine="shorthaul",
        optimizer=optimizer,
        dtype=dtype,
        seeds=(0,) if dtype == torch.float64 else (0, 1, 2),
        chaotic=name in WITH_JUMPS,
        title=f"{name}, {optimizer}",
    )
    assert verdict.ok, verdict


@pytest.mark.parametrize("name", REGISTRY)
def test_gradients_of_one_step(name: str) -> None:
    """One step in float32, by the strict rule: no rounding of earlier steps blurs it."""
    verdict = judge_training(
        lambda: entry(name).build(True, 0.0),
        entry(name).loss_fn,
        lambda seed: batches(name, seed)[:1],
        title=f"{name}, one step",
    )
    assert verdict.ok, verdict
