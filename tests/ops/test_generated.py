"""Tests generated from the registry: every operator's samples are inferred, expanded in every way, run, and differentiated."""

from __future__ import annotations

import numpy as np
import pytest
from operator_cases import (
    differentiated,
    expansions_of,
    float_names,
    gradients,
    library_for_interpreter,
    prefer,
    program_of,
    run,
    same,
    values_for,
    widened,
    widened_attributes,
)

from shorthaul.ir.nodes import LibraryCall
from shorthaul.ops.expand import expand
from shorthaul.ops.registry import REGISTRY, OperatorError, Sample

# hold programs or code, or take operands that belong together: tested as what others make of them
WITHOUT_SAMPLES = {"custom_function", "parameter_update", "row_step", "map_gradient", "pointwise", "max_pool_backward",
                   "attention_backward", "nonzero", "repeated_positions"}
# whose gradient is by definition not the derivative, or has none: tested by name below and against PyTorch
NO_DERIVATIVE = {"detach", "with_value", "airy_ai", "nextafter"} | {
    n for n in REGISTRY if n.removeprefix("shifted_").startswith(("chebyshev", "hermite", "laguerre", "legendre"))
}
SAMPLES = [
    pytest.param(name, s, id=f"{name}-{i}")
    for name, d in sorted(REGISTRY.items())
    for i, s in enumerate(d.samples())
    if not s.error
]
ERRORS = [
    pytest.param(name, s, id=f"{name}-{i}")
    for name, d in sorted(REGISTRY.items())
    for i, s in enumerate(d.samples())
    if s.error
]


def case(name: str, s: Sample):
    d = REGISTRY[name]
    types = widened(s.operands)
    attributes = widened_attributes({**d.attributes, **s.attributes})
    return d, program_of(name, types, attributes), values_for(name, types, attributes)


@pytest.mark.parametrize("name", sorted(set(REGISTRY) - WITHOUT_SAMPLES))
def test_every_operator_has_a_sample(name: str) -> None:
    assert any(not s.error for s in REGISTRY[name].samples())


@pytest.mark.parametrize(("name", "s"), SAMPLES)
def test_maps(name: str, s: Sample) -> None:
    """The maps expansion is a valid program and defines every element of every result."""
    d, program, values = case(name, s)
    found = run(program, values)
    for k, t in d.infer(
        {k: widened(s.operands)[k] for k in s.operands}, widened_attributes({**d.attributes, **s.attributes})
    ).items():
        assert found[f"out_{k}"].shape == tuple(t.shape)
        assert found[f"out_{k}"].dtype == t.dtype.numpy


@pytest.mark.parametrize(("name", "s"), [p for p in SAMPLES if REGISTRY[p.values[0]].more_expansions()])
def test_other_expansions(name: str, s: Sample) -> None:
    """Library calls and compositions compute what the maps compute."""
    d, program, values = case(name, s)
    found = expansions_of(d, program)
    expected = run(program, values)
    for expansion in found:
        actual = run(program, values, prefer(expansion))
        for out in program.signature.outputs:
            same(actual[out], expected[out], 1e-9, f"{expansion}: {out}")


@pytest.mark.parametrize("name", sorted(n for n, d in REGISTRY.items() if d.more_expansions() and n not in WITHOUT_SAMPLES))
def test_other_expansions_are_reached(name: str) -> None:
    """Every expansion applies to some sample, or to the gradient of some sample of another operator."""
    d = REGISTRY[name]
    reached = {e for p in SAMPLES if p.values[0] == name for e in expansions_of(d, case(*p.values)[1])}
    source = name.removesuffix("_backward")
    for p in SAMPLES if source != name and source in REGISTRY else ():
        if p.values[0] == source:
            program = backward_of(*p.values)[0]
            for e in d.more_expansions():
                lowered = program.clone()
                expand(lowered, prefer(e))
                reached |= {e for n in lowered.nodes if isinstance(n, LibraryCall) and n.phase == "backward"}
    assert reached == {e for e, rule in d.more_expansions().items() if rule.device is None}


@pytest.mark.parametrize(("name", "s"), ERRORS)
def test_refusals(name: str, s: Sample) -> None:
    """Bad operands are refused, in words that name the operator and what does not fit."""
    d = REGISTRY[name]
    with pytest.raises(OperatorError) as refused:
        d.infer(s.operands, {**d.attributes, **s.attributes})
    assert s.error in str(refused.value)
    assert str(refused.value).startswith(name)


# operands that PyTorch gives no gradient, either
NO_GRADIENT = {
    ("batch_norm", "running_mean"),
    ("batch_norm", "running_var"),
    ("batch_norm_inference", "running_mean"),
    ("batch_norm_inference", "running_var"),
    ("nll_loss", "weight"),
    ("bernoulli_of", "x"),
    ("bernoulli", "x"),
    ("fractional_max_pool", "samples"),
    ("normal_of", "m"),
    ("normal_of", "s"),
    ("zeta", "a"),
    ("igamma", "a"),
    ("igammac", "a"),
}


