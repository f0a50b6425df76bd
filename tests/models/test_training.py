"""Real networks train through Shorthaul as they do in eager PyTorch: losses, gradients, parameters, buffers.

Twenty steps, the batch size changed midway, from the same seed. The rule is that of `shorthaul.testing.numerics`; the gradients of the
first step, which no earlier rounding has touched, are among what is compared. By default every network is trained once in float64 and
once in float32 (one seed), the optimizers in turn; `make test-all` trains with both, with three seeds.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.networks import BASIC, batch, entry
from shorthaul.testing import Agreement, full, judge_training

STEPS = 20
SEEDS = (0, 1, 2) if full() else (0,)
# ReLU on many activations: in float32, twenty steps of eager in another memory layout break the rule (`judge_training` verifies that
# before it uses the larger of eager's two errors). It is never used for the first step's gradients.
WITH_JUMPS = {"resnet18"}
# Biases between batch norms: see `shorthaul.testing.training.OPTIMIZERS`. PyTorch's default epsilon is kept for float32.
WITH_ZERO_GRADIENTS = {"mbconv"}
IN_TURN = {name: ("sgd", "adamw")[i % 2] for i, name in enumerate(BASIC)}


def batches(name: str, seed: int, steps: int = STEPS) -> list[tuple[tuple[Tensor, ...], Tensor]]:
    """Batches of one size, then of another."""
    return [batch(name, small=True, size=8 if i < steps // 2 else 6, seed=1000 * seed + i) for i in range(steps)]


def train(name: str, optimizer: str, dtype: torch.dtype, *, dropout: float = 0.0, **options: Any) -> Agreement:
    if optimizer == "adamw" and dtype == torch.float64 and name in WITH_ZERO_GRADIENTS:
        optimizer = "adamw, epsilon 1e-5"
    return judge_training(
        lambda: entry(name).build(True, dropout),
        entry(name).loss_fn,
        lambda seed: batches(name, seed),
        optimizer=optimizer,
        dtype=dtype,
        title=f"{name}, {optimizer}, {dtype}",
        **options,
    )


def others_slow(name: str, optimizer: str, turn: int) -> Any:
    """A case of the whole matrix; marked slow unless it is the network's turn."""
    chosen = (IN_TURN[name] == optimizer) == (turn == 0)
    return pytest.param(name, optimizer, marks=() if chosen else pytest.mark.slow)


@pytest.mark.parametrize(("name", "optimizer"), [others_slow(n, o, 0) for n in BASIC for o in ("sgd", "adamw")])
def test_trains_like_eager_in_float64(name: str, optimizer: str) -> None:
    verdict = train(name, optimizer, torch.float64, seeds=(0,))
    assert verdict.ok, verdict


@pytest.mark.parametrize(("name", "optimizer"), [others_slow(n, o, 1) for n in BASIC for o in ("sgd", "adamw")])
def test_trains_like_eager_in_float32(name: str, optimizer: str) -> None:
    verdict = train(name, optimizer, torch.float32, seeds=SEEDS, chaotic=name in WITH_JUMPS)
    assert verdict.ok, verdict


@pytest.mark.slow
@pytest.mark.parametrize("name", BASIC)
def test_gradients_of_one_step_over_seeds(name: str) -> None:
    """One step in float32, by the rule as it stands, pooled over three seeds."""
    verdict = judge_training(
        lambda: entry(name).build(True, 0.0),
        entry(name).loss_fn,
        lambda seed: batches(name, seed)[:1],
        title=f"{name}, one step",
    )
    assert verdict.ok, verdict


@pytest.mark.slow
@pytest.mark.parametrize("name", BASIC)
def test_gradients_of_one_step_at_full_size(name: str) -> None:
    """The sizes of the benchmarks choose other kernels than the small networks do: long sums, windows of many channels."""
    verdict = judge_training(
        lambda: entry(name).build(False, 0.0),
        entry(name).loss_fn,
        lambda seed: [batch(name, seed=seed)],
        seeds=(0,),
        title=f"{name}, one step at full size",
    )
    assert verdict.ok, verdict


@pytest.mark.parametrize("name", ["mlp", pytest.param("mbconv", marks=pytest.mark.slow), "bert"])
def test_trains_like_eager_with_dropout(name: str) -> None:
    """Dropout, attention dropout and stochastic depth on: eager gets the masks that the optimized module draws."""
    verdict = train(name, "sgd", torch.float64, dropout=0.25, masked=True, seeds=(0,))
    assert verdict.ok, verdict


@pytest.mark.slow
def test_why_adamw_has_another_epsilon_in_float64() -> None:
    """With the default epsilon, eager does not agree with eager in another memory layout, by more than 1e-9."""
    verdict = judge_training(
        lambda: entry("mbconv").build(True, 0.0),
        entry("mbconv").loss_fn,
        lambda seed: batches("mbconv", seed),
        engine="eager",
        optimizer="adamw",
        dtype=torch.float64,
        seeds=(0,),
    )
    assert not verdict.layouts.ok, "the networks agree: remove the exception"
