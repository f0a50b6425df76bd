"""Bad ONNX files and calls: a clear OnnxError that names the place; never a crash, never a file outside the model's folder."""

from __future__ import annotations

import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_models import convolutional, perceptron, transformer

import shorthaul as sh

node = helper.make_node


def changed(change: Callable[[ModelProto], object]) -> ModelProto:
    model = perceptron()
    change(model)
    return model


def _set(target: object, name: str, value: object) -> None:
    setattr(target, name, value)


def constant_of_shape(*shape: int) -> ModelProto:
    sizes = numpy_helper.from_array(np.array(shape, dtype=np.int64), "s")
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))
    graph = helper.make_graph([node("ConstantOfShape", ["s"], ["y"], "filled")], "g", [], [y], [sizes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def with_functions(functions: list) -> ModelProto:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy")
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    graph = helper.make_graph([node("F0", ["x"], ["y"], "call", domain="local")], "g", [x], [y])
    return helper.make_model(graph, functions=functions, opset_imports=opsets)


def function(name: str, calls: list[str]) -> onnx.FunctionProto:
    values = ["a", *[f"v{i}" for i in range(len(calls) - 1)], "b"]
    nodes = [node(c, [values[i]], [values[i + 1]], domain="" if c == "Relu" else "local") for i, c in enumerate(calls)]
    return helper.make_function("local", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)])


BAD: dict[str, tuple[ModelProto | bytes, str]] = {
    "empty": (b"", "is empty"),
    "no proto": (b"hello world, this is text", "no ONNX model"),
    "cut short": (perceptron().SerializeToString()[:300], "no ONNX model|holds|not valid"),
    "no graph": (ModelProto(ir_version=8).SerializeToString(), "holds no graph"),
    "unknown operator": (changed(lambda m: _set(m.graph.node[1], "op_type", "Reluu")), "Reluu.*\n?.*/act/Relu"),
    "unknown operator set": (changed(lambda m: _set(m.opset_import[0], "version", 999)), "999.*knows up to"),
    "unknown domain": (changed(lambda m: (_set(m.graph.node[1], "domain", "acme"), m.opset_import.add(domain="acme", version=1))), "acme"),
    "domain not imported": (changed(lambda m: _set(m.graph.node[1], "domain", "acme")), "acme"),
    "no operator set": (changed(lambda m: m.ClearField("opset_import")), "no operator set"),
    "shapes do not fit": (changed(lambda m: m.graph.node[0].input.__setitem__(1, "fc2.weight")), "/fc1/Gemm"),
    "types do not fit": (changed(lambda m: _set(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.INT64)), "/fc1/Gemm"),
    "a cycle": (changed(lambda m: m.graph.node[0].input.__setitem__(0, "y")), "topologically.*/fc1/Gemm"),
    "computed twice": (changed(lambda m: m.graph.node[1].output.__setitem__(0, "h")), "'h'"),
    "initializer twice": (changed(lambda m: m.graph.initializer.append(m.graph.initializer[0])), "fc1.weight"),
    "operand missing": (changed(lambda m: m.graph.node[2].input.__setitem__(1, "nowhere")), "nowhere"),
    "result missing": (changed(lambda m: _set(m.graph.output[0], "name", "nowhere")), "nowhere"),
    "unknown attribute": (changed(lambda m: m.graph.node[0].attribute.append(helper.make_attribute("bogus", 1))), "bogus"),
    "enormous weight": (changed(lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**40)), "fc1.weight.*holds 512"),
    "negative weight": (changed(lambda m: m.graph.initializer[0].dims.__setitem__(0, -2)), "fc1.weight"),
    "weight of unknown type": (changed(lambda m: _set(m.graph.initializer[0], "data_type", 77)), "fc1.weight"),
    "function calls itself": (with_functions([function("F0", ["F0"])]), "calls itself"),
    "functions explode": (with_functions([*[function(f"F{i}", [f"F{i + 1}"] * 4) for i in range(30)], function("F30", ["Relu"])]),
                          "expand to more"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_model_is_refused(what: str) -> None:
    source, message = BAD[what]
    with pytest.raises(sh.OnnxError, match=message):
        sh.load_onnx(source)


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(sh.OnnxError, match="cannot be read"):
            sh.load_onnx(path)
    with pytest.raises(TypeError, match="path"):
        sh.load_onnx(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(), "'x'.*missing"),
        (lambda m: m(torch.ones(2, 8), torch.ones(1)), "2 inputs"),
        (lambda m: m(torch.ones(2, 8), y=torch.ones(1)), "no input 'y'"),
        (lambda m: m(torch.ones(2, 8, dtype=torch.float64)), "float32, not torch.float64"),
        (lambda m: m(torch.ones(2, 9)), r"batch, 8.*\(2, 9\)"),
        (lambda m: m(torch.ones(8)), r"batch, 8.*\(8,\)"),
        (lambda m: m(np.ones((2, 8), dtype=np.float32)), "ndarray"),
    ],
)
def test_a_bad_call_is_refused(call: Callable, message: str) -> None:
    with pytest.raises(sh.OnnxError, match=message):
        call(sh.load_onnx(perceptron()))


def test_an_error_while_running_names_the_node() -> None:
    model = perceptron()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"  # so that only the run can tell
    with pytest.raises(sh.OnnxError, match="/fc1/Gemm"):
        sh.load_onnx(model)(torch.ones(2, 5))


