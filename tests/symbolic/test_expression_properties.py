"""Random expressions against brute force over all values of their symbols."""

from __future__ import annotations

import copy
import json
import pickle

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from symbolic_strategies import SYMBOLS, U, V, divided_sums, divisors, expressions, points, reshape_chains

from shorthaul.symbolic import (
    Expr,
    affine,
    bounds,
    evaluate,
    free_symbols,
    from_json,
    prove_divisible,
    prove_eq,
    prove_le,
    prove_lt,
    substitute,
    to_json,
    to_python,
    to_text,
)

quick = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
anything = st.one_of(expressions, reshape_chains(), divided_sums())


def sample(k: int):
    """Every k-th point over all symbols, with an odd stride so that all residues occur."""
    return [p for at, p in enumerate(points(SYMBOLS)) if at % k == 0]


EVERY = sample(11)


@quick
@given(anything)
def test_simplification_never_changes_the_value(pair):
    e, f = pair
    for p in EVERY:
        assert evaluate(e, p) == f(p), f"{e} at {p}"


@quick
@given(anything)
def test_bounds_contain_every_value(pair):
    e, _ = pair
    low, high = bounds(e)
    for p in points(free_symbols(e)):
        value = evaluate(e, p)
        assert low is None or low <= value, f"{e} = {value} at {p}"
        assert high is None or value <= high, f"{e} = {value} at {p}"


@quick
@given(anything, anything)
def test_proofs_agree_with_brute_force(a, b):
    x, y = a[0], b[0]
    pairs = [(evaluate(x, p), evaluate(y, p)) for p in points(free_symbols(x) | free_symbols(y))]
    for prove, holds in (
        (prove_le, lambda u, v: u <= v),
        (prove_lt, lambda u, v: u < v),
        (prove_eq, lambda u, v: u == v),
    ):
        proof = prove(x, y)
        if proof is not None:
            assert all(holds(u, v) is proof for u, v in pairs), f"{prove.__name__}({x}, {y})"


@quick
@given(anything, divisors)
def test_proofs_of_divisibility_agree_with_brute_force(a, d):
    proof = prove_divisible(a[0], d[0])
    if proof is not None:
        for p in points(free_symbols(a[0]) | free_symbols(d[0])):
            assert (evaluate(a[0], p) % evaluate(d[0], p) == 0) is proof, f"{a[0]} by {d[0]} at {p}"


@quick
@given(anything, divisors)
def test_quotient_and_remainder_belong_together(a, d):
    x, y = a[0], d[0]
    assert prove_eq(x // y * y + x % y, x) is not False
    for p in EVERY:
        assert evaluate(x // y * y + x % y, p) == evaluate(x, p)


@quick
@given(expressions, st.sets(st.sampled_from(SYMBOLS), min_size=1, max_size=3))
def test_affine_reconstructs(pair, symbols):
    e, _ = pair
    parts = affine(e, symbols)
    if parts is None:
        assert free_symbols(e) & symbols
        return
    coefficients, rest = parts
    assert set(coefficients) <= symbols
    for part in (*coefficients.values(), rest):
        assert not free_symbols(part) & symbols
    assert sum((c * s for s, c in coefficients.items()), rest) is e or prove_eq(
        sum((c * s for s, c in coefficients.items()), rest), e
    )


@quick
@given(anything)
def test_round_trips_give_the_same_object(pair):
    e, _ = pair
    for other in (
        from_json(json.loads(json.dumps(to_json(e)))),
        pickle.loads(pickle.dumps(e)),
        copy.copy(e),
        copy.deepcopy(e),
    ):
        assert other is e or (isinstance(e, int) and other == e)


@quick
@given(anything)
def test_python_source_means_the_same(pair):
    e, _ = pair
    code = compile(to_python(e, lambda s: f"s_{s.name}"), "<expression>", "eval")
    text = compile(to_text(e), "<expression>", "eval")
    for p in EVERY[::7]:
        value = evaluate(e, p)
        assert eval(code, {f"s_{s.name}": v for s, v in p.items()}) == value
        assert eval(text, {s.name: v for s, v in p.items()}) == value
        assert evaluate(e, {s.name: v for s, v in p.items()}) == value


@quick
@given(anything)
def test_substitution_within_the_bounds_means_the_same(pair):
    e, _ = pair
    swapped = substitute(e, {V: 5 - V, U: V - 2})
    for p in EVERY[::3]:
        assert evaluate(swapped, p) == evaluate(e, {**p, V: 5 - p[V], U: p[V] - 2})
    for p in EVERY[::17]:
        value = substitute(e, p)
        assert type(value) is int
        assert value == evaluate(e, p)


@quick
@given(anything)
def test_results_without_symbols_are_integers(pair):
    e, _ = pair
    assert isinstance(e, Expr) == bool(free_symbols(e))
    assert type(e) is int or isinstance(e, Expr)
    assert free_symbols(e) <= {*SYMBOLS}
    assert type(e - e) is int
    assert e - e == 0
