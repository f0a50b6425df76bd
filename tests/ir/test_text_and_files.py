"""Printing, serialization and fingerprints: exact round trips, and what a fingerprint depends on."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ir_nets import Net
from random_programs import random_program

from shorthaul.ir.builder import at, inside
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import bfloat16, float32, int64
from shorthaul.ir.edit import EditError
from shorthaul.ir.fingerprint import fingerprint, node_fingerprint
from shorthaul.ir.interpreter import Counts, interpret
from shorthaul.ir.memlet import Indirect, full
from shorthaul.ir.nodes import Branch, LibraryCall, Loop, Map, Operator, Origin, Schedule, Tasklet
from shorthaul.ir.printer import print_program
from shorthaul.ir.program import Form
from shorthaul.ir.propagate import propagate
from shorthaul.ir.scalar import apply, const
from shorthaul.ir.serialize import SerializeError, dumps, from_json, to_json
from shorthaul.ir.verify import verify
from shorthaul.symbolic import Symbol, index

HERE = Path(__file__).resolve().parent


def rich_program(prefix="", param="i", container="x"):
    """Every kind of node and attribute."""
    net = Net("rich", symbols=[N := Symbol("N", 1, multiple_of=2)])
    x, t, y = net.input(f"{prefix}{container}", N, 4), net.container(f"{prefix}t", N, 4), net.output(f"{prefix}y", N, 4)
    k = net.container(f"{prefix}k", 3, dtype=int64, role="constant")
    net.program.constants[k.name] = np.array([2, 0, 1])
    with net.program.edit("op", {"a": 1}, why="a test", dims=(1, 2)) as edit:
        edit.add(Operator("softmax", {"dim": (-1,), "dtype": bfloat16, "size": N + 1, "eps": 1e-5, "cap": float("inf"),
                                      "flag": True, "none": None,
                                      "nested": {"a": [1, (2, 3)]}},
                          "maps", reads={"x": full(x)}, writes={"y": full(t)},
                          origins=(Origin("net.0", "model.py:3", "aten.softmax"),)))  # fmt: skip
    i, j, r = (index(f"{param}{s}", n) for s, n in (("i", N), ("j", 4), ("r", 3)))
    m = Container(f"{prefix}m", float32, (), storage="register")
    net.add(Map((i,), (
        net.flat((r,), {"k": at(k, r), "t": at(t, i, Indirect("k"))}, {"m": at(m, combine="max")}, lambda k, t: {"m": t}),
        net.flat((j,), {"t": at(t, i, j + 1, guard=inside(j + 1, 4), fill=-1.5), "m": at(m)}, {"y": at(y, i, j)},
                 lambda t, m: {"y": apply("exp", t - m) * 0.5 + t}, locals=(m,)),
    ), locals={m.name: m}, schedule=Schedule("parallel", (("tile", (4, 8)),)), name="nest",
       origins=(Origin("net.1"), Origin("net.2"))))  # fmt: skip
    z = net.output(f"{prefix}z", N, 4)
    net.add(LibraryCall("aten::relu", {"inplace": False}, reads={"a": full(y)}, writes={"out": full(z)}))
    return net.program


def loop_program():
    body = Net("body")
    a, b, i = body.input("a", 2), body.output("b", 2), index("i", 2)
    body.map((i,), {"a": at(a, i)}, {"b": at(b, i)}, lambda a: {"b": a * 2})
    net = Net("loop")
    x, y, z, c = net.input("x", 2), net.output("y", 2), net.output("z", 2), net.input("c", dtype=int64)
    net.add(Loop(body.program, 3, (("a", "b"),), reads={"a": full(x)}, writes={"b": full(y)}))
    net.add(
        Branch(body.program, body.program.clone(), reads={"condition": full(c), "a": full(x)}, writes={"b": full(z)})
    )
    return net.program


def same(p, q):
    assert fingerprint(p) == fingerprint(q)
    assert print_program(p) == print_program(q)
    assert to_json(p) == to_json(q)
    assert [n.id for n in p.nodes] == [n.id for n in q.nodes]


@pytest.mark.parametrize("make", [rich_program, loop_program])
def test_round_trip_of_every_kind_of_node(make):
    program = make()
    same(program, from_json(dumps(program)))
    same(program, from_json(to_json(program)))
    verify(from_json(dumps(program))) if make is loop_program else None


@pytest.mark.parametrize("seed", range(60))
def test_random_programs(seed):
    program, inputs = random_program(seed)
    verify(program, Form.MAPS)
    again = from_json(dumps(program))
    same(program, again)
    counts = Counts()
    out, back = interpret(program, inputs, count=counts), interpret(again, inputs)
    assert out.keys() == back.keys()
    for name, value in out.items():
        np.testing.assert_array_equal(value, back[name])
    check_footprints(program, inputs, counts)


def check_footprints(program, inputs, counts):
    """No map touches more elements than its propagated memlets cover, and without guards and indirection exactly these."""
    from shorthaul.ir.memlet import Span
    from shorthaul.symbolic import evaluate, product

    sizes = {"N": 1}
    for name, value in inputs.items():
        for n, actual in zip(program.containers[name].shape, np.shape(value), strict=True):
            if n is program.symbols[0]:
                sizes["N"] = actual
    for node in program.nodes:
        exact = not any(a.memlet.guard or a.memlet.is_indirect for a in node.accesses())
        for side, memlets in zip(("read", "write"), propagate(node, program.containers), strict=True):
            for name, m in memlets.items():
                volume = evaluate(product(s.size for s in m.subset if isinstance(s, Span)), sizes)
                touched = counts.elements[node.id, name, side]
                assert touched == volume if exact else touched <= volume, (node, m)


def test_shared_code_stays_shared():
    net = Net()
    x, y, i = net.input("x", 4), net.output("y", 4), index("i", 4)

    def double(x):
        for _ in range(200):
            x = x + x
        return {"y": x}

    net.map((i,), {"x": at(x, i)}, {"y": at(y, i)}, double)
    text = dumps(net.program)
    assert len(text) < 30_000
    (node,) = from_json(text).nodes
    assert node.tasklet.code["y"] is net.program.nodes[0].tasklet.code["y"]


def test_new_nodes_get_ids_of_their_own_after_reading():
    program = rich_program()
    data = to_json(program)
    for node in data["nodes"]:
        node["id"] += 10_000
    again = from_json(data)
    assert Tasklet({}).id > max(n.id for n in again.nodes)


def test_the_log_is_kept_but_cannot_be_undone():
    program = from_json(dumps(rich_program()))
    (entry,) = [r for r in program.log if r.name == "op"]
    assert entry.parameters == {"a": 1}
    assert entry.notes == {"why": "a test", "dims": (1, 2)}
    before = fingerprint(program)
    with pytest.raises(EditError, match="read from a file"):
        program.undo()
    assert fingerprint(program) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="other"), "not a program"),
        (lambda d: d.update(version=99), "version 99"),
        (lambda d: d.pop("nodes"), "missing 'nodes'"),
        (lambda d: d.update(form="BAKED"), "unknown form 'BAKED'"),
        (lambda d: d["nodes"][0].update(kind="gizmo"), r"node \d+: unknown kind of node 'gizmo'"),
        (lambda d: d["containers"][0].update(dtype="float7"), "container x: dtype float7 is not supported"),
        (lambda d: d["containers"][0].update(shape=[[99]]), "container x"),
        (lambda d: d["scalars"][-1].__setitem__(0, "frobnicate"), "unknown scalar operation 'frobnicate'"),
        (lambda d: d["scalars"][-1].__setitem__(1, [500, 500]), "operands"),
        (lambda d: d["constants"].update(k="!!!"), "the constants"),
        (lambda d: d["expressions"].__setitem__(0, ["what"]), "expression 0"),
    ],
)
def test_malformed_input_is_refused(change, message):
    data = json.loads(dumps(rich_program()))
    change(data)
    with pytest.raises(SerializeError, match=message):
        from_json(data)


def test_text_that_is_no_json_and_values_that_cannot_be_written():
    with pytest.raises(SerializeError, match="not JSON"):
        from_json("{")
    program = rich_program()
    program.attributes["x"] = object()
    with pytest.raises(SerializeError, match="type object cannot be written"):
        to_json(program)


def test_infinite_and_signed_constants_survive():
    net = Net()
    y, i = net.output("y", 3), index("i", 1)
    for k, v in enumerate((float("inf"), -0.0, float("nan"))):
        net.map((i,), {}, {"y": at(y, i + k)}, lambda v=v: {"y": const(v, float32)})
    value = interpret(from_json(dumps(net.program)), {})["y"]
    assert value[0] == np.inf
    assert np.signbit(value[1])
    assert np.isnan(value[2])


class TestFingerprint:
    def test_names_ids_and_origins_do_not_matter(self):
        a, b = rich_program(), rich_program(prefix="other_", param="zz", container="in")
        with b.edit("origin") as edit:
            edit.replace(b.nodes[1], b.nodes[1].with_(origins=(), name="another"))
        assert {n.id for n in a.nodes}.isdisjoint(n.id for n in b.nodes)
        assert fingerprint(a) == fingerprint(b)

    def test_connectors_do_not_matter(self):
        def program(p, q):
            net = Net()
            x, z, y, i = net.input("x", 4), net.input("z", 4), net.output("y", 4), index("i", 4)
            net.map((i,), {p: at(x, i), q: at(z, i)}, {"y": at(y, i)}, lambda **v: {"y": v[p] - v[q]})
            return net.program

        assert fingerprint(program("a", "b")) == fingerprint(program("u", "v"))
        swapped = Net()
        x, z, y, i = swapped.input("x", 4), swapped.input("z", 4), swapped.output("y", 4), index("i", 4)
        swapped.map((i,), {"a": at(x, i), "b": at(z, i)}, {"y": at(y, i)}, lambda a, b: {"y": b - a})
        assert fingerprint(program("a", "b")) != fingerprint(swapped.program)

    @pytest.mark.parametrize(
        "change",
        [
            lambda p: p.containers.update(x=p.containers["x"].with_(dtype=bfloat16)),
            lambda p: p.containers.update(x=p.containers["x"].with_(shape=(p.symbols[0], 5))),
            lambda p: p.containers.update(x=p.containers["x"].with_(strides=(1, p.symbols[0]))),
            lambda p: p.containers.update(t=p.containers["t"].with_(role="saved")),
            lambda p: p.constants.update(k=np.array([2, 1, 0])),
            lambda p: p.nodes.__setitem__(0, p.nodes[0].with_(attributes={"dim": (0,)})),
            lambda p: p.nodes.__setitem__(0, p.nodes[0].with_(expansion=None)),
            lambda p: p.nodes.__setitem__(1, p.nodes[1].with_(schedule=Schedule("parallel"))),
            lambda p: p.nodes.__setitem__(1, p.nodes[1].with_(phase="backward")),
            lambda p: p.nodes.__setitem__(1, p.nodes[1].with_(body=p.nodes[1].body[::-1])),
            lambda p: p.nodes.reverse(),
            lambda p: setattr(p, "signature", p.signature.with_(outputs=p.signature.outputs[::-1])),
        ],
    )
    def test_structure_matters(self, change):
        program = rich_program()
        change(program)
        assert fingerprint(program) != fingerprint(rich_program())

    def test_code_ranges_and_memlets_matter(self):
        def program(size=4, shift=0, value=1.0, combine="sum"):
            net = Net()
            x, y, s, i = net.input("x", 4), net.output("y", 9), net.output("s"), index("i", size)
            net.map(
                (i,),
                {"x": at(x, i)},
                {"y": at(y, i + shift), "s": at(s, combine=combine)},
                lambda x: {"y": x + value, "s": x},
            )
            return net.program

        variants = [program(), program(size=3), program(shift=1), program(value=2.0), program(combine="max")]
        assert len({fingerprint(p) for p in variants}) == len(variants)

    def test_of_one_node(self):
        a, b = rich_program(), rich_program(prefix="q", param="w")
        for m, n in zip(a.nodes, b.nodes, strict=True):
            assert node_fingerprint(m, a.containers) == node_fingerprint(n, b.containers)
        assert len({node_fingerprint(n, a.containers) for n in a.nodes}) == 3

    def test_is_stable_across_processes(self):
        code = (
            f"import sys; sys.path[:0] = {[str(HERE), str(HERE.parents[1])]}\n"
            "from random_programs import random_program\n"
            "from shorthaul.ir.fingerprint import fingerprint\n"
            "print(*(fingerprint(random_program(s)[0]) for s in (ORDER)))"
        )
        runs = []
        for order in ("3, 1, 2", "1, 2, 3"):
            done = subprocess.run(
                [sys.executable, "-c", code.replace("ORDER", order)], capture_output=True, text=True, check=True
            )
            runs.append(done.stdout.split())
        assert runs[0] == [runs[1][2], runs[1][0], runs[1][1]]


def test_printed_text():
    net = Net("bn", symbols=[N := Symbol("N", 1)])
    x, y, s = net.input("x", N, 8), net.output("y", N, 8), net.output("s", 8)
    n, c, m, d = index("n", N), index("c", 8), index("m", N), index("d", 8)
    node = net.map((n, c), {"x": at(x, n, c)}, {"s": at(s, c, combine="sum")}, lambda x: {"s": x * x}, name="square")
    last = net.map((m, d), {"x": at(x, m, d - 1, guard=inside(d - 1, 8), fill=0), "s": at(s, d)}, {"y": at(y, m, d)},
                   lambda x, s: {"y": x / s}, origins=(Origin("bn", "model.py:5", "aten.batch_norm"),))  # fmt: skip
    assert print_program(net.program) == (
        f"""\
program bn of N >= 1  # MAPS, 2 nodes, 3 containers
    input x: float32[N, 8]
    output y: float32[N, 8]
    output s: float32[8]
    inputs: x
    outputs: y, s
forward:
    map n in 0:N, c in 0:8:  # square #{node.id}; reads 8*N elements (32*N bytes), writes 8 elements (32 bytes)
        s[c] (sum) = x[n, c] * x[n, c]
    map m in 0:N, d in 0:8:  # #{last.id} [bn (aten.batch_norm) at model.py:5]; \
reads 7*N + 8 elements (28*N + 32 bytes), writes 8*N elements (32*N bytes)
        x = x[m, d - 1] if d - 1 >= 0 else 0
        y[m, d] = x / s[d]"""
    )


def test_a_rich_program_prints_every_part():
    text = print_program(rich_program())
    for part in ("y: t = softmax(x: x, dim=(-1,)", "as maps", "[net.0 (aten.softmax) at model.py:3", "parallel(tile=(4, 8))",
                 "local m: float32[] register",
                 "m[] (max) = t[ii, <k>]", "else -1.5", "and 1 more]", "out: z = library aten::relu(a: y, inplace=False)"):  # fmt: skip
        assert part in text, (part, text)
