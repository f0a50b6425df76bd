"""Constant bounds of expressions, by intervals and by elimination of symbols.

An interval alone cannot tell that ``N - 1 - i`` is never negative for ``i`` in 0 .. N - 1 when N is unbounded.
So a bound is also looked for by *elimination*: write e = q * s + r for a symbol s; where q is never negative,
e >= q * lower(s) + r, and where it is never positive, e >= q * upper(s) + r. The right side has no s (or a lower power
of it), and symbols whose bounds refer to other symbols go first. Quotients, remainders, minima and maxima are
replaced by what bounds them. This is Fourier-Motzkin elimination restricted to bounds that each symbol carries.

All results are sound; they are not always the tightest. Work is limited by *fuel*, a number of elimination steps.
"""

from __future__ import annotations

from .expr import (
    _UNSET,
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
    accumulate_product,
    checked,
    free_symbols,
    make_sum,
)

Interval = tuple[int | None, int | None]
Terms = dict[Monomial, int]
_FUEL = 40


def bounds(e: IntLike) -> Interval:
    """Inclusive constant bounds of every value of ``e``; None where none is known.

    >>> from shorthaul.symbolic import Symbol, index
    >>> bounds(2 * index("i", 5) + 1)
    (1, 9)
    >>> N = Symbol("N", lower=1)
    >>> bounds(N - 1 - index("i", N))
    (0, None)
    """
    e = checked(e)
    if isinstance(e, int):
        return e, e
    return lower_bound(e), upper_bound(e)


def lower_bound(e: IntLike) -> int | None:
    """The lower of `bounds`."""
    if isinstance(e, int):
        return e
    return e._lower if e._lower is not _UNSET else _bound(e, -1, [_FUEL])


def upper_bound(e: IntLike) -> int | None:
    """The upper of `bounds`."""
    if isinstance(e, int):
        return e
    return e._upper if e._upper is not _UNSET else _bound(e, 1, [_FUEL])


def is_nonnegative(e: IntLike) -> bool:
    """Whether ``e >= 0`` is proven."""
    low = e if isinstance(e, int) else lower_bound(e)
    return low is not None and low >= 0


def is_positive(e: IntLike) -> bool:
    """Whether ``e >= 1`` is proven."""
    low = e if isinstance(e, int) else lower_bound(e)
    return low is not None and low >= 1


def _bound(e: IntLike, side: int, fuel: list[int]) -> int | None:
    """The upper bound of ``e`` for side = 1, the lower for side = -1."""
    if isinstance(e, int):
        return e
    known = e._upper if side > 0 else e._lower
    if known is not _UNSET:
        return known
    interval, tight = _interval(e)
    if tight:
        e._lower, e._upper = interval
        return interval[side > 0]
    end = interval[side > 0]
    if fuel[0] <= 0:
        return end  # not cached: with more fuel it may be better
    end = _tighter(end, _eliminate(e, side, fuel), side)
    if fuel[0] > 0:
        if side > 0:
            e._upper = end
        else:
            e._lower = end
    return end


def _tighter(a: int | None, b: int | None, side: int) -> int | None:
    if a is None or b is None:
        return b if a is None else a
    return min(a, b) if side > 0 else max(a, b)


def _loosest(values: list[int | None], side: int) -> int | None:
    if None in values:
        return None
    return max(values) if side > 0 else min(values)  # type: ignore[type-var]


def _settled(end: int | None, side: int) -> bool:
    """Whether a bound proves the sign of the expression, which is what bounds are mostly wanted for."""
    return end is not None and end * side <= 0


def _interval(e: Expr) -> tuple[Interval, bool]:
    """Both ends by interval arithmetic, and whether elimination cannot improve them."""
    low: int | None = e.const
    high: int | None = e.const
    tight = True
    seen = 0
    symbols: set[Symbol] = set()
    for mono, c in e.terms.items():
        if len(mono) == 1:
            a, b = atom_interval(mono[0])
        else:
            a, b = _monomial_interval(mono)
        for atom in mono:
            if atom.rank:
                tight = False
            if isinstance(atom, Symbol):
                symbols.add(atom)
                seen += 1
            elif tight:
                free = free_symbols(atom)
                symbols |= free
                seen += len(free)
        if c < 0:
            a, b = b, a
        low = None if a is None or low is None else low + c * a
        high = None if b is None or high is None else high + c * b
    return (low, high), tight and seen == len(symbols)


def _monomial_interval(mono: Monomial) -> Interval:
    interval = atom_interval(mono[0])
    for atom in mono[1:]:
        interval = _multiply_intervals(interval, atom_interval(atom))
    return interval


