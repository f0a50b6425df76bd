"""Lowering: choices, unused results, symbolic sizes, narrow dtypes."""

from __future__ import annotations

import numpy as np
import pytest
from operator_cases import prefer, program_of, run, same, values_for

from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import bfloat16, bool_, float32, float64, int64
from shorthaul.ir.interpreter import interpret
from shorthaul.ir.memlet import full
from shorthaul.ir.nodes import LibraryCall, Map, Operator
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ir.verify import verify
from shorthaul.ops.expand import choose_maps, expand
from shorthaul.ops.registry import REGISTRY, OperatorError, TensorType
from shorthaul.symbolic import Symbol


def t(*shape, dtype=float32) -> TensorType:
    return TensorType(dtype, shape)


def test_default_choice_and_form() -> None:
    p = program_of("contract", {"a": t(3, 4), "b": t(5, 4)}, {"equation": "mk,nk->mn"})
    maps = p.clone()
    expand(p)
    assert p.form is Form.MAPS
    assert [n.function for n in p.nodes] == ["contract"]  # type: ignore[attr-defined]
    expand(maps, choose_maps)
    assert all(isinstance(n, Map) for n in maps.nodes)


def test_a_choice_on_the_node_stands() -> None:
    p = program_of("contract", {"a": t(3, 4), "b": t(5, 4)}, {"equation": "mk,nk->mn"})
    with p.edit("choose") as edit:
        edit.replace(p.nodes[0], p.nodes[0].with_(expansion="maps"))
    expand(p)
    assert all(isinstance(n, Map) for n in p.nodes)


def test_undo_brings_the_operators_back() -> None:
    p = program_of("contract", {"a": t(3, 4), "b": t(5, 4)}, {"equation": "mk,nk->mn"})
    before = str(p)
    expand(p)
    p.undo()
    assert str(p) == before


def test_unknown_and_inapplicable_expansions_are_refused() -> None:
    types = {k: t(4, 6) for k in "qkv"}
    with pytest.raises(OperatorError, match="has no expansion 'fast'; it has maps, library, composition"):
        expand(program_of("attention", types, {}), lambda *_: "fast")
    p = program_of("attention", types, {})
    with pytest.raises(OperatorError, match="does not apply"):
        expand(p, lambda *_: "library")
    assert p.form is Form.OPERATORS
    assert isinstance(p.nodes[0], Operator)


def test_unused_results_are_not_computed() -> None:
    p = program_of("max_pool", {"x": t(2, 3, 4, 4)}, {"kernel": (2, 2), "stride": (2, 2)})
    p.signature = p.signature.with_(outputs=("out_y",))
    with p.edit("role") as edit:
        edit.set_container(p.containers["out_offset"].with_(role="transient"))
    expand(p, choose_maps)
    verify(p)
    assert "out_offset" not in p.containers
    assert len(p.nodes) == 1


