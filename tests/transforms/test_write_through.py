"""WriteThrough: no copy of what a library call has just written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transform_nets import assert_refuses, only

import shorthaul as sh
from shorthaul.analysis.movement import movement
from shorthaul.ir.builder import at, fresh_params, make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float64
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.memlet import full
from shorthaul.ir.nodes import LibraryCall, Map
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ir.verify import verify
from shorthaul.transforms.level2_fusion.write_through import WriteThrough


def copied(*, flipped: bool = False, twice: bool = False, strides: tuple[int, ...] | None = None, **attributes: Any) -> Program:
    """t = call(x); y = t, maybe with its dimensions exchanged, and maybe a second reader of t."""
    p = Program("copied", Form.MAPS)
    with p.edit("build") as edit:
        x = edit.add_container(Container("x", float64, (4, 4), role="input"))
        t = edit.add_container(Container("t", float64, (4, 4)))
        outputs = [edit.add_container(Container(n, float64, (4, 4), strides, role="output")) for n in ("y", "z")[: 1 + twice]]
        call = LibraryCall("aten::call", {"target": "aten.sin.default", "arguments": [("operand", "x0")], **attributes},
                           reads={"x0": full(x)}, writes={"y0": full(t)})  # fmt: skip
        edit.add(call)
        for y in outputs:
            i, j = fresh_params((4, 4))
            read = at(t, j, i) if flipped else at(t, i, j)
            edit.add(make_map((i, j), {"t": read}, {"y": at(y, i, j)}, lambda t: {"y": t}, {"t": float64}))
        edit.set_signature(Signature(("x",), tuple(y.name for y in outputs)))
    verify(p)
    return p


def place(p: Program) -> Any:
    return only(WriteThrough().matches(p))


def test_the_call_writes_the_copy() -> None:
    p = copied(allocates=True)
    before, moved = fingerprint(p), movement(p).bytes
    m = place(p)
    assert WriteThrough().try_apply(m)
    verify(p)
    (node,) = p.nodes
    assert isinstance(node, LibraryCall) and p.writes_of(node) == {"y"} and "t" not in p.containers
    assert moved - movement(p).bytes == p.log[-1].notes["saves"] == 2 * 16 * 8
    p.undo()
    assert fingerprint(p) == before


def test_refuses_with_the_reason() -> None:
    assert_refuses(WriteThrough(), place(copied()), "may share memory with an operand")
    assert_refuses(WriteThrough(), place(copied(allocates=True, flipped=True)), "moves elements to other places")
    assert_refuses(WriteThrough(), place(copied(allocates=True, strides=(1, 4))), "another layout")
    m = next(iter(WriteThrough().matches(copied(allocates=True, twice=True))))
    assert_refuses(WriteThrough(), m, "something else needs the result")


@pytest.mark.parametrize("level", [2, 4])
def test_gradients_of_operators_without_an_entry(level: int) -> None:
    """The gradient of the table is what PyTorch's own gradient allocates, a tensor of its own."""
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(10, 4, mode="max").double()  # by offsets: a call of PyTorch
    words, offsets = torch.tensor([1, 2, 1, 7]), torch.tensor([0, 2])
    program = sh.capture(bag, (words, offsets), train=True)
    program.optimize(level=level, check=True)
    (gradient,) = (g for _, g in program.signature.gradients)
    (writer,) = program.writers(gradient)
    assert isinstance(writer, LibraryCall) and not isinstance(writer, Map)
    bag(words, offsets).square().sum().backward()
    expected, bag.weight.grad = bag.weight.grad, None
    optimized = sh.optimize(bag, level=level)
    for _ in range(2):
        optimized(words, offsets).square().sum().backward()
    torch.testing.assert_close(bag.weight.grad, 2 * expected)
