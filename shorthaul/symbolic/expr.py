"""Integer expressions: interned nodes and the arithmetic of sums.

An expression is a plain ``int`` or an `Expr`. An `Expr` is an integer sum of terms, each a coefficient times a
product of *atoms* (`Symbol`, `FloorDiv`, `Mod`, `Min`, `Max`), plus an integer constant:

    >>> from shorthaul.symbolic import Symbol, index
    >>> n, c = index("n", 8), index("c", 4)
    >>> (n * 4 + c) * 2 + 3
    8*n + 2*c + 3

A node is created once (interned): two expressions that were built differently but have the same canonical form are
the same object, so equality is ``is``, and a node can be a dictionary key at the price of its address. A result that
does not depend on any symbol is an ``int``, never a node.

Interning tables hold their nodes for the life of the process: weak references would triple the price of a look-up,
and a node is a few hundred bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from operator import attrgetter
from operator import index as _operator_index
from typing import Any

Monomial = tuple["Atom", ...]
"""A product of atoms, ordered by creation, with repetition for powers."""

_counter = itertools.count()
_by_uid = attrgetter("uid")
_UNSET: Any = object()
_new_node = object.__new__

_SYMBOLS: dict[int, Symbol] = {}
_SUMS: dict[int, Sum] = {}
_COMPOUNDS: dict[tuple, Any] = {}


class Expr:
    """An integer expression that depends on at least one symbol. Immutable, interned, compared with ``is``.

    ``terms`` maps each product of atoms to its non-zero coefficient (do not modify it); ``const`` is the constant.
    """

    __slots__ = ("__weakref__", "_free", "_lower", "_text", "_upper", "const", "has_division", "terms")

    terms: dict[Monomial, int]
    const: int
    _lower: Any  # cached by bounds
    _upper: Any
    _free: Any
    _text: Any
    has_division: bool  # some term has a FloorDiv or Mod factor, so new terms may combine with it

    def __add__(self, other: IntLike) -> IntLike:
        if type(other) is int:
            return self if other == 0 else intern_sum(self.terms, self.const + other, self.has_division)
        if isinstance(other, Expr):
            terms = dict(self.terms)
            accumulate(terms, other.terms, 1)
            return make_sum(terms, self.const + other.const, self.has_division or other.has_division)
        value = _plain_int(other)
        return NotImplemented if value is None else self + value

    __radd__ = __add__

    def __sub__(self, other: IntLike) -> IntLike:
        if type(other) is int:
            return self if other == 0 else intern_sum(self.terms, self.const - other, self.has_division)
        if isinstance(other, Expr):
            if self is other:
                return 0
            terms = dict(self.terms)
            accumulate(terms, other.terms, -1)
            return make_sum(terms, self.const - other.const, self.has_division or other.has_division)
        value = _plain_int(other)
        return NotImplemented if value is None else self - value

    def __rsub__(self, other: IntLike) -> IntLike:
        value = _plain_int(other)
        return NotImplemented if value is None else -self + value

    def __neg__(self) -> IntLike:
        return intern_sum({mono: -c for mono, c in self.terms.items()}, -self.const, self.has_division)

    def __pos__(self) -> IntLike:
        return self

    def __mul__(self, other: IntLike) -> IntLike:
        if type(other) is int:
            if other == 1:
                return self
            if other == 0:
                return 0
            terms = {mono: c * other for mono, c in self.terms.items()}
            return make_sum(terms, self.const * other, self.has_division)
        if isinstance(other, Expr):
            if isinstance(other, Atom):  # no two products coincide
                factor = (other,)
                terms = {multiply_monomials(mono, factor): c for mono, c in self.terms.items()}
                if self.const:
                    terms[factor] = self.const
                return make_sum(terms, 0, self.has_division or other.has_division)
            terms = {}
            for mono, c in self.terms.items():
                accumulate_product(terms, mono, c, other)
            if self.const:
                accumulate(terms, other.terms, self.const)
            return make_sum(terms, self.const * other.const, self.has_division or other.has_division)
        value = _plain_int(other)
        return NotImplemented if value is None else self * value

    __rmul__ = __mul__

    def __floordiv__(self, other: IntLike) -> IntLike:
        value = _operand(other)
        return NotImplemented if value is None else _division.divide(self, value)[0]

    def __rfloordiv__(self, other: IntLike) -> IntLike:
        value = _operand(other)
        return NotImplemented if value is None else _division.divide(value, self)[0]

    def __mod__(self, other: IntLike) -> IntLike:
        value = _operand(other)
        return NotImplemented if value is None else _division.divide(self, value)[1]

    def __rmod__(self, other: IntLike) -> IntLike:
        value = _operand(other)
        return NotImplemented if value is None else _division.divide(value, self)[1]

    def __divmod__(self, other: IntLike) -> tuple[IntLike, IntLike]:
        value = _operand(other)
        return NotImplemented if value is None else _division.divide(self, value)

    def __bool__(self) -> bool:
        raise TypeError(
            f"the truth of the symbolic expression {self} is not known; compare with `is`, or use prove_eq or prove_le"
        )

    def __str__(self) -> str:
        return _printing.to_text(self)

    __repr__ = __str__

    def __reduce__(self) -> tuple:
        return _printing.from_json, (_printing.to_json(self),)

    def __copy__(self) -> Expr:
        return self

    def __deepcopy__(self, memo: object) -> Expr:
        return self


IntLike = int | Expr


class Sum(Expr):
    """Two or more terms, or one with a coefficient, a constant or several factors."""

    __slots__ = ()


class Atom(Expr):
    """What a term is a product of.

    ``uid`` orders factors; ``rank`` is larger than that of everything the atom or its bounds refer to; ``multiple``
    is a known constant divisor of its value (at least 1).
    """

    __slots__ = ("_range", "multiple", "rank", "uid")

    uid: int
    rank: int
    multiple: int

    def _initialize(self, rank: int, multiple: int, division: bool) -> None:
        self.uid = next(_counter)
        self.terms = {(self,): 1}
        self.const = 0
        self.has_division = division
        self.rank = rank
        self.multiple = multiple
        self._lower = self._upper = self._range = self._free = self._text = _UNSET


class Symbol(Atom):
    """An integer variable: a size, or a loop parameter.

    ``lower`` and ``upper`` are inclusive bounds, integers or expressions of other symbols, None where unbounded;
    ``multiple_of`` is a known divisor of every value. All four fields identify the symbol:

    >>> N = Symbol("N", lower=1)
    >>> Symbol("N", lower=1) is N
    True
    >>> i = Symbol("i", 0, N - 1)
    >>> i.size
    N
    """

    __slots__ = ("lower", "multiple_of", "name", "upper")

    name: str
    lower: IntLike | None
    upper: IntLike | None
    multiple_of: int

    def __new__(
        cls, name: str, lower: IntLike | None = None, upper: IntLike | None = None, multiple_of: int = 1
    ) -> Symbol:
        if type(multiple_of) is not int or type(lower) not in _PLAIN_BOUNDS or type(upper) not in _PLAIN_BOUNDS:
            lower = _checked_bound(name, "lower", lower)
            upper = _checked_bound(name, "upper", upper)
            multiple_of = _plain_int(multiple_of) or 0
        if not isinstance(name, str) or not name:
            raise TypeError(f"the name of a Symbol must be a non-empty string, got {name!r}")
        if multiple_of != 1:  # the nearest multiples inside the bounds
            if multiple_of < 1:
                raise ValueError(f"multiple_of of Symbol {name!r} must be a positive integer")
            lower = -(-lower // multiple_of) * multiple_of if isinstance(lower, int) else lower
            upper = upper // multiple_of * multiple_of if isinstance(upper, int) else upper
        key = hash((name, lower, upper, multiple_of))  # linear probing, for the reason given in intern_sum
        while True:
            node = _SYMBOLS.get(key)
            if node is None:
                new = _new_node(cls)
                rank = 1 + _rank(lower) if isinstance(lower, Expr) else 0
                if isinstance(upper, Expr):
                    rank = max(rank, 1 + _rank(upper))
                new._initialize(rank, multiple_of, False)
                new.name, new.lower, new.upper, new.multiple_of = name, lower, upper, multiple_of
                node = _SYMBOLS.setdefault(key, new)
                if node is new:
                    return new
            if node.name == name and node.lower == lower and node.upper == upper and node.multiple_of == multiple_of:
                return node
            key += 1

    @property
    def size(self) -> IntLike:
        """Number of values, upper - lower + 1."""
        if self.lower is None or self.upper is None:
            raise ValueError(f"Symbol {self.name!r} has no lower or no upper bound, so it has no size")
        return self.upper - self.lower + 1


class FloorDiv(Atom):
    """dividend // divisor, rounded down. Build it with ``//`` or `floordiv`, which simplify."""

    __slots__ = ("dividend", "divisor", "exact")

    dividend: IntLike
    divisor: IntLike
    exact: bool  # the divisor is known to divide the dividend

    def __new__(cls, dividend: IntLike, divisor: IntLike) -> FloorDiv:
        key = (cls, dividend, divisor)
        node = _COMPOUNDS.get(key)
        if node is None:
            node = object.__new__(cls)
            multiple = known_divisor(dividend)
            node.exact = isinstance(divisor, int) and multiple % divisor == 0
            node._initialize(
                1 + max(_rank(dividend), _rank(divisor)),
                multiple // abs(divisor) if isinstance(divisor, int) and node.exact else 1,
                True,
            )
            node.dividend, node.divisor = dividend, divisor
            node = _COMPOUNDS.setdefault(key, node)
        return node


