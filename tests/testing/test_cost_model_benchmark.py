"""The arithmetic of `benchmarks/cost_model.py`, and the descriptions of machines."""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks.cost_model import correlation, ranks, summary
from shorthaul.analysis.roofline import MACHINES, Machine


def test_ranks_and_correlation() -> None:
    assert list(ranks([3.0, 1.0, 1.0, 9.0])) == [2.0, 0.5, 0.5, 3.0]
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0) and correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert math.isnan(correlation([1, 2], [1, 2])) and math.isnan(correlation([1, 1, 1], [1, 2, 3]))


def test_summary() -> None:
    rows: list[dict[str, Any]] = [{"measured": m, "predicted": {"x": p}} for m, p in ((1.0, 1.0), (2.0, 2.0), (40.0, 4.0), (8.0, 8.0))]
    s = summary(rows, "x")
    assert s["kernels"] == 4 and s["rank"] == pytest.approx(0.8) and s["ratio"] == 1.0 and s["slow"] == pytest.approx(40 / 51)


def test_a_kernel_that_fits_a_cache_has_its_bandwidth() -> None:
    m = Machine("m", 10.0, 100, levels=(("L1", 8, 1000.0), ("L2", 64, 100.0)))
    assert [m.bandwidth_of(b) for b in (8, 9, 64, 65)] == [1000.0, 100.0, 100.0, 10.0]
    assert m.time(64) == pytest.approx(0.64) and m.time(65) == pytest.approx(6.5)


def test_described_machines() -> None:
    assert {"cpu", "a100", "h100", "h200"} <= set(MACHINES)
    order = [MACHINES[n].bandwidth for n in ("cpu", "a100", "h100", "h200")]
    assert order == sorted(order) and all(m.peak("bfloat16", True) >= m.peak("float32", True) for m in MACHINES.values())
