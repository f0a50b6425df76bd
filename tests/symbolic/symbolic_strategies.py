"""Random expressions over small bounded symbols, beside the same expressions as Python functions of the values."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from hypothesis import strategies as st

from shorthaul.symbolic import IntLike, Symbol, ceildiv, index, maximum, minimum

N = Symbol("N", 1, 4)
M = Symbol("M", 1, 3)
K = Symbol("K", 4, 8, multiple_of=4)
I = index("i", N)
J = index("j", M)
U = Symbol("u", -3, 4)
V = index("v", 6)
SYMBOLS = (N, M, K, I, J, U, V)

Point = dict[Symbol, int]


def points(symbols: frozenset[Symbol] | tuple[Symbol, ...]) -> Iterator[Point]:
    """All values of the symbols (and of those that bound them) within their bounds."""
    needed = [s for s in SYMBOLS if s in symbols or (s is N and I in symbols) or (s is M and J in symbols)]
    ranges = []
    for s in needed:
        top = {I: 3, J: 2}.get(s, s.upper)
        low = s.lower
        ranges.append(range(low, top + 1, s.multiple_of))
    for values in itertools.product(*ranges):
        point = dict(zip(needed, values))
        if (I not in point or point[I] < point[N]) and (J not in point or point[J] < point[M]):
            yield point


Pair = tuple[IntLike, Callable[[Point], int]]


def _binary(operation: str, a: Pair, b: Pair) -> Pair:
    (x, f), (y, g) = a, b
    if operation == "+":
        return x + y, lambda p: f(p) + g(p)
    if operation == "-":
        return x - y, lambda p: f(p) - g(p)
    if operation == "*":
        return x * y, lambda p: f(p) * g(p)
    if operation == "min":
        return minimum(x, y), lambda p: min(f(p), g(p))
    return maximum(x, y), lambda p: max(f(p), g(p))


def _divided(operation: str, a: Pair, b: Pair) -> Pair:
    (x, f), (y, g) = a, b
    if operation == "//":
        return x // y, lambda p: f(p) // g(p)
    if operation == "ceil":
        return ceildiv(x, y), lambda p: -(-f(p) // g(p))
    return x % y, lambda p: f(p) % g(p)


def _leaf(s: Symbol) -> Pair:
    return s, lambda p: p[s]


def _constant(k: int) -> Pair:
    return k, lambda p: k


_leaves = st.one_of(st.sampled_from(SYMBOLS).map(_leaf), st.integers(-7, 12).map(_constant))
_divisors = st.one_of(
    st.sampled_from([2, 3, 4, 6, 8, 12, 24, -2, -3]).map(_constant),
    st.sampled_from([N, M, K]).map(_leaf),
    st.sampled_from([(N, M), (N, K), (M, K)]).map(lambda t: _binary("*", _leaf(t[0]), _leaf(t[1]))),
    st.sampled_from([N, M]).map(lambda s: _binary("+", _leaf(s), _constant(1))),
    st.sampled_from([N, M]).map(lambda s: _binary("*", _leaf(s), _constant(2))),
)
_positive_divisors = _divisors.filter(lambda d: not isinstance(d[0], int) or d[0] > 0)


def _extend(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    return st.one_of(
        st.builds(_binary, st.sampled_from("++-"), inner, inner),
        st.builds(_binary, st.just("*"), inner, st.one_of(_leaves, inner)),
        st.builds(_binary, st.sampled_from(["min", "max"]), inner, inner),
        st.builds(_divided, st.sampled_from(["//", "%"]), inner, _divisors),
        st.builds(_divided, st.sampled_from(["//", "%", "ceil"]), inner, _positive_divisors),
    )


expressions = st.recursive(_leaves, _extend, max_leaves=10)
"""(expression, the function of a point that it must equal)."""

divisors = _divisors


@st.composite
def divided_sums(draw: st.DrawFn) -> Pair:
    """A sum with coefficients that share factors with the divisor, divided once or twice."""
    total = _constant(draw(st.integers(-9, 30)))
    for s in draw(st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=4, unique=True)):
        factor = draw(st.sampled_from([1, 1, 2, 3, 4, 6, 8, 12, 24, -1, -2, -4, -6, N, M, K]))
        factor = _leaf(factor) if isinstance(factor, Symbol) else _constant(factor)
        total = _binary("+", total, _binary("*", _leaf(s), factor))
    for _ in range(draw(st.integers(1, 2))):
        total = _divided(draw(st.sampled_from(["//", "%"])), total, draw(_divisors))
    return total


@st.composite
def reshape_chains(draw: st.DrawFn) -> Pair:
    """Row-major index, flattened and unflattened again with other extents: what reshapes produce."""
    extents = draw(st.lists(st.sampled_from([2, 3, 4, N, M, K]), min_size=1, max_size=2))
    e, f = _leaf(draw(st.sampled_from([I, V])))
    for extent in extents:
        inner = draw(st.sampled_from([_leaf(J), _leaf(I), _constant(0), _constant(1)]))
        e, f = _binary(
            "+", _binary("*", (e, f), _leaf(extent) if isinstance(extent, Symbol) else _constant(extent)), inner
        )
    for _ in range(draw(st.integers(1, 3))):
        divisor = draw(_positive_divisors)
        quotient, rest = _divided("//", (e, f), divisor), _divided("%", (e, f), divisor)
        e, f = draw(st.sampled_from([quotient, rest, _binary("+", _binary("*", quotient, divisor), rest)]))
    return e, f
