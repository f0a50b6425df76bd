"""The rule of agreement itself: it must accept rounding and refuse everything else."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shorthaul.testing import Agreement, compare, full, pool, sample
from shorthaul.testing.training import apply_engine, assert_trains_like_eager, judge_training, train_steps


def rounded(
    reference: dict[str, Tensor], units: float, seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """`reference` in `dtype` with relative noise of about `units` units in the last place."""
    generator = torch.Generator().manual_seed(seed)
    eps = torch.finfo(dtype).eps
    return {
        name: (x * (1 + units * eps * torch.randn(x.shape, generator=generator, dtype=torch.float64))).to(dtype)
        for name, x in reference.items()
    }


@pytest.fixture
def reference() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"gradient/conv.weight": (16, 8, 3, 3), "gradient/bn.bias": (16,), "gradient/fc.weight": (10, 16),
              "parameter/conv.weight": (16, 8, 3, 3), "parameter/fc.weight": (10, 16), "loss/loss": (20,)}  # fmt: skip
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}


def test_rounding_like_eagers_agrees(reference: dict[str, Tensor]) -> None:
    verdict = compare(rounded(reference, 3, 1), rounded(reference, 3, 2), reference)
    assert verdict.ok, verdict
    assert 0.5 < verdict.median_ratio < 1.5
    assert "agrees with eager" in str(verdict)


def test_wrong_gradient_of_one_small_tensor_fails(reference: dict[str, Tensor]) -> None:
    candidate = rounded(reference, 3, 1)
    candidate["gradient/bn.bias"] = candidate["gradient/bn.bias"] * 1.001
    verdict = compare(candidate, rounded(reference, 3, 2), reference)
    assert not verdict.ok
    assert [f for f in verdict.failures if f.startswith("gradient/bn.bias")]
    assert len(verdict.failures) == 1
    assert "DOES NOT AGREE" in str(verdict)
    assert "WRONG" in str(verdict)


def test_one_wrong_element_of_a_large_tensor_fails(reference: dict[str, Tensor]) -> None:
    candidate = rounded(reference, 3, 1)
    candidate["gradient/conv.weight"][0, 0, 0, 0] += 0.01
    assert not compare(candidate, rounded(reference, 3, 2), reference).ok


def test_everything_twice_as_inexact_fails_by_the_median(reference: dict[str, Tensor]) -> None:
    verdict = compare(rounded(reference, 6, 1), rounded(reference, 2, 2), reference)
    assert not verdict.ok
    assert "median" in verdict.failures[0]


def test_better_than_eager_is_fine(reference: dict[str, Tensor]) -> None:
    assert compare(rounded(reference, 0, 1), rounded(reference, 5, 2), reference).ok


def test_storage_rounding_is_not_held_against_the_candidate(reference: dict[str, Tensor]) -> None:
    exact = {n: x.float().double() for n, x in reference.items()}  # eager is right to the last bit
    verdict = compare(rounded(exact, 0.3, 1), rounded(exact, 0, 2), exact)
    assert verdict.ok, verdict


def test_float64_has_an_absolute_limit(reference: dict[str, Tensor]) -> None:
    assert compare({n: x * (1 + 1e-10) for n, x in reference.items()}, reference, reference).ok
    verdict = compare({n: x * (1 + 1e-8) for n, x in reference.items()}, reference, reference)
    assert len(verdict.failures) == len(reference)


def test_a_tensor_that_is_zero_in_exact_arithmetic_is_judged_by_its_kind(reference: dict[str, Tensor]) -> None:
    reference["gradient/conv.bias"] = torch.zeros(16, dtype=torch.float64)
    eager, candidate = rounded(reference, 3, 2), rounded(reference, 3, 1)
    eager["gradient/conv.bias"] = torch.full((16,), 1e-9)
    candidate["gradient/conv.bias"] = torch.full((16,), 4e-9)  # noise: a millionth of the other gradients
    assert compare(candidate, eager, reference).ok
    candidate["gradient/conv.bias"] = torch.full((16,), 1e-4)
    assert not compare(candidate, eager, reference).ok


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["candidate", "eager"])
def test_nan_on_one_side_only_fails(reference: dict[str, Tensor], value: float, side: str) -> None:
    runs = {"candidate": rounded(reference, 3, 1), "eager": rounded(reference, 3, 2)}
    runs[side]["gradient/fc.weight"][0, 0] = value
    verdict = compare(runs["candidate"], runs["eager"], reference)
    assert "NaN or infinity" in verdict.failures[0]


def test_nan_on_both_sides_agrees_and_the_rest_is_judged(reference: dict[str, Tensor]) -> None:
    candidate, eager = rounded(reference, 3, 1), rounded(reference, 3, 2)
    for run in (candidate, eager):
        run["gradient/fc.weight"][0, 0] = math.nan
    assert compare(candidate, eager, reference).ok
    candidate["gradient/fc.weight"][1, 1] += 1
    assert not compare(candidate, eager, reference).ok


def test_infinity_of_the_other_sign_fails(reference: dict[str, Tensor]) -> None:
    candidate, eager = rounded(reference, 3, 1), rounded(reference, 3, 2)
    candidate["loss/loss"][0], eager["loss/loss"][0] = math.inf, -math.inf
    assert "sign" in compare(candidate, eager, reference).failures[0]


def test_names_shapes_dtypes_and_integers_must_be_eagers(reference: dict[str, Tensor]) -> None:
    eager = rounded(reference, 3, 2)
    eager["buffer/num_batches_tracked"] = torch.tensor(20)
    reference["buffer/num_batches_tracked"] = torch.tensor(20)

    def failures(change: str, value: Tensor | None) -> str:
        candidate = {**rounded({n: x for n, x in reference.items() if x.is_floating_point()}, 3, 1),
                     "buffer/num_batches_tracked": torch.tensor(20)}  # fmt: skip
        if value is None:
            del candidate[change]
        else:
            candidate[change] = value
        return " ".join(compare(candidate, eager, reference).failures)

    assert failures("loss/loss", rounded(reference, 1, 3)["loss/loss"]) == ""
    assert "eager has it" in failures("loss/loss", None)
    assert "eager has not" in failures("gradient/extra", torch.zeros(1))
    assert "shape (1, 16)" in failures("gradient/bn.bias", torch.zeros(1, 16))
    assert "float64" in failures("gradient/bn.bias", reference["gradient/bn.bias"])
    assert "1 of 1 values" in failures("buffer/num_batches_tracked", torch.tensor(19))


def test_chaotic_counts_the_layouts_and_still_refuses_a_fault(reference: dict[str, Tensor]) -> None:
    eager, spread, candidate = rounded(reference, 3, 2), rounded(reference, 300, 3), rounded(reference, 300, 1)
    assert not compare(candidate, eager, reference, spread=spread).ok
    assert compare(candidate, eager, reference, spread=spread, chaotic=True).ok
    candidate["gradient/bn.bias"] = candidate["gradient/bn.bias"] * 1.01
    verdict = pool([compare(candidate, eager, reference, spread=spread, chaotic=True)])
    assert [f.split()[0] for f in verdict.failures] == ["gradient/bn.bias"]


def test_comparing_nothing_is_not_agreement() -> None:
    assert not Agreement([]).ok
    with pytest.raises(KeyError, match="reference lacks"):
        compare({}, {"a": torch.zeros(1)}, {})


def test_pooling_averages_luck_and_keeps_faults(reference: dict[str, Tensor]) -> None:
    verdicts = [compare(rounded(reference, 3, s), rounded(reference, 3, 10 + s), reference) for s in range(3)]
    pooled = pool(verdicts)
    assert pooled.ok
    assert pooled.seeds == 3
    broken = rounded(reference, 3, 1)
    broken["loss/loss"][3] = math.nan
    assert not pool([*verdicts, compare(broken, rounded(reference, 3, 2), reference)]).ok
    with pytest.raises(ValueError, match="nothing to pool"):
        pool([])


# --- training -----------------------------------------------------------------------------------------------


def small_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(144, 5))


def batches(seed: int) -> list[tuple[tuple[Tensor, ...], Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [((torch.randn(n, 1, 8, 8, generator=generator),), torch.randint(0, 5, (n,), generator=generator))
            for n in (4, 4, 6)]  # fmt: skip


LOSS = nn.functional.cross_entropy


class Wrong(nn.Module):
    """Runs a module, and scales the gradient of one parameter by a little more than rounding."""

    def __init__(self, inner: nn.Module, name: str, by: float) -> None:
        super().__init__()
        self.inner = inner
        inner.get_parameter(name).register_hook(lambda g: g * by)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_eager_trains_like_eager(optimizer: str) -> None:
    verdicts = assert_trains_like_eager(small_network, LOSS, batches, engine="eager", optimizer=optimizer, steps=6)
    names = {row.name for row in verdicts[1].rows}
    assert {"loss/loss", "gradient/0.weight", "gradient/0.weight[last]", "parameter/1.bias", "buffer/1.running_mean",
            "buffer/1.num_batches_tracked"} <= names  # fmt: skip
    assert all(row.spread is not None for row in verdicts[1].rows if row.dtype.is_floating_point)


def test_another_layout_of_eager_is_within_the_rule() -> None:
    """Eager in another memory layout is a candidate that rounds differently but computes the same."""

    def channels_last(module: nn.Module) -> nn.Module:
        return module.to(memory_format=torch.channels_last)

    assert_trains_like_eager(small_network, LOSS, batches, engine=channels_last, steps=6)


def test_a_slightly_wrong_gradient_in_training_fails() -> None:
    with pytest.raises(AssertionError, match=r"gradient/1\.bias"):
        assert_trains_like_eager(small_network, LOSS, batches, engine=lambda m: Wrong(m, "1.bias", 1.001), steps=3)


def test_in_lockstep_every_step_is_judged_by_itself() -> None:
    """Each step starts from eager's parameters, buffers and momentum: what goes wrong in one is not carried into the next."""
    options = {"seeds": (0,), "lockstep": True}
    for dtype in (torch.float64, torch.float32):
        for engine in ("eager", lambda m: m.to(memory_format=torch.channels_last)):
            verdict = judge_training(small_network, LOSS, batches, engine=engine, dtype=dtype, **options)
            assert verdict.ok, verdict
            assert {"loss/loss", "gradient/0.weight[step 2]", "parameter/1.bias[step 1]"} <= {row.name for row in verdict.rows}

    calls = 0

    def wrong_once(module: nn.Module) -> nn.Module:
        def scale(g: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return g * (1.001 if calls == 2 else 1.0)

        module.get_parameter("1.bias").register_hook(scale)
        return module

    failures = judge_training(small_network, LOSS, batches, engine=wrong_once, dtype=torch.float64, **options).failures
    assert {f.split(" ")[0] + " " + f.split(" ")[1] for f in failures} == {
        "gradient/1.bias[step 1]", "parameter/1.bias[step 1]"}, failures  # fmt: skip


class Jumps(nn.Module):
    """Where its input lies otherwise in memory it gives something else, as a network does of which a value lies at a kink."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small_network()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * (1.0 if self.body[4].weight.is_contiguous() else 1.001)


@pytest.mark.parametrize(("first", "attempts"), [(0, 2), (1, 3)])  # the calls of the last two steps are wrong, or those of all three
def test_in_lockstep_a_jump_may_be_repeated_and_a_fault_remains(first: int, attempts: int) -> None:
    """Of a network with kinks, in float32, what one call in two makes wrong is rounding's; what every call makes wrong is a fault."""

    def wrong(every: int) -> Any:
        calls = first

        def engine(module: nn.Module) -> nn.Module:
            def scale(g: Tensor) -> Tensor:
                nonlocal calls
                calls += 1
                return g * (1.5 if calls % every == 0 else 1.0)

            module.get_parameter("body.1.bias").register_hook(scale)
            return module

        return engine

    def judge(engine: Any, **options: Any) -> Agreement:
        return judge_training(Jumps, LOSS, batches, engine=engine, seeds=(0,), lockstep=True, **options)

    verdict = judge(wrong(2), chaotic=True)
    assert verdict.ok and f"{attempts} attempts of 3 steps repeated" in verdict.title, verdict
    assert not judge(wrong(1), chaotic=True).ok
    assert not judge(wrong(2)).ok, "only networks with kinks are given another chance"
    assert not judge(wrong(2), chaotic=True, dtype=torch.float64).ok


def test_a_missing_gradient_and_a_stale_buffer_fail() -> None:
    def frozen(module: nn.Module) -> nn.Module:
        module[0].weight.requires_grad_(False)
        return module

    verdict = judge_training(small_network, LOSS, batches, engine=frozen, seeds=(0,))
    assert "gradient/0.weight" in verdict.missing

    def no_statistics(module: nn.Module) -> nn.Module:
        module[1].momentum = 0.0
        return module

    failures = judge_training(small_network, LOSS, batches, engine=no_statistics, seeds=(0,)).failures
    assert any(f.startswith("buffer/1.running_mean") for f in failures)


def test_gradients_of_inputs_are_compared() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    run = train_steps(lambda: nn.Linear(4, 2), "sgd", [((x,), torch.tensor([0, 1, 0]))], loss_fn=LOSS)
    assert run.input_gradients["0"].shape == (3, 4)
    assert x.grad is None  # the caller's tensors are left alone


def test_runs_of_different_dtypes_start_at_the_same_point() -> None:
    single = train_steps(small_network, "sgd", batches(0), dtype=torch.float32, steps=1, loss_fn=LOSS)
    double = train_steps(small_network, "sgd", batches(0), dtype=torch.float64, steps=1, loss_fn=LOSS)
    assert torch.allclose(single.losses["loss"].double(), double.losses["loss"], rtol=1e-5)


def test_unknown_engine_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown engine 'warp'"):
        apply_engine(nn.Linear(1, 1), "warp")


def test_sampling_is_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHORTHAUL_TESTS", raising=False)
    assert not full()
    cases = list(range(1000))
    assert sample(cases, 20) == sample(cases, 20) == sorted(sample(cases, 20))
    assert len(sample(cases, 20)) == 20
    assert sample(cases[:5], 20) == cases[:5]
    monkeypatch.setenv("SHORTHAUL_TESTS", "full")
    assert sample(cases, 20) == cases
    with pytest.raises(ValueError, match="at least one"):
        sample(cases, 0)
