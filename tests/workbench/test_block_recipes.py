"""Recipes of one block: they replay whole, go to other blocks and networks, and ship as examples."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from workbench_nets import stack

import shorthaul as sh
from benchmarks.networks import network
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.testing.masks import masks
from shorthaul.transforms.recipe import Recipe

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "recipes"


def test_what_is_done_inside_one_block_replays_whole_there_and_in_the_others() -> None:
    p = stack(blocks=3).optimize(inside="1")
    recipe = p.recipe.only("1")
    placed = [s for s in p.recipe.steps if s.place]
    assert placed and all(s.inside("1") for s in placed) and len(recipe) == len(p.recipe)
    q = stack(blocks=3)
    assert q.replay(recipe).applied == len(recipe) and fingerprint(q) == fingerprint(p)
    lowered, everything = stack(blocks=3).optimize(level=0).movement().bytes, stack(blocks=3)
    one = lowered - q.movement().bytes
    assert one > 0
    assert not everything.replay(recipe.spread("1", everything.isomorphic_modules("1"))).skipped
    assert lowered - everything.movement().bytes == 3 * one
    assert everything.movement().bytes >= stack(blocks=3).optimize().movement().bytes


def test_a_module_that_is_not_there() -> None:
    p = stack()
    with pytest.raises(KeyError, match=r"comes from a module '7'; there are 0"):
        p.optimize(inside="7")


def capture(name: str) -> Any:
    n = network(name, small=True)
    return sh.capture(n.module, n.inputs)


@pytest.mark.parametrize(("file", "name", "block"), [("efficientnet_block", "mbconv", "blocks.2"), ("bert_layer", "bert", "layers.1")])
def test_the_recipes_that_ship(file: str, name: str, block: str) -> None:
    recipe = Recipe.load(EXAMPLES / f"{file}.py")
    assert all(s.inside(block) for s in recipe.steps if s.place)
    p = capture(name)
    alike = p.isomorphic_modules(block)
    lowered = capture(name).optimize(level=0).movement().bytes
    assert p.replay(recipe).applied == len(recipe)
    saved = lowered - p.movement().bytes
    assert saved > 0.1 * lowered / (len(alike) + 4)
    q = capture(name)
    assert not q.replay(recipe.spread(block, alike)).skipped
    assert lowered - q.movement().bytes >= saved * (1 + len(alike)) * 0.9


def test_a_recipe_that_ships_compiles() -> None:
    n = network("bert", small=True)
    plain, model = copy.deepcopy(n.module), sh.optimize(n.module, recipe=EXAMPLES / "bert_layer.py")
    torch.manual_seed(3)
    out = model(*n.inputs)
    torch.manual_seed(3)
    with masks(plain):
        expected = plain(*n.inputs)
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-4)
    assert not [r for r in model.report().regions[0].program.attributes["refusals"] if "skipped" in r.reason]
