"""`embedding_bag` as maps: every mode, rows and offsets, weights, padding, empty bags; results and gradients as eager's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import shorthaul as sh

ROWS = torch.tensor([[1, 3, 2, 3], [0, 2, 2, 5], [2, 2, 2, 2]])
LIST = torch.tensor([1, 3, 2, 3, 0, 2, 2])
OFFSETS = torch.tensor([0, 3, 3, 5])  # the second bag is empty
CASES: dict[str, tuple[torch.Tensor, dict[str, Any]]] = {
    **{f"rows {mode}": (ROWS, {"mode": mode}) for mode in ("sum", "mean", "max")},
    **{f"rows {mode}, padding": (ROWS, {"mode": mode, "padding_idx": 2}) for mode in ("sum", "mean", "max")},
    "rows, weights": (ROWS, {"mode": "sum", "per_sample_weights": torch.rand(3, 4, dtype=torch.float64)}),
    **{f"offsets {mode}": (LIST, {"mode": mode, "offsets": OFFSETS}) for mode in ("sum", "mean")},
    "offsets, padding": (LIST, {"mode": "mean", "offsets": OFFSETS, "padding_idx": -4}),
    "offsets, weights": (LIST, {"mode": "sum", "offsets": OFFSETS, "per_sample_weights": torch.rand(7, dtype=torch.float64)}),
    "offsets with the last": (LIST, {"mode": "sum", "offsets": torch.tensor([0, 3, 3, 7]), "include_last_offset": True}),
}


def run(f: Any, input: torch.Tensor, options: dict[str, Any]) -> list[torch.Tensor]:
    table = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    given = {k: v.clone().requires_grad_() if k == "per_sample_weights" else v for k, v in options.items()}
    y = f(input, table, **given)
    y.backward(torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).reshape(y.shape))
    return [y.detach(), table.grad, *(v.grad for k, v in given.items() if k == "per_sample_weights")]  # type: ignore[list-item]


@pytest.mark.parametrize("name", CASES)
def test_as_eager(name: str) -> None:
    torch._dynamo.reset()
    input, options = CASES[name]
    ours = run(torch.compile(lambda *a, **k: F.embedding_bag(*a, **k), backend="shorthaul"), input, options)
    for a, b in zip(ours, run(F.embedding_bag, input, options), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_without_a_fallback(name: str) -> None:
    input, options = CASES[name]
    table = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    sh.capture(lambda t: F.embedding_bag(input, t, **options), (table,), strict=True)


def test_a_table_that_is_written_keeps_the_operator_of_pytorch() -> None:
    with pytest.raises(sh.Unsupported, match="embedding"):
        sh.capture(lambda t: F.embedding_bag(ROWS, t, scale_grad_by_freq=True), (torch.randn(6, 5, requires_grad=True),), strict=True)
