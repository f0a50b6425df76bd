"""Expressions as text, Python source, C++ source and JSON."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from .bounds import is_nonnegative
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
    Sum,
    Symbol,
    intern_sum,
    multiply_monomials,
)

Name = Callable[[Symbol], str]


def _plain_name(symbol: Symbol) -> str:
    return symbol.name


def to_text(e: IntLike) -> str:
    """Readable text, the same whatever order the expression was built in.

    >>> from shorthaul.symbolic import index
    >>> to_text(index("d", 4) + 4 * index("h", 9))
    '4*h + d'
    """
    if isinstance(e, int):
        return str(e)
    if e._text is _UNSET:
        e._text = _strip(_render(e, _text_atom))
    return e._text


def to_python(e: IntLike, name: Name = _plain_name) -> str:
    """Python source; ``name`` gives the identifier of each symbol."""

    def atom(a: Atom) -> str:
        if isinstance(a, Symbol):
            return name(a)
        if isinstance(a, (FloorDiv, Mod)):
            operator = "//" if isinstance(a, FloorDiv) else "%"
            return f"({show(a.dividend)} {operator} {show(a.divisor)})"
        return f"{'min' if isinstance(a, Min) else 'max'}({', '.join(show(x) for x in _ordered_args(a))})"

    def show(x: IntLike) -> str:
        text = _render(x, atom)
        return f"({text})" if isinstance(x, Sum) else text

    return _strip(_render(e, atom))


def to_c(e: IntLike, name: Name = _plain_name) -> str:
    """C++ source over int64_t; ``name`` gives the identifier of each symbol.

    C rounds quotients toward zero. Plain ``/`` and ``%`` are used where both operands are proven not to be negative,
    otherwise ``sh_floordiv(a, b)`` and ``sh_mod(a, b)``, which the generated file must define (see `C_HELPERS`).
    """

    def atom(a: Atom) -> str:
        if isinstance(a, Symbol):
            return name(a)
        if isinstance(a, (FloorDiv, Mod)):
            if is_nonnegative(a.dividend) and is_nonnegative(a.divisor):
                operator = "/" if isinstance(a, FloorDiv) else "%"
                return f"({show(a.dividend)} {operator} {show(a.divisor)})"
            function = "sh_floordiv" if isinstance(a, FloorDiv) else "sh_mod"
            return f"{function}({_strip(_render(a.dividend, atom))}, {_strip(_render(a.divisor, atom))})"
        function = "std::min<int64_t>" if isinstance(a, Min) else "std::max<int64_t>"
        args = [_strip(_render(x, atom)) for x in _ordered_args(a)]
        return functools.reduce(lambda left, right: f"{function}({left}, {right})", args)

    def show(x: IntLike) -> str:
        text = _render(x, atom)
        return f"({text})" if isinstance(x, Sum) else text

    return _strip(_render(e, atom))


C_HELPERS = """\
static inline int64_t sh_floordiv(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a % b < 0) != (b < 0)); }
static inline int64_t sh_mod(int64_t a, int64_t b) { return a % b + ((a % b != 0 && (a % b < 0) != (b < 0)) ? b : 0); }
"""
"""C++ definitions of the two functions that `to_c` may call."""


def _text_atom(a: Atom) -> str:
    if isinstance(a, Symbol):
        return a.name
    if isinstance(a, (FloorDiv, Mod)):
        operator = "//" if isinstance(a, FloorDiv) else "%"
        sides = [_text_operand(x) for x in (a.dividend, a.divisor)]
        return f"({sides[0]}{operator}{sides[1]})"
    return f"{'min' if isinstance(a, Min) else 'max'}({', '.join(to_text(x) for x in _ordered_args(a))})"


def _text_operand(x: IntLike) -> str:
    return f"({to_text(x)})" if isinstance(x, (Sum, FloorDiv, Mod)) else to_text(x)


def _strip(text: str) -> str:
    """Without the pair of parentheses that encloses the whole text."""
    if not text.startswith("(") or not text.endswith(")"):
        return text
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and at < len(text) - 1:
            return text
    return text[1:-1]


def _render(e: IntLike, atom: Callable[[Atom], str]) -> str:
    if isinstance(e, int):
        return str(e)
    if isinstance(e, Atom):
        return atom(e)
    parts: list[str] = []
    for mono, c in ordered_terms(e):
        factors = [atom(a) for a in _ordered_factors(mono)]
        if abs(c) != 1:
            factors.insert(0, str(abs(c)))
        text = "*".join(factors)
        if not parts:
            parts.append(text if c > 0 else f"-{text}")
        else:
            parts.append(f" {'+' if c > 0 else '-'} {text}")
    if e.const:
        parts.append(f" {'+' if e.const > 0 else '-'} {abs(e.const)}")
    return "".join(parts)


# Order: by degree, sign, size of the coefficient, then name, so that text and JSON do not depend on construction order


def _atom_key(a: Atom) -> tuple:
    kind = (Symbol, FloorDiv, Mod, Min, Max).index(type(a))
    return (
        kind,
        _text_atom(a),
        *((_bound_text(a.lower), _bound_text(a.upper), a.multiple_of) if isinstance(a, Symbol) else ()),
    )


def _bound_text(bound: IntLike | None) -> str:
    return "" if bound is None else to_text(bound)


def _ordered_factors(mono: Monomial) -> Sequence[Atom]:
    return mono if len(mono) == 1 else sorted(mono, key=_atom_key)


def _ordered_args(a: Atom) -> list[IntLike]:
    return sorted(a.args, key=lambda x: (isinstance(x, int), to_text(x), repr(to_json(x))))  # type: ignore[attr-defined]


def ordered_terms(e: Expr) -> list[tuple[Monomial, int]]:
    """(monomial, coefficient) pairs in printing order."""
    items = list(e.terms.items())
    if len(items) > 1:
        items.sort(key=lambda t: (-len(t[0]), t[1] < 0, -abs(t[1]), [_atom_key(a) for a in _ordered_factors(t[0])]))
    return items


# JSON

Json = Any


def to_json(e: IntLike | None) -> Json:
    """Nested lists of integers and strings; `from_json` gives back the same interned object.

    A Symbol is ``["symbol", name, lower, upper, multiple_of]``, a sum
    ``["sum", constant, [[coefficient, factor, ...], ...]]``, the others ``["floordiv" | "mod" | "min" | "max", ...]``.
    """
    if e is None or isinstance(e, int):
        return e
    if isinstance(e, Symbol):
        return ["symbol", e.name, to_json(e.lower), to_json(e.upper), e.multiple_of]
    if isinstance(e, FloorDiv):
        return ["floordiv", to_json(e.dividend), to_json(e.divisor)]
    if isinstance(e, Mod):
        return ["mod", to_json(e.dividend), to_json(e.divisor)]
    if isinstance(e, (Min, Max)):
        return ["min" if isinstance(e, Min) else "max", *sorted(map(to_json, e.args), key=repr)]
    terms = [[c, *(to_json(a) for a in _ordered_factors(mono))] for mono, c in ordered_terms(e)]
    return ["sum", e.const, terms]


def from_json(obj: Json) -> IntLike:
    """The expression that `to_json` described. Raises ValueError for anything else."""
    if isinstance(obj, int) and not isinstance(obj, bool):
        return obj
    try:
        tag, *rest = obj
        if tag == "symbol":
            name, lower, upper, multiple_of = rest
            return Symbol(
                name,
                None if lower is None else from_json(lower),
                None if upper is None else from_json(upper),
                multiple_of,
            )
        # The nodes were simplified when they were first built: they are taken as they are.
        if tag == "sum":
            const, terms = rest
            built: dict[Monomial, int] = {}
            for coefficient, *factors in terms:
                mono: Monomial = ()
                for factor in factors:
                    atom = from_json(factor)
                    if not isinstance(atom, Atom):
                        raise ValueError(f"a factor must be a symbol, floordiv, mod, min or max, got {factor!r}")
                    mono = multiply_monomials(mono, (atom,))
                if type(coefficient) is not int or not coefficient or not mono or mono in built:
                    raise ValueError(f"bad term {[coefficient, *factors]!r}")
                built[mono] = coefficient
            if type(const) is not int:
                raise ValueError(f"the constant of a sum must be an integer, got {const!r}")
            return intern_sum(built, const)
        if tag == "floordiv" or tag == "mod":
            dividend, divisor = map(from_json, rest)
            return (FloorDiv if tag == "floordiv" else Mod)(dividend, divisor)
        if tag == "min" or tag == "max":
            return (Min if tag == "min" else Max)(map(from_json, rest))
    except (TypeError, ValueError) as error:
        raise ValueError(f"not the JSON of an expression: {obj!r}: {error}") from error
    raise ValueError(f"not the JSON of an expression: {obj!r}: unknown kind {tag!r}")
