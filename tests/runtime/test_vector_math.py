"""The C++ vector header: every function, on every instruction set that this CPU has, scalar and vector alike.

Elementary functions are judged against float64 (or extended precision) in units in the last place over the whole range
of bit patterns; exact operations against PyTorch, bit for bit.
"""

import ctypes
import dataclasses
import re

import numpy as np
import pytest
import torch

from shorthaul.runtime.build import INCLUDE
from shorthaul.runtime.library import build_library
from shorthaul.runtime.machine import machine

pytestmark = pytest.mark.skipif(machine().compiler is None, reason="no C++ compiler on this machine")

LEVELS = ["avx512", "avx2", "baseline"]
AVAILABLE = LEVELS[LEVELS.index(machine().isa) :]
C_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int8: "int8_t",
    torch.int16: "int16_t",
    torch.int32: "int32_t",
    torch.int64: "int64_t",
    torch.uint8: "uint8_t",
    torch.bool: "bool",
    torch.bfloat16: "sh::bfloat16",
    torch.float16: "sh::float16",
}
VECTORIZED = ["exp", "expm1", "log", "log1p", "log2", "log10", "tanh", "sigmoid", "erf", "sin", "cos"]
LIBRARY = [
    "exp2",
    "erfc",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "asinh",
    "acosh",
    "atanh",
    "lgamma",
    "digamma",
    "erfinv",
]
EXACT_UNARY = ["sqrt", "rsqrt", "rcp", "floor", "ceil", "trunc", "round", "sign", "neg", "abs"]
EXACT_BINARY = ["add", "sub", "mul", "div", "min", "max", "fmin", "fmax", "fmod", "mod", "floordiv", "copysign"]
COMPARISONS = ["eq", "ne", "lt", "le", "gt", "ge"]
INTEGER_BINARY = [
    "add",
    "sub",
    "mul",
    "min",
    "max",
    "div",
    "fmod",
    "mod",
    "floordiv",
    "pow",
    "band",
    "bor",
    "bxor",
    "shl",
    "shr",
]
INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8]


class Kernels:
    """Collects kernels `name(in..., out, n)`, each as a vector and as a scalar loop, and runs them on tensors."""

    def __init__(self) -> None:
        self.text = ['#include "shorthaul_vec.h"\n#define EXPORT extern "C" __attribute__((visibility("default")))\n']
        self.library = None

    def add(self, name: str, inputs: list[str], output: str, value: str) -> None:
        """`value` is an expression of x0, x1, ..., the loaded inputs."""
        pointers = ", ".join(f"const {c}* p{i}" for i, c in enumerate(inputs))
        loads = " ".join(f"const auto x{i} = sh::load(L, p{i} + i);" for i in range(len(inputs)))
        body = f"[=](auto L, int64_t i) {{ {loads} sh::store(L, out + i, {value}); }}"
        signature = f"({pointers}, {output}* out, int64_t n)"
        self.text.append(f"EXPORT void {name}{signature} {{ sh::for_lanes(0, n, {body}); }}\n")
        self.text.append(
            f"EXPORT void {name}_scalar{signature} {{ auto body = {body}; "
            "for (int64_t i = 0; i < n; ++i) body(sh::lanes<1>{}, i); }\n"
        )

    def build(self, folder, isa: str) -> None:
        common = self.text[0]
        units = [common + "".join(self.text[i : i + 40]) for i in range(1, len(self.text), 40)]
        target = dataclasses.replace(machine(), isa=isa)
        self.library = build_library(
            {f"unit{i}.cpp": unit for i, unit in enumerate(units)}, target=target, cache_directory=folder
        )

    def run(self, name: str, inputs: list[torch.Tensor], output: torch.dtype) -> torch.Tensor:
        """The vector result; asserts that the scalar loop gives the same bits (any NaN for a NaN)."""
        results = []
        for suffix in ("", "_scalar"):
            out = torch.zeros(inputs[0].shape, dtype=output)
            addresses = [ctypes.c_void_p(t.data_ptr()) for t in (*inputs, out)]
            self.library.function(name + suffix)(*addresses, ctypes.c_int64(out.numel()))
            results.append(out)
        vector, scalar = results
        same = vector == scalar
        if output.is_floating_point:
            same = (same & (vector.signbit() == scalar.signbit())) | (vector.isnan() & scalar.isnan())
        assert same.all(), f"{name}: scalar and vector differ at {[t[~same][:3] for t in (*inputs, vector, scalar)]}"
        return vector


