"""Reductions along axes, prefix sums, and what picks the largest element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shorthaul.frontends.onnx_model import host
from shorthaul.frontends.onnx_model.table import operator


def _extreme(f: Callable[..., Tensor], largest: bool) -> Callable[..., Tensor]:
    def reduce(x: Tensor, axes: tuple, keep: bool) -> Tensor:
        if any(x.shape[a] == 0 for a in axes):  # of nothing: the neutral element
            if x.dtype is torch.bool:
                edge: Any = not largest
            else:
                limits = torch.finfo(x.dtype) if x.is_floating_point() else torch.iinfo(x.dtype)
                edge = limits.min if largest else limits.max
                edge = float("-inf" if largest else "inf") if x.is_floating_point() else edge
            kept = {a % x.dim() for a in axes}
            return x.new_full([1 if i in kept else n for i, n in enumerate(x.shape) if keep or i not in kept], edge)
        if x.dtype is torch.bool:
            return (torch.any if largest else torch.all)(x, axes, keep)
        return f(x, dim=axes, keepdim=keep)

    return reduce


def _product(x: Tensor, axes: tuple, keep: bool) -> Tensor:
    for a in sorted((a % x.dim() for a in axes), reverse=True):
        x = torch.prod(x, a, keepdim=keep, dtype=x.dtype)
    return x


def _sum(x: Tensor, axes: tuple, keep: bool) -> Tensor:
    return torch.sum(x, axes, keepdim=keep, dtype=x.dtype)


def _length(x: Tensor, axes: tuple, keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.linalg.vector_norm(x, 2, axes, keep)  # of zeros the gradient is zero
    return torch.sqrt(_sum(x * x, axes, keep).to(torch.float64)).to(x.dtype)


REDUCTIONS: dict[str, tuple[Callable[[Tensor, tuple, bool], Tensor], Callable[[Tensor], Tensor] | None]] = {
    # the reduction, and what it does to a single element
    "ReduceSum": (_sum, None),
    "ReduceMean": (lambda x, axes, keep: torch.mean(x, axes, keepdim=keep) if x.is_floating_point()
                   else torch.mean(x.to(torch.float64), axes, keepdim=keep).to(x.dtype), None),
    "ReduceMax": (_extreme(torch.amax, True), None),
    "ReduceMin": (_extreme(torch.amin, False), None),
    "ReduceProd": (_product, None),
    "ReduceL1": (lambda x, axes, keep: _sum(torch.abs(x), axes, keep), torch.abs),
    "ReduceL2": (_length, torch.abs),
    "ReduceSumSquare": (lambda x, axes, keep: _sum(x * x, axes, keep), torch.square),
    "ReduceLogSum": (lambda x, axes, keep: torch.log(_sum(x, axes, keep)), torch.log),
    "ReduceLogSumExp": (lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep), None),
}  # fmt: skip
_ON_HOST: dict[str, Any] = {"ReduceSum": sum, "ReduceMax": max, "ReduceMin": min, "ReduceProd": host.product}


def _enter(name: str, f: Callable[[Tensor, tuple, bool], Tensor], alone: Callable[[Tensor], Tensor] | None) -> None:
    def reduce(data: Tensor, axes: Any = None, *, keepdims: int, noop_with_empty_axes: int = 0) -> Tensor:
        if axes is None or not len(axes):
            if noop_with_empty_axes:
                return data if alone is None else alone(data)
            axes = tuple(range(data.dim()))
        if not data.dim():
            return data if alone is None else alone(data)
        return f(data, tuple(axes), bool(keepdims))

    reduce.__name__ = name
    operator(name, host=("axes",), on_host=host.reduced(_ON_HOST[name]) if name in _ON_HOST else None)(reduce)


for _name, (_f, _alone) in REDUCTIONS.items():
    _enter(_name, _f, _alone)


def _arg(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def find(x: Tensor, *, axis: int, keepdims: int, select_last_index: int = 0) -> Tensor:
        if not select_last_index:
            return f(x, dim=axis, keepdim=bool(keepdims))
        return x.shape[axis] - 1 - f(torch.flip(x, (axis,)), dim=axis, keepdim=bool(keepdims))

    return find


operator("ArgMax")(_arg(torch.argmax))
operator("ArgMin")(_arg(torch.argmin))


def _scan(f: Callable[..., Tensor], neutral: int) -> Callable[..., Tensor]:
    def scan(x: Tensor, axis: Any, *, exclusive: int, reverse: int) -> Tensor:
        axis = axis[0] if isinstance(axis, tuple) else axis
        x = torch.flip(x, (axis,)) if reverse else x
        y = f(x, axis).to(x.dtype)
        if exclusive:
            first = torch.full_like(y.narrow(axis, 0, 1), neutral)
            y = torch.cat((first, y.narrow(axis, 0, y.shape[axis] - 1)), axis)
        return torch.flip(y, (axis,)) if reverse else y

    return scan


operator("CumSum", host=("axis",))(_scan(torch.cumsum, 0))
operator("CumProd", host=("axis",))(_scan(torch.cumprod, 1))


# --- softmax --------------------------------------------------------------------------------------------------


def _as_matrix(f: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    """Before version 13: over all axes from `axis` on."""


    def flat(x: Tensor, *, axis: int) -> Tensor:
        axis = axis + x.dim() if axis < 0 else axis
        if axis == x.dim() - 1:
            return f(x, -1)
        return f(x.reshape(host.product(x.shape[:axis]), -1), 1).reshape(x.shape)

    return flat


def _along(f: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    def along(x: Tensor, *, axis: int) -> Tensor:
        return f(x, axis)

    return along


def hardmax(x: Tensor, axis: int) -> Tensor:
    """One at the first largest element along the axis, zero elsewhere."""
    first = torch.argmax(x, axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1.0)


for _name, _g in (("Softmax", torch.softmax), ("LogSoftmax", torch.log_softmax), ("Hardmax", hardmax)):
    operator(_name, since=1)(_as_matrix(_g))
    operator(_name, since=13)(_along(_g))
