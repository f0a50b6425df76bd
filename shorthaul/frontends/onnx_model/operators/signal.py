"""Fourier transforms as products with cosine and sine matrices (no complex numbers, so they compile and fuse), and windows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from shorthaul.frontends.onnx_model.table import operator
from shorthaul.frontends.onnx_model.types import held


def _fourier(n: int, bins: int, sign: float, device: Any) -> tuple[Tensor, Tensor]:
    """Cosines and sines [n, bins] of the transform of length n, in float64; angles reduced exactly."""
    turns = torch.arange(n, device=device)[:, None] * torch.arange(bins, device=device)[None, :] % n
    angle = turns.to(torch.float64) * (sign * 2 * math.pi / n)
    return torch.cos(angle), torch.sin(angle)


def transform(x: Tensor, axis: int, length: Any, inverse: bool, onesided: bool) -> Tensor:
    """The discrete Fourier transform of x [..., 1 or 2] along an axis; results [..., 2] (1 for a one-sided inverse)."""
    n = x.shape[axis] if length is None else length
    if inverse and onesided:  # of half a spectrum to real numbers
        n = 2 * (x.shape[axis] - 1) if length is None else length
        full = n // 2 + 1
        x = _resized(x, axis, full)
        rest = torch.flip(x.narrow(axis, 1, n - full), (axis,)) if n > full else x.narrow(axis, 0, 0)
        x = torch.cat((x, rest * torch.tensor([1.0, -1.0], dtype=x.dtype, device=x.device)), axis)
    x = _resized(x, axis, n)
    bins = n // 2 + 1 if onesided and not inverse else n
    cosines, sines = (t.to(x.dtype) for t in _fourier(n, bins, 1.0 if inverse else -1.0, x.device))
    real = torch.movedim(x[..., 0], axis, -1)
    re, im = torch.matmul(real, cosines), torch.matmul(real, sines)
    if x.shape[-1] == 2:
        imaginary = torch.movedim(x[..., 1], axis, -1)
        re, im = re - torch.matmul(imaginary, sines), im + torch.matmul(imaginary, cosines)
    y = torch.stack([torch.movedim(v, -1, axis) for v in ((re,) if inverse and onesided else (re, im))], -1)
    return y / n if inverse else y


def _resized(x: Tensor, axis: int, n: int) -> Tensor:
    have = x.shape[axis]
    if have >= n:
        return x.narrow(axis, 0, n)
    return torch.cat((x, x.new_zeros([n - have if i == axis else m for i, m in enumerate(x.shape)])), axis)


@operator("DFT", since=20, host=("dft_length", "axis"))
def dft(x: Tensor, dft_length: Any = None, axis: Any = None, *, inverse: int, onesided: int) -> Tensor:
    at = -2 if axis is None else axis[0] if isinstance(axis, tuple) else axis
    length = dft_length[0] if isinstance(dft_length, tuple) else dft_length
    return transform(x, at % x.dim(), length, bool(inverse), bool(onesided))


@operator("DFT", since=17, host=("dft_length",))
def dft_17(x: Tensor, dft_length: Any = None, *, axis: int, inverse: int, onesided: int) -> Tensor:
    return dft(x, dft_length, axis, inverse=inverse, onesided=onesided)


@operator("STFT", host=("frame_step", "frame_length"))
def stft(x: Tensor, frame_step: Any, window: Any = None, frame_length: Any = None, *, onesided: int) -> Tensor:
    """Of signals [batch, length, 1 or 2]; results [batch, frames, bins, 2]."""
    step = frame_step[0] if isinstance(frame_step, tuple) else frame_step
    n = window.shape[0] if frame_length is None else frame_length[0] if isinstance(frame_length, tuple) else frame_length
    x = x if x.dim() == 3 else x.unsqueeze(-1)
    frames = x.unfold(1, n, step).transpose(2, 3)  # batch, frames, n, 1 or 2
    if window is not None:
        frames = frames * window[:, None]
    return transform(frames, 2, None, False, bool(onesided))


def _window(size: Any, periodic: int, dtype: int, device: Any, terms: tuple[float, ...]) -> Tensor:
    n = size[0] if isinstance(size, tuple) else size
    period = n if periodic else n - 1
    turn = torch.arange(n, dtype=torch.float64, device=device) * (2 * math.pi / period)
    total = sum(((-1) ** k * a * torch.cos(k * turn) for k, a in enumerate(terms)), torch.zeros_like(turn))
    return total.to(held(dtype, "window"))


def _enter(name: str, terms: tuple[float, ...]) -> None:
    def window(size: Any, *, output_datatype: int, periodic: int, device: Any) -> Tensor:
        return _window(size, periodic, output_datatype, device, terms)

    window.__name__ = name
    operator(name, host=("size",))(window)


_enter("HannWindow", (0.5, 0.5))
_enter("HammingWindow", (25 / 46, 21 / 46))
_enter("BlackmanWindow", (0.42, 0.5, 0.08))


@operator("MelWeightMatrix", host=("bins", "length", "rate", "low", "high"))
def mel_weight_matrix(bins: Any, length: Any, rate: Any, low: Any, high: Any, *, output_datatype: int, device: Any) -> Tensor:
    """Triangular filters [length/2 + 1, bins], equally spaced on the mel scale."""
    bins, length, rate, low, high = (v[0] if isinstance(v, tuple) else v for v in (bins, length, rate, low, high))
    spectrum = length // 2 + 1
    low_mel, high_mel = (2595 * math.log10(1 + f / 700) for f in (low, high))
    step = (high_mel - low_mel) / (bins + 2)
    mels = torch.arange(bins + 2, dtype=torch.float64, device=device) * step + low_mel
    edges = torch.floor((length + 1) * (700 * (torch.pow(10.0, mels / 2595) - 1)) / rate)
    at = torch.arange(spectrum, dtype=torch.float64, device=device)[:, None]
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = torch.where(centre == lower, (at == centre).to(torch.float64), (at - lower) / (centre - lower).clamp(min=1))
    falling = (upper - at) / (upper - centre).clamp(min=1)
    inside_rise, inside_fall = (at >= lower) & (at <= centre), (at > centre) & (at < upper)
    zero = torch.zeros_like(rising)
    return torch.where(inside_rise, rising, torch.where(inside_fall, falling, zero)).to(held(output_datatype, "MelWeightMatrix"))
