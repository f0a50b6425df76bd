"""The verifier refuses one program per rule, accepts good ones, and is quick."""

import time

import numpy as np
import pytest
from ir_nets import Net

from shorthaul.ir.builder import at, inside
from shorthaul.ir.containers import Alias, Container
from shorthaul.ir.dtypes import float32, float64, int64
from shorthaul.ir.memlet import Condition, Indirect, Memlet, Span, full
from shorthaul.ir.nodes import Branch, Defines, LibraryCall, Loop, Map, Operator, Schedule, Tasklet
from shorthaul.ir.program import Form, Program
from shorthaul.ir.scalar import apply, cast, const, index_value, read
from shorthaul.ir.verify import RULES, VerifyError, verify
from shorthaul.symbolic import Symbol, index

X = read("x", float32)


def copy_net(read_memlet=None, write_memlet=None, code=None, params=None, **options):
    """y[i] = x[i] for 4 elements, with parts replaced."""
    net = Net()
    x, y = net.input("x", 4), net.output("y", 4)
    net.i = index("i", 4)
    reads = {"x": read_memlet(x, net.i) if read_memlet else at(x, net.i)}
    writes = {"y": write_memlet(y, net.i) if write_memlet else at(y, net.i)}
    tasklet = Tasklet(code or {"y": X}, reads=reads, writes=writes)
    net.add(Map(params or (net.i,), (tasklet,), name="copy", **options))
    return net


def refused(program, rule, reason):
    assert rule in RULES
    with pytest.raises(VerifyError) as error:
        verify(program)
    problems = error.value.problems
    assert {p.rule for p in problems} == {rule}, problems
    assert reason in str(error.value), str(error.value)


def test_good_programs():
    verify(copy_net().program, Form.MAPS)
    net = Net(symbols=[N := Symbol("N", 1)])
    x, y, z = net.input("x", N, 6), net.output("y", N, 6), net.output("z", 8)
    m = Container("m", float32, (), storage="register")
    n, j, k = index("n", N), index("j", 6), index("k", 6)
    net.add(Map((n,), (
        net.flat((j,), {"x": at(x, n, j)}, {"m": at(m, combine="max")}, lambda x: {"m": x}),
        net.flat((k,), {"x": at(x, n, k), "m": at(m)}, {"y": at(y, n, k)}, lambda x, m: {"y": x - m}, locals=(m,)),
    ), locals={"m": m}))  # fmt: skip
    a, b = index("a", 4), index("b", 4)
    net.map((a,), {"x": at(x, 0, a + 1)}, {"z": at(z, 2 * a)}, lambda x: {"z": x})
    net.map((b,), {"x": at(x, 0, b + 3, guard=inside(b + 3, 6), fill=0)}, {"z": at(z, 2 * b + 1)}, lambda x: {"z": x})
    verify(net.program, Form.MAPS)


def test_names():
    refused(copy_net(read_memlet=lambda x, i: at("q", i)).program, "names", "reads q, which does not exist")
    net = copy_net()
    net.program.containers["w"] = Container("v", float32, ())
    refused(net.program, "names", "calls itself v")


def test_rank():
    refused(copy_net(read_memlet=lambda x, i: at("x", i, i)).program, "rank", "x[i, i] has 2 subscripts")
    refused(copy_net(read_memlet=lambda x, i: at(x, Span(0, 4))).program, "rank", "single elements")


def test_scope():
    j = index("j", 4)
    refused(copy_net(read_memlet=lambda x, i: at(x, j)).program, "scope", "x[j] uses j")
    refused(copy_net(code={"y": X + cast(index_value(j), float32)}).program, "scope", "the code uses j")
    k = Symbol("k", 0, j)
    refused(
        copy_net(params=(index("i", 4), k), write_memlet=lambda y, i: at(y, i, combine="sum")).program,
        "scope",
        "the range of k uses j",
    )


def test_range():
    refused(
        copy_net(read_memlet=lambda x, i: at(x, i + 1)).program,
        "range",
        "subscript i + 1 of dimension 0 is 1 to 4, the size 4",
    )
    refused(copy_net(read_memlet=lambda x, i: at(x, 2 - i)).program, "range", "-i + 2 of dimension 0 is -1 to 2")
    refused(copy_net(write_memlet=lambda y, i: at(y, 4, combine="sum")).program, "range", "4")
    net = Net(symbols=[N := Symbol("N", 1)])
    x, y, n = net.input("x", N), net.output("y", N), index("n", N)
    net.map((n,), {"x": at(x, n + 1)}, {"y": at(y, n)}, lambda x: {"y": x})
    refused(net.program, "range", "n + 1")


