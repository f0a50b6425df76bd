"""Measuring the machine: every number is there and plausible, and is found again; no test asserts a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shorthaul.analysis.roofline import MACHINES
from shorthaul.runtime.measured import FILE, described, keep, measure, table


def test_measure_keep_and_find_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure(seconds=0.01)
    assert found.bandwidth > 1e8 and found.cache > 0 and 0 < found.launch < 1
    assert set(found.flops) == {"float32", "float64", "bfloat16"} and all(v > 1e7 for v in found.flops.values())
    assert all(rate >= found.bandwidth and size > 0 for _, size, rate in found.levels)
    assert "Memory bandwidth" in table(found) and "Matrix products, float32" in table(found)
    monkeypatch.setenv("SHORTHAUL_CACHE_DIR", str(tmp_path))
    assert described() is MACHINES["cpu"]
    assert keep(found) == tmp_path / FILE and described() == found
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)  # another number of threads is another machine
        assert described() is MACHINES["cpu"]
    finally:
        torch.set_num_threads(threads)
    (tmp_path / FILE).write_text("{damaged")
    assert described() is MACHINES["cpu"]
