"""Floor division and remainder, simplified as they are built, and the recombination of the two.

`divide` computes quotient and remainder together, so that ``divide(x, d)`` always satisfies x = q * d + m. Its steps:

1. Terms divisible by d leave: (h*D + d)//D -> h + d//D. With ``multiple_of``, N//4 is an exact quotient.
2. Where bounds prove k*d <= rest < (k+1)*d, the rest is settled: (h*D + d)//D -> h, (h*D + d)%D -> d.
3. A common factor g of d and some terms, when what remains is proven to lie in 0 .. g-1, is divided out:
   (24*n + 6*c + p)//48 -> n//2 when 0 <= 6*c + p < 24.
4. Nested pairs: (x//a)//b -> x//(a*b), (x%a)%b -> x%b where b divides a, (x%(a*b))//a -> (x//a)%b.

The divisor is assumed not to be zero. Rounding is down, as in Python.
"""

from __future__ import annotations

import math

from .bounds import bounds, is_nonnegative, is_positive, remove_factors, upper_bound
from .expr import (
    Atom,
    Expr,
    FloorDiv,
    IntLike,
    Mod,
    Monomial,
    accumulate,
    checked,
    intern_sum,
    make_sum,
    monomial_expr,
    terms_of,
)

Division = tuple[IntLike, IntLike]
_DIVISIONS: dict[tuple[IntLike, IntLike], Division] = {}


def floordiv(x: IntLike, d: IntLike) -> IntLike:
    """x // d, rounded down.

    >>> from shorthaul.symbolic import index
    >>> h, w = index("h", 7), index("w", 5)
    >>> floordiv(h * 5 + w, 5)
    h
    """
    return divide(checked(x), checked(d))[0]


def mod(x: IntLike, d: IntLike) -> IntLike:
    """x % d, with the sign of d."""
    return divide(checked(x), checked(d))[1]


def ceildiv(x: IntLike, d: IntLike) -> IntLike:
    """x / d rounded up, for d > 0."""
    x, d = checked(x), checked(d)
    return divide(x + (d - 1), d)[0]


def divide(x: IntLike, d: IntLike) -> Division:
    """(x // d, x % d). Raises ZeroDivisionError when d is the constant 0."""
    if isinstance(d, int):
        if isinstance(x, int):
            return divmod(x, d)
        if d == 1:
            return x, 0
        if d == 0:
            raise ZeroDivisionError(f"division of {x} by zero")
    key = (x, d)
    result = _DIVISIONS.get(key)
    if result is None:
        if isinstance(d, int):
            if d < 0:
                q, m = divide(-x, -d)
                result = q, -m
            else:
                result = _divide_by_constant(x, d)  # type: ignore[arg-type]
        else:
            result = _divide_by_expr(x, d)
        _DIVISIONS[key] = result
    return result