class Mod(Atom):
    """dividend % divisor with the sign of the divisor. Build it with ``%`` or `mod`, which simplify."""

    __slots__ = ("dividend", "divisor")

    dividend: IntLike
    divisor: IntLike

    def __new__(cls, dividend: IntLike, divisor: IntLike) -> Mod:
        key = (cls, dividend, divisor)
        node = _COMPOUNDS.get(key)
        if node is None:
            node = object.__new__(cls)
            multiple = math.gcd(known_divisor(dividend), known_divisor(divisor))
            node._initialize(1 + max(_rank(dividend), _rank(divisor)), multiple, True)
            node.dividend, node.divisor = dividend, divisor
            node = _COMPOUNDS.setdefault(key, node)
        return node


class _Extremum(Atom):
    __slots__ = ("args",)

    args: tuple[IntLike, ...]

    def __new__(cls, args: Iterable[IntLike]) -> _Extremum:
        args = tuple(args)
        key = (cls, frozenset(args))
        node = _COMPOUNDS.get(key)
        if node is None:
            node = object.__new__(cls)
            multiple = math.gcd(*(known_divisor(a) for a in args))
            node._initialize(1 + max(_rank(a) for a in args), multiple, False)
            node.args = args
            node = _COMPOUNDS.setdefault(key, node)
        return node


