"""Every random function of PyTorch inside an optimized module: its distribution, the same numbers in forward, backward and where they are
computed again, and reproducible draws (`torch.manual_seed`, `torch.get_rng_state`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import shorthaul as sh

SHAPE = (100, 150)
COUNT = SHAPE[0] * SHAPE[1]
PROBABILITIES = torch.full(SHAPE, 0.3)
RATES = torch.full(SHAPE, 3.0)
WEIGHTS = torch.tensor([1.0, 0.0, 3.0, 4.0])

Cdf = Callable[[np.ndarray], np.ndarray]


def _normal(mean: float, std: float) -> Cdf:
    return np.vectorize(NormalDist(mean, std).cdf)


def _integers(*weights: float, low: int = 0) -> Cdf:
    """Whole numbers from `low` on with these weights."""
    shares = np.cumsum(weights) / np.sum(weights)
    return lambda x: np.where(x < low, 0.0, shares[np.clip(np.floor(x).astype(int) - low, 0, len(shares) - 1)])


def _poisson(rate: float) -> Cdf:
    weights = [rate**k / np.prod(np.arange(1, k + 1), dtype=float) for k in range(40)]
    return _integers(*weights)


# name: (the numbers for a tensor like x, their distribution function)
NATIVE: dict[str, tuple[Callable[[Tensor], Tensor], Cdf]] = {
    "rand": (lambda x: torch.rand(SHAPE), lambda x: np.clip(x, 0, 1)),
    "rand_like": (torch.rand_like, lambda x: np.clip(x, 0, 1)),
    "uniform_": (lambda x: torch.empty_like(x).uniform_(-1, 3), lambda x: np.clip((x + 1) / 4, 0, 1)),
    "randn": (lambda x: torch.randn(SHAPE), _normal(0, 1)),
    "randn_like": (torch.randn_like, _normal(0, 1)),
    "normal_": (lambda x: torch.empty_like(x).normal_(1, 2), _normal(1, 2)),
    "normal, numbers": (lambda x: torch.normal(1.0, 2.0, SHAPE), _normal(1, 2)),
    "normal, mean": (lambda x: torch.normal(torch.full(SHAPE, 1.0), 2.0), _normal(1, 2)),
    "normal, both": (lambda x: torch.normal(torch.full(SHAPE, 1.0), torch.full(SHAPE, 2.0)), _normal(1, 2)),
    "exponential_": (lambda x: torch.empty_like(x).exponential_(2.0), lambda x: 1 - np.exp(-2 * np.maximum(x, 0))),
    "cauchy_": (lambda x: torch.empty_like(x).cauchy_(1.0, 2.0), lambda x: np.arctan((x - 1) / 2) / np.pi + 0.5),
    "log_normal_": (lambda x: torch.empty_like(x).log_normal_(0.0, 0.5), lambda x: _normal(0, 0.5)(np.log(np.maximum(x, 1e-30)))),
    "geometric_": (lambda x: torch.empty_like(x).geometric_(0.3), lambda x: 1 - 0.7 ** np.maximum(np.floor(x), 0)),
    "bernoulli": (lambda x: torch.bernoulli(PROBABILITIES), _integers(0.7, 0.3)),
    "bernoulli, p": (lambda x: torch.bernoulli(x, 0.3), _integers(0.7, 0.3)),
    "bernoulli_": (lambda x: torch.empty_like(x).bernoulli_(0.3), _integers(0.7, 0.3)),
    "bernoulli_, tensor": (lambda x: torch.empty_like(x).bernoulli_(PROBABILITIES), _integers(0.7, 0.3)),
    "randint": (lambda x: torch.randint(-3, 5, SHAPE).to(x.dtype), _integers(*[1] * 8, low=-3)),
    "randint_like": (lambda x: torch.randint_like(x, -3, 5), _integers(*[1] * 8, low=-3)),
    "dropout": (lambda x: F.dropout(torch.ones_like(x), 0.3) * 0.7, _integers(0.3, 0.7)),
    "rrelu": (lambda x: -F.rrelu(-torch.ones_like(x), 0.1, 0.4, training=True), lambda x: np.clip((x - 0.1) / 0.3, 0, 1)),
}
# calls of PyTorch, which the report lists
CALLS: dict[str, tuple[Callable[[Tensor], Tensor], Cdf]] = {
    "poisson": (lambda x: torch.poisson(RATES), _poisson(3.0)),
    "multinomial": (lambda x: torch.multinomial(WEIGHTS, COUNT, replacement=True).view(SHAPE).to(x.dtype), _integers(1, 0, 3, 4)),
    "randperm": (lambda x: torch.randperm(COUNT).view(SHAPE).to(x.dtype) / COUNT, lambda x: np.clip(x, 0, 1)),
}


class Draws(nn.Module):
    """Each input times the numbers of one function: the gradient of an input is those numbers again."""

    def __init__(self, functions: Sequence[Callable[[Tensor], Tensor]], region: bool = False) -> None:
        super().__init__()
        self.functions, self.region = functions, region

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        if self.region:
            return [checkpoint(lambda x, f=f: torch.exp(torch.log(x)) * f(x), x, use_reentrant=False) for f, x in zip(self.functions, xs)]
        return [x * f(x) for f, x in zip(self.functions, xs)]


class Drawn:
    """A module of draws, and its numbers: from the results, and from the gradients."""

    def __init__(self, table: dict[str, tuple[Callable[[Tensor], Tensor], Cdf]], **options: bool | int) -> None:
        self.names = list(table)
        region = bool(options.pop("region", False))
        self.model = sh.optimize(Draws([f for f, _ in table.values()], region), **options)

    def __call__(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        xs = [torch.ones(SHAPE, requires_grad=True) for _ in self.names]
        ys = self.model(xs)
        sum(y.sum() for y in ys).backward()
        return ({n: y.detach() for n, y in zip(self.names, ys, strict=True)}, {n: x.grad for n, x in zip(self.names, xs, strict=True)})


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """The names of which the numbers are the same in both."""
    return [n for n in a if torch.equal(a[n], b[n])]


@pytest.fixture(scope="module")
def native() -> Drawn:
    return Drawn(NATIVE, strict=True)


@pytest.fixture(scope="module")
def calls() -> Drawn:
    return Drawn(CALLS)


@pytest.fixture(scope="module")
def numbers(native: Drawn, calls: Drawn) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(1)
    (values, gradients), (more_values, more_gradients) = native(), calls()
    return {**values, **more_values}, {**gradients, **more_gradients}


@pytest.mark.parametrize("name", [*NATIVE, *CALLS])
def test_distribution_and_gradient(name: str, numbers: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
    """The distance between the shares below every point and the distribution function (Kolmogorov), correlations of neighbours, and
    the gradient, which is made of the numbers of the forward phase."""
    values, gradients = numbers
    torch.testing.assert_close(gradients[name], values[name], rtol=1e-6, atol=0)
    y = values[name].double().numpy()
    assert np.isfinite(y).all()
    cdf = (NATIVE | CALLS)[name][1]
    points, counts = np.unique(y, return_counts=True)
    upto = np.cumsum(counts) / COUNT
    at = cdf(points)
    below = at if counts.max() == 1 else cdf(np.nextafter(points, -np.inf))
    limit = 1.95 / np.sqrt(COUNT)  # exceeded once in a thousand
    assert np.abs(upto - at).max() < limit
    assert np.abs(upto - counts / COUNT - below).max() < limit + (0 if counts.max() > 20 else 1e-3)
    ranks = cdf(y.ravel())  # of any distribution: bounded, so that correlations have a bound
    for neighbour in (1, SHAPE[1]):
        a, b = ranks[:-neighbour] - ranks.mean(), ranks[neighbour:] - ranks.mean()
        assert abs((a * b).mean() / ranks.var()) < 4 / np.sqrt(COUNT)


def test_the_report_lists_what_is_drawn_by_pytorch(native: Drawn, calls: Drawn) -> None:
    native()
    calls()
    assert "aten.poisson" not in str(native.model.report())
    text = str(calls.model.report())
    for target in ("aten.poisson.default", "aten.multinomial.default", "aten.randperm.default"):
        assert target in text


@pytest.mark.parametrize("kind", ["native", "calls"])
def test_a_seed_and_a_state_reproduce_the_draws(kind: str, request: pytest.FixtureRequest) -> None:
    """After `manual_seed`, and from the middle of a run by `set_rng_state`, as a training that is resumed does it."""
    drawn: Drawn = request.getfixturevalue(kind)
    torch.manual_seed(5)
    states, found, between = [], [], []
    for _ in range(3):
        states.append(torch.get_rng_state())
        found.append(drawn())
        between.append(torch.rand(3))  # eager draws in between take their place in the same sequence
    assert same(found[0][0], found[1][0]) == [] and same(found[1][0], found[2][0]) == []
    torch.manual_seed(5)
    assert same(drawn()[0], found[0][0]) == drawn.names
    torch.set_rng_state(states[1])
    for k in (1, 2):
        values, gradients = drawn()
        assert same(values, found[k][0]) == drawn.names and same(gradients, found[k][1]) == drawn.names
        assert torch.equal(torch.rand(3), between[k])
    with torch.random.fork_rng():
        torch.manual_seed(99)
        drawn()
    torch.set_rng_state(states[2])
    assert same(drawn()[0], found[2][0]) == drawn.names


def test_draws_do_not_depend_on_level_or_checkpoint_regions(native: Drawn) -> None:
    """A number is that of its place: fusion, and being computed again in a checkpoint region, leave it as it is."""
    torch.manual_seed(2)
    expected, _ = native()
    for options in ({"level": 0}, {"region": True}):
        torch.manual_seed(2)
        values, gradients = Drawn(NATIVE, strict=True, **options)()
        assert same(values, expected) == native.names, options
        torch.testing.assert_close(gradients, values, rtol=1e-6, atol=0)


def test_calls_of_pytorch_in_a_checkpoint_region_are_not_drawn_again() -> None:
    values, gradients = Drawn(CALLS, region=True)()
    torch.testing.assert_close(gradients, values, rtol=1e-6, atol=0)


def test_a_checkpoint_around_the_module_draws_the_same_again(native: Drawn) -> None:
    xs = [torch.ones(SHAPE, requires_grad=True) for _ in native.names]
    torch.manual_seed(3)
    ys = checkpoint(native.model, xs, use_reentrant=False)
    sum(y.sum() for y in ys).backward()
    for x, y in zip(xs, ys, strict=True):
        torch.testing.assert_close(x.grad, y.detach(), rtol=1e-6, atol=0)


class Layers(nn.Module):
    """Layers that drop elements or channels, over the same numbers."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [
            F.alpha_dropout(x, 0.3, True),
            F.feature_alpha_dropout(x, 0.3, True),
            F.dropout1d(x.flatten(2), 0.3, True).view(x.shape),
            F.dropout2d(x, 0.3, True),
            F.dropout3d(x.unsqueeze(-1), 0.3, True).squeeze(-1),
        ]


