"""PyTorch's operator database: every entry agrees with eager mode, and runs as our maps unless the lists say otherwise.

By default a few entries run; `make test-all` runs all of them, one test an entry, so that an interrupted run goes on where it stopped.
`python tests/suites/opinfo.py` prints the table.
"""

from __future__ import annotations

import collections

import opinfo
import pytest
import torch
from judging import Outcome, table
from opinfo_expected import EAGER, FALLBACK, UNREACHED, UNUSABLE

from shorthaul.testing import sample

NAMES = [op.full_name for op in opinfo.entries()]
KNOWN = torch.__version__.startswith("2.13")  # the version that the lists are for
EXPECTED = {**dict.fromkeys(FALLBACK, "fallback"), **dict.fromkeys(EAGER, "eager"), **dict.fromkeys(UNREACHED, "unreached"),
            **dict.fromkeys(UNUSABLE, "unusable")}  # fmt: skip
OWN = ("native", "random")


@pytest.mark.parametrize("name", sample(NAMES, 6))
@pytest.mark.filterwarnings("ignore")
def test_entry(name: str) -> None:
    found = opinfo.outcome(opinfo.by_name()[name])
    assert found.state not in ("mismatch", "error"), f"{found.state}: {found.detail}"
    if KNOWN:
        assert found.state in (*OWN, EXPECTED.get(name, "native")), f"{found.state}: {found.detail} {found.fallbacks}"


@pytest.mark.skipif(not KNOWN, reason="the lists are for torch 2.13")
def test_shares_of_the_lists() -> None:
    """What the lists say, which the tests above hold to: most entries that reach the backend run as maps."""
    assert not set(EXPECTED) - set(NAMES)
    states = collections.Counter(EXPECTED.get(n, "native") for n in NAMES)
    reached = len(NAMES) - states["unreached"] - states["unusable"]
    assert states["native"] >= 0.85 * reached


def test_a_wrong_result_is_a_mismatch(monkeypatch) -> None:
    """The comparison can fail: a result that is off by one in a thousand is reported."""
    evaluate = opinfo.evaluate
    calls = []

    def wrong(f, s):
        outputs, gradients = evaluate(f, s)
        calls.append(f)
        if f is not opinfo.by_name()["sin"].op:
            outputs = [o * 1.001 for o in outputs]
        return outputs, gradients

    monkeypatch.setattr(opinfo, "evaluate", wrong)
    assert opinfo.outcome(opinfo.by_name()["sin"], samples=1).state == "mismatch"
    assert len(calls) == 3  # eager, compiled, eager in float64


def test_the_table_names_what_fails() -> None:
    outcomes = [Outcome("a", "native"), Outcome("b", "mismatch", "sample 0: differs"),
                Outcome("c", "fallback", fallbacks=["aten.foo.default forward"])]  # fmt: skip
    text = table(outcomes)
    assert "3 entries: 1 native, 1 fallback, 1 mismatch" in text
    assert "sample 0: differs" in text
    assert "aten.foo.default forward" in text