def test_a_guard_makes_an_access_legal_and_unprovable_ones_are_left_to_the_interpreter():
    verify(copy_net(read_memlet=lambda x, i: at(x, i + 1, guard=inside(i + 1, 4), fill=0)).program)
    verify(copy_net(read_memlet=lambda x, i: at(x, (i * i) % 5)).program)
    refused(
        copy_net(read_memlet=lambda x, i: at(x, i + 4, guard=(Condition(i - 2),), fill=0)).program, "range", "i + 4"
    )


def test_an_access_that_never_happens_is_legal():
    verify(copy_net(read_memlet=lambda x, i: at(x, i + 9, guard=inside(i + 9, 4), fill=0)).program)
    none = index("none", 0)
    verify(
        copy_net(
            params=(none,),
            read_memlet=lambda x, i: at(x, none + 7),
            write_memlet=lambda y, i: at(y, none, combine="sum"),
        ).program
    )


def test_indirect():
    refused(copy_net(read_memlet=lambda x, i: at(x, Indirect("k"))).program, "indirect", "k, which is no read")
    net = Net()
    x, ids, y, i = net.input("x", 4), net.input("ids", 4), net.output("y", 4), index("i", 4)
    net.map((i,), {"k": at(ids, i), "x": at(x, Indirect("k"))}, {"y": at(y, i)}, lambda k, x: {"y": x})
    refused(net.program, "indirect", "k, whose dtype is float32")


def test_code():
    refused(copy_net(code={"y": read("z", float32)}).program, "code", "uses z, which is no read")
    refused(copy_net(code={"q": X}).program, "code", "computes q but writes y")


def test_dtype():
    refused(copy_net(code={"y": apply("eq", X, 0)}).program, "dtype", "writes bool to y, which is float32")
    refused(
        copy_net(code={"y": cast(read("x", float64), float32)}).program,
        "dtype",
        "reads x[i] as float64, but x is float32",
    )


def test_combine():
    refused(
        copy_net(write_memlet=lambda y, i: at(y, i, combine="median")).program, "combine", "unknown combiner 'median'"
    )
    refused(
        copy_net(write_memlet=lambda y, i: at(y, i, combine="welford")).program, "combine", "count, mean, m2, not y"
    )
    refused(copy_net(write_memlet=lambda y, i: at(y, i, scan=i)).program, "combine", "without a combiner")
    refused(copy_net(write_memlet=lambda y, i: at(y, 3, combine="sum", scan=i)).program, "combine", "scans along i")


def test_a_combining_node_does_not_read_its_sum():
    net = Net()
    x, y, i, j = net.input("x", 4), net.output("y"), index("i", 4), index("j", 4)
    s = Container("s", float32, (), storage="register")
    both = net.flat(
        (j,), {"x": at(x, i), "s": at(s)}, {"s": at(s, combine="sum")}, lambda x, s: {"s": x + s}, locals=(s,)
    )
    first = net.flat((j,), {"x": at(x, i)}, {"s": at(s, combine="sum")}, lambda x: {"s": x})
    out = net.flat((), {"s": at(s)}, {"y": at(y, combine="sum")}, lambda s: {"y": s}, locals=(s,))
    net.add(Map((i,), (first, both, out), locals={"s": s}))
    refused(net.program, "combine", "reads the local s and combines into it")


def test_fill():
    refused(copy_net(read_memlet=lambda x, i: at(x, i - 1, guard=(Condition(i - 1),))).program, "fill", "has no fill")
    refused(copy_net(write_memlet=lambda y, i: at(y, i, fill=0)).program, "fill", "has a fill")


def test_single_writer():
    refused(copy_net(write_memlet=lambda y, i: at(y, 0)).program, "single writer", "every iteration of i writes y[0]")
    net = copy_net()
    net.add(net.program.nodes[0].copy())
    refused(net.program, "single writer", "not provably disjoint")
    net = Net()
    x, y, i = net.input("x", 4), net.output("y", 9), index("i", 4)
    net.map((i,), {"x": at(x, i)}, {"a": at(y, 2 * i), "b": at(y, 2 * i + 2)}, lambda x: {"a": x, "b": x})
    refused(net.program, "single writer", "not provably disjoint")


def test_external_memory_is_not_written():
    net = Net()
    x, i = net.input("x", 4), index("i", 4)
    net.map((i,), {}, {"x": at(x, i)}, lambda: {"x": const(1, float32)})
    refused(net.program, "single writer", "whose memory is the caller's (input)")


