"""Whole programs on the Triton target: capture, kernels, host program and autograd bridge. Run by test_triton.py: on CPU tensors in a
process with TRITON_INTERPRET=1, and where there is a GPU also on it."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shorthaul.runtime.memory as memory
from benchmarks.networks import network
from shorthaul.api import backend
from shorthaul.codegen.triton.interpreting import is_interpreting
from shorthaul.config import Options
from shorthaul.ir.nodes import Map
from shorthaul.testing.numerics import compare, pool
from shorthaul.training import TrainStep

DEVICE = "cpu" if is_interpreting() else "cuda"


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nothing wrote holds NaN: reading it shows."""
    make = memory.Arena.__init__

    def poison(self: memory.Arena, size: int, device: torch.device | None = None) -> None:
        make(self, size, device)
        self.tensor.fill_(255)

    monkeypatch.setattr(memory.Arena, "__init__", poison)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch._dynamo.reset()


Make = Callable[[int], tuple[nn.Module, tuple[Any, ...], Callable[[Any], Tensor]]]  # of a seed


def step(make: Make, triton: bool, dtype: torch.dtype, seed: int = 0, bf16: bool = False, level: int = 4) -> dict[str, Tensor]:
    """Loss, gradients of parameters and inputs, and buffers after one step."""
    module, inputs, loss_of = make(seed)
    module = module.to(DEVICE, dtype)
    placed = [x.to(DEVICE, dtype if x.is_floating_point() else x.dtype) if isinstance(x, Tensor) else x for x in inputs]
    placed = [x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in placed]
    run: Any = module
    if triton:
        run = torch.compile(module, backend=functools.partial(backend, options=Options(level, strict=True, target="triton")))
    with torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
        loss = loss_of(run(*placed))
    loss.backward()
    found = {"loss/loss": loss.detach()}
    found |= {f"gradient/{n}": p.grad for n, p in module.named_parameters() if p.grad is not None}
    found |= {f"input/{i}": x.grad for i, x in enumerate(placed) if isinstance(x, Tensor) and x.grad is not None}
    return {n: t.detach().cpu() for n, t in (found | {f"buffer/{n}": b for n, b in module.named_buffers()}).items()}


def assert_agrees(
    make: Make, dtype: torch.dtype = torch.float32, seeds: tuple[int, ...] = (0,), bf16: bool = False, level: int = 4
) -> None:
    found = []
    for seed in seeds:
        exact, eager = step(make, False, torch.float64, seed), step(make, False, dtype, seed, bf16)
        found.append(compare(step(make, True, dtype, seed, bf16, level), eager, exact))
    verdict = pool(found)
    if not verdict.ok:
        raise AssertionError(str(verdict))


def of_network(name: str) -> Make:
    def make(seed: int) -> tuple[nn.Module, tuple[Any, ...], Callable[[Any], Tensor]]:
        net = network(name, small=True, dropout=0.0, seed=seed)
        return net.module, net.inputs, lambda y: net.loss_fn(y, net.targets.to(DEVICE))

    return make


def of_module(make_module: Callable[[], nn.Module], *inputs: Tensor) -> Make:
    def make(seed: int) -> tuple[nn.Module, tuple[Any, ...], Callable[[Any], Tensor]]:
        torch.manual_seed(seed)
        return make_module(), inputs, lambda y: (y.float() ** 2).mean() if y.dtype is not torch.float64 else (y**2).mean()

    return make


class Block(nn.Module):
    """An inverted residual with squeeze-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.n1 = nn.Conv2d(4, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depthwise, self.n2 = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.squeeze, self.excite = nn.Conv2d(12, 3, 1), nn.Conv2d(3, 12, 1)
        self.project, self.n3 = nn.Conv2d(12, 4, 1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.silu(self.n2(self.depthwise(nn.functional.silu(self.n1(self.expand(x))))))
        gate = torch.sigmoid(self.excite(nn.functional.silu(self.squeeze(h.mean((2, 3), keepdim=True)))))
        return x + self.n3(self.project(h * gate))


class Layer(nn.Module):
    """A transformer layer over embedded words, with attention written out."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.n1, self.n2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        q, k, v = self.qkv(self.n1(x)).chunk(3, -1)
        x = x + self.out(torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1) @ v)
        return x + self.down(nn.functional.gelu(self.up(self.n2(x))))


