"""BatchTiling over batch and heads, and TileLayout: attention with dropout or a mask never has the scores of all heads in memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transform_nets import apply_checked, assert_refuses, matches, network

import shorthaul as sh
import shorthaul.pipeline
from benchmarks.networks.bert import Attention
from shorthaul.analysis.movement import movement
from shorthaul.ir.dtypes import bool_, int64
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.nodes import LibraryCall, Loop
from shorthaul.ir.program import Program
from shorthaul.ir.serialize import dumps, from_json
from shorthaul.ir.verify import VerifyError, verify
from shorthaul.ops.expand import expand
from shorthaul.pipeline import _schedule
from shorthaul.testing import masks
from shorthaul.transforms.base import apply_everywhere
from shorthaul.transforms.fuse import fuse
from shorthaul.transforms.level1_operator.expansion_choice import choose_expansion
from shorthaul.transforms.level3_layout.tile_layout import TileLayout
from shorthaul.transforms.level4_global.alias_views import AliasViews
from shorthaul.transforms.level4_global.batch_tiling import BatchTiling
from shorthaul.transforms.level4_global.dead_code import eliminate_dead_code

HEADS = BatchTiling(cache=2500, least=512, dims=2)
B, H, L, D = 2, 4, 6, 3


def attention(p: float = 0.4, mask: tuple[int, ...] | None = None, train: bool = True) -> Program:
    """Attention by maps, each step a kernel of its own; `mask` is the shape of a mask of bools."""
    dtypes = {"seed": int64, "offset": int64, "mask": bool_}
    given: dict[str, Any] = dict.fromkeys("qkv", (B, H, L, D))
    if p:
        given |= {"seed": (), "offset": ()}
    if mask:
        given["mask"] = mask

    def build(b: Any, q: Any, k: Any, v: Any, *rest: Any) -> Any:
        names = [n for n in given if n not in "qkv"]
        return b.op("attention", {"p": p, "stream": 1}, q=q, k=k, v=v, **dict(zip(names, rest, strict=True)))[0]

    program = network(build, train=train, dtypes=dtypes, **given)
    eliminate_dead_code(program)
    return program


def loops(p: Program) -> list[Loop]:
    return [n for n in p.nodes if isinstance(n, Loop)]


def square(p: Program) -> set[str]:
    """Containers of the size of all scores."""
    return {c.name for c in p.containers.values() if c.shape[-2:] == (L, L) and c.size == B * H * L * L}


@pytest.mark.parametrize("mask", [None, (B, 1, 1, L), (1, H, L, L), (L, L)], ids=["none", "padding", "heads", "square"])
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_attention_never_has_all_scores_in_memory(p: float, mask: tuple[int, ...] | None) -> None:
    program = attention(p, mask)
    assert square(program) - {"mask"}
    for phase in ("forward", "backward"):
        found = [m for m in matches(HEADS, program) if m.nodes[0].phase == phase]
        assert len(found) == 1
        apply_checked(HEADS, found[0])
    assert not square(program) - {"mask"}
    assert {n.phase for n in loops(program)} == {"forward", "backward"}
    assert all(n.tile is not None and n.tile[0] == 1 and H % n.tile[1] == 0 for n in loops(program))
    assert any(n.index is not None for n in loops(program)) == bool(p), "dropout draws by the position in all scores"


def test_the_fewest_heads_that_fit() -> None:
    tiles = []
    for cache in (1000, 2500):
        program = attention()
        t = BatchTiling(cache=cache, least=512, dims=2)
        found = matches(t, program)
        assert found and t.try_apply(found[0])
        tiles.append(loops(program)[0].tile)
    assert tiles[0] < tiles[1]


def test_refuses_where_one_head_does_not_fit() -> None:
    m = matches(HEADS, attention())[0]
    assert_refuses(BatchTiling(cache=300, least=64, dims=2), m, "do not fit the 300 bytes")


def test_refuses_numbers_that_the_block_does_not_tell() -> None:
    """A number that is drawn by the sample alone, not by the position in the whole."""

    def build(b: Any, x: Any, w: Any) -> Any:
        rows = b.op("arange", {"shape": (B,), "dtype": x.dtype})
        rows = b.op("reshape", {"shape": (B, 1, 1, 1)}, x=rows)
        y = b.op("contract", {"equation": "abij,abkj->abik"}, a=x, b=w)
        return b.op("tanh", x=b.op("add", a=y, b=rows))

    program = network(build, train=False, x=(B, H, L, D), w=(B, H, L, D))
    fuse(program)
    assert matches(BatchTiling(cache=4096, least=64, dims=2), program) == []


def test_a_loop_over_blocks_that_do_not_make_up_the_whole_is_refused() -> None:
    program = attention()
    apply_everywhere(program, [HEADS])
    loop = loops(program)[0]
    with program.edit("wrong") as edit:
        edit.replace(loop, loop.with_(tile=(1, 3)))
    with pytest.raises(VerifyError, match="runs over"):
        verify(program, program.form)


def test_undo_and_files_give_the_program_back() -> None:
    program = attention()
    before = fingerprint(program)
    count = apply_everywhere(program, [HEADS]).applied
    assert count == 2
    again = from_json(dumps(program))
    assert fingerprint(again) == fingerprint(program)
    assert movement(again).bytes == movement(program).bytes
    program.undo(count)
    assert fingerprint(program) == before


def module_program() -> Program:
    """Attention of a network with its projections, as library calls and maps, up to the views."""
    x = torch.randn(2, 6, 12, dtype=torch.float64, requires_grad=True)
    program = sh.capture(Attention(12, 4, 0.3).double().train(), (x, None), train=True)
    expand(program, choose_expansion)
    eliminate_dead_code(program)
    fuse(program)
    eliminate_dead_code(program)
    apply_everywhere(program, [HEADS])
    _schedule(program)
    return program


def test_the_heads_are_put_where_the_projection_reads_them() -> None:
    """The result, and the gradients of queries, keys and values, are laid out such that their copies become views; what is read needs no
    layout of its own."""
    program = module_program()
    start = len(program.log)
    assert apply_everywhere(program, [AliasViews(loops=True)]).applied == 4
    program.undo(len(program.log) - start)
    moved, before = movement(program).bytes, fingerprint(program)
    assert apply_everywhere(program, [TileLayout()]).applied == 4
    assert movement(program).bytes == moved
    verify(program)
    middle = len(program.log)
    assert apply_everywhere(program, [AliasViews(loops=True)]).applied == 8
    verify(program)
    assert moved - movement(program).bytes - sum(r.notes["saves"] for r in program.log[middle:]) == 0
    program.undo(len(program.log) - start)
    assert fingerprint(program) == before


def test_a_block_that_lies_otherwise_than_what_it_is_of_is_refused() -> None:
    program = module_program()
    assert apply_everywhere(program, [TileLayout()]).applied
    mid = program.log[-1].notes["mid"]
    with program.edit("wrong") as edit:
        edit.set_container(program.containers[mid].with_(strides=None))
    with pytest.raises(VerifyError, match="lies in memory otherwise"):
        verify(program, program.form)


def test_layout_refuses_what_nothing_copies_and_what_the_caller_gets() -> None:
    program = attention(train=False)
    apply_everywhere(program, [HEADS])
    for m in matches(TileLayout(), program):
        assert_refuses(TileLayout(), m, "the caller gets it")


def test_compiled_attention_keeps_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, with the same masks, within 1e-9."""
    monkeypatch.setenv("SHORTHAUL_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(
        shorthaul.pipeline,
        "BatchTiling",
        lambda dims=1, large=False: BatchTiling(cache=6000 if dims == 2 else 1, least=1024, dims=dims, large=large),
    )
    torch.manual_seed(0)
    model = Attention(16, 4, 0.3).double().train()
    x = torch.randn(3, 10, 16, dtype=torch.float64, requires_grad=True)
    padding = torch.arange(10)[None, None, None, :] < torch.tensor([10, 7, 4])[:, None, None, None]
    program = sh.capture(model, (x, padding), train=True)
    program.optimize(check=True)
    heads = [n for n in loops(program) if n.tile is not None and len(n.tile) == 2]
    assert {n.phase for n in heads} == {"forward", "backward"}
    assert all(isinstance(k, LibraryCall) for n in heads for k in n.body.nodes if "contract" in k.label)
    plain, again = copy.deepcopy(model), x.detach().clone().requires_grad_()
    torch.manual_seed(7)
    with masks(plain):
        expected = plain(again, padding)
    expected.square().mean().backward()
    optimized = sh.optimize(model, strict=True)
    torch.manual_seed(7)
    y = optimized(x, padding)
    y.square().mean().backward()
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)
    pairs = [(n, p.grad, q.grad) for (n, p), q in zip(optimized.named_parameters(), plain.parameters(), strict=True)]
    for name, found, wanted in [*pairs, ("x", x.grad, again.grad)]:
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")
