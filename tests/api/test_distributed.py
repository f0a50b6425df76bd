"""Data parallelism: one process that pretends to be a group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from api_compare import assert_same
from test_calls import randn
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import shorthaul as sh

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch was built without torch.distributed")


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def deep() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(300, 300) for _ in range(4))).double()


@pytest.mark.parametrize("order", ["optimized, then wrapped", "wrapped, then optimized"])
def test_data_parallel(group: None, order: str) -> None:
    eager, module = deep(), deep()
    if order == "optimized, then wrapped":
        parallel: nn.Module = DistributedDataParallel(sh.optimize(module, strict=True), bucket_cap_mb=1)
    else:
        parallel = sh.optimize(DistributedDataParallel(module, bucket_cap_mb=1), strict=True)
    for n in (3, 3, 5):
        x = randn(n, 300)
        for m in (eager, parallel):
            m.zero_grad()
            m(x).square().sum().backward()
        assert_same([p.grad for p in module.parameters()], [p.grad for p in eager.parameters()])
    regions = (module if order == "optimized, then wrapped" else parallel).report().regions
    assert regions and not any(r.fallback for r in regions)