def _multiply_intervals(a: Interval, b: Interval) -> Interval:
    (al, ah), (bl, bh) = a, b
    if al is not None and bl is not None and al >= 0 and bl >= 0:
        return al * bl, (0 if ah == 0 or bh == 0 else None if ah is None or bh is None else ah * bh)
    inf = float("inf")
    ends: list[float | int] = []
    for x in (-inf if al is None else al, inf if ah is None else ah):
        for y in (-inf if bl is None else bl, inf if bh is None else bh):
            # 0 * infinity is 0 here: the infinite end stands for finite values without a limit.
            ends.append(0 if x == 0 or y == 0 else x * y)
    low, high = min(ends), max(ends)
    return (None if low == -inf else low), (None if high == inf else high)  # type: ignore[return-value]


def atom_interval(atom: Atom) -> Interval:
    """Constant bounds of an atom from the bounds of its parts."""
    if atom._range is _UNSET:
        atom._range = _atom_interval(atom)
    return atom._range


def _atom_interval(atom: Atom) -> Interval:
    if isinstance(atom, Symbol):
        low = None if atom.lower is None else lower_bound(atom.lower)
        high = None if atom.upper is None else upper_bound(atom.upper)
        if atom.multiple > 1:
            low = None if low is None else -(-low // atom.multiple) * atom.multiple
            high = None if high is None else high // atom.multiple * atom.multiple
        return low, high
    if isinstance(atom, (FloorDiv, Mod)):
        low, high = bounds(atom.dividend)
        dlow, dhigh = bounds(atom.divisor)
        if dlow is None or dlow < 1:
            return None, None
        if isinstance(atom, Mod):
            limit = None if dhigh is None else dhigh - 1
            if low is not None and low >= 0 and high is not None:
                limit = high if limit is None else min(limit, high)
            return 0, limit
        if low is not None:
            low = low // dlow if low < 0 else 0 if dhigh is None else low // dhigh
        if high is not None:
            high = high // dlow if high >= 0 else -1 if dhigh is None else high // dhigh
        return low, high
    ends = [bounds(a) for a in atom.args]  # type: ignore[attr-defined]
    lows, highs = [lo for lo, _ in ends], [hi for _, hi in ends]
    if isinstance(atom, Min):
        known = [hi for hi in highs if hi is not None]
        return None if None in lows else min(lows), min(known) if known else None  # type: ignore[type-var]
    known = [lo for lo in lows if lo is not None]
    return max(known) if known else None, None if None in highs else max(highs)  # type: ignore[type-var]


def _split(e: Expr, atom: Atom) -> tuple[Terms, Terms]:
    """(q, r) with e = q * atom + r + constant, where r has no factor ``atom``; q may have the empty monomial."""
    q: Terms = {}
    r: Terms = {}
    for mono, c in e.terms.items():
        if atom not in mono:
            r[mono] = c
        elif len(mono) == 1:
            q[()] = c
        else:
            at = mono.index(atom)
            q[mono[:at] + mono[at + 1 :]] = c
    return q, r


def _assemble(q: Terms, value: IntLike, r: Terms, const: int, scale: int = 1) -> IntLike:
    """q * value + scale * (r + const)."""
    terms = dict(r) if scale == 1 else {mono: c * scale for mono, c in r.items()}
    const *= scale
    for mono, c in q.items():
        if mono:
            if isinstance(value, int):
                if value:
                    accumulate(terms, {mono: c}, value)
            else:
                accumulate_product(terms, mono, c, value)
        elif isinstance(value, int):
            const += c * value
        else:
            accumulate(terms, value.terms, c)
            const += c * value.const
    return make_sum(terms, const, any(atom.has_division for mono in terms for atom in mono))


def _sign(q: Terms, fuel: list[int]) -> int:
    """1 where q is proven not to be negative, -1 where not positive, 0 where neither."""
    signs = set()
    for mono, c in q.items():
        low, high = _monomial_interval(mono) if mono else (1, 1)
        signs.add(
            (c > 0) - (c < 0)
            if low is not None and low >= 0
            else (c < 0) - (c > 0)
            if high is not None and high <= 0
            else 0
        )
    if len(signs) == 1 and 0 not in signs:
        return signs.pop()
    e = _assemble(q, 1, {}, 0)
    low = _bound(e, -1, fuel)
    if low is not None and low >= 0:
        return 1
    high = _bound(e, 1, fuel)
    return -1 if high is not None and high <= 0 else 0


def _eliminate(e: Expr, side: int, fuel: list[int]) -> int | None:
    """A bound of ``e`` by replacing atoms, those of the highest rank first, with what bounds them."""
    atoms = {atom for mono in e.terms for atom in mono}
    best: int | None = None
    for atom in sorted(atoms, key=_elimination_order):
        if fuel[0] <= 0:
            break
        fuel[0] -= 1
        end, exact = _eliminate_atom(e, atom, atoms, side, fuel)
        best = _tighter(best, end, side)
        if exact or _settled(best, side):
            break
    return best


def _elimination_order(atom: Atom) -> tuple[int, int]:
    return -atom.rank, atom.uid


def _eliminate_atom(e: Expr, atom: Atom, atoms: set[Atom], side: int, fuel: list[int]) -> tuple[int | None, bool]:
    """(bound found by replacing ``atom``, whether the replacement lost nothing)."""
    q, r = _split(e, atom)
    sign = _sign(q, fuel)
    if isinstance(atom, Symbol):
        return _eliminate_symbol(q, r, e.const, atom, sign, atoms, side, fuel)
    if not sign:
        return None, False
    toward = sign * side  # 1: replace by something at least as large, -1: by something at most as large

    def bound(value: IntLike) -> int | None:
        return _bound(_assemble(q, value, r, e.const), side, fuel)

    if isinstance(atom, (Min, Max)):
        choices = [bound(a) for a in atom.args]
        if isinstance(atom, Min) == (toward < 0):
            return _loosest(choices, side), True
        found = None
        for end in choices:
            found = _tighter(found, end, side)
        return found, False
    if isinstance(atom, Mod):
        if not is_positive(atom.divisor):
            return None, False
        if toward < 0:
            return bound(0), False
        end = bound(atom.divisor - 1)
        if not _settled(end, side) and is_nonnegative(atom.dividend):
            end = _tighter(end, bound(atom.dividend), side)
        return end, False
    return _eliminate_quotient(q, r, e.const, atom, toward, side, fuel)  # type: ignore[arg-type]


def _eliminate_symbol(
    q: Terms, r: Terms, const: int, symbol: Symbol, sign: int, atoms: set[Atom], side: int, fuel: list[int]
) -> tuple[int | None, bool]:
    low, high = symbol.lower, symbol.upper
    alone = not any(symbol in mono for mono in q)
    if alone:
        alone = not any(
            symbol in free_symbols(atom) for atom in atoms if atom is not symbol and not isinstance(atom, Symbol)
        )
    if sign:
        end = low if sign * side < 0 else high
        return (None, False) if end is None else (_bound(_assemble(q, end, r, const), side, fuel), alone)
    if alone and low is not None and high is not None:  # linear in the symbol: the extreme is at one of the ends
        return _loosest([_bound(_assemble(q, end, r, const), side, fuel) for end in (low, high)], side), True
    return None, False


def _eliminate_quotient(
    q: Terms, r: Terms, const: int, atom: FloorDiv, toward: int, side: int, fuel: list[int]
) -> tuple[int | None, bool]:
    x, d = atom.dividend, atom.divisor
    if not is_positive(d):
        return None, False
    end: int | None = None
    if isinstance(x, Expr) and not atom.exact:
        moved = _toward_end(x, toward, fuel)
        if moved is not None:
            end = _bound(_assemble(q, moved // d, r, const), side, fuel)
            if _settled(end, side):
                return end, False
    if isinstance(d, int):
        # d * (x // d) lies between x - d + 1 and x, so a bound of d * e follows; then divide by d, rounding inwards.
        edge = x if atom.exact or toward > 0 else x - (d - 1)
        scaled = _bound(_assemble(q, edge, r, const, scale=d), side, fuel)
        scaled = None if scaled is None else scaled // d if side > 0 else -(-scaled // d)
        end = _tighter(end, scaled, side)
        if atom.exact:
            return end, True
    else:
        reduced = _exact_quotient(q, d)
        if reduced is not None:
            edge = x if toward > 0 else x - d + 1
            end = _tighter(end, _bound(_assemble(reduced, edge, r, const), side, fuel), side)
        if toward > 0 and not _settled(end, side) and is_nonnegative(x):
            end = _tighter(end, _bound(_assemble(q, x, r, const), side, fuel), side)
    if not _settled(end, side):
        extreme = atom_interval(atom)[toward > 0]
        if extreme is not None:
            end = _tighter(end, _bound(_assemble(q, extreme, r, const), side, fuel), side)
    return end, False


def _toward_end(x: Expr, toward: int, fuel: list[int]) -> IntLike | None:
    """``x`` with one symbol of the highest rank replaced by the bound where x is greatest (toward > 0) or least."""
    symbol = min((a for mono in x.terms for a in mono), key=_elimination_order)
    if not isinstance(symbol, Symbol) or symbol.rank == 0:
        return None
    q, r = _split(x, symbol)
    if any(symbol in free_symbols(atom) for mono in r for atom in mono):
        return None
    direction = _sign(q, fuel) * toward
    end = symbol.upper if direction > 0 else symbol.lower
    return None if end is None or not direction else _assemble(q, end, r, x.const)


def _exact_quotient(q: Terms, d: Expr) -> Terms | None:
    """q / d where d is a single term that divides every term of q, else None."""
    if d.const or len(d.terms) != 1:
        return None
    ((factor, coefficient),) = d.terms.items()
    terms: Terms = {}
    for mono, c in q.items():
        rest = remove_factors(mono, factor)
        if rest is None or c % coefficient:
            return None
        terms[rest] = c // coefficient
    return terms


def remove_factors(mono: Monomial, factors: Monomial) -> Monomial | None:
    """``mono`` without ``factors``, None when it does not have them all."""
    if len(factors) > len(mono):
        return None
    rest = list(mono)
    for atom in factors:
        if atom not in rest:
            return None
        rest.remove(atom)
    return tuple(rest)
