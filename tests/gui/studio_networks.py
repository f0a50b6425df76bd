"""Programs and networks for the tests of the studio."""

from __future__ import annotations

import torch
from torch import nn

from shorthaul.demo.network import InvertedResidual
from shorthaul.ir.builder import at, fresh_params, make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32
from shorthaul.ir.nodes import Node, Schedule
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ir.scalar import apply


class Small(nn.Module):
    """An EfficientNet in small: stem, two equal inverted residuals, head; (2, 1, 12, 12) -> (2, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*[InvertedResidual(8, 8) for _ in range(2)])
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def small() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """What `shorthaul studio FILE.py:small` opens."""
    torch.manual_seed(0)
    return Small(), (torch.randn(2, 1, 12, 12),)


def flat(nodes: int = 10_000, chains: int = 40) -> Program:
    """Elementwise kernels without any module: chains that meet at every tenth kernel, half of them in the backward phase."""
    inputs = [f"x{c}" for c in range(chains)]
    containers = {n: Container(n, float32, (64,), role="input") for n in inputs}
    outputs, gradients = ([f"t{end - chains + c}" for c in range(chains)] for end in (nodes // 2, nodes))
    made: list[Node] = []
    last = list(inputs)
    for i in range(nodes):
        chain, name = i % chains, f"t{i}"
        role = "output" if name in outputs else "gradient" if name in gradients else "transient"
        containers[name] = Container(name, float32, (64,), role=role)
        operands = [last[chain], last[(chain + 7) % chains]][: 2 if i // chains % 10 == 9 else 1]
        (p,) = fresh_params((64,))
        made.append(make_map(
            (p,), {f"a{k}": at(containers[c], p) for k, c in enumerate(operands)}, {"y": at(containers[name], p)},
            lambda **v: {"y": apply("add", *v.values()) if len(v) == 2 else apply("tanh", *v.values())}, dict.fromkeys(operands, float32),
            name=f"step{i}", phase="forward" if i < nodes // 2 else "backward", schedule=Schedule("parallel")))  # fmt: skip
        last[chain] = name
    signature = Signature(tuple(inputs), tuple(outputs), gradients=tuple(zip(inputs, gradients, strict=True)))
    return Program("flat", Form.SCHEDULED, containers, made, signature)
