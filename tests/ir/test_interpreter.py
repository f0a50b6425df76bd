"""The interpreter against plain NumPy, and what it refuses."""

import numpy as np
import pytest
from ir_nets import Net
from pointwise import pointwise
from random_programs import random_program

from shorthaul.ir import interpret_map
from shorthaul.ir.builder import at, inside
from shorthaul.ir.containers import Alias, Container
from shorthaul.ir.dtypes import bfloat16, bool_, float16, float32, float64, int64
from shorthaul.ir.interpreter import Counts, InterpretError, interpret
from shorthaul.ir.memlet import Condition, Indirect, full
from shorthaul.ir.nodes import Branch, LibraryCall, Loop, Map, Operator
from shorthaul.ir.scalar import apply, cast, const, index_value, where
from shorthaul.symbolic import Symbol, index

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture(params=["whole", "blocks"])
def block(request, monkeypatch):
    """Run a test on whole domains, and cut into very small blocks."""
    if request.param == "blocks":
        monkeypatch.setattr(interpret_map, "BLOCK", 7)


@pytest.mark.usefixtures("block")
class TestMeaning:
    def test_elementwise_with_broadcasting(self):
        net = Net(symbols=[N := Symbol("N", 1)])
        x, b, y = net.input("x", N, 4), net.input("b", 4), net.output("y", N, 4)
        n, c = index("n", N), index("c", 4)
        net.map((n, c), {"x": at(x, n, c), "b": at(b, c)}, {"y": at(y, n, c)}, lambda x, b: {"y": x * b + 1})
        vx, vb = normal(5, 4), normal(4)
        out = interpret(net.program, {"x": vx, "b": vb})
        np.testing.assert_array_equal(out["y"], vx * vb + np.float32(1))
        assert out["y"].dtype == np.float32

    @pytest.mark.parametrize(
        ("combine", "expected"), [("sum", np.sum), ("prod", np.prod), ("max", np.max), ("min", np.min)]
    )
    def test_reductions(self, combine, expected):
        net = Net()
        x, y = net.input("x", 3, 4, 5), net.output("y", 4)
        a, b, c = index("a", 3), index("b", 4), index("c", 5)
        net.map((a, b, c), {"x": at(x, a, b, c)}, {"y": at(y, b, combine=combine)}, lambda x: {"y": x})
        v = normal(3, 4, 5)
        np.testing.assert_allclose(
            interpret(net.program, {"x": v})["y"], expected(v.astype(np.float64), axis=(0, 2)), rtol=1e-6
        )

    def test_any_and_all_over_nothing_and_something(self):
        net = Net()
        x, some, every, none = net.input("x", 3, 4), *(net.output(k, 3, dtype=bool_) for k in ("some", "every", "none"))
        a, b, z = index("a", 3), index("b", 4), index("z", 0)
        net.map((a, b), {"x": at(x, a, b)}, {"some": at(some, a, combine="any"), "every": at(every, a, combine="all")},
                lambda x: {"some": x > 0, "every": x > 0})  # fmt: skip
        net.map((a, z), {}, {"none": at(none, a, combine="all")}, lambda: {"none": const(False, bool_)})
        v = normal(3, 4)
        out = interpret(net.program, {"x": v})
        np.testing.assert_array_equal(out["some"], (v > 0).any(1))
        np.testing.assert_array_equal(out["every"], (v > 0).all(1))
        assert out["none"].all()

    def test_integer_max_starts_from_the_least_integer(self):
        net = Net()
        x, y = net.input("x", 6, dtype=int64), net.output("y", dtype=int64)
        i = index("i", 6)
        net.map((i,), {"x": at(x, i)}, {"y": at(y, combine="max")}, lambda x: {"y": x})
        assert interpret(net.program, {"x": np.array([-9, -3, -5, -8, -3, -7])})["y"] == -3

    def test_sum_of_many_float32_is_rounded_once(self):
        net = Net()
        x, y = net.input("x", 4000), net.output("y")
        i = index("i", 4000)
        net.map((i,), {"x": at(x, i)}, {"y": at(y, combine="sum")}, lambda x: {"y": x})
        v = normal(4000) + np.float32(100)
        assert interpret(net.program, {"x": v})["y"] == np.float32(v.astype(np.float64).sum())

    def test_welford(self):
        net = Net()
        x = net.input("x", 6, 5)
        outs = {k: net.output(k, 5) for k in ("count", "mean", "m2")}
        a, b = index("a", 6), index("b", 5)
        net.map((a, b), {"x": at(x, a, b)}, {k: at(c, b, combine="welford") for k, c in outs.items()},
                lambda x: {"count": const(1, float32), "mean": x, "m2": const(0, float32)})  # fmt: skip
        v = normal(6, 5) + 10
        out = interpret(net.program, {"x": v})
        np.testing.assert_allclose(out["count"], 6)
        np.testing.assert_allclose(out["mean"], v.mean(0), rtol=1e-6)
        np.testing.assert_allclose(out["m2"] / 6, v.astype(np.float64).var(0), rtol=1e-6)

    @pytest.mark.parametrize(("name", "expected"), [("argmax", np.argmax), ("argmin", np.argmin)])
    def test_arg_extreme_takes_the_first_and_nan(self, name, expected):
        net = Net()
        x, value, place = net.input("x", 4, 9), net.output("value", 4), net.output("index", 4, dtype=int64)
        a, b = index("a", 4), index("b", 9)
        net.map((a, b), {"x": at(x, a, b)}, {"value": at(value, a, combine=name), "index": at(place, a, combine=name)},
                lambda x: {"value": x, "index": index_value(b)})  # fmt: skip
        v = RNG.integers(0, 4, (4, 9)).astype(np.float32)
        v[2, 5] = np.nan
        out = interpret(net.program, {"x": v})
        np.testing.assert_array_equal(out["index"], expected(v, axis=1))
        np.testing.assert_array_equal(out["value"], v[np.arange(4), expected(v, axis=1)])

    def test_tuple_combiners_over_scattered_groups_of_uneven_size(self):
        net = Net()
        x, ids = net.input("x", 7), net.input("ids", 7, dtype=int64)
        value, place = net.output("value", 3), net.output("index", 3, dtype=int64)
        stats = {k: net.output(k, 3) for k in ("count", "mean", "m2")}
        i = index("i", 7)
        reads = {"x": at(x, i), "id": at(ids, i)}
        net.map((i,), reads, {k: at(c, Indirect("id"), combine="argmax") for k, c in (("value", value), ("index", place))},
                lambda x, id: {"value": x, "index": index_value(i)})  # fmt: skip
        net.map((i,), reads, {k: at(c, Indirect("id"), combine="welford") for k, c in stats.items()},
                lambda x, id: {"count": const(1, float32), "mean": x, "m2": const(0, float32)})  # fmt: skip
        v, g = np.array([3, 7, 1, 7, 5, 2, 7], np.float32), np.array([0, 1, 0, 1, 0, 2, 1])
        out = interpret(net.program, {"x": v, "ids": g})
        np.testing.assert_array_equal(out["index"], [4, 1, 5])
        np.testing.assert_array_equal(out["value"], [5, 7, 2])
        np.testing.assert_array_equal(out["count"], [3, 3, 1])
        np.testing.assert_allclose(out["mean"], [3, 7, 2])
        np.testing.assert_allclose(out["m2"], [8, 0, 0], atol=1e-6)

    def test_online_softmax_gives_maximum_and_sum(self):
        net = Net()
        x, m, s = net.input("x", 3, 8), net.output("max", 3), net.output("sum", 3)
        a, b = index("a", 3), index("b", 8)
        net.map((a, b), {"x": at(x, a, b)}, {"max": at(m, a, combine="online_softmax"), "sum": at(s, a, combine="online_softmax")},
                lambda x: {"max": x, "sum": const(1, float32)})  # fmt: skip
        v = normal(3, 8) * 20
        out = interpret(net.program, {"x": v})
        np.testing.assert_array_equal(out["max"], v.max(1))
        np.testing.assert_allclose(out["sum"], np.exp(v - v.max(1, keepdims=True)).sum(1), rtol=1e-6)

    def test_softmax_nest_with_locals(self):
        net = Net(symbols=[N := Symbol("N", 1)])
        x, y = net.input("x", N, 6), net.output("y", N, 6)
        m, s = (Container(k, float32, (), storage="register") for k in ("m", "s"))
        e = Container("e", float32, (6,), storage="register")
        n, j1, j2, j3 = index("n", N), index("j1", 6), index("j2", 6), index("j3", 6)
        body = (
            net.flat((j1,), {"x": at(x, n, j1)}, {"m": at(m, combine="max")}, lambda x: {"m": x}),
            net.flat((j2,), {"x": at(x, n, j2), "m": at(m)}, {"e": at(e, j2), "s": at(s, combine="sum")},
                     lambda x, m: {"e": apply("exp", x - m), "s": apply("exp", x - m)}, locals=(m,)),
            net.flat((j3,), {"e": at(e, j3), "s": at(s)}, {"y": at(y, n, j3)}, lambda e, s: {"y": e / s}, locals=(e, s)),
        )  # fmt: skip
        net.add(Map((n,), body, locals={"m": m, "s": s, "e": e}))
        v = normal(4, 6)
        expected = np.exp(v - v.max(1, keepdims=True))
        np.testing.assert_allclose(
            interpret(net.program, {"x": v})["y"], expected / expected.sum(1, keepdims=True), rtol=1e-5
        )

    def test_a_global_reduction_inside_a_nest_goes_over_the_outer_parameters_too(self):
        net = Net()
        x, y = net.input("x", 3, 4), net.output("y")
        n, j = index("n", 3), index("j", 4)
        net.add(Map((n,), (net.flat((j,), {"x": at(x, n, j)}, {"y": at(y, combine="sum")}, lambda x: {"y": x}),)))
        v = normal(3, 4)
        np.testing.assert_allclose(interpret(net.program, {"x": v})["y"], v.sum(), rtol=1e-5)

    def test_scan_along_a_parameter_forwards_and_backwards(self):
        net = Net()
        x, y, z = net.input("x", 3, 5), net.output("y", 3, 5), net.output("z", 3, 5)
        i, j = index("i", 3), index("j", 5)
        net.map((i, j), {"x": at(x, i, j)}, {"y": at(y, i, j, combine="sum", scan=j)}, lambda x: {"y": x})
        net.map((i, j), {"x": at(x, i, 4 - j)}, {"z": at(z, i, 4 - j, combine="max", scan=j)}, lambda x: {"z": x})
        v = normal(3, 5)
        out = interpret(net.program, {"x": v})
        np.testing.assert_allclose(out["y"], np.cumsum(v.astype(np.float64), 1), rtol=1e-6)
        np.testing.assert_array_equal(out["z"], np.maximum.accumulate(v[:, ::-1], 1)[:, ::-1])

    def test_scan_of_a_contraction_and_of_a_tuple(self):
        net = Net()
        x, y = net.input("x", 4, 5), net.output("y", 5)
        value, place = net.output("value", 4, 5), net.output("index", 4, 5, dtype=int64)
        i, j = index("i", 4), index("j", 5)
        net.map((i, j), {"x": at(x, i, j)}, {"y": at(y, j, combine="sum", scan=j)}, lambda x: {"y": x})
        net.map((i, j), {"x": at(x, i, j)},
                {"value": at(value, i, j, combine="argmax", scan=j), "index": at(place, i, j, combine="argmax", scan=j)},
                lambda x: {"value": x, "index": index_value(j)})  # fmt: skip
        v = normal(4, 5)
        out = interpret(net.program, {"x": v})
        np.testing.assert_allclose(out["y"], np.cumsum(v.astype(np.float64).sum(0)), rtol=1e-5)
        for t in range(5):
            np.testing.assert_array_equal(out["index"][:, t], v[:, : t + 1].argmax(1))

    def test_gather_and_scatter_add(self):
        net = Net()
        table, ids, y = net.input("table", 7, 3), net.input("ids", 5, dtype=int64), net.output("y", 5, 3)
        grad, d_table = net.input("grad", 5, 3), net.output("d_table", 7, 3)
        i, c = index("i", 5), index("c", 3)
        net.map(
            (i, c),
            {"id": at(ids, i), "row": at(table, Indirect("id"), c)},
            {"y": at(y, i, c)},
            lambda id, row: {"y": row},
        )
        net.map((i, c), {"id": at(ids, i), "g": at(grad, i, c)}, {"d": at(d_table, Indirect("id"), c, combine="sum")},
                lambda id, g: {"d": g})  # fmt: skip
        t, k, g = normal(7, 3), np.array([1, 4, 1, 6, 1]), normal(5, 3)
        out = interpret(net.program, {"table": t, "ids": k, "grad": g})
        np.testing.assert_array_equal(out["y"], t[k])
        expected = np.zeros((7, 3))
        np.add.at(expected, k, g)
        np.testing.assert_allclose(out["d_table"], expected, rtol=1e-6)

    def test_padded_strided_convolution(self):
        net = Net()
        x, w, y = net.input("x", 2, 3, 7), net.input("w", 4, 3, 3), net.output("y", 2, 4, 4)
        n, o, h, c, k = index("n", 2), index("o", 4), index("h", 4), index("c", 3), index("k", 3)
        place = 2 * h + k - 1
        net.map((n, o, h, c, k), {"x": at(x, n, c, place, guard=inside(place, 7), fill=0), "w": at(w, o, c, k)},
                {"y": at(y, n, o, h, combine="sum")}, lambda x, w: {"y": x * w})  # fmt: skip
        vx, vw = normal(2, 3, 7), normal(4, 3, 3)
        padded = np.pad(vx.astype(np.float64), ((0, 0), (0, 0), (1, 1)))
        expected = np.stack([np.einsum("nck,ock->no", padded[:, :, 2 * t : 2 * t + 3], vw) for t in range(4)], -1)
        np.testing.assert_allclose(interpret(net.program, {"x": vx, "w": vw})["y"], expected, rtol=1e-4, atol=1e-6)

    def test_data_gradient_of_a_strided_convolution_in_gather_form(self):
        net = Net()
        g, w, d = net.input("g", 4), net.input("w", 3), net.output("d", 7)
        h, k = index("h", 7), index("k", 3)
        t = h + 1 - k
        guard = (Condition(t % 2, "eq"), *inside(t // 2, 4))
        net.map((h, k), {"g": at(g, t // 2, guard=guard, fill=0), "w": at(w, k)}, {"d": at(d, h, combine="sum")},
                lambda g, w: {"d": g * w})  # fmt: skip
        vg, vw = normal(4), normal(3)
        expected = np.zeros(9)
        for i in range(4):
            expected[2 * i : 2 * i + 3] += vg[i] * vw.astype(np.float64)
        np.testing.assert_allclose(interpret(net.program, {"g": vg, "w": vw})["d"], expected[1:8], rtol=1e-5)

    def test_matmul(self):
        net = Net()
        a, b, y = net.input("a", 5, 6), net.input("b", 6, 4), net.output("y", 5, 4)
        i, j, k = index("i", 5), index("j", 4), index("k", 6)
        net.map(
            (i, j, k),
            {"a": at(a, i, k), "b": at(b, k, j)},
            {"y": at(y, i, j, combine="sum")},
            lambda a, b: {"y": a * b},
        )
        va, vb = normal(5, 6), normal(6, 4)
        np.testing.assert_allclose(
            interpret(net.program, {"a": va, "b": vb})["y"], va.astype(np.float64) @ vb, rtol=1e-5
        )

    def test_elementwise_and_statistics_in_one_tasklet(self):
        net = Net()
        x, y, s = net.input("x", 4, 5), net.output("y", 4, 5), net.output("s", 5)
        i, j = index("i", 4), index("j", 5)
        net.map(
            (i, j), {"x": at(x, i, j)}, {"y": at(y, i, j), "s": at(s, j, combine="sum")}, lambda x: {"y": -x, "s": x}
        )
        v = normal(4, 5)
        out = interpret(net.program, {"x": v})
        np.testing.assert_array_equal(out["y"], -v)
        np.testing.assert_allclose(out["s"], v.sum(0), rtol=1e-5)

    def test_triangular_domain(self):
        net = Net()
        x, y = net.input("x", 6, 6), net.output("y", 6)
        i = index("i", 6)
        j = Symbol("j", 0, i)
        net.map((i, j), {"x": at(x, i, j)}, {"y": at(y, i, combine="sum")}, lambda x: {"y": x})
        v = normal(6, 6)
        np.testing.assert_allclose(interpret(net.program, {"x": v})["y"], np.tril(v).sum(1), rtol=1e-5)

    def test_writes_under_a_guard_to_disjoint_regions(self):
        net = Net()
        a, b, y = net.input("a", 3), net.input("b", 4), net.output("y", 7)
        i, j = index("i", 7), index("j", 4)
        net.map(
            (i,),
            {"a": at(a, i, guard=inside(i, 3), fill=0)},
            {"y": at(y, i, guard=(Condition(2 - i),))},
            lambda a: {"y": a},
        )
        net.map((j,), {"b": at(b, j)}, {"y": at(y, 3 + j)}, lambda b: {"y": b})
        va, vb = normal(3), normal(4)
        np.testing.assert_array_equal(interpret(net.program, {"a": va, "b": vb})["y"], np.concatenate([va, vb]))

    def test_two_maps_combine_into_disjoint_regions(self):
        net = Net()
        a, y = net.input("a", 3, 2), net.output("y", 4)
        i, j = index("i", 3), index("j", 2)
        for at_ in (0, 2):
            net.map((i, j), {"a": at(a, i, j)}, {"y": at(y, j + at_, combine="sum")}, lambda a: {"y": a})
        v = normal(3, 2)
        np.testing.assert_allclose(interpret(net.program, {"a": v})["y"], np.tile(v.sum(0), 2), rtol=1e-5)


def test_scalar_containers_and_casts():
    net = Net()
    x, y, z = net.input("x", dtype=float32), net.output("y", dtype=int64), net.output("z", dtype=bool_)
    net.map((), {"x": at(x)}, {"y": at(y), "z": at(z)}, lambda x: {"y": cast(x, int64), "z": cast(x, bool_)})
    out = interpret(net.program, {"x": np.float32(-2.7)})
    assert out["y"] == -2
    assert out["z"]


def test_16_bit_floats_are_rounded_at_the_store():
    net = Net()
    x, h, b = net.input("x", 3), net.output("h", 3, dtype=float16), net.output("b", 3, dtype=bfloat16)
    i = index("i", 3)
    net.map(
        (i,), {"x": at(x, i)}, {"h": at(h, i), "b": at(b, i)}, lambda x: {"h": cast(x, float16), "b": cast(x, bfloat16)}
    )
    v = np.array([1 + 2**-9, 3.14159, 1e-3], np.float32)
    out = interpret(net.program, {"x": v})
    assert out["h"].dtype == np.float16
    np.testing.assert_array_equal(out["h"], v.astype(np.float16))
    assert out["b"][0] == 1.0
    assert out["b"][1] == 3.140625
    wide = interpret(net.program, {"x": v}, wide=True)
    np.testing.assert_array_equal(wide["b"], v.astype(np.float64))


def test_random_numbers_depend_on_seed_offset_and_index_only():
    net = Net()
    seed, offset, y, z = (
        *(net.input(k, dtype=int64) for k in ("seed", "offset")),
        net.output("y", 4, 5),
        net.output("z", 20),
    )
    i, j, k = index("i", 4), index("j", 5), index("k", 20)
    reads = {"s": at(seed), "o": at(offset)}
    net.map((i, j), reads, {"y": at(y, i, j)}, lambda s, o: {"y": apply("philox", s, o, index_value(5 * i + j))})
    net.map((k,), reads, {"z": at(z, k)}, lambda s, o: {"z": apply("philox", s, o, index_value(k))})
    out = interpret(net.program, {"seed": 12, "offset": 3})
    np.testing.assert_array_equal(out["y"].reshape(-1), out["z"])
    assert len(np.unique(out["z"])) == 20


def relu_net():
    net = Net()
    x, y, g, d = (
        net.input("x", 4),
        net.output("y", 4),
        net.container("g", 4, role="cotangent"),
        net.container("d", 4, role="gradient"),
    )
    i = index("i", 4)
    net.map((i,), {"x": at(x, i)}, {"y": at(y, i)}, lambda x: {"y": apply("max", x, 0)})
    net.map(
        (i,), {"y": at(y, i), "g": at(g, i)}, {"d": at(d, i)}, lambda y, g: {"d": where(y > 0, g, 0)}, phase="backward"
    )
    net.program.signature = net.program.signature.with_(cotangents=(("y", "g"),), gradients=(("x", "d"),))
    return net


def test_phases():
    program = relu_net().program
    x, g = normal(4), normal(4)
    forward = interpret(program, {"x": x}, phase="forward")
    assert "d" not in forward
    backward = interpret(program, {"y": forward["y"], "g": g}, phase="backward")
    np.testing.assert_array_equal(backward["d"], g * (x > 0))
    both = interpret(program, {"x": x, "g": g})
    np.testing.assert_array_equal(both["d"], backward["d"])


def test_library_calls():
    net = Net()
    x, y = net.input("x", 3, 3), net.output("y", 3, 3)
    net.add(LibraryCall("inverse", reads={"a": full(x)}, writes={"out": full(y)}))
    v = np.eye(3) * 2
    out = interpret(net.program, {"x": v}, library={"inverse": lambda node, a: {"out": np.linalg.inv(a["a"])}})
    np.testing.assert_array_equal(out["y"], np.eye(3) / 2)
    with pytest.raises(InterpretError, match="no implementation of inverse"):
        interpret(net.program, {"x": v})


def test_loop_and_branch():
    body = Net("double")
    state, out = body.input("state", 2), body.output("next", 2)
    i = index("i", 2)
    body.map((i,), {"s": at(state, i)}, {"n": at(out, i)}, lambda s: {"n": s * 2})
    net = Net()
    x, y, z, flag = net.input("x", 2), net.output("y", 2), net.output("z", 2), net.input("flag", dtype=bool_)
    net.add(Loop(body.program, 5, (("state", "next"),), reads={"state": full(x)}, writes={"next": full(y)}))
    net.add(
        Branch(body.program, body.program, reads={"condition": full(flag), "state": full(x)}, writes={"next": full(z)})
    )
    out = interpret(net.program, {"x": np.array([1, 2], np.float32), "flag": True})
    np.testing.assert_array_equal(out["y"], [32, 64])
    np.testing.assert_array_equal(out["z"], [2, 4])


def test_aliases_share_memory():
    net = Net()
    x, y = net.input("x", 2, 6), net.output("y", 6, 2)
    net.container("v", 6, 2)
    with net.program.edit("plan") as edit:
        edit.set_container(Container("v", float32, (6, 2), strides=(1, 6), alias=Alias("x")))
    i, j = index("i", 6), index("j", 2)
    net.map((i, j), {"v": at("v", i, j)}, {"y": at(y, i, j)}, lambda v: {"y": v})
    v = normal(2, 6)
    np.testing.assert_array_equal(interpret(net.program, {"x": v})["y"], v.T)
    assert x.name == "x"


def test_operators_are_refused_or_expanded():
    net = Net()
    x, y = net.input("x", 3), net.output("y", 3)
    net.add(Operator("neg", reads={"x": full(x)}, writes={"y": full(y)}))
    with pytest.raises(InterpretError, match=r"neg.*not expanded"):
        interpret(net.program, {"x": normal(3)})
    i = index("i", 3)

    def expand(program, node):
        with program.edit("expand") as edit:
            edit.replace(node, net.flat((i,), {"x": at(x, i)}, {"y": at(y, i)}, lambda x: {"y": -x}))

    v = normal(3)
    np.testing.assert_array_equal(interpret(net.program, {"x": v}, expand=expand)["y"], -v)
    assert isinstance(net.program.nodes[0], Operator)


class TestRefusals:
    def simple(self, read, write, shape=(4,), size=4):
        net = Net()
        x, y, i = net.input("x", *shape), net.output("y", 4), index("i", size)
        net.map((i,), {"x": read(x, i)}, {"y": write(y, i)}, lambda x: {"y": x}, name="copy")
        return net.program

    def test_read_out_of_range(self):
        program = self.simple(lambda x, i: at(x, i + 1), lambda y, i: at(y, i))
        with pytest.raises(
            InterpretError, match=r"copy.*x\[i \+ 1\] is out of range: subscript i \+ 1 is 4, the size 4"
        ):
            interpret(program, {"x": normal(4)})

    def test_write_out_of_range(self):
        with pytest.raises(InterpretError, match="out of range"):
            interpret(self.simple(lambda x, i: at(x, i), lambda y, i: at(y, i - 1)), {"x": normal(4)})

    def test_element_written_twice_by_one_node(self):
        with pytest.raises(InterpretError, match="twice"):
            interpret(self.simple(lambda x, i: at(x, i), lambda y, i: at(y, i // 2)), {"x": normal(4)})

    def test_element_written_twice_by_two_nodes(self):
        program = self.simple(lambda x, i: at(x, i), lambda y, i: at(y, i))
        with program.edit("again") as edit:
            edit.add(program.nodes[0].copy())
        with pytest.raises(InterpretError, match="written already"):
            interpret(program, {"x": normal(4)})

    def test_result_that_is_not_complete(self):
        with pytest.raises(InterpretError, match="1 of 4 elements of the result y"):
            interpret(self.simple(lambda x, i: at(x, i), lambda y, i: at(y, i), size=3), {"x": normal(4)})

    def test_read_of_what_was_never_written(self):
        net = Net()
        t, y = net.container("t", 4), net.output("y", 4)
        i, j = index("i", 3), index("j", 4)
        net.map((i,), {}, {"t": at(t, i)}, lambda: {"t": const(1, float32)})
        net.map((j,), {"t": at(t, j)}, {"y": at(y, j)}, lambda t: {"y": t})
        with pytest.raises(InterpretError, match=r"t\[j\] reads an element that was never written"):
            interpret(net.program, {})

    def test_missing_input_and_wrong_inputs(self):
        program = self.simple(lambda x, i: at(x, i), lambda y, i: at(y, i))
        with pytest.raises(InterpretError, match="the input x, for which no value was given"):
            interpret(program, {})
        with pytest.raises(ValueError, match=r"x has shape \(5,\)"):
            interpret(program, {"x": normal(5)})
        with pytest.raises(ValueError, match="no container z"):
            interpret(program, {"x": normal(4), "z": 1})

    def test_size_without_a_value(self):
        net = Net(symbols=[N := Symbol("N", 1)])
        x, y, i = net.input("x", 2 * N), net.output("y", 2 * N), index("i", 2 * N)
        net.map((i,), {"x": at(x, i)}, {"y": at(y, i)}, lambda x: {"y": x})
        with pytest.raises(ValueError, match="size N"):
            interpret(net.program, {"x": normal(4)})
        interpret(net.program, {"x": normal(4)}, {"N": 2})

    def test_indirect_read_out_of_range(self):
        net = Net()
        t, ids, y, i = net.input("t", 3), net.input("ids", 2, dtype=int64), net.output("y", 2), index("i", 2)
        net.map((i,), {"id": at(ids, i), "v": at(t, Indirect("id"))}, {"y": at(y, i)}, lambda id, v: {"y": v})
        with pytest.raises(InterpretError, match=r"t\[<id>\] is out of range: subscript <id> is 3"):
            interpret(net.program, {"t": normal(3), "ids": [0, 3]})


def test_counts_of_accesses_and_elements():
    net = Net()
    x, y = net.input("x", 6), net.output("y", 3)
    h, k = index("h", 3), index("k", 3)
    place = 2 * h + k - 1
    node = net.map(
        (h, k), {"x": at(x, place, guard=inside(place, 6), fill=0)}, {"y": at(y, h, combine="sum")}, lambda x: {"y": x}
    )
    counts = Counts()
    interpret(net.program, {"x": normal(6)}, count=counts)
    assert counts.accesses == {(node.id, "x", "read"): 8, (node.id, "y", "write"): 9}
    assert counts.elements == {(node.id, "x", "read"): 6, (node.id, "y", "write"): 3}


def test_float64_programs():
    net = Net()
    x, y, i = net.input("x", 3, dtype=float64), net.output("y", 3, dtype=float64), index("i", 3)
    net.map((i,), {"x": at(x, i)}, {"y": at(y, i)}, lambda x: {"y": apply("exp", x)})
    v = RNG.standard_normal(3)
    np.testing.assert_array_equal(interpret(net.program, {"x": v})["y"], np.exp(v))


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("seed", range(100, 160))
def test_random_programs_against_one_point_at_a_time(seed):
    program, inputs = random_program(seed)
    sizes = {s.name: n for c in program.containers.values() if c.name in inputs for s, n in zip(c.shape, np.shape(inputs[c.name]))
             if isinstance(s, Symbol)}  # fmt: skip
    expected = pointwise(program, inputs, sizes)
    out = interpret(program, inputs, wide=True)
    assert set(out) == set(program.containers)
    for name, value in out.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-9, atol=1e-9, err_msg=name)
