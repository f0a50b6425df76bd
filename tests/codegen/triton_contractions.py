"""Matrix products with prologues, epilogues and statistics, and depthwise convolutions, against the interpreter of the IR."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from triton_maps import DEVICE, C, H, K, N, W, array, channels_last, run, sigmoid

from shorthaul.codegen.triton import emit_kernel, launch
from shorthaul.ir.builder import at, fresh_params, inside, make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import bfloat16, float32
from shorthaul.ir.memlet import Condition
from shorthaul.ir.nodes import Map, Tasklet
from shorthaul.ir.scalar import apply, cast, const, index_value, read, where

SIZES = {"N": 2, "C": 8, "H": 5, "W": 3, "K": 20}
SMALL = {"BLOCK_ROW": 16, "BLOCK_COL": 16, "BLOCK_K": 16}


def normalized_silu(x, mean, rstd, w, b):
    z = (x - mean) * rstd * w + b
    return z * sigmoid(z)


PROLOGUE = ("mean", "rstd", "w", "b")


def prologue_reads(c):
    return {name: at(name, c) for name in PROLOGUE}


def prologue_values():
    return normalized_silu(read("x", float32), *(read(n, float32) for n in PROLOGUE))


def vectors(size, names=PROLOGUE):
    return [array(size, name=n) for n in names]


@pytest.mark.parametrize("k_axis", [C, 7])
def test_flat_product_is_a_contraction(k_axis):
    a, b, y = array(N, k_axis, name="a"), array(k_axis, K, name="b"), array(N, K, name="y")
    i, j, k = fresh_params((N, K, k_axis))
    m = make_map((i, j, k), {"a": at(a, i, k), "b": at(b, k, j)}, {"y": at(y, i, j, combine="sum")}, lambda a, b: {"y": a * b},
                 {"a": float32, "b": float32}, name="matmul")  # fmt: skip
    kernel = run(m, [a, b, y], {"N": 19, "K": 20, "C": 35}, **SMALL, CHUNKS=1)
    assert "tl.dot" in kernel.source
    run(m, [a, b, y], {"N": 19, "K": 20, "C": 35}, options={"split": False}, **SMALL)


def tf32(v):
    """float32 to nearest with 10 fraction bits, ties away from zero."""
    return ((v.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def test_tf32_rounds_its_operands_to_nearest():
    """Truncated operands make every product too small: the statistics of a convolution would be off by 1e-3."""
    a, b, y = array(N, C, name="a"), array(C, K, name="b"), array(N, K, name="y")
    i, j, k = fresh_params((N, K, C))
    m = make_map((i, j, k), {"a": at(a, i, k), "b": at(b, k, j)}, {"y": at(y, i, j, combine="sum")}, lambda a, b: {"y": a * b},
                 {"a": float32, "b": float32}, name="matmul")  # fmt: skip
    kernel = emit_kernel(m, {c.name: c for c in (a, b, y)}, options={"precision": "tf32"})
    rng = np.random.default_rng(0)
    left, right = (1 + rng.random(s, np.float32) for s in ((19, 35), (35, 20)))
    left[2, 3], left[5, 1], right[0, 4] = np.inf, np.nan, np.nextafter(np.float32(2), np.float32(0))
    tensors = {"a": torch.tensor(left, device=DEVICE), "b": torch.tensor(right, device=DEVICE), "y": torch.empty(19, 20, device=DEVICE)}
    launch(kernel, tensors, {"N": 19, "C": 35, "K": 20}, **SMALL)
    got = tensors["y"].cpu().double().numpy()
    special = ~np.isfinite(left)
    want = np.where(special, left, tf32(left)).astype(np.float64) @ tf32(right).astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=2e-6)
    assert np.isnan(got[5]).all()
    assert np.isinf(got[2]).all()


def test_an_elementwise_product_is_not_a_contraction():
    a, b, y = array(N, C, name="a"), array(N, C, name="b"), array(N, name="y")
    i, k = fresh_params((N, C))
    m = make_map((i, k), {"a": at(a, i, k), "b": at(b, i, k)}, {"y": at(y, i, combine="sum")}, lambda a, b: {"y": a * b},
                 {"a": float32, "b": float32}, name="dot")  # fmt: skip
    assert "tl.dot" not in run(m, [a, b, y], {"N": 4, "C": 9}).source


def project(dt=float32, gate=True):
    """1x1 convolution of gate * silu(bn(x)) with bias, residual, and statistics of what it writes."""
    x, y, res = channels_last("x", dt), channels_last("y", dt, c=K), channels_last("res", dt, c=K)
    wt, bias, g = array(K, C, dt=dt, name="wt"), array(K, name="bias"), array(N, C, name="g")
    out = [array(K, name=s) for s in ("count", "mu", "m2")]
    n, h, w, o = fresh_params((N, H, W, K))
    (c,) = fresh_params((C,))
    acc = Container("acc", float32, (), storage="register")
    act = cast(
        normalized_silu(cast(read("x", dt), float32), *(read(v, float32) for v in PROLOGUE)) * read("g", float32), dt
    )
    inner = Tasklet({"acc": cast(act, float32) * cast(read("wt", dt), float32)},
                    reads={"x": at(x, n, c, h, w), "wt": at(wt, o, c), "g": at(g, n, c), **prologue_reads(c)},
                    writes={"acc": at(acc, combine="sum")})  # fmt: skip
    y_value = cast(read("acc", float32) + read("bias", float32) + cast(read("res", dt), float32), dt)
    sample = cast(y_value, float32)
    outer = Tasklet({"y": y_value, "count": const(1, float32), "mean": sample, "m2": const(0, float32)},
                    reads={"acc": at(acc), "bias": at(bias, o), "res": at(res, n, o, h, w)},
                    writes={"y": at(y, n, o, h, w), "count": at(out[0], o, combine="welford"), "mean": at(out[1], o, combine="welford"),
                            "m2": at(out[2], o, combine="welford")})  # fmt: skip
    m = Map((n, h, w, o), (Map((c,), (inner,)), outer), locals={"acc": acc}, name="project")
    return m, [x, y, res, wt, bias, g, *out, *vectors(C)]


@pytest.mark.parametrize("dt", [float32, bfloat16])
def test_projection_with_prologue_epilogue_and_statistics(dt):
    m, cs = project(dt)
    for sizes in (SIZES, {"N": 3, "C": 24, "H": 3, "W": 5, "K": 7}):
        kernel = run(m, cs, sizes, **SMALL, CHUNKS=2)
    assert kernel.source.count("tl.dot") == 1
    assert kernel.source.count("tl.load(x_ptr") == 1


def test_weights_of_a_short_contraction_stay_in_registers():
    m, cs = project()
    by_name = {c.name: c for c in cs}
    kernel = run(m, cs, SIZES, options={"k": "whole"}, **SMALL, CHUNKS=2)
    before, loop = kernel.source.split("for row_step", 1)
    assert "wt_ptr +" in before
    assert "wt_ptr +" not in loop
    assert emit_kernel(m, by_name).source != kernel.source


def test_data_gradient_and_weight_gradient_of_a_1x1_convolution():
    x, dy, dx = channels_last("x"), channels_last("dy", c=K), channels_last("dx")
    wt, dwt = array(K, C, name="wt"), array(K, C, name="dwt")
    n, h, w, c, o = fresh_params((N, H, W, C, K))
    m = make_map((n, h, w, c, o), {"dy": at(dy, n, o, h, w), "wt": at(wt, o, c)}, {"dx": at(dx, n, c, h, w, combine="sum")},
                 lambda dy, wt: {"dx": dy * wt}, {"dy": float32, "wt": float32}, name="data_gradient")  # fmt: skip
    assert "tl.dot" in run(m, [dy, wt, dx], SIZES, options={"split": False}, **SMALL).source
    act = prologue_values()
    code = {"dwt": act * (read("dy", float32) * read("s", float32))}
    t = Tasklet(code, reads={"x": at(x, n, c, h, w), "dy": at(dy, n, o, h, w), "s": at("s", o), **prologue_reads(c)},
                writes={"dwt": at(dwt, o, c, combine="sum")})  # fmt: skip
    m = Map((o, c, n, h, w), (t,), name="weight_gradient")
    kernel = run(
        m, [x, dy, dwt, array(K, name="s"), *vectors(C)], SIZES, BLOCK_ROW=16, BLOCK_COL=16, BLOCK_K=16, CHUNKS=2
    )
    assert "tl.dot" in kernel.source
    assert kernel.finish


def test_a_3x3_convolution_is_a_contraction_too():
    x, y, wt = channels_last("x"), channels_last("y", c=K), array(K, C, 3, 3, name="wt")
    n, h, w, o, c, p, q = fresh_params((N, H, W, K, C, 3, 3))
    guard = inside(h + p - 1, H) + inside(w + q - 1, W)
    m = make_map(
        (n, h, w, o, c, p, q),
        {"x": at(x, n, c, h + p - 1, w + q - 1, guard=guard, fill=0), "wt": at(wt, o, c, p, q)},
        {"y": at(y, n, o, h, w, combine="sum")},
        lambda x, wt: {"y": x * wt},
        {"x": float32, "wt": float32},
        name="conv3x3",
    )
    assert "tl.dot" in run(m, [x, y, wt], SIZES, options={"split": False}, **SMALL).source


# depthwise ----------------------------------------------------------------------------------------------------------------
def in_bounds(h, w, ho, wo):
    """The conditions 0 <= h < ho, 0 <= w < wo as a value."""
    value = None
    for e in (h, ho - 1 - h, w, wo - 1 - w):
        test = apply("ge", index_value(e), const(0, index_value(e).dtype))
        value = test if value is None else value & test
    return value


@pytest.mark.parametrize(("taps", "stride"), [(3, 1), (3, 2), (5, 1)])
def test_depthwise_forward_with_prologue_and_statistics(taps, stride):
    pad = taps // 2
    ho, wo = (H + 2 * pad - taps) // stride + 1, (W + 2 * pad - taps) // stride + 1
    x, y, wt = channels_last("x"), channels_last("y", h=ho, w=wo), array(C, taps, taps, name="wt")
    out = [array(C, name=s) for s in ("count", "mu", "m2")]
    n, h, w, c = fresh_params((N, ho, wo, C))
    p, q = fresh_params((taps, taps))
    hi, wi = h * stride + p - pad, w * stride + q - pad
    acc = Container("acc", float32, (), storage="register")
    act = where(in_bounds(hi, wi, H, W), prologue_values(), 0)
    inner = Tasklet(
        {"acc": act * read("wt", float32)},
        reads={
            "x": at(x, n, c, hi, wi, guard=inside(hi, H) + inside(wi, W), fill=0),
            "wt": at(wt, c, p, q),
            **prologue_reads(c),
        },
        writes={"acc": at(acc, combine="sum")},
    )
    outer = Tasklet({"y": read("acc", float32), "count": const(1, float32), "mean": read("acc", float32), "m2": const(0, float32)},
                    reads={"acc": at(acc)},
                    writes={"y": at(y, n, c, h, w), "count": at(out[0], c, combine="welford"), "mean": at(out[1], c, combine="welford"),
                            "m2": at(out[2], c, combine="welford")})  # fmt: skip
    m = Map((n, h, w, c), (Map((p, q), (inner,)), outer), locals={"acc": acc}, name="depthwise")
    for sizes in ({**SIZES, "H": 6, "W": 6}, {**SIZES, "H": 7, "W": 5})[: 1 if taps == 5 else 2]:
        run(m, [x, y, wt, *out, *vectors(C)], sizes, BLOCK_ROW=8, BLOCK_COL=8, CHUNKS=2)


@pytest.mark.parametrize(("taps", "stride"), [(3, 1), (3, 2)])
def test_depthwise_gradients(taps, stride):
    pad = taps // 2
    ho, wo = (H + 2 * pad - taps) // stride + 1, (W + 2 * pad - taps) // stride + 1
    x, dx, dy = channels_last("x"), channels_last("dx"), channels_last("dy", h=ho, w=wo)
    wt, dwt = array(C, taps, taps, name="wt"), array(C, taps, taps, name="dwt")
    n, h, w, c, p, q = fresh_params((N, H, W, C, taps, taps))
    oh, ow = (h + pad - p) // stride, (w + pad - q) // stride
    guard = inside(oh, ho) + inside(ow, wo)
    if stride > 1:
        guard += (Condition((h + pad - p) % stride, "eq"), Condition((w + pad - q) % stride, "eq"))
    guard += (Condition(h + pad - p), Condition(w + pad - q))
    gathered = at(dy, n, c, oh, ow, guard=guard, fill=0)
    sizes = {**SIZES, "H": 7, "W": 6}
    m = make_map((n, h, w, c, p, q), {"dy": gathered, "wt": at(wt, c, p, q)}, {"dx": at(dx, n, c, h, w, combine="sum")},
                 lambda dy, wt: {"dx": dy * wt}, {"dy": float32, "wt": float32}, name="depthwise_data_gradient")  # fmt: skip
    run(m, [dy, wt, dx], sizes, BLOCK_ROW=8, BLOCK_COL=8)
    t = Tasklet(
        {"dwt": prologue_values() * read("dy", float32)},
        reads={"x": at(x, n, c, h, w), "dy": gathered, **prologue_reads(c)},
        writes={"dwt": at(dwt, c, p, q, combine="sum")},
    )
    m = Map((c, p, q, n, h, w), (t,), name="depthwise_weight_gradient")
    kernel = run(m, [x, dy, dwt, *vectors(C)], sizes, BLOCK_ROW=8, BLOCK_COL=8, CHUNKS=2)
    assert kernel.source.count("tl.load(x_ptr") == 1  # read and activated once for all taps
    assert np.prod([a.size for a in kernel.plan.axes if a.mode == "unroll"]) == taps * taps
