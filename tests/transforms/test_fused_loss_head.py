"""FusedLossHead: a linear layer and a cross-entropy some rows at a time."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transform_nets import apply_checked, assert_refuses, matches, network, only

import shorthaul as sh
from shorthaul.analysis.liveness import liveness
from shorthaul.analysis.movement import movement
from shorthaul.config import Options
from shorthaul.ir.dtypes import int64
from shorthaul.ir.nodes import Loop
from shorthaul.ir.program import Program
from shorthaul.pipeline import optimize
from shorthaul.transforms.base import apply_everywhere
from shorthaul.transforms.level4_global.fused_loss_head import FusedLossHead

ROWS, WIDTH, CLASSES = 12, 4, 7
BY_HAND = FusedLossHead(rows=4)


class Head(nn.Module):
    """A layer and its loss, on sequences."""

    def __init__(self, width: int, classes: int, **options: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(width, classes)
        self.options = options
        if "weight" in options:
            self.register_buffer("weight", options.pop("weight"))

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        z = self.layer(x.tanh()).flatten(0, 1)
        loss = F.cross_entropy(z, target.flatten(), weight=getattr(self, "weight", None), **self.options)
        return loss if loss.dim() == 0 else (loss * target.flatten()).sum()


CASES: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "ignored": {"ignore_index": 3},
    "smoothed": {"label_smoothing": 0.1, "ignore_index": 3},
    "weighted": {"weight": torch.rand(CLASSES, dtype=torch.float64) + 0.5},
    "weighted, smoothed, summed": {
        "weight": torch.rand(CLASSES, dtype=torch.float64) + 0.5,
        "label_smoothing": 0.2,
        "reduction": "sum",
    },
}


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(3, 4, WIDTH, dtype=torch.float64, requires_grad=True), torch.randint(0, CLASSES, (3, 4))


def program(**options: Any) -> Program:
    return sh.capture(Head(WIDTH, CLASSES, **copy.copy(options)).double().train(), data(), train=True)


def logits(p: Program) -> list[str]:
    """Containers of the size of the logits, in the program and in the bodies of loops."""
    inside = [n.body for n in p.nodes if isinstance(n, Loop)]
    return [name for q in (p, *inside) for name, c in q.containers.items() if c.size == ROWS * CLASSES]


@pytest.mark.parametrize("case", CASES)
def test_the_logits_are_never_there_as_a_whole(case: str) -> None:
    p = program(**CASES[case])
    assert logits(p)
    apply_checked(BY_HAND, only(matches(BY_HAND, p)))
    assert not logits(p)
    (loop,) = [n for n in p.nodes if isinstance(n, Loop)]
    assert loop.phase == "forward" and loop.tile == (4,)
    before, fused = program(**CASES[case]), p.clone()
    for q in (before, fused):
        optimize(q, Options(4), check=True)


def head(b: Any, x: Any, w: Any, target: Any) -> Any:
    z = b.op("contract", {"equation": "rk,nk->rn"}, a=x, b=w)
    return b.op("nll_loss", {}, x=b.op("log_softmax", {"dim": 1}, x=b.op("tanh", x=z)), target=target)[0]


def small(build: Any = head, train: bool = True, rows: int = ROWS) -> Program:
    return network(
        build, train=train, maps=False, dtypes={"target": int64}, x=(rows, WIDTH), w=(CLASSES, WIDTH), target=(rows,)
    )


def test_elementwise_operators_between_the_layer_and_the_loss() -> None:
    p = small()
    apply_checked(BY_HAND, only(matches(BY_HAND, p)))
    assert not logits(p)


def test_saves_by_default_where_weight_and_part_stay_in_the_cache() -> None:
    width, classes, rows = 64, 1024, 16384
    shapes = {"x": (rows, width), "w": (classes, width), "target": (rows,)}
    p = network(head, maps=False, dtypes={"target": int64}, **shapes)
    plain = p.clone()
    assert apply_everywhere(p, [FusedLossHead()]).applied == 1
    for q in (p, plain):
        optimize(q, Options(2))
    assert movement(p).bytes < 0.2 * movement(plain).bytes  # type: ignore[operator]
    assert liveness(p).saved_bytes < 0.2 * liveness(plain).saved_bytes
    assert max(liveness(p).peak.values()) < 0.5 * max(liveness(plain).peak.values())


def test_refuses_where_the_weight_would_be_read_too_often() -> None:
    p = network(head, maps=False, dtypes={"target": int64}, x=(512, 4096), w=(16384, 4096), target=(512,))
    assert_refuses(FusedLossHead(), only(matches(FusedLossHead(), p)), "reading the weight again for every part")


def test_refuses_logits_that_stay_in_the_cache() -> None:
    p = small()
    assert_refuses(FusedLossHead(), only(matches(BY_HAND, p)), "stay in the cache anyway")


def test_refuses_parts_that_do_not_divide_the_rows() -> None:
    p = small()
    assert_refuses(FusedLossHead(rows=5), only(matches(BY_HAND, p)), "5 does not divide 12 rows")


def test_refuses_without_a_gradient() -> None:
    p = small(train=False)
    assert_refuses(BY_HAND, only(matches(BY_HAND, p)), "no gradient of contract")


def test_refuses_logits_that_the_caller_gets() -> None:
    def build(b: Any, x: Any, w: Any, target: Any) -> Any:
        z = b.op("contract", {"equation": "rk,nk->rn"}, a=x, b=w)
        return [b.op("nll_loss", {}, x=b.op("log_softmax", {"dim": 1}, x=z), target=target)[0], z]

    p = small(build)
    assert_refuses(BY_HAND, only(matches(BY_HAND, p)), "which is of the size of the logits")


def test_refuses_logits_that_something_else_reads() -> None:
    def build(b: Any, x: Any, w: Any, target: Any) -> Any:
        z = b.op("contract", {"equation": "rk,nk->rn"}, a=x, b=w)
        sorted_ = b.op("cumsum", {"dim": 0}, x=z)
        loss = b.op("nll_loss", {}, x=b.op("log_softmax", {"dim": 1}, x=z), target=target)[0]
        return [loss, b.op("sum", {"dims": ()}, x=sorted_)]

    p = small(build)
    assert_refuses(BY_HAND, only(matches(BY_HAND, p)), "cumsum reads the logits, too")


def test_refuses_two_gradients_that_come_in_apart() -> None:
    def build(b: Any, x: Any, w: Any, target: Any) -> Any:
        y = b.op("log_softmax", {"dim": 1}, x=b.op("contract", {"equation": "rk,nk->rn"}, a=x, b=w))
        return [b.op("nll_loss", {}, x=y, target=target)[0], b.op("sum", {"dims": (1,)}, x=y)]

    p = small(build)
    assert_refuses(BY_HAND, only(matches(BY_HAND, p)), "does not come in as one number")


def test_compiled_in_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORTHAUL_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("shorthaul.pipeline.FusedLossHead", lambda: BY_HAND)
    model = Head(WIDTH, CLASSES, **CASES["smoothed"]).double().train()
    plain = copy.deepcopy(model)
    x, target = data()
    y, _ = data()
    optimized = sh.optimize(model, strict=True)
    found, expected = optimized(x, target), plain(y, target)
    (found * 3).backward()
    (expected * 3).backward()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    pairs = [(p.grad, q.grad) for p, q in zip(optimized.parameters(), plain.parameters(), strict=True)]
    for a, b in [*pairs, (x.grad, y.grad)]:
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_a_whole_step_scales_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss is where differentiation starts, so that the gradient that comes in is one."""
    monkeypatch.setenv("SHORTHAUL_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("shorthaul.pipeline.FusedLossHead", lambda: BY_HAND)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES)).double().train()
    plain = copy.deepcopy(model)
    x, target = torch.randn(ROWS, WIDTH, dtype=torch.float64), torch.randint(0, CLASSES, (ROWS,))
    step = sh.TrainStep(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.1))
    sgd = torch.optim.SGD(plain.parameters(), 0.1)
    for _ in range(2):
        found = step(x, target)
        expected = F.cross_entropy(plain(x), target)
        sgd.zero_grad()
        expected.backward()
        sgd.step()
        torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-11)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
