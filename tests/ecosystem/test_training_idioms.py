"""Training as people do it: mixed precision, checkpoints, clipping, schedules, averaged copies, reparametrized weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from ecosystem import Net, agree, batch, close, compiled, mlp, step, twins
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

import shorthaul as sh
from shorthaul.testing import compare, pool, sample


def scaled_training(make: Callable[[], nn.Module], dtype: torch.dtype, seed: int, engine: str) -> dict[str, torch.Tensor]:
    """Six steps under autocast with scaled losses, unscaled and clipped gradients; with engine "exact" the same in float64, unscaled."""
    exact = engine == "exact"
    torch.manual_seed(seed)
    model = make().to(torch.float64 if exact else torch.float32)
    if engine == "ours":
        sh.optimize(model, strict=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2, enabled=not exact)
    found: dict[str, torch.Tensor] = {}
    losses = []
    for k in range(6):
        x = batch(10 * seed + k, 16, 36, dtype=torch.float64 if exact else torch.float32)
        with torch.autocast("cpu", dtype=dtype, enabled=not exact):
            loss = nn.functional.cross_entropy(model(x.unflatten(1, (1, 6, 6))), torch.arange(16) % 4)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        losses += [loss.detach(), norm.to(loss.dtype)]
        if k == 0:
            found.update((f"gradient/{n}", p.grad.clone()) for n, p in model.named_parameters() if p.grad is not None)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
    assert exact or scaler.get_scale() == 256.0 * 8  # no step was skipped
    if engine == "ours":
        compiled(model)
    found.update((f"parameter/{n}", p.detach()) for n, p in model.named_parameters())
    return {**found, "loss/losses and norms": torch.stack(losses)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_gradient_scaling(dtype: torch.dtype) -> None:
    """Judged against float64 beside eager's own error."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(144, 8), nn.Tanh(),
                             nn.LayerNorm(8), nn.Linear(8, 4))  # fmt: skip

    verdict = pool([compare(*(scaled_training(make, dtype, seed, engine) for engine in ("ours", "eager", "exact"))) for seed in range(3)])
    assert verdict.ok, verdict


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradient_scaler(dtype: torch.dtype) -> None:
    """The scaler skips the step in which a gradient overflows, halves its scale, and goes on."""
    ours = sh.optimize(mlp())
    optimizer = torch.optim.SGD(ours.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
    losses, scales = [], []
    for k in range(6):
        optimizer.zero_grad()
        before = [p.detach().clone() for p in ours.parameters()]
        with torch.autocast("cpu", dtype=dtype):
            output = ours(batch(0, 16, dtype=torch.float32))
            loss = nn.functional.cross_entropy(output, torch.arange(16) % 4)
        assert output.dtype is dtype
        scaler.scale(loss if k != 2 else loss * float("inf")).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(ours.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        same = all(torch.equal(a, b) for a, b in zip(before, ours.parameters(), strict=True))
        assert same == (k == 2)
        losses.append(loss.item())
        scales.append(scaler.get_scale())
    assert losses[-1] < losses[0]
    assert scales[1] == 1024.0 and scales[2] == 512.0
    compiled(ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_module_in_a_narrow_dtype(dtype: torch.dtype) -> None:
    """Storage in 16 bits, arithmetic in float32: kernels, not a fallback."""
    eager, ours = twins(Net, dtype)
    for m in (eager, ours):
        step(m, batch(0, 16, dtype=dtype))
    (region,) = compiled(ours)
    assert region.kernels and not region.fallbacks
    agree(eager, ours, 4 * torch.finfo(dtype).eps)


class Checkpointed(nn.Module):
    """Blocks under a checkpoint, of one kind or another."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first, self.second, self.options = mlp(8), mlp(8), options

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.second, x.sin(), use_reentrant=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        options = dict(self.options)
        kind = options.pop("kind", "plain")
        if kind == "nested":
            return checkpoint(lambda x: self.inner(self.first(x)).cos(), x, **options)
        if kind == "sequential":
            return checkpoint_sequential(nn.Sequential(Checkpointed.Block(self.first), Checkpointed.Block(self.second)), 2, x, **options)
        return self.second(checkpoint(self.first, x, **options)).cos()

    class Block(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)


def keep_products(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = op in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


CHECKPOINTS: dict[str, dict[str, Any]] = {
    "plain": {"use_reentrant": False},
    "reentrant": {"use_reentrant": True},
    "without random state": {"use_reentrant": False, "preserve_rng_state": False},
    "nested": {"use_reentrant": False, "kind": "nested"},
    "selective": {"use_reentrant": False, "context_fn": partial(create_selective_checkpoint_contexts, keep_products)},
    "sequential": {"use_reentrant": False, "kind": "sequential"},
}


@pytest.mark.parametrize("kind", sample(list(CHECKPOINTS), 4))
def test_activation_checkpoints(kind: str) -> None:
    eager, ours = twins(partial(Checkpointed, **CHECKPOINTS[kind]))
    for k in range(2):
        inputs = [batch(k).requires_grad_() for _ in range(2)]
        for m, x in zip((eager, ours), inputs, strict=True):
            step(m, x)
        close(inputs[1].grad, inputs[0].grad)
    agree(eager, ours)
    compiled(ours)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_around_an_optimized_module(reentrant: bool) -> None:
    eager, ours = twins(mlp)
    for m in (eager, ours):
        checkpoint(m, batch().requires_grad_(), use_reentrant=reentrant).square().sum().backward()
    agree(eager, ours)
    compiled(ours)


@pytest.mark.parametrize("reentrant", [False, True])
def test_dropout_under_a_checkpoint_drops_the_same_elements_again(reentrant: bool) -> None:
    class Dropped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(lambda x: nn.functional.dropout(x, 0.5).exp(), x, use_reentrant=reentrant)

    ours = sh.optimize(Dropped())
    x = torch.full((50, 8), 0.5, dtype=torch.float64, requires_grad=True)
    y = ours(x)
    y.sum().backward()
    kept = y.detach() != 1.0
    assert 0.3 < kept.double().mean() < 0.7
    close(x.grad, torch.where(kept, 2 * y.detach(), 0.0))  # d exp(2x) where it was kept, and nothing elsewhere


@pytest.mark.parametrize("clip", [partial(nn.utils.clip_grad_norm_, max_norm=0.01), partial(nn.utils.clip_grad_value_, clip_value=0.001)])
def test_clipped_gradients_and_a_schedule(clip: Callable[..., Any]) -> None:
    eager, ours = twins(Net)
    for m in (eager, ours):
        optimizer = torch.optim.AdamW(m.parameters(), 1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=6)
        for k in range(6):
            optimizer.zero_grad()
            step(m, batch(k))
            clip(m.parameters())
            optimizer.step()
            schedule.step()
    agree(eager, ours, 1e-8)


def test_gradient_accumulation_over_unequal_batches() -> None:
    eager, ours = twins(Net)
    for m in (eager, ours):
        for n in (4, 6, 3):
            step(m, batch(n, n))
    agree(eager, ours)


def test_averaged_copies_and_their_batch_statistics() -> None:
    from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

    pair = twins(Net)
    averaged = []
    for m in pair:
        average = AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        optimizer = torch.optim.SGD(m.parameters(), 0.1)
        schedule = SWALR(optimizer, 0.05)
        for k in range(4):
            optimizer.zero_grad()
            step(m, batch(k))
            optimizer.step()
            average.update_parameters(m)
            schedule.step()
        update_bn([batch(k) for k in range(3)], average)
        averaged.append(average.eval())
    agree(*pair)
    agree(*averaged)
    close(averaged[1](batch()), averaged[0](batch()))


def test_line_search_with_closures() -> None:
    pair = twins(mlp)
    for m in pair:
        optimizer = torch.optim.LBFGS(m.parameters(), max_iter=4, line_search_fn="strong_wolfe")

        def closure(m: nn.Module = m, optimizer: Any = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = (m(batch(0, 16)) - 1).square().mean()
            loss.backward()
            return loss

        first = closure().item()
        for _ in range(2):
            optimizer.step(closure)
        assert closure().item() < first / 2
    agree(*pair, tolerance=1e-6)


def old_style(normalize: Callable[..., nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def apply(layer: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return normalize(layer)

    return apply


REPARAMETRIZED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "cayley": partial(nn.utils.parametrizations.orthogonal, orthogonal_map="cayley"),
    "householder": partial(nn.utils.parametrizations.orthogonal, orthogonal_map="householder"),
    "weight_norm, old": old_style(nn.utils.weight_norm),
    "spectral_norm, old": old_style(nn.utils.spectral_norm),
}


@pytest.mark.parametrize("name", sample(list(REPARAMETRIZED), 3))
def test_reparametrized_weights(name: str) -> None:
    models = []
    for _ in range(2):  # the old weight norm cannot be copied
        torch.manual_seed(0)
        models.append(nn.Sequential(REPARAMETRIZED[name](nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 3)).double())
    eager, ours = models[0], sh.optimize(models[1])
    for m in (eager, ours):
        optimizer = torch.optim.SGD(m.parameters(), 0.1)
        for k in range(3):
            optimizer.zero_grad()
            step(m, batch(k))
            optimizer.step()
    agree(eager, ours, 1e-8)
    close(ours.eval()(batch()), eager.eval()(batch()), 1e-8)
    assert not ours.report().unused
    compiled(ours)


def test_removing_a_parametrization_midway() -> None:
    (eager, _), (_, ours) = (twins(lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Tanh())) for _ in "ab")
    for m in (eager, ours):
        step(m, batch())
        nn.utils.parametrize.remove_parametrizations(m[0], "weight")
        m.zero_grad()
        step(m, batch())
    agree(eager, ours)


def test_layers_frozen_and_unfrozen_midway() -> None:
    eager, ours = twins(Net)
    for m in (eager, ours):
        optimizer = torch.optim.AdamW(m.parameters(), 1e-2)
        for k in range(9):
            if k % 3 == 0:
                m.first.requires_grad_(k != 3)
                m.norm.train(k != 3)
            optimizer.zero_grad()
            step(m, batch(k))
            assert (m.first.weight.grad is None) == (3 <= k < 6)
            optimizer.step()
    agree(eager, ours, 1e-8)


def test_deterministic_algorithms() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(10, 8), nn.Linear(8, 4)

        def forward(self, i: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.head(self.table(i)))

    indices = torch.arange(60).remainder(7).reshape(5, 12)
    torch.use_deterministic_algorithms(True)
    try:
        eager, ours = twins(Embedded, torch.float32)
        step(eager, indices)
        step(ours, indices)
        first = [p.grad.clone() for p in ours.parameters() if p.grad is not None]
        agree(eager, ours, 1e-5)
        for _ in range(3):
            ours.zero_grad()
            step(ours, indices)
            assert all(torch.equal(a, p.grad) for a, p in zip(first, ours.parameters(), strict=True) if p.grad is not None)
    finally:
        torch.use_deterministic_algorithms(False)


def test_anomaly_detection_names_the_compiled_node() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.w).sqrt().sum()

    eager, ours = twins(Net)
    with torch.autograd.set_detect_anomaly(True):
        for m in (eager, ours):
            step(m, batch())
        agree(eager, ours)
        for m in (Root(), sh.optimize(Root())):
            y = m(torch.zeros(3, 8))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the traceback of the forward call
                with pytest.raises(RuntimeError, match="returned nan values"):
                    y.backward()