def test_layers_that_drop() -> None:
    x = torch.randn(60, 50, 3, 4, generator=torch.Generator().manual_seed(0))
    model = sh.optimize(Layers(), strict=True)
    torch.manual_seed(0)
    for k, eager in enumerate(Layers()(x)):
        given = x.clone().requires_grad_()
        torch.manual_seed(7)
        y = model(given)[k]
        (gradient,) = torch.autograd.grad(y.sum(), given)
        y = y.detach()
        dropped = gradient == 0
        assert dropped.double().mean().item() == pytest.approx(0.3, abs=0.04)
        assert torch.equal(gradient[~dropped], torch.full_like(gradient[~dropped], gradient.max().item()))
        (floor,) = y[dropped].unique()
        slope, shift = gradient.max().item(), floor.item() if k < 2 else 0.0
        if k < 2:  # self-normalizing: what is dropped takes the lowest value of SELU; mean and variance stay
            assert floor.item() == pytest.approx(torch.mode(eager.flatten()).values.item(), rel=1e-5)
            assert y.mean().item() == pytest.approx(x.mean().item(), abs=0.1) and y.var().item() == pytest.approx(1, abs=0.15)
            offset = (y - slope * x)[~dropped]
            torch.testing.assert_close(offset, torch.full_like(offset, offset.mean().item()), rtol=1e-4, atol=1e-5)
        else:
            assert slope == pytest.approx(1 / 0.7) and shift == 0
            torch.testing.assert_close(y[~dropped], (x / 0.7)[~dropped])
        if k:  # whole channels
            whole = dropped.flatten(2)
            assert torch.equal(whole.all(2), whole.any(2))
        else:
            assert 0.2 < dropped.flatten(2).double().mean(2).std().item() / (0.3 * 0.7 / 12) ** 0.5 < 1.5