def test_disjoint_writers_are_accepted():
    net = Net()
    x, y, i, j = net.input("x", 4), net.output("y", 8), index("i", 4), index("j", 4)
    net.map((i,), {"x": at(x, i)}, {"y": at(y, i)}, lambda x: {"y": x})
    net.map((j,), {"x": at(x, j)}, {"y": at(y, j + 4)}, lambda x: {"y": x})
    verify(net.program)


def test_order():
    net = Net()
    t, y, i, j = net.container("t", 4), net.output("y", 4), index("i", 4), index("j", 4)
    net.map((i,), {"t": at(t, i)}, {"y": at(y, i)}, lambda t: {"y": t})
    refused(net.program, "order", "reads t, which no earlier node writes")
    net.map((j,), {}, {"t": at(t, j)}, lambda: {"t": const(1, float32)})
    with pytest.raises(VerifyError, match="writes t after an earlier node read it"):
        verify(net.program)


def test_a_node_does_not_read_what_it_writes():
    net = Net()
    x, y, i = net.input("x", 4), net.output("y", 4), index("i", 4)
    net.map((i,), {"x": at(x, i), "y": at(y, 0)}, {"y": at(y, i)}, lambda x, y: {"y": x + y})
    refused(net.program, "order", "reads y, which it writes itself")


def test_a_local_is_written_before_it_is_read():
    net = Net()
    y, i = net.output("y", 4), index("i", 4)
    s = Container("s", float32, (), storage="register")
    net.add(Map((i,), (net.flat((), {"s": at(s)}, {"y": at(y, i)}, lambda s: {"y": s}, locals=(s,)),), locals={"s": s}))
    refused(net.program, "order", "reads the local s")


def test_signature():
    net = copy_net()
    net.program.signature = net.program.signature.with_(outputs=("nothing",))
    refused(net.program, "signature", "nothing")
    net = copy_net()
    net.program.signature = net.program.signature.with_(inputs=("x", "y"))
    refused(net.program, "signature", "is an input but has role output")
    net = copy_net()
    net.container("g", 5, role="gradient")
    net.map((index("j", 5),), {}, {"g": at("g", index("j", 5))}, lambda: {"g": const(0, float32)}, phase="backward")
    net.program.signature = net.program.signature.with_(gradients=(("x", "g"),))
    refused(net.program, "signature", "is the gradient of x: float32[4] input but is g: float32[5]")
    net = copy_net()
    net.output("z", 4)
    refused(net.program, "signature", "z: is a result that no node writes")
    net = copy_net()
    net.program.signature = net.program.signature.with_(inputs=())
    refused(net.program, "signature", "not among the inputs")


def test_phase():
    refused(copy_net(phase="sideways").program, "phase", "unknown phase")
    net = copy_net()
    t, z, i = net.container("t", 4), net.output("z", 4), index("i", 4)
    net.map((i,), {}, {"t": at(t, i)}, lambda: {"t": const(1, float32)}, phase="backward")
    net.map((i,), {"t": at(t, i)}, {"z": at(z, i)}, lambda t: {"z": t})
    refused(net.program, "phase", "reads t in phase forward, which phase backward writes")
    refused(copy_net(phase="backward").program, "phase", "is a result of the forward phase")


def test_form():
    net = Net()
    x, y = net.input("x", 4), net.output("y", 4)
    net.add(Operator("neg", reads={"x": full(x)}, writes={"y": full(y)}))
    refused(net.program, "form", "operator neg in a program of form MAPS")
    net.program.form = Form.OPERATORS
    verify(net.program)
    with pytest.raises(VerifyError, match="is in form OPERATORS, not MAPS"):
        verify(net.program, Form.MAPS)
    net = copy_net()
    net.program.form = Form.SCHEDULED
    refused(net.program, "form", "not 'auto'")
    net = copy_net(schedule=Schedule("parallel"))
    net.program.form = Form.SCHEDULED
    verify(net.program, Form.SCHEDULED)
    net = Net()
    net.output("y")
    net.add(Tasklet({"y": const(1, float32)}, writes={"y": at("y")}))
    refused(net.program, "form", "inside a map")


def test_whole():
    net = Net()
    x, y = net.input("x", 8), net.output("y", 4)
    net.add(LibraryCall("f", reads={"x": Memlet("x", (Span(0, 4),))}, writes={"y": full(y)}))
    refused(net.program, "whole", "x: reads x[0:4], not the whole")
    assert x.shape == (8,)


