"""ExpansionChoice: how an operator is lowered."""

from __future__ import annotations

from typing import Any

import pytest
from transform_nets import assert_refuses, assert_same, network, only, results, values

from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.nodes import LibraryCall, Map
from shorthaul.ir.program import Form, Program
from shorthaul.ir.verify import verify
from shorthaul.ops.expand import expand
from shorthaul.transforms.base import Match
from shorthaul.transforms.level1_operator.expansion_choice import ExpansionChoice, choose_expansion


def product(n: int = 64) -> Program:
    return network(
        lambda b, x, w: b.op("contract", {"equation": "ik,kj->ij"}, a=b.op("tanh", x=x), b=w),
        train=False,
        maps=False,
        x=(n, n),
        w=(n, n),
    )


def place(p: Program, op: str) -> Match:
    return only(m for m in ExpansionChoice().matches(p) if m.node.op == op)


def test_the_choice_decides_the_lowering_and_is_undone() -> None:
    for to, kind in (("maps", Map), ("library", LibraryCall)):
        p = product()
        before = fingerprint(p)
        assert ExpansionChoice(to).try_apply(place(p, "contract"))
        verify(p)
        assert p.log[-1].parameters == {"to": to}
        expand(p, choose_expansion)
        verify(p, Form.MAPS)
        assert isinstance(p.nodes[-1], kind)
        p.undo(2)
        assert fingerprint(p) == before


def test_maps_mean_what_the_operator_means() -> None:
    p, q = (
        product(5),
        network(
            lambda b, x, w: b.op("contract", {"equation": "ik,kj->ij"}, a=b.op("tanh", x=x), b=w),
            train=False,
            x=(5, 5),
            w=(5, 5),
        ),
    )
    assert ExpansionChoice("maps").try_apply(place(p, "contract"))
    expand(p, choose_expansion)
    inputs = values(p)
    assert_same(p, inputs, results(q, inputs))


def test_refuses_what_the_operator_does_not_have() -> None:
    p = product()
    assert_refuses(ExpansionChoice("library"), place(p, "tanh"), "tanh has no expansion 'library'; it has maps")


def test_refuses_to_choose_twice() -> None:
    p = product()
    assert ExpansionChoice("maps").try_apply(place(p, "contract"))
    assert_refuses(ExpansionChoice("maps"), place(p, "contract"), "lowered by 'maps' already")


def test_large_products_go_to_the_library_and_depthwise_windows_become_maps() -> None:
    def build(b: Any, x: Any, w: Any) -> Any:
        return b.op(
            "convolution",
            {"stride": 1, "padding": 1, "dilation": 1, "groups": 8, "transposed": False, "output_padding": 0},
            x=x,
            weight=w,
        )

    p = network(build, maps=False, x=(2, 8, 16, 16), w=(8, 1, 3, 3))
    expand(p, choose_expansion)
    assert all(isinstance(n, Map) for n in p.nodes)
    p = product(256)
    expand(p, choose_expansion)
    assert any(isinstance(n, LibraryCall) for n in p.nodes)


def test_an_unknown_choice_is_an_error_that_names_the_operator() -> None:
    p = product()
    with p.edit("wrong") as edit:
        node = place(p, "contract").node
        edit.replace(node, node.with_(expansion="magic"))
    with pytest.raises(ValueError, match=r"contract.* no expansion 'magic'"):
        expand(p, choose_expansion)
