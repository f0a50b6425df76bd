"""Loops, branches, and sizes that nodes define: what they mean, what the verifier refuses, copies and files."""

import numpy as np
import pytest
from ir_nets import Net
from test_verify import refused

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import bool_, float32, int64
from shorthaul.ir.edit import EditError
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.interpreter import InterpretError, interpret
from shorthaul.ir.memlet import full
from shorthaul.ir.nodes import Branch, Defines, LibraryCall, Loop
from shorthaul.ir.printer import print_program
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ir.rewrite import inline
from shorthaul.ir.scalar import cast, const
from shorthaul.ir.serialize import dumps, from_json
from shorthaul.ir.sizes import node_sizes, runtime_sizes
from shorthaul.ir.verify import verify
from shorthaul.symbolic import Symbol, index
from shorthaul.transforms.level4_global.dead_code import eliminate_dead_code


def scan_body():
    """(s, x, k) -> (s + x, s * x + k), one element each."""
    body = Net("body")
    s, x, k, t, y = body.input("s"), body.input("x"), body.input("k", dtype=int64), body.output("t"), body.output("y")
    body.map((), {"s": at(s), "x": at(x)}, {"t": at(t)}, lambda s, x: {"t": s + x})
    body.map((), {"s": at(s), "x": at(x), "k": at(k)}, {"y": at(y)}, lambda s, x, k: {"y": s * x + cast(k, float32)})
    return body.program


def scan_net(reverse=False, count=4, rows=4, **changes):
    net = Net("scan")
    first, xs, last, ys = net.input("first"), net.input("xs", 4), net.output("last"), net.output("ys", rows)
    fields = {"body": scan_body(), "count": count, "carried": (("s", "t"),), "scanned": ("x",), "stacked": ("y",), "index": "k",
              "reverse": reverse, **changes}  # fmt: skip
    reads = {"s": full(first), "x": full(xs)}
    net.add(Loop(**{"reads": reads, "writes": {"t": full(last), "y": full(ys)}, **fields}))
    return net.program


def while_net(stack=True, upper=None):
    """t = s * 2 while s < 100, with every s stacked."""
    body = Net("double")
    body.input("c", dtype=bool_)
    s, t, d = body.input("s"), body.output("t"), body.output("d", dtype=bool_)
    body.map((), {"s": at(s)}, {"t": at(t), "d": at(d)}, lambda s: {"t": s * 2, "d": s * 2 < 100.0})
    n = Symbol("n", 0, upper)
    body.program.signature = body.program.signature.with_(outputs=("t", "d", "s"))
    net = Net("while", symbols=(n,) if stack else ())
    x, go, last = net.input("x"), net.input("go", dtype=bool_), net.output("last")
    writes, stacked, defines = {"t": full(last)}, (), ()
    if stack:
        every = net.output("every", n)
        writes, stacked, defines = {**writes, "s": full(every)}, ("s",), (Defines(n, "s", 0),)
    net.add(Loop(body.program, None, (("s", "t"), ("c", "d")), stacked=stacked, condition="c", defines=defines,
                 reads={"s": full(x), "c": full(go)}, writes=writes))  # fmt: skip
    return net


def count_net(rule=None):
    """The positions of the nonzero elements of x, doubled."""
    n = Symbol("n", 0, 6)
    net = Net("count", symbols=(n,))
    x, found, y = net.input("x", 6), net.container("found", n, dtype=int64), net.output("y", n, dtype=int64)
    net.add(LibraryCall("positions", reads={"x": full(x)}, writes={"i": full(found)}, defines=(rule or Defines(n, "i", 0),)))
    i = index("i", n)
    net.map((i,), {"f": at(found, i)}, {"y": at(y, i)}, lambda f: {"y": f * 2})
    return net.program


def positions(node, values):
    return {"i": np.flatnonzero(values["x"])}


