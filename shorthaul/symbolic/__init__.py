"""Integer index expressions: sizes, subscripts and volumes, without a computer-algebra system.

``IntLike`` is ``int | Expr``. Operators ``+ - * // %`` build expressions, simplified as they are built with what the
bounds of their symbols prove. Nodes are interned: equal canonical forms are the same object, compared with ``is``.

    >>> N, D = Symbol("N", lower=1), Symbol("D", lower=1)
    >>> h, d = index("h", N), index("d", D)
    >>> flat = h * D + d
    >>> flat // D is h, flat % D is d
    (True, True)
    >>> prove_lt(flat, N * D)
    True
"""

# First: expr imports division and printing itself, once its own classes are complete.
from .expr import (  # isort: skip
    Atom,
    Expr,
    FloorDiv,
    IntLike,
    Max,
    Min,
    Mod,
    Sum,
    Symbol,
    free_symbols,
    index,
    known_divisor,
    product,
    summation,
)
from .bounds import bounds
from .division import ceildiv, divide, floordiv, mod
from .extrema import maximum, minimum
from .printing import C_HELPERS, from_json, to_c, to_json, to_python, to_text
from .prove import prove_divisible, prove_eq, prove_le, prove_lt
from .substitute import affine, evaluate, substitute

__all__ = [
    "C_HELPERS",
    "Atom",
    "Expr",
    "FloorDiv",
    "IntLike",
    "Max",
    "Min",
    "Mod",
    "Sum",
    "Symbol",
    "affine",
    "bounds",
    "ceildiv",
    "divide",
    "evaluate",
    "floordiv",
    "free_symbols",
    "from_json",
    "index",
    "known_divisor",
    "maximum",
    "minimum",
    "mod",
    "product",
    "prove_divisible",
    "prove_eq",
    "prove_le",
    "prove_lt",
    "substitute",
    "summation",
    "to_c",
    "to_json",
    "to_python",
    "to_text",
]