def backward_of(name: str, s: Sample):
    _, program, values = case(name, s)
    wrt = [k for k in float_names(program.signature.inputs, program) if (name, k) not in NO_GRADIENT]
    outputs = [f"out_{k}" for k in differentiable_results(name)]
    return differentiated(program, float_names(outputs, program), wrt), program, values, wrt


def differentiable_results(name: str) -> tuple[str, ...]:
    """Results that the outside sees; the others are saved for the gradient."""
    saved = {
        "layer_norm": ("mean", "rstd"),
        "batch_norm": ("mean", "rstd", "new_mean", "new_var"),
        "attention": ("lse",),
        "nll_loss": ("total_weight",),
        "max_pool": ("offset",),
        "adaptive_max_pool": ("place",),
        "fractional_max_pool": ("place",),
        "group_norm": ("mean", "rstd"),
    }
    d = REGISTRY[name]
    sample = next(s for s in d.samples() if not s.error)
    results = d.infer(sample.operands, {**d.attributes, **sample.attributes})
    return tuple(k for k in results if k not in saved.get(name, ()))


def differentiable_types(name: str, s: Sample) -> list[bool]:
    """For each result that the outside sees, whether it is floating."""
    results = REGISTRY[name].infer(s.operands, {**REGISTRY[name].attributes, **s.attributes})
    return [results[k].dtype.is_float for k in differentiable_results(name)]


SECOND_ORDER = {n for n in REGISTRY if n.endswith("_backward") or n.startswith("conv_grad")}
DIFFERENTIABLE = [
    p
    for p in SAMPLES
    if p.values[0] not in SECOND_ORDER | NO_DERIVATIVE
    and p.values[1].attributes.get("padding_idx", -1) < 0
    and any(t.dtype.is_float for t in p.values[1].operands.values())
    and any(differentiable_types(*p.values))
]


@pytest.mark.parametrize(("name", "s"), DIFFERENTIABLE)
def test_gradient(name: str, s: Sample) -> None:
    """Gradients against central differences in float64, along a random direction for each operand; every expansion against maps."""
    program, forward, values, wrt = backward_of(name, s)
    found = gradients(program, values)
    weights = {out: v for (out, _), v in zip(program.signature.cotangents, cotangent_values(program), strict=True)}
    rng = np.random.default_rng(3)
    for k in wrt:
        direction = rng.uniform(-1, 1, values[k].shape)
        step = 1e-5

        def objective(sign: float, k: str = k, direction: np.ndarray = direction, step: float = step) -> float:
            result = run(forward, {**values, k: values[k] + sign * step * direction})
            return sum(float((w * np.where(np.isfinite(result[o]), result[o], 0)).sum()) for o, w in weights.items())

        numeric = (objective(1) - objective(-1)) / (2 * step)
        analytic = float((found[k] * direction).sum()) if k in found else 0.0
        assert analytic == pytest.approx(numeric, rel=2e-6, abs=2e-7), f"gradient by {k}"
    others = {e for n in program.nodes if hasattr(n, "op") for e in REGISTRY[n.op].more_expansions()}
    for expansion in sorted(others):
        actual = gradients(program, values, prefer(expansion))
        for k in found:
            same(actual[k], found[k], 1e-9, f"{expansion}: gradient by {k}")


def cotangent_values(program) -> list[np.ndarray]:
    from operator_cases import cotangents_for

    given = cotangents_for(program)
    return [given[name] for _, name in program.signature.cotangents]


def test_library_functions_exist() -> None:
    """Every library function that an expansion calls is in the table."""
    known = library_for_interpreter()
    for p in SAMPLES:
        d, program, _ = case(*p.values)
        for expansion in expansions_of(d, program):
            lowered = program.clone()
            expand(lowered, prefer(expansion))
            for node in lowered.nodes:
                assert not isinstance(node, LibraryCall) or node.function in known


def test_detach_stops_gradients() -> None:
    p = next(p for p in SAMPLES if p.values[0] == "detach")
    assert backward_of(*p.values)[0].signature.gradients == ()


def test_with_value_passes_the_gradient_to_the_old_value() -> None:
    p = next(p for p in SAMPLES if p.values[0] == "with_value")
    program, _, values, _ = backward_of(*p.values)
    found = gradients(program, values)
    assert set(found) == {"old"}
    same(found["old"], cotangent_values(program)[0])


def test_an_operation_without_derivative_is_refused_by_name() -> None:
    p = next(p for p in SAMPLES if p.values[0] == "airy_ai")
    with pytest.raises(Exception, match="airy_ai"):
        backward_of(*p.values)


def test_an_operand_without_derivative_is_refused_by_name() -> None:
    p = next(p for p in SAMPLES if p.values[0] == "zeta")
    _, program, _ = case(*p.values)
    differentiated(program, ["out_y"], ["b"])
    with pytest.raises(Exception, match="zeta has no derivative rule for its operand 0"):
        differentiated(program, ["out_y"], ["a"])
