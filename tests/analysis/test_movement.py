"""The movement report: what a kernel moves, rows, totals, evaluation, text."""

from __future__ import annotations

from typing import Any

import pytest

from shorthaul.analysis import Machine, eager_bytes, human, movement
from shorthaul.ir.builder import at, make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import bfloat16, float32, int64
from shorthaul.ir.memlet import Indirect, full
from shorthaul.ir.nodes import Branch, LibraryCall, Loop, Map, Operator, Origin, Tasklet
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ir.scalar import apply, cast, read
from shorthaul.ops.builder import OpBuilder
from shorthaul.symbolic import Symbol, index

N = Symbol("N", lower=1)


def tensor(name: str, *shape: Any, role: str = "transient", dtype: Any = float32, **more: Any) -> Container:
    return Container(name, dtype, shape, role=role, **more)


def net(nodes: Any, *containers: Container, symbols: Any = (), outputs: Any = ()) -> Program:
    p = Program("net", Form.MAPS, symbols=tuple(symbols))
    with p.edit("Build") as edit:
        for c in containers:
            edit.add_container(c)
        edit.add(*nodes)
        inputs = tuple(c.name for c in containers if c.role == "input")
        edit.set_signature(Signature(inputs=inputs, outputs=tuple(outputs)))
    return p


def chain(module: str = "") -> Program:
    """t = tanh(x); y = t + b, in two kernels."""
    x, b, t, y = tensor("x", N, 8, role="input"), tensor("b", 8, role="input"), tensor("t", N, 8), tensor("y", N, 8, role="output")
    i, j, k, l = index("i", N), index("j", 8), index("k", N), index("l", 8)
    types = {"x": float32, "t": float32, "b": float32}
    origins = (Origin("net.first"),), (Origin("net.second"),)
    first = make_map((i, j), {"x": at(x, i, j)}, {"t": at(t, i, j)}, lambda x: {"t": apply("tanh", x)}, types, name="tanh",
                     origins=origins[0])  # fmt: skip
    second = make_map((k, l), {"t": at(t, k, l), "b": at(b, l)}, {"y": at(y, k, l)}, lambda t, b: {"y": t + b}, types, name="add",
                      origins=origins[1])  # fmt: skip
    return net([first, second], x, b, t, y, symbols=(N,), outputs=("y",))


def test_totals_are_expressions_and_evaluate() -> None:
    m = movement(chain())
    assert m.bytes_read is 64 * N + 32 and m.bytes_written is 64 * N and m.bytes is 128 * N + 32
    assert m.lower_bound is 64 * N + 32
    assert m.at({"N": 10}).bytes == 1312 == movement(chain(), {N: 10}).bytes
    with pytest.raises(KeyError, match="N"):
        m.at()


def test_size_hints_are_used_for_printing() -> None:
    p = chain()
    assert "symbolic" in str(movement(p))
    p.attributes["size_hints"] = {"N": 1024}
    text = str(movement(p))
    assert "64.0 KiB" in text and "tanh @ net.first" in text and "█" in text and "times the bound" in text
    assert "eager" not in text, "a program built by hand knows nothing of eager"
    p.attributes["eager_bytes"] = 512 * N
    assert "0.25 of eager" in str(movement(p))


def test_rows() -> None:
    m = movement(chain(), {"N": 100})
    assert [(r.name, r.bytes) for r in m.rows()] == [("add @ net.second", 6432), ("tanh @ net.first", 6400)]
    assert {r.name: r.bytes for r in m.rows("module")} == {"net.first": 6400, "net.second": 6432}
    memlets = {r.name: r.bytes for r in m.rows("memlet")}
    assert memlets["add @ net.second  read b"] == 32 and sum(memlets.values()) == m.bytes
    with pytest.raises(ValueError, match="kernel, module, memlet, level"):
        m.rows("node")


def test_the_rest_is_summed() -> None:
    text = movement(chain(), {"N": 100}).table(limit=1)
    assert "1 more" in text and "6.2 KiB" in text


