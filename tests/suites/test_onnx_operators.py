"""The table of ONNX operators against the schemas of onnx, and operators that the backend suite leaves out."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, defs, helper
from onnx.reference import ReferenceEvaluator

import shorthaul as sh
from shorthaul.frontends.onnx_model import coverage
from shorthaul.frontends.onnx_model.table import FILLED_IN, TABLE, find
from shorthaul.frontends.onnx_model.types import HELD

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = [s for s in defs.get_all_schemas_with_history() if (s.domain, s.name) in TABLE and not s.deprecated]


def test_no_attribute_is_silently_ignored() -> None:
    lost = []
    for s in SCHEMAS:
        entry = find(s.domain, s.name, s.since_version)
        if entry is not None:
            lost += [f"{s.name} {s.since_version}: {a}" for a in s.attributes if a not in entry.keywords | entry.ignores]
    assert not lost


def test_every_operand_of_a_schema_has_a_parameter() -> None:
    lost = []
    for s in SCHEMAS:
        entry = find(s.domain, s.name, s.since_version)
        if entry is not None and not entry.variadic and len(s.inputs) > len(entry.operands):
            lost.append(f"{s.name} {s.since_version}: {[i.name for i in s.inputs]}, {entry.operands}")
    assert not lost


def test_parameters_are_operands_attributes_or_filled_in() -> None:
    of_function: dict[Any, set[str]] = {}
    for s in SCHEMAS:
        for e in TABLE[s.domain, s.name]:
            of_function.setdefault(e.function, set()).update(s.attributes)
    for (_, name), entries in TABLE.items():
        for e in entries:
            attributes = of_function[e.function]
            assert e.host <= set(e.operands), name
            assert e.keywords - set(e.operands) <= attributes | set(FILLED_IN), name


def test_the_page_of_operators_is_current() -> None:
    assert (ROOT / "docs" / "onnx.md").read_text() == coverage.page()


# --- operators that the suite leaves out ------------------------------------------------------------------------


def one_node(op: str, inputs: dict[str, np.ndarray], opset: int, rank: int, elem: int | None = None, **attributes: Any) -> onnx.ModelProto:
    """A model of one node with a result of that rank, of the type of the first operand by default."""
    types = [helper.np_dtype_to_tensor_dtype(v.dtype) for v in inputs.values()]
    infos = [helper.make_tensor_value_info(n, t, v.shape) for (n, v), t in zip(inputs.items(), types, strict=True)]
    y = helper.make_tensor_value_info("y", elem or types[0], [None] * rank)
    graph = helper.make_graph([helper.make_node(op, list(inputs), ["y"], "the node", **attributes)], "g", infos, [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> Any:
    return sh.load_onnx(model)(*map(torch.from_numpy, inputs.values()))


RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(2, 3, 6, 5)).astype(np.float32)
AGAINST_REFERENCE = {
    "Hardmax": ({"x": IMAGE}, {"axis": 1}, 13),
    "LogSoftmax": ({"x": IMAGE}, {"axis": 2}, 13),
    "Celu": ({"x": IMAGE}, {"alpha": 0.7}, 12),
    "Slice": ({"x": IMAGE, "s": np.array([4, -1]), "e": np.array([0, -(2**63)]), "a": np.array([2, 3]), "t": np.array([-2, -1])}, {}, 13),
    "GatherND": ({"x": IMAGE, "i": np.array([[[0], [2]], [[1], [-1]]])}, {"batch_dims": 1}, 13),
    "ScatterND": ({"x": IMAGE, "i": np.array([[0], [1], [0]]), "u": RNG.normal(size=(3, 3, 6, 5)).astype(np.float32)},
                  {"reduction": "max"}, 18),
    "CumSum": ({"x": IMAGE, "a": np.array(-1)}, {"exclusive": 1, "reverse": 1}, 14),
}  # fmt: skip


@pytest.mark.parametrize("op", AGAINST_REFERENCE)
def test_against_the_reference_implementation(op: str) -> None:
    inputs, attributes, opset = AGAINST_REFERENCE[op]
    model = one_node(op, inputs, opset, 4, **attributes)
    (expected,) = ReferenceEvaluator(model).run(None, inputs)
    np.testing.assert_allclose(run(model, inputs).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_pooling_without_a_reference_implementation() -> None:
    y = run(one_node("GlobalLpPool", {"x": IMAGE}, 18, 4, p=3), {"x": IMAGE})
    np.testing.assert_allclose(y.numpy()[..., 0, 0], (np.abs(IMAGE) ** 3).sum((2, 3)) ** (1 / 3), rtol=1e-5)
    inputs = {"x": IMAGE, "r": np.array([[1, 0, 0, 3, 3], [0, 2, 1, 2, 1]], dtype=np.float32)}
    y = run(one_node("MaxRoiPool", inputs, 18, 4, pooled_shape=[2, 2]), inputs).numpy()
    np.testing.assert_array_equal(y[0, :, 0, 1], IMAGE[1, :, 0:2, 2:4].max((1, 2)))
    np.testing.assert_array_equal(y[1, :, 1, 1], IMAGE[0, :, 1, 2])


def test_max_pool_before_it_had_indices() -> None:
    """Its schema has one result up to version 7, the function of the table has two."""
    model = one_node("MaxPool", {"x": IMAGE}, 7, 4, kernel_shape=[2, 2])
    np.testing.assert_array_equal(run(model, {"x": IMAGE}).numpy(), torch.nn.functional.max_pool2d(torch.from_numpy(IMAGE), 2, 1).numpy())


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_before_version_13_softmax_is_over_all_axes_from_one_on(op: str) -> None:
    y = run(one_node(op, {"x": IMAGE}, 11, 4, axis=2), {"x": IMAGE})
    flat = IMAGE.reshape(6, 30)
    (expected,) = ReferenceEvaluator(one_node(op, {"x": flat}, 13, 2, axis=1)).run(None, {"x": flat})
    np.testing.assert_allclose(y.numpy().reshape(6, 30), expected, rtol=1e-5, atol=1e-6)


def test_random_tensors_have_their_moments_and_seeds() -> None:
    normal = sh.load_onnx(one_node("RandomNormal", {}, 18, 2, TensorProto.FLOAT, shape=[400, 400], mean=2.0, scale=3.0))
    torch.manual_seed(0)
    x = normal()
    assert abs(float(x.mean()) - 2.0) < 0.05
    assert abs(float(x.std()) - 3.0) < 0.05
    assert not torch.equal(x, normal())
    seeded = sh.load_onnx(one_node("RandomUniform", {}, 18, 2, TensorProto.FLOAT, shape=[50, 50], low=-1.0, high=4.0, seed=3.0))
    y = seeded()
    assert torch.equal(y, seeded())
    assert -1.0 <= float(y.min()) < 0.0 < 3.0 < float(y.max()) <= 4.0


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "BitwiseXor", "Max", "Equal"])
def test_unsigned_arithmetic_wraps(op: str, bits: int) -> None:
    a, b = (RNG.integers(0, 2 ** (bits - 1), size=(40,), dtype=f"uint{bits}") for _ in range(2))
    y = run(one_node(op, {"a": a, "b": b}, 19, 1, TensorProto.BOOL if op == "Equal" else None), {"a": a, "b": b}).numpy()
    numpy = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "BitwiseXor": np.bitwise_xor, "Max": np.maximum, "Equal": np.equal}
    np.testing.assert_array_equal(y, numpy[op](a, b))


def test_large_uint64_are_right_or_refused() -> None:
    a = np.array([2**63 + 5, 7], dtype=np.uint64)
    b = np.array([3, 2**64 - 1], dtype=np.uint64)
    np.testing.assert_array_equal(run(one_node("Add", {"a": a, "b": b}, 14, 1), {"a": a, "b": b}).numpy(), a + b)
    steps = np.array([0, 1, 2, 3, 7, 2**31, 2**62 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**63 + 5, 2**64 - 2, 2**64 - 1], dtype=np.uint64)
    a, b = (x.reshape(-1) for x in np.meshgrid(steps, steps))
    found = {"Max": np.maximum, "Min": np.minimum, "Less": np.less, "GreaterOrEqual": np.greater_equal,
             "Div": np.floor_divide, "Mod": np.mod}  # fmt: skip
    for op, f in found.items():
        given = {"a": a[b > 0], "b": b[b > 0]}
        result = TensorProto.BOOL if op in ("Less", "GreaterOrEqual") else None
        y = run(one_node(op, given, 16, 1, result), given).numpy()
        expected = f(given["a"], given["b"])
        assert y.dtype == expected.dtype, op
        np.testing.assert_array_equal(y, expected, op)
    largest = {"x": steps[[3, 10, 0, 7]]}
    assert run(one_node("ReduceMax", largest, 13, 0, keepdims=0), largest).item() == 2**63 + 5
    assert run(one_node("ArgMax", largest, 13, 0, TensorProto.INT64, keepdims=0), largest).item() == 1
    with pytest.raises(sh.OnnxError, match=r"2\^63"):
        run(one_node("Sign", {"x": steps}, 13, 1), {"x": steps})


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_several_unsigned_results_keep_their_type(bits: int) -> None:
    x = np.array([3, 2**bits - 5, 1, 7], dtype=f"uint{bits}")
    elem = helper.np_dtype_to_tensor_dtype(x.dtype)
    for op, other, results, wanted in (("TopK", [2], (elem, TensorProto.INT64), ([2**bits - 5, 7], [1, 3])),
                                       ("Split", [1, 3], (elem, elem), ([3], [2**bits - 5, 1, 7]))):  # fmt: skip
        k = helper.make_tensor("k", TensorProto.INT64, [len(other)], other)
        ends = [helper.make_tensor_value_info(n, t, [None]) for n, t in zip("ab", results, strict=True)]
        start = helper.make_tensor_value_info("x", elem, [4])
        graph = helper.make_graph([helper.make_node(op, ["x", "k"], ["a", "b"])], "g", [start], ends, [k])
        found = sh.load_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10))(torch.from_numpy(x))
        assert [y.numpy().tolist() for y in found] == list(wanted), op
        assert found[0].numpy().dtype == x.dtype, op


def test_types_of_the_newest_onnx_are_known_or_refused_by_name() -> None:
    unknown = {n for n, v in TensorProto.DataType.items() if v not in HELD and n not in ("UNDEFINED", "STRING")}
    assert unknown <= {"FLOAT6E2M3", "FLOAT6E3M2"}  # PyTorch has none


def test_strings_run_in_the_reference_implementation_visibly() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.STRING, [2])
    y = helper.make_tensor_value_info("y", TensorProto.STRING, [2])
    graph = helper.make_graph([helper.make_node("StringConcat", ["x", "x"], ["y"], "join")], "g", [x], [y])
    with pytest.warns(sh.FallbackWarning, match="join.*StringConcat.*reference"):
        module = sh.load_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(module(np.array(["a", "b"], dtype=object))) == ["aa", "bb"]
