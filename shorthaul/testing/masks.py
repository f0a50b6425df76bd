"""Eager PyTorch with the random masks that an optimized module draws, so that networks with dropout can be compared.

    torch.manual_seed(7); loss_of(optimized(x)).backward()
    torch.manual_seed(7)
    with masks(plain):
        loss_of(plain(x)).backward()           # the same elements are dropped

An optimized forward draws one seed from PyTorch's generator. The number of an element depends on that seed, on the place of the
operator among the random operators of the forward, and on the element's position. `masks` draws the same seed at each call of the module
and answers its dropout, attention with dropout and in-place Bernoulli draws with the numbers of that rule, computed in NumPy.
It holds for a module that is captured as one graph.
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
        if self.seed is None:
            raise RuntimeError("a random function was called outside of a call of the module given to masks()")
        position = np.arange(math.prod(shape), dtype=np.int64).reshape(tuple(shape))
        numbers = philox.uniform(self.seed, self.stream << 32, position)
        self.stream += 1
        return torch.from_numpy(np.ascontiguousarray(numbers))

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


_RULES: dict[Any, Callable[..., Any]] = {
    F.dropout: _dropout,
    Tensor.bernoulli_: _bernoulli_,
    F.scaled_dot_product_attention: _attention,
}
_REFUSED = {torch.rand_like, torch.randn_like, torch.bernoulli, Tensor.uniform_, Tensor.normal_,
            F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}  # fmt: skip

__all__ = ["masks"]
