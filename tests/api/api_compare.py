"""Compares an optimized module with the same module run by eager PyTorch, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

import shorthaul as sh
from shorthaul.ops.registry import ATEN

TOLERANCE = 1e-12  # of float64 runs, relative to the largest value: the sums are short


def assert_same(actual: Any, expected: Any, what: str = "values", equal_nan: bool = False) -> None:
    """Trees of the same structure with the same tensors (dtype, shape, requires_grad; values up to rounding)."""
    a, b = tree_leaves(actual), tree_leaves(expected)
    assert len(a) == len(b), f"{what}: {len(a)} leaves instead of {len(b)}"
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        assert type(x) is type(y), f"{what} {i}: {type(x)} instead of {type(y)}"
        if not isinstance(x, torch.Tensor):
            assert x == y, f"{what} {i}: {x} instead of {y}"
            continue
        assert (x.dtype, x.shape, x.requires_grad) == (y.dtype, y.shape, y.requires_grad), (
            f"{what} {i}: {describe(x)} instead of {describe(y)}"
        )
        x, y = x.detach(), y.detach()
        if x.dtype.is_floating_point:
            scale = y[y.isfinite()].abs().max().item() if y.isfinite().any() else 1.0
            assert torch.allclose(x, y, rtol=TOLERANCE, atol=TOLERANCE * max(scale, 1e-3), equal_nan=equal_nan), (
                f"{what} {i}: {x} instead of {y}"
            )
        else:
            assert torch.equal(x, y), f"{what} {i}: {x} instead of {y}"


def describe(t: torch.Tensor) -> str:
    return f"{t.dtype}{tuple(t.shape)} {'requires grad' if t.requires_grad else ''}"


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    return {n: p.grad for n, p in module.named_parameters()}


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.state_dict())


def forget_operators(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the ATen operators of these names have no registry entry."""
    for overload in [o for o in ATEN if o.split(".")[1] in names]:
        monkeypatch.delitem(ATEN, overload)


class Pair:
    """The same module twice: `eager`, and `ours` optimized (strict: no operator may fall back).

    `both(f)` runs f(module) on each from the same random state and compares what it returns, the gradients and the state.
    """

    def __init__(self, module: torch.nn.Module, *, strict: bool = True, level: int = 4) -> None:
        self.eager = module.double()
        self.ours = sh.optimize(copy.deepcopy(self.eager), strict=strict, level=level)

    @property
    def regions(self) -> list[Any]:
        return self.ours.report().regions

    def both(self, f: Callable[[torch.nn.Module], Any], equal_nan: bool = False) -> Any:
        results = []
        for m in (self.eager, self.ours):
            torch.manual_seed(1)
            results.append(f(m))
        assert_same(results[1], results[0], "result", equal_nan)
        assert_same(gradients(self.ours), gradients(self.eager), "gradient", equal_nan)
        assert_same(state(self.ours), state(self.eager), "state", equal_nan)
        return results[1]

    def step(self, *args: Any, equal_nan: bool = False, **kwargs: Any) -> Any:
        """One call and backward of all floating outputs that require grad, with weights; inputs that require grad are compared, too."""

        def run(m: torch.nn.Module) -> Any:
            inputs, named = fresh((args, kwargs))
            outputs = m(*inputs, **named)
            loss(outputs).backward()
            return outputs, [t.grad for t in tree_leaves((inputs, named)) if isinstance(t, torch.Tensor)]

        return self.both(run, equal_nan)


def fresh(tree: Any) -> Any:
    """Tensors of a tree as new leaves with the same values."""
    return tree_map(lambda t: t.detach().clone().requires_grad_(t.requires_grad) if isinstance(t, torch.Tensor) else t, tree)


def loss(outputs: Any) -> torch.Tensor:
    """A sum of all differentiable outputs with different weights for every element."""
    total = torch.zeros((), dtype=torch.float64)
    for i, t in enumerate(leaves(outputs)):
        if t.requires_grad:
            weights = torch.linspace(0.5, 1.5 + i, t.numel(), dtype=t.dtype).reshape(t.shape)
            total = total + (t * weights).sum()
    return total


def leaves(outputs: Any) -> Sequence[torch.Tensor]:
    found = []
    for t in tree_leaves(outputs, is_leaf=lambda v: hasattr(v, "__dataclass_fields__")):
        if hasattr(t, "__dataclass_fields__"):
            found += leaves([getattr(t, name) for name in t.__dataclass_fields__])
        elif isinstance(t, torch.Tensor):
            found.append(t)
    return found
