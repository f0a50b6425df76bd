"""Maps of the C++ target's tests, continued: windows (convolutions, pooling, their gradients) and trees (row kernels)."""

from __future__ import annotations

from collections.abc import Sequence

from cpp_cases import Case, array, exp, flat, sigmoid, silu, table, tanh

from shorthaul.ir.builder import at, fresh_params, inside
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType, float32
from shorthaul.ir.memlet import Condition
from shorthaul.ir.nodes import Map, Tasklet
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value, read
from shorthaul.symbolic import Symbol, index, minimum

# windows -------------------------------------------------------------------------------------------------------------------


def gathered_windows(rows: int, n: int, cols: int, taps: int) -> Case:
    """The gradient of windows along one dimension: a sum of few taps, whose only position is the row of a tile."""
    cs = table(array("g", (rows, n - taps + 1, cols, taps)), array("y", (rows, n, cols)))
    r, i, j, k = fresh_params((rows, n, cols, taps))
    guard = inside(i - k, n - taps + 1)
    reads = {"g": at("g", r, i - k, j, k, guard=guard, fill=0)}
    m = flat((r, i, j, k), reads, {"y": at("y", r, i, j, combine="sum")}, lambda g: {"y": g}, cs)
    return Case(f"gradient of windows of {taps} along {n}", m, cs)


def depthwise(n: int, c: int, h: int, w: int, k: int, s: int, channels_last: bool, dtype: DType = float32) -> Case:
    p = k // 2
    oh, ow = (h + 2 * p - k) // s + 1, (w + 2 * p - k) // s + 1
    order = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)
    cs = table(array("x", (n, c, h, w), dtype, order=order), array("k", (c, k, k), dtype), array("y", (n, c, oh, ow), dtype, order=order))
    i, j, a, b, u, v = fresh_params((n, c, oh, ow, k, k))
    y, x = a * s + u - p, b * s + v - p
    m = flat((i, j, a, b, u, v), {"x": at("x", i, j, y, x, guard=(*inside(y, h), *inside(x, w)), fill=0), "k": at("k", j, u, v)},
             {"y": at("y", i, j, a, b, combine="sum")}, lambda x, k: {"y": x * k}, cs)  # fmt: skip
    return Case(
        f"depthwise {(n, c, h, w)} k{k} s{s} {'last' if channels_last else 'first'} {dtype}",
        m,
        cs,
        tolerance=1e-5 if dtype is float32 else 0,
    )


def depthwise_fused(n: int, c: int, h: int, w: int, k: int, s: int) -> Case:
    """Normalization and SiLU in front of a depthwise convolution, in one tasklet."""
    p = k // 2
    oh, ow = (h + 2 * p - k) // s + 1, (w + 2 * p - k) // s + 1
    order = (0, 2, 3, 1)
    cs = table(
        array("x", (n, c, h, w), order=order),
        array("k", (c, k, k)),
        array("sc", (c,)),
        array("sh", (c,)),
        array("y", (n, c, oh, ow), order=order),
    )
    i, j, a, b, u, v = fresh_params((n, c, oh, ow, k, k))
    y, x = a * s + u - p, b * s + v - p
    guard = (*inside(y, h), *inside(x, w))

    def code(x: Scalar, k: Scalar, sc: Scalar, sh: Scalar, one: Scalar) -> dict[str, Scalar]:
        return {"y": silu(x * sc + sh) * one * k}

    cs["ones"] = array("ones", (n, c, h, w), order=order)
    m = flat((i, j, a, b, u, v), {"x": at("x", i, j, y, x, guard=guard, fill=0), "one": at("ones", i, j, y, x, guard=guard, fill=0),
             "k": at("k", j, u, v), "sc": at("sc", j), "sh": at("sh", j)}, {"y": at("y", i, j, a, b, combine="sum")}, code, cs)  # fmt: skip
    return Case(f"depthwise fused {(n, c, h, w)} k{k} s{s}", m, cs, tolerance=1e-5)


