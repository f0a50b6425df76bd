"""Explaining, applying and taking back by hand."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from workbench_nets import residuals, stack

from shorthaul import workbench
from shorthaul.ir.edit import Edit
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.location import find, reference
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import apply as scalar
from shorthaul.transforms.base import Match, Refusal, Transformation
from shorthaul.transforms.catalog import UnknownTransformation, catalog, register
from shorthaul.workbench import TransformationError


def test_references_name_every_node_once() -> None:
    for p in (stack(), stack().optimize(level=0), stack().optimize()):
        names = [reference(p, n) for n in p.nodes]
        assert len(set(names)) == len(names)
        assert [find(p, name) for name in names] == p.nodes


def test_explain_says_where_it_applies_where_not_and_why() -> None:
    p = stack().optimize(level=0)
    found = p.explain("MapFusion")
    text = str(found)
    assert text.startswith("MapFusion (level 2): Substitute a producer map")
    assert found.applies and found.refused
    assert "workbench_nets.py:" in text and " → " in text
    assert ("0: silu", "0: mul") in {(x.where["first"], x.where["second"]) for x in found.applies}
    assert all(p.saves is not None and not p.reason for p in found.applies)
    assert "the producer combines values into the intermediate; see ReductionFusion" in {x.reason for x in found.refused}


def test_explain_after_optimizing_counts_what_was_applied() -> None:
    p = stack().optimize()
    assert "applied" in str(p.explain("ReductionFusion")) and p.explain("ReductionFusion").applied
    assert "not applied  " in p.explain() and "applied      MapFusion at silu of 0" in p.explain()


def test_explain_a_node_and_a_pair() -> None:
    p = stack().optimize(level=0)
    node = str(p.explain("0: silu"))
    assert "kernel, moves 256 B" in node and "from 0 (aten.silu.default) at" in node and "MapFusion:" in node
    pair = p.explain("0: silu", "0: mul")
    assert [x.transformation.name for x in pair.applies] == ["MapFusion"]
    apart = str(p.explain("0: silu", "2: silu"))
    assert "they share no data" in apart
    both = str(p.explain("0: silu", next(n for n in p.nodes if n.phase == "backward" and p.reads_of(n) & p.reads_of(find(p, "0: silu")))))
    assert "only Recompute moves work between them" in both


@pytest.mark.parametrize(
    ("ask", "error", "reason"),
    [
        (lambda p: p.explain("MapFushion"), UnknownTransformation, "did you mean MapFusion"),
        (lambda p: p.explain("0: slu"), KeyError, "near it are '0: silu'"),
        (lambda p: p.explain(1, 2, 3), TypeError, "two nodes, not 3 things"),
        (lambda p: p.isomorphic_modules("9"), KeyError, "no node of program .* comes from a module '9'"),
    ],
)
def test_wrong_names(ask: Any, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        ask(stack().optimize(level=0))


def test_apply_takes_the_place_that_saves_most_and_movement_falls_by_what_it_claims() -> None:
    p = stack().optimize(level=0)
    before = p.movement().bytes
    best = p.places("MapFusion")[0]
    done = p.apply("MapFusion", check="numbers")
    assert done.where == best.where and before - p.movement().bytes == best.saves > 0
    row = p.history().rows[-1]
    assert (row.name, row.before, row.after, row.claimed) == ("MapFusion", before, p.movement().bytes, best.saves)


def test_every_claim_of_the_pipeline_is_what_movement_falls_by() -> None:
    p = stack().optimize()
    rows = [r for r in p.history().rows if r.claimed is not None]
    assert len(rows) > 20
    assert [r for r in rows if r.before - r.after != r.claimed] == []  # type: ignore[operator]
    assert f"{len(p.log):5}" in str(p.history())


def test_apply_to_everything_alike() -> None:
    p = stack().optimize(level=0)
    place = next(x for x in p.places("MapFusion") if x.applies and x.where["first"] == "1: silu")
    done = p.apply_alike(place)
    assert sorted(d.where["first"] for d in done) == ["0: silu", "1: silu", "2: silu"]
    assert p.apply_alike(place) == []


@pytest.mark.parametrize("level", range(5))
def test_what_is_said_to_apply_applies(level: int) -> None:
    """Squeeze-excite has paths around: what would close a cycle is refused when places are listed, not when one is applied."""
    p = residuals().optimize(level=level)
    refused: list[str] = []
    for t in (make() for make in catalog().values()):
        listed = p.places(t)
        refused += [x.reason for x in listed if "depends on another of the fused nodes" in x.reason]
        for place in [x for x in listed if x.applies][:12]:
            workbench.apply(p.clone(), t, place.where)
    assert refused  # the network has such places


def test_refusals_leave_the_program_alone() -> None:
    p = stack().optimize(level=0)
    before = fingerprint(p)
    bad = p.places("MapFusion")[-1]
    with pytest.raises(Refusal, match=bad.reason.replace("(", r"\(")[:40]):
        p.apply(bad)
    with pytest.raises(Refusal, match="there is no 'x: silu'"):
        p.apply("MapFusion", {"first": "x: silu", "second": "0: mul", "mid": "first>0"})
    with pytest.raises(Refusal, match="MapFusion does not occur at"):
        p.apply("MapFusion", {"first": "0: silu", "second": "1: mul", "mid": "first>0"})
    good = p.places("MapFusion")[0]
    p.apply(good)
    with pytest.raises(Refusal, match="not in the program any more"):
        p.apply(good)
    p.undo()
    assert fingerprint(p) == before


class _Bad(Transformation):
    level = 2

    def matches(self, program: Program) -> Iterator[Match]:
        yield from (Match(program, {"node": n}) for n in program.nodes if n.label == "silu")


class Breaks(_Bad):
    """Takes a kernel away whose result is needed."""

    def apply(self, m: Match, edit: Edit) -> None:
        edit.remove(m.node)


class Lies(_Bad):
    """Negates a result."""

    def apply(self, m: Match, edit: Edit) -> None:
        t = m.node.tasklet
        edit.replace(m.node, m.node.with_(body=(t.with_(code={k: scalar("neg", v) for k, v in t.code.items()}),)))


class Crashes(_Bad):
    """Fails halfway."""

    def apply(self, m: Match, edit: Edit) -> None:
        edit.remove(m.node)
        raise ZeroDivisionError("halfway")


@pytest.mark.parametrize(
    ("bad", "check", "reason"),
    [
        (Breaks, True, "Breaks broke the program at silu of 0"),
        (Lies, "numbers", "Lies changed the numbers at silu of 0.*differs by"),
        (Crashes, True, "Crashes failed at silu of 0.*halfway"),
    ],
)
def test_a_transformation_that_does_harm_is_taken_back_and_named(bad: type[Transformation], check: Any, reason: str) -> None:
    p = stack().optimize(level=0)
    before, log = fingerprint(p), len(p.log)
    with pytest.raises(TransformationError, match=reason):
        p.apply(bad, check=check)
    assert fingerprint(p) == before and len(p.log) == log


def test_another_class_of_the_same_name_is_refused() -> None:
    assert register(catalog()["MapFusion"]) is catalog()["MapFusion"]
    with pytest.raises(ValueError, match="MapFusion is registered already"):
        register(type("MapFusion", (Transformation,), {}))


def test_every_transformation_of_the_package_is_in_the_catalog() -> None:
    import importlib
    import pkgutil

    import shorthaul.transforms as package

    for module in pkgutil.walk_packages(package.__path__, "shorthaul.transforms."):
        importlib.import_module(module.name)

    def subclasses(c: type) -> set[type]:
        return {c}.union(*map(subclasses, c.__subclasses__()))

    known = {c for c in subclasses(Transformation) if c.__module__.startswith("shorthaul.") and not inspect.isabstract(c)}
    assert known - {Transformation} == set(catalog().values())
