"""Random operators: distributions, independence of streams, recomputation, and what their gradients see."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from operator_cases import cotangents_for, differentiated, program_of, run

from shorthaul.ir.dtypes import bool_, float32, float64, int64
from shorthaul.ops.registry import TensorType

SCALARS = {"seed": TensorType(int64, ()), "offset": TensorType(int64, ())}
VALUES = {"seed": np.asarray(1234), "offset": np.asarray(77)}
SHAPE = (100, 200)


def draw(op: str, attributes: dict, x: np.ndarray | None = None, **changed: int) -> np.ndarray:
    types = {**({"x": TensorType(float64, x.shape)} if x is not None else {}), **SCALARS}
    values = {**({"x": x} if x is not None else {}), **VALUES, **{k: np.asarray(v) for k, v in changed.items()}}
    return run(program_of(op, types, attributes), values)["out_y"]


def test_dropout_keeps_and_scales() -> None:
    x = np.random.default_rng(0).uniform(1, 2, SHAPE)
    y = draw("dropout", {"p": 0.3}, x)
    kept = y != 0
    assert kept.mean() == pytest.approx(0.7, abs=0.02)
    np.testing.assert_allclose(y[kept], x[kept] / 0.7, rtol=1e-14)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_at_the_ends(p: float) -> None:
    x = np.ones(SHAPE)
    np.testing.assert_array_equal(draw("dropout", {"p": p}, x), x * (1 - p))


def test_dropout_gradient_uses_the_same_mask() -> None:
    types = {"x": TensorType(float64, SHAPE), **SCALARS}
    x = np.random.default_rng(0).uniform(1, 2, SHAPE)
    program = differentiated(program_of("dropout", types, {"p": 0.4, "stream": 3}), ["out_y"], ["x"])
    incoming = cotangents_for(program)
    found = run(program, {"x": x, **VALUES, **incoming})
    (_, gradient), (_, cotangent) = program.signature.gradients[0], program.signature.cotangents[0]
    np.testing.assert_allclose(found[gradient], found["out_y"] / x * incoming[cotangent], rtol=1e-12)


def test_native_dropout_gives_its_mask() -> None:
    p = program_of("native_dropout", {"x": TensorType(float64, SHAPE), **SCALARS}, {"p": 0.4})
    found = run(p, {"x": np.ones(SHAPE), **VALUES})
    assert p.containers["out_mask"].dtype is bool_
    np.testing.assert_array_equal(found["out_mask"], found["out_y"] != 0)


def test_streams_offsets_and_seeds_differ_and_repeat() -> None:
    x = np.ones(SHAPE)
    masks = [draw("dropout", {"p": 0.5, "stream": s}, x) for s in (0, 1, 2)]
    masks += [draw("dropout", {"p": 0.5}, x, offset=78), draw("dropout", {"p": 0.5}, x, seed=1235)]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert (a == b).mean() == pytest.approx(0.5, abs=0.03)
    np.testing.assert_array_equal(masks[0], draw("dropout", {"p": 0.5}, x))


def test_bernoulli() -> None:
    assert draw("bernoulli", {"p": 0.8}, np.zeros(SHAPE)).mean() == pytest.approx(0.8, abs=0.02)
    probabilities = np.broadcast_to(np.linspace(0, 1, SHAPE[1]), SHAPE)
    y = draw("bernoulli_of", {}, np.array(probabilities))
    assert set(np.unique(y)) == {0.0, 1.0}
    assert np.abs(y.mean(0) - probabilities[0]).mean() < 0.06


def test_uniform() -> None:
    y = draw("uniform", {"low": -1.0, "high": 3.0, "shape": SHAPE, "dtype": float32})
    assert (-1 <= y.min() < -0.99) and (2.99 < y.max() < 3)
    assert y.mean() == pytest.approx(1, abs=0.05)
    assert y.var() == pytest.approx(16 / 12, abs=0.05)


def test_normal() -> None:
    y = draw("normal", {"mean": 1.0, "std": 2.0, "shape": SHAPE, "dtype": float32})
    z = (y - 1) / 2
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert (z**power).mean() == pytest.approx(moment, abs=0.15)
    # neighbours are independent
    assert (z[:, 1:] * z[:, :-1]).mean() == pytest.approx(0, abs=0.03)


def test_normal_of_tensors() -> None:
    m, s = np.linspace(-3, 3, SHAPE[1]), np.full(SHAPE, 0.5)
    types = {"m": TensorType(float64, m.shape), "s": TensorType(float64, s.shape), **SCALARS}
    y = run(program_of("normal_of", types, {"shape": SHAPE, "dtype": float64}), {"m": m, "s": s, **VALUES})["out_y"]
    z = (y - m) / s
    assert (z.mean(), z.var()) == (pytest.approx(0, abs=0.03), pytest.approx(1, abs=0.03))


def test_bernoulli_of_a_tensor_that_broadcasts() -> None:
    p = np.linspace(0, 1, SHAPE[1])
    types = {"x": TensorType(float64, p.shape), **SCALARS}
    y = run(program_of("bernoulli_of", types, {"shape": SHAPE, "dtype": float32}), {"x": p, **VALUES})["out_y"]
    assert np.abs(y.mean(0) - p).mean() < 0.06


@pytest.mark.parametrize(
    ("op", "attributes", "cumulative"),
    [
        ("exponential", {"rate": 2.0}, lambda x: 1 - np.exp(-2 * x)),
        ("cauchy", {"median": 1.0, "sigma": 2.0}, lambda x: np.arctan((x - 1) / 2) / np.pi + 0.5),
        ("log_normal", {"mean": 0.0, "std": 0.5}, lambda x: np.vectorize(NormalDist(0, 0.5).cdf)(np.log(x))),
        ("geometric", {"p": 0.3}, lambda x: 1 - 0.7**x),
    ],
)  # fmt: skip
def test_distribution_functions(op: str, attributes: dict, cumulative) -> None:
    """The shares of numbers below points are those of the distribution (Kolmogorov-Smirnov)."""
    y = np.sort(draw(op, {**attributes, "shape": SHAPE, "dtype": float32}).ravel().astype(np.float64))
    assert np.isfinite(y).all()
    points = np.unique(y)
    share = np.searchsorted(y, points, side="right") / y.size
    assert np.abs(share - cumulative(points)).max() < 2 / np.sqrt(y.size)
    if op in ("exponential", "geometric", "log_normal"):
        assert y[0] > 0


def test_integers() -> None:
    y = draw("randint", {"low": -3, "high": 5, "shape": SHAPE, "dtype": int64})
    values, counts = np.unique(y, return_counts=True)
    np.testing.assert_array_equal(values, np.arange(-3, 5))
    assert counts.min() > 0.9 * y.size / 8
