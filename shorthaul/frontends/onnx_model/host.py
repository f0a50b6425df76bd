"""Host values: sizes and other small integers that a model computes with are Python numbers, not tensors.

`Shape` gives a tuple of ints (SymInts under Dynamo); what models do with it (Gather, Concat, Mul, ...) is done in Python as long
as every operand is such a value, so that the target of a Reshape neither breaks a graph nor depends on data. A host value is a
bool, int (int64) or float (float32): a tensor of rank 0; or a tuple of those: rank 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Union

import torch

Number = Union[bool, int, float]
Host = Union[bool, int, float, tuple]
LONGEST = 64  # a constant of more elements is a tensor


def is_host(v: Any) -> bool:
    """Whether a value is a Python number or a tuple of them."""
    return isinstance(v, (bool, int, float, tuple, torch.SymInt, torch.SymFloat, torch.SymBool))


def ints(v: Any) -> Any:
    """The value as numbers: of a tensor, its elements (which breaks a graph under Dynamo)."""
    if isinstance(v, torch.Tensor):
        v = v.tolist()
    return tuple(v) if isinstance(v, list) else v


def several(v: Any) -> tuple:
    """Numbers as a tuple: models may give one number as a tensor of rank 0."""
    return v if isinstance(v, tuple) else (v,)


def one(v: Any) -> Any:
    """A number, of a tuple the first."""
    return v[0] if isinstance(v, tuple) else v


def tensor(v: Any, device: torch.device | None = None) -> Any:
    """The value as a tensor; tensors, sequences and None stay as they are."""
    if not is_host(v):
        return v
    first = v[0] if isinstance(v, tuple) and v else v
    if isinstance(first, (bool, torch.SymBool)):
        dtype = torch.bool
    elif isinstance(first, (float, torch.SymFloat)):
        dtype = torch.float32
    else:
        dtype = torch.int64
    return torch.tensor(list(v) if isinstance(v, tuple) else v, dtype=dtype, device=device)


def either(on_host: Callable[..., Any], on_tensors: Callable[..., Any], place: Any, kept: tuple, /, *args: Any, **attributes: Any) -> Any:
    """`on_host` where every operand is a host value and it can do it (it returns NotImplemented otherwise), else `on_tensors`, which takes
    the operands of the numbers `kept` as host values too."""
    if all(a is None or is_host(a) for a in args):
        result = on_host(*args, **attributes)
        if result is not NotImplemented:
            return result
    return on_tensors(*[a if i in kept else tensor(a, place) for i, a in enumerate(args)], **attributes)


def single(x: Any) -> Any:
    """x rounded to float32, by arithmetic that symbolic numbers have too (Dekker's splitting)."""
    high = x * 536870913.0
    return high - (high - x)


def _round(v: Any) -> Any:
    return single(v) if isinstance(v, (float, torch.SymFloat)) and -1e29 < v < 1e29 else v


def pointwise(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function of numbers, on host values with broadcasting."""

    def on_host(*args: Any, **attributes: Any) -> Any:
        if attributes and any(v not in (None, 0) for v in attributes.values()):
            return NotImplemented
        lengths = [len(a) for a in args if isinstance(a, tuple)]
        if not lengths:
            return _round(f(*args))
        n = max(lengths) if 0 not in lengths else 0
        if any(k not in (1, n) for k in lengths):
            return NotImplemented
        rows = [(a if len(a) == n else a * n) if isinstance(a, tuple) else (a,) * n for a in args]
        return tuple(_round(f(*r)) for r in zip(*rows, strict=True))

    return on_host


def divide(a: Any, b: Any) -> Any:
    """ONNX's division: exact on floats, truncated on integers."""
    if isinstance(a, (float, torch.SymFloat)) or isinstance(b, (float, torch.SymFloat)):
        return a / b
    return a // b if (a >= 0) == (b >= 0) else -(-a // b)


def shape(x: Any, *, start: int = 0, end: int | None = None) -> Any:
    """Sizes of a tensor, host value or sequence."""
    if is_host(x):
        sizes: tuple = (len(x),) if isinstance(x, tuple) else ()
    else:
        sizes = tuple(x.shape)
    return sizes[start:end] if end is not None else sizes[start:]


def size(x: Any) -> Any:
    """The number of elements."""
    if is_host(x):
        return len(x) if isinstance(x, tuple) else 1
    return x.numel()


def gather(data: Any, indices: Any, *, axis: int = 0) -> Any:
    if not isinstance(data, tuple):
        return NotImplemented
    if isinstance(indices, tuple):
        return tuple(data[i] for i in indices)
    return data[indices]


def concat(*inputs: Any, axis: int | None = 0) -> Any:
    if not all(isinstance(v, tuple) for v in inputs):
        return NotImplemented
    return sum(inputs, ())


def unsqueeze(data: Any, axes: Any = None) -> Any:
    if isinstance(data, tuple) or several(axes) not in ((0,), (-1,)):
        return NotImplemented
    return (data,)


def squeeze(data: Any, axes: Any = None) -> Any:
    if isinstance(data, tuple) and len(data) == 1 and (axes is None or several(axes) in ((0,), (-1,), ())):
        return data[0]
    return NotImplemented


def reshape(data: Any, shape: Any, *, allowzero: int = 0) -> Any:
    values = data if isinstance(data, tuple) else (data,)
    if len(shape) == 1 and (shape[0] == -1 or shape[0] == len(values)):
        return values
    if len(shape) == 0 and len(values) == 1:
        return values[0]
    return NotImplemented


def slice_(data: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    if not isinstance(data, tuple) or len(starts) != 1:
        return NotImplemented
    step = 1 if steps is None else steps[0]
    start, end = starts[0], ends[0]
    if step < 0 and end < -len(data):
        end = None
    return data[start:end:step]


def cast(x: Any, *, to: int, **_: Any) -> Any:
    """To FLOAT, INT64 or BOOL, which have host values; other types become tensors."""
    convert: Any = {1: _to_float, 7: _to_int, 9: bool}.get(to)
    if convert is None:
        return NotImplemented
    return tuple(convert(v) for v in x) if isinstance(x, tuple) else convert(x)


def _to_float(v: Any) -> Any:
    return v if isinstance(v, (float, torch.SymFloat)) else v * 1.0 if not isinstance(v, bool) else float(v)


def _to_int(v: Any) -> Any:
    return math.trunc(v) if isinstance(v, (float, torch.SymFloat)) else int(v) if isinstance(v, bool) else v


def reduced(f: Callable[[Sequence[Any]], Any]) -> Callable[..., Any]:
    """A reduction over all elements."""

    def on_host(data: Any, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
        if not isinstance(data, tuple) or not data or (not axes and noop_with_empty_axes):
            return NotImplemented
        total = f(data)
        return (total,) if keepdims else total

    return on_host


def product(values: Sequence[Any]) -> Any:
    """The product, of symbolic numbers too."""
    total: Any = 1
    for v in values:
        total = total * v
    return total


def range_(start: Any, limit: Any, delta: Any, **_: Any) -> Any:
    if not all(type(v) is int for v in (start, limit, delta)) or len(range(start, limit, delta)) > LONGEST:
        return NotImplemented
    return tuple(range(start, limit, delta))


def split(data: Any, sizes: Any) -> Any:
    """Consecutive pieces of a tuple."""
    pieces, at = [], 0
    for n in sizes:
        pieces.append(data[at : at + n])
        at += n
    return tuple(pieces)


def identity(x: Any) -> Any:
    return x