def test_a_scan_carries_slices_stacks_and_numbers():
    program = scan_net()
    verify(program)
    out = interpret(program, {"first": np.float32(1), "xs": np.array([1, 2, 3, 4], np.float32)})
    np.testing.assert_array_equal(out["ys"], [1, 5, 14, 31])
    assert out["last"] == 11
    backwards = interpret(scan_net(reverse=True), {"first": np.float32(1), "xs": np.array([1, 2, 3, 4], np.float32)})
    np.testing.assert_array_equal(backwards["ys"], [10, 8 * 2 + 1, 5 * 3 + 2, 4 + 3])


def test_a_while_loop_defines_its_trip_count():
    program = while_net().program
    verify(program)
    for x, every in ((30, [30, 60]), (60, [60]), (3, [3, 6, 12, 24, 48, 96])):
        out = interpret(program, {"x": np.float32(x), "go": True})
        np.testing.assert_array_equal(out["every"], every)
        assert out["last"] == every[-1] * 2
    out = interpret(program, {"x": np.float32(7), "go": False})
    assert out["every"].shape == (0,) and out["last"] == 7
    with pytest.raises(InterpretError, match="size n = 6 is not between 0 and 3"):
        interpret(while_net(upper=3).program, {"x": np.float32(3), "go": True})


def test_a_call_defines_a_size():
    program = count_net()
    verify(program)
    assert runtime_sizes(program) == {program.symbols[0]} == node_sizes(program.nodes[1], program.containers)
    assert not node_sizes(program.nodes[0], program.containers)
    for x in ([0, 1, 0, 0, 5, 0], [0] * 6, [1] * 6):
        out = interpret(program, {"x": np.array(x, np.float32)}, library={"positions": positions})
        np.testing.assert_array_equal(out["y"], 2 * np.flatnonzero(x))


def test_what_the_verifier_refuses_of_loops():
    refused(scan_net(count=None), "body", "has neither a count nor a condition")
    refused(scan_net(count=None), "body", "scans or runs in reverse without a count")
    refused(scan_net(index="x"), "body", "numbers its iterations in x, which it reads")
    refused(scan_net(condition="x"), "body", "runs while x, which is not carried")
    refused(scan_net(condition="s"), "body", "runs while s: float32[] input, which is not one bool")
    refused(scan_net(rows=3), "body", "writes y of body")
    refused(scan_net(stacked=()), "body", "writes y, which is neither carried nor stacked")
    refused(scan_net(scanned=("s",)), "body", "scans s, which is carried")
    refused(scan_net(scanned=()), "body", "reads x of body")
    net = while_net()
    (loop,) = net.program.nodes
    with net.program.edit("forget") as edit:
        edit.replace(loop, loop.with_(defines=()))
    refused(net.program, "body", "stacks s for a number of iterations that is no size")
    body = scan_body()
    body.nodes[0].phase = "backward"
    refused(scan_net(body=body), "body", "has more than one phase")


def test_what_the_verifier_refuses_of_branches():
    def branch(condition=1, size=2, output="b"):
        body = Net("body")
        a, b, i = body.input("a", 2), body.output("b", 2), index("i", 2)
        body.map((i,), {"a": at(a, i)}, {"b": at(b, i)}, lambda a: {"b": a * 2})
        net = Net()
        x, y, c = net.input("x", size), net.output("y", 2), net.input("c", condition, dtype=bool_)
        net.add(Branch(body.program, body.program, reads={"condition": full(c), "a": full(x)}, writes={output: full(y)}))
        return net.program

    verify(branch())
    refused(branch(condition=2), "body", "which is not one value")
    refused(branch(size=3), "body", "reads a of body")
    refused(branch(output="a"), "body", "writes a, which is no output of body")


