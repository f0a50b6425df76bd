"""Operators of PyTorch that are opaque there and written over operators of ours: results and gradients as eager's, no call of PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import shorthaul as sh

LENGTHS, OFFSETS = torch.tensor([2, 0, 3]), torch.tensor([0, 2, 2, 5])
ROWS = torch.tensor([[1, 2, 0], [0, 1, 1]])  # of each batch element; the last ones leave elements over


def _segments(reduce: str, **options: object) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.segment_reduce(x, reduce, **options)  # type: ignore[arg-type]


REDUCTIONS = ("sum", "mean", "max", "min", "prod")
CASES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], tuple[int, ...]]] = {
    **{f"segments {r}": (_segments(r, lengths=LENGTHS, initial=1.5), (5, 3)) for r in REDUCTIONS},
    **{f"segments {r}, offsets": (_segments(r, offsets=OFFSETS), (5, 3)) for r in ("sum", "prod")},
    "segments mean of nothing": (_segments("mean", lengths=LENGTHS), (5,)),
    "segments along the second dimension": (_segments("max", lengths=ROWS, axis=1, unsafe=True, initial=0.5), (2, 3, 2)),
    **{f"pdist {p}": (lambda x, p=p: F.pdist(x, p), (4, 3)) for p in (2.0, 1.0, 3.0, float("inf"), 0.0)},
    "pdist of one row": (lambda x: torch.pdist(x), (1, 3)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_as_eager(name: str) -> None:
    function, shape = CASES[name]
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[-1] = x[0]  # ties
    found = []
    torch._dynamo.reset()
    for f in (function, torch.compile(lambda x: function(x), backend="shorthaul")):
        given = x.clone().requires_grad_()
        y = f(given)
        y.backward(torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).reshape(y.shape))
        found.append((y.detach(), given.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-12, equal_nan=True)
    program = sh.capture(lambda x: function(x), (x.clone().requires_grad_(),), strict=True)
    assert program.signature.gradients


def test_chunk_cat() -> None:
    """PyTorch has no gradient of it."""
    x, y = torch.randn(5, 3), torch.randn(2, 3, 4)

    def f(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch._chunk_cat([x, x[:3] * 2, x[:, :1]], 0, 2), torch._chunk_cat([y, y[..., :2].exp()], 1, 2)

    torch.testing.assert_close(torch.compile(f, backend="shorthaul")(x, y), f(x, y))
    sh.capture(f, (x, y), train=False, strict=True)


@pytest.mark.parametrize("training", [True, False])
def test_native_batch_norm(training: bool) -> None:
    x, w, b = torch.randn(4, 3, 5, dtype=torch.float64), torch.rand(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)

    def f(x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.native_batch_norm(x, w, b, mean, var, training, 0.3, 1e-4)

    found = []
    for g in (f, torch.compile(f, backend="shorthaul")):
        given, mean, var = x.clone().requires_grad_(), torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        y, *saved = g(given, mean, var)
        y.square().sum().backward()
        found.append((y.detach(), given.grad, mean, var, *saved))
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-12)
