"""Recipes: recorded, saved, read, replayed here, on other blocks and other networks, compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from workbench_nets import Block, stack

import shorthaul as sh
import shorthaul.transforms.catalog as catalog_module
from shorthaul.ir.edit import Edit
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.program import Program
from shorthaul.transforms.base import Match, Transformation
from shorthaul.transforms.recipe import Recipe, RecipeError, at, parse, stage


def test_replaying_the_recipe_of_a_program_gives_the_same_program(tmp_path: Path) -> None:
    p, q = stack(), stack()
    p.optimize()
    p.recipe.save(tmp_path / "recipe.py")
    done = q.replay(tmp_path / "recipe.py")
    assert done.applied == len(p.recipe) and not done.skipped
    assert fingerprint(q) == fingerprint(p) != fingerprint(stack())
    assert q.recipe.steps == p.recipe.steps


def test_the_file_is_python_that_says_the_same_when_executed(tmp_path: Path) -> None:
    p = stack().optimize()
    p.recipe.save(tmp_path / "recipe.py")
    text = (tmp_path / "recipe.py").read_text()
    assert Recipe.load(tmp_path / "recipe.py").steps == p.recipe.steps
    assert parse(text).diff(p.recipe) == ""
    assert "at('MapFusion', {'first': '0" in text and "# saves" in text
    assert [f.name for f in tmp_path.iterdir()] == ["recipe.py"]


def test_an_undone_rewrite_is_not_in_the_recipe() -> None:
    p = stack().optimize(level=0)
    steps = p.recipe.steps
    p.apply("MapFusion")
    assert p.recipe.steps[:-1] == steps and p.recipe.steps[-1].name == "MapFusion"
    p.undo()
    assert p.recipe.steps == steps


def test_a_step_taken_in_one_block_spreads_to_the_blocks_that_are_built_alike() -> None:
    p, q = stack(), stack()
    others = p.isomorphic_modules("0")
    assert others == ["1", "2"]
    p.optimize(level=0)
    place = next(x for x in p.places("MapFusion") if x.applies and x.where["first"] == "0: silu")
    p.apply(place)
    done = q.replay(p.recipe.spread("0", others))
    fused = [s for s in q.recipe.steps if s.name == "MapFusion"]
    assert [s.module for s in fused] == ["0", "1", "2"] and not done.skipped
    assert q.movement().bytes == q.history().rows[-1].after
    assert q.history().rows[-3].before - q.movement().bytes == 3 * place.saves  # type: ignore[operator]


def test_transfer_to_another_network() -> None:
    p, q = stack(blocks=1), stack(blocks=3, width=16, rows=5)
    p.optimize(level=0)
    p.apply("MapFusion", next(x for x in p.places("MapFusion") if x.applies and x.where["first"] == "0: silu"))
    assert q.replay(p.recipe.moved("0", "2")).applied == len(p.recipe)
    assert q.recipe.steps[-1].module == "2"


def test_a_place_that_is_gone_stops_the_replay_and_leaves_the_program_as_it_was() -> None:
    p, q = stack(blocks=3), stack(blocks=2)
    recipe = p.optimize().recipe
    before, log = fingerprint(q), len(q.log)
    with pytest.raises(RecipeError, match=r"step \d+ of the recipe of .*: at\(.*there is no '2.*missing='skip'"):
        q.replay(recipe)
    assert fingerprint(q) == before and len(q.log) == log
    done = q.replay(recipe, missing="skip")
    assert done.skipped and done.applied and "there is no '2" in str(done)


def test_compiling_by_a_recipe(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Block(8), torch.randn(4, 8)
    p = sh.capture(model, (x,)).optimize(level=0)
    p.apply("MapFusion", next(x for x in p.places("MapFusion") if x.applies and x.where["first"] == "<model>: silu"))
    p.recipe.save(tmp_path / "recipe.py")
    expected = model(x)
    compiled = sh.optimize(model, recipe=tmp_path / "recipe.py")
    out = compiled(x)
    out.sum().backward()
    torch.testing.assert_close(out, expected)
    report = str(compiled.report())
    assert "transformed   MapFusion 1×" in report and "ReductionFusion" not in report


def test_a_recipe_of_another_network_is_refused(tmp_path: Path) -> None:
    recipe = Recipe("other", [stage("Expand"), at("MapFusion", {"first": "head: relu", "second": "head: add", "mid": "first>0"})])
    with pytest.raises(RecipeError, match="none of the 1 places of the recipe of other is in"):
        stack().optimize(recipe=recipe)


def test_an_edit_by_hand_cannot_be_saved(tmp_path: Path) -> None:
    p = stack().optimize(level=0)
    with p.edit("Mine") as edit:
        edit.add_container(next(iter(p.containers.values())).with_(name="spare", role="transient"))
    with pytest.raises(RecipeError, match=r"is an edit by hand \(Mine\)"):
        p.recipe.save(tmp_path / "recipe.py")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("recipe = (", "not Python"),
        ("x = 1", "holds one `recipe = Recipe"),
        ("recipe = Recipe('n', version=7, steps=[])", "version 7; this Shorthaul reads version 1"),
        ("recipe = Recipe('n')", "no list of steps"),
        ("recipe = Recipe('n', steps=[open('x')])", r"file.py:1: expected stage\(...\) or at\(...\), found open"),
        ("recipe = Recipe('n', steps=[stage(__import__('os').name)])", "file.py:1: not a plain value"),
        ("recipe = Recipe('n', steps=[at('MapFusion', 3)])", "file.py:1: write stage"),
    ],
)
def test_bad_files(text: str, reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        parse(text, "file.py")


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (stage("Bake"), "no stage is called 'Bake'"),
        (at("MapFushion", {}), "did you mean MapFusion"),
        (at("MapFusion", {"first": "0: silu"}, several="maybe"), "several is one of 'refuse', 'recompute', 'keep', not 'maybe'"),
        (at("MapFusion", {"first": "0: silu"}, sevral="keep"), "no parameter 'sevral'; it has several"),
        (at("MapFusion", {"first": "0: silu"}, max_repeat="3"), "max_repeat is int, not '3'"),
        (at("ReductionFusion", {"first": "0: silu"}, row_bytes=0), "row_bytes is one of 1 to"),
    ],
)
def test_bad_steps(step: Any, reason: str) -> None:
    p = stack()
    before = fingerprint(p)
    with pytest.raises(RecipeError, match=reason):
        p.replay(Recipe("n", [stage("Expand"), step]))
    assert fingerprint(p) == before


class Breaks(Transformation):
    """Takes a kernel away whose result is needed."""

    def matches(self, program: Program) -> Iterator[Match]:
        yield from (Match(program, {"node": n}) for n in program.nodes if n.label == "silu")

    def apply(self, m: Match, edit: Edit) -> None:
        edit.remove(m.node)


class Crashes(Breaks):
    """Fails halfway."""

    def apply(self, m: Match, edit: Edit) -> None:
        edit.remove(m.node)
        raise ZeroDivisionError("halfway")


@pytest.mark.parametrize(
    ("bad", "reason"), [(Breaks, "step 2 of .* broke the program .*'Breaks'"), (Crashes, "step 2 of .* failed .*'Crashes'.*halfway")]
)
@pytest.mark.parametrize("missing", ["raise", "skip"])
def test_a_step_that_does_harm_is_named_and_everything_is_taken_back(
    bad: type[Transformation], reason: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(catalog_module._registered, bad.__name__, bad)
    p = stack()
    before, log = fingerprint(p), len(p.log)
    with pytest.raises(RecipeError, match=reason):
        p.replay(Recipe("n", [stage("Expand"), at(bad.__name__, {"node": "0: silu"}), stage("DeadCode")]), missing=missing)
    assert fingerprint(p) == before and len(p.log) == log


def test_a_missing_file() -> None:
    with pytest.raises(RecipeError, match="cannot read the recipe /nowhere"):
        stack().replay("/nowhere/recipe.py")