def test_random_leaky_relu_keeps_its_slopes() -> None:
    """Statistics of the slopes, and the gradient, which is them; positive elements pass; in evaluation mode the slope is the mean."""
    model = sh.optimize(nn.RReLU(0.1, 0.4), strict=True)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = model(x)
    y.sum().backward()
    slopes = (y / x).detach()
    torch.testing.assert_close(x.grad, slopes, rtol=1e-5, atol=1e-6)
    negative = slopes[x < 0]
    assert torch.equal(slopes[x > 0], torch.ones_like(slopes[x > 0]))
    assert negative.min() >= 0.1 - 1e-6 and negative.max() <= 0.4 + 1e-6
    assert negative.mean().item() == pytest.approx(0.25, abs=0.005)
    assert negative.var().item() == pytest.approx(0.3**2 / 12, rel=0.05)
    torch.testing.assert_close(model.eval()(x), F.rrelu(x, 0.1, 0.4))


def test_masks_are_recomputed_not_saved() -> None:
    """The backward phase draws the numbers of a mask again (here with a function of them, which `Recompute` moves) and saves none."""

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(F.dropout(torch.exp(x), 0.4)) * torch.rand_like(x)

    x = torch.rand(60, 70, dtype=torch.float64)
    found = []
    for level in (0, 4):
        model = sh.optimize(Net(), strict=True, level=level)
        given = x.clone().requires_grad_()
        torch.manual_seed(11)
        y = model(given)
        y.sum().backward()
        found.append((y.detach(), given.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-13, atol=1e-13)
    program = sh.capture(Net(), (x.clone().requires_grad_(),))
    program.optimize(level=4)
    later = {c for n in program.nodes if n.phase == "backward" for c in program.reads_of(n)}
    made = {c for n in program.nodes if n.phase == "forward" for c in program.writes_of(n)}
    assert "rng_seed" in later
    assert not later & made - set(program.signature.outputs)