def test_locals():
    net = copy_net(locals={"s": Container("s", float32, ())})
    refused(net.program, "locals", "the local s has global storage")
    net = copy_net()
    net.container("t", 4)
    net.program.containers["t"] = Container("t", float32, (4,), storage="register")
    refused(net.program, "locals", "t")


def test_a_local_is_not_seen_outside_its_map():
    net = Net()
    x, y, i, j = net.input("x", 4), net.output("y", 4), index("i", 4), index("j", 4)
    t = Container("t", float32, (), storage="register")
    net.add(Map((i,), (net.flat((), {"x": at(x, i)}, {"t": at(t)}, lambda x: {"t": x}),), locals={"t": t}))
    net.map((j,), {"x": at(x, j)}, {"y": at(y, j)}, lambda x: {"y": x})
    verify(net.program)
    net.add(net.flat((j,), {"t": at("t")}, {"y": at(y, j)}, lambda t: {"y": t}, locals=(t,)))
    with pytest.raises(VerifyError, match="reads t, which does not exist here"):
        verify(net.program)


def test_params():
    refused(
        copy_net(params=(index("i", 4), Symbol("k", 0)), write_memlet=lambda y, i: at(y, i, combine="sum")).program,
        "params",
        "k has no bounds",
    )
    refused(
        copy_net(params=(index("i", 4), index("i", 3)), write_memlet=lambda y, i: at(y, i, combine="sum")).program,
        "params",
        "i has the name",
    )


def test_alias():
    net = copy_net()
    net.program.containers["t"] = Container("t", float32, (2, 2), alias=Alias("x"))
    refused(net.program, "alias", "is in form MAPS")
    net = copy_net(schedule=Schedule("parallel"))
    net.program.form = Form.SCHEDULED
    net.program.containers["t"] = Container("t", float32, (2, 2), alias=Alias("x", 1))
    refused(net.program, "alias", "reaches element 4 of x, which has 4")
    net.program.containers["t"] = Container("t", float32, (2, 2), alias=Alias("t"))
    refused(net.program, "alias", "lies in itself")


def test_body():
    body = copy_net().program
    net = Net()
    x, y, k = net.input("x", 4), net.output("y", 4), net.input("k", dtype=int64)
    net.add(Loop(body, 3, (("x", "z"),), reads={"x": full(x)}, writes={"z": full(y)}))
    refused(net.program, "body", "carries z to x")
    net = Net()
    x, y, k = net.input("x", 4), net.output("y", 4), net.input("k", dtype=int64)
    net.add(
        Branch(
            body,
            copy_net(read_memlet=lambda x, i: at(x, i + 1)).program,
            reads={"condition": full(k), "x": full(x)},
            writes={"y": full(y)},
        )
    )
    refused(net.program, "body", "[range]")
    net = Net()
    x, y = net.input("x", 4), net.output("y", 4)
    net.add(Loop(body, 3, (("x", "y"),), reads={"x": full(x)}, writes={"y": full(y)}))
    verify(net.program)


def test_sizes():
    net = Net()  # more in test_control.py
    x, y, n = net.input("x", 4), net.output("y", 4), Symbol("n", 0, 4)
    net.add(LibraryCall("count", reads={"x": full(x)}, writes={"y": full(y)}, defines=(Defines(n, "y", 0),)))
    refused(net.program, "sizes", "n, which is no symbol of the program")


def test_every_rule_has_a_refused_program():
    assert set(RULES) == {k[5:].replace("_", " ") for k in globals() if k.startswith("test_")} & set(RULES)


def test_a_large_program_is_verified_quickly():
    nodes, containers = [], {"t0": Container("t0", float32, (64, 128), role="input")}
    for k in range(2000):
        n, c = index(f"n{k}", 64), index(f"c{k}", 128)
        x = read("x", float32)
        containers[f"t{k + 1}"] = Container(f"t{k + 1}", float32, (64, 128))
        code = {"y": apply("exp", x) * 2 + x}
        tasklet = Tasklet(code, reads={"x": at(f"t{k}", n, c)}, writes={"y": at(f"t{k + 1}", n, c)})
        nodes.append(Map((n, c), (tasklet,)))
    program = Program("deep", Form.MAPS, containers, nodes)
    program.signature = program.signature.with_(inputs=("t0",), outputs=("t2000",))
    best = np.inf
    for _ in range(3):
        start = time.process_time()
        verify(program)
        best = min(best, time.process_time() - start)
    assert best < 0.3, f"{best:.3f} s"
