"""Composites of torch.nn.functional written in operators that stay whole or fuse, where PyTorch has one kernel of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from shorthaul.frontends.functional_record import ours

aten = torch.ops.aten


def pad(input: torch.Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> torch.Tensor:
    """Circular padding as one operator (PyTorch writes it slice by slice into an empty tensor)."""
    if mode != "circular":
        return torch._C._nn.pad(input, pad, mode, value)
    return pad_circular(input, pad)


def pad_circular(input: torch.Tensor, pad: Sequence[int]) -> torch.Tensor:
    """What is cropped (a negative pad) does not come back on the other side."""
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        if before < 0 or after < 0:
            start, size = max(-before, 0), input.shape[-1 - i]
            input = input.narrow(input.dim() - 1 - i, start, size - start - max(-after, 0))
    return ours.pad_circular.default(input, [max(p, 0) for p in pad])


def pixel_shuffle(input: torch.Tensor, upscale_factor: int) -> torch.Tensor:
    r = upscale_factor
    *batch, channels, height, width = input.shape
    if channels % (r * r):
        raise RuntimeError(f"pixel_shuffle needs channels divisible by {r * r}, got {channels}")
    n = len(batch)
    x = input.reshape(*batch, channels // (r * r), r, r, height, width)
    x = x.permute(*range(n), n, n + 3, n + 1, n + 4, n + 2)
    return x.reshape(*batch, channels // (r * r), height * r, width * r)


def pixel_unshuffle(input: torch.Tensor, downscale_factor: int) -> torch.Tensor:
    r = downscale_factor
    *batch, channels, height, width = input.shape
    if height % r or width % r:
        raise RuntimeError(f"pixel_unshuffle needs sizes divisible by {r}, got {height} and {width}")
    n = len(batch)
    x = input.reshape(*batch, channels, height // r, r, width // r, r)
    x = x.permute(*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return x.reshape(*batch, channels * r * r, height // r, width // r)


def channel_shuffle(input: torch.Tensor, groups: int) -> torch.Tensor:
    batch, channels, *rest = input.shape
    if channels % groups:
        raise RuntimeError(f"channel_shuffle needs channels divisible by {groups}, got {channels}")
    return input.reshape(batch, groups, channels // groups, *rest).transpose(1, 2).reshape(input.shape)


def bilinear(input1: torch.Tensor, input2: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """y[..., o] = sum over i, j of input1[..., i] weight[o, i, j] input2[..., j] + bias[o]: a product over i, a sum over j."""
    outputs, n, m = weight.shape
    if input1.shape[:-1] != input2.shape[:-1] or input1.shape[-1] != n or input2.shape[-1] != m:
        raise RuntimeError(f"bilinear of {tuple(input1.shape)} and {tuple(input2.shape)} does not fit weight {tuple(weight.shape)}")
    rows = ours.matmul.default(input1.reshape(-1, n), weight.permute(1, 0, 2).reshape(n, outputs * m))
    result = (rows.view(-1, outputs, m) * input2.reshape(-1, 1, m)).sum(-1)
    result = result if bias is None else result + bias
    return result.view(*input1.shape[:-1], outputs)


def weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """g v / |v|, the norm over all dimensions but `dim`."""
    dims = [d for d in range(v.dim()) if d != dim % v.dim()] if dim != -1 else list(range(v.dim()))
    return v * (g * (v * v).sum(dims, keepdim=True).rsqrt())


def affine_grid_generator(theta: torch.Tensor, size: Sequence[int], align_corners: bool) -> torch.Tensor:
    """Coordinates (N, positions..., rank) of an affine transformation theta (N, rank, rank + 1) of a regular grid over [-1, 1]."""
    rank = theta.shape[1]
    spatial = list(size[2:])
    parts = []
    for d in range(rank - 1, -1, -1):  # the last dimension's coordinate comes first
        n = spatial[d]
        steps = torch.arange(n, dtype=theta.dtype, device=theta.device)
        if n <= 1:
            line = torch.zeros_like(steps)
        else:
            line = steps * (2 / (n - 1)) - 1 if align_corners else (2 * steps + 1) / n - 1
        parts.append(line.view(*(n if k == d else 1 for k in range(rank))).expand(*spatial))
    parts.append(torch.ones(spatial, dtype=theta.dtype, device=theta.device))
    base = torch.stack(parts, -1).reshape(1, -1, rank + 1).expand(theta.shape[0], -1, -1)
    return ours.matmul.default(base, theta.transpose(1, 2)).view(theta.shape[0], *spatial, rank)


def chunk_cat(tensors: Sequence[torch.Tensor], dim: int, num_chunks: int) -> torch.Tensor:
    """Each tensor cut into `num_chunks` chunks along `dim`, the last ones filled up with zeros; chunks of one number side by side."""
    dim = dim % tensors[0].dim()
    parts = []
    for t in tensors:
        rows, rest = -(-t.shape[dim] // num_chunks), t.shape[dim + 1 :]
        filled = torch.constant_pad_nd(t, [0, 0] * len(rest) + [0, rows * num_chunks - t.shape[dim]], 0)
        parts.append(filled.reshape(*t.shape[:dim], num_chunks, rows * math.prod(rest)))
    return torch.cat(parts, dim + 1)


def pdist(input: torch.Tensor, p: float = 2.0) -> torch.Tensor:
    """The distances between the rows i < j, in that order: those between two lists of single rows."""
    n = input.shape[0]
    if n < 2:  # no pairs, of which the input has a gradient of zeros
        return input[:0].sum(1)
    count = n * (n - 1) // 2
    # counted from the last pair, row n - 2 - k has the k + 1 pairs from k (k + 1) / 2 on
    place = count - 1 - torch.arange(count, device=input.device)
    k = (((8 * place + 1).to(torch.float64).sqrt() - 1) / 2).to(torch.int64)
    k = k - (k * (k + 1) // 2 > place).to(torch.int64) + ((k + 1) * (k + 2) // 2 <= place).to(torch.int64)  # what rounding did
    first, second = n - 2 - k, n - 1 - (place - k * (k + 1) // 2)
    pairs = aten._cdist_forward.default(input[first].unsqueeze(1), input[second].unsqueeze(1), p, 2)
    return pairs.reshape(count)


MODULE_COMPOSITES: dict[Any, Callable] = {
    F.pad: pad,
    aten._pad_circular.default: pad_circular,
    torch.pixel_shuffle: pixel_shuffle,
    torch.pixel_unshuffle: pixel_unshuffle,
    torch.channel_shuffle: channel_shuffle,
    torch.native_channel_shuffle: channel_shuffle,
    torch.bilinear: bilinear,
    torch._weight_norm: weight_norm,
    torch.affine_grid_generator: affine_grid_generator,
    torch._chunk_cat: chunk_cat,
    torch.pdist: pdist,
    F.pdist: pdist,
    **{
        getattr(aten, name).default: function
        for name, function in (
            ("pixel_shuffle", pixel_shuffle),
            ("pixel_unshuffle", pixel_unshuffle),
            ("channel_shuffle", channel_shuffle),
            ("bilinear", bilinear),
            ("_weight_norm", weight_norm),
            ("affine_grid_generator", affine_grid_generator),
            ("_chunk_cat", chunk_cat),
            ("pdist", pdist),
            ("_pdist_forward", pdist),
        )
    },
}
