"""`shorthaul demo`: one network, real digits, eager PyTorch and Shorthaul side by side."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from shorthaul.demo.data import load_digits
from shorthaul.demo.movement import Movement, measure_movement
from shorthaul.demo.network import SmallEfficientNet
from shorthaul.demo.plot import COLOURS, save_png, smoothed, text_plot
from shorthaul.demo.train import WARM_UP, Engine, Racer, prepare, race

BUDGET = 75.0  # seconds of training, all engines together, that the default number of steps aims at
STEPS = (60, 200)  # but at least and at most so many
LIMIT = 90.0  # seconds of training after which the default number of steps is cut short (a busy machine)


def engines_of(names: Sequence[str]) -> dict[str, Engine]:
    """How each named engine runs a module."""

    def shorthaul(module: torch.nn.Module) -> Any:
        import shorthaul as sh

        return sh.optimize(module)

    known: dict[str, Engine] = {"eager": lambda module: module, "shorthaul": shorthaul, "torch.compile": torch.compile}
    return {name: known[name] for name in names}


def run(
    compare: Sequence[str] = (),
    steps: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    threads: int | None = None,
    output: Path = Path("shorthaul-demo"),
    engines: dict[str, Engine] | None = None,
    console: Console | None = None,
) -> int:
    """Train, compare and print; writes `losses.png` and `numbers.json` into `output`. The exit status: 0, or 1 where the
    losses do not agree.
    """
    console = console or Console()
    begin = time.perf_counter()
    if threads:
        torch.set_num_threads(threads)
    engines = engines or engines_of(["eager", "shorthaul", *dict.fromkeys(compare)])
    digits = load_digits()
    torch.manual_seed(seed)
    network = SmallEfficientNet()
    console.print(_introduction(network, digits, engines, batch_size, seed))

    racers = _compile(console, prepare(network, engines), digits.batches(batch_size, WARM_UP + 2, seed))
    limit = float("inf") if steps else LIMIT
    steps = steps or max(STEPS[0], min(STEPS[1], int(BUDGET / sum(r.median for r in racers))))
    for racer in racers:
        _start_again(racer, network)
    steps = _train(console, racers, digits.batches(batch_size, steps, seed), limit)
    training = [images for images, _ in digits.batches(batch_size, 4, seed)]
    for racer in racers:
        racer.evaluate(digits.test_images, digits.test_labels, training)

    curves = {racer.name: racer.losses for racer in racers}
    _print_curves(console, curves)
    agree = _print_agreement(console, racers)
    _print_results(console, racers)
    optimized = next((racer for racer in racers if racer.name == "shorthaul"), None)
    moved = _movement(console, optimized) if optimized else None
    picture = save_png(curves, output / "losses.png", f"{steps} steps on MNIST digits, batch {batch_size}")
    numbers = output / "numbers.json"
    numbers.write_text(json.dumps(_numbers(racers, moved, steps, batch_size, seed), indent=1) + "\n")
    console.print(f"Plot: {picture}    numbers: {numbers}    total: {time.perf_counter() - begin:.0f} s")
    return 0 if agree else 1


# --- the parts of a run, in order ---------------------------------------------------------------------------


def _introduction(
    network: torch.nn.Module, digits: Any, engines: dict[str, Engine], batch_size: int, seed: int
) -> Panel:
    count = sum(p.numel() for p in network.parameters())
    return Panel(
        f"An EfficientNet-style network ({count:,} parameters: inverted residuals, batch norm, SiLU, squeeze-excite)\n"
        f"learns {len(digits.train_labels)} handwritten digits; {len(digits.test_labels)} others are held out.\n"
        f"Engines: [b]{', '.join(engines)}[/b]; the same seed ({seed}) and the same batches of {batch_size}, in turn.\n"
        f"[dim]No dropout here: engines draw different masks from one seed, and curves are to be compared.\n"
        f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}, Python {platform.python_version()}[/dim]",
        title="[b]Shorthaul demo[/b]",
        expand=False,
    )


def _compile(console: Console, racers: list[Racer], batches: list[Any]) -> list[Racer]:
    """The first steps of every engine: they compile, and say how long a step takes. Their training is thrown away."""
    for racer in racers:
        waiting = "warming up" if racer.name == "eager" else "compiling, forward and backward"
        with console.status(f"{racer.name}: {waiting} ..."):
            for images, labels in batches:
                racer.step(images, labels)
        if racer.name == "eager":
            console.print(f"  eager          ready; {racer.median * 1e3:.0f} ms a step")
        else:
            console.print(
                f"  {racer.name:14} compiled in {racer.compile_time:.1f} s; {racer.median * 1e3:.0f} ms a step"
            )
    return racers


def _start_again(racer: Racer, network: torch.nn.Module) -> None:
    """Back to the initial parameters and buffers, with a fresh optimizer; keeps the measured compile time."""
    racer.preparation, racer.times, racer.losses = racer.compile_time, [], []
    racer.module.load_state_dict(network.state_dict())
    racer.optimizer.state.clear()


def _train(console: Console, racers: list[Racer], batches: list[Any], limit: float) -> int:
    """Train on all batches, or for `limit` seconds; the number of steps."""
    begin, done = time.perf_counter(), 0
    columns = (SpinnerColumn(), TextColumn("training"), BarColumn(bar_width=None), TextColumn("{task.completed}/{task.total}"),
               TextColumn("{task.fields[losses]}"), TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("training", total=len(batches), losses="")
        for done in race(racers, batches):
            shown = "  ".join(f"[{c}]{r.name} {r.losses[-1]:.3f}[/]" for r, c in zip(racers, COLOURS))
            progress.update(task, completed=done, losses=shown)
            if time.perf_counter() - begin > limit:
                console.print(f"  the machine is busy: stopped after {done} of {len(batches)} steps")
                break
    return done


def _print_curves(console: Console, curves: dict[str, list[float]]) -> None:
    console.print()
    console.print(
        "[b]Loss[/b] (mean of the last ten steps)   " + "   ".join(f"[{c}]● {n}[/]" for n, c in zip(curves, COLOURS))
    )
    console.print(text_plot({name: smoothed(losses) for name, losses in curves.items()}))


def _print_agreement(console: Console, racers: list[Racer]) -> bool:
    """How far the losses lie apart; they must agree on the first steps, before rounding has had time to grow."""
    agree = True
    first, *others = racers
    for racer in others:
        gaps = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(racer.losses, first.losses)]
        early = max(gaps[:5])
        fine = early < 1e-3  # five steps of float32; a wrong gradient shows at the second step
        agree = agree and fine
        verdict = "[green]the same training[/]" if fine else "[red]NOT the same training: please report this[/]"
        console.print(f"  {racer.name} against {first.name}: losses differ by at most {early:.1e} (relative) in the first 5 steps, "
                      f"{max(gaps[:20]):.1e} in the first 20; {verdict}")  # fmt: skip
    return agree


def _print_results(console: Console, racers: list[Racer]) -> None:
    table = Table(title=None, header_style="bold")
    for heading in (
        "engine",
        "final loss",
        "accuracy (held out)",
        "compile time",
        "time a step (median)",
        "against eager",
    ):
        table.add_column(heading, justify="left" if heading == "engine" else "right")
    eager = racers[0].median
    for racer, colour in zip(racers, COLOURS):
        ratio = eager / racer.median
        if racer is racers[0]:
            versus = ""
        elif 0.98 <= ratio <= 1.02:
            versus = "the same"
        else:
            versus = f"{ratio:.2f}× faster" if ratio > 1 else f"[red]{1 / ratio:.2f}× slower[/]"
        compiled = "–" if racer.name == "eager" else f"{racer.preparation:.1f} s"
        table.add_row(f"[{colour}]{racer.name}[/]", f"{smoothed(racer.losses)[-1]:.4f}", f"{racer.accuracy:.1%}", compiled,
                      f"{racer.median * 1e3:.1f} ms", versus)  # fmt: skip
    console.print()
    console.print(table)


def _movement(console: Console, racer: Racer) -> Movement:
    with console.status("counting the bytes that a training step moves ..."):
        moved = measure_movement(racer.module)
    console.print()
    console.print(
        f"[b]Bytes moved[/b] by one training step (forward and backward): [cyan]{moved.before / 1e6:,.1f} MB[/] operator by operator, "
        f"[magenta]{moved.after / 1e6:,.1f} MB[/] after Shorthaul ({moved.after / moved.before:.2f} of it)"
    )
    if moved.savings:
        table = Table(title="The transformations that saved most", title_justify="left", header_style="bold")
        table.add_column("transformation")
        table.add_column("applied", justify="right")
        table.add_column("saved", justify="right")
        table.add_column("")
        largest = max(s.bytes for s in moved.savings) or 1
        for saving in moved.savings[:6]:
            bar = "█" * max(1, round(24 * saving.bytes / largest)) if saving.bytes > 0 else ""
            table.add_row(saving.name, f"{saving.count}×", f"{saving.bytes / 1e6:,.1f} MB", f"[magenta]{bar}[/]")
        console.print(table)
    return moved


def _numbers(racers: list[Racer], moved: Movement | None, steps: int, batch_size: int, seed: int) -> dict[str, Any]:
    return {
        "steps": steps,
        "batch": batch_size,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "engines": {
            r.name: {
                "median_step_seconds": r.median,
                "compile_seconds": r.preparation,
                "held_out_accuracy": r.accuracy,
                "losses": r.losses,
            }
            for r in racers
        },
        "bytes": None if moved is None else {"before": moved.before, "after": moved.after},
        "savings": [] if moved is None else [vars(s) for s in moved.savings],
    }