class Min(_Extremum):
    """The least of ``args``. Build it with `minimum`, which simplifies."""

    __slots__ = ()


class Max(_Extremum):
    """The greatest of ``args``. Build it with `maximum`, which simplifies."""

    __slots__ = ()


def index(name: str, size: IntLike) -> Symbol:
    """A loop parameter: a Symbol with values 0 .. size - 1.

    >>> index("i", 4).upper
    3
    """
    return Symbol(name, 0, size - 1)


_PLAIN_BOUNDS = {int, type(None), Sum, Symbol, FloorDiv, Mod, Min, Max}


# Arithmetic of terms


def multiply_monomials(a: Monomial, b: Monomial) -> Monomial:
    """The product of two monomials, in canonical order."""
    if len(a) == 1 and len(b) == 1:
        return a + b if a[0].uid <= b[0].uid else b + a
    return tuple(sorted(a + b, key=_by_uid))


def accumulate(terms: dict[Monomial, int], more: dict[Monomial, int], factor: int) -> None:
    """Add factor * more to terms, in place."""
    for mono, c in more.items():
        total = terms.get(mono, 0) + c * factor
        if total:
            terms[mono] = total
        else:
            del terms[mono]


def accumulate_product(terms: dict[Monomial, int], mono: Monomial, coefficient: int, e: Expr) -> None:
    """Add coefficient * mono * e to terms, in place; ``mono`` is not empty."""
    for other, c in e.terms.items():
        key = multiply_monomials(mono, other)
        total = terms.get(key, 0) + c * coefficient
        if total:
            terms[key] = total
        else:
            del terms[key]
    if e.const:
        total = terms.get(mono, 0) + coefficient * e.const
        if total:
            terms[mono] = total
        else:
            del terms[mono]


