"""Training one network with several engines side by side: the same start, the same batches, step by step in turn."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Engine = Callable[[nn.Module], Any]  # a module -> what runs it
Batches = list[tuple[Tensor, Tensor]]
WARM_UP = 3  # steps whose time is not counted: the first compiles, the next fill caches and allocators


@dataclass
class Racer:
    """One engine's copy of the network, and what was measured of it. Times in seconds."""

    name: str
    module: nn.Module
    runnable: Any
    optimizer: torch.optim.Optimizer
    schedule: Any = None
    losses: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    preparation: float = 0.0  # the call that made `runnable`
    accuracy: float = 0.0

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Forward, loss, backward and optimizer; the loss and the time are noted."""
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.runnable(images), labels)
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())
        self.times.append(time.perf_counter() - begin)
        if self.schedule is not None:
            self.schedule.step()

    @property
    def median(self) -> float:
        """Seconds a step, the warm-up left out."""
        counted = self.times[WARM_UP:] or self.times
        return statistics.median(counted)

    @property
    def compile_time(self) -> float:
        """Seconds that preparation and the first step took beyond an ordinary step."""
        return max(0.0, self.preparation + self.times[0] - self.median) if self.times else self.preparation

    def evaluate(self, images: Tensor, labels: Tensor, training: Sequence[Tensor] = ()) -> float:
        """The share of `images` that are classified correctly, by the trained module as plain PyTorch in `eval()` mode.

        A copy, not the optimized module: it says what was learnt, and needs no second compilation. training: batches from which the running
        statistics of its batch norms are averaged anew; after a few dozen steps at a high learning rate they lag behind the weights.
        """
        plain = copy.deepcopy(self.reference)
        plain.load_state_dict(self.module.state_dict())
        with torch.no_grad():
            if training:
                for norm in (m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)):
                    norm.reset_running_stats()
                    norm.momentum = None  # a plain average over the batches
                plain.train()
                for batch in training:
                    plain(batch)
            plain.eval()
            guesses = torch.cat([plain(part).argmax(1) for part in images.split(250)])
        self.accuracy = float((guesses == labels).float().mean())
        return self.accuracy

    reference: nn.Module = field(default_factory=nn.Identity)


def prepare(network: nn.Module, engines: Mapping[str, Engine], learning_rate: float = 0.05) -> list[Racer]:
    """A racer for every engine, each with its own copy of `network`."""
    racers = []
    for name, engine in engines.items():
        module = copy.deepcopy(network).train()
        optimizer = torch.optim.SGD(module.parameters(), lr=learning_rate, momentum=0.9, weight_decay=5e-4)
        begin = time.perf_counter()
        runnable = engine(module)
        racer = Racer(name, module, runnable, optimizer, preparation=time.perf_counter() - begin)
        racer.reference = network
        racers.append(racer)
    return racers


def race(racers: list[Racer], batches: Batches, warmed: int = 0) -> Iterator[int]:
    """Train every racer on every batch, in turn and in alternating order; yields the number of finished steps.

    `warmed` steps were done before, on the first batches. The learning rate rises over the first tenth and then falls to
    a hundredth along a cosine.
    """
    for step in range(warmed, len(batches)):
        for racer in racers if step % 2 == 0 else racers[::-1]:
            if racer.schedule is None:
                racer.schedule = torch.optim.lr_scheduler.OneCycleLR(
                    racer.optimizer, max_lr=racer.optimizer.param_groups[0]["lr"], total_steps=len(batches) + 1,
                    pct_start=0.1, div_factor=5, final_div_factor=100, cycle_momentum=False,
                )  # fmt: skip
            racer.step(*batches[step])
        yield step + 1
