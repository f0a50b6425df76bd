"""PyTorch's symbolic sizes as expressions of our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Union

import torch

from shorthaul.frontends.functional import Unsupported
from shorthaul.symbolic import Expr, Symbol, floordiv, maximum, minimum, mod, prove_eq

IntLike = Union[int, Expr]


class Sizes:
    """Converts SymInts; remembers the free symbols and the sizes they had in the example.

    known: symbols to use for some of PyTorch's, by PyTorch's name.
    """

    def __init__(self, known: Mapping[str, Symbol] | None = None) -> None:
        self._symbols: dict[str, Symbol] = dict(known or {})
        self.hints: dict[str, int] = {}
        self._cache: dict[Any, IntLike] = {}

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        return tuple(self._symbols.values())

    def convert(self, n: Any) -> IntLike:
        """An int stays; a SymInt becomes an expression. Raises Unsupported for a size that is data."""
        if not isinstance(n, torch.SymInt):
            return int(n)
        e = n.node.expr
        if e.is_number:
            return int(e)
        found = self._cache.get(e)
        if found is None:
            found = self._cache[e] = self._of(e, n.node.shape_env)
        return found

    def same(self, a: Sequence[IntLike], b: Sequence[IntLike]) -> bool:
        """Whether two shapes are not provably different."""
        return len(a) == len(b) and all(x is y or x == y or prove_eq(x, y) is not False for x, y in zip(a, b, strict=True))

    def _of(self, e: Any, env: Any) -> IntLike:
        if e.is_Integer:
            return int(e)
        if e.is_Symbol:
            return self._symbol(e, env)
        args = [self._of(a, env) for a in e.args]
        kind = type(e).__name__
        if kind == "Add":
            total: IntLike = 0
            for a in args:
                total = total + a
            return total
        if kind == "Mul":
            result: IntLike = 1
            for a in args:
                result = result * a
            return result
        if kind == "Pow" and isinstance(args[1], int) and args[1] >= 0:
            result = 1
            for _ in range(args[1]):
                result = result * args[0]
            return result
        if kind in ("FloorDiv", "CleanDiv"):
            return floordiv(args[0], args[1])
        if kind in ("Mod", "PythonMod"):
            return mod(args[0], args[1])
        if kind == "Max":
            return maximum(*args)
        if kind == "Min":
            return minimum(*args)
        raise Unsupported(f"the size {e} uses {kind}, which index expressions do not have")

    def _symbol(self, e: Any, env: Any) -> Symbol:
        name = str(e)
        if name not in self._symbols:
            known = env.backed_var_to_val if hasattr(env, "backed_var_to_val") else env.var_to_val  # the name before torch 2.11
            hint = known.get(e)
            if hint is None:
                raise Unsupported(f"the size {e} is data (known only at run time)")
            self.hints[name] = int(hint)
            bound = env.var_to_range.get(e)
            lower = int(bound.lower) if bound is not None and bound.lower.is_Integer else 1
            upper = int(bound.upper) if bound is not None and bound.upper.is_Integer and int(bound.upper) < 2**31 else None
            self._symbols[name] = Symbol(name, lower=max(lower, 0), upper=upper)
        return self._symbols[name]
