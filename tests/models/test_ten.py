"""The ten benchmark networks, and three of other structure, train as in eager PyTorch, each as one graph, through kernels of our own.

Twenty steps of the small networks from the same seed, judged by the rule of `shorthaul.testing.numerics`. Library calls are allowed for
convolutions, matrix products and attention only.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import shorthaul as sh
from benchmarks.networks import FURTHER, TEN, batch, entry
from shorthaul.runtime.report import Record
from shorthaul.testing import Agreement, full, judge_training, sample

STEPS = 20
SEEDS = (0, 1, 2) if full() else (0,)
CONVOLUTIONS = {"aten::convolution", "aten::conv_grad_input", "aten::conv_grad_weight"}
LIBRARY = {"contract", *CONVOLUTIONS, "flash_attention", "flash_attention_backward"}
# ReLU, its relatives and max pooling on many activations: see tests/models/test_training.py
WITH_JUMPS = {"resnet50", "wide_resnet50_2", "mobilenet_v2", "fcn8s_vgg16", "wavenet", "dlrm", "yolov4", "unet"}
# How many tokens an expert gets is known at run time only: Dynamo breaks the graph there, and PyTorch finds the tokens.
BREAKS = {"mixture_of_experts"}
# Each step of the small YOLOv4 multiplies rounding errors by a thousand, so that after eight steps eager and eager in another memory
# layout have nothing in common, in float64 too (tested below): each of its steps starts from eager's state. Even so one float32
# step in ten jumps, eager's too: one activation rounds to the other side of a leaky ReLU's kink.
CHAOTIC = {"yolov4"}
FEW = STEPS if full() else 3  # of their steps: four runs side by side take a while
NAMES = [*TEN, *FURTHER]
CASES = [(name, dtype) for name in NAMES for dtype in (torch.float64, torch.float32)]


def train(name: str, dtype: torch.dtype, seeds: tuple[int, ...]) -> tuple[Agreement, list[Record]]:
    """The verdict, and the reports of the optimized networks, one a seed."""
    modules: list[Any] = []  # kept: a report dies with its module

    def engine(module: nn.Module) -> nn.Module:
        modules.append(sh.optimize(module, strict=name not in BREAKS))
        return module

    verdict = judge_training(
        lambda: entry(name).build(True, 0.0),
        entry(name).loss_fn,
        lambda seed: [batch(name, small=True, seed=1000 * seed + i) for i in range(FEW if name in CHAOTIC else STEPS)],
        engine=engine,
        dtype=dtype,
        seeds=seeds,
        chaotic=name in WITH_JUMPS,
        lockstep=name in CHAOTIC,
        title=f"{name}, {dtype}",
    )
    return verdict, [m.report() for m in modules]


@pytest.mark.filterwarnings("ignore::shorthaul.FallbackWarning")  # what runs in eager mode is asserted below
@pytest.mark.parametrize(("name", "dtype"), sample(CASES, 5))
def test_trains_like_eager(name: str, dtype: torch.dtype) -> None:
    verdict, reports = train(name, dtype, SEEDS if dtype == torch.float32 else (0,))
    assert verdict.ok, verdict
    for report in reports:
        assert not any(region.fallback for region in report.regions), report
        if name not in BREAKS:
            (region,) = report.regions
            assert not region.graph_break, report
            assert not region.fallbacks and set(region.library_calls) <= LIBRARY, report


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CHAOTIC))
def test_why_chaotic_networks_train_in_lockstep(name: str) -> None:
    """Left to themselves, eager and eager in another memory layout part: float64 cannot tell a fault from noise either."""
    verdict = judge_training(
        lambda: entry(name).build(True, 0.0),
        entry(name).loss_fn,
        lambda seed: [batch(name, small=True, seed=1000 * seed + i) for i in range(STEPS)],
        engine="eager",
        dtype=torch.float64,
        seeds=(0,),
    )
    assert not verdict.layouts.ok, "the runs agree: remove the exception"