@pytest.mark.parametrize(
    ("op", "types", "attributes"),
    [
        ("contract", {"a": "Nk", "b": "nk"}, {"equation": "mk,nk->mn"}),
        ("convolution", {"x": "N3HW", "weight": "4333"}, {"stride": (2, 2), "padding": (1, 1)}),
        ("max_pool", {"x": "N3HW"}, {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}),
        ("avg_pool", {"x": "N3HW"}, {"kernel": (2, 2), "stride": (2, 2)}),
        ("adaptive_avg_pool", {"x": "N3HW"}, {"size": (2, 3)}),
        ("attention", {"q": "N3H6", "k": "N3W6", "v": "N3W6"}, {"causal": True}),
        ("layer_norm", {"x": "NHn"}, {"normalized_shape": (4,)}),
        ("batch_norm", {"x": "N3HW"}, {}),
        ("softmax", {"x": "NHW"}, {"dim": 1}),
        ("nll_loss", {"x": "Nk", "target": "N"}, {}),
        ("mean", {"x": "N3HW"}, {"dims": (0, 2)}),
        ("reshape", {"x": "N3HW"}, {"shape": (-1, 3)}),
        ("cat", {"x0": "NH", "x1": "NW"}, {"dim": 1}),
        ("stack", {"x0": "NH", "x1": "NH"}, {"dim": 1}),
        ("tril", {"x": "HW"}, {"diagonal": 1}),
        ("embedding", {"weight": "nk", "indices": "NH"}, {}),
    ],
)
def test_symbolic_sizes(op: str, types: dict[str, str], attributes: dict) -> None:
    """A program with symbolic sizes computes what the one with those sizes does, for several of them and every expansion."""
    symbols = {s: Symbol(s, lower=1) for s in "NHW"}
    fixed = {"n": 4, "k": 5, **{str(i): i for i in range(10)}}

    def typed(sizes: dict) -> dict[str, TensorType]:
        return {
            k: TensorType(int64 if k in ("target", "indices") else float64, tuple({**fixed, **sizes}[c] for c in word))
            for k, word in types.items()
        }

    d = REGISTRY[op]
    expansions = ["maps", *d.more_expansions()]
    program = program_of(op, typed(symbols), attributes)
    program.symbols = tuple(symbols.values())
    for sizes in ({"N": 2, "H": 7, "W": 6}, {"N": 3, "H": 8, "W": 8}):
        numbers = {**attributes, "rows": 4} if op == "embedding_backward" else attributes
        values = values_for(op, typed(sizes), {**d.attributes, **numbers})
        expected = run(program_of(op, typed(sizes), attributes), values)
        for expansion in expansions:
            p = program.clone()
            expand(p, prefer(expansion))
            verify(p)
            if any(isinstance(n, LibraryCall) for n in p.nodes):
                continue
            actual = interpret(p, values, sizes=sizes)
            for out in program.signature.outputs:
                same(actual[out], expected[out], 1e-12, out)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_narrow_floats_are_valid(name: str) -> None:
    """Every sample also expands to valid code with bfloat16 operands, and gives finite numbers where float64 does."""
    d = REGISTRY[name]
    for s in d.samples():
        if s.error:
            continue
        types = {k: TensorType(bfloat16 if x.dtype.is_float else x.dtype, x.shape) for k, x in s.operands.items()}
        attributes = {**d.attributes, **s.attributes}
        run(program_of(name, types, attributes), values_for(name, types, attributes))


def test_sums_of_narrow_floats_accumulate_in_float32() -> None:
    """4096 times 2**-8 on top of 1: in bfloat16 every addition would be lost."""
    ones = np.full((1, 4097), 2.0**-8, np.float32)
    ones[0, 0] = 1
    program = program_of(
        "contract", {"a": t(1, 4097, dtype=bfloat16), "b": t(1, 4097, dtype=bfloat16)}, {"equation": "mk,nk->mn"}
    )
    found = run(program, {"a": ones, "b": np.ones((1, 4097), np.float32)})
    assert found["out_y"].item() == 17.0


def test_fully_masked_rows_of_attention_are_zero() -> None:
    types = {k: t(2, 2, 3, 4, dtype=float64) for k in "qkv"}
    values = values_for("attention", types, {})
    mask = np.ones((3, 3), bool)
    mask[1] = False
    for expansion in ("maps", "composition", "library"):
        program = program_of("attention", {**types, "mask": TensorType(bool_, (3, 3))}, {})
        y = run(program, {**values, "mask": mask}, prefer(expansion))["out_y"]
        assert (y[:, :, 1] == 0).all()
        assert np.isfinite(y).all()


def test_results_of_several_operators_in_one_edit() -> None:
    p = Program("two")
    with p.edit("build") as edit:
        for name, role in (("x", "input"), ("h", "transient"), ("y", "output")):
            edit.add_container(Container(name, float64, (3, 4), role=role))
        for a, b in (("x", "h"), ("h", "y")):
            edit.add(
                Operator(
                    "tanh",
                    dict(REGISTRY["tanh"].attributes),
                    reads={"x": full(p.containers[a])},
                    writes={"y": full(p.containers[b])},
                )
            )
        edit.set_signature(Signature(("x",), ("y",)))
    expand(p)
    verify(p)
    x = np.linspace(-1, 1, 12).reshape(3, 4)
    same(interpret(p, {"x": x})["y"], np.tanh(np.tanh(x)), 1e-14)
