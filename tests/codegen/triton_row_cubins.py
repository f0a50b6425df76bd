"""Compiles the kernels of sparse updates, exact, lazy and deterministic, for sm_90 without a GPU. Run by test_triton.py."""

from shorthaul import pipeline
from shorthaul.codegen.triton.emit_map import emit_map
from shorthaul.codegen.triton.launch import compile_for, configure, load
from shorthaul.config import Options
from shorthaul.ir.builder import MapBuilder, at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32, float64, int64
from shorthaul.ir.memlet import full
from shorthaul.ir.nodes import Map, Operator
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ops.builder import OpBuilder

ROWS, WIDTH, LOOKUPS = 5000, 16, 200


def momentum() -> Program:
    """w' = w - 0.1 * (0.9 * b + g)."""
    p = Program("update", form=Form.MAPS)
    with p.edit("Build") as edit:
        names, results = ("w", "g", "b"), ("nw", "nb")
        for n in (*names, *results):
            edit.add_container(Container(n, float32, (ROWS, WIDTH), role="input" if n in names else "output"))
        b = MapBuilder(edit)
        q = b.params((ROWS, WIDTH))
        b.map(q, {n: at(n, *q) for n in names}, {"y": at("nw", *q), "z": at("nb", *q)},
              lambda w, g, b: {"y": w - (b * 0.9 + g) * 0.1, "z": b * 0.9 + g})  # fmt: skip
        edit.add(*b.nodes)
        edit.set_signature(Signature(names, results))
    return p


def step(lazy: bool) -> Program:
    p = Program("step")
    with p.edit("Build") as edit:
        shapes = {"w": (ROWS, WIDTH), "b": (ROWS, WIDTH), "i": (LOOKUPS,), "last": (ROWS,), "decay": (9, 2, 2), "g": (LOOKUPS, WIDTH)}
        dtypes = {"i": int64, "last": int64, "decay": float64}
        c = {n: edit.add_container(Container(n, dtypes.get(n, float32), s, role="input")) for n, s in shapes.items()}
        ops = OpBuilder(edit, "forward", hint="")
        behind = {"last": c["last"], "decay": c["decay"]} if lazy else {}
        read = ops.op("lazy_rows", {}, indices=c["i"], x0=c["w"], x1=c["b"], **behind) if lazy else c["g"]
        rows, order = ops.op("sort", {"dim": 0, "descending": False}, x=c["i"])
        starts = ops.op("row_starts", {}, rows=rows)
        sums = ops.op("row_sums", {}, g=ops.pointwise(lambda x, g: x * g, read, c["g"]), order=order, starts=starts)
        operands = {"rows": rows, "starts": starts, **behind, "x0": c["w"], "x1": sums, "x2": c["b"]}
        values = [edit.add_container(Container(n, float32, (LOOKUPS, WIDTH), role="output")) for n in ("vw", "vb")]
        attributes = {"body": momentum(), "roles": ("table", "rows", "table"), "updates": (0, 2)}
        ops.nodes.append(Operator("row_step", attributes, reads={k: full(x) for k, x in operands.items()},
                                  writes={f"y{k}": full(v) for k, v in enumerate(values)}))  # fmt: skip
        edit.add(*ops.nodes)
        edit.set_signature(Signature(tuple(shapes), ("vw", "vb")))
    return p


def kernels(program: Program, what: str) -> None:
    for m in program.nodes:
        if isinstance(m, Map):
            for kernel in emit_map(m, program).kernels:
                first = configure(kernel, {})
                for k in (first, *first.finish):
                    types = k.types({a: x.dtype.name for a, x in k.kernel.containers.items()})
                    assert compile_for(load(k.kernel), k, types, 90).asm["cubin"][:4] == b"\x7fELF"
                    print(f"{what} {m.label}: cubin")


for lazy in (False, True):
    program = step(lazy)
    pipeline.optimize(program, Options(target="triton"), check=True)
    kernels(program, "lazy" if lazy else "exact")
program = step(False)  # sums by index in one order: sorted, and one after the other
program.attributes["deterministic"] = True
pipeline.optimize(program, Options(target="triton"), check=True)
assert any(n.label == "ordered_sum" for n in program.nodes)
kernels(program, "ordered")
program = step(False)
pipeline.optimize(program, Options(target="triton"), check=True)
program.attributes["deterministic"] = True
assert any("serial" in k.source for m in program.nodes if isinstance(m, Map) for k in emit_map(m, program).kernels)
kernels(program, "serial")
