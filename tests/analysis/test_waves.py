"""What a GPU library's matrix products read again: against DRAM counters of an H100, and where nothing is."""

from __future__ import annotations

import pytest

from shorthaul.analysis.movement import movement
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import bfloat16
from shorthaul.ir.memlet import full
from shorthaul.ir.nodes import LibraryCall
from shorthaul.ir.program import Form, Program, Signature


def product(equation: str, **sizes: int) -> Program:
    p = Program("product")
    operands, y = equation.split("->")
    shapes = dict(zip("aby", (*operands.split(","), y), strict=True))
    with p.edit("Build") as edit:
        made = {k: edit.add_container(Container(k, bfloat16, tuple(sizes[c] for c in letters), role="output" if k == "y" else "input"))
                for k, letters in shapes.items()}  # fmt: skip
        edit.add(LibraryCall("contract", {"equation": equation, "alpha": 1.0, "beta": 1.0}, reads={k: full(made[k]) for k in "ab"},
                             writes={"y": full(made["y"])}))  # fmt: skip
        edit.set_signature(Signature(("a", "b"), ("y",)))
        edit.set_form(Form.SCHEDULED)
    return p


# BERT-large's products by the vocabulary, 16384 tokens: megabytes read that the counters of an H100 showed
COUNTED = {
    "logits": ("mk,nk->mn", {"m": 16384, "n": 30528, "k": 1024}, 628.0),
    "gradient of the tokens": ("mn,nk->mk", {"m": 16384, "n": 30528, "k": 1024}, 1281.8),
    "gradient of the weight": ("mn,mk->nk", {"m": 16384, "n": 30528, "k": 1024}, 1784.6),
}


@pytest.mark.parametrize("name", COUNTED)
def test_large_products_as_counted(name: str) -> None:
    equation, sizes, megabytes = COUNTED[name]
    found = movement(product(equation, **sizes), machine="h100").bytes_read / 1e6  # type: ignore[operator]
    assert abs(found / megabytes - 1) < 0.30
    once = movement(product(equation, **sizes)).bytes_read / 1e6  # type: ignore[operator]
    assert found > once == pytest.approx(2e-6 * sum(_size(s, sizes) for s in equation.split("->")[0].split(",")))


def _size(letters: str, sizes: dict[str, int]) -> int:
    n = 1
    for c in letters:
        n *= sizes[c]
    return n


@pytest.mark.parametrize(("equation", "sizes"), [("mk,nk->mn", {"m": 2048, "n": 2048, "k": 1024}),  # all of it is in the cache
                                                 ("mk,nk->mn", {"m": 1 << 20, "n": 256, "k": 256})])  # the narrow operand is
def test_what_stays_in_the_cache_is_read_once(equation: str, sizes: dict[str, int]) -> None:
    p = product(equation, **sizes)
    assert movement(p, machine="h100").bytes == movement(p).bytes
