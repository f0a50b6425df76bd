"""Compiles kernels of each schedule for sm_80 and sm_90 without a GPU. Run by test_triton.py."""

import torch
from triton_contractions import C, K, project, prologue_reads, prologue_values, vectors
from triton_maps import H, N, W, array, channels_last, sigmoid, softmax

from shorthaul.codegen.triton import emit_kernel
from shorthaul.codegen.triton.launch import Launch, compile_only
from shorthaul.ir.builder import at, fresh_params, make_map
from shorthaul.ir.dtypes import bfloat16, float32, int64
from shorthaul.ir.nodes import Map, Tasklet
from shorthaul.ir.scalar import apply, const, index_value, read
from shorthaul.symbolic import evaluate

SIZES = {"N": 4, "H": 8, "W": 8, "C": 32, "K": 48}


def build(m, containers, options=None):
    kernel = emit_kernel(m, {c.name: c for c in containers}, options=options)
    tensors = {c.name: torch.empty_strided([evaluate(n, SIZES) for n in c.shape], [evaluate(n, SIZES) for n in c.actual_strides],
                                           dtype=getattr(torch, c.dtype.name)) for c in containers}  # fmt: skip
    bound = Launch(kernel, tensors, SIZES)
    for capability in (80, 90):
        compiled = compile_only(bound, capability)
        assert compiled.asm["cubin"][:4] == b"\x7fELF"
        print(f"{kernel.name} sm_{capability}: cubin of {len(compiled.asm['cubin'])} bytes")
        for stage in bound.finish:
            assert compile_only(stage, capability).asm["cubin"]
        if "tl.dot" in kernel.source:
            assert "mma" in compiled.asm["ptx"], "the contraction does not use the matrix unit"


x, y, s = channels_last("x"), channels_last("y"), array(C, name="s")
n, c, h, w = p = fresh_params((N, C, H, W))
build(
    make_map(
        p,
        {"x": at(x, *p), "s": at(s, c)},
        {"y": at(y, *p)},
        lambda x, s: {"y": apply("tanh", x * sigmoid(x * s)) + apply("max", x, s)},
        {"x": float32, "s": float32},
        name="elementwise",
    ),
    [x, y, s],
)
seed, offset = array(dt=int64, name="seed"), array(dt=int64, name="offset")
build(make_map(p, {"s": at(seed), "o": at(offset)}, {"y": at(y, *p)}, lambda s, o: {"y": apply("philox", s, o, index_value(h * C + c))},
               {"seed": int64, "offset": int64}, name="random"), [y, seed, offset])  # fmt: skip
for row in ("whole", "looped"):
    build(*softmax(bfloat16), options={"row": row})
out = [array(C, name=v) for v in ("count", "mean", "m2")]
build(
    make_map(
        p,
        {"x": at(x, *p)},
        {o.name: at(o, c, combine="welford") for o in out},
        lambda x: {"count": const(1, float32), "mean": x, "m2": const(0, float32)},
        {"x": float32},
        name="statistics",
    ),
    [x, *out],
)
for dt in (bfloat16, float32):
    build(*project(dt), options={"precision": "tf32"})
build(*project(bfloat16), options={"k": "whole"})
dy, dwt = channels_last("dy", c=K), array(K, C, name="dwt")
n, h, w, c, o = fresh_params((N, H, W, C, K))
t = Tasklet({"dwt": prologue_values() * read("dy", float32)}, reads={"x": at(x, n, c, h, w), "dy": at(dy, n, o, h, w), **prologue_reads(c)},
            writes={"dwt": at(dwt, o, c, combine="sum")})  # fmt: skip
build(Map((o, c, n, h, w), (t,), name="weight_gradient"), [x, dy, dwt, *vectors(C)], {"precision": "tf32"})