def depthwise_weights(n: int, c: int, h: int, w: int, k: int, s: int, channels_last: bool) -> Case:
    p = k // 2
    oh, ow = (h + 2 * p - k) // s + 1, (w + 2 * p - k) // s + 1
    order = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)
    cs = table(array("x", (n, c, h, w), order=order), array("g", (n, c, oh, ow), order=order), array("dk", (c, k, k)))
    i, j, a, b, u, v = fresh_params((n, c, oh, ow, k, k))
    y, x = a * s + u - p, b * s + v - p
    m = flat((i, j, a, b, u, v), {"x": at("x", i, j, y, x, guard=(*inside(y, h), *inside(x, w)), fill=0), "g": at("g", i, j, a, b)},
             {"dk": at("dk", j, u, v, combine="sum")}, lambda x, g: {"dk": x * g}, cs)  # fmt: skip
    return Case(f"depthwise weight gradient {(n, c, h, w)} k{k} s{s} {'last' if channels_last else 'first'}", m, cs, tolerance=1e-5)


def depthwise_data(n: int, c: int, h: int, w: int, k: int, s: int, channels_last: bool) -> Case:
    """Data gradient in gather form: dx[h] sums g[(h + p - k) / s] where that is an integer inside."""
    p = k // 2
    oh, ow = (h + 2 * p - k) // s + 1, (w + 2 * p - k) // s + 1
    order = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)
    cs = table(array("dx", (n, c, h, w), order=order), array("g", (n, c, oh, ow), order=order), array("k", (c, k, k)))
    i, j, a, b, u, v = fresh_params((n, c, h, w, k, k))
    y, x = a + p - u, b + p - v
    guard = (*inside(y // s, oh), *inside(x // s, ow))
    if s > 1:
        guard = (*guard, Condition(y % s, "eq"), Condition(x % s, "eq"))
    m = flat((i, j, a, b, u, v), {"g": at("g", i, j, y // s, x // s, guard=guard, fill=0), "k": at("k", j, u, v)},
             {"dx": at("dx", i, j, a, b, combine="sum")}, lambda g, k: {"dx": g * k}, cs)  # fmt: skip
    return Case(f"depthwise data gradient {(n, c, h, w)} k{k} s{s} {'last' if channels_last else 'first'}", m, cs, tolerance=1e-5)


def max_pool(n: int, c: int, h: int, w: int, channels_last: bool) -> Case:
    order = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)
    oh, ow = (h + 2 - 3) // 2 + 1, (w + 2 - 3) // 2 + 1
    cs = table(array("x", (n, c, h, w), order=order), array("y", (n, c, oh, ow), order=order))
    i, j, a, b, u, v = fresh_params((n, c, oh, ow, 3, 3))
    y, x = a * 2 + u - 1, b * 2 + v - 1
    m = flat((i, j, a, b, u, v), {"x": at("x", i, j, y, x, guard=(*inside(y, h), *inside(x, w)), fill=float("-inf"))},
             {"y": at("y", i, j, a, b, combine="max")}, lambda x: {"y": x}, cs)  # fmt: skip
    return Case(f"max pool {(n, c, h, w)} {'last' if channels_last else 'first'}", m, cs, special=True)


def convolution(n: int, c: int, o: int, h: int, w: int, k: int, channels_last: bool) -> Case:
    p = k // 2
    order = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)
    cs = table(array("x", (n, c, h, w), order=order), array("k", (o, c, k, k)), array("y", (n, o, h, w), order=order))
    i, j, a, b, q, u, v = fresh_params((n, o, h, w, c, k, k))
    y, x = a + u - p, b + v - p
    m = flat((i, j, a, b, q, u, v), {"x": at("x", i, q, y, x, guard=(*inside(y, h), *inside(x, w)), fill=0), "k": at("k", j, q, u, v)},
             {"y": at("y", i, j, a, b, combine="sum")}, lambda x, k: {"y": x * k}, cs)  # fmt: skip
    return Case(f"convolution {(n, c, o, h, w)} k{k} {'last' if channels_last else 'first'}", m, cs, tolerance=1e-5)


# trees ---------------------------------------------------------------------------------------------------------------------
def nested(params: Sequence[Symbol], body: Sequence[Map | Tasklet], locals_: Sequence[Container] = ()) -> Map:
    return Map(tuple(params), tuple(body), {c.name: c for c in locals_})


def local(name: str, shape: Sequence[object] = (), dtype: DType = float32) -> Container:
    return Container(name, dtype, tuple(shape), storage="register")  # type: ignore[arg-type]


def softmax(
    rows: object, cols: object, transposed_layout: bool = False, dtype: DType = float32, sizes: dict[Symbol, int] | None = None
) -> Case:
    order = (1, 0) if transposed_layout else None
    cs = table(array("x", (rows, cols), dtype, order=order), array("y", (rows, cols), dtype, order=order))
    t = dtype.compute
    lm, ls = local("m", dtype=t), local("s", dtype=t)
    known = {**cs, "m": lm, "s": ls}
    (i,) = fresh_params((rows,))
    j1, j2, j3 = (fresh_params((cols,))[0] for _ in range(3))
    body = [
        flat((j1,), {"x": at("x", i, j1)}, {"m": at("m", combine="max")}, lambda x: {"m": cast(x, t)}, known),
        flat((j2,), {"x": at("x", i, j2), "m": at("m")}, {"s": at("s", combine="sum")}, lambda x, m: {"s": exp(cast(x, t) - m)}, known),
        flat((j3,), {"x": at("x", i, j3), "m": at("m"), "s": at("s")}, {"y": at("y", i, j3)},
             lambda x, m, s: {"y": cast(exp(cast(x, t) - m) / s, dtype)}, known),
    ]  # fmt: skip
    return Case(
        f"softmax {rows}x{cols} {dtype}{' transposed' if transposed_layout else ''}", nested((i,), body, (lm, ls)), cs, sizes=sizes or {}
    )


def layer_norm(rows: object, cols: object, sizes: dict[Symbol, int] | None = None, transposed_layout: bool = False) -> Case:
    """tanh in front, a row buffer, mean and variance as locals, affine behind; mean is also stored."""
    order = (1, 0) if transposed_layout else None
    cs = table(
        array("x", (rows, cols), order=order),
        array("w", (cols,)),
        array("b", (cols,)),
        array("y", (rows, cols), order=order),
        array("mean", (rows,)),
    )
    row, mu, var, rs = local("row", (cols,)), local("mu"), local("var"), local("rs")
    known = {**cs, "row": row, "mu": mu, "var": var, "rs": rs}
    (i,) = fresh_params((rows,))
    j1, j2, j3, j4 = (fresh_params((cols,))[0] for _ in range(4))
    count = cast(index_value(cols), float32)  # type: ignore[arg-type]
    done = Tasklet({"rs": apply("rsqrt", read("var", float32) / count + 1e-5), "mean": read("mu", float32) / count},
                   reads={"var": at("var"), "mu": at("mu")}, writes={"rs": at("rs"), "mean": at("mean", i)})  # fmt: skip
    body = [
        flat((j1,), {"x": at("x", i, j1)}, {"row": at("row", j1)}, lambda x: {"row": tanh(x)}, known),
        flat((j2,), {"r": at("row", j2)}, {"mu": at("mu", combine="sum")}, lambda r: {"mu": r}, known),
        flat((j3,), {"r": at("row", j3), "mu": at("mu")}, {"var": at("var", combine="sum")},
             lambda r, mu: {"var": (r - mu / count) * (r - mu / count)}, known),
        done,
        flat((j4,), {"r": at("row", j4), "mu": at("mu"), "rs": at("rs"), "w": at("w", j4), "b": at("b", j4)}, {"y": at("y", i, j4)},
             lambda r, mu, rs, w, b: {"y": (r - mu / count) * rs * w + b}, known),
    ]  # fmt: skip
    name = f"layer norm {rows}x{cols}{' transposed' if transposed_layout else ''}"
    return Case(name, nested((i,), body, (row, mu, var, rs)), cs, sizes=sizes or {}, tolerance=1e-5)


def layer_norm_backward(rows: int, cols: int) -> Case:
    """Rows with sums of their own and column sums over all rows."""
    cs = table(
        array("g", (rows, cols)),
        array("x", (rows, cols)),
        array("w", (cols,)),
        array("dx", (rows, cols)),
        array("dw", (cols,)),
        array("db", (cols,)),
    )
    a, b = local("a"), local("bb")
    known = {**cs, "a": a, "bb": b}
    (i,) = fresh_params((rows,))
    j1, j2 = (fresh_params((cols,))[0] for _ in range(2))
    body = [
        flat((j1,), {"g": at("g", i, j1), "x": at("x", i, j1), "w": at("w", j1)},
             {"a": at("a", combine="sum"), "b": at("bb", combine="sum"), "dw": at("dw", j1, combine="sum"),
              "db": at("db", j1, combine="sum")},
             lambda g, x, w: {"a": g * w, "b": g * w * x, "dw": g * x, "db": g}, known),
        flat((j2,), {"g": at("g", i, j2), "x": at("x", i, j2), "w": at("w", j2), "a": at("a"), "b": at("bb")}, {"dx": at("dx", i, j2)},
             lambda g, x, w, a, b: {"dx": g * w - (a + x * b) / cols}, known),
    ]  # fmt: skip
    return Case(f"layer norm backward {rows}x{cols}", nested((i,), body, (a, b)), cs, tolerance=1e-5)


def two_dimensional_rows(n: int, c: int, hw: int, channels_last: bool) -> Case:
    """Instance normalization: the rows may be the ones that walk through memory with stride one."""
    order = (0, 2, 1) if channels_last else (0, 1, 2)
    cs = table(array("x", (n, c, hw), order=order), array("y", (n, c, hw), order=order))
    s, q = local("s"), local("q")
    known = {**cs, "s": s, "q": q}
    i, j = fresh_params((n, c))
    k1, k2, k3 = (fresh_params((hw,))[0] for _ in range(3))
    body = [
        flat((k1,), {"x": at("x", i, j, k1)}, {"s": at("s", combine="sum")}, lambda x: {"s": x}, known),
        flat((k2,), {"x": at("x", i, j, k2), "s": at("s")}, {"q": at("q", combine="sum")},
             lambda x, s: {"q": (x - s / hw) * (x - s / hw)}, known),
        flat((k3,), {"x": at("x", i, j, k3), "s": at("s"), "q": at("q")}, {"y": at("y", i, j, k3)},
             lambda x, s, q: {"y": (x - s / hw) * apply("rsqrt", q / hw + 1e-5)}, known),
    ]  # fmt: skip
    return Case(f"instance norm {(n, c, hw)} {'last' if channels_last else 'first'}", nested((i, j), body, (s, q)), cs, tolerance=2e-5)


def chain_of_tasklets(n: int) -> Case:
    """Two tasklets that hand over a scalar, and a map that sums over what an outer map computes."""
    cs = table(array("x", (n, 9)), array("y", (n, 9)), array("s", ()))
    t = local("t")
    i, j = fresh_params((n, 9))
    body = [
        Tasklet({"t": exp(read("x", float32))}, reads={"x": at("x", i, j)}, writes={"t": at("t")}),
        Tasklet({"y": read("t", float32) + 1, "s": read("t", float32)}, reads={"t": at("t")},
                writes={"y": at("y", i, j), "s": at("s", combine="sum")}),
    ]  # fmt: skip
    return Case(f"two tasklets {n}", nested((i, j), body, (t,)), cs, tolerance=1e-5)


def ragged(n: int, tile: int) -> Case:
    """Tiles of rows whose last one is shorter: inner bounds depend on the outer parameter."""
    cs = table(array("x", (n, 6)), array("y", (n, 6)), array("s", (6,)))
    (t,) = fresh_params((-(-n // tile),))
    r = index("r_in_tile", minimum(tile, n - t * tile))
    (j,) = fresh_params((6,))
    m = flat((r, j), {"x": at("x", t * tile + r, j)}, {"y": at("y", t * tile + r, j), "s": at("s", j, combine="sum")},
             lambda x: {"y": x * 2, "s": x}, cs)  # fmt: skip
    return Case(f"ragged {n} by {tile}", nested((t,), [m]), cs)


def table_beside_rows(n: int) -> Case:
    """A small strided operand is packed once for all rows, whose loop becomes the lanes: the copy is the same for all of them."""
    cs = table(array("x", (n, 4)), array("w", (3, 4)), array("g", (n, 3)), array("y", (n, 2)))
    row, s = local("row", (3,)), local("s", (2,))
    known = {**cs, "row": row, "s": s}
    (i,), (l,), (j, k), (m,) = fresh_params((n,)), fresh_params((3,)), fresh_params((3, 2)), fresh_params((2,))
    body = [
        flat((l,), {"g": at("g", i, l)}, {"row": at("row", l)}, lambda g: {"row": exp(g)}, known),
        flat((j, k), {"x": at("x", i, k), "w": at("w", j, k), "r": at("row", j), "g": at("g", i, j)}, {"s": at("s", k, combine="sum")},
             lambda x, w, r, g: {"s": apply("max", x, w) * exp(r) * tanh(g) * exp(g * r) * tanh(r + g) * exp(-x)}, known),
        flat((m,), {"s": at("s", m)}, {"y": at("y", i, m)}, lambda s: {"y": s}, known),
    ]  # fmt: skip
    return Case(f"table beside rows {n}", nested((i,), body, (row, s)), cs, tolerance=1e-5)


def image_forward(n: int, c: int, h: int, w: int, k: int, s: int, staged: bool) -> Case:
    """One kernel an image: normalization, SiLU and padding in front of a depthwise convolution, its statistics behind it.

    staged: the normalized image is a local of its own, read beyond its ends, instead of a part of the window's code.
    """
    p = k // 2
    oh, ow = (h + 2 * p - k) // s + 1, (w + 2 * p - k) // s + 1
    order = (0, 2, 3, 1)
    cs = table(array("x", (n, c, h, w), order=order), array("k", (k, k, c)), array("a", (c,)), array("b", (c,)),
               array("y", (n, c, oh, ow), order=order), array("count", (c,)), array("mean", (c,)), array("m2", (c,)))  # fmt: skip
    row = Container("row", float32, (c, oh, ow), (1, ow * c, c), storage="register")
    known = {**cs, "row": row}
    (i,) = fresh_params((n,))
    j, a, b, u, v = fresh_params((c, oh, ow, k, k))
    yy, xx = a * s + u - p, b * s + v - p
    guard = (*inside(yy, h), *inside(xx, w))
    kept = [index_value(cond.expr) >= 0 for cond in guard]

    def code(x: Scalar, k: Scalar, a: Scalar, b: Scalar) -> dict[str, Scalar]:
        return {"row": apply("where", kept[0] & kept[1] & kept[2] & kept[3], silu(x * a + b), 0.0) * k}

    reads = {"x": at("x", i, j, yy, xx, guard=guard, fill=0), "k": at("k", u, v, j),
             "a": at("a", j, guard=guard, fill=0), "b": at("b", j, guard=guard, fill=0)}  # fmt: skip
    j2, a2, b2 = fresh_params((c, oh, ow))
    j0, a0, b0 = fresh_params((c, h, w))
    image = Container("image", float32, (c, h, w), (1, w * c, c), storage="register")
    known["image"] = image
    first = [flat((j, a, b, u, v), reads, {"row": at("row", j, a, b, combine="sum")}, code, known)]
    if staged:
        first = [flat((j0, a0, b0), {"x": at("x", i, j0, a0, b0), "a": at("a", j0), "b": at("b", j0)}, {"image": at("image", j0, a0, b0)},
                      lambda x, a, b: {"image": silu(x * a + b)}, known),
                 flat((j, a, b, u, v), {"x": at("image", j, yy, xx, guard=guard, fill=0), "k": at("k", u, v, j)},
                      {"row": at("row", j, a, b, combine="sum")}, lambda x, k: {"row": x * k}, known)]  # fmt: skip
    body = [
        *first,
        flat((j2, a2, b2), {"r": at("row", j2, a2, b2)},
             {"y": at("y", i, j2, a2, b2), **{part: at(part, j2, combine="welford") for part in ("count", "mean", "m2")}},
             lambda r: {"y": r, "count": const(1, float32), "mean": r, "m2": const(0, float32)}, known),
    ]  # fmt: skip
    name = f"image forward {(n, c, h, w)} k{k} s{s}{' staged' if staged else ''}"
    return Case(name, nested((i,), body, (row, image) if staged else (row,)), cs, tolerance=1e-5)


def image_backward(n: int, c: int, h: int, w: int, k: int, s: int) -> Case:
    """One kernel an image: gradients of a depthwise convolution and of what is in front of it, its weights and two sums a channel."""
    p = k // 2
    oh, ow = (h + 2 * p - k) // s + 1, (w + 2 * p - k) // s + 1
    order = (0, 2, 3, 1)
    cs = table(array("x", (n, c, h, w), order=order), array("g", (n, c, oh, ow), order=order), array("k", (k, k, c)), array("a", (c,)),
               array("dx", (n, c, h, w), order=order),
               array("dk", (c, 1, k, k)), array("s", (1, c, 1, 1)), array("t", (1, c, 1, 1)))  # fmt: skip
    dy = Container("dy", float32, (c, oh, ow), (1, ow * c, c), storage="register")
    dz = Container("dz", float32, (c, h, w), (1, w * c, c), storage="register")
    known = {**cs, "dy": dy, "dz": dz}
    (i,) = fresh_params((n,))
    j1, a1, b1 = fresh_params((c, oh, ow))
    j2, a2, b2, u2, v2 = fresh_params((c, h, w, k, k))
    j3, a3, b3 = fresh_params((c, h, w))
    j4, u4, v4, a4, b4 = fresh_params((c, k, k, oh, ow))
    y2, x2 = a2 + p - u2, b2 + p - v2
    gather = (*inside(y2 // s, oh), *inside(x2 // s, ow))
    gather = (*gather, Condition(y2 % s, "eq"), Condition(x2 % s, "eq")) if s > 1 else gather
    y4, x4 = a4 * s + u4 - p, b4 * s + v4 - p
    window = (*inside(y4, h), *inside(x4, w))
    held = [index_value(cond.expr) >= 0 for cond in window]
    body = [
        flat((j1, a1, b1), {"g": at("g", i, j1, a1, b1)}, {"dy": at("dy", j1, a1, b1)}, lambda g: {"dy": tanh(g)}, known),
        flat((j2, a2, b2, u2, v2), {"g": at("dy", j2, y2 // s, x2 // s, guard=gather, fill=0), "k": at("k", u2, v2, j2)},
             {"dz": at("dz", j2, a2, b2, combine="sum")}, lambda g, k: {"dz": g * k}, known),
        flat((j3, a3, b3), {"d": at("dz", j3, a3, b3), "x": at("x", i, j3, a3, b3), "a": at("a", j3)},
             {"dx": at("dx", i, j3, a3, b3), "s": at("s", 0, j3, 0, 0, combine="sum"), "t": at("t", 0, j3, 0, 0, combine="sum")},
             lambda d, x, a: {"dx": d * sigmoid(x * a), "s": d * sigmoid(x * a), "t": d * sigmoid(x * a) * x}, known),
        flat((j4, u4, v4, a4, b4), {"x": at("x", i, j4, y4, x4, guard=window, fill=0), "a": at("a", j4, guard=window, fill=0),
                                    "g": at("dy", j4, a4, b4)}, {"dk": at("dk", j4, 0, u4, v4, combine="sum")},
             lambda x, a, g: {"dk": g * apply("where", held[0] & held[1] & held[2] & held[3], silu(x * a), 0.0)}, known),
    ]  # fmt: skip
    return Case(f"image backward {(n, c, h, w)} k{k} s{s}", nested((i,), body, (dy, dz)), cs, tolerance=1e-5)
