"""What the tests of operators share: programs of one operator, values that operators take, runs of expansions, numeric derivatives."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

import shorthaul.ops
from shorthaul.autodiff import differentiate
from shorthaul.codegen.library.interpreting import library_for_interpreter
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType, float64
from shorthaul.ir.interpreter import interpret
from shorthaul.ir.memlet import full
from shorthaul.ir.nodes import Operator
from shorthaul.ir.program import Program, Signature
from shorthaul.ir.verify import verify
from shorthaul.ops.expand import Choice, choose_maps, expand
from shorthaul.ops.registry import OperatorDefinition, TensorType, definition

assert shorthaul.ops

POSITIVE, UNIT, AWAY = (0.2, 3.0), (-0.9, 0.9), (0.5, 2.0)
# operands whose values must stay in a range for the operator to be defined and smooth: (operator, operand) or (operator, "")
DOMAINS: dict[tuple[str, str], tuple[float, float]] = {
    **{(n, ""): POSITIVE for n in ("log", "log2", "log10", "sqrt", "rsqrt", "lgamma", "digamma", "reciprocal", "entr",
                                   "bessel_y0", "bessel_y1", "k0", "k1", "k0e", "k1e", "igamma", "igammac", "xlogy")},
    **{(n, ""): UNIT for n in ("asin", "acos", "atanh", "log1p", "tan", "erfinv", "xlog1py")},
    **{(n, ""): (0.1, 0.9) for n in ("ndtri", "logit")},
    ("polygamma", ""): POSITIVE,
    ("mvlgamma", ""): (1.5, 4.0),
    ("zeta", "a"): (1.5, 3.0),
    ("zeta", "b"): AWAY,
    ("acosh", ""): (1.1, 3.0),
    ("pow", "a"): AWAY,
    **{(n, "b"): AWAY for n in ("div", "floor_divide", "remainder", "fmod", "addcdiv")},
    ("binary_cross_entropy", ""): (0.1, 0.9),
    ("binary_cross_entropy_with_logits", "target"): (0.1, 0.9),
    ("binary_cross_entropy_with_logits", "pos_weight"): AWAY,
    ("kl_div", "target"): (0.1, 0.9),
    ("bernoulli_of", "x"): (0.0, 1.0),
    ("batch_norm", "running_var"): AWAY,
    ("batch_norm_inference", "running_var"): AWAY,
    ("nll_loss_backward", "total_weight"): AWAY,
    ("fractional_max_pool", "samples"): (0.0, 1.0),
}


def integer_bound(
    op: str, operand: str, types: Mapping[str, TensorType], attributes: Mapping[str, Any]
) -> tuple[int, int]:
    """The range [low, high) of an integer operand."""
    if op in ("embedding", "embedding_backward"):
        return 0, attributes["rows"] if op == "embedding_backward" else types["weight"].shape[0]  # type: ignore[return-value]
    if op in ("row_sums", "write_rows", "lazy_rows"):  # places among as many rows as the operand has, for all of them
        return 0, (types["x0"] if op == "lazy_rows" else types["g"] if op == "row_sums" else types["x"]).shape[0]  # type: ignore[return-value]
    if op in ("masked_index", "masked_index_add"):
        return -1, types["x"].shape[int(operand[1:])] + 1  # type: ignore[operator,return-value]
    if op == "searchsorted":
        return 0, types["x"].shape[-1]  # type: ignore[return-value]
    if op in ("take", "put"):
        n = math.prod(types["x"].shape)  # type: ignore[arg-type]
        return -n, n
    if op in ("gather", "scatter_add", "scatter"):
        return 0, types["x"].shape[attributes["dim"]]  # type: ignore[return-value]
    if op == "scatter_sum":
        return 0, attributes["shape"][attributes["dim"]]
    if op in ("index", "index_backward", "index_put"):
        shape = attributes["shape"] if op == "index_backward" else types["x"].shape
        n = shape[attributes["dims"][int(operand[1:])]] if shape else 1
        return (-n if attributes["wrap"] else 0), n  # type: ignore[operator,return-value]
    if op == "max_pool_indices_backward":
        return 0, math.prod(types["x"].shape[-attributes["rank"] :])  # type: ignore[arg-type]
    if op == "multilabel_margin_loss":
        return -1, types["x"].shape[-1]  # type: ignore[return-value]
    if op in ("nll_loss", "multi_margin_loss"):
        x = types["x"].shape
        return 0, x[1] if len(x) > 1 else x[0]  # type: ignore[return-value]
    if op == "nll_loss_backward":
        return 0, attributes["shape"][1]
    return (1, 9) if operand == "b" else (-7, 8)


def value_of(
    op: str,
    operand: str,
    t: TensorType,
    types: Mapping[str, TensorType],
    attributes: Mapping[str, Any],
    rng: np.random.Generator,
) -> np.ndarray:
    """A random value that the operator takes."""
    shape = tuple(int(n) for n in t.shape)  # type: ignore[call-overload]
    if operand in ("seed", "offset"):
        return np.asarray(rng.integers(0, 2**40), np.int64)
    if t.dtype.is_float:
        low, high = DOMAINS.get((op, operand), DOMAINS.get((op, ""), (-2.0, 2.0)))
        value = rng.uniform(low, high, shape).astype(t.dtype.numpy)
        return np.sort(value, -1) if (op, operand) == ("searchsorted", "x") else value
    if t.dtype.kind == "bool":
        value = rng.random(shape) < 0.6
        if operand == "mask" and op.startswith("attention") and value.ndim:
            value[..., 0, :] = False  # a row without an allowed key
        return np.asarray(value)
    if op == "max_unpool":  # no two elements of an image go to one place
        rows, places = int(np.prod(shape[: -len(attributes["size"])])), int(np.prod(attributes["size"]))
        return np.stack([rng.permutation(places)[: int(np.prod(shape)) // rows] for _ in range(rows)]).reshape(shape)
    low, high = integer_bound(op, operand, types, attributes)
    return rng.integers(low, high, shape).astype(t.dtype.numpy)


def values_for(
    op: str, types: Mapping[str, TensorType], attributes: Mapping[str, Any], seed: str = ""
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(zlib.crc32(f"{op}{seed}{sorted(types)}".encode()))
    return {k: value_of(op, k, t, types, attributes, rng) for k, t in types.items()}


def widened(types: Mapping[str, TensorType]) -> dict[str, TensorType]:
    """The same types with floats as float64."""
    return {k: TensorType(float64 if t.dtype.is_float else t.dtype, t.shape) for k, t in types.items()}


def widened_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {k: float64 if isinstance(v, DType) and v.is_float else v for k, v in attributes.items()}


def program_of(op: str, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> Program:
    """A program of one operator: inputs named as its operands, outputs `out_` and the result's name."""
    d = definition(op)
    attributes = {**d.attributes, **attributes}
    results = d.infer(types, attributes)
    p = Program(op)
    with p.edit("Test") as edit:
        for k, t in types.items():
            edit.add_container(Container(k, t.dtype, tuple(t.shape), role="input"))
        for k, t in results.items():
            edit.add_container(Container(f"out_{k}", t.dtype, tuple(t.shape), role="output"))
        node = Operator(
            op,
            attributes,
            reads={k: full(p.containers[k]) for k in types},
            writes={k: full(p.containers[f"out_{k}"]) for k in results},
        )
        edit.add(node)
        edit.set_signature(Signature(tuple(types), tuple(f"out_{k}" for k in results)))
    return p


