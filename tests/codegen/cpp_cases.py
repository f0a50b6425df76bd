"""Maps of every class that the C++ target distinguishes, and what it takes to run a kernel on NumPy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shorthaul.codegen.cpp.emit import Kernel, emit_kernel, emit_source
from shorthaul.codegen.cpp.plan import DEFAULT, Limits
from shorthaul.ir.builder import at, fresh_params, inside, make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import (
    DType,
    bfloat16,
    bool_,
    float16,
    float32,
    float64,
    int8,
    int32,
    int64,
    round_bfloat16,
    uint8,
)
from shorthaul.ir.interpreter import interpret
from shorthaul.ir.memlet import Condition, Indirect, Memlet
from shorthaul.ir.nodes import Map
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value, read, where
from shorthaul.symbolic import Symbol, evaluate


@dataclass
class Case:
    """A map with its containers; `ranges` bounds the random values of integer inputs, `values` fixes inputs, `sizes` symbols."""

    name: str
    map: Map
    containers: dict[str, Container]
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    sizes: dict[Symbol, int] = field(default_factory=dict)
    special: bool = False  # NaN and infinities among the inputs
    tolerance: float = 0.0  # relative to the largest magnitude; 0: by dtype
    in_place: dict[str, str] = field(default_factory=dict)  # output -> input whose memory it takes


def table(*containers: Container) -> dict[str, Container]:
    return {c.name: c for c in containers}


def array(name: str, shape: Sequence[object], dtype: DType = float32, order: Sequence[int] | None = None, gap: int = 1) -> Container:
    """A container; `order` lists its dimensions from the outermost in memory, `gap` spreads the innermost one."""
    if order is None and gap == 1:
        return Container(name, dtype, tuple(shape))  # type: ignore[arg-type]
    strides: list[object] = [0] * len(shape)
    step: object = gap
    for d in reversed(order or range(len(shape))):
        strides[d] = step
        step = step * shape[d]  # type: ignore[operator]
    return Container(name, dtype, tuple(shape), tuple(strides))  # type: ignore[arg-type]


def flat(params: Sequence[Symbol], reads: Mapping[str, Memlet], writes: Mapping[str, Memlet], code: object,
         containers: Mapping[str, Container]) -> Map:  # fmt: skip
    return make_map(params, reads, writes, code, {k: c.dtype for k, c in containers.items()})  # type: ignore[arg-type]


def f(op: str) -> Callable[..., Scalar]:
    return lambda *args: apply(op, *args)


exp, sigmoid, tanh, sqrt, maximum = f("exp"), f("sigmoid"), f("tanh"), f("sqrt"), f("max")


def silu(x: Scalar) -> Scalar:
    return x * sigmoid(x)


# running -----------------------------------------------------------------------------------------------------------------
def storage(c: Container, sizes: Mapping[Symbol, int]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    shape = tuple(evaluate(n, sizes) for n in c.shape)
    strides = tuple(evaluate(n, sizes) for n in c.actual_strides)
    extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if all(shape) else 0
    return shape, strides, extent


def memory_type(d: DType) -> np.dtype:
    return np.dtype(np.uint16) if d is bfloat16 else np.dtype(d.name)


def to_memory(values: np.ndarray, d: DType) -> np.ndarray:
    if d is bfloat16:
        return (round_bfloat16(values).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return np.asarray(values).astype(d.name)


def from_memory(values: np.ndarray, d: DType) -> np.ndarray:
    if d is bfloat16:
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values


def random_input(c: Container, case: Case, rng: np.random.Generator) -> np.ndarray:
    shape, _, _ = storage(c, case.sizes)
    if c.name in case.values:
        return case.values[c.name]
    if c.dtype is bool_:
        return rng.random(shape) < 0.5
    if c.dtype.is_integer:
        low, high = case.ranges.get(c.name, (0 if c.dtype is uint8 else -5, 6))
        return rng.integers(low, high, shape).astype(c.dtype.name)
    x = rng.standard_normal(shape).astype(np.float32)
    if case.special and x.size:
        flat_view = x.reshape(-1)
        for value in (np.nan, np.inf, -np.inf, -0.0):
            flat_view[rng.integers(0, x.size, max(1, x.size // 50))] = value
    if c.dtype is bfloat16:
        return round_bfloat16(x)
    return x.astype(c.dtype.name)


def run_kernel(kernel: Kernel, library: ctypes.CDLL, case: Case, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a kernel on fresh memory: outputs are poisoned, gaps between elements must come back untouched."""
    memory: dict[str, np.ndarray] = {}
    views: dict[str, np.ndarray] = {}
    for name in kernel.arguments:
        c = case.containers[name]
        shape, strides, extent = storage(c, case.sizes)
        T = memory_type(c.dtype)
        host = case.in_place.get(name)
        if host is not None:
            continue
        data = np.empty(extent + 64, T)
        data.view(np.uint8)[:] = 0x7F if c.dtype is not bool_ else 1
        if c.dtype.is_float and c.dtype is not bfloat16:
            data[:] = np.nan
        memory[name] = data
        views[name] = np.lib.stride_tricks.as_strided(data, shape, tuple(s * T.itemsize for s in strides))
        if name in inputs:
            views[name][...] = to_memory(inputs[name], c.dtype)
    for name, host in case.in_place.items():
        memory[name], views[name] = memory[host], views[host]
    before = {k: v.copy() for k, v in memory.items()}
    faults = np.zeros(5, np.int64)
    pointers = (ctypes.c_void_p * (len(kernel.arguments) + 1))(*(memory[n].ctypes.data for n in kernel.arguments), faults.ctypes.data)
    sizes = (ctypes.c_int64 * max(1, len(kernel.sizes)))(*(case.sizes[s] for s in kernel.sizes))
    getattr(library, kernel.name)(pointers, sizes)
    assert not faults.any(), f"a kernel reports an index out of range: {faults}"
    written = case.map.written_containers()
    for name, data in memory.items():
        c = case.containers[name]
        touched = np.zeros(data.size, bool)
        shape, strides, _ = storage(c, case.sizes)
        np.lib.stride_tricks.as_strided(touched, shape, strides)[...] = True
        touched |= name not in written and name not in case.in_place.values() and False
        same = before[name].view(np.uint8).reshape(data.size, -1) == data.view(np.uint8).reshape(data.size, -1)
        kept = same.all(axis=1)
        assert kept[~touched].all(), f"{case.name}: memory outside of container {name} was written"
        if name not in written and name not in case.in_place.values():
            assert kept.all(), f"{case.name}: input {name} was written"
    return {n: from_memory(views[n].copy(), case.containers[n].dtype) for n in written}