def _divide_by_constant(x: Expr, d: int) -> Division:
    quotient: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    exact: IntLike = 0
    for mono, c in x.terms.items():
        k = c // d if c >= 0 else -(-c // d)
        c -= k * d
        if k:
            quotient[mono] = k
        if c:
            multiple = c
            for atom in mono:
                multiple *= atom.multiple
            if multiple % d == 0:
                exact = exact + _exact_quotient_of_term(mono, c, d)
            else:
                rest[mono] = c
    k, const = divmod(x.const, d)
    q = make_sum(quotient, k, x.has_division) + exact
    if not rest:
        return q, const
    r = make_sum(rest, const, x.has_division)
    if isinstance(r, int):
        return q + r // d, r % d
    low, high = bounds(r)
    if low is not None and high is not None and low // d == high // d:
        return q + low // d, r - low // d * d
    for g in sorted({math.gcd(c, d) for c in r.terms.values()}, reverse=True):
        if g == 1 or g == d:
            continue
        taken = {mono: c // g for mono, c in r.terms.items() if c % g == 0}
        left = intern_sum({mono: c for mono, c in r.terms.items() if c % g}, r.const)
        low, high = bounds(left)
        if low is not None and high is not None and low // g == high // g:
            q2, m2 = divide(make_sum(taken, low // g, r.has_division), d // g)
            return q + q2, m2 * g + (left - low // g * g)
    q2, m2 = _undivided(r, d)
    return q + q2, m2


def _exact_quotient_of_term(mono: Monomial, c: int, d: int) -> IntLike:
    """c * mono / d, where d is known to divide it through `multiple_of`."""
    g = math.gcd(c, d)
    c, d = c // g, d // g
    for at, atom in enumerate(mono):
        if atom.multiple % d == 0:
            return monomial_expr(mono[:at] + mono[at + 1 :], c) * FloorDiv(atom, d)
    return FloorDiv(monomial_expr(mono), d) * c


def _divide_by_expr(x: IntLike, d: Expr) -> Division:
    if x is d:
        return 1, 0
    if isinstance(x, int) and x == 0:
        return 0, 0
    if not is_positive(d):
        high = upper_bound(d)
        if high is not None and high < 0:
            q, m = divide(-x, -d)
            return q, -m
    positive = is_positive(d)
    if len(d.terms) == 1 and not d.const:
        q, r = _split_by_term(x, d)
    else:
        q, r = _split_by_sum(x, d)
    if isinstance(r, int) and r == 0:
        return q, 0
    if positive:
        settled = _settle(r, d)
        if settled is not None:
            return q + settled[0], settled[1]
        if len(d.terms) == 1 and not d.const and isinstance(r, Expr):
            reduced = _divide_out_factor(r, d)
            if reduced is not None:
                return q + reduced[0], reduced[1]
    q2, m2 = _undivided(r, d)
    return q + q2, m2


def _settle(r: IntLike, d: Expr) -> Division | None:
    """(r // d, r % d) where bounds prove that it is 0 or -1, for positive d."""
    if is_nonnegative(r):
        return (0, r) if is_nonnegative(d - 1 - r) else None
    if is_nonnegative(-1 - r) and is_nonnegative(r + d):
        return -1, r + d
    return None


def _split_by_term(x: IntLike, d: Expr) -> Division:
    """Split x = q * d + r for a divisor of one term, taking every term that d divides."""
    ((factor, coefficient),) = d.terms.items()
    terms, const = terms_of(x)
    quotient: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    k0 = 0
    for mono, c in terms.items():
        left = remove_factors(mono, factor)
        k = 0
        if left is not None:
            k = abs(c) // abs(coefficient) * (1 if (c < 0) == (coefficient < 0) else -1)
        if k:
            if left:
                quotient[left] = k
            else:
                k0 = k
        if c - k * coefficient:
            rest[mono] = c - k * coefficient
    return make_sum(quotient, k0, True), make_sum(rest, const, True)


def _split_by_sum(x: IntLike, d: Expr) -> Division:
    """Polynomial division by a sum such as N + 1; taken only where it leaves nothing or less than d."""
    if isinstance(x, int):
        return 0, x
    degree = max(len(mono) for mono in d.terms)
    for lead, coefficient in d.terms.items():
        if len(lead) < degree:
            continue
        q: IntLike = 0
        r: IntLike = x
        for _ in range(8):
            found = _divisible_term(r, lead, coefficient)
            if found is None:
                break
            q, r = q + found, r - found * d
        if (isinstance(r, int) and r == 0) or (
            not (isinstance(q, int) and q == 0) and is_nonnegative(r) and is_nonnegative(d - 1 - r)
        ):
            return q, r
    return 0, x


def _divisible_term(r: IntLike, lead: Monomial, coefficient: int) -> IntLike | None:
    if isinstance(r, Expr):
        for mono, c in r.terms.items():
            left = remove_factors(mono, lead)
            if left is not None and c % coefficient == 0:
                return monomial_expr(left, c // coefficient)
    return None


def _divide_out_factor(r: Expr, d: Expr) -> Division | None:
    """Step 3 for a divisor of one term: (g*y + b) / (g*e) with 0 <= b < g."""
    ((factor, coefficient),) = d.terms.items()
    candidates: dict[tuple[Monomial, int], None] = {}
    for mono, c in r.terms.items():
        common: list[Atom] = []
        left = list(mono)
        for atom in factor:
            if atom in left:
                left.remove(atom)
                common.append(atom)
        candidates[tuple(common), math.gcd(c, coefficient)] = None
    for common_factor, g in sorted(candidates, key=lambda k: (-len(k[0]), -k[1])):
        if not common_factor and g == 1:
            continue
        divisor = monomial_expr(common_factor, g)
        if divisor is d:
            continue
        taken: dict[Monomial, int] = {}
        k0 = 0
        left_terms: dict[Monomial, int] = {}
        for mono, c in r.terms.items():
            rest = remove_factors(mono, common_factor)
            if rest is None or c % g:
                left_terms[mono] = c
            elif rest:
                taken[rest] = c // g
            else:
                k0 = c // g
        low = make_sum(left_terms, r.const, r.has_division)
        if is_nonnegative(low) and is_nonnegative(divisor - 1 - low):
            other = monomial_expr(remove_factors(factor, common_factor) or (), coefficient // g)
            q, m = divide(make_sum(taken, k0, r.has_division), other)
            return q, m * divisor + low
    return None


def _undivided(r: IntLike, d: IntLike) -> Division:
    """Quotient and remainder as atoms, after the rules for nested pairs."""
    if isinstance(r, Expr) and r.has_division and is_positive(d):
        if len(r.terms) == 1:
            ((mono, c),) = r.terms.items()
            atom = mono[0]
            if len(mono) == 1 and c == 1:
                if isinstance(atom, FloorDiv) and is_positive(atom.divisor):
                    q = divide(atom.dividend + r.const * atom.divisor, atom.divisor * d)[0]
                    return q, Mod(r, d)
                if isinstance(atom, Mod) and r.const == 0:
                    b, left = divide(atom.divisor, d)
                    if isinstance(left, int) and left == 0 and is_positive(b):
                        return divide(divide(atom.dividend, d)[0], b)[1], divide(atom.dividend, d)[1]
        flat = _without_inner_mods(r, d)
        if flat is not r:
            return FloorDiv(r, d), divide(flat, d)[1]
    return FloorDiv(r, d), Mod(r, d)


def _without_inner_mods(r: Expr, d: IntLike) -> IntLike:
    """An expression equal to r modulo d, with c * (x % a) replaced by c * x where d divides c * a."""
    terms: dict[Monomial, int] = {}
    const, changed = r.const, False
    for mono, c in r.terms.items():
        for at, atom in enumerate(mono):
            if isinstance(atom, Mod):
                others = monomial_expr(mono[:at] + mono[at + 1 :], c)
                left = divide(others * atom.divisor, d)[1]
                if isinstance(left, int) and left == 0:
                    more, k = terms_of(others * atom.dividend)
                    accumulate(terms, more, 1)
                    const += k
                    changed = True
                    break
        else:
            accumulate(terms, {mono: c}, 1)
    return make_sum(terms, const, True) if changed else r


# Recombination: what a sum does with quotients and remainders that belong together


def combine(terms: dict[Monomial, int], const: int) -> tuple[dict[Monomial, int], int]:
    """Apply d * (x//d) + x%d -> x, a * ((x//a)%b) + x%a -> x%(a*b), and d * (x//d) -> x where d divides x."""
    changed = True
    while changed:
        changed = False
        for mono, c in terms.items():
            for at, atom in enumerate(mono):
                if not atom.has_division:
                    continue
                others = mono[:at] + mono[at + 1 :]
                if isinstance(atom, FloorDiv):
                    new = _combine_exact(terms, const, mono, c, others, atom) if atom.exact else None
                elif isinstance(atom, Mod):
                    new = _combine_remainder(terms, const, mono, c, others, atom)
                else:
                    new = None
                if new is not None:
                    terms, const = new
                    changed = True
                    break
            if changed:
                break
    return terms, const


def _combine_exact(
    terms: dict[Monomial, int], const: int, mono: Monomial, c: int, others: Monomial, atom: FloorDiv
) -> tuple[dict[Monomial, int], int] | None:
    if c % atom.divisor:  # type: ignore[operator]
        return None
    rest = dict(terms)
    del rest[mono]
    more, k = terms_of(monomial_expr(others, c // atom.divisor) * atom.dividend)  # type: ignore[operator,arg-type]
    accumulate(rest, more, 1)
    return rest, const + k


def _combine_remainder(
    terms: dict[Monomial, int], const: int, mono: Monomial, c: int, others: Monomial, atom: Mod
) -> tuple[dict[Monomial, int], int] | None:
    if len(terms) < 2:
        return None
    x, d = atom.dividend, atom.divisor
    q = divide(x, d)[0]
    factor = monomial_expr(others, c)
    wanted, k = terms_of(factor * d * q)
    if wanted and all(terms.get(m) == v for m, v in wanted.items()):
        rest = {m: v for m, v in terms.items() if m not in wanted and m is not mono}
        more, k2 = terms_of(factor * x)
        accumulate(rest, more, 1)
        return rest, const - k + k2
    if isinstance(d, int):
        for m, v in terms.items():
            if v == c * d and m is not mono:
                for at, other in enumerate(m):
                    if isinstance(other, Mod) and other.dividend is q and m[:at] + m[at + 1 :] == others:
                        rest = {n: u for n, u in terms.items() if n is not m and n is not mono}
                        more, k = terms_of(factor * divide(x, other.divisor * d)[1])
                        accumulate(rest, more, 1)
                        return rest, const + k
    return None
