"""Contractions of two tensors by an equation, through mm, addmm and bmm on views."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shorthaul.analysis.products import Plan, plan

from .onednn import fills, multiply
from .table import Tensors, library


def _squeezed(t: torch.Tensor, ones: Sequence[int]) -> torch.Tensor:
    for d in reversed(ones):
        t = t.select(d, 0)
    return t


def _size(shape: Sequence[int]) -> int:
    n = 1
    for s in shape:
        n *= s
    return n


def _merged(t: torch.Tensor, order: Sequence[int], groups: Sequence[int]) -> tuple[torch.Tensor, list[int]]:
    """The tensor with its dimensions in that order and merged into groups (a view where strides allow it), and its ordered shape."""
    t = t.permute(tuple(order))
    shape = list(t.shape)
    sizes, at = [], 0
    for count in groups:
        sizes.append(_size(shape[at : at + count]))
        at += count
    return t.reshape(sizes), shape


def _as_view(t: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor | None:
    try:
        return t.view(sizes)
    except RuntimeError:  # its strides do not merge
        return None


@dataclass(frozen=True)
class Prepared:
    """A contraction of operands of known shapes and strides as one product of views: (sizes, strides) of left, right and target."""

    swap: bool
    left: tuple[Sequence[int], Sequence[int]]
    right: tuple[Sequence[int], Sequence[int]]
    target: tuple[Sequence[int], Sequence[int]]
    bias_inside: bool


_prepared: dict[tuple[Any, ...], Prepared | None] = {}


def _layout(t: torch.Tensor) -> tuple[Sequence[int], Sequence[int]]:
    t = t[0] if t.dim() == 3 and t.shape[0] == 1 else t
    return t.shape, t.stride()


def _prepare(p: Plan, reads: Tensors, destination: torch.Tensor) -> Prepared | None:
    """None where an operand or the result has to be copied."""
    first, second = (reads["b"], reads["a"]) if p.swap else (reads["a"], reads["b"])
    left, _ = _merged(_squeezed(first, p.ones_a), p.order_a, (p.batch, p.rows, p.summed))
    right, _ = _merged(_squeezed(second, p.ones_b), p.order_b, (p.batch, p.summed, p.columns))
    target = _as_view(
        _squeezed(destination, p.ones_y).permute(p.order_y), (left.shape[0], left.shape[1], right.shape[2])
    )
    if target is None or left.data_ptr() != first.data_ptr() or right.data_ptr() != second.data_ptr():
        return None
    return Prepared(
        p.swap, _layout(left), _layout(right), _layout(target), left.shape[0] == 1 and _bias_inside(p, reads, right)
    )


def _bias_inside(p: Plan, reads: Tensors, right: torch.Tensor) -> bool:
    """Whether the bias goes along the columns, so that the product itself adds it."""
    bias = reads.get("bias")
    return (
        bias is not None
        and bias.dim() >= 1
        and bias.numel() == bias.shape[0]  # it goes along one dimension, after which the result has only single ones
        and bias.dim() - 1 == sum(1 for d in p.ones_y if d >= len(p.order_y))
        and p.columns == 1
        and p.order_y[-1] == len(p.order_y) - 1
        and bias.shape[0] == right.shape[-1]
    )


@library("contract", writes_out=fills)
def contract(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    """alpha * contraction of a and b + beta * bias; see the operator `contract`.

    attribute along: the result's dimension along which a bias of one dimension goes, if it is not the last. attribute sums: "float32",
    where a product of 16-bit matrices on a GPU may not add up parts in 16 bits, whatever PyTorch's flags say of products.
    """
    if attributes.get("sums") == "float32" and _is_narrow_on_gpu(reads["a"]):
        with _exact_sums():
            return _contracted(reads, attributes, out)
    return _contracted(reads, attributes, out)


def _is_narrow_on_gpu(t: torch.Tensor) -> bool:
    return t.is_cuda and t.dtype in (torch.bfloat16, torch.float16)


@contextlib.contextmanager
def _exact_sums() -> Iterator[None]:
    flags = torch.backends.cuda.matmul
    before = flags.allow_fp16_reduced_precision_reduction, flags.allow_bf16_reduced_precision_reduction
    flags.allow_fp16_reduced_precision_reduction = flags.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        flags.allow_fp16_reduced_precision_reduction, flags.allow_bf16_reduced_precision_reduction = before


def _contracted(reads: Tensors, attributes: Mapping[str, Any], out: Tensors) -> dict[str, torch.Tensor]:
    equation = attributes["equation"]
    a, b, bias, y = reads["a"], reads["b"], reads.get("bias"), out.get("y")
    alpha, beta = attributes.get("alpha", 1), attributes.get("beta", 1)
    if bias is not None and "along" in attributes:
        rank = len(equation.rpartition("->")[2])
        if attributes["along"] != rank - 1:
            reads = {**reads, "bias": bias.reshape(-1, *[1] * (rank - 1 - attributes["along"]))}
            bias = reads["bias"]
    wanted = attributes.get("strides", {}).get("y")
    if y is None and wanted is None:
        return {"y": _contract(plan(equation), reads, alpha, beta, None)}
    owned = y is None
    if y is None:  # of the library's choice, in the layout that the caller wants
        y = torch.empty_strided(_shape_of_result(equation, a, b), wanted, dtype=a.dtype, device=a.device)
    key = (
        equation,
        a.shape,
        a.stride(),
        b.shape,
        b.stride(),
        y.shape,
        y.stride(),
        None if bias is None else bias.shape,
    )
    if key not in _prepared:
        if len(_prepared) > 4096:
            _prepared.clear()
        _prepared[key] = _prepare(plan(equation), reads, y)
    ready = _prepared[key]
    if ready is None:
        return {"y": _contract(plan(equation), reads, alpha, beta, y)}
    if ready.swap:
        a, b = b, a
    left, right, target = a.as_strided(*ready.left), b.as_strided(*ready.right), y.as_strided(*ready.target)
    if owned and bias is None and alpha == 1 and left.dim() == 2:
        found = None
        if target.is_contiguous():
            found = multiply(left, right, None, None)
        elif target.t().is_contiguous():
            found = multiply(right.t(), left.t(), None, None)
        if found is not None:
            return {"y": found.as_strided(y.shape, y.stride())}
    _product(left, right, bias if ready.bias_inside else None, alpha, beta, target)
    if bias is not None and not ready.bias_inside:
        y.add_(bias, alpha=beta)
    return {"y": y}


def _shape_of_result(equation: str, a: torch.Tensor, b: torch.Tensor) -> list[int]:
    operands, _, of_y = equation.rpartition("->")
    sizes = dict(zip(operands.replace(",", ""), (*a.shape, *b.shape), strict=True))
    return [1 if c == "1" else sizes[c] for c in of_y]


def _parts(left: torch.Tensor, right: torch.Tensor) -> int:
    """Into how many sums a product is split: one for each thread where a small result sums over very many terms, which a library does
    not share between threads (the gradient of a 1×1 convolution's weight, 32 × 16 over 32768 positions; 2 cores: 308 µs whole, 256 in two).

    Only in types in which adding the parts costs no accuracy.
    """
    threads = torch.get_num_threads()
    rows, terms, columns = left.shape[0], left.shape[1], right.shape[1]
    split = threads > 1 and left.device.type == "cpu" and left.dtype in (torch.float32, torch.float64)
    return threads if split and terms >= 1024 and terms * 8 >= rows * columns and terms % threads == 0 else 1


def _product(
    left: torch.Tensor,
    right: torch.Tensor,
    bias: torch.Tensor | None,
    alpha: float,
    beta: float,
    target: torch.Tensor | None,
) -> torch.Tensor:
    """alpha * left @ right + beta * bias of matrices or batches of them, into the target if there is one."""
    if left.dim() == 3:
        if alpha == 1:
            return torch.bmm(left, right, out=target)
        return torch.baddbmm(left.new_zeros(()), left, right, beta=0, alpha=alpha, out=target)
    if alpha == 1 and (bias is None or beta == 1):
        found = multiply(left, right, None if bias is None else bias.reshape(-1), target)
        if found is not None:
            return found
    if bias is not None:
        return torch.addmm(bias.reshape(-1), left, right, beta=beta, alpha=alpha, out=target)
    if alpha == 1:
        parts = _parts(left, right)
        if parts > 1:
            sums = torch.bmm(left.unflatten(1, (parts, -1)).transpose(0, 1), right.unflatten(0, (parts, -1)))
            return torch.sum(sums, 0, out=target)
        return torch.mm(left, right, out=target)
    return torch.addmm(left.new_zeros(()), left, right, beta=0, alpha=alpha, out=target)


def _contract(p: Plan, reads: Tensors, alpha: float, beta: float, destination: torch.Tensor | None) -> torch.Tensor:
    """Any contraction, with copies where the layouts ask for them."""
    first, second = (reads["b"], reads["a"]) if p.swap else (reads["a"], reads["b"])
    bias = reads.get("bias")
    left, shape_a = _merged(_squeezed(first, p.ones_a), p.order_a, (p.batch, p.rows, p.summed))
    right, shape_b = _merged(_squeezed(second, p.ones_b), p.order_b, (p.batch, p.summed, p.columns))
    shape_y = shape_a[: p.batch + p.rows] + shape_b[p.batch + p.summed :]
    target = None
    if destination is not None:
        target = _as_view(
            _squeezed(destination, p.ones_y).permute(p.order_y), (left.shape[0], left.shape[1], right.shape[2])
        )
    inside = left.shape[0] == 1 and _bias_inside(p, reads, right)
    if left.shape[0] == 1:
        y = _product(left[0], right[0], bias if inside else None, alpha, beta, None if target is None else target[0])
    else:
        y = _product(left, right, None, alpha, beta, target)
    if destination is not None and target is not None:
        result = destination
    else:
        result = y.view(shape_y).permute([p.order_y.index(d) for d in range(len(p.order_y))])
        for d in p.ones_y:
            result = result.unsqueeze(d)
    if bias is not None and not inside:
        result.add_(bias, alpha=beta)
    return result