def test_dtypes_count_in_bytes() -> None:
    x, y = tensor("x", 10, role="input", dtype=bfloat16), tensor("y", 10)
    i = index("i", 10)
    m = make_map((i,), {"x": at(x, i)}, {"y": at(y, i)}, lambda x: {"y": cast(x, float32)}, {"x": bfloat16})
    found = movement(net([m], x, y))
    assert (found.bytes_read, found.bytes_written) == (20, 40)


def test_what_a_kernel_wrote_itself_is_not_read_and_locals_never_count() -> None:
    x, t, y = tensor("x", 4, 8, role="input"), tensor("t", 4, 8), tensor("y", 4, 8)
    row = tensor("row", 8, storage="register")
    i, j, k = index("i", 4), index("j", 8), index("k", 8)
    types = dict.fromkeys(("x", "t", "row"), float32)
    first = make_map((j,), {"x": at(x, i, j)}, {"t": at(t, i, j), "r": at(row, j)}, lambda x: {"t": x * x, "r": x}, types)
    second = make_map((k,), {"t": at(t, i, k), "r": at(row, k)}, {"y": at(y, i, k)}, lambda t, r: {"y": t + r}, types)
    found = movement(net([Map((i,), (first, second), {"row": row})], x, t, y))
    assert found.bytes_read == 128 and found.bytes_written == 256


def test_gather_is_an_upper_bound() -> None:
    w, ids, y = tensor("w", 1000, 4, role="input"), tensor("ids", 3, role="input", dtype=int64), tensor("y", 3, 4)
    i, d = index("i", 3), index("d", 4)
    t = Tasklet({"y": read("w", float32)}, reads={"i": at(ids, i), "w": at(w, Indirect("i"), d)}, writes={"y": at(y, i, d)})
    m = movement(net([Map((i, d), (t,))], w, ids, y))
    assert m.bytes_read == 3 * 8 + 3 * 4 * 4 and not m.is_exact and "(at most)" in str(m)


def test_library_calls_count_operands_results_and_stated_extras() -> None:
    a, y = tensor("a", 8, 8, role="input"), tensor("y", 8, 8)
    call = LibraryCall("aten::something", {}, reads={"x": full(a), "again": full(a)}, writes={"y": full(y)})
    assert movement(net([call], a, y)).bytes == 512
    dear = call.copy(attributes={"workspace_bytes": 100, "reorder_bytes": 7})
    assert movement(net([dear], a, y)).bytes == 512 + 2 * 107


def test_repeated_elements_of_an_expanded_operand_exist_once() -> None:
    a, y = tensor("a", 8, 8, role="input", strides=(0, 1)), tensor("y", 8, 8)
    call = LibraryCall("aten::something", {}, reads={"x": full(a)}, writes={"y": full(y)})
    i, j = index("i", 8), index("j", 8)
    copy = make_map((i, j), {"x": at(a, i, j)}, {"y": at(y, i, j)}, lambda x: {"y": x}, {"a": float32})
    assert movement(net([call], a, y)).bytes_read == movement(net([copy], a, y)).bytes_read == 32


def test_loops_repeat_and_branches_count_the_dearer_side() -> None:
    def body(wide: bool) -> Program:
        x, y = tensor("x", 8, role="input"), tensor("y", 8, role="output")
        i = index("i", 8)
        reads = {"x": at(x, i)} if wide else {"x": at(x, 0)}
        return net([make_map((i,), reads, {"y": at(y, i)}, lambda x: {"y": x}, {"x": float32})], x, y, outputs=("y",))

    a, b, c = tensor("a", 8, role="input"), tensor("b", 8), tensor("c", 1, role="input")
    loop = Loop(body(True), 5, (("x", "y"),), reads={"x": full(a)}, writes={"y": full(b)})
    assert movement(net([loop], a, b)).bytes == 5 * 64
    branch = Branch(body(False), body(True), reads={"condition": full(c), "x": full(a)}, writes={"y": full(b)})
    assert movement(net([branch], a, b, c)).bytes == 64


