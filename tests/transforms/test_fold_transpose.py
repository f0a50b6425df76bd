"""FoldTranspose: transpositions next to matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiled import assert_compiled
from torch import nn
from transform_nets import apply_checked, assert_refuses, matches, network, only, results, values

import shorthaul as sh
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.nodes import LibraryCall, Map
from shorthaul.ir.program import Program
from shorthaul.ir.verify import verify
from shorthaul.ops.expand import expand
from shorthaul.transforms.base import Match, apply_everywhere
from shorthaul.transforms.level1_operator.expansion_choice import choose_expansion
from shorthaul.transforms.level3_layout.fold_transpose import FoldTranspose


def net(build: Callable[..., Any], train: bool = True, **shapes: Any) -> Program:
    """Contractions as library calls."""
    p = network(build, train=train, maps=False, **shapes)
    expand(p, choose_expansion)
    verify(p)
    return p


def transposed(b: Any, x: Any, w: Any) -> Any:
    """x @ w.T with w transposed by itself: its gradient is transposed back."""
    return b.op("contract", {"equation": "mk,kn->mn"}, a=x, b=b.op("permute", {"dims": (1, 0)}, x=w))


def equations(p: Program) -> list[str]:
    return [n.attributes["equation"] for n in p.nodes if isinstance(n, LibraryCall)]


def copies(p: Program) -> list[str]:
    return [n.label for n in p.nodes if isinstance(n, Map)]


def test_operand_and_gradient_are_read_and_written_as_they_lie() -> None:
    p = net(transposed, x=(6, 4), parameters={"w": (5, 4)})
    inputs = values(p)
    expected = results(p, inputs)
    assert len(copies(p)) == 2  # of w, and of its gradient
    apply_checked(FoldTranspose(), only(m for m in matches(FoldTranspose(), p) if "call" not in m.items))
    assert "mk,nk->mn" in equations(p)
    apply_checked(FoldTranspose(), only(m for m in matches(FoldTranspose(), p) if "call" in m.items))
    assert not copies(p)
    assert_compiled(p, inputs, expected)


def test_a_repeated_operand_is_read_once() -> None:
    def build(b: Any, x: Any, w: Any) -> Any:
        return b.op("contract", {"equation": "bmk,bkn->bmn"}, a=x, b=b.op("expand", {"shape": (3, 4, 5)}, x=w))

    p = net(build, train=False, x=(3, 6, 4), w=(1, 4, 5))
    m = only(matches(FoldTranspose(), p))
    FoldTranspose().check(m)
    assert FoldTranspose().saves(m) == (4 * 5 + 3 * 4 * 5) * 8 + (3 - 1) * 4 * 5 * 8
    apply_checked(FoldTranspose(), m)
    assert equations(p) == ["bmk,1kn->bmn"]


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "computes": (lambda b, x, w: b.op("contract", {"equation": "mk,nk->mn"}, a=x, b=b.op("tanh", x=w)), "it computes something"),
    "scales": (lambda b, x, w: b.op("contract", {"equation": "mk,nk->mn"}, a=x, b=b.op("neg", x=w)), "see FoldScale"),
    "slices": (lambda b, x, w: b.op("contract", {"equation": "mk,nk->mn"}, a=x, b=b.op("slice", {"dim": 0, "start": 1, "stop": 4}, x=w)),
               "it takes a part of w|more than exchange dimensions"),
    "is needed": (lambda b, x, w: [t := b.op("permute", {"dims": (1, 0)}, x=w), b.op("contract", {"equation": "mk,kn->mn"}, a=x, b=t),
                                   b.op("tanh", x=t)][1:], "tanh needs it as it is"),
    "is the caller's": (lambda b, x, w: [t := b.op("permute", {"dims": (1, 0)}, x=w),
                                         b.op("contract", {"equation": "mk,kn->mn"}, a=x, b=t)],
                        "the caller needs it as a tensor of its own"),
}  # fmt: skip


@pytest.mark.parametrize("how", REFUSED)
def test_refuses_with_the_reason(how: str) -> None:
    build, reason = REFUSED[how]
    p = net(build, train=False, x=(6, 4), w=(5, 4))
    found = [m for m in matches(FoldTranspose(), p) if "call" not in m.items]
    assert_refuses_pattern(FoldTranspose(), found[0], reason)


def assert_refuses_pattern(t: FoldTranspose, m: Match, reason: str) -> None:
    for part in reason.split("|"):
        try:
            assert_refuses(t, m, part)
        except AssertionError:
            continue
        return
    raise AssertionError(reason)


def test_refuses_what_the_library_would_copy() -> None:
    """Heads between batch and words: their rows do not merge."""

    def build(b: Any, x: Any, w: Any) -> Any:
        t = b.op("permute", {"dims": (0, 2, 1, 3)}, x=x)  # b h t d -> b t h d
        return b.op("contract", {"equation": "bthd,nhd->btn"}, a=t, b=w)

    p = net(build, train=False, x=(2, 3, 4, 5), w=(7, 3, 5))
    assert_refuses(FoldTranspose(), only(matches(FoldTranspose(), p)), "x is no matrix as it lies in memory")


def test_refuses_to_read_later_what_the_caller_may_change() -> None:
    def build(b: Any, x: Any, w: Any) -> Any:
        t = b.op("tanh", x=w)
        return [t, transposed(b, x, t)]

    p = net(build, x=(6, 4), w=(5, 4))
    m = next(m for m in matches(FoldTranspose(), p) if "call" not in m.items and m.map.phase == "forward")
    assert_refuses(FoldTranspose(), m, "its source is handed to the caller")


class Tied(nn.Module):
    """A decoder that uses the encoder's weights the other way round, and weights that lie transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(12, 20)
        self.decode = nn.Parameter(torch.randn(12, 20))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.encode(x))
        return h @ self.encode.weight + h @ self.decode.t()


def test_level_3_makes_no_copies_of_transposed_weights_and_gradients() -> None:
    torch.manual_seed(0)
    net, x = Tied().double(), torch.randn(7, 12, dtype=torch.float64)
    moved = {}
    for level in (2, 3):
        p = sh.capture(net, (x,), train=True)
        p.optimize(level=level, check=True)
        moved[level] = p.movement().bytes
    assert any(r.name == "FoldTranspose" for r in p.log)
    assert moved[2] - moved[3] >= 2 * 12 * 20 * 8
    out = net(x)
    out.square().sum().backward()
    expected = [out.detach(), *(q.grad.clone() for q in net.parameters() if q.grad is not None)]
    net.zero_grad()
    ours = sh.optimize(net, level=3)
    out = ours(x)
    out.square().sum().backward()
    for a, b in zip([out.detach(), *(q.grad for q in net.parameters())], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_undo_restores_the_program() -> None:
    p = net(transposed, x=(6, 4), parameters={"w": (5, 4)})
    before, steps = fingerprint(p), len(p.log)
    assert apply_everywhere(p, [FoldTranspose()]).applied == 2
    p.undo(len(p.log) - steps)
    assert fingerprint(p) == before
