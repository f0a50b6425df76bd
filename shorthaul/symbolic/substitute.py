"""Substitution, evaluation and affine decomposition of expressions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .division import divide
from .expr import (
    Atom,
    Expr,
    FloorDiv,
    IntLike,
    Max,
    Min,
    Mod,
    Monomial,
    Symbol,
    accumulate,
    checked,
    free_symbols,
    make_sum,
    summation,
    terms_of,
)
from .extrema import rebuild


def substitute(e: IntLike, replacements: Mapping[Symbol, IntLike]) -> IntLike:
    """``e`` with symbols replaced, all at once, and simplified again.

    The bounds of the symbols that stay are not rewritten. What replaces a symbol must lie within its bounds: ``e`` may
    have been simplified with them.

    >>> i, j = Symbol("i"), Symbol("j")
    >>> substitute(i - 2 * j, {i: j, j: i})
    j - 2*i
    """
    e = checked(e)
    if isinstance(e, int):
        return e
    if not isinstance(e, Symbol) and free_symbols(e).isdisjoint(replacements):
        return e
    memo: dict[Expr, IntLike] = {}
    for symbol, value in replacements.items():
        if not isinstance(symbol, Symbol):
            raise TypeError(f"substitute replaces Symbols, got the key {symbol!r} of type {type(symbol).__name__}")
        memo[symbol] = checked(value)
    return _substitute(e, memo)


def _substitute(e: IntLike, memo: dict[Expr, IntLike]) -> IntLike:
    if isinstance(e, int):
        return e
    result = memo.get(e)
    if result is not None:
        return result
    if isinstance(e, Symbol):
        return e
    if isinstance(e, (FloorDiv, Mod)):
        x, d = _substitute(e.dividend, memo), _substitute(e.divisor, memo)
        result = e if x is e.dividend and d is e.divisor else divide(x, d)[isinstance(e, Mod)]
    elif isinstance(e, (Min, Max)):
        result = rebuild(e, [_substitute(a, memo) for a in e.args])
    else:
        terms: dict[Monomial, int] = {}
        const, division = e.const, False
        for mono, c in e.terms.items():
            value: IntLike = c
            if len(mono) == 1:
                value = _substitute(mono[0], memo)
                more, k = terms_of(value)
                accumulate(terms, more, c)
                const += c * k
            else:
                for atom in mono:
                    value = _substitute(atom, memo) * value
                more, k = terms_of(value)
                accumulate(terms, more, 1)
                const += k
            division = division or (isinstance(value, Expr) and value.has_division)
        result = make_sum(terms, const, division)
    memo[e] = result
    return result


def evaluate(e: IntLike, values: Mapping[Symbol, int] | Mapping[str, int]) -> int:
    """The value of ``e`` where ``values`` gives that of each symbol, by Symbol or by name.

    Raises KeyError that names a symbol without a value, ZeroDivisionError where a divisor is zero.

    >>> from shorthaul.symbolic import index
    >>> evaluate(index("i", 10) // 3 * 5, {"i": 7})
    10
    """
    return e if isinstance(e, int) else _evaluate(checked(e), values, {})


def _evaluate(e: IntLike, values: Mapping, memo: dict[Expr, int]) -> int:
    if isinstance(e, int):
        return e
    result = memo.get(e)
    if result is not None:
        return result
    if isinstance(e, Symbol):
        if e in values:
            result = values[e]
        elif e.name in values:
            result = values[e.name]
        else:
            known = ", ".join(sorted(str(k) for k in values)) or "none"
            raise KeyError(f"no value for symbol {e.name!r}; values were given for: {known}")
        if type(result) is not int:
            number = checked(result)
            if isinstance(number, Expr):
                raise TypeError(f"the value of symbol {e.name!r} must be an integer, got the expression {number}")
            result = number
    elif isinstance(e, FloorDiv):
        result = _evaluate(e.dividend, values, memo) // _evaluate(e.divisor, values, memo)
    elif isinstance(e, Mod):
        result = _evaluate(e.dividend, values, memo) % _evaluate(e.divisor, values, memo)
    elif isinstance(e, (Min, Max)):
        args = [_evaluate(a, values, memo) for a in e.args]
        result = min(args) if isinstance(e, Min) else max(args)
    else:
        result = e.const
        for mono, c in e.terms.items():
            for atom in mono:
                c *= _evaluate(atom, values, memo)
            result += c
    memo[e] = result
    return result


def affine(e: IntLike, symbols: Iterable[Symbol]) -> tuple[dict[Symbol, IntLike], IntLike] | None:
    """``(coefficients, rest)`` with e = sum of coefficient * symbol + rest, free of the given symbols; None if not so.

    Only symbols with a non-zero coefficient are in the dictionary.

    >>> N, i, j = Symbol("N"), Symbol("i"), Symbol("j")
    >>> affine(i * N + 2 * j + N + 1, [i, j])
    ({i: N, j: 2}, N + 1)
    >>> affine(i % 4, [i]) is None
    True
    """
    e = checked(e)
    wanted = frozenset(symbols)
    if isinstance(e, int) or free_symbols(e).isdisjoint(wanted):
        return {}, e
    parts: dict[Atom, tuple[dict[Monomial, int], int]] = {}
    rest: dict[Monomial, int] = {}
    for mono, c in e.terms.items():
        factors = [at for at, atom in enumerate(mono) if not free_symbols(atom).isdisjoint(wanted)]
        if not factors:
            rest[mono] = c
            continue
        if len(factors) > 1 or not isinstance(mono[factors[0]], Symbol):
            return None
        at = factors[0]
        terms, const = parts.get(mono[at], ({}, 0))
        others = mono[:at] + mono[at + 1 :]
        if others:
            terms[others] = c
        else:
            const = c
        parts[mono[at]] = terms, const
    coefficients = {s: make_sum(terms, const, e.has_division) for s, (terms, const) in parts.items()}
    coefficients = {s: c for s, c in coefficients.items() if not (isinstance(c, int) and c == 0)}
    return coefficients, make_sum(rest, e.const, e.has_division)  # type: ignore[return-value]


def expand_remainders(e: IntLike) -> IntLike:
    """``e`` with every x % d written as x - d * (x//d): longer, but two equal expressions more often coincide."""
    if isinstance(e, int) or not e.has_division:
        return e
    return _expand(e, {})


def _expand(e: IntLike, memo: dict[Expr, IntLike]) -> IntLike:
    if isinstance(e, (int, Symbol)) or not e.has_division:
        return e
    result = memo.get(e)
    if result is None:
        if isinstance(e, (FloorDiv, Mod)):
            x, d = _expand(e.dividend, memo), _expand(e.divisor, memo)
            q = divide(x, d)[0]
            result = q if isinstance(e, FloorDiv) else x - d * q
        else:
            values = []
            for mono, c in e.terms.items():
                value: IntLike = c
                for atom in mono:
                    value = _expand(atom, memo) * value
                values.append(value)
            result = summation(values) + e.const
        memo[e] = result
    return result
