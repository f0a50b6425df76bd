"""Operators without a registry entry run through PyTorch, are listed in the report, and train as in eager mode."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from api_compare import forget_operators
from torch import Tensor, nn

import shorthaul as sh


class Between(nn.Module):
    """Two layers with a function between them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.LazyLinear(3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(torch.tanh(self.first(x))).sigmoid())


OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "cumprod": lambda a: a.cumprod(-1),
    "topk": lambda a: a.topk(3)[0],
    "roll": lambda a: a.roll(1, -1),
    "prod": lambda a: a.prod(-1, keepdim=True),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_trains_as_in_eager_mode(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_operators(monkeypatch, name)
    torch.manual_seed(0)
    x = torch.randn(5, 6, dtype=torch.float64)
    eager = Between(OPERATORS[name]).double()
    eager(x)  # gives the last layer its shape
    model = Between(OPERATORS[name]).double()
    model(x)
    model.load_state_dict(eager.state_dict())
    sh.optimize(model)
    for m in (eager, model):
        m(x).square().sum().backward()
    for (n, p), q in zip(eager.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-12, msg=n)
    report = str(model.report())
    assert f"aten.{name}" in report
    assert "test_unregistered.py" in report, "the report names the user's line"


def test_constants_without_dimensions_stay_scalars() -> None:
    """PyTorch refuses to fill with a tensor of one dimension."""

    def shifted(x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(x)
        y[..., 0] = torch.tensor(3)
        return y * x

    x = torch.randint(1, 9, (2, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(torch.compile(shifted, backend="shorthaul")(x), shifted(x))


USES = ["import shorthaul.api", "import shorthaul; shorthaul.optimize(torch.nn.Linear(3, 3))(torch.ones(3))"]


@pytest.mark.parametrize("first", ["", *(pytest.param(use, marks=pytest.mark.slow) for use in USES)])
def test_the_backend_is_found_by_name(first: str) -> None:
    """In a new process, whatever of Shorthaul was used before."""
    program = f"import torch\n{first}\nprint(torch.compile(lambda x: x * 2, backend='shorthaul')(torch.ones(3)).sum())"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert "6." in run.stdout, run.stderr[-2000:]


def both_layouts(x: Tensor) -> Tensor:
    """Elements by their place in memory, of a tensor that eager has row by row and of one that it has column by column."""
    return x.mul(2).as_strided((3, 4), (2, 1)).sum(1).sum() + torch.tanh(x.transpose(0, 1)).as_strided((3, 2), (4, 1), 2).sum()


@pytest.mark.parametrize("level", [0, 2, 4])
def test_an_operator_that_looks_at_memory_sees_the_layout_of_eager(level: int) -> None:
    eager = Between(lambda a: both_layouts(a).reshape(1, 1) + a).double()
    x = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    eager(x)
    ours = sh.optimize(copy.deepcopy(eager), level=level, strict=True)
    for m in (eager, ours):
        m(x).square().sum().backward()
    for (n, p), q in zip(eager.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-12, msg=n)


def test_memory_that_is_not_the_operand_s_own_is_left_to_eager_mode() -> None:
    """`as_strided` of a part of another tensor can reach what lies around the part."""
    x = torch.randn(6, 6, dtype=torch.float64)
    f = lambda x: x.mul(2)[1:].as_strided((3, 4), (2, 1)).sum(1)  # noqa: E731
    with pytest.warns(sh.errors.FallbackWarning, match="a part of another one's memory"):
        found = torch.compile(f, backend="shorthaul")(x)
    torch.testing.assert_close(found, f(x))


@torch.library.custom_op("shorthaul_tests::scaled", mutates_args=())
def scaled(x: Tensor, scale: Tensor) -> Tensor:
    return x * scale


scaled.register_fake(lambda x, scale: torch.empty_like(x))
scaled.register_autograd(lambda ctx, g: (g * ctx.saved_tensors[0], None),
                         setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1]))  # fmt: skip


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_gradient_that_pytorch_leaves_undefined_is_none(elsewhere: bool) -> None:
    """None, not zeros: an optimizer passes the parameter by. Where the parameter is used elsewhere too, it has that gradient."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.linspace(0.5, 1, 4, dtype=torch.float64)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.ops.shorthaul_tests.scaled(x * self.a, self.b.exp())
            return (y.sin() + self.b * 0 if elsewhere else y.sin()).sum()

    eager, ours = Net(), sh.optimize(Net())
    for m in (eager, ours):
        m(torch.ones(3, 4, dtype=torch.float64)).backward()
    torch.testing.assert_close(ours.a.grad, eager.a.grad)
    assert (eager.b.grad is None) == (not elsewhere)
    assert (ours.b.grad is None) == (not elsewhere)
    if elsewhere:
        assert torch.equal(ours.b.grad, eager.b.grad)
