"""Models of the `transformers` library train as in eager PyTorch: called by keyword, their own loss, their own output classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten
from transformer_models import MODELS, NATIVE

import shorthaul as sh
from shorthaul.runtime.report import Record
from shorthaul.testing import Agreement, full, judge_training, sample

STEPS = 10
SEEDS = (0, 1, 2) if full() else (0,)
# Their code computes norms, rotations, states or the loss in float32 whatever the model's dtype, so that float64 runs are not exact.
NARROW = {"gpt2", "llama", "mixtral", "mamba", "t5", "detr"}
CASES = [(n, d) for n in MODELS for d in (torch.float64, torch.float32) if not (n in NARROW and d == torch.float64)]


class Wide(TorchFunctionMode):
    """Float64 wherever a model asks for float32."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        widened = tree_map(lambda x: torch.float64 if x is torch.float32 else x, (args, kwargs or {}))
        return (Tensor.double if func is Tensor.float else func)(*widened[0], **widened[1])


class Caller(nn.Module):
    """Calls a model with keyword arguments that come as a flat list of tensors, and gives its loss. An eager float64 run is exact."""

    def __init__(self, model: nn.Module, structure: TreeSpec, wide: bool) -> None:
        super().__init__()
        self.model, self.structure, self.wide = model, structure, wide

    def forward(self, *tensors: Tensor) -> Tensor:
        arguments = tree_unflatten(tensors, self.structure)
        if self.wide and next(self.parameters()).dtype == torch.float64:
            torch.set_default_dtype(torch.float64)
            try:
                with Wide():
                    return self.model(**arguments).loss
            finally:
                torch.set_default_dtype(torch.float32)
        return self.model(**arguments).loss


def arguments(name: str, seed: int) -> tuple[list[Tensor], TreeSpec]:
    return tree_flatten(MODELS[name][1](torch.Generator().manual_seed(seed)))


def train(name: str, dtype: torch.dtype, seeds: tuple[int, ...]) -> tuple[Agreement, list[Record]]:
    """The verdict, and the reports of the optimized models, one a seed."""
    modules: list[Any] = []  # kept: a report dies with its module

    def engine(caller: Caller) -> Caller:
        modules.append(sh.optimize(caller.model, strict=name in NATIVE))
        return caller

    structure = arguments(name, 0)[1]
    verdict = judge_training(
        lambda: Caller(MODELS[name][0](), structure, dtype != torch.float64),
        lambda loss, _: loss,
        lambda seed: [(tuple(arguments(name, 100 * seed + i)[0]), None) for i in range(STEPS)],
        engine=engine,
        dtype=dtype,
        seeds=seeds,
        title=f"{name}, {dtype}",
    )
    return verdict, [m.report() for m in modules]


@pytest.mark.filterwarnings("ignore::shorthaul.FallbackWarning")  # what runs in eager mode is asserted below
@pytest.mark.parametrize(("name", "dtype"), sample(CASES, 3))
def test_trains_like_eager(name: str, dtype: torch.dtype) -> None:
    verdict, reports = train(name, dtype, SEEDS if dtype == torch.float32 else (0,))
    assert verdict.ok, verdict
    for report in reports:
        assert report.regions, report
        assert not any("an error inside" in region.fallback for region in report.regions), report
        if name in NATIVE:
            assert not any(region.fallback or region.fallbacks for region in report.regions), report
