"""PyTorch's symbolic sizes as expressions of our own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Union

import torch

from shorthaul.frontends.functional import Unsupported
from shorthaul.ir.memlet import Condition
from shorthaul.symbolic import Expr, Symbol, evaluate, floordiv, free_symbols, maximum, minimum, mod, prove_eq

IntLike = Union[int, Expr]


# Relations of PyTorch's conditions: the relation of a difference to zero.
_RELATIONS: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "GreaterThan": ("ge", lambda a, b: a - b),
    "StrictGreaterThan": ("ge", lambda a, b: a - b - 1),
    "LessThan": ("ge", lambda a, b: b - a),
    "StrictLessThan": ("ge", lambda a, b: b - a - 1),
    "Equality": ("eq", lambda a, b: a - b),
}


_EXACT = 1 << 20  # largest denominator of a factor: with it the product of a factor and a size is exact in double precision


def scaled(e: Any) -> tuple[Any, Fraction] | None:
    """The size and the factor of a product that is rounded down to a whole number, as in ``int(1.5 * n)``; None for other expressions."""
    if type(e).__name__ not in ("TruncToInt", "FloorToInt") or not e.args[0].is_Mul or len(e.args[0].args) != 2:
        return None
    factor, size = sorted(e.args[0].args, key=lambda a: not a.is_number)
    if type(size).__name__ != "ToFloat" or not factor.is_number or factor <= 0 or not size.args[0].is_nonnegative:
        return None
    exact = Fraction(float(factor))
    return (size.args[0], exact) if exact.denominator <= _EXACT else None


class Sizes:
    """Converts SymInts; remembers the free symbols and the sizes they had in the example.

    known: symbols to use for some of PyTorch's, by PyTorch's name. late: symbols of sizes that depend on data, which a node must define;
    their hints are their upper bounds where they have any.
    """

    def __init__(self, known: Mapping[str, Symbol] | None = None) -> None:
        self._symbols: dict[str, Symbol] = dict(known or {})
        self.hints: dict[str, int] = {}
        self.late: set[Symbol] = set()
        self._cache: dict[Any, IntLike] = {}

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        return tuple(self._symbols.values())

    def convert(self, n: Any) -> IntLike:
        """An int stays; a SymInt becomes an expression."""
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

    def undefined(self, n: Any) -> bool:
        """Whether a SymInt is a size that depends on data and that nothing earlier has mentioned."""
        if not isinstance(n, torch.SymInt) or not n.node.expr.is_Symbol or self._hint(n.node) is not None:
            return False
        return n.node.expr not in self._cache and str(n.node.expr) not in self._symbols

    def item(self, n: torch.SymInt) -> tuple[Symbol | None, tuple[Condition, ...]]:
        """The symbol for an integer that is read from a tensor, and what must hold of it: PyTorch may know it to equal another size.

        None for one that is known without being read.
        """
        raw = n.node._expr
        if not raw.is_Symbol or self._hint_of(raw, n.node.shape_env) is not None:
            return None, ()
        symbol = self._symbols.get(str(raw))
        if symbol is None:
            symbol = self._add_late(raw, *self._range(raw, n.node.shape_env))
        return symbol, () if n.node.expr is raw else (Condition(symbol - self.convert(n), "eq"),)

    def stand_for(self, n: torch.SymInt, e: IntLike) -> None:
        """From now on PyTorch's symbol `n` means the expression `e`."""
        self._cache[n.node.expr] = e

    def bound(self, n: torch.SymInt, upper: IntLike) -> None:
        """A size that depends on data and that nothing has mentioned yet is at most `upper`, which may be an expression."""
        if str(n.node.expr) in self._symbols:
            return
        own = self._range(n.node.expr, n.node.shape_env)
        self._add_late(n.node.expr, own[0], upper if own[1] is None else minimum(own[1], upper))

    def condition(self, b: torch.SymBool) -> tuple[Condition, ...]:
        """A condition on sizes as a conjunction. Raises Unsupported for others."""
        unknown = [s for s in b.node.expr.free_symbols if str(s) not in self._symbols and s not in self._cache]
        found = None if unknown else self._conjunction(b.node.expr, b.node.shape_env)
        if found is None:
            raise Unsupported(f"the condition {b} on sizes that depend on data cannot be checked at run time")
        return found

    def _conjunction(self, e: Any, env: Any) -> tuple[Condition, ...] | None:
        kind = type(e).__name__
        if kind == "BooleanTrue":
            return ()
        if kind == "And":
            parts = [self._conjunction(a, env) for a in e.args]
            return None if any(p is None for p in parts) else tuple(c for p in parts for c in p)  # type: ignore[union-attr]
        if kind not in _RELATIONS:
            return None
        a, b = (self._of(x, env) for x in e.args)
        relation, difference = _RELATIONS[kind]
        d = difference(a, b)
        return (Condition(d, relation),)

    def _of(self, e: Any, env: Any) -> IntLike:
        if e.is_Integer:
            return int(e)
        if e.is_Symbol:
            found = self._cache.get(e)
            return self._symbol(e, env) if found is None else found
        if (product := scaled(e)) is not None:
            return floordiv(self._of(product[0], env) * product[1].numerator, product[1].denominator)
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
            hint = self._hint_of(e, env)
            lower, upper = self._range(e, env)
            if hint is None:
                return self._add_late(e, lower, upper)
            self.hints[name] = int(hint)
            self._symbols[name] = Symbol(name, lower=1 if lower is None else max(lower, 0), upper=upper)
        return self._symbols[name]

    def _add_late(self, e: Any, lower: int | None, upper: IntLike | None) -> Symbol:
        name = str(e)
        s = self._symbols[name] = Symbol(name, lower=lower, upper=upper)
        self.late.add(s)
        guess = upper if isinstance(upper, int) else None
        if isinstance(upper, Expr) and all(t.name in self.hints for t in free_symbols(upper)):
            guess = int(evaluate(upper, {t: self.hints[t.name] for t in free_symbols(upper)}))
        self.hints[name] = 64 if guess is None else guess
        return s

    def _range(self, e: Any, env: Any) -> tuple[int | None, int | None]:
        bound = env.var_to_range.get(e)
        if bound is None:
            return None, None
        lower = int(bound.lower) if bound.lower.is_Integer and int(bound.lower) > -(2**31) else None
        upper = int(bound.upper) if bound.upper.is_Integer and int(bound.upper) < 2**31 else None
        return lower, upper

    def _hint(self, node: Any) -> Any:
        return self._hint_of(node.expr, node.shape_env)

    def _hint_of(self, e: Any, env: Any) -> Any:
        return (env.backed_var_to_val if hasattr(env, "backed_var_to_val") else env.var_to_val).get(e)  # the name before torch 2.11