SMALL = Machine("small", 1e9, 4096)


def product_of(n: int) -> Program:
    a, b, y = tensor("a", n, n, role="input"), tensor("b", n, n, role="input"), tensor("y", n, n)
    i, j, k = index("i", n), index("j", n), index("k", n)
    m = make_map((i, j, k), {"a": at(a, i, k), "b": at(b, k, j)}, {"y": at(y, i, j, combine="sum")}, lambda a, b: {"y": a * b},
                 dict.fromkeys(("a", "b"), float32))  # fmt: skip
    return net([m], a, b, y)


def test_products_that_fit_the_cache_read_once_and_others_again() -> None:
    assert movement(product_of(16), machine=SMALL).bytes_read == 2 * 4 * 256
    big = movement(product_of(256), machine=SMALL)
    assert big.bytes_read == pytest.approx(2 * 4 * 256**3 / (4096 / 4) ** 0.5, rel=1e-3)
    assert movement(product_of(256)).bytes_read == 2 * 4 * 256**2


def rows_of(n: int) -> Program:
    """Two passes over each row."""
    x, y = tensor("x", 4, n, role="input"), tensor("y", 4, n)
    top = tensor("top", storage="register")
    i, j, k = index("i", 4), index("j", n), index("k", n)
    types = {"x": float32, "top": float32}
    first = make_map((j,), {"x": at(x, i, j)}, {"m": at(top, combine="max")}, lambda x: {"m": x}, types)
    second = make_map((k,), {"x": at(x, i, k), "m": at(top)}, {"y": at(y, i, k)}, lambda x, m: {"y": x - m}, types)
    return net([Map((i,), (first, second), {"top": top})], x, y)


def test_levels_of_memory() -> None:
    levels = {r.name: (r.bytes_read, r.bytes_written) for r in movement(rows_of(256)).rows("level")}
    # the maximum is combined and read once per element
    assert levels == {"global": (4096, 4096), "register": (4096, 4096)}
    assert [r.name for r in movement(chain()).rows("level")] == ["global"]


def test_rows_that_fit_the_cache_are_read_once_and_others_at_every_pass() -> None:
    assert movement(rows_of(256), machine=SMALL).bytes_read == 4 * 4 * 256
    assert movement(rows_of(4096), machine=SMALL).bytes_read == 2 * 4 * 4 * 4096


def test_a_streamed_map_reads_once_however_large() -> None:
    assert movement(chain(), {"N": 100_000}, machine=SMALL).bytes_read == 64 * 100_000 + 32


# operators ----------------------------------------------------------------------------------------------------------------
def operators(build: Any) -> Program:
    p = Program("ops")
    with p.edit("Build") as edit:
        b = OpBuilder(edit, "forward", hint="")
        build(edit, b)
        edit.add(*b.nodes)
    return p


def test_views_move_nothing_and_an_expanded_operand_counts_what_is_stored() -> None:
    def build(edit: Any, b: Any) -> None:
        x = edit.add_container(tensor("x", 1, 8, role="input"))
        wide = b.op("expand", {"shape": (4, 8)}, x=x)
        b.op("exp", {}, x=b.reshape(wide, (32,)))

    m = movement(operators(build))
    assert (m.bytes_read, m.bytes_written) == (32, 128)
    assert [r.name for r in m.rows()] == ["exp"]
    assert movement(operators(build), view_ops=frozenset()).bytes > m.bytes