def run(program: Program, values: Mapping[str, np.ndarray], choose: Choice = choose_maps) -> dict[str, np.ndarray]:
    """Expand a copy of the program, verify it, interpret it."""
    p = program.clone()
    expand(p, choose)
    verify(p)
    return interpret(p, values, library=library_for_interpreter())


def float_names(names: Iterable[str], program: Program) -> list[str]:
    return [n for n in names if program.containers[n].dtype.is_float]


def differentiated(program: Program, outputs: Sequence[str], wrt: Sequence[str]) -> Program:
    p = program.clone()
    differentiate(p, outputs, wrt)
    return p


def cotangents_for(program: Program, seed: int = 5) -> dict[str, np.ndarray]:
    """A random incoming gradient for every cotangent of the program."""
    rng = np.random.default_rng(seed)
    found = {}
    for _, name in program.signature.cotangents:
        c = program.containers[name]
        found[name] = rng.uniform(-1, 1, tuple(int(n) for n in c.shape)).astype(c.dtype.numpy)  # type: ignore[call-overload]
    return found


def gradients(
    program: Program, values: Mapping[str, np.ndarray], choose: Choice = choose_maps
) -> dict[str, np.ndarray]:
    """The gradients that a differentiated program computes, by input; zero where an input has none."""
    found = run(program, {**values, **cotangents_for(program)}, choose)
    return {i: found[g] for i, g in program.signature.gradients}


def same(actual: Any, expected: Any, tolerance: float = 1e-9, what: str = "") -> None:
    """Equal NaN and infinity; otherwise a relative error (over the whole tensor) of at most the tolerance."""
    a, e = np.asarray(actual), np.asarray(expected)
    assert a.shape == e.shape, f"{what}: shape {a.shape}, expected {e.shape}"
    if e.dtype.kind != "f":
        np.testing.assert_array_equal(a, e, what)
        return
    finite = np.isfinite(e)
    np.testing.assert_array_equal(np.where(finite, 0, a), np.where(finite, 0, e), f"{what}: NaN or infinity")
    error = np.linalg.norm(np.where(finite, a, 0) - np.where(finite, e, 0)) / max(
        1e-3, float(np.linalg.norm(np.where(finite, e, 0)))
    )
    assert error <= tolerance, f"{what}: relative error {error:.2e}\n{a}\n{e}"


def expansions_of(d: OperatorDefinition, program: Program) -> list[str]:
    """The expansions besides maps that apply to the program's operator."""
    node = next(n for n in program.nodes if isinstance(n, Operator))
    return [
        k
        for k, rule in d.more_expansions().items()
        if rule.condition is None or rule.condition(node, program.containers)
    ]


def prefer(name: str) -> Choice:
    """Choose that expansion wherever it applies, else maps."""

    def choose(node: Operator, d: OperatorDefinition, containers: Mapping[str, Container]) -> str:
        rule = d.expansions().get(name)
        return name if rule is not None and (rule.condition is None or rule.condition(node, containers)) else "maps"

    return choose
