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
    checked,
    free_symbols,
    make_sum,
)

Interval = tuple[int | None, int | None]
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
    if e._lower is not _UNSET:
        return e._lower
    return _lower(e, [_FUEL])


def upper_bound(e: IntLike) -> int | None:
    """The upper of `bounds`."""
    if isinstance(e, int):
        return e
    low = lower_bound(-e)
    return None if low is None else -low


def is_nonnegative(e: IntLike) -> bool:
    """Whether ``e >= 0`` is proven."""
    low = e if isinstance(e, int) else lower_bound(e)
    return low is not None and low >= 0


def is_positive(e: IntLike) -> bool:
    """Whether ``e >= 1`` is proven."""
    low = e if isinstance(e, int) else lower_bound(e)
    return low is not None and low >= 1


def _lower(e: IntLike, fuel: list[int]) -> int | None:
    if isinstance(e, int):
        return e
    if e._lower is not _UNSET:
        return e._lower
    low, tight = _interval_lower(e)
    if not tight:
        if fuel[0] <= 0:
            return low  # not cached: with more fuel it may be better
        eliminated = _eliminate(e, fuel)
        if eliminated is not None and (low is None or eliminated > low):
            low = eliminated
        if fuel[0] <= 0:
            return low
    e._lower = low
    return low


def _upper(e: IntLike, fuel: list[int]) -> int | None:
    low = _lower(-e, fuel)
    return None if low is None else -low


def _interval_lower(e: Expr) -> tuple[int | None, bool]:
    """The lower end by interval arithmetic, and whether elimination cannot improve it."""
    low: int | None = e.const
    tight = True
    seen = 0
    symbols: set[Symbol] = set()
    for mono, c in e.terms.items():
        if len(mono) == 1:
            atom = mono[0]
            interval = atom_interval(atom)
            if atom.rank:
                tight = False
            if isinstance(atom, Symbol):
                symbols.add(atom)
                seen += 1
            else:
                free = free_symbols(atom)
                symbols |= free
                seen += len(free)
        else:
            interval = (1, 1)
            for atom in mono:
                interval = _multiply_intervals(interval, atom_interval(atom))
                if atom.rank:
                    tight = False
                free = free_symbols(atom)
                symbols |= free
                seen += len(free)
        end = interval[0] if c > 0 else interval[1]
        if end is None:
            low = None
        elif low is not None:
            low += c * end
    return low, tight and seen == len(symbols)


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


def _split(e: Expr, atom: Atom) -> tuple[IntLike, IntLike]:
    """(q, r) with e = q * atom + r, where r has no factor ``atom``."""
    q: dict[Monomial, int] = {}
    r: dict[Monomial, int] = {}
    constant = 0
    for mono, c in e.terms.items():
        if atom not in mono:
            r[mono] = c
        elif len(mono) == 1:
            constant += c
        else:
            at = mono.index(atom)
            q[mono[:at] + mono[at + 1 :]] = c
    return make_sum(q, constant, e.has_division), make_sum(r, e.const, e.has_division)


