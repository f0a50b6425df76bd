"""Networks to look at: `shorthaul studio shorthaul.demo.lesson:efficientnet`."""

from __future__ import annotations

from typing import Any

import torch

from .network import SmallEfficientNet


def efficientnet() -> tuple[torch.nn.Module, tuple[Any, ...]]:
    """The demo's small EfficientNet with a batch of 16 images."""
    torch.manual_seed(0)
    return SmallEfficientNet(), (torch.randn(16, 1, 28, 28),)
