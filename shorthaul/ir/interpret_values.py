"""Evaluation of index expressions and scalar code on NumPy arrays, and merging of accumulators; used by the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Union

import numpy as np

from shorthaul.symbolic import Expr, FloorDiv, Max, Min, Mod, Symbol

from .dtypes import DType, bfloat16, bool_, float64, round_bfloat16
from .scalar import Scalar, read, walk
from .scalar_ops import COMBINERS, SCALAR_OPS, Combiner, identity

IntLike = Union[int, Expr]
Value = Union[int, np.ndarray]


def evaluate_index(e: IntLike, values: Mapping[Symbol, Value], memo: dict[Expr, Value]) -> Value:
    """The value of an index expression where symbols are integers or integer arrays that broadcast together."""
    if isinstance(e, int):
        return e
    if e in memo:
        return memo[e]
    if isinstance(e, Symbol):
        if e not in values:
            raise KeyError(f"symbol {e} has no value here")
        found = values[e]
    elif isinstance(e, FloorDiv):
        found = np.floor_divide(evaluate_index(e.dividend, values, memo), evaluate_index(e.divisor, values, memo))
    elif isinstance(e, Mod):
        found = np.mod(evaluate_index(e.dividend, values, memo), evaluate_index(e.divisor, values, memo))
    elif isinstance(e, (Min, Max)):
        pick = np.minimum if isinstance(e, Min) else np.maximum
        found = evaluate_index(e.args[0], values, memo)
        for a in e.args[1:]:
            found = pick(found, evaluate_index(a, values, memo))
    else:
        found = e.const
        for mono, c in e.terms.items():
            term: Value = c
            for atom in mono:
                term = term * evaluate_index(atom, values, memo)
            found = found + term
    memo[e] = found
    return found


class Arithmetic:
    """How values are held: as their NumPy type, or, with `wide`, every float as float64 without rounding."""

    def __init__(self, wide: bool = False) -> None:
        self.wide = wide

    def numpy(self, dtype: DType) -> np.dtype:
        return np.dtype(np.float64) if self.wide and dtype.is_float else dtype.numpy

    def store(self, values: np.ndarray, dtype: DType) -> np.ndarray:
        """Values as the dtype holds them: converted, and rounded for bfloat16."""
        if dtype is bool_:
            return np.asarray(values).astype(np.bool_)
        if dtype is bfloat16 and not self.wide:
            return round_bfloat16(np.asarray(values, np.float32))
        return np.asarray(values).astype(self.numpy(dtype), copy=False)

    def cast(self, values: np.ndarray, dtype: DType) -> np.ndarray:
        """PyTorch's conversion: floats to integers toward zero, anything to bool by `!= 0`."""
        if dtype is bool_:
            return np.asarray(values != 0)
        return self.store(values, dtype)

    def code(self, roots: Mapping[str, Scalar], reads: Callable[[str], np.ndarray],
             index: Callable[[IntLike], Value]) -> dict[str, np.ndarray]:  # fmt: skip
        """The value of each root; operands broadcast. `reads` gives the value of a read, `index` that of an index expression."""
        memo: dict[Scalar, np.ndarray] = {}
        for s in walk(*roots.values()):
            if s.op == "read":
                value = reads(s.attr)  # type: ignore[arg-type]
            elif s.op == "const":
                value = np.asarray(s.attr, self.numpy(s.dtype))
            elif s.op == "index":
                value = np.asarray(index(s.attr), np.int64)  # type: ignore[arg-type]
            elif s.op == "cast":
                value = self.cast(memo[s.args[0]], s.dtype)
            else:
                value = self.store(SCALAR_OPS[s.op].numpy(*(memo[a] for a in s.args)), s.dtype)
            memo[s] = value
        return {name: memo[s] for name, s in roots.items()}


def accumulator_dtype(dtype: DType) -> DType:
    """What a combining write of the dtype accumulates in: floats in float64."""
    return float64 if dtype.is_float else dtype


class Merge:
    """A combiner over accumulators of given dtypes, on arrays."""

    def __init__(self, combiner: str, dtypes: tuple[DType, ...]) -> None:
        self.combiner: Combiner = COMBINERS[combiner]
        self.identity = tuple(identity(combiner, i, d).attr for i, d in enumerate(dtypes))
        left = tuple(read(f"l{i}", d) for i, d in enumerate(dtypes))
        right = tuple(read(f"r{i}", d) for i, d in enumerate(dtypes))
        self._code = {str(i): s for i, s in enumerate(self.combiner.merge(left, right))}
        self._arithmetic = Arithmetic(wide=True)

    def __call__(self, left: list[np.ndarray], right: list[np.ndarray]) -> list[np.ndarray]:
        def value(name: str) -> np.ndarray:
            return (left if name[0] == "l" else right)[int(name[1:])]

        out = self._arithmetic.code(self._code, value, lambda e: e)  # type: ignore[arg-type,return-value]
        return [out[str(i)] for i in range(len(left))]

    def segments(self, keys: np.ndarray, parts: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Merge all elements of equal key, in their order: (distinct keys ascending, merged components).

        Neighbours are merged pairwise until one is left per key, so that rounding errors grow with the logarithm of the count.
        """
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        parts = [p[order] for p in parts]
        while keys.size:
            first = np.ones(keys.size, bool)
            first[1:] = keys[1:] != keys[:-1]
            starts = np.flatnonzero(first)
            rank = np.arange(keys.size) - starts[np.cumsum(first) - 1]
            left = np.flatnonzero(rank % 2 == 0)
            paired = np.zeros(left.size, bool)
            inner = left + 1 < keys.size
            paired[inner] = keys[left[inner] + 1] == keys[left[inner]]
            if not paired.any():
                break
            merged = self([p[left[paired]] for p in parts], [p[left[paired] + 1] for p in parts])
            parts = [p[left] for p in parts]
            for p, new in zip(parts, merged, strict=True):
                p[paired] = new
            keys = keys[left]
        return keys, parts

    def accumulate(self, parts: list[np.ndarray], axis: int) -> list[np.ndarray]:
        """All prefixes along an axis."""
        if self.combiner.numpy is not None:
            return [self.combiner.numpy.accumulate(parts[0], axis=axis)]
        moved = [np.moveaxis(p, axis, 0) for p in parts]
        out = [np.empty_like(p) for p in moved]
        state = [p[0] for p in moved] if moved[0].shape[0] else []
        for t in range(moved[0].shape[0]):
            state = self(state, [p[t] for p in moved]) if t else state
            for o, s in zip(out, state, strict=True):
                o[t] = s
        return [np.moveaxis(o, 0, axis) for o in out]