def _best(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else max(a, b)


def _worst(values: list[int | None]) -> int | None:
    return None if None in values else min(values)  # type: ignore[type-var]


def _eliminate(e: Expr, fuel: list[int]) -> int | None:
    """A lower bound of ``e`` by replacing atoms, those of the highest rank first, with what bounds them."""
    atoms = {atom for mono in e.terms for atom in mono}
    best: int | None = None
    for atom in sorted(atoms, key=lambda a: (-a.rank, a.uid)):
        if fuel[0] <= 0:
            break
        fuel[0] -= 1
        low, exact = _eliminate_atom(e, atom, atoms, fuel)
        best = _best(best, low)
        if exact or (best is not None and best >= 0):
            break
    return best


def _eliminate_atom(e: Expr, atom: Atom, atoms: set[Atom], fuel: list[int]) -> tuple[int | None, bool]:
    """(lower bound found by replacing ``atom``, whether the replacement lost nothing)."""
    q, r = _split(e, atom)
    qlow = _lower(q, fuel)
    sign = 1 if qlow is not None and qlow >= 0 else 0
    if not sign:
        qhigh = _upper(q, fuel)
        sign = -1 if qhigh is not None and qhigh <= 0 else 0
    if isinstance(atom, Symbol):
        return _eliminate_symbol(q, r, atom, sign, atoms, fuel)
    if not sign:
        return None, False
    if isinstance(atom, (Min, Max)):
        choices = [_lower(q * a + r, fuel) for a in atom.args]
        if isinstance(atom, Min) == (sign > 0):
            return _worst(choices), True
        found = None
        for low in choices:
            found = _best(found, low)
        return found, False
    if isinstance(atom, Mod):
        if not is_positive(atom.divisor):
            return None, False
        if sign > 0:
            return _lower(r, fuel), False
        low = _lower(q * (atom.divisor - 1) + r, fuel)
        if (low is None or low < 0) and is_nonnegative(atom.dividend):
            low = _best(low, _lower(q * atom.dividend + r, fuel))
        return low, False
    return _eliminate_quotient(q, r, atom, sign, fuel)  # type: ignore[arg-type]


def _eliminate_symbol(
    q: IntLike, r: IntLike, symbol: Symbol, sign: int, atoms: set[Atom], fuel: list[int]
) -> tuple[int | None, bool]:
    low, high = symbol.lower, symbol.upper
    alone = symbol not in free_symbols(q) and not any(
        symbol in free_symbols(atom) for atom in atoms if atom is not symbol
    )
    if sign:
        end = low if sign > 0 else high
        return (None, False) if end is None else (_lower(q * end + r, fuel), alone)
    if alone and low is not None and high is not None:  # linear in the symbol: the least value is at one of the ends
        return _worst([_lower(q * low + r, fuel), _lower(q * high + r, fuel)]), True
    return None, False


def _eliminate_quotient(q: IntLike, r: IntLike, atom: FloorDiv, sign: int, fuel: list[int]) -> tuple[int | None, bool]:
    x, d = atom.dividend, atom.divisor
    if not is_positive(d):
        return None, False
    low: int | None = None
    if isinstance(d, int):
        # d * (x // d) lies between x - d + 1 and x, so a bound of d * e follows; then divide by d, rounding up.
        edge = x if atom.exact or sign < 0 else x - (d - 1)
        scaled = _lower(q * edge + d * r, fuel)
        low = None if scaled is None else -(-scaled // d)
        if atom.exact:
            return low, True
    else:
        q_over_d = _exact_quotient(q, d)
        if q_over_d is not None:
            edge = x if sign < 0 else x - d + 1
            low = _lower(q_over_d * edge + r, fuel)
        if sign < 0 and (low is None or low < 0) and is_nonnegative(x):
            low = _best(low, _lower(q * x + r, fuel))
    if low is None or low < 0:
        end = atom_interval(atom)[0 if sign > 0 else 1]
        if end is not None:
            low = _best(low, _lower(q * end + r, fuel))
    if (low is None or low < 0) and isinstance(x, Expr):
        moved = _toward_end(x, sign, fuel)
        if moved is not None:
            low = _best(low, _lower(q * (moved // d) + r, fuel))
    return low, False


def _toward_end(x: Expr, sign: int, fuel: list[int]) -> IntLike | None:
    """``x`` with one symbol of the highest rank replaced by the bound where x is least (sign > 0) or greatest."""
    symbol = max((a for mono in x.terms for a in mono), key=lambda a: (a.rank, a.uid))
    if not isinstance(symbol, Symbol) or symbol.rank == 0:
        return None
    q, r = _split(x, symbol)
    if symbol in free_symbols(r):
        return None
    up = sign < 0
    low, high = _lower(q, fuel), _upper(q, fuel)
    if high is not None and high <= 0:
        up = not up
    elif low is None or low < 0:
        return None
    end = symbol.upper if up else symbol.lower
    return None if end is None else q * end + r


def _exact_quotient(q: IntLike, d: Expr) -> IntLike | None:
    """q / d where d is a single term that divides every term of q, else None."""
    if d.const or len(d.terms) != 1 or isinstance(q, int) or q.const:
        return None
    ((factor, coefficient),) = d.terms.items()
    terms: dict[Monomial, int] = {}
    constant = 0
    for mono, c in q.terms.items():
        rest = remove_factors(mono, factor)
        if rest is None or c % coefficient:
            return None
        if rest:
            terms[rest] = c // coefficient
        else:
            constant = c // coefficient
    return make_sum(terms, constant, q.has_division)


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