class Sums(nn.Module):
    """Prefix sums, gathers, a maximum with its place, and reductions over both dimensions."""

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        total = torch.cumsum(x, 1) + x.amax(0, keepdim=True) * torch.log(torch.exp(x).sum(1, keepdim=True))
        return total.gather(1, at).t().contiguous() + x.var() + x.prod(1).mean()


WORDS = torch.tensor([[1, 2, 2, 5, 7], [0, 10, 3, 3, 3]])


def images(n: int, c: int, side: int) -> Tensor:
    return torch.randn(n, c, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["lenet", "chain"])
def test_networks(name: str) -> None:
    assert_agrees(of_network(name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverted_residual(dtype: torch.dtype) -> None:
    assert_agrees(of_module(Block, images(2, 4, 5)), dtype)


def test_inverted_residual_in_bfloat16() -> None:
    assert_agrees(of_module(Block, images(3, 4, 6)), seeds=(0, 1, 2), bf16=True)


@pytest.mark.parametrize("level", [0, 4])
def test_transformer_layer(level: int) -> None:
    assert_agrees(of_module(Layer, WORDS), level=level)


def test_scans_gathers_and_places_of_maxima() -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    assert_agrees(of_module(Sums, x, torch.tensor([[0, 5, 5], [1, 0, 2], [3, 3, 3], [4, 4, 0]])))


def test_pooling_and_norms_without_channels_last() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.AvgPool2d(2, 1), nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(3), nn.LayerNorm([3, 3, 3]), nn.Hardswish())

    assert_agrees(of_module(make, images(2, 3, 6)))


def test_sizes_that_change() -> None:
    """The second size makes the program symbolic; the third runs without another compilation."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.GELU()).to(DEVICE)
    regions: list[int] = []

    def counting(gm: Any, example: Any) -> Any:
        regions.append(1)
        return backend(gm, example, options=Options(strict=True, target="triton"))

    run = torch.compile(module, backend=counting)
    for n in (4, 7, 9, 33):
        x = torch.randn(n, 6, device=DEVICE)
        run(x).sum().backward()
        found = {name: p.grad.clone() for name, p in module.named_parameters()}
        module.zero_grad()
        module(x).sum().backward()
        for name, p in module.named_parameters():
            torch.testing.assert_close(found[name], p.grad, rtol=2e-4, atol=2e-5)
        module.zero_grad()
    assert len(regions) == 2


def test_dropout_draws_the_same_numbers_forward_and_backward() -> None:
    torch.manual_seed(3)
    x = torch.randn(40, 50, device=DEVICE, requires_grad=True)
    run = torch.compile(nn.Dropout(0.3), backend=functools.partial(backend, options=Options(strict=True, target="triton")))
    y = run(x)
    y.sum().backward()
    kept = y != 0
    torch.testing.assert_close(x.grad, kept.float() / 0.7)
    assert 0.6 < kept.float().mean() < 0.8
    assert not torch.equal(run(x) != 0, kept)


def test_a_step_whose_loss_picks_from_rows_that_its_kernel_computes() -> None:
    """Registers have no addresses: what is read at a target's index is stored first."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Flatten(), nn.Linear(24, 10)).to(DEVICE)
    exact = copy.deepcopy(ours).double()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in (ours, exact)]
    step = TrainStep(ours, nn.functional.cross_entropy, optimizers[0], target="triton", strict=True)
    for _ in range(3):
        x, y = torch.randn(4, 2, 3, 4, device=DEVICE), torch.randint(0, 10, (4,), device=DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = step(x, y)
        optimizers[1].zero_grad()
        expected = nn.functional.cross_entropy(exact(x.double()), y)
        expected.backward()
        optimizers[1].step()
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=2e-2, atol=0)
    for p, q in zip(ours.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(p.double(), q, rtol=1e-2, atol=2e-3)


def test_a_whole_step_updates_parameters_and_state_in_place() -> None:
    """Forward, loss, backward, clipping and AdamW as one program; the ordinary loop in float64 beside it."""
    torch.manual_seed(0)
    eager = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double().to(DEVICE)
    ours = copy.deepcopy(eager)
    a, b = (torch.optim.AdamW(m.parameters(), lr=0.01, eps=1e-3) for m in (ours, eager))
    step = TrainStep(ours, nn.functional.cross_entropy, a, target="triton", strict=True, clip_grad_norm=1.0)
    for _ in range(3):
        x, y = torch.randn(4, 2, 6, 6, device=DEVICE).double(), torch.randint(0, 3, (4,), device=DEVICE)
        loss = step(x, y)
        b.zero_grad()
        expected = nn.functional.cross_entropy(eager(x), y)
        expected.backward()
        nn.utils.clip_grad_norm_(eager.parameters(), 1.0)
        b.step()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-9, atol=1e-9)
    for (name, p), q in zip(ours.state_dict().items(), eager.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("lazy", [False, True])
def test_a_step_that_updates_touched_rows_alone(lazy: bool) -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(150, 4, padding_idx=2), nn.Linear(4, 1)

        def forward(self, i: Tensor) -> Tensor:
            return self.out(torch.tanh(self.table(i).sum(1)))

    torch.manual_seed(0)
    eager = Rows().double().to(DEVICE)
    ours = copy.deepcopy(eager)
    a, b = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9 if lazy else 0.0) for m in (ours, eager))
    step = TrainStep(ours, nn.functional.mse_loss, a, target="triton", strict=True, sparse="lazy" if lazy else "exact")
    for _ in range(4):
        i, y = torch.randint(0, 9, (5, 3), device=DEVICE), torch.randn(5, 1, device=DEVICE).double()
        step(i, y)
        b.zero_grad()
        nn.functional.mse_loss(eager(i), y).backward()
        b.step()
    assert step.program is not None and any(n.label == "write_rows" for n in step.program.nodes)
    for (name, p), q in zip(ours.state_dict().items(), eager.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_small_kernels_of_a_step_run_in_few_launches() -> None:
    """Updates of one kind in one launch, statistics and updates of a batch norm in the kernels that merge its sums."""
    torch.manual_seed(0)
    widths = itertools.pairwise((3, 7, 5, 6))
    layers = [m for k, n in widths for m in (nn.Conv2d(k, n, 3, padding=1), nn.BatchNorm2d(n), nn.SiLU())]
    eager = nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * 64, 3)).double().to(DEVICE)
    ours = copy.deepcopy(eager)
    a, b = (torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (ours, eager))
    step = TrainStep(ours, nn.functional.cross_entropy, a, target="triton", strict=True)
    for _ in range(3):
        x, y = torch.randn(6, 3, 8, 8, device=DEVICE).double(), torch.randint(0, 3, (6,), device=DEVICE)
        loss = step(x, y)
        b.zero_grad()
        expected = nn.functional.cross_entropy(eager(x), y)
        expected.backward()
        b.step()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-9, atol=1e-9)
    for (name, p), q in zip(ours.state_dict().items(), eager.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    program = step.program
    assert program is not None
    batched = [n.schedule.get("batch") for n in program.nodes if isinstance(n, Map) and n.schedule.get("batch") is not None]
    joined = [n.schedule.get("epilogue") for n in program.nodes if isinstance(n, Map) and n.schedule.get("epilogue") is not None]
    kernels = step.record.regions[-1].compiled.kernels
    without = [n for n in program.nodes if isinstance(n, Map) and not kernels[n.id].kernels]
    assert len(batched) > 2 * len(set(batched)) > 0
    assert len(joined) >= 2 * len(set(joined)) >= 6 and len(without) == len(joined) - len(set(joined))


LONG_SCANS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "one row": (lambda x: torch.cumsum(x, 0), (5000,)),
    "rows": (lambda x: torch.cumsum(x, -1) * torch.cumprod(1 + x / 1000, -1), (3, 2, 700)),
    "columns of few rows": (lambda x: torch.cumsum(x, 0), (130, 7)),
    "places of maxima": (lambda x: torch.cummax(x, 1)[0], (4, 2100)),
    "logarithms": (lambda x: torch.logcumsumexp(x, 1), (2, 3000)),
}


