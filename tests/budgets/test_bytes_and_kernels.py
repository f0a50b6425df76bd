"""Ratchets of data movement: what one training step may move, and in how many kernels. Tighten them when they are beaten."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import shorthaul as sh
from benchmarks.networks import BASIC, network
from benchmarks.networks.chain import Chain
from benchmarks.networks.mbconv import MBConv
from shorthaul.analysis.movement import Movement
from shorthaul.ir.nodes import LibraryCall, Map


def step(module: nn.Module, *shape: int) -> Movement:
    """Movement of forward and backward of `module` on an input that needs its gradient."""
    program = sh.capture(module, (torch.randn(shape, requires_grad=True),), train=True)
    program.optimize()
    return program.movement()


# module, shape of the input, largest share of the bytes that eager moves
MBCONV = {
    "residual": (lambda: MBConv(16, 16, 6, 3, 1), (8, 16, 28, 28), 0.56),
    "residual, 5x5": (lambda: MBConv(24, 24, 6, 5, 1), (8, 24, 28, 28), 0.56),
    "residual, stochastic depth, 8x8 pixels": (lambda: MBConv(80, 80, 6, 3, 1, drop=0.1), (8, 80, 8, 8), 0.59),
    "stride 2": (lambda: MBConv(16, 24, 6, 3, 2), (8, 16, 56, 56), 0.595),
    "not widened": (lambda: MBConv(16, 16, 1, 3, 1), (8, 16, 28, 28), 0.595),
}


@pytest.mark.parametrize("case", MBCONV)
def test_mbconv_moves_fewer_bytes_than_eager(case: str) -> None:
    build, shape, share = MBCONV[case]
    torch.manual_seed(0)
    moved = step(build(), *shape)
    assert moved.bytes <= share * moved.eager_bytes, moved.table()


# chain, largest multiple of the lower bound
CHAINS = {
    "tanh sigmoid norm softmax": (lambda width: Chain(width), 1.26),
    "norm softmax": (lambda width: nn.Sequential(nn.LayerNorm(width), nn.Softmax(-1)), 1.26),
    "softmax norm": (lambda width: nn.Sequential(nn.Softmax(-1), nn.LayerNorm(width)), 1.26),
    "gelu norm": (lambda width: nn.Sequential(nn.GELU(), nn.LayerNorm(width)), 1.26),
    "norm gelu norm softmax": (
        lambda width: nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.LayerNorm(width), nn.Softmax(-1)),
        1.26,
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_chains_move_little_more_than_they_must(chain: str) -> None:
    """Five passes over the rows where four are compulsory: the backward phase reads the input again."""
    build, multiple = CHAINS[chain]
    moved = step(build(1024), 2048, 1024)
    assert moved.bytes <= multiple * moved.lower_bound, moved.table()


KERNELS = {"mlp": (5, 8), "lenet": (12, 14), "resnet18": (88, 38), "mbconv": (133, 53), "bert": (43, 46), "chain": (2, 0)}


@pytest.mark.parametrize("name", BASIC)
def test_kernels_of_a_training_step(name: str) -> None:
    """Kernels of our own and library calls, forward and backward, of the small networks without dropout."""
    net = network(name, small=True, dropout=0.0)
    program = sh.capture(net.module, net.inputs, train=True)
    program.optimize()
    kernels, calls = KERNELS[name]
    assert sum(isinstance(n, Map) for n in program.nodes) <= kernels
    assert sum(isinstance(n, LibraryCall) for n in program.nodes) <= calls
