"""Small ONNX models made by hand: a perceptron, a convolutional network, a transformer block."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper


def _initializers(shapes: dict[str, tuple[int, ...]], seed: int) -> list[TensorProto]:
    """Random weights; norms begin at one, biases at zero."""
    rng = np.random.default_rng(seed)
    found = []
    for name, shape in shapes.items():
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        values = rng.normal(0.0, fan**-0.5, shape) if len(shape) > 1 else np.full(shape, float(".scale" in name or ".var" in name))
        found.append(numpy_helper.from_array(values.astype(np.float32), name))
    return found


def _model(nodes: list, name: str, inputs: list, outputs: list, initializers: list, opset: int) -> ModelProto:
    graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def perceptron(opset: int = 18) -> ModelProto:
    """x [batch, 8] to scores [batch, 4]."""
    node = helper.make_node
    nodes = [
        node("Gemm", ["x", "fc1.weight", "fc1.bias"], ["h"], "/fc1/Gemm", transB=1),
        node("Relu", ["h"], ["r"], "/act/Relu"),
        node("Gemm", ["r", "fc2.weight", "fc2.bias"], ["y"], "/fc2/Gemm", transB=1),
    ]
    weights = _initializers({"fc1.weight": (16, 8), "fc1.bias": (16,), "fc2.weight": (4, 16), "fc2.bias": (4,)}, 0)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    return _model(nodes, "perceptron", [x], [y], weights, opset)


def convolutional(opset: int = 17) -> ModelProto:
    """x [batch, 3, 12, 12] to scores [batch, 4], with the shape arithmetic that exporters write."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "stem.weight"], ["c1"], "/stem/Conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c1", "bn.scale", "bn.bias", "bn.mean", "bn.var"], ["n1"], "/bn/BatchNormalization"),
        node("Relu", ["n1"], ["r1"], "/relu/Relu"),
        node("MaxPool", ["r1"], ["p1"], "/pool/MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p1", "body.weight", "body.bias"], ["c2"], "/body/Conv", kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2]),
        node("HardSigmoid", ["c2"], ["g"], "/gate/HardSigmoid", alpha=0.2, beta=0.5),
        node("Mul", ["c2", "g"], ["a"], "/gate/Mul"),
        node("Shape", ["a"], ["s"], "/Shape"),
        node("Gather", ["s", "zero"], ["n"], "/Gather"),
        node("Unsqueeze", ["n", "axis"], ["nn"], "/Unsqueeze"),
        node("Concat", ["nn", "minus_one"], ["target"], "/Concat", axis=0),
        node("Reshape", ["a", "target"], ["flat"], "/Reshape"),
        node("MatMul", ["flat", "head.weight"], ["m"], "/head/MatMul"),
        node("Add", ["m", "head.bias"], ["y"], "/head/Add"),
    ]
    weights = _initializers({"stem.weight": (6, 3, 3, 3), "bn.scale": (6,), "bn.bias": (6,), "bn.mean": (6,), "bn.var": (6,),
                             "body.weight": (8, 6, 3, 3), "body.bias": (8,), "head.weight": (72, 4), "head.bias": (4,)}, 1)  # fmt: skip
    for name, value in (("zero", 0), ("axis", [0]), ("minus_one", [-1])):
        weights.append(numpy_helper.from_array(np.array(value, dtype=np.int64), name))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 12, 12])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    return _model(nodes, "convolutional", [x], [y], weights, opset)


def transformer(opset: int = 18) -> ModelProto:
    """tokens [batch, time] of 11 to scores [batch, time, 11]: embedding, one block with two heads, tied head."""
    node = helper.make_node
    nodes = [node("Gather", ["embedding.weight", "tokens"], ["e"], "/embedding/Gather")]
    nodes += [node("LayerNormalization", ["e", "norm1.scale", "norm1.bias"], ["n1"], "/norm1", axis=-1),
              node("MatMul", ["n1", "attn.qkv"], ["qkv"], "/attn/qkv"),
              node("Split", ["qkv", "thirds"], ["q", "k", "v"], "/attn/Split", axis=2)]  # fmt: skip
    for n, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [node("Reshape", [n, "heads"], [n + "4"], f"/attn/{n}/Reshape"),
                  node("Transpose", [n + "4"], [n + "t"], f"/attn/{n}/Transpose", perm=perm)]  # fmt: skip
    nodes += [
        node("MatMul", ["qt", "kt"], ["scores"], "/attn/scores"),
        node("Constant", [], ["root"], "/attn/root", value=helper.make_tensor("root", TensorProto.FLOAT, [], [8**0.5])),
        node("Div", ["scores", "root"], ["scaled"], "/attn/Div"),
        node("Softmax", ["scaled"], ["weights"], "/attn/Softmax", axis=-1),
        node("MatMul", ["weights", "vt"], ["mixed"], "/attn/mix"),
        node("Transpose", ["mixed"], ["mt"], "/attn/back", perm=[0, 2, 1, 3]),
        node("Reshape", ["mt", "width"], ["joined"], "/attn/join"),
        node("MatMul", ["joined", "attn.out"], ["projected"], "/attn/out"),
        node("Add", ["e", "projected"], ["x1"], "/residual1"),
        node("LayerNormalization", ["x1", "norm2.scale", "norm2.bias"], ["n2"], "/norm2", axis=-1),
        node("MatMul", ["n2", "mlp.up"], ["up"], "/mlp/up"),
        node("Sigmoid", ["up"], ["gate"], "/mlp/Sigmoid"),
        node("Mul", ["up", "gate"], ["swish"], "/mlp/Mul"),
        node("MatMul", ["swish", "mlp.down"], ["down"], "/mlp/down"),
        node("Add", ["x1", "down"], ["x2"], "/residual2"),
        node("Transpose", ["embedding.weight"], ["head"], "/head/Transpose", perm=[1, 0]),
        node("MatMul", ["x2", "head"], ["y"], "/head/MatMul"),
    ]
    weights = _initializers({"embedding.weight": (11, 16), "norm1.scale": (16,), "norm1.bias": (16,), "attn.qkv": (16, 48),
                             "attn.out": (16, 16), "norm2.scale": (16,), "norm2.bias": (16,), "mlp.up": (16, 32),
                             "mlp.down": (32, 16)}, 2)  # fmt: skip
    for name, value in (("thirds", [16, 16, 16]), ("heads", [0, 0, 2, 8]), ("width", [0, 0, 16])):
        weights.append(numpy_helper.from_array(np.array(value, dtype=np.int64), name))
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "time"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "time", 11])
    return _model(nodes, "transformer", [tokens], [y], weights, opset)