@pytest.mark.parametrize("name", LONG_SCANS)
def test_long_scans_go_a_block_at_a_time(name: str) -> None:
    function, shape = LONG_SCANS[name]

    class Scan(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(torch.tanh(x))

    torch.manual_seed(0)
    assert_agrees(of_module(Scan, torch.randn(*shape)), torch.float64)  # eager adds up in float64 on a CPU


def test_a_step_of_every_row_keeps_the_gradients_of_the_touched_ones() -> None:
    """A dense update, its gradient compact (`CompactGradient`)."""

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.EmbeddingBag(400_000, 8, mode="sum"), nn.Linear(8, 1)

        def forward(self, i: Tensor) -> Tensor:
            return self.out(torch.tanh(self.table(i)))

    torch.manual_seed(0)
    eager = Bag().to(DEVICE)
    ours = copy.deepcopy(eager)
    a, b = (torch.optim.AdamW(m.parameters(), lr=0.01, eps=1e-2) for m in (ours, eager))
    step = TrainStep(ours, nn.functional.mse_loss, a, target="triton", strict=True)
    for _ in range(4):
        i, y = torch.randint(0, 400_000, (16, 2), device=DEVICE), torch.randn(16, 1, device=DEVICE)
        i[:5] = 399_999
        step(i, y)
        b.zero_grad()
        nn.functional.mse_loss(eager(i), y).backward()
        b.step()
    assert step.program is not None and any(r.name == "CompactGradient" for r in step.program.log)
    for (name, p), q in zip(ours.state_dict().items(), eager.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


# windows ----------------------------------------------------------------------------------------------------------------
def of_window(layer: Callable[[], nn.Module], channels: int, size: tuple[int, ...]) -> Make:
    def make(seed: int) -> tuple[nn.Module, tuple[Any, ...], Callable[[Any], Tensor]]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.SiLU(), layer(), nn.SiLU())
        return model, (torch.randn(2, channels, *size),), lambda y: y.float().square().mean()

    return make


WINDOWS: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = {
    "3x3": (lambda: nn.Conv2d(32, 32, 3, 1, 1, groups=32, bias=False), 32, (8, 8)),
    "5x5 in steps of two": (lambda: nn.Conv2d(40, 40, 5, 2, 2, groups=40), 40, (14, 12)),
    "3x3 in steps of two, odd": (lambda: nn.Conv2d(32, 32, 3, 2, 1, groups=32, bias=False), 32, (7, 7)),
    "dilated": (lambda: nn.Conv2d(32, 32, 3, 1, 2, dilation=2, groups=32, bias=False), 32, (8, 8)),
    "a row": (lambda: nn.Conv2d(48, 48, (1, 7), 1, (0, 3), groups=48, bias=False), 48, (4, 12)),
    "one dimension": (lambda: nn.Conv1d(32, 32, 4, 1, 2, groups=32), 32, (16,)),
    "average": (lambda: nn.AvgPool2d(3, 1, 1), 32, (8, 8)),
    "maximum": (lambda: nn.MaxPool2d(3, 2, 1), 32, (8, 8)),
    "maximum of many": (lambda: nn.MaxPool2d(9, 1, 4), 32, (5, 5)),
}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name: str, bf16: bool) -> None:
    assert_agrees(of_window(*WINDOWS[name]), bf16=bf16)


def test_neighbouring_results_of_a_window_are_computed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from shorthaul.codegen.triton import blocks

    found = []
    choose = blocks.choose_window
    monkeypatch.setattr(blocks, "choose_window", lambda *given: found.append(choose(*given)) or found[-1])
    make = of_window(lambda: nn.Conv2d(33, 33, 3, 2, 1, groups=33, bias=False), 33, (24, 16))
    assert_agrees(make, bf16=True)
    factors = {(tuple(s.factor for s in w.copies), tuple(s.factor for s in w.taps)) for w in found if w is not None}
    # forward; the gradient of the input, where a stride of two meets every other tap; that of the weights, a state for each of them
    assert ((2, 4), (3, 3)) in factors and any(copies == (3, 3) for copies, _ in factors), factors
