"""Huge pages for tables of which a step touches single rows."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import shorthaul as sh
from shorthaul.runtime import pages

ROWS = 1 << 19  # 32 MiB of 16 columns


def huge_mib() -> float:
    """What this process has on huge pages."""
    return sum(int(n) for n in re.findall(r"AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps").read_text())) / 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="huge pages are asked for on Linux only")
def test_values_and_address_stay() -> None:
    t = torch.rand(ROWS, 16)
    before, address, huge = t.clone(), t.data_ptr(), huge_mib()
    moved = pages.gather(t)
    assert torch.equal(t, before) and t.data_ptr() == address
    assert not moved or huge_mib() - huge > 20  # where the system has none, it says so
    assert not pages.gather(torch.rand(1000)), "a small tensor stays where it is"


def test_tables_that_a_step_changes_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, the table and nothing else: neither a table that every step changes as a whole nor the weights of a layer."""
    asked: list[str] = []
    monkeypatch.setattr(pages, "gather", lambda t, name: asked.append(f"{name}: {tuple(t.shape)}"))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.head = nn.Embedding(50, 8), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rows(x)).squeeze(-1)

    for sparse in ("exact", "off"):
        torch.manual_seed(0)
        net = Net()
        step = sh.TrainStep(net, nn.functional.mse_loss, torch.optim.SGD(net.parameters(), lr=0.1), sparse=sparse, strict=True)
        for _ in range(2):
            step(torch.tensor([3, 4, 3]), torch.zeros(3))
        assert asked == (["table rows_weight: (50, 8)"] if sparse == "exact" else [])
        asked.clear()
