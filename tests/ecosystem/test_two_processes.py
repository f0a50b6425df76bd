"""Data parallelism and sharding on two processes with gloo: gradients as in eager mode, and hooks while the backward pass runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ecosystem import batch, close, compiled, step
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import shorthaul as sh

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="PyTorch was built without gloo")
WIDTH = 96


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def data(rank: int, k: int) -> torch.Tensor:
    return batch(10 * k + rank, 6, WIDTH)


def on_two_processes(work: Callable[[int], None], folder: Path) -> None:
    mp.spawn(_process, (work, str(folder / "group")), nprocs=2)


def _process(rank: int, work: Callable[[int], None], file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    try:
        work(rank)
    finally:
        dist.destroy_process_group()


def data_parallel(rank: int) -> None:
    ours = DistributedDataParallel(sh.optimize(Stack(), strict=True), bucket_cap_mb=0.05)
    eager = DistributedDataParallel(Stack(), bucket_cap_mb=0.05)
    for k in range(3):
        for m in (eager, ours):
            m.zero_grad()
            step(m, data(rank, k))
        _same_gradients(eager, ours)
    for m in (eager, ours):  # two batches, one message
        m.zero_grad()
        with m.no_sync():
            step(m, data(rank, 3))
        step(m, data(rank, 4))
    _same_gradients(eager, ours)
    assert len(compiled(ours.module)) == 1, "one graph: DDP's buckets do not cut it"
    _hooks_fire_while_backward_runs(ours, rank)


def _same_gradients(eager: nn.Module, ours: nn.Module) -> None:
    for (name, p), q in zip(eager.named_parameters(), ours.parameters(), strict=True):
        close(q.grad, p.grad, 1e-9, name)


def _hooks_fire_while_backward_runs(model: Any, rank: int) -> None:
    """When the last block's gradient is there, and when the first bucket is sent, the first block's is not computed yet."""
    first, last = model.module.blocks[0].up.weight, model.module.blocks[3].down.weight
    early: list[bool] = []
    sent: list[bool] = []

    def send(state, bucket):  # type: ignore[no-untyped-def]  # DDP reads annotations, which are strings here
        sent.append(first.grad is None)
        return allreduce_hook(dist.group.WORLD, bucket)

    again = DistributedDataParallel(model.module, bucket_cap_mb=0.05)
    again.register_comm_hook(None, send)
    step(again, data(rank, 5))  # the buckets are put in the order of this backward pass
    sent.clear()
    again.zero_grad(set_to_none=True)
    handle = last.register_post_accumulate_grad_hook(lambda _: early.append(first.grad is None))
    step(again, data(rank, 5))
    handle.remove()
    assert early == [True]
    assert len(sent) > 1 and sent[0], sent


def sharded(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    models = {"eager": Stack(), "ours": Stack()}
    for name, m in models.items():
        for block in m.blocks:
            fully_shard(sh.optimize(block, strict=True) if name == "ours" else block, mesh=mesh)
        fully_shard(m, mesh=mesh)
        optimizer = torch.optim.AdamW(m.parameters(), 1e-2)
        for k in range(3):
            optimizer.zero_grad()
            step(m, data(rank, k))
            optimizer.step()
    for (n, p), q in zip(models["eager"].named_parameters(), models["ours"].parameters(), strict=True):
        close(q.full_tensor(), p.full_tensor(), 1e-7, n)  # type: ignore[attr-defined]
    for block in models["ours"].blocks:
        compiled(block)


@pytest.mark.parametrize("work", [data_parallel, sharded])
def test_two_processes(work: Callable[[int], None], tmp_path: Path) -> None:
    on_two_processes(work, tmp_path)
