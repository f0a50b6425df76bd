"""Losses."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shorthaul.frontends.onnx_model.table import operator


@operator("NegativeLogLikelihoodLoss")
def nll_loss(x: Tensor, target: Tensor, weight: Any = None, *, ignore_index: int | None, reduction: str) -> Tensor:
    """Of log probabilities x [n, classes, ...] at the targets [n, ...]."""
    rest = x.shape[2:]
    target = target.to(torch.int64)
    ignored = -100 if ignore_index is None else ignore_index
    if len(rest) > 2:  # PyTorch's loss has at most two spatial dimensions
        loss = F.nll_loss(x.flatten(2), target.flatten(1), weight, ignore_index=ignored, reduction=reduction)
        return loss.reshape(target.shape) if reduction == "none" else loss
    # PyTorch's backward of the spatial loss takes contiguous operands alone
    return F.nll_loss(x.contiguous() if rest else x, target, weight, ignore_index=ignored, reduction=reduction)


@operator("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(
    scores: Tensor, labels: Tensor, weights: Any = None, *, ignore_index: int | None, reduction: str
) -> tuple[Tensor, Tensor]:
    log_probability = torch.log_softmax(scores, 1)
    return nll_loss(log_probability, labels, weights, ignore_index=ignore_index, reduction=reduction), log_probability