def test_an_enormous_tensor_is_refused_before_it_is_made() -> None:
    module = sh.load_onnx(constant_of_shape(2**20, 2**20))
    with pytest.raises(sh.OnnxError, match=r"filled.*GiB"):
        module()


# --- external data ------------------------------------------------------------------------------------------------


def external(folder: Path, location: str, **fields: int) -> Path:
    """A model in `folder` whose weights say they are in `location`; the true ones are in weights.bin."""
    onnx.save_model(perceptron(), folder / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(folder / "m.onnx", load_external_data=False)
    for t in model.graph.initializer:
        for entry in t.external_data:
            if entry.key == "location":
                entry.value = location
            elif entry.key in fields:
                entry.value = str(fields[entry.key])
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/hostname", "link", "linked_folder/secret", "a/../../secret", "", "none", ".", "short"]
)
def test_external_data_stay_in_the_folder_of_the_model(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"s" * 4096)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").mkdir()
    (folder / "short").write_bytes(b"12")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "linked_folder").symlink_to(tmp_path)
    path = external(folder, location)
    with pytest.raises(sh.OnnxError, match=r"fc1\.weight"):
        sh.load_onnx(path)


@pytest.mark.parametrize("fields", [{"offset": -8}, {"offset": 2**40}, {"length": 2**40}, {"length": 3}])
def test_external_data_of_another_size(fields: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(sh.OnnxError, match=r"fc1\.weight"):
        sh.load_onnx(external(tmp_path, "weights.bin", **fields))


def test_external_data_without_a_folder(tmp_path: Path) -> None:
    path = external(tmp_path, "weights.bin")
    assert torch.equal(sh.load_onnx(path).fc1.weight, sh.load_onnx(perceptron()).fc1.weight)
    with pytest.raises(sh.OnnxError, match="Pass the path"):
        sh.load_onnx(onnx.load(path, load_external_data=False))


# --- fuzzing ------------------------------------------------------------------------------------------------------

SOURCES = [m().SerializeToString() for m in (perceptron, convolutional, transformer)]


def load_quietly(data: bytes | ModelProto) -> None:
    """Load, and where that succeeds, call: nothing but OnnxError may come out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = sh.load_onnx(data)
            inputs = [torch.ones([d or 2 for d in p.dims or ()], dtype=p.dtype) for p in module._code.inputs if p.dtype is not None]
            if all(t.numel() < 10**6 for t in inputs):
                module(*inputs)
        except sh.OnnxError:
            pass


@given(st.sampled_from(SOURCES), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6))
def test_flipped_bytes(data: bytes, flips: list[tuple[int, int]]) -> None:
    changed = bytearray(data)
    for at, value in flips:
        changed[at % len(changed)] = value
    load_quietly(bytes(changed))


@given(st.sampled_from(SOURCES), st.integers(0, 10**6), st.integers(0, 10**6))
def test_cut_and_spliced_files(data: bytes, start: int, length: int) -> None:
    start %= len(data)
    load_quietly(data[:start])
    load_quietly(data[:start] + data[start + length % 64 :])


NAMES = st.sampled_from(["x", "y", "h", "", "fc1.weight", "zero", "target", "self", "import", "a b", "ü", "x" * 300])


@given(st.data())
def test_mutated_fields(data: st.DataObject) -> None:
    model = ModelProto.FromString(data.draw(st.sampled_from(SOURCES)))
    graph = model.graph
    for _ in range(data.draw(st.integers(1, 3))):
        target = data.draw(st.sampled_from(list(graph.node)))
        kind = data.draw(st.sampled_from(["op", "input", "output", "attribute", "dims", "type", "drop", "swap"]))
        if kind == "op":
            target.op_type = data.draw(st.sampled_from(["Relu", "Split", "Conv", "Loop", "Reshape", "Pad", "Constant", "Resize", "If"]))
        elif kind == "input" and target.input:
            target.input[data.draw(st.integers(0, len(target.input) - 1))] = data.draw(NAMES)
        elif kind == "output":
            target.output[0] = data.draw(NAMES)
        elif kind == "attribute" and target.attribute:
            a = target.attribute[data.draw(st.integers(0, len(target.attribute) - 1))]
            a.i, a.ints[:] = data.draw(st.integers(-(2**63), 2**63 - 1)), data.draw(st.lists(st.integers(-(2**40), 2**40), max_size=4))
        elif kind == "dims":
            t = data.draw(st.sampled_from(list(graph.initializer)))
            t.dims[:] = data.draw(st.lists(st.integers(-3, 2**50), max_size=4))
        elif kind == "type":
            data.draw(st.sampled_from(list(graph.initializer))).data_type = data.draw(st.integers(0, 30))
        elif kind == "drop":
            graph.node.remove(target)
            if not graph.node:
                break
        elif kind == "swap":
            a, b = graph.node[0], onnx.NodeProto()
            b.CopyFrom(target)
            target.CopyFrom(a)
            graph.node[0].CopyFrom(b)
    load_quietly(model)


def test_bad_models_do_not_take_memory() -> None:
    """In a process of its own that may take 2 GiB of address space beyond what it has."""
    code = (
        "import resource, sys; sys.path.insert(0, 'tests/suites')\n"
        "import test_onnx_errors as t, shorthaul as sh\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30,) * 2)\n"
        "for what, (source, _) in t.BAD.items():\n"
        "    try: sh.load_onnx(source)\n"
        "    except sh.OnnxError: pass\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "done" in done.stdout, done.stderr[-2000:]
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 * 2**20
