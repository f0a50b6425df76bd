"""More rows of the scalar vocabulary: special functions. Their C++ forms, the same algorithms, are in `shorthaul_special.h`.

Hurwitz zeta: Euler-Maclaurin summation. Modified Bessel functions and Airy's: the trapezoidal rule on their integral representations
(it converges exponentially: Trefethen and Weideman 2014), and their asymptotic series (DLMF 10.40, 9.7). Inverses of the error
function: Winitzki's closed formula, then Halley's iteration. Incomplete gamma: series and continued fraction (DLMF 8.11, 8.9).
Bessel functions of the first and second kind are the C library's.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import math
from collections.abc import Callable

import numpy as np

from .scalar import Scalar, apply, const, where
from .scalar_ops import NO_RULE, Derivative, define

NAN, INF = math.nan, math.inf
_EULER_MACLAURIN = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000, 1 / 74724249600,
                    -3617 / 10670622842880000, 43867 / 5109094217170944000, -174611 / 802857662698291200000)  # fmt: skip


def _exp(x: float) -> float:
    return math.exp(x) if x < 709.782712893384 else INF


def _power(a: float, b: float) -> float:
    try:
        return math.pow(a, b)
    except (OverflowError, ValueError):
        return INF


def zeta(s: float, q: float) -> float:
    if s == 1:
        return INF
    if not s > 1 or q != q:
        return NAN
    if q <= 0:
        if q == math.floor(q):
            return INF
        if s != math.floor(s):
            return NAN
    total, a = 0.0, q
    while a <= 9:
        total += _power(a, -s)
        a += 1
    term = _power(a, -s)
    total += term * a / (s - 1) + term / 2
    term *= s / a
    for k, c in enumerate(_EULER_MACLAURIN):
        total += c * term
        term *= (s + 2 * k + 1) * (s + 2 * k + 2) / (a * a)
    return total


def trigamma(x: float) -> float:
    if x >= 0.5 or x != x:
        return zeta(2, x)
    if x == math.floor(x):
        return INF
    return (math.pi / math.sin(math.pi * (x - math.floor(x)))) ** 2 - zeta(2, 1 - x)


def bessel_ie(order: int, argument: float) -> float:
    """exp(-|x|) I_order(x)."""
    x, sign = abs(argument), -1.0 if order == 1 and argument < 0 else 1.0
    if x != x or x == INF:
        return 0.0 if x == INF else x
    total = 0.0
    if order == 1 and x < 1:
        term = x / 2
        for k in range(1, 14):
            total += term
            term *= x * x / 4 / k / (k + 1)
        return sign * math.exp(-x) * total
    if x <= 30:
        for k in range(48):
            c = math.cos(math.pi * (k + 0.5) / 48)
            total += math.exp(x * (c - 1)) * (c if order else 1)
        return sign * total / 48
    term = 1.0
    for k in range(1, 26):
        total += term
        term *= ((2 * k - 1) ** 2 - 4 * order) / (8 * k * x)
    return sign * total / math.sqrt(2 * math.pi * x)


def bessel_ke(order: int, x: float) -> float:
    """exp(x) K_order(x)."""
    if not x > 0:
        return INF if x == 0 else NAN
    h = 0.2 if x < 9 else 0.6 / math.sqrt(x)
    total, k = 0.5, 1
    while (rest := 2 * x * math.sinh(min(k * h / 2, 350)) ** 2) < 40:
        total += math.exp(-rest) * (1 + rest / x if order else 1)
        k += 1
    return h * total


def erfcx(x: float) -> float:
    if x < 0:
        return 2 * _exp(x * x) - erfcx(-x)
    if x < 2:
        return math.exp(x * x) * math.erfc(x)
    rest = x
    for k in range(60, 0, -1):
        rest = x + k / 2 / rest
    return 1 / (math.sqrt(math.pi) * rest)


def ndtri(p: float) -> float:
    if not 0 < p < 1:
        return -INF if p == 0 else INF if p == 1 else NAN
    q = p if p < 0.5 else 1 - p
    log = math.log(4 * q * (1 - q))
    b = 2 / (math.pi * 0.147) + log / 2
    z = math.sqrt(max(math.sqrt(b * b - log / 0.147) - b, 0.0))
    for _ in range(4):
        error = 2 * q - math.erfc(z) if q < 0.25 else math.erf(z) - (1 - 2 * q)
        step = error / (2 / math.sqrt(math.pi) * math.exp(-z * z))
        z -= step / (1 + z * step)
    return (-1 if p < 0.5 else 1) * math.sqrt(2) * z


def erfinv(y: float) -> float:
    if not abs(y) < 1:
        return math.copysign(INF, y) if abs(y) == 1 else NAN
    if abs(y) < 1e-9:
        return y * math.sqrt(math.pi) / 2
    a = abs(y)
    log = math.log1p(-a * a)
    b = 2 / (math.pi * 0.147) + log / 2
    x = math.sqrt(math.sqrt(b * b - log / 0.147) - b)
    for _ in range(3):
        error = math.erf(x) - a if a < 0.5 else (1 - a) - math.erfc(x)
        step = error / (2 / math.sqrt(math.pi) * math.exp(-x * x))
        x -= step / (1 + x * step)
    return math.copysign(x, y)


def gamma_ratio(a: float, x: float, upper: bool) -> float:
    """The regularized incomplete gamma function, lower or upper."""
    if not (a >= 0 and x >= 0) or (a == 0 and x == 0) or (a == INF and x == INF):
        return NAN
    if a == 0 or x == INF:
        return 0.0 if upper else 1.0
    if x == 0 or a == INF:
        return 1.0 if upper else 0.0
    scale = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        k = a + 1
        while term > total * 1e-17:
            term *= x / k
            total += term
            k += 1
        return 1 - scale * total if upper else scale * total
    b, c = x + 1 - a, 1e300
    d = h = 1 / b
    for i in range(1, 100000):
        an = -i * (i - a)
        b += 2
        d = 1 / (an * d + b)
        c = b + an / c
        h *= d * c
        if abs(d * c - 1) < 1e-16:
            break
    return scale * h if upper else 1 - scale * h


def airy_ai(x: float) -> float:
    if x != x or abs(x) == INF:
        return 0.0 if x == x else x
    phase = 2 / 3 * abs(x) ** 1.5
    if x > 1:  # sqrt(x / 3) / pi K_1/3
        h = 0.2 if phase < 9 else 0.6 / math.sqrt(phase)
        total, k = 0.5, 1
        while (rest := 2 * phase * math.sinh(k * h / 2) ** 2) < 40:
            total += math.exp(-rest) * math.cosh(k * h / 3)
            k += 1
        return math.sqrt(x / 3) / math.pi * math.exp(-phase) * h * total
    if x > -7:
        f, g, a, b = 0.0, 0.0, 0.35502805388781723926, 0.25881940379280679840 * x
        for k in range(80):
            f, g = f + a, g + b
            a *= x**3 / ((3 * k + 2) * (3 * k + 3))
            b *= x**3 / ((3 * k + 3) * (3 * k + 4))
        return f - g
    parts, term = [0.0, 0.0], 1.0
    for k in range(16):
        parts[k % 2] += term if k % 4 < 2 else -term
        term *= (6 * k + 5) * (6 * k + 3) * (6 * k + 1) / (216 * (k + 1) * (2 * k + 1)) / phase
    angle = phase + math.pi / 4
    return (math.sin(angle) * parts[0] - math.cos(angle) * parts[1]) / (math.sqrt(math.pi) * (-x) ** 0.25)


def polynomial(first: Callable[[float], float], step: Callable[[float, float, float, float], float]) -> Callable[[float, float], float]:
    """An orthogonal polynomial in x of a degree: `first` is that of degree one, step(x, k, p_k, p_k-1) the next."""

    def value(x: float, degree: float) -> float:
        if degree != degree:
            return degree
        n = math.trunc(degree)
        if n < 1:
            return 0.0 if n < 0 else 1.0
        a, b = 1.0, first(x)
        for k in range(1, n):
            if b != b:
                break
            a, b = b, step(x, float(k), b, a)
        return b

    return value


@functools.cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(ctypes.util.find_library("m"))


def _of_c(name: str) -> Callable[[float], float]:
    def value(x: float) -> float:
        if name[0] == "y" and x < 0:
            return NAN
        function = getattr(_c_library(), name)
        function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double]
        return function(x)

    return value


def _elementwise(scalar: Callable[..., float]) -> Callable[..., np.ndarray]:
    """A function of Python floats over arrays, computed in float64."""
    wide = np.vectorize(scalar, otypes=[np.float64])

    def over(*xs: np.ndarray) -> np.ndarray:
        dtype = np.asarray(xs[0]).dtype
        arrays = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in xs))
        return wide(*arrays).astype(dtype) if arrays[0].size else arrays[0].astype(dtype)

    return over


def _row(name: str, scalar: Callable[..., float], derivative: Derivative | None = None, arity: int = 1, cost: int = 60,
         cpp: str = "") -> None:  # fmt: skip
    operands = ", ".join(f"{{{i}}}" for i in range(arity))
    define(name, arity, "float", _elementwise(scalar), derivative, cpp or f"sh::special::{name}({operands})", cost=cost)


def _slope(a: Scalar, at_zero: float, value: Scalar) -> Scalar:
    return where(apply("eq", a, 0), const(at_zero, a.dtype), value)


_row("zeta", zeta, lambda s, q, y: (NO_RULE, -s * apply("zeta", s + 1, q)), arity=2)
_row("trigamma", trigamma, lambda a, y: (-2 * apply("zeta", const(3, a.dtype), a),))
_row("i0", lambda x: _exp(abs(x)) * bessel_ie(0, x), lambda a, y: (apply("i1", a),))
_row("i1", lambda x: _exp(abs(x)) * bessel_ie(1, x), lambda a, y: (_slope(a, 0.5, apply("i0", a) - y / a),))
_row("i0e", lambda x: bessel_ie(0, x), lambda a, y: (apply("i1e", a) - apply("sign", a) * y,))
_row("i1e", lambda x: bessel_ie(1, x), lambda a, y: (_slope(a, 0.5, apply("i0e", a) - y * (apply("sign", a) + 1 / a)),))
_row("k0", lambda x: math.exp(-x) * bessel_ke(0, x) if x > 0 else bessel_ke(0, x), lambda a, y: (-apply("k1", a),))
_row("k1", lambda x: math.exp(-x) * bessel_ke(1, x) if x > 0 else bessel_ke(1, x), lambda a, y: (-apply("k0", a) - y / a,))
_row("k0e", lambda x: bessel_ke(0, x), lambda a, y: (y - apply("k1e", a),))
_row("k1e", lambda x: bessel_ke(1, x), lambda a, y: (y - apply("k0e", a) - y / a,))
_row("bessel_j0", _of_c("j0"), lambda a, y: (-apply("bessel_j1", a),))
_row("bessel_j1", _of_c("j1"), lambda a, y: (_slope(a, 0.5, apply("bessel_j0", a) - y / a),))
_row("bessel_y0", _of_c("y0"), lambda a, y: (-apply("bessel_y1", a),))
_row("bessel_y1", _of_c("y1"), lambda a, y: (apply("bessel_y0", a) - y / a,))
_row("airy_ai", airy_ai)
_row("erfcx", erfcx, lambda a, y: (2 * a * y - 2 / math.sqrt(math.pi),))
_row("ndtri", ndtri, lambda a, y: (math.sqrt(2 * math.pi) * apply("exp", 0.5 * y * y),))
_row("erfinv", erfinv, lambda a, y: (0.5 * math.sqrt(math.pi) * apply("exp", y * y),), cpp="sh::erfinv({0})")
_row("mantissa", lambda x: math.frexp(x)[0], lambda a, y: (apply("exp2", -apply("exponent", a)),), cost=4)
_row("exponent", lambda x: float(math.frexp(x)[1]) if math.isfinite(x) else 0.0, lambda a, y: (const(0, a.dtype),), cost=4)


def _igamma(sign: int) -> Derivative:
    return lambda a, x, y: (NO_RULE, sign * apply("exp", (a - 1) * apply("log", x) - x - apply("lgamma", a)))


_row("igamma", lambda a, x: gamma_ratio(a, x, False), _igamma(1), arity=2, cost=100)
_row("igammac", lambda a, x: gamma_ratio(a, x, True), _igamma(-1), arity=2, cost=100)
for _name, _first, _step in (
    ("chebyshev_t", lambda x: x, lambda x, k, b, a: 2 * x * b - a),
    ("chebyshev_u", lambda x: 2 * x, lambda x, k, b, a: 2 * x * b - a),
    ("chebyshev_v", lambda x: 2 * x - 1, lambda x, k, b, a: 2 * x * b - a),
    ("chebyshev_w", lambda x: 2 * x + 1, lambda x, k, b, a: 2 * x * b - a),
    ("hermite_h", lambda x: 2 * x, lambda x, k, b, a: 2 * (x * b - k * a)),
    ("hermite_he", lambda x: x, lambda x, k, b, a: x * b - k * a),
    ("laguerre_l", lambda x: 1 - x, lambda x, k, b, a: ((2 * k + 1 - x) * b - k * a) / (k + 1)),
    ("legendre_p", lambda x: x, lambda x, k, b, a: ((2 * k + 1) * x * b - k * a) / (k + 1)),
):
    _row(_name, polynomial(_first, _step), arity=2, cost=40)
define("exp2", 1, "float", np.exp2, lambda a, y: (y * math.log(2),), triton="tl.exp2({0})", cost=10)
define("copysign", 2, "float", np.copysign,
       lambda a, b, y: (apply("sign", a) * apply("copysign", const(1, a.dtype), b), const(0, a.dtype)), cost=2)  # fmt: skip
define("hypot", 2, "float", np.hypot, lambda a, b, y: (a / y, b / y), cpp="sh::special::hypot({0}, {1})", cost=20)
define("nextafter", 2, "float", np.nextafter, lambda a, b, y: (const(1, a.dtype), const(0, a.dtype)),
       cpp="sh::special::nextafter({0}, {1})", cost=10)  # fmt: skip
define("gcd", 2, "logic", np.gcd, lambda a, b, y: (None, None), cpp="sh::special::gcd({0}, {1})", cost=40)
