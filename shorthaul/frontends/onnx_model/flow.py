"""What generated code calls for control flow: If, Loop, Scan, Gradient. Bodies are functions of the generated code; they take what
they use from outside as arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from shorthaul.errors import OnnxError
from shorthaul.frontends.onnx_model import host

Body = Callable[..., tuple]


def truth(v: Any) -> Any:
    """A condition as a Python bool; of a tensor its value, which breaks a graph under Dynamo."""
    if isinstance(v, torch.Tensor):
        return bool(v.reshape(()))
    return v[0] if isinstance(v, tuple) else v


def branch(condition: Any, then: Body, then_captured: tuple, other: Body, other_captured: tuple) -> tuple:
    """If."""
    if truth(condition):
        return then(*then_captured)
    return other(*other_captured)


def _stacked(rows: list, empty: Any, device: Any, axis: int = 0) -> Any:
    if rows:
        return torch.stack([host.tensor(r, device) for r in rows], axis)
    dtype, sizes = empty
    return torch.empty((0, *sizes), dtype=dtype, device=device)


def loop(
    body: Body, trip: Any, condition: Any, carried: tuple, empty: tuple, leading: tuple, captured: tuple, device: Any
) -> tuple:
    """Loop. trip: how often at most, or None. empty: for each scanned result the type and sizes of an element. leading: the first
    arguments of the body, captured: its last."""
    limit = trip[0] if isinstance(trip, tuple) else trip
    going = True if condition is None else truth(condition)
    rows: list[list] = [[] for _ in empty]
    i = 0
    while (limit is None or i < limit) and going:
        results = body(*leading, i, True, *carried, *captured)
        going = truth(results[0])
        carried = tuple(results[1 : 1 + len(carried)])
        for row, r in zip(rows, results[1 + len(carried) :], strict=True):
            row.append(r)
        i += 1
    return (*carried, *(_stacked(r, e, device) for r, e in zip(rows, empty, strict=True)))


def scan(
    body: Body, states: tuple, inputs: tuple, input_axes: Sequence[int], input_backwards: Sequence[int], output_axes: Sequence[int],
    output_backwards: Sequence[int], empty: tuple, leading: tuple, captured: tuple, device: Any,
) -> tuple:  # fmt: skip
    """Scan: states go from step to step, inputs are taken apart along their axes, other results are stacked."""
    n = inputs[0].shape[input_axes[0]]
    rows: list[list] = [[] for _ in empty]
    for i in range(n):
        elements = [x.select(a, n - 1 - i if back else i) for x, a, back in zip(inputs, input_axes, input_backwards, strict=True)]
        results = body(*leading, *states, *elements, *captured)
        states = tuple(results[: len(states)])
        for row, r in zip(rows, results[len(states) :], strict=True):
            row.append(r)
    stacked = [_stacked(r[::-1] if back else r, e, device, a)
               for r, back, e, a in zip(rows, output_backwards, empty, output_axes, strict=True)]  # fmt: skip
    return (*states, *stacked)


def scan_of_batch(
    body: Body, lengths: Any, states: tuple, inputs: tuple, directions: Sequence[int], empty: tuple, leading: tuple, captured: tuple,
    device: Any,
) -> tuple:  # fmt: skip
    """Scan of version 8: a batch comes first, each sequence with a length of its own."""
    results = []
    longest = inputs[0].shape[1]
    limits = [longest] * inputs[0].shape[0] if lengths is None else list(lengths)
    for b, n in enumerate(limits):
        taken = tuple(x[b, :n] for x in inputs)
        zeros = [0] * len(empty)
        one = scan(body, tuple(s[b] for s in states), taken, [0] * len(inputs), directions, zeros, zeros, empty, leading, captured, device)
        finals, rows = one[: len(states)], one[len(states) :]
        results.append((*finals, *(torch.nn.functional.pad(r, (0, 0) * (r.dim() - 1) + (0, longest - n)) for r in rows)))
    return tuple(torch.stack(kind) for kind in zip(*results, strict=True))


@torch.compiler.disable
def gradient(function: Body, leading: tuple, wrt: tuple, others: tuple, captured: tuple) -> tuple:
    """Derivatives of the sum of function's result with respect to `wrt`. Runs in eager mode: differentiation inside a compiled region
    would be of higher order."""
    with torch.enable_grad():
        points = [x if x.requires_grad else x.detach().requires_grad_() for x in wrt]
        (y,) = function(*leading, *points, *others, *captured)
        found = torch.autograd.grad(y.sum(), points, create_graph=any(x.requires_grad for x in wrt), allow_unused=True)
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(wrt, found, strict=True))


_WIDE = {torch.uint16: torch.int64, torch.uint32: torch.int64}


def widen(x: Any) -> Any:
    """Unsigned integers that PyTorch has no arithmetic for, as int64 (of 64 bits: the same bits)."""
    if not isinstance(x, torch.Tensor):
        return x
    if x.dtype is torch.uint64:
        return x.view(torch.int64)
    return x.to(_WIDE[x.dtype]) if x.dtype in _WIDE else x


def widen_small(x: Any) -> Any:
    """`widen` for operators that neither of the others is right for. Raises OnnxError for values that int64 takes for negative."""
    wide = widen(x)
    if isinstance(x, torch.Tensor) and x.dtype is torch.uint64 and bool((wide < 0).any()):
        raise OnnxError("a uint64 operand has values from 2^63 on, which only bits, moves of elements, arithmetic and orders are right for")
    return wide


_TOP = -(2**63)  # the highest bit of 64


def widen_ordered(x: Any) -> Any:
    """`widen` for operators that only compare: with the highest bit turned, int64 orders as uint64 does."""
    return widen(x) ^ _TOP if isinstance(x, torch.Tensor) and x.dtype is torch.uint64 else widen(x)


def narrow_ordered(x: Any, dtype: torch.dtype) -> Any:
    """`narrow` for what comes out of them."""
    return narrow(x ^ _TOP, dtype) if dtype is torch.uint64 else narrow(x, dtype)


def narrow_each(results: Any, dtypes: Sequence[torch.dtype | None], ordered: bool) -> tuple:
    """`narrow`, or `narrow_ordered`, for the results that have a type."""
    back = narrow_ordered if ordered else narrow
    return tuple(r if d is None else back(r, d) for r, d in zip(results, dtypes, strict=False))  # results that nobody names come last


def quotient(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a / b of int64 tensors with the bits of uint64: twice the quotient of a / 2, which is no negative number, and one more or not.

    A divisor from 2^63 on goes into a once or not at all. (Warren, Hacker's Delight, 9-3.)
    """
    large = b < 0
    twice = torch.div((a >> 1) & ~_TOP, torch.where(large, 1, b), rounding_mode="trunc") << 1
    twice = torch.where(large, 0, twice)
    return twice + ((a - twice * b) ^ _TOP >= b ^ _TOP)


def remainder(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a - b (a / b) of int64 tensors with the bits of uint64."""
    return a - quotient(a, b) * b


def narrow(x: Any, dtype: torch.dtype) -> Any:
    """The other way; higher bits are cut off, as unsigned arithmetic does."""
    if isinstance(x, torch.Tensor) and x.dtype is torch.int64:
        return x.view(torch.uint64) if dtype is torch.uint64 else x.to(dtype)
    return x


def checked_sequence(v: Any, what: str) -> list:
    """A sequence operand. Raises OnnxError where it is something else."""
    if not isinstance(v, (list, tuple)):
        raise OnnxError(f"{what} is a {type(v).__name__}, not a sequence")
    return list(v)
