"""SiblingFusion: one pass for two maps that read the same data."""

from __future__ import annotations

from typing import Any

from transform_nets import apply_checked, assert_refuses, kernels, matches, network, only

from shorthaul.symbolic import Symbol
from shorthaul.transforms.level2_fusion.sibling_fusion import SiblingFusion

N = Symbol("N", 1)


def pair(t: SiblingFusion, p: Any, first: str, second: str) -> Any:
    """The match of two maps on the container of most bytes."""
    found = matches(t, p, first=first, second=second)
    return max(found, key=lambda m: len(p.containers[m.mid].shape))


def test_a_value_and_its_statistics_are_computed_in_one_pass() -> None:
    p = network(lambda b, x: [b.op("sigmoid", x=x), b.op("sum", {"dims": (0,)}, x=x)], train=False, x=(4, 6))
    apply_checked(SiblingFusion(), pair(SiblingFusion(), p, "sigmoid", "sum"))
    (k,) = kernels(p)
    assert k.written_containers() == {"sigmoid", "sum"}


def test_parameters_are_matched_through_the_shared_read() -> None:
    p = network(
        lambda b, x: [b.op("sigmoid", x=x), b.op("tanh", x=b.op("permute", {"dims": (1, 0)}, x=x))],
        train=False,
        x=(4, 6),
    )
    apply_checked(SiblingFusion(), pair(SiblingFusion(), p, "sigmoid", "permute"))
    assert len(kernels(p)) == 2


def test_symbolic_sizes() -> None:
    p = network(lambda b, x: [b.op("sigmoid", x=x), b.op("sum", {"dims": (0,)}, x=x)], train=False, sizes=[N], x=(N, 6))
    apply_checked(SiblingFusion(), pair(SiblingFusion(), p, "sigmoid", "sum"), sizes={N: 5})


def test_forward_and_backward_stay_apart() -> None:
    p = network(lambda b, x: b.op("sigmoid", x=x), x=(4, 6))
    assert not [m for m in matches(SiblingFusion(), p) if m.first.phase != m.second.phase]


def test_refuses_a_producer_and_its_consumer() -> None:
    p = network(lambda b, x: b.op("mul", a=x, b=b.op("sigmoid", x=x)), train=False, x=(4, 6))
    assert_refuses(SiblingFusion(), pair(SiblingFusion(), p, "sigmoid", "mul"), "one reads what the other writes")


def test_refuses_points_that_the_shared_data_does_not_have() -> None:
    p = network(lambda b, x, w: [b.op("sigmoid", x=w), b.op("mul", a=x, b=w)], train=False, x=(4, 6), w=(6,))
    assert_refuses(SiblingFusion(), only(matches(SiblingFusion(), p, first="sigmoid", second="mul")), "does not have")


def test_refuses_reads_under_conditions() -> None:
    p = network(
        lambda b, x: [b.op("sigmoid", x=x), b.op("pad", {"pad": (1, 0), "value": 0.0}, x=x)], train=False, x=(4, 6)
    )
    assert_refuses(SiblingFusion(), pair(SiblingFusion(), p, "sigmoid", "pad"), "read under conditions")


def test_refuses_reads_at_several_places() -> None:
    from shorthaul.transforms.fuse import fuse
    from shorthaul.transforms.level2_fusion.map_fusion import MapFusion

    def build(b: Any, x: Any) -> list[Any]:
        return [b.op("sigmoid", x=x), b.op("mul", a=x, b=b.op("flip", {"dims": (1,)}, x=x))]

    p = network(build, train=False, x=(4, 6))
    fuse(p, [MapFusion("refuse")])
    assert_refuses(SiblingFusion(), pair(SiblingFusion(), p, "sigmoid", "mul"), "read at several places")


def test_refuses_other_ranges() -> None:
    p = network(
        lambda b, x: [b.op("sigmoid", x=x), b.op("slice", {"dim": 1, "start": 0, "stop": 4, "step": 1}, x=x)],
        train=False,
        x=(4, 6),
    )
    assert_refuses(SiblingFusion(), pair(SiblingFusion(), p, "sigmoid", "slice"), "they run over different ranges")


def test_scans_along_one_dimension_are_merged_and_along_two_refused() -> None:
    def build(b: Any, x: Any) -> list[Any]:
        return [b.op(name, {"dim": dim}, x=x) for name, dim in (("cumsum", 1), ("cumprod", 1), ("logcumsumexp", 0))]

    p = network(build, train=False, x=(4, 6))
    assert_refuses(SiblingFusion(), pair(SiblingFusion(), p, "cumprod", "logcumsumexp"), "along different dimensions")
    apply_checked(SiblingFusion(), pair(SiblingFusion(), p, "cumsum", "cumprod"))
    assert len(kernels(p)) == 3


def test_refuses_a_cycle_through_a_third_node() -> None:
    def build(b: Any, x: Any) -> list[Any]:
        t = b.op("sum", {"dims": (0, 1)}, x=x)
        return [b.op("mul", a=x, b=b.op("square", x=t))]

    p = network(build, train=False, x=(4, 6))
    m = pair(SiblingFusion(), p, "sum", "mul")
    assert_refuses(SiblingFusion(), m, "through a node between them")


def test_refuses_prefixes_along_different_dimensions() -> None:
    p = network(lambda b, x: [b.op("cumsum", {"dim": 0}, x=x), b.op("cumprod", {"dim": 1}, x=x)], train=False, x=(4, 6))
    assert_refuses(SiblingFusion(), pair(SiblingFusion(), p, "cumsum", "cumprod"), "along different dimensions")
    q = network(lambda b, x: [b.op("cumsum", {"dim": 1}, x=x), b.op("cumprod", {"dim": 1}, x=x)], train=False, x=(4, 6))
    apply_checked(SiblingFusion(), pair(SiblingFusion(), q, "cumsum", "cumprod"))