def intern_sum(terms: dict[Monomial, int], const: int, has_division: bool | None = None) -> IntLike:
    """The node of a sum whose terms need no further combination; ``has_division`` None: look for it."""
    if not terms:
        return const
    if const == 0 and len(terms) == 1:
        ((mono, coefficient),) = terms.items()
        if coefficient == 1 and len(mono) == 1:
            return mono[0]
    # The table is keyed by a hash with linear probing: a key made of the terms would be as large as the node itself,
    # and Python's garbage collector would walk through it again and again.
    key = hash(frozenset(terms.items())) + const
    while True:
        node = _SUMS.get(key)
        if node is None:
            new = _new_node(Sum)
            new.terms = terms
            new.const = const
            if has_division is None:
                has_division = any(atom.has_division for mono in terms for atom in mono)
            new.has_division = has_division
            new._lower = new._upper = new._free = new._text = _UNSET
            node = _SUMS.setdefault(key, new)
            if node is new:
                return new
        if node.const == const and node.terms == terms:
            return node
        key += 1


def make_sum(terms: dict[Monomial, int], const: int, has_division: bool) -> IntLike:
    """The node of a sum; where it has quotients or remainders, those that belong together are combined."""
    if has_division:
        terms, const = _division.combine(terms, const)
        return intern_sum(terms, const)
    return intern_sum(terms, const, False)


def monomial_expr(mono: Monomial, coefficient: int = 1) -> IntLike:
    """coefficient * mono as an expression."""
    if not mono or not coefficient:
        return coefficient
    return intern_sum({mono: coefficient}, 0)


def terms_of(e: IntLike) -> tuple[dict[Monomial, int], int]:
    """(terms, constant) of an expression or an int."""
    return (e.terms, e.const) if isinstance(e, Expr) else ({}, e)


def known_divisor(e: IntLike) -> int:
    """A constant that divides every value of ``e``: from coefficients and ``multiple_of``; 0 for the constant 0."""
    if isinstance(e, int):
        return abs(e)
    if isinstance(e, Atom):
        return e.multiple
    result = e.const
    for mono, c in e.terms.items():
        for atom in mono:
            c *= atom.multiple
        result = math.gcd(result, c)
        if result == 1:
            break
    return abs(result)


def summation(values: Iterable[IntLike]) -> IntLike:
    """The sum of the values; 0 when there are none."""
    terms: dict[Monomial, int] = {}
    const, division = 0, False
    for value in values:
        value = checked(value)
        if isinstance(value, int):
            const += value
        else:
            accumulate(terms, value.terms, 1)
            const += value.const
            division |= value.has_division
    return make_sum(terms, const, division)


def product(values: Iterable[IntLike]) -> IntLike:
    """The product of the values; 1 when there are none."""
    number = 1
    result: IntLike = 1
    for value in values:
        value = checked(value)
        if type(value) is int:
            number *= value
        else:
            result = result * value
    return result * number


def free_symbols(e: IntLike) -> frozenset[Symbol]:
    """The symbols an expression is computed from (not those that only bound its symbols)."""
    if isinstance(e, int):
        return frozenset()
    if e._free is _UNSET:
        if isinstance(e, Symbol):
            e._free = frozenset((e,))
        elif isinstance(e, (FloorDiv, Mod)):
            e._free = free_symbols(e.dividend) | free_symbols(e.divisor)
        elif isinstance(e, _Extremum):
            e._free = frozenset().union(*(free_symbols(a) for a in e.args))
        else:
            e._free = frozenset().union(*(free_symbols(atom) for mono in e.terms for atom in mono))
    return e._free


def _rank(e: IntLike) -> int:
    if isinstance(e, int):
        return 0
    if isinstance(e, Atom):
        return e.rank
    return max(atom.rank for mono in e.terms for atom in mono)


def _plain_int(value: object) -> int | None:
    """An int from whatever acts as one (bool, NumPy integers), else None."""
    if type(value) is int:
        return value
    if isinstance(value, Expr):
        return None
    try:
        return _operator_index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _operand(value: object) -> IntLike | None:
    return value if isinstance(value, Expr) else _plain_int(value)


def checked(value: object) -> IntLike:
    """The value as an int or an Expr; raises TypeError when it is neither."""
    if type(value) is int or isinstance(value, Expr):
        return value  # type: ignore[return-value]
    result = _operand(value)
    if result is None:
        raise TypeError(f"expected an int or a symbolic expression, got {value!r} of type {type(value).__name__}")
    return result


def _checked_bound(name: str, which: str, bound: object) -> IntLike | None:
    if bound is None:
        return None
    result = _operand(bound)
    if result is None:
        raise TypeError(f"{which} bound of Symbol {name!r} must be an int, an expression or None, got {bound!r}")
    return result


# The operators need division and printing, which are written in terms of the nodes above.
from . import division as _division  # noqa: E402
from . import printing as _printing  # noqa: E402