def floats(dtype: torch.dtype, count: int, seed: int = 0) -> torch.Tensor:
    """Bit patterns of the whole range, ordinary numbers, and the special values."""
    rng = np.random.default_rng(seed)
    whole = np.uint32 if dtype == torch.float32 else np.uint64
    kind = np.float32 if dtype == torch.float32 else np.float64
    info = np.finfo(kind)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 0.5, -0.5, 1.5, 2.5, -2.5, info.tiny, -info.tiny]
    special += [info.smallest_subnormal, -info.smallest_subnormal, info.max, -info.max, info.eps, 88.8, -103.9, -87.4]
    parts = [
        rng.integers(0, np.iinfo(whole).max, count, dtype=whole, endpoint=True).view(kind),
        (rng.normal(size=count) * 3).astype(kind),
        rng.uniform(-110, 110, count).astype(kind),
        (1 + rng.normal(size=count // 4) * 0.01).astype(kind),
        np.array(special, kind),
    ]
    values = np.concatenate(parts)
    return torch.from_numpy(np.where(np.isnan(values), kind(np.nan), values))  # quiet NaN only


def ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Distance in units in the last place of the exactly rounded result; 0 for the same special value."""
    with np.errstate(all="ignore"):
        rounded = exact.astype(got.dtype)
        unit = np.spacing(np.abs(np.where(np.isfinite(rounded), rounded, np.finfo(got.dtype).max))).astype(exact.dtype)
        error = np.abs(got.astype(exact.dtype) - exact) / unit
        same = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
        return np.where(same & ~np.isfinite(rounded), 0, np.where(np.isnan(error), np.inf, error))


def exact_value(name: str, x: torch.Tensor) -> np.ndarray:
    """In a wider type: float64 for float32, extended precision (or a series in it) for float64."""
    if x.dtype == torch.float32:
        wide = x.double()
        functions = {"erfc": torch.special.erfc, "digamma": torch.special.digamma, "sigmoid": None}
        if name == "sigmoid":
            e = torch.exp(-wide.abs())
            return torch.where(wide >= 0, 1 / (1 + e), e / (1 + e)).numpy()
        return (functions.get(name) or getattr(torch, name))(wide).numpy()
    with np.errstate(all="ignore"):
        wide = x.numpy().astype(np.longdouble)
        if name == "sigmoid":
            e = np.exp(-np.abs(wide))
            return np.where(wide >= 0, 1 / (1 + e), e / (1 + e))
        if name == "erf":
            return erf_extended(wide)
        return getattr(np, name)(wide)


def erf_extended(x: np.ndarray) -> np.ndarray:
    """erf in extended precision: its Maclaurin series times exp(-x^2), whose terms are positive; 1 beyond 7."""
    z = np.minimum(np.abs(x), np.longdouble(7)) ** 2
    term = total = np.ones_like(z)
    for n in range(1, 260):
        term = term * 2 * z / (2 * n + 1)
        total = total + term
    value = 2 / np.sqrt(np.longdouble("3.14159265358979323846264338327950288")) * np.sqrt(z) * np.exp(-z) * total
    value = np.where(np.abs(x) >= 7, np.longdouble(1), value)
    return np.where(np.isnan(x), x, np.copysign(value, x))


@pytest.fixture(scope="module", params=AVAILABLE)
def kernels(request, tmp_path_factory):
    k = Kernels()
    for dtype in (torch.float32, torch.float64):
        c = C_TYPES[dtype]
        for name in VECTORIZED + LIBRARY + EXACT_UNARY:
            k.add(f"{name}_{c}", [c], c, f"sh::{name}(x0)")
        for name in [*EXACT_BINARY, "pow", "atan2"]:
            k.add(f"{name}_{c}", [c, c], c, f"sh::{name}(x0, x1)")
        for name in COMPARISONS:
            k.add(f"{name}_{c}", [c, c], "bool", f"sh::{name}(x0, x1)")
        for name in ("isnan", "isinf", "isfinite"):
            k.add(f"{name}_{c}", [c], "bool", f"sh::{name}(x0)")
        k.add(f"fma_{c}", [c, c, c], c, "sh::fma(x0, x1, x2)")
        k.add(f"select_{c}", ["bool", c, c], c, "sh::select(x0, x1, x2)")
        k.add(f"relu_{c}", [c], c, f"sh::max(x0, {c}(0))")
        k.add(f"ramp_{c}", [c], c, f"sh::select(sh::gt(x0, {c}(0)), x0, {c}(0))")
        k.add(f"mixed_{c}", [c], c, f"sh::sub({c}(1), sh::mul(x0, {c}(2)))")
    for dtype in INTEGERS:
        c = C_TYPES[dtype]
        for name in INTEGER_BINARY:
            k.add(f"{name}_{c}", [c, c], c, f"sh::{name}(x0, x1)")
        for name in COMPARISONS:
            k.add(f"{name}_{c}", [c, c], "bool", f"sh::{name}(x0, x1)")
        for name in ("neg", "abs", "sign", "bnot", "floor"):
            k.add(f"{name}_{c}", [c], c, f"sh::{name}(x0)")
        k.add(f"select_{c}", ["bool", c, c], c, "sh::select(x0, x1, x2)")
    for name in ("land", "lor", "lxor", "eq", "ne", "band", "bor", "bxor"):
        k.add(f"{name}_bool", ["bool", "bool"], "bool", f"sh::{name}(x0, x1)")
    k.add("lnot_bool", ["bool"], "bool", "sh::lnot(x0)")
    k.add("select_bool", ["bool", "bool", "bool"], "bool", "sh::select(x0, x1, x2)")
    # conditions of different widths meet: from doubles, from bytes, from a bool container
    k.add(
        "widths", ["double", "int8_t", "bool"], "bool", "sh::lor(sh::land(sh::gt(x0, 0.0), sh::lt(x1, int8_t(3))), x2)"
    )
    for source in C_TYPES.values():
        for target in C_TYPES.values():
            k.add(cast_name(source, target), [source], target, f"sh::cast<{target}>(x0)")
    k.build(tmp_path_factory.mktemp("vector"), request.param)
    return k


def cast_name(source: str, target: str) -> str:
    return f"cast_{source}_{target}".replace("::", "_")


@pytest.mark.parametrize("name", VECTORIZED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_vectorized_functions_are_within_two_ulps(kernels, name, dtype):
    x = floats(dtype, 60_000 if dtype == torch.float32 or name != "erf" else 3_000)
    if dtype == torch.float64 and name in ("sin", "cos"):
        x = x[~(x.abs() > 1e6)]  # beyond, the C library is called; extended precision is no reference there
    got = kernels.run(f"{name}_{C_TYPES[dtype]}", [x], dtype).numpy()
    error = ulps(got, exact_value(name, x))
    assert error.max() <= 2, f"{name}({x[error.argmax()]!r}) = {got[error.argmax()]!r}: {error.max()} ulp"
    zero = got[(x == 0).numpy()]
    if name in ("expm1", "log1p", "tanh", "erf", "sin"):
        assert (np.signbit(zero) == np.signbit(x[x == 0].numpy())).all(), "odd functions keep the sign of zero"


@pytest.mark.parametrize("name", LIBRARY)
def test_library_functions(kernels, name):
    x = floats(torch.float32, 2000)
    if name in ("digamma", "lgamma"):
        x = x[(x > -20) & (x < 1e4)]
        x = x[(x > 0) | ((x - x.round()).abs() > 0.01)]
    got = kernels.run(f"{name}_float", [x], torch.float32).numpy()
    exact = exact_value(name, x)
    # Digamma and lgamma cross zero, where relative error has no meaning for a float32 argument.
    error = np.where(np.abs(exact) < 0.05, 0, ulps(got, exact)) if name in ("digamma", "lgamma") else ulps(got, exact)
    assert error.max() <= 4, f"{name}({x[error.argmax()]!r}) = {got[error.argmax()]!r}: {error.max()} ulp"
    double = kernels.run(f"{name}_double", [x.double()], torch.float64)
    expected = torch.from_numpy(exact)
    torch.testing.assert_close(double, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def root(t: torch.Tensor) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.sqrt(t.numpy())


@pytest.mark.parametrize("name", [*EXACT_UNARY, "relu", "ramp", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_exact_functions_of_one_number(kernels, name, dtype):
    x = floats(dtype, 3000)
    own = {
        "rcp": lambda t: 1 / t,
        # NumPy's root is correctly rounded; PyTorch's may be one unit off
        "sqrt": lambda t: torch.from_numpy(root(t)),
        "rsqrt": lambda t: 1 / torch.from_numpy(root(t)),
        "relu": torch.relu,
        "ramp": lambda t: torch.where(t > 0, t, torch.zeros_like(t)),
        "mixed": lambda t: (1 - t.double() * 2).to(dtype) if dtype == torch.float32 else 1 - t * 2,
    }
    expected = own[name](x) if name in own else getattr(torch, name)(x)
    got = kernels.run(f"{name}_{C_TYPES[dtype]}", [x], dtype)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    if name in ("sqrt", "neg", "abs", "trunc", "round"):
        known = ~x.isnan()
        assert (got.signbit() == expected.signbit())[known].all()


@pytest.mark.parametrize("name", EXACT_BINARY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_exact_functions_of_two_numbers(kernels, name, dtype):
    torch_name = {"min": "minimum", "max": "maximum", "mod": "remainder", "floordiv": "floor_divide"}.get(name, name)
    x, y = floats(dtype, 3000, 1), floats(dtype, 3000, 2).roll(7)
    if name in ("fmod", "mod", "floordiv"):  # ordinary magnitudes, where PyTorch's own vector code is exact
        keep = (x.abs() < 1e3) & (y.abs() < 1e3) & ((y.abs() > 1e-2) | (y == 0))
        x, y = x[keep], y[keep]
        x, y = (
            torch.cat([x, torch.tensor([7.0, -7, 7, -7, 6, -6], dtype=dtype)]),
            torch.cat([y, torch.tensor([3.0, 3, -3, -3, 3, -3], dtype=dtype)]),
        )
    got = kernels.run(f"{name}_{C_TYPES[dtype]}", [x, y], dtype)
    expected = getattr(torch, torch_name)(x, y)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_fma_power_and_atan2(kernels):
    x, y, z = (floats(torch.float32, 3000, seed).roll(seed) for seed in (1, 2, 3))
    small = (x.abs() < 1e10) & (y.abs() < 1e10) & (z.abs() < 1e10)
    got = kernels.run("fma_float", [x[small], y[small], z[small]], torch.float32)
    exact = x[small].double() * y[small].double() + z[small].double()
    bound = torch.finfo(torch.float32).eps * (exact.abs() + (x * y)[small].abs().double()) + 1e-44
    assert ((got.double() - exact).abs() <= bound).all()
    for name in ("pow", "atan2"):
        got = kernels.run(f"{name}_float", [x, y], torch.float32).numpy()
        assert ulps(got, getattr(torch, name)(x.double(), y.double()).numpy()).max() <= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *INTEGERS], ids=str)
def test_comparisons_and_selection(kernels, dtype):
    x, y = pair(dtype)
    for name in COMPARISONS:
        assert torch.equal(kernels.run(f"{name}_{C_TYPES[dtype]}", [x, y], torch.bool), getattr(torch, name)(x, y)), (
            name
        )
    condition = torch.arange(len(x)) % 3 == 0
    got = kernels.run(f"select_{C_TYPES[dtype]}", [condition, x, y], dtype)
    torch.testing.assert_close(got, torch.where(condition, x, y), rtol=0, atol=0, equal_nan=True)
    if dtype.is_floating_point:
        for name in ("isnan", "isinf", "isfinite"):
            assert torch.equal(kernels.run(f"{name}_{C_TYPES[dtype]}", [x], torch.bool), getattr(torch, name)(x)), name


def pair(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    if dtype.is_floating_point:
        return floats(dtype, 1000, 1), torch.where(
            torch.arange(3272) % 5 == 0, floats(dtype, 1000, 1), floats(dtype, 1000, 2)
        )
    info, generator = torch.iinfo(dtype), torch.Generator().manual_seed(0)
    edges = torch.tensor([0, 1, 2, 3, 7, 8, 31, 63, 64, info.max, info.min, info.max - 1], dtype=dtype)
    if info.min < 0:
        edges = torch.cat([edges, -edges[1:9], torch.tensor([-1, info.min + 1], dtype=dtype)])
    x, y = (t.flatten() for t in torch.meshgrid(edges, edges, indexing="ij"))
    small = torch.randint(-20 if info.min < 0 else 0, 20, (2, 400), generator=generator).to(dtype)
    return torch.cat([x, small[0]]), torch.cat([y, small[1]])


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("name", INTEGER_BINARY)
def test_integers(kernels, name, dtype):
    x, y = pair(dtype)
    info = torch.iinfo(dtype)
    divides = name in ("div", "fmod", "mod", "floordiv")
    if divides:
        wraps = (x == info.min) & (y == -1) if info.min < 0 else torch.zeros_like(x, dtype=torch.bool)
        got = kernels.run(f"{name}_{C_TYPES[dtype]}", [x, y], dtype)
        assert (got[y == 0] == 0).all(), "no machine trap, a defined result"
        assert (got[wraps] == (info.min if name in ("div", "floordiv") else 0)).all()
        x, y = x[(y != 0) & ~wraps], y[(y != 0) & ~wraps]
    if name == "pow" and info.min < 0:
        keep = (y >= 0) | (x.abs() == 1)  # PyTorch refuses other negative exponents of integers
        x, y = x[keep], y[keep]
    expected = {
        "min": torch.minimum,
        "max": torch.maximum,
        "div": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
        "mod": torch.remainder,
        "floordiv": lambda a, b: torch.div(a, b, rounding_mode="floor"),
        "band": torch.bitwise_and,
        "bor": torch.bitwise_or,
        "bxor": torch.bitwise_xor,
        "shl": torch.bitwise_left_shift,
        "shr": torch.bitwise_right_shift,
    }.get(name) or getattr(torch, name)
    got = kernels.run(f"{name}_{C_TYPES[dtype]}", [x, y], dtype)
    want = expected(x, y) if name != "pow" else integer_power(x, y)
    assert torch.equal(got, want), [t[got != want][:5] for t in (x, y, got, want)]


def integer_power(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    bits = torch.iinfo(x.dtype).bits
    values = [pow(a, b, 1 << bits) if b >= 0 else a ** (b % 2) for a, b in zip(x.tolist(), y.tolist())]
    if torch.iinfo(x.dtype).min < 0:
        values = [v - (1 << bits) if v >= 1 << (bits - 1) else v for v in values]
    return torch.tensor(values, dtype=x.dtype)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_of_one_argument(kernels, dtype):
    x = pair(dtype)[0]
    for name, function in (("neg", torch.neg), ("abs", torch.abs), ("sign", torch.sign), ("bnot", torch.bitwise_not)):
        assert torch.equal(kernels.run(f"{name}_{C_TYPES[dtype]}", [x], dtype), function(x)), name
    assert torch.equal(kernels.run(f"floor_{C_TYPES[dtype]}", [x], dtype), x)


def test_logic(kernels):
    bits = torch.arange(256)
    a, b, c = (bits & 1 != 0), (bits & 2 != 0), (bits & 4 != 0)
    expected = {
        "land": a & b, "lor": a | b, "lxor": a ^ b, "eq": a == b, "ne": a != b, "band": a & b, "bor": a | b, "bxor": a ^ b
    }  # fmt: skip
    for name, want in expected.items():
        assert torch.equal(kernels.run(f"{name}_bool", [a, b], torch.bool), want), name
    assert torch.equal(kernels.run("lnot_bool", [a], torch.bool), ~a)
    assert torch.equal(kernels.run("select_bool", [a, b, c], torch.bool), torch.where(a, b, c))
    x, y = torch.linspace(-1, 1, 256, dtype=torch.float64), (bits % 7).to(torch.int8)
    assert torch.equal(kernels.run("widths", [x, y, c], torch.bool), ((x > 0) & (y < 3)) | c)


@pytest.mark.parametrize("source", C_TYPES, ids=str)
@pytest.mark.parametrize("target", C_TYPES, ids=str)
def test_casts_are_those_of_pytorch(kernels, source, target):
    generator = torch.Generator().manual_seed(3)
    if source.is_floating_point:
        wide = torch.cat(
            [torch.randn(500, generator=generator) * 40, torch.tensor([0.0, -0.0, 0.5, -0.5, 1.0, 127.9, 100.49])]
        )
        if target.is_floating_point or target == torch.bool:
            extreme = floats(torch.float32, 3000)
            wide = torch.cat([wide.double(), extreme.double(), floats(torch.float64, 300)])
        if target == torch.uint8:
            wide = wide.abs()
        x = wide.to(source)
    elif source == torch.bool:
        x = torch.arange(100) % 3 == 0
    else:
        x = pair(source)[0]
    got = kernels.run(cast_name(C_TYPES[source], C_TYPES[target]), [x], target)
    expected = x.to(target)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_headers_include_nothing_large():
    """<cmath> alone would cost more compile time than the whole header."""
    for header in INCLUDE.glob("*.h"):
        included = re.findall(r"#include <(.*)>", header.read_text())
        assert set(included) <= {"stdint.h"}, header.name
