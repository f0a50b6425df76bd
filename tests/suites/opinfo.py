"""PyTorch's operator database against Shorthaul: forward and first gradient of every operator, compared with eager mode.

    python tests/suites/opinfo.py [--dtype float32] [--samples 3] [--start 0] [--count 70] [--results FILE] [--only NAME] [--imports]

runs entries of `op_db` through `torch.compile(backend="shorthaul")`, appends a JSON line an entry to the results file (entries that
stand there already are not run again) and prints the table. `--imports` stops after import and differentiation: it says what would be
a fallback, in a tenth of the time, and compares nothing.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import torch
from judging import SAMPLES, TOLERANCE, Case, Outcome, fresh, judge, run
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten, tree_map

UNINITIALIZED = {"empty", "empty_like", "new_empty", "new_empty_strided", "empty_strided", "empty_permuted"}


def entries(dtype: torch.dtype = torch.float32) -> list[Any]:
    """The entries of the database with samples of that dtype on the CPU and results that are defined."""
    return [op for op in op_db if dtype in op.dtypes and op.name not in UNINITIALIZED]


def evaluate(f: Callable[..., Any], s: Any) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    """Results of f on a sample, and the gradients of their sum (None where there is none)."""
    given, args, kwargs = fresh((s.input, s.args, s.kwargs))
    torch.manual_seed(0)
    outputs = [o for o in tree_flatten(f(given, *args, **kwargs))[0] if isinstance(o, torch.Tensor)]
    leaves = [t for t in tree_flatten((given, args, kwargs))[0] if isinstance(t, torch.Tensor) and t.requires_grad]
    wanted = [o for o in outputs if o.requires_grad and (o.is_floating_point() or o.is_complex())]
    if not wanted or not leaves:
        return outputs, []
    total = [o.abs().sum() if o.is_complex() else o.sum() for o in wanted]
    return outputs, list(torch.autograd.grad(total, leaves, allow_unused=True))


def outcome(op: Any, dtype: torch.dtype = torch.float32, samples: int = SAMPLES, compiles: bool = True) -> Outcome:
    """Run the first samples of an entry both ways. Samples that eager mode refuses do not count."""

    def case(i: int, s: Any) -> Case:
        return Case(
            f"sample {i}",
            lambda: evaluate(op.op, s),
            lambda backend: evaluate(torch.compile(lambda *a, **k: op.op(*a, **k), backend=backend), s),
            lambda actual, expected: compare(op, s, actual, expected, TOLERANCE[dtype]),
        )

    return judge(op.full_name, (case(i, s) for i, s in enumerate(_samples(op, dtype, samples))), compiles)


# entries whose float64 results or gradients are wrong in PyTorch beyond the tolerance, with what they should be: PyTorch's
# coefficients of the Bessel and Airy functions hold for float32, and the derivative of hardsigmoid is 1/6 rounded to float32
EXACT_RESULT: dict[str, Callable[[float], Any]] = {
    "special.airy_ai": mpmath.airyai,
    "special.bessel_j0": functools.partial(mpmath.besselj, 0),
    "special.bessel_j1": functools.partial(mpmath.besselj, 1),
    "special.bessel_y0": functools.partial(mpmath.bessely, 0),
    "special.bessel_y1": functools.partial(mpmath.bessely, 1),
}
EXACT_GRADIENT = {"nn.functional.hardsigmoid": lambda x: (x.abs() < 3).double() / 6}
INDICES = {"sort": 1, "argsort": 0}  # which result are the places of sorted values: any order of equal ones is right


def corrected(op: Any, s: Any, expected: Any) -> Any:
    """The expected values, with the right ones where eager's in float64 are not."""
    outputs, gradients = expected
    if op.full_name in EXACT_RESULT and s.input.dtype is torch.float64:
        f = EXACT_RESULT[op.full_name]
        points = s.input.detach().flatten().tolist()
        right = [float(f(x)) if math.isfinite(e) else e for x, e in zip(points, outputs[0].detach().flatten().tolist(), strict=True)]
        outputs = [torch.tensor(right, dtype=torch.float64).reshape(s.input.shape)]
    if op.full_name in EXACT_GRADIENT and s.input.dtype is torch.float64:
        gradients = [EXACT_GRADIENT[op.full_name](s.input.detach())]
    if op.full_name == "as_strided_scatter" and gradients:  # PyTorch gives what is overwritten the gradient, and the rest none
        ones, (src, *geometry) = torch.ones_like(s.input), s.args
        gradients = [torch.as_strided_scatter(ones, torch.zeros_like(src), *geometry, **s.kwargs).detach(), *gradients[1:]]
    return outputs, gradients


def by_value(op: Any, s: Any, values: Any) -> Any:
    """The values, with the places of sorted elements replaced by the elements there."""
    i = INDICES.get(op.full_name)
    if i is None or s.kwargs.get("stable") or not s.input.dim():
        return values
    outputs, gradients = list(values[0]), values[1]
    dim = s.kwargs.get("dim", next((a for a in s.args if type(a) is int), -1))
    once = outputs[i].sort(dim).values.movedim(dim, -1)
    assert torch.equal(once, torch.arange(once.shape[-1]).expand(once.shape)), "the places are no permutation"
    outputs[i] = s.input.detach().gather(dim, outputs[i])
    return outputs, gradients


def compare(op: Any, s: Any, actual: Any, expected: Any, tolerance: float) -> None:
    """Agreement with eager; where eager itself is further from float64 than the tolerance, an error of at most twice eager's."""
    actual, expected = by_value(op, s, actual), corrected(op, s, by_value(op, s, expected))
    try:
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    except AssertionError:
        exact = _flat(evaluate(op.op, _widened(s)))
        for a, e, x in zip(_flat(actual), _flat(expected), exact, strict=True):
            if not a.is_floating_point() or not torch.isfinite(x).all():
                torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance, equal_nan=True)
                continue
            allowed = tolerance * x.abs().max().item() if x.numel() else 0.0
            own, eager = ((v.double() - x).abs().max().item() if x.numel() else 0.0 for v in (a, e))
            if own > max(allowed, 2 * eager):
                raise


def _flat(values: Any) -> list[torch.Tensor]:
    return [v.detach() for v in tree_flatten(values)[0] if v is not None]


def _widened(s: Any) -> Any:
    """The sample in float64."""

    def wide(t: Any) -> Any:
        if not isinstance(t, torch.Tensor) or not t.is_floating_point():
            return torch.float64 if t in (torch.float32, torch.bfloat16, torch.float16) else t
        return t.detach().double().requires_grad_(t.requires_grad)

    return types.SimpleNamespace(**{k: tree_map(wide, getattr(s, k)) for k in ("input", "args", "kwargs")})


def _samples(op: Any, dtype: torch.dtype, count: int) -> Iterator[Any]:
    for i, s in enumerate(op.sample_inputs("cpu", dtype, requires_grad=op.supports_autograd)):
        if i >= count:
            return
        yield s


@functools.cache
def by_name() -> dict[str, Any]:
    return {op.full_name: op for op in op_db}


if __name__ == "__main__":
    run(__doc__, entries, lambda op: op.full_name, outcome)
