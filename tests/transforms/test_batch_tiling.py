"""BatchTiling: chains run over parts of the batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transform_nets import apply_checked, assert_refuses, matches, network, only

import shorthaul as sh
import shorthaul.pipeline
from benchmarks.networks.mixer import Mixer
from benchmarks.networks.mobilenet import TINY, MobileNetV2
from shorthaul.analysis.movement import movement
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.nodes import Loop
from shorthaul.ir.program import Program
from shorthaul.ir.serialize import dumps, from_json
from shorthaul.ir.verify import VerifyError, verify
from shorthaul.transforms.base import apply_everywhere
from shorthaul.transforms.level4_global.batch_tiling import BatchTiling

SMALL = BatchTiling(cache=4096, least=256)


def perceptron(b: Any, x: Any, w: Any, v: Any) -> Any:
    h = b.op("contract", {"equation": "bk,nk->bn"}, a=x, b=w)
    return b.op("contract", {"equation": "bn,kn->bk"}, a=b.op("tanh", x=h), b=v)


def net(train: bool = False, rows: int = 12) -> Program:
    return network(perceptron, parameters={"w": (6, 4), "v": (4, 6)}, train=train, x=(rows, 4))


def loops(p: Program) -> list[Loop]:
    return [n for n in p.nodes if isinstance(n, Loop)]


def test_what_passes_between_the_nodes_stays_in_the_cache() -> None:
    p = net()
    apply_checked(SMALL, only(matches(SMALL, p)))
    (loop,) = loops(p)
    assert loop.tile and loop.count == 12 // loop.tile[0] and set(loop.scanned) == {"x"}
    assert [c.name for c in p.containers.values() if c.role == "transient"] == []
    assert movement(p).bytes == 8 * (2 * 12 * 4 + 2 * 6 * 4)


def test_sums_over_the_batch_are_added_up_from_part_to_part() -> None:
    p = net(train=True)
    found = matches(SMALL, p)
    for m in found:
        apply_checked(SMALL, m)
        found = matches(SMALL, p)
    assert any(set(loop.summed) & {g for _, g in p.signature.gradients} for loop in loops(p))


def test_the_largest_part_that_fits() -> None:
    tiles = {}
    for cache in (600, 800, 4096):
        p = net()
        t = BatchTiling(cache=cache, least=256)
        assert t.try_apply(only(matches(t, p)))
        tiles[cache] = loops(p)[0].tile
    assert tiles[600] < tiles[800] < tiles[4096] == (6,)  # type: ignore[operator]


def test_where_the_working_set_does_not_fit_everything_is_counted() -> None:
    p = net()
    assert SMALL.try_apply(only(matches(SMALL, p)))
    small = movement(p, machine=sh_machine(64)).bytes
    assert small > movement(p).bytes  # type: ignore[operator]


def sh_machine(cache: int) -> Any:
    from shorthaul.analysis.roofline import Machine

    return Machine("tiny", 1e9, cache)


def test_refuses_where_weights_do_not_fit() -> None:
    p = net()
    m = only(matches(SMALL, p))
    assert_refuses(BatchTiling(cache=256, least=256), m, "do not fit the 256 bytes")


def test_refuses_rows_that_depend_on_each_other() -> None:
    def build(b: Any, x: Any) -> Any:
        return b.op("tanh", x=b.op("flip", {"dims": (0,)}, x=x))

    assert matches(SMALL, network(build, train=False, x=(12, 8))) == []


def test_dropout_draws_by_the_position_in_the_whole_batch() -> None:
    from shorthaul.ir.dtypes import int64

    def build(b: Any, x: Any, w: Any, seed: Any, offset: Any) -> Any:
        h = b.op("contract", {"equation": "bk,nk->bn"}, a=x, b=w)
        return b.op("dropout", {"p": 0.5}, x=b.op("tanh", x=h), seed=seed, offset=offset)

    p = network(build, train=False, dtypes={"seed": int64, "offset": int64}, x=(12, 8), w=(8, 8), seed=(), offset=())
    m = matches(SMALL, p)[0]
    apply_checked(SMALL, m)
    assert any(loop.index is not None for loop in loops(p)) or len(matches(SMALL, p)) == 0


def test_does_nothing_for_what_stays_in_the_cache_anyway() -> None:
    assert matches(BatchTiling(), net()) == []


def test_saves_and_prints() -> None:
    p = net(train=True)
    apply_everywhere(p, [SMALL])
    again = from_json(dumps(p))
    assert again.fingerprint() == p.fingerprint() if hasattr(p, "fingerprint") else str(again) == str(p)
    assert "rows of" in str(p)


def test_a_loop_whose_rows_do_not_make_up_the_batch_is_refused() -> None:
    p = net()
    assert SMALL.try_apply(only(matches(SMALL, p)))
    (loop,) = loops(p)
    with p.edit("wrong") as edit:
        edit.replace(loop, loop.with_(count=loop.count + 1))  # type: ignore[operator]
    with pytest.raises(VerifyError, match="runs over"):
        verify(p, p.form)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (
            lambda: Mixer(side=24, patch=6, width=24, depth=1, patch_hidden=12, channel_hidden=48, classes=10),
            (6, 3, 24, 24),
        ),
        (lambda: MobileNetV2(TINY, stem=8, stem_stride=1, head=32, classes=10, dropout=0.0), (6, 3, 16, 16)),
    ],
    ids=["mixer", "mobilenet"],
)
def test_compiled_networks_keep_their_gradients(
    build: Any, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORTHAUL_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(
        shorthaul.pipeline,
        "BatchTiling",
        lambda dims=1, large=False: BatchTiling(cache=1 << 19, least=4096, dims=dims, large=large),
    )
    torch.manual_seed(0)
    model = build().double().train()
    expected, x = copy.deepcopy(model), torch.randn(shape, dtype=torch.float64)
    program = sh.capture(model, (x,), train=True)
    program.optimize(check=True)
    assert len(loops(program)) >= 2 and any(loop.summed for loop in loops(program))
    optimized = sh.optimize(model, strict=True)
    for _ in range(2):
        y, z = optimized(x), expected(x)
        torch.testing.assert_close(y, z, rtol=1e-9, atol=1e-11)
        y.square().mean().backward()
        z.square().mean().backward()
    for (name, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


def test_undo_gives_the_program_back() -> None:
    p = net(train=True)
    before = fingerprint(p)
    count = apply_everywhere(p, [SMALL]).applied
    assert count
    p.undo(count)
    assert fingerprint(p) == before
