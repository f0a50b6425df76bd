"""Dropout and stochastic depth in whole networks: reproducible, the same mask in both phases, the right moments, and eager's own
distribution. That every mask is the one the rule defines is shown by training eager with our masks (`test_training`)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import shorthaul as sh
from benchmarks.networks import network
from benchmarks.networks.mbconv import drop_path
from shorthaul.testing import masks

P = 0.3


class Dropped(nn.Module):
    """What dropout leaves of the input; nothing else, so that the output shows the mask."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x * 2.0, P, self.training)


class DroppedPath(nn.Module):
    """Stochastic depth of a residual."""

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(torch.sin(x), P, self.training) + x


class Attend(nn.Module):
    """Attention with dropout of the probabilities."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=P)


def forward_backward(model: nn.Module, *inputs: Tensor, seed: int) -> tuple[Tensor, list[Tensor]]:
    fresh = [x.clone().requires_grad_() for x in inputs]
    torch.manual_seed(seed)
    y = model(*fresh)
    y.sum().backward()
    return y.detach(), [x.grad for x in fresh]


@pytest.fixture(scope="module")
def dropped() -> nn.Module:
    return sh.optimize(Dropped(), strict=True)


def test_backward_uses_the_mask_of_the_forward(dropped: nn.Module) -> None:
    x = torch.rand(300, 200) + 1
    y, (gradient,) = forward_backward(dropped, x, seed=0)
    assert torch.equal(gradient == 0, y == 0)
    kept = y != 0
    assert torch.allclose(y[kept], 2 * x[kept] / (1 - P), rtol=1e-6)
    assert torch.allclose(gradient[kept], torch.tensor(2 / (1 - P)))


def test_moments_and_independence(dropped: nn.Module) -> None:
    x = torch.ones(300, 200)
    first, second = ((forward_backward(dropped, x, seed=s)[0] != 0).double() for s in (1, 2))
    for kept in (first, second):
        assert float(kept.mean()) == pytest.approx(1 - P, abs=0.01)  # five standard deviations
        for d in (0, 1):  # rows and columns are no more alike than chance makes them
            expected = (P * (1 - P) / kept.shape[d]) ** 0.5
            assert float(kept.mean(d).std()) == pytest.approx(expected, rel=0.2)
    assert float((first * second).mean()) == pytest.approx((1 - P) ** 2, abs=0.012)


def test_seed_reproduces_and_calls_differ(dropped: nn.Module) -> None:
    x = torch.ones(50, 40)
    torch.manual_seed(5)
    calls = [dropped(x) for _ in range(3)]
    assert not torch.equal(calls[0], calls[1]) and not torch.equal(calls[1], calls[2])
    torch.manual_seed(5)
    state = None
    for i, call in enumerate(calls):
        if i == 1:
            state = torch.get_rng_state()
        assert torch.equal(dropped(x), call)
    torch.set_rng_state(state)
    assert torch.equal(dropped(x), calls[1])


def test_evaluation_drops_nothing(dropped: nn.Module) -> None:
    x = torch.ones(50, 40)
    try:
        assert torch.equal(dropped.eval()(x), 2 * x)
    finally:
        dropped.train()


def test_mask_does_not_depend_on_fusion() -> None:
    x = torch.ones(50, 40)
    found = []
    for level in (0, 2, 4):
        torch.manual_seed(3)
        found.append(sh.optimize(Dropped(), level=level)(x))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_stochastic_depth_drops_whole_samples() -> None:
    model = sh.optimize(DroppedPath(), strict=True)
    x = torch.rand(2000, 3, 2, 2) + 0.5
    y, (gradient,) = forward_backward(model, x, seed=0)
    gone = (y == x).flatten(1)
    assert torch.equal(gone.all(1), gone.any(1))
    gone = gone[:, 0]
    assert float(gone.double().mean()) == pytest.approx(P, abs=0.05)
    assert torch.equal(gradient[gone], torch.ones_like(gradient[gone]))
    assert torch.allclose(gradient[~gone], 1 + torch.cos(x[~gone]) / (1 - P))


def test_attention_dropout_is_the_same_in_both_phases() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    plain = Attend()
    model = sh.optimize(copy.deepcopy(plain), strict=True)
    y, gradients = forward_backward(model, q, k, v, seed=4)
    with masks(plain):
        expected, reference = forward_backward(plain, q, k, v, seed=4)
    assert not torch.allclose(y, F.scaled_dot_product_attention(q, k, v))
    assert torch.allclose(y, expected, rtol=1e-12, atol=1e-14)
    for g, r in zip(gradients, reference, strict=True):
        assert torch.allclose(g, r, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["mlp", pytest.param("mbconv", marks=pytest.mark.slow), "bert"])
def test_networks_repeat_with_the_seed(name: str) -> None:
    net = network(name, small=True, dropout=P)
    model = sh.optimize(net.module, strict=True)

    def gradients(seed: int) -> list[Tensor]:
        model.zero_grad()
        torch.manual_seed(seed)
        net.loss_fn(model(*net.inputs), net.targets).backward()
        return [p.grad.clone() for p in model.parameters()]

    first, again, other = gradients(1), gradients(1), gradients(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_masks_are_refused_where_there_is_no_rule() -> None:
    module = nn.Dropout2d(0.5)
    with masks(module), pytest.raises(NotImplementedError, match="no rule"):
        module(torch.ones(2, 3, 4, 4))
    with masks(module), pytest.raises(RuntimeError, match="outside of a call"):
        F.dropout(torch.ones(3), 0.5)
