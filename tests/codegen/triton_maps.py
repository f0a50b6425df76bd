"""Maps in Triton's interpreter against the interpreter of the IR. Run by test_triton.py: in a process
with TRITON_INTERPRET=1, and where there is a GPU also on it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from shorthaul.codegen.triton import emit_kernel, launch
from shorthaul.codegen.triton.interpreting import is_interpreting
from shorthaul.ir.builder import at, fresh_params, inside, make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import bfloat16, bool_, dtype, float16, float32, int32, int64
from shorthaul.ir.interpreter import interpret
from shorthaul.ir.nodes import Map, Tasklet
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ir.scalar import apply, cast, const, index_value, read, where
from shorthaul.symbolic import Symbol

N, H, W, C, K = SYMBOLS = tuple(Symbol(s, 1) for s in "NHWCK")
DEVICE = "cpu" if is_interpreting() else "cuda"
TOLERANCE = {"float32": 3e-6, "float16": 5e-4, "bfloat16": 4e-3, "float64": 1e-12}  # in the Euclidean norm


def sigmoid(x):
    return apply("sigmoid", x)


def array(*shape, dt=float32, name, strides=None):
    return Container(name, dt, shape, strides)


def channels_last(name, dt=float32, n=N, c=C, h=H, w=W):
    return Container(name, dt, (n, c, h, w), (h * w * c, 1, w * c, c))


def run(m: Map, containers: list[Container], sizes: dict, values: dict | None = None, options=None, seed=0, **tiles):
    """Run a map both ways, compare everything that it writes, and give the kernel."""
    rng = np.random.default_rng(seed)
    by_name = {c.name: c for c in containers}
    shape = {c.name: tuple(int(d) if isinstance(d, int) else _eval(d, sizes) for d in c.shape) for c in containers}
    given = {}
    for name in m.read_containers():
        c = by_name[name]
        if values and name in values:
            v = np.asarray(values[name])
        elif c.dtype.is_float:
            v = rng.standard_normal(shape[name])
        elif c.dtype is bool_:
            v = rng.random(shape[name]) < 0.5
        else:
            v = rng.integers(-5, 5, shape[name])
        given[name] = torch.as_tensor(v).to(getattr(torch, c.dtype.name)).reshape(shape[name])
    written = m.written_containers()
    declared = {n: c.with_(role="input" if n in given else "output") for n, c in by_name.items()}
    program = Program("test", Form.MAPS, declared, [m], Signature(inputs=tuple(given), outputs=tuple(written)),
                      tuple(s for s in SYMBOLS if s.name in sizes))  # fmt: skip
    as_numpy = {n: (t.float() if t.dtype is torch.bfloat16 else t).numpy() for n, t in given.items()}
    expected = interpret(program, as_numpy, sizes)
    kernel = emit_kernel(m, by_name, options=options)
    tensors = {}
    for name, c in by_name.items():
        strides = tuple(s if isinstance(s, int) else _eval(s, sizes) for s in c.actual_strides)
        t = torch.empty_strided(shape[name], strides, dtype=getattr(torch, c.dtype.name), device=DEVICE)
        if name in given:
            t.copy_(given[name])
        elif c.dtype.is_float:
            t.fill_(math.nan)
        else:
            t.fill_(1)
        tensors[name] = t
    launch(kernel, tensors, sizes, **tiles)
    # a sum over values that were rounded to 16 bits is as uncertain as they are
    limit = (
        max(TOLERANCE[c.dtype.name] for c in containers if c.dtype.is_float)
        if any(c.dtype.is_float for c in containers)
        else 0.0
    )
    for name in written:
        got = (
            tensors[name].cpu().double().numpy()
            if tensors[name].dtype.is_floating_point
            else tensors[name].cpu().numpy()
        )
        want = np.asarray(expected[name])
        if tensors[name].dtype.is_floating_point:
            error = float(np.linalg.norm(got - want) / max(np.linalg.norm(np.asarray(want, np.float64)), 1e-6))
            assert error < limit, f"{name}: error {error}\n{kernel.source}"
        else:
            np.testing.assert_array_equal(got, want, err_msg=kernel.source)
    return kernel


def _eval(e, sizes):
    from shorthaul.symbolic import evaluate

    return evaluate(e, sizes)


# elementwise ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dt", [float32, float16, bfloat16])
def test_contiguous_elementwise_is_flat(dt):
    x, y = array(N, C, H, dt=dt, name="x"), array(N, C, H, dt=dt, name="y")
    p = fresh_params((N, C, H))
    m = make_map(p, {"x": at(x, *p)}, {"y": at(y, *p)}, lambda x: {"y": cast(cast(x, float32) * sigmoid(cast(x, float32)), dt)},
                 {"x": dt}, name="silu")  # fmt: skip
    k = run(m, [x, y], {"N": 3, "C": 5, "H": 7}, BLOCK_COL=16)
    assert [a.name for a in k.plan.axes] == ["col"]
    assert "//" not in k.source.split("place = ")[1]


def test_channels_last_with_channel_operands_is_tiled():
    x, y, w, g = channels_last("x"), channels_last("y"), array(C, name="w"), array(N, C, name="g")
    n, c, _h, _v = p = fresh_params((N, C, H, W))
    m = make_map(p, {"x": at(x, *p), "w": at(w, c), "g": at(g, n, c)}, {"y": at(y, *p)},
                 lambda x, w, g: {"y": (x - w) * sigmoid(g)}, {"x": float32, "w": float32, "g": float32}, name="gated")  # fmt: skip
    k = run(m, [x, y, w, g], {"N": 2, "C": 9, "H": 3, "W": 5}, BLOCK_ROW=4, BLOCK_COL=8)
    assert [a.dim for a in k.plan.axes] == [0, 1]


def test_transposition_has_contiguous_lanes_on_both_sides():
    x, y = channels_last("x"), array(N, C, H, W, name="y")
    p = fresh_params((N, C, H, W))
    m = make_map(p, {"x": at(x, *p)}, {"y": at(y, *p)}, lambda x: {"y": x * 2}, {"x": float32}, name="to_nchw")
    k = run(m, [x, y], {"N": 2, "C": 9, "H": 3, "W": 5}, BLOCK_ROW=4, BLOCK_COL=8)
    assert [a.mode for a in k.plan.axes].count("tile") == 2
    assert any(a.mode == "program" for a in k.plan.axes)


def test_guards_pad_with_the_fill_value():
    x, y = array(N, H, name="x"), array(N, H + 4, name="y")
    n, h = fresh_params((N, H + 4))
    m = make_map((n, h), {"x": at(x, n, h - 2, guard=inside(h - 2, H), fill=7)}, {"y": at(y, n, h)}, lambda x: {"y": x},
                 {"x": float32}, name="pad")  # fmt: skip
    run(m, [x, y], {"N": 3, "H": 6})


def test_guarded_write_leaves_the_rest():
    x, y, z = array(N, H, name="x"), array(N, H, name="y"), array(N, 4, name="z")
    n, h = fresh_params((N, H))
    m = make_map((n, h), {"x": at(x, n, h)}, {"y": at(y, n, h), "z": at(z, n, h - 1, guard=inside(h - 1, 4))},
                 lambda x: {"y": x + 1, "z": x}, {"x": float32}, name="crop")  # fmt: skip
    run(m, [x, y, z], {"N": 3, "H": 6})


def test_integers_bools_and_indices():
    a, b, y, z = (
        array(N, C, dt=int64, name="a"),
        array(C, dt=bool_, name="b"),
        array(N, C, dt=int32, name="y"),
        array(N, C, dt=bool_, name="z"),
    )
    n, c = fresh_params((N, C))
    m = make_map((n, c), {"a": at(a, n, c), "b": at(b, c)}, {"y": at(y, n, c), "z": at(z, n, c)},
                 lambda a, b: {"y": cast(where(b, apply("mod", a, 3), apply("floordiv", a, 2)) + index_value(n * C + c), int32),
                               "z": (a > 0) & ~b}, {"a": int64, "b": bool_}, name="ints")  # fmt: skip
    run(m, [a, b, y, z], {"N": 4, "C": 6})


def test_gather_by_an_index_read():
    from shorthaul.ir.memlet import Indirect

    e, i, y = array(K, C, name="e"), array(N, dt=int64, name="i"), array(N, C, name="y")
    n, c = fresh_params((N, C))
    m = make_map((n, c), {"i": at(i, n), "e": at(e, Indirect("i"), c)}, {"y": at(y, n, c)}, lambda i, e: {"y": e * 3},
                 {"e": float32, "i": int64}, name="embedding")  # fmt: skip
    run(m, [e, i, y], {"N": 6, "C": 5, "K": 4}, {"i": [0, 3, 2, 2, 1, 0]})


def test_philox_gives_the_bits_of_the_ir():
    seed, offset, y, z = (
        array(dt=int64, name="seed"),
        array(dt=int64, name="offset"),
        array(N, C, name="y"),
        array(N, C, name="z"),
    )
    n, c = fresh_params((N, C))
    m = make_map(
        (n, c),
        {"s": at(seed), "o": at(offset)},
        {"y": at(y, n, c), "z": at(z, n, c)},
        lambda s, o: {
            "y": apply("philox", s, o, index_value(n * C + c)),
            "z": apply("philox", o, s, index_value(n * C + c + 2**33)),
        },
        {"seed": int64, "offset": int64},
        name="random",
    )
    k = emit_kernel(m, {x.name: x for x in (seed, offset, y, z)})
    tensors = {
        "seed": torch.tensor(2**40 + 12345, device=DEVICE),
        "offset": torch.tensor(77, device=DEVICE),
        "y": torch.empty(5, 7, device=DEVICE),
        "z": torch.empty(5, 7, device=DEVICE),
    }
    launch(k, tensors, {"N": 5, "C": 7})
    from shorthaul.ir import philox

    index = np.arange(35).reshape(5, 7)
    np.testing.assert_array_equal(tensors["y"].cpu().numpy(), philox.uniform(2**40 + 12345, 77, index))
    np.testing.assert_array_equal(tensors["z"].cpu().numpy(), philox.uniform(77, 2**40 + 12345, index + 2**33))


# row reductions ---------------------------------------------------------------------------------------------------------
def softmax(dt=float32):
    x, y = array(N, C, dt=dt, name="x"), array(N, C, dt=dt, name="y")
    (n,), (j,), (k,), (o,) = (fresh_params((s,)) for s in (N, C, C, C))
    mx, s = (Container(c, float32, (), storage="register") for c in ("mx", "s"))
    val = cast(read("x", dt), float32)
    e = apply("exp", val - read("mx", float32))
    body = (
        Map((j,), (Tasklet({"mx": val}, reads={"x": at(x, n, j)}, writes={"mx": at(mx, combine="max")}),)),
        Map((k,), (Tasklet({"s": e}, reads={"x": at(x, n, k), "mx": at(mx)}, writes={"s": at(s, combine="sum")}),)),
        Map((o,), (Tasklet({"y": cast(e / read("s", float32), dt)}, reads={"x": at(x, n, o), "mx": at(mx), "s": at(s)},
                           writes={"y": at(y, n, o)}),)),
    )  # fmt: skip
    return Map((n,), body, locals={"mx": mx, "s": s}, name="softmax"), [x, y]


@pytest.mark.parametrize("row", ["whole", "looped"])
@pytest.mark.parametrize("dt", [float32, bfloat16])
def test_softmax(row, dt):
    m, cs = softmax(dt)
    tiles = {"BLOCK_COL": 8} if row == "looped" else {}
    k = run(m, cs, {"N": 5, "C": 21}, options={"row": row}, BLOCK_ROW=2, **tiles)
    if row == "whole":
        assert k.source.count("tl.load(x_ptr") == 1, k.source


@pytest.mark.parametrize("chunks", [1, 3])
def test_layer_norm_backward_sums_columns_beside_rows(chunks):
    x, dy, w, dx = (array(N, C, name=s) if s != "w" else array(C, name=s) for s in ("x", "dy", "w", "dx"))
    mean, rstd = array(N, name="mean"), array(N, name="rstd")
    dw, db = array(C, name="dw"), array(C, name="db")
    (n,), (j,), (k,) = (fresh_params((s,)) for s in (N, C, C))
    s1, s2, row = (
        Container(c, float32, shape, storage="register") for c, shape in (("s1", ()), ("s2", ()), ("g", (C,)))
    )
    r = {s: read(s, float32) for s in ("x", "dy", "w", "mean", "rstd", "s1", "s2", "g")}
    xhat = (r["x"] - r["mean"]) * r["rstd"]
    count = cast(index_value(C), float32)
    common = lambda p: {"x": at(x, n, p), "mean": at(mean, n), "rstd": at(rstd, n)}  # noqa: E731
    body = (
        Map(
            (j,),
            (
                Tasklet(
                    {
                        "g": r["dy"] * r["w"],
                        "s1": r["dy"] * r["w"],
                        "s2": r["dy"] * r["w"] * xhat,
                        "dw": r["dy"] * xhat,
                        "db": r["dy"],
                    },
                    reads={**common(j), "dy": at(dy, n, j), "w": at(w, j)},
                    writes={
                        "g": at(row, j),
                        "s1": at(s1, combine="sum"),
                        "s2": at(s2, combine="sum"),
                        "dw": at(dw, j, combine="sum"),
                        "db": at(db, j, combine="sum"),
                    },
                ),
            ),
        ),
        Map(
            (k,),
            (
                Tasklet(
                    {"dx": (r["g"] - (r["s1"] + xhat * r["s2"]) / count) * r["rstd"]},
                    reads={**common(k), "g": at(row, k), "s1": at(s1), "s2": at(s2)},
                    writes={"dx": at(dx, n, k)},
                ),
            ),
        ),
    )
    m = Map((n,), body, locals={"s1": s1, "s2": s2, "g": row}, name="layer_norm_backward")
    run(m, [x, dy, w, mean, rstd, dx, dw, db], {"N": 11, "C": 13}, BLOCK_ROW=2, CHUNKS=chunks)


def test_a_row_buffer_of_a_looped_row_is_refused():
    from shorthaul.codegen.triton import NotSchedulable

    x, y = array(N, C, name="x"), array(N, C, name="y")
    (n,), (j,), (k,) = (fresh_params((s,)) for s in (N, C, C))
    row = Container("t", float32, (C,), storage="register")
    body = (Map((j,), (Tasklet({"t": read("x", float32) * 2}, reads={"x": at(x, n, j)}, writes={"t": at(row, j)}),)),
            Map((k,), (Tasklet({"y": read("t", float32) + 1}, reads={"t": at(row, k)}, writes={"y": at(y, n, k)}),)))  # fmt: skip
    m = Map((n,), body, locals={"t": row}, name="buffered")
    run(m, [x, y], {"N": 3, "C": 5})
    with pytest.raises(NotSchedulable, match="row='whole'"):
        emit_kernel(m, {"x": x, "y": y}, options={"row": "looped"})


@pytest.mark.parametrize("split", [False, True])
def test_flat_row_sum(split):
    x, y = array(N, C, name="x"), array(N, name="y")
    n, c = fresh_params((N, C))
    m = make_map(
        (n, c),
        {"x": at(x, n, c)},
        {"y": at(y, n, combine="sum")},
        lambda x: {"y": x * x},
        {"x": float32},
        name="squares",
    )
    run(
        m,
        [x, y],
        {"N": 5, "C": 70},
        options={"split": split},
        BLOCK_ROW=2,
        BLOCK_COL=16,
        **({"CHUNKS": 2} if split else {}),
    )


def test_full_sum_and_maximum():
    x, y, z = array(N, C, name="x"), array(name="y"), array(name="z")
    p = fresh_params((N, C))
    m = make_map(p, {"x": at(x, *p)}, {"y": at(y, combine="sum"), "z": at(z, combine="max")}, lambda x: {"y": x, "z": x}, {"x": float32},
                 name="loss")  # fmt: skip
    k = run(m, [x, y, z], {"N": 9, "C": 13}, BLOCK_COL=16, CHUNKS=3)
    assert len(k.finish) == 1


def test_any_and_integer_sums():
    x, y, z = array(N, C, dt=int64, name="x"), array(C, dt=bool_, name="y"), array(C, dt=int64, name="z")
    n, c = fresh_params((N, C))
    m = make_map((n, c), {"x": at(x, n, c)}, {"y": at(y, c, combine="any"), "z": at(z, c, combine="sum")}, lambda x: {"y": x > 3, "z": x},
                 {"x": int64}, name="counts")  # fmt: skip
    run(m, [x, y, z], {"N": 9, "C": 6}, BLOCK_ROW=2, CHUNKS=2)


# column reductions ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sizes", [(2, 8, 6, 6), (3, 5, 3, 7)])
def test_batch_norm_statistics_by_welford(sizes):
    x = channels_last("x")
    out = [array(C, name=s) for s in ("count", "mean", "m2")]
    _n, c, _h, _w = p = fresh_params((N, C, H, W))
    m = make_map(p, {"x": at(x, *p)}, {o.name: at(o, c, combine="welford") for o in out},
                 lambda x: {"count": const(1, float32), "mean": x, "m2": const(0, float32)}, {"x": float32}, name="statistics")  # fmt: skip
    values = {"x": np.random.default_rng(1).standard_normal((sizes[0], sizes[1], sizes[2], sizes[3])) + 100}
    run(m, [x, *out], dict(zip("NCHW", sizes)), values, BLOCK_ROW=4, BLOCK_COL=4, CHUNKS=3)


def test_column_and_image_sums_with_an_elementwise_write_in_one_pass():
    x, y, s, g = channels_last("x"), channels_last("y"), array(C, name="s"), array(N, C, name="g")
    n, c, _h, _w = p = fresh_params((N, C, H, W))
    m = make_map(p, {"x": at(x, *p)}, {"y": at(y, *p), "s": at(s, c, combine="sum"), "g": at(g, n, c, combine="sum")},
                 lambda x: {"y": x * 2, "s": x, "g": sigmoid(x)}, {"x": float32}, name="squeeze")  # fmt: skip
    run(m, [x, y, s, g], {"N": 2, "C": 5, "H": 3, "W": 4}, BLOCK_ROW=4, BLOCK_COL=4, CHUNKS=2)


def test_channel_sums_of_an_nchw_tensor():
    x, s = array(N, C, H, W, name="x"), array(C, name="s")
    _n, c, _h, _w = p = fresh_params((N, C, H, W))
    m = make_map(
        p, {"x": at(x, *p)}, {"s": at(s, c, combine="sum")}, lambda x: {"s": x}, {"x": float32}, name="channel_sums"
    )
    run(m, [x, s], {"N": 3, "C": 4, "H": 3, "W": 5}, BLOCK_ROW=2, BLOCK_COL=8)


def test_argmax_of_rows_and_of_columns():
    x = array(N, C, name="x")
    for over, kept in (("C", N), ("N", C)):
        v, i = array(kept, name="v"), array(kept, dt=int64, name="i")
        n, c = fresh_params((N, C))
        keep, drop = (n, c) if over == "C" else (c, n)
        m = make_map((n, c), {"x": at(x, n, c)}, {"value": at(v, keep, combine="argmax"), "index": at(i, keep, combine="argmax")},
                     lambda x, drop=drop: {"value": x, "index": index_value(drop)}, {"x": float32}, name=f"argmax_{over}")  # fmt: skip
        values = {"x": np.random.default_rng(0).integers(0, 4, (6, 9))}
        run(m, [x, v, i], {"N": 6, "C": 9}, values, BLOCK_ROW=2, BLOCK_COL=4)


def test_kernel_without_elements():
    x, y = array(N, C, name="x"), array(N, C, name="y")
    p = fresh_params((N, C))
    m = make_map(p, {"x": at(x, *p)}, {"y": at(y, *p)}, lambda x: {"y": -x}, {"x": float32}, name="negate")
    k = emit_kernel(m, {"x": x, "y": y})
    launch(k, {name: torch.empty(0, 4, device=DEVICE) for name in "xy"}, {"N": 0, "C": 4})


def test_dtype_names_are_torch_names():
    assert dtype("torch.bfloat16") is bfloat16


def test_the_source_does_not_depend_on_what_was_built_before():
    # a kernel compiled by one process must be found by the next one
    def source():
        x, y, g = channels_last("x"), channels_last("y"), array(N, C, name="g")
        n, c, _h, _w = p = fresh_params((N, C, H, W))
        s = array(C, name="s")
        m = make_map(
            p,
            {"x": at(x, *p), "g": at(g, n, c)},
            {"y": at(y, *p), "s": at(s, c, combine="sum")},
            lambda x, g: {"y": x * g, "s": x},
            {"x": float32, "g": float32},
            name="gated",
        )
        return emit_kernel(m, {v.name: v for v in (x, y, g, s)})

    first, second = source(), source()
    assert first.source == second.source
    assert first.finish[0].source == second.finish[0].source