def test_what_the_verifier_refuses_of_sizes():
    n = Symbol("n", 0, 6)
    refused(count_net(Defines(Symbol("m"), "i", 0)), "sizes", "defines the size m, which is no symbol of the program")
    refused(count_net(Defines(n, "j", 0)), "sizes", "by j, which is none of its results")
    refused(count_net(Defines(n, "i", 1)), "sizes", "by dimension 1")
    refused(count_net(Defines(n, "i")), "sizes", "which is not one integer")
    program = count_net()
    with program.edit("a second time") as edit:
        edit.add_container(Container("again", int64, (n,)))
        edit.add(program.nodes[0].copy(writes={"i": full(program.containers["again"])}))
    refused(program, "sizes", "defines the size n a second time")
    net = Net(symbols=(n,))
    x, y, i = net.input("x", n), net.output("y", n, dtype=int64), index("i", n)
    filled = net.map((i,), {}, {"z": at(net.output("z", n, dtype=int64), i)}, lambda: {"z": const(1, int64)})
    net.add(LibraryCall("positions", reads={"x": full(x)}, writes={"i": full(y)}, defines=(Defines(n, "i", 0),)))
    refused(net.program, "sizes", "x: has the size n, which")
    refused(net.program, "sizes", f"{filled}: uses the size n before")


def test_text_files_and_undo():
    for program in (scan_net(), scan_net(reverse=True), while_net().program, count_net()):
        again = from_json(dumps(program))
        assert fingerprint(again) == fingerprint(program)
        assert print_program(again) == print_program(program)
    assert len({fingerprint(p) for p in (scan_net(), scan_net(reverse=True), scan_net(index=None), while_net().program)}) == 4
    assert "loop 4 times in reverse (" in print_program(scan_net(reverse=True))
    assert "carrying s <- t scanning x stacking y numbering k" in print_program(scan_net())
    assert "loop while c (" in print_program(while_net().program) and "defining n = s.size(0)" in print_program(while_net().program)


def test_dead_code_keeps_what_defines_a_size():
    n = Symbol("n", 0, 6)
    net = Net("length", symbols=(n,))
    x, k, y, i = net.input("x", 6), net.container("k", dtype=int64), net.output("y", n), index("i", n)
    net.add(LibraryCall("size", reads={"x": full(x)}, writes={"k": full(k)}, defines=(Defines(n, "k"),)))
    net.map((i,), {}, {"y": at(y, i)}, lambda: {"y": const(1, float32)})
    eliminate_dead_code(net.program)
    verify(net.program)
    out = interpret(net.program, {"x": np.zeros(6, np.float32)}, library={"size": lambda node, v: {"k": np.int64(5)}})
    assert out["y"].shape == (5,)


def test_fusing_keeps_sizes_behind_what_defines_them():
    n = Symbol("n", 0, 6)
    net = Net("order", symbols=(n,))
    x, t, k = net.input("x", 6), net.container("t", 6), net.container("k", dtype=int64)
    u, y, z, i, j = net.container("u", 6), net.output("y", n), net.output("z", 6), index("i", 6), index("j", n)
    first = net.map((i,), {"x": at(x, i)}, {"t": at(t, i)}, lambda x: {"t": x * 2})
    count = net.add(LibraryCall("size", reads={"x": full(t)}, writes={"k": full(k)}, defines=(Defines(n, "k"),)))
    fill = net.map((j,), {}, {"y": at(y, j)}, lambda: {"y": const(1, float32)})
    second = net.map((i,), {"t": at(t, i)}, {"z": at(z, i)}, lambda t: {"z": t + 1})
    with net.program.edit("fuse") as edit:
        edit.fuse([first, second], first, second)
    assert net.program.nodes == [first, second, count, fill]
    verify(net.program)
    with pytest.raises(EditError, match="through a node between them"), net.program.edit("fuse") as edit:
        edit.fuse([first, fill], first, fill)
    assert u.name == "u"


def test_inlining_twice_defines_two_sizes():
    outer = Program("outer", Form.MAPS, signature=Signature(("x",)))
    with outer.edit("declare") as edit:
        edit.add_container(Container("x", float32, (6,), role="input"))
    with outer.edit("inline") as edit:
        for _ in range(2):
            nodes, _ = inline(count_net(), edit, {"x": "x"}, phase="forward")
            edit.add(*nodes)
    verify(outer)
    assert [s.name for s in outer.symbols] == ["n", "n_1"]
    out = interpret(outer, {"x": np.array([0, 1, 0, 0, 5, 0], np.float32)}, library={"positions": positions})
    np.testing.assert_array_equal(out["y"], out["y_1"])
    outer.undo()
    assert outer.symbols == () and not outer.nodes