def test_eager_of_single_operators() -> None:
    def bytes_of(op: str, attributes: dict[str, Any], **operands: Container) -> Any:
        p = operators(lambda edit, b: b.op(op, attributes, **{k: edit.add_container(c) for k, c in operands.items()}))
        node = p.nodes[0]
        with p.edit("Differentiated") as edit:
            y = next(iter(node.writes.values())).container
            wrt = [c.name for c in operands.values() if c.dtype.is_float]
            signature = Signature(tuple(c.name for c in operands.values()), (y,), ((y, "gy"),), tuple((w, f"g{w}") for w in wrt))
            edit.set_signature(signature)
        return eager_bytes(p)

    x = tensor("x", 4, 8, role="input")
    b = tensor("b", 8, role="input")
    whole, row = 128, 32
    assert bytes_of("silu", {}, x=x) == 2 * whole + 3 * whole
    assert bytes_of("relu", {}, x=x) == 2 * whole + 3 * whole
    assert bytes_of("neg", {}, x=x) == 2 * whole + 2 * whole
    # the gradient of a broadcast operand is summed; the other one's is the incoming gradient itself
    assert bytes_of("add", {}, a=x, b=b) == (2 * whole + row) + (whole + row)
    assert bytes_of("mul", {}, a=x, b=b) == (2 * whole + row) + (2 * whole + row) + (2 * whole + whole + whole + row)
    assert bytes_of("div", {}, a=x, b=b) == (2 * whole + row) + (2 * whole + row) + (3 * whole + row + whole + row)
    assert bytes_of("div", {"b": 2.0}, a=x) == 2 * whole + 2 * whole
    assert bytes_of("sub", {}, a=x, b=b) == (2 * whole + row) + (2 * whole + whole + row)
    assert bytes_of("softmax", {"dim": -1}, x=x) == 2 * whole + 3 * whole
    stats = 2 * 4 * 4
    assert bytes_of("layer_norm", {"normalized_shape": (8,)}, x=x, weight=b) == (2 * whole + row + stats) + (3 * whole + 2 * row + stats)
    assert bytes_of("sum", {"dims": (0,)}, x=x) == whole + row
    assert bytes_of("expand", {"shape": (4, 8)}, x=b) == whole + row
    assert bytes_of("cast", {"dtype": float32}, x=x) == 2 * whole, "a copy's gradient is the incoming one"
    assert bytes_of("cast", {"dtype": bfloat16}, x=x) == 2 * (whole + whole // 2)
    ids = tensor("ids", 3, role="input", dtype=int64)
    table = tensor("w", 50, 4, role="input")
    assert bytes_of("embedding", {}, weight=table, indices=ids) == (3 * 8 + 2 * 48) + (48 + 24 + 800)


def test_eager_adds_gradients_of_several_uses() -> None:
    def build(edit: Any, b: Any) -> None:
        x = edit.add_container(tensor("x", 8, role="input"))
        t = b.op("neg", {}, x=x)
        y = b.op("add", {}, a=b.op("add", {}, a=t, b=t), b=t)
        edit.set_signature(Signature(("x",), (y.name,), ((y.name, "gy"),), (("x", "gx"),)))

    p = operators(build)
    size = 32
    # forward: neg 2, t + t 2 (one operand is read), + t 3; backward: neg 2, two additions of gradients of t 3 each
    assert eager_bytes(p) == size * (2 + 2 + 3 + 2 + 6)


def test_without_gradients_eager_has_no_backward() -> None:
    def build(edit: Any, b: Any) -> None:
        b.op("exp", {}, x=edit.add_container(tensor("x", 8, role="input")))

    p = operators(build)
    assert eager_bytes(p) == 64 == movement(p).eager_bytes


def test_human() -> None:
    assert [human(n) for n in (5, 2048, 3 << 20, 5 << 30)] == ["5 B", "2.0 KiB", "3.0 MiB", "5.0 GiB"]
    assert human(3 * N) == str(3 * N)


def test_operator_is_named(capsys: Any) -> None:
    p = operators(lambda edit, b: b.op("exp", {}, x=edit.add_container(tensor("x", 8, role="input"))))
    assert isinstance(p.nodes[0], Operator) and movement(p).rows()[0].name == "exp"