def oracle(case: Case, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the interpreter computes in float64."""
    program = Program(containers={k: c.with_(role="input") if k in inputs else c for k, c in case.containers.items()}, nodes=[case.map])
    results = interpret(program, dict(inputs), sizes=case.sizes, wide=True)
    return {n: results[n] for n in case.map.written_containers()}


_EPS = {"float64": 1e-13, "float32": 2e-6, "bfloat16": 1e-2, "float16": 2e-3}


def compare(case: Case, name: str, got: np.ndarray, want: np.ndarray) -> None:
    """Integers and conditions exactly, floats to a few roundings of the largest magnitude; NaN and infinities at the same places."""
    d = case.containers[name].dtype
    if not d.is_float:
        np.testing.assert_array_equal(got, want, err_msg=f"{case.name}: {name}")
        return
    want = np.asarray(want, np.float64)
    got64 = np.asarray(got, np.float64)
    big = {"float32": 3.4e38, "bfloat16": 3.3e38, "float16": 65504, "float64": np.inf}[d.name]
    want = np.where(np.abs(want) > big, np.copysign(np.inf, want), want)
    np.testing.assert_array_equal(np.isnan(got64), np.isnan(want), err_msg=f"{case.name}: NaN in {name}")
    np.testing.assert_array_equal(np.isinf(got64) * np.sign(np.nan_to_num(got64)), np.isinf(want) * np.sign(np.nan_to_num(want)),
                                  err_msg=f"{case.name}: infinities in {name}")  # fmt: skip
    finite = np.isfinite(want)
    if not finite.any():
        return
    scale = max(np.abs(want[finite]).max(), 1e-30)
    error = np.abs(got64[finite] - want[finite]).max() / scale
    limit = case.tolerance or _EPS[d.name]
    assert error <= limit, f"{case.name}: relative error of {name} is {error:.3g}, allowed {limit:.3g}"


def build_all(cases: Sequence[Case], cache: Path, units: int = 4, limits: Limits = DEFAULT) -> tuple[dict[str, Kernel], ctypes.CDLL]:
    """The kernels of all cases in one library."""
    from shorthaul.runtime.build import build

    kernels = {c.name: emit_kernel(c.map, c.containers, limits=limits) for c in cases}
    names = sorted({k.name for k in kernels.values()})
    path = build(emit_source(kernels.values(), units), symbols=names, cache_directory=cache)
    return kernels, ctypes.CDLL(str(path))


# elementwise -------------------------------------------------------------------------------------------------------------
def elementwise(dtype: DType, n: int) -> Case:
    cs = table(array("x", (n,), dtype), array("z", (n,), dtype), array("y", (n,), dtype))
    (i,) = fresh_params((n,))

    def code(x: Scalar, z: Scalar) -> dict[str, Scalar]:
        t = dtype.compute
        x, z = cast(x, t), cast(z, t)
        value = silu(x) * z + 0.5 if dtype.is_float else where(x < z, x * z + 3, x - z)
        return {"y": cast(value, dtype)}

    return Case(f"elementwise {dtype} {n}", flat((i,), {"x": at("x", i), "z": at("z", i)}, {"y": at("y", i)}, code, cs), cs,
                special=dtype is float32 and n > 50)  # fmt: skip


def all_float_operations(dtype: DType) -> Iterator[Case]:
    """Every operation of the vocabulary on lanes and on a plain number."""
    from shorthaul.ir.scalar_ops import SCALAR_OPS

    n = 37
    positive = {"log", "log2", "log10", "sqrt", "rsqrt", "lgamma", "digamma", "pow", "acosh", "log1p", "zeta", "trigamma",
                "k0", "k1", "k0e", "k1e", "bessel_y0", "bessel_y1", "igamma", "igammac"}  # fmt: skip
    unit = {"asin", "acos", "atanh", "erfinv"}
    for op, row in SCALAR_OPS.items():
        if row.kind in ("philox", "logic") or op == "where":
            continue
        out = bool_ if row.kind == "compare" else dtype
        cs = table(
            *(array(f"x{k}", (n,), dtype) for k in range(row.arity)), array("u", (), dtype), array("y", (n,), out), array("w", (), out)
        )
        (i,) = fresh_params((n,))

        def prepared(x: Scalar, op: str = op) -> Scalar:
            if op == "ndtri":
                return tanh(x) * 0.15 + 0.25
            return apply("abs", x) + 1.25 if op in positive else tanh(x) * 0.9 if op in unit else x

        def vector_code(*, op: str = op, arity: int = row.arity, **v: Scalar) -> dict[str, Scalar]:
            return {"y": apply(op, *(prepared(v[f"x{k}"]) for k in range(arity)))}

        def scalar_code(*, op: str = op, arity: int = row.arity, u: Scalar) -> dict[str, Scalar]:
            return {"w": apply(op, *([prepared(u)] * arity))}

        tolerance = 1e-5 if dtype is float32 else 1e-12
        operands = {f"x{k}": at(f"x{k}", i) for k in range(row.arity)}
        yield Case(f"{op} {dtype} lanes", flat((i,), operands, {"y": at("y", i)}, vector_code, cs),
                   cs, tolerance=tolerance)  # fmt: skip
        yield Case(f"{op} {dtype} plain", flat((), {"u": at("u")}, {"w": at("w")}, scalar_code, cs), cs, tolerance=tolerance)


def integer_operations(dtype: DType) -> Iterator[Case]:
    n = 45
    names = [
        "add",
        "sub",
        "mul",
        "neg",
        "abs",
        "sign",
        "max",
        "min",
        "floordiv",
        "mod",
        "and",
        "or",
        "xor",
        "not",
        "shl",
        "shr",
        "eq",
        "lt",
    ]
    cs = table(array("a", (n,), dtype), array("b", (n,), dtype))
    (i,) = fresh_params((n,))
    writes, code = {}, {}
    a, b = read("a", dtype), read("b", dtype)
    from shorthaul.ir.scalar_ops import SCALAR_OPS

    for op in names:
        if dtype is uint8 and op in ("neg", "abs", "sign"):
            continue
        value = apply(op, a) if SCALAR_OPS[op].arity == 1 else apply(op, a, b)
        out = array(f"y_{op}", (n,), value.dtype)
        cs[out.name] = out
        writes[out.name], code[out.name] = at(out, i), value
    yield Case(f"integer operations {dtype}", flat((i,), {"a": at("a", i), "b": at("b", i)}, writes, code, cs), cs, ranges={"b": (1, 5)})


def casts() -> Iterator[Case]:
    types = (float64, float32, bfloat16, float16, int64, int32, int8, uint8, bool_)
    n = 21
    for source in types:
        cs = table(array("x", (n,), source))
        (i,) = fresh_params((n,))
        writes, code = {}, {}
        x = read("x", source)
        for target in types:
            out = array(f"y_{target}", (n,), target)
            cs[out.name] = out
            writes[out.name] = at(out, i)
            code[out.name] = cast(cast(x, source.compute), target) if source.compute is not source else cast(x, target)
        low = 0 if source.is_integer else -5
        yield Case(f"casts from {source}", flat((i,), {"x": at("x", i)}, writes, code, cs), cs, ranges={"x": (low, 100)},
                   values={"x": np.abs(np.linspace(0, 90, n)).astype(source.numpy)} if source.is_float else {})  # fmt: skip


def broadcast(sizes: tuple[int, int, int], layout: Sequence[int]) -> Case:
    """y[n,c,h] = silu(x[n,c,h] * a[c] + b[c]) in any layout."""
    cs = table(array("x", sizes, order=layout), array("y", sizes, order=layout), array("a", sizes[1:2]), array("b", sizes[1:2]))
    n, c, h = fresh_params(sizes)
    m = flat((n, c, h), {"x": at("x", n, c, h), "a": at("a", c), "b": at("b", c)}, {"y": at("y", n, c, h)},
             lambda x, a, b: {"y": silu(x * a + b)}, cs)  # fmt: skip
    return Case(f"broadcast {sizes} layout {tuple(layout)}", m, cs)


def transposed(shape: tuple[int, int], dtype: DType = float32) -> Case:
    cs = table(array("x", shape, dtype), array("y", shape[::-1], dtype), array("z", shape, dtype))
    i, j = fresh_params(shape)
    m = flat((i, j), {"x": at("x", i, j), "z": at("z", i, j)}, {"y": at("y", j, i)}, lambda x, z: {"y": x * z}, cs)
    return Case(f"transposed {shape} {dtype}", m, cs)


def gaps(n: int) -> Case:
    cs = table(array("x", (n, 5), order=(1, 0), gap=3), array("y", (n, 5), gap=2))
    i, j = fresh_params((n, 5))
    return Case(f"strided {n}", flat((i, j), {"x": at("x", i, j)}, {"y": at("y", i, j)}, lambda x: {"y": x + 1.0}, cs), cs)


def in_place(n: int) -> Case:
    cs = table(array("x", (n, 20)), array("g", (n, 20)), array("y", (n, 20)))
    i, j = fresh_params((n, 20))
    m = flat((i, j), {"x": at("x", i, j), "g": at("g", i, j)}, {"y": at("y", i, j)}, lambda x, g: {"y": x - g * 0.1}, cs)
    return Case(f"in place {n}", m, cs, in_place={"y": "x"})


def positions(n: int) -> Case:
    """Values computed from the index."""
    cs = table(array("y", (n, 7), int64), array("z", (n, 7), float32))
    i, j = fresh_params((n, 7))
    m = flat((i, j), {}, {"y": at("y", i, j), "z": at("z", i, j)},
             {"y": index_value(i * 7 + j) * 3, "z": cast(index_value(i - 2 * j), float32)}, cs)  # fmt: skip
    return Case(f"positions {n}", m, cs)


def random_numbers(n: int) -> Case:
    cs = table(array("seed", (), int64), array("offset", (), int64), array("x", (n, 3)), array("y", (n, 3)))
    i, j = fresh_params((n, 3))

    def code(seed: Scalar, offset: Scalar, x: Scalar) -> dict[str, Scalar]:
        u = apply("philox", seed, offset, index_value(i * 3 + j))
        return {"y": where(u < 0.3, const(0, float32), x / 0.7)}

    m = flat((i, j), {"seed": at("seed"), "offset": at("offset"), "x": at("x", i, j)}, {"y": at("y", i, j)}, code, cs)
    return Case(f"random {n}", m, cs, values={"seed": np.array(2**40 + 17), "offset": np.array(12345)})


# reductions ---------------------------------------------------------------------------------------------------------------
def row_reduction(rows: int, cols: int, combiner: str = "sum", dtype: DType = float32) -> Case:
    cs = table(array("x", (rows, cols), dtype), array("s", (rows,), dtype))
    i, j = fresh_params((rows, cols))

    def code(x: Scalar) -> dict[str, Scalar]:
        value = cast(x, dtype.compute)
        return {"s": cast(value * value if dtype.is_float and combiner == "sum" else value, dtype)}

    m = flat((i, j), {"x": at("x", i, j)}, {"s": at("s", i, combine=combiner)}, code, cs)
    return Case(f"row {combiner} {dtype} {rows}x{cols}", m, cs, special=combiner in ("max", "min") and dtype is float32)


def column_reduction(rows: int, cols: int, combiner: str = "sum", dtype: DType = float32) -> Case:
    cs = table(array("x", (rows, cols), dtype), array("s", (cols,), dtype))
    i, j = fresh_params((rows, cols))
    m = flat((i, j), {"x": at("x", i, j)}, {"s": at("s", j, combine=combiner)}, lambda x: {"s": x}, cs)
    return Case(f"column {combiner} {dtype} {rows}x{cols}", m, cs, special=combiner in ("max", "min") and dtype is float32)


def full_reduction(n: int, combiner: str = "sum", dtype: DType = float32) -> Case:
    cs = table(array("x", (n,), dtype), array("s", (), dtype))
    (i,) = fresh_params((n,))
    return Case(f"full {combiner} {dtype} {n}", flat((i,), {"x": at("x", i)}, {"s": at("s", combine=combiner)}, lambda x: {"s": x}, cs), cs)


def condition_reduction(rows: int, cols: int, combiner: str, axis: int) -> Case:
    cs = table(array("x", (rows, cols)), array("s", ((rows, cols)[axis],), bool_))
    i, j = fresh_params((rows, cols))
    level = 2.2 if combiner == "any" else -2.2
    m = flat((i, j), {"x": at("x", i, j)}, {"s": at("s", (i, j)[axis], combine=combiner)}, lambda x: {"s": x > level}, cs)
    return Case(f"{combiner} of conditions {rows}x{cols} axis {axis}", m, cs)


def compared_conditions(rows: int, cols: int, combiner: str) -> Case:
    """Conditions compared with one another and with a plain one, and the place of the first true (false) one in each column."""
    order = ("eq", "ne", "lt", "le", "gt", "ge", "min", "max")
    arrays = [array(op, (rows, cols), bool_) for op in order]
    cs = table(array("x", (rows, cols)), array("z", (rows, cols)), array("u", (rows,)), *arrays,
               array("value", (cols,), bool_), array("index", (cols,), int64))  # fmt: skip
    i, j = fresh_params((rows, cols))

    def code(x: Scalar, z: Scalar, u: Scalar) -> dict[str, Scalar]:
        a, b = x > 0.0, (z > 0.0) & (u < 1.0)
        return {**{op: apply(op, a, b) if op < "m" else apply(op, u > 0.0, a) for op in order}, "value": a, "index": index_value(i)}

    writes = {**{op: at(op, i, j) for op in order}, **{k: at(k, j, combine=combiner) for k in ("value", "index")}}
    m = flat((i, j), {"x": at("x", i, j), "z": at("z", i, j), "u": at("u", i)}, writes, code, cs)
    return Case(f"conditions compared {rows}x{cols} {combiner}", m, cs)


def statistics(n: int, c: int, hw: int, channels_last: bool) -> Case:
    """Batch-norm backward's two sums and an elementwise result in one pass."""
    order = (0, 2, 1) if channels_last else (0, 1, 2)
    shape = (n, c, hw)
    cs = table(array("x", shape, order=order), array("g", shape, order=order), array("y", shape, order=order), array("mean", (c,)),
               array("s", (c,)), array("t", (c,)), array("r", (n,)))  # fmt: skip
    i, j, k = fresh_params(shape)

    def code(x: Scalar, g: Scalar, mean: Scalar) -> dict[str, Scalar]:
        d = g * sigmoid(x)
        return {"y": d, "s": d, "t": d * (x - mean), "r": d * d}

    m = flat((i, j, k), {"x": at("x", i, j, k), "g": at("g", i, j, k), "mean": at("mean", j)},
             {"y": at("y", i, j, k), "s": at("s", j, combine="sum"), "t": at("t", j, combine="sum"),
              "r": at("r", i, combine="sum")}, code, cs)  # fmt: skip
    return Case(f"statistics {shape} {'channels last' if channels_last else 'channels first'}", m, cs, tolerance=1e-5)


def tuple_combiner(combiner: str, rows: int, cols: int, axis: int) -> Case:
    cs = table(array("x", (rows, cols)))
    i, j = fresh_params((rows, cols))
    kept = ((i,), (j,), ())[axis]
    shape = ((rows,), (cols,), ())[axis]
    parts: dict[str, tuple[DType, Callable[[Scalar], Scalar]]] = {
        "welford": {
            "count": (float32, lambda x: const(1, float32)),
            "mean": (float32, lambda x: x),
            "m2": (float32, lambda x: const(0, float32)),
        },
        "argmax": {"value": (float32, lambda x: x), "index": (int64, lambda x: index_value(i * cols + j))},
        "argmin": {"value": (float32, lambda x: x), "index": (int64, lambda x: index_value(i * cols + j))},
        "online_softmax": {"max": (float32, lambda x: x), "sum": (float32, lambda x: const(1, float32))},
    }[combiner]  # type: ignore[assignment]
    for name, (d, _) in parts.items():
        cs[f"out_{name}"] = array(f"out_{name}", shape, d)
    m = flat((i, j), {"x": at("x", i, j)}, {name: at(f"out_{name}", *kept, combine=combiner) for name in parts},
             lambda x: {name: value(x) for name, (_, value) in parts.items()}, cs)  # fmt: skip
    return Case(f"{combiner} {rows}x{cols} axis {axis}", m, cs, tolerance=1e-5)


def contraction(m_: int, n_: int, k_: int, transpose_b: bool = False, dtype: DType = float32) -> Case:
    cs = table(array("a", (m_, k_), dtype), array("b", (n_, k_) if transpose_b else (k_, n_), dtype), array("c", (m_, n_), dtype))
    i, j, k = fresh_params((m_, n_, k_))
    m = flat((i, j, k), {"a": at("a", i, k), "b": at("b", j, k) if transpose_b else at("b", k, j)}, {"c": at("c", i, j, combine="sum")},
             lambda a, b: {"c": a * b}, cs)  # fmt: skip
    return Case(
        f"contraction {m_}x{n_}x{k_}{' b transposed' if transpose_b else ''} {dtype}", m, cs, tolerance=1e-5 if dtype is float32 else 0
    )


def half_reduction(rows: int, cols: int, axis: int) -> Case:
    """Sums in float32 of bfloat16 values, rounded once."""
    cs = table(array("x", (rows, cols), bfloat16), array("s", ((rows, cols)[axis],), bfloat16))
    i, j = fresh_params((rows, cols))
    m = flat((i, j), {"x": at("x", i, j)}, {"s": at("s", (i, j)[axis], combine="sum")},
             lambda x: {"s": cast(cast(x, float32) * 0.01 + 1.0, bfloat16)}, cs)  # fmt: skip
    return Case(f"bfloat16 sum {rows}x{cols} axis {axis}", m, cs)


# indirect, guarded, scans -------------------------------------------------------------------------------------------------
def embedding(n: int, rows: int, d: int) -> Case:
    cs = table(array("idx", (n,), int64), array("w", (rows, d)), array("y", (n, d)))
    i, j = fresh_params((n, d))
    m = flat((i, j), {"idx": at("idx", i), "w": Memlet("w", (Indirect("idx"), j))}, {"y": at("y", i, j)}, lambda idx, w: {"y": w * 2.0}, cs)
    return Case(f"embedding {n}x{d} of {rows}", m, cs, ranges={"idx": (0, rows)})


def scatter_add(n: int, rows: int, d: int) -> Case:
    cs = table(array("idx", (n,), int64), array("g", (n, d)), array("dw", (rows, d)))
    i, j = fresh_params((n, d))
    m = flat((i, j), {"idx": at("idx", i), "g": at("g", i, j)}, {"dw": Memlet("dw", (Indirect("idx"), j), combine="sum")},
             lambda idx, g: {"dw": g}, cs)  # fmt: skip
    return Case(f"scatter add {n}x{d} into {rows}", m, cs, ranges={"idx": (0, rows)})


def divided_sum(rows: int, n: int, divisor: int, dtype: DType = float32) -> Case:
    """Several iterations meet in one element whose subscript is a quotient (heads that share keys)."""
    cs = table(array("x", (rows, n, 5), dtype), array("y", (rows, -(-n // divisor), 5), dtype))
    r, i, j = fresh_params((rows, n, 5))
    m = flat((r, i, j), {"x": at("x", r, i, j)}, {"y": at("y", r, i // divisor, j, combine="sum")}, lambda x: {"y": x}, cs)
    return Case(f"sum over {n} // {divisor} {dtype}", m, cs)


def folded_sum(n: int, k: int, step: int) -> Case:
    """Quotient and remainder in the subscript: one to one only if the quotient's stride is large enough."""
    cs = table(array("x", (4, n)), array("y", ((n - 1) // k * step + k,)))
    r, i = fresh_params((4, n))
    m = flat((r, i), {"x": at("x", r, i)}, {"y": at("y", step * (i // k) + i % k, combine="sum")}, lambda x: {"y": x}, cs)
    return Case(f"sum of {n} folded by {k} every {step}", m, cs)


def overlapping_sum(n: int, window: int, stride: int, combiner: str = "sum") -> Case:
    """Windows that overlap, written to instead of read from."""
    cs = table(array("x", (3, n, window)), array("y", (3, (n - 1) * stride + window)))
    r, i, j = fresh_params((3, n, window))
    m = flat((r, i, j), {"x": at("x", r, i, j)}, {"y": at("y", r, stride * i + j, combine=combiner)}, lambda x: {"y": x}, cs)
    return Case(f"{combiner} of windows of {window} every {stride}", m, cs)


def histogram(n: int, bins: int) -> Case:
    cs = table(array("idx", (n,), int32), array("h", (bins,), int64))
    (i,) = fresh_params((n,))
    m = flat((i,), {"idx": at("idx", i)}, {"h": Memlet("h", (Indirect("idx"),), combine="sum")}, {"h": const(1, int64)}, cs)
    return Case(f"histogram {n} in {bins}", m, cs, ranges={"idx": (0, bins)})


def pick(n: int, d: int) -> Case:
    """Cross-entropy's choice: y[i] = x[i, t[i]]."""
    cs = table(array("t", (n,), int64), array("x", (n, d)), array("y", (n,)))
    (i,) = fresh_params((n,))
    m = flat((i,), {"t": at("t", i), "x": Memlet("x", (i, Indirect("t")))}, {"y": at("y", i)}, lambda t, x: {"y": -x}, cs)
    return Case(f"pick {n} of {d}", m, cs, ranges={"t": (0, d)})


def scatter(n: int) -> Case:
    cs = table(array("perm", (n,), int64), array("x", (n,)), array("y", (n,)))
    (i,) = fresh_params((n,))
    m = flat((i,), {"perm": at("perm", i), "x": at("x", i)}, {"y": Memlet("y", (Indirect("perm"),))}, lambda perm, x: {"y": x}, cs)
    return Case(f"scatter {n}", m, cs, values={"perm": np.random.default_rng(5).permutation(n)})


def prefix(rows: int, cols: int, axis: int, combiner: str = "sum", dtype: DType = float32) -> Case:
    cs = table(array("x", (rows, cols), dtype), array("y", (rows, cols), dtype))
    i, j = fresh_params((rows, cols))
    m = flat((i, j), {"x": at("x", i, j)}, {"y": at("y", i, j, combine=combiner, scan=(i, j)[axis])}, lambda x: {"y": x}, cs)
    return Case(f"prefix {combiner} {dtype} {rows}x{cols} axis {axis}", m, cs, tolerance=1e-5)


def padded(n: int, m_: int, dtype: DType = float32) -> Case:
    """Zero padding on all sides and a copy of the inside, guards on lanes."""
    cs = table(array("x", (n, m_), dtype), array("y", (n + 3, m_ + 5), dtype))
    i, j = fresh_params((n + 3, m_ + 5))
    a, b = i - 1, j - 2
    m = flat((i, j), {"x": at("x", a, b, guard=(*inside(a, n), *inside(b, m_)), fill=0.5 if dtype.is_float else 1)}, {"y": at("y", i, j)},
             lambda x: {"y": x}, cs)  # fmt: skip
    return Case(f"padded {n}x{m_} {dtype}", m, cs)


def reversed_roll(n: int) -> Case:
    """Negative strides, quotients and remainders in subscripts."""
    cs = table(array("x", (n, 12)), array("y", (n, 12)), array("z", (n, 12)))
    i, j = fresh_params((n, 12))
    m = flat((i, j), {"a": at("x", n - 1 - i, 11 - j), "b": at("x", i, (j + 5) % 12)},
             {"y": at("y", i, j), "z": at("z", i, (j // 4) + (j % 4) * 3)},
             lambda a, b: {"y": a - b, "z": a}, cs)  # fmt: skip
    return Case(f"reversed and rolled {n}", m, cs)


def guarded_write(n: int) -> Case:
    """Triangular sums: only the part with j <= i counts."""
    cs = table(array("x", (n, n)), array("s", (n,)), array("t", (n,)))
    i, j = fresh_params((n, n))
    below = (Condition(i - j),)
    m = flat((i, j), {"x": at("x", i, j)}, {"s": at("s", i, guard=below, combine="sum"), "t": at("t", j, guard=below, combine="sum")},
             lambda x: {"s": x, "t": x}, cs)  # fmt: skip
    return Case(f"triangular sums {n}", m, cs)


def every_second(n: int) -> Case:
    """Combines into every second element: the others become zero."""
    cs = table(array("x", (n, 4)), array("s", (2 * n + 1,)))
    i, j = fresh_params((n, 4))
    return Case(f"every second {n}", flat((i, j), {"x": at("x", i, j)}, {"s": at("s", 2 * i, combine="sum")}, lambda x: {"s": x}, cs), cs)


def symbolic(kind: str, n: int) -> Case:
    """Sizes that are known at run time only."""
    N = Symbol("N", lower=1)
    M = Symbol("M", lower=1)
    cs = table(array("x", (N, M)), array("a", (M,)), array("y", (N, M)), array("s", (M,)), array("r", (N,)), array("t", ()))
    i, j = fresh_params((N, M))
    writes = {"elementwise": {"y": at("y", i, j)}, "columns": {"s": at("s", j, combine="sum")}, "rows": {"r": at("r", i, combine="sum")},
              "full": {"t": at("t", combine="sum")},
              "mixed": {"y": at("y", i, j), "s": at("s", j, combine="sum"), "r": at("r", i, combine="sum")}}[kind]  # fmt: skip
    used = {"x", "a", *(w.container for w in writes.values())}
    cs = {k: c for k, c in cs.items() if k in used}
    m = flat((i, j), {"x": at("x", i, j), "a": at("a", j)}, writes, lambda x, a: {k: sigmoid(x) * a for k in writes}, cs)
    return Case(f"symbolic {kind} {n}", m, cs, sizes={N: n, M: 37}, tolerance=1e-5)
