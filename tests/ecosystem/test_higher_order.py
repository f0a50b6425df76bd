"""Gradients of gradients are right or refused, never wrong."""

from __future__ import annotations

import copy
import re
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


def loss_of(m: Any, x: torch.Tensor, parameters: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    return (m(x) if parameters is None else torch.func.functional_call(m, parameters, (x,))).square().sum()


def input_gradient(m: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    x = batch().requires_grad_()
    return x, torch.autograd.grad(loss_of(m, x), x, **options)[0]


def twice_with_retained_graph(m: Any) -> torch.Tensor:
    x = batch().requires_grad_()
    y = loss_of(m, x)
    first, second = (torch.autograd.grad(y, x, retain_graph=True)[0] for _ in range(2))
    y.backward()
    return torch.cat([first, second, x.grad])


def double_backward(m: Any) -> torch.Tensor:
    x, g = input_gradient(m, create_graph=True)
    return torch.autograd.grad(g.sum(), x)[0]


def beside_a_smooth_term(m: Any) -> torch.Tensor:
    """A second derivative exists even where ours is missing: it must not be taken for the whole."""
    x = batch().requires_grad_()
    (g,) = torch.autograd.grad(loss_of(m, x) + x.pow(3).sum(), x, create_graph=True)
    return torch.autograd.grad(g.sum(), x)[0]


def through_the_cotangent(m: Any) -> torch.Tensor:
    x, v = batch().requires_grad_(), torch.ones(5, 4, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(m(x), x, v, create_graph=True)
    return torch.autograd.grad((g * batch(1)).sum(), v)[0]


def of_parameters(m: Any) -> torch.Tensor:
    parameters = list(m.parameters())
    gradients = torch.autograd.grad(loss_of(m, batch()), parameters, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in gradients), parameters)[0]


def one_step_ahead(m: Any) -> torch.Tensor:
    """The outer loop of meta-learning: the gradient passes through an inner step."""
    parameters = dict(m.named_parameters())
    gradients = torch.autograd.grad(loss_of(m, batch(), parameters), list(parameters.values()), create_graph=True)
    moved = {n: p - 0.1 * g for (n, p), g in zip(parameters.items(), gradients, strict=True)}
    return torch.autograd.grad(loss_of(m, batch(1), moved), list(parameters.values()))[0]


def gradients_of_samples(m: Any) -> torch.Tensor:
    one = torch.func.grad(lambda p, x: loss_of(m, x[None], p))
    return next(iter(torch.func.vmap(one, (None, 0))(dict(m.named_parameters()), batch()).values()))


RIGHT_OR_REFUSED: list[Callable[[Any], torch.Tensor]] = [
    twice_with_retained_graph,
    double_backward,
    beside_a_smooth_term,
    through_the_cotangent,
    of_parameters,
    one_step_ahead,
    gradients_of_samples,
    lambda m: input_gradient(m, create_graph=True)[1].detach(),
    lambda m: torch.func.grad(lambda x: loss_of(m, x))(batch()),
    lambda m: torch.func.grad(lambda x: torch.func.grad(lambda z: loss_of(m, z))(x).square().sum())(batch()),
    lambda m: torch.func.hessian(lambda x: loss_of(m, x))(batch(0, 2)),
    lambda m: torch.func.jvp(m, (batch(),), (batch(1),))[1],
]


@pytest.mark.parametrize("engine", ["optimize", "torch.compile"])
@pytest.mark.filterwarnings("ignore::shorthaul.FallbackWarning")  # torch.func's transforms run in eager mode
def test_every_way_to_a_second_derivative_is_right_or_refused(engine: str) -> None:
    eager, ours = twins(mlp)
    candidate: Any = ours if engine == "optimize" else torch.compile(copy.deepcopy(eager), backend="shorthaul")
    right, refusals = 0, []
    for use in RIGHT_OR_REFUSED:
        wanted = use(eager)
        try:
            found = use(candidate)
        except RuntimeError as e:
            refusals.append(str(e))
        else:
            close(found, wanted)
            right += 1
    assert all(re.search(REFUSED, r) for r in refusals), refusals
    assert right >= 5


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
