"""Every module of torch.nn is ours: no operator falls back, and it computes what eager computes."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("expecttest", reason="PyTorch's module database needs expecttest")
from moduleinfo import entries, outcome

from shorthaul.testing import sample

# Python code of PyTorch looks at values of tensors: Dynamo leaves it to eager mode, nothing reaches the backend
UNREACHED = {"nn.CTCLoss", "nn.GaussianNLLLoss"}
BY_NAME = {m.name: m for m in entries()}


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", sample(sorted(BY_NAME), 10))
def test_a_module_has_no_fallback(name: str) -> None:
    """Captured, imported and differentiated; the whole suite takes more inputs of each module."""
    found = outcome(BY_NAME[name], samples=1, compiles=False)
    assert found.state in (("unreached",) if name in UNREACHED else ("native", "random")), found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_a_module_computes_what_eager_computes(name: str, dtype: torch.dtype) -> None:
    found = outcome(BY_NAME[name], dtype, samples=3)
    assert found.state in (("unreached", "unusable") if name in UNREACHED else ("native", "random", "unusable")), found
