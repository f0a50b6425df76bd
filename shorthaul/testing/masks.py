"""Eager PyTorch with the random masks that an optimized module draws, so that networks with dropout can be compared.

    torch.manual_seed(7); loss_of(optimized(x)).backward()
    torch.manual_seed(7)
    with masks(plain):
        loss_of(plain(x)).backward()           # the same elements are dropped

An optimized forward draws one seed from PyTorch's generator. The number of an element depends on that seed, on the place of the
operator among the random operators of the forward, and on the element's position. `masks` draws the same seed at each call of the module
and answers its dropout, attention with dropout, uniform, normal and Bernoulli draws with the numbers of that rule, computed in
NumPy. It holds for a module that is captured as one graph.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from shorthaul.ir import philox


@contextlib.contextmanager
def masks(module: nn.Module) -> Iterator[None]:
    """While it is open, calls of `module` in eager mode draw the masks that the optimized module would draw at that point."""
    mode = _Masks()
    hook = module.register_forward_pre_hook(lambda *_: mode.start())
    try:
        with mode:
            yield
    finally:
        hook.remove()


class _Masks(TorchFunctionMode):
    """Answers random functions by the rule; `start` begins a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.seed: int | None = None
        self.stream = 0

    def start(self) -> None:
        with torch._C.DisableTorchFunction():
            self.seed = int(torch.empty((), dtype=torch.int64).random_())
        self.stream = 0

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """The numbers of the next random operator: float32 in [0, 1)."""
        return torch.from_numpy(self._draw(shape, 1)[0])

    def normal(self, shape: Sequence[int]) -> Tensor:
        """The numbers of the next random operator: float32, standard normal, by Box-Muller."""
        first, second = self._draw(shape, 2)
        return torch.from_numpy(np.sqrt(-2 * np.log1p(-first.astype(np.float64))) * np.cos(2 * np.pi * second.astype(np.float64))).float()

    def _draw(self, shape: Sequence[int], parts: int) -> list[np.ndarray]:
        if self.seed is None:
            raise RuntimeError("a random function was called outside of a call of the module given to masks()")
        position = np.arange(math.prod(shape), dtype=np.int64).reshape(tuple(shape))
        numbers = [philox.uniform(self.seed, (self.stream << 32) + (part << 31), position) for part in range(parts)]
        self.stream += 1
        return [np.array(n, order="C") for n in numbers]

    def dropped(self, x: Tensor, p: float) -> Tensor:
        keep = self.uniform(x.shape) >= p
        return torch.where(keep, x * (1 / (1 - p) if p < 1 else 0.0), torch.zeros((), dtype=x.dtype))

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        rule = _RULES.get(func)
        if rule is None:
            if func in _REFUSED:
                raise NotImplementedError(f"masks() has no rule for {func}")
            return func(*args, **(kwargs or {}))
        return rule(self, *args, **(kwargs or {}))


def _dropout(mode: _Masks, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training:
        return input
    found = mode.dropped(input, p)
    return input.copy_(found) if inplace else found


def _bernoulli_(mode: _Masks, x: Tensor, p: float = 0.5, *, generator: Any = None) -> Tensor:
    return x.copy_((mode.uniform(x.shape) < p).to(x.dtype))


def _attention(mode: _Masks, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
               is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False) -> Tensor:  # fmt: skip
    if not dropout_p:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if enable_gqa:
        raise NotImplementedError("masks() has no rule for attention with dropout and shared key heads")
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return mode.dropped(torch.softmax(scores, -1), dropout_p) @ value


def _like(draw: Callable[[_Masks, Sequence[int]], Tensor]) -> Callable[..., Tensor]:
    def rule(mode: _Masks, x: Tensor, *, dtype: torch.dtype | None = None, **placement: Any) -> Tensor:
        return draw(mode, x.shape).to(dtype or x.dtype)

    return rule


def _sized(draw: Callable[[_Masks, Sequence[int]], Tensor]) -> Callable[..., Tensor]:
    def rule(mode: _Masks, *size: Any, dtype: torch.dtype | None = None, requires_grad: bool = False, **placement: Any) -> Tensor:
        shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
        return draw(mode, shape).to(dtype or torch.get_default_dtype()).requires_grad_(requires_grad)

    return rule


def _uniform_(mode: _Masks, x: Tensor, low: float = 0.0, high: float = 1.0, *, generator: Any = None) -> Tensor:
    return x.copy_(mode.uniform(x.shape) * (high - low) + low)


def _normal_(mode: _Masks, x: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Tensor:
    return x.copy_(mode.normal(x.shape) * std + mean)


def _bernoulli(mode: _Masks, x: Tensor, *, generator: Any = None) -> Tensor:
    return (mode.uniform(x.shape) < x.float()).to(x.dtype)


_RULES: dict[Any, Callable[..., Any]] = {
    F.dropout: _dropout,
    Tensor.bernoulli_: _bernoulli_,
    F.scaled_dot_product_attention: _attention,
    torch.rand_like: _like(_Masks.uniform),
    torch.randn_like: _like(_Masks.normal),
    torch.rand: _sized(_Masks.uniform),
    torch.randn: _sized(_Masks.normal),
    torch.bernoulli: _bernoulli,
    Tensor.uniform_: _uniform_,
    Tensor.normal_: _normal_,
}
_REFUSED = {torch.randint, torch.randint_like, torch.randperm, torch.multinomial, torch.normal,
            F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}  # fmt: skip

__all__ = ["masks"]
