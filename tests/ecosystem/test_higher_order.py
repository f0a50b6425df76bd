"""Gradients of gradients are right or refused, never wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ecosystem import agree, batch, close, mlp, twins
from torch import nn

import shorthaul as sh

REFUSED = r"gradients of gradients \(create_graph=True\) are not supported .* shorthaul\.disable\(module\)"


def penalty(m: Any) -> torch.Tensor:
    x = batch().requires_grad_()
    y = m(x).square().sum()
    (g,) = torch.autograd.grad(y, x, create_graph=True)
    loss = (g.norm(dim=1) - 1).square().mean() + y
    loss.backward()
    return loss.detach()


def backward_with_a_graph(m: Any) -> torch.Tensor:
    m(batch()).square().sum().backward(create_graph=True)
    return next(m.parameters()).grad


USES: dict[str, Callable[[Any], Any]] = {
    "gradient penalty": penalty,
    "backward(create_graph=True)": backward_with_a_graph,
    "hvp": lambda m: torch.autograd.functional.hvp(lambda x: m(x).square().sum(), batch(), batch(1))[1],
    "hessian": lambda m: torch.autograd.functional.hessian(lambda x: m(x).square().sum(), batch(0, 2)),
}


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_a_whole_model_refuses() -> None:
    _, ours = twins(mlp)
    for use in USES.values():
        with pytest.raises(RuntimeError, match=REFUSED):
            use(ours)
        ours.zero_grad()


def test_first_order_functionals_are_right() -> None:
    eager, ours = twins(mlp)
    jacobians = [torch.autograd.functional.jacobian(m, batch(0, 2)) for m in (eager, ours)]
    close(jacobians[1], jacobians[0])


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = mlp(8), mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize("half", ["first", "second"])
def test_a_model_of_which_a_part_is_optimized_refuses(half: str) -> None:
    model = Halves().double()
    sh.optimize(getattr(model, half))
    with pytest.raises(RuntimeError, match=REFUSED):
        penalty(model)


def test_parts_outside_of_the_penalty_stay_optimized() -> None:
    """A penalty on the critic alone is right: the critic is left to eager mode, the generator is compiled."""
    eager, plain = Halves().double(), Halves().double()
    plain.load_state_dict(eager.state_dict())
    sh.optimize(plain.first)
    for m in (eager, plain):
        made = m.first(batch())
        penalty(m.second)
        m.second(made).square().mean().backward()
    agree(eager, plain)


def test_a_penalty_inside_a_model_refuses() -> None:
    class Penalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.detach().requires_grad_()
            y = self.body(x).sum()
            (g,) = torch.autograd.grad(y, x, create_graph=True)
            return y + g.square().sum()

    _, ours = twins(Penalized)
    with pytest.raises(RuntimeError, match="gradients of gradients"):
        ours(batch()).backward()
