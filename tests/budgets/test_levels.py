"""Ratchets of the table of levels: what a training step moves by level 0 to 4, beside eager PyTorch, with nothing executed."""

from __future__ import annotations

import pytest

import shorthaul as sh
from benchmarks.networks import BASIC, TEN, network
from shorthaul.levels import LevelRow, level_row

# largest share of eager's bytes at level 4, at full size
LEVEL_4 = {"resnet50": 0.545, "wide_resnet50_2": 0.555, "mobilenet_v2": 0.496, "efficientnet_b0": 0.421, "mlp_mixer_b16": 0.42,
           "fcn8s_vgg16": 0.685, "wavenet": 0.535, "bert_large": 0.66, "dlrm": 0.83, "yolov4": 0.63}  # fmt: skip


def row(name: str, **options: object) -> LevelRow:
    net = network(name, device="meta", **options)  # type: ignore[arg-type]
    return level_row(name, sh.capture(net.module, net.inputs, train=True))


@pytest.mark.parametrize("name", BASIC)
def test_a_higher_level_never_moves_more_on_the_basic_networks(name: str) -> None:
    found = row(name, small=True)
    assert not found.rises, found


@pytest.mark.slow
@pytest.mark.parametrize("name", TEN)
def test_the_ten_networks_at_full_size(name: str) -> None:
    found = row(name)
    assert not found.rises, found
    assert found.ratio(4) <= LEVEL_4[name], found
