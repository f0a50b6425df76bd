"""DeadCode: what nobody reads goes."""

from __future__ import annotations

from typing import Any

from transform_nets import apply_checked, assert_refuses, assert_same, kernels, matches, network, results, values

from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.verify import verify
from shorthaul.transforms.fuse import fuse
from shorthaul.transforms.level2_fusion.reduction_fusion import ReductionFusion
from shorthaul.transforms.level2_fusion.sibling_fusion import SiblingFusion
from shorthaul.transforms.level4_global.dead_code import DeadCode, eliminate_dead_code


def drop_output(p: Any, name: str) -> None:
    """The caller does not want this output any more."""
    with p.edit("drop") as edit:
        edit.set_container(p.containers[name].with_(role="transient"))
        edit.set_signature(p.signature.with_(outputs=tuple(o for o in p.signature.outputs if o != name)))


def branches(b: Any, x: Any) -> list[Any]:
    return [b.op("sigmoid", x=x), b.op("tanh", x=b.op("square", x=x))]


def test_a_node_that_nobody_reads() -> None:
    p = network(branches, train=False, x=(4, 6))
    drop_output(p, "tanh")
    apply_checked(DeadCode(), matches(DeadCode(), p, node="tanh")[0])
    assert "tanh" not in p.containers
    apply_checked(DeadCode(), matches(DeadCode(), p, node="square")[0])
    assert [k.label for k in kernels(p)] == ["sigmoid"]


def test_refuses_what_is_needed() -> None:
    p = network(branches, train=False, x=(4, 6))
    for m in matches(DeadCode(), p):
        assert_refuses(DeadCode(), m, "everything that it writes is needed")


def test_a_write_that_nobody_reads() -> None:
    def build(b: Any, x: Any, y: Any) -> list[Any]:
        return [b.op("add", a=x, b=y), b.op("tanh", x=x)]

    p = network(build, train=False, x=(4, 6), y=(4, 6))
    fuse(p, [SiblingFusion()])
    drop_output(p, "add")
    (k,) = kernels(p)
    apply_checked(DeadCode(), matches(DeadCode(), p)[0])
    (k,) = kernels(p)
    assert k.read_containers() == {"x"} and k.written_containers() == {"tanh"}


def test_a_write_and_what_led_to_it_inside_a_nest() -> None:
    def build(b: Any, x: Any, y: Any) -> list[Any]:
        s = b.op("sum", {"dims": (1,), "keepdim": True}, x=x)
        u = b.op("sum", {"dims": (1,), "keepdim": True}, x=y)
        return [b.op("div", a=x, b=s), b.op("mul", a=b.op("div", a=y, b=u), b=s)]

    p = network(build, train=False, x=(4, 6), y=(4, 6))
    fuse(p, [ReductionFusion()])
    drop_output(p, "mul")
    inputs = values(p)
    expected = results(p, inputs)
    assert eliminate_dead_code(p) > 0
    verify(p)
    assert_same(p, inputs, expected)
    assert not any("y" in k.read_containers() for k in kernels(p))
    assert eliminate_dead_code(p) == 0


def test_all_at_once_is_one_rewrite_that_can_be_undone() -> None:
    p = network(branches, x=(4, 6))
    drop_output(p, "tanh")
    with p.edit("forget") as edit:
        edit.set_signature(p.signature.with_(cotangents=p.signature.cotangents[:1], gradients=()))
    before, count = fingerprint(p), len(p.log)
    assert eliminate_dead_code(p) > 2
    assert len(p.log) == count + 1
    assert [k.label for k in kernels(p)] == ["sigmoid"]
    p.undo()
    assert fingerprint(p) == before
