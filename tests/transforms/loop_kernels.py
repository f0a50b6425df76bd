"""Small programs of one kernel, whose loops the tests of level 1 change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from shorthaul.ir.builder import at, fresh_params, make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float64
from shorthaul.ir.memlet import Memlet
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ir.scalar import Scalar
from shorthaul.ir.verify import verify
from shorthaul.pipeline import STAGES

Access = tuple[tuple[int, ...], Callable[..., Memlet]]


def kernel(sizes: Sequence[int], reads: dict[str, Access], writes: dict[str, Access], code: Callable[..., dict[str, Scalar]]) -> Program:
    """A scheduled program of one flat map; each container has its shape and its memlet over the parameters."""
    p = Program("loops", Form.MAPS)
    with p.edit("build") as edit:
        for name, (shape, _) in reads.items():
            edit.add_container(Container(name, float64, shape, role="input"))
        for name, (shape, _) in writes.items():
            edit.add_container(Container(name, float64, shape, role="output"))
        q = fresh_params(sizes)
        memlets = [{k: memlet(k, *q) for k, (_, memlet) in side.items()} for side in (reads, writes)]
        edit.add(make_map(q, *memlets, code, dict.fromkeys(reads, float64), name="kernel"))
        edit.set_signature(Signature(tuple(reads), tuple(writes)))
    STAGES["Schedule"](p)
    verify(p)
    return p


def transposition(n: int = 32, m: int = 48) -> Program:
    """y[i, j] = x[j, i]² + 1."""
    return kernel((n, m), {"x": ((m, n), lambda c, i, j: at(c, j, i))}, {"y": ((n, m), lambda c, i, j: at(c, i, j))},
                  lambda x: {"y": x * x + 1})  # fmt: skip


def product(n: int = 12, m: int = 20, k: int = 16) -> Program:
    """y[i, j] = the sum of a[i, k] b[k, j]."""
    return kernel((n, m, k), {"a": ((n, k), lambda c, i, j, k: at(c, i, k)), "b": ((k, m), lambda c, i, j, k: at(c, k, j))},
                  {"y": ((n, m), lambda c, i, j, k: at(c, i, j, combine="sum"))}, lambda a, b: {"y": a * b})  # fmt: skip


def statistics(n: int = 8, m: int = 20, k: int = 24) -> Program:
    """Sums and maxima of x over its first and last dimension, and a copy."""
    read = ((n, m, k), lambda c, i, j, k: at(c, i, j, k))
    return kernel((n, m, k), {"x": read}, {"s": ((m,), lambda c, i, j, k: at(c, j, combine="sum")),
                  "t": ((m,), lambda c, i, j, k: at(c, j, combine="max")), "y": read}, lambda x: {"s": x, "t": x, "y": x * 2})  # fmt: skip


def prefixes(n: int = 8, m: int = 12) -> Program:
    """y[i, j] = the sum of x[i, 0..j]."""
    return kernel((n, m), {"x": ((n, m), lambda c, i, j: at(c, i, j))},
                  {"y": ((n, m), lambda c, i, j: at(c, i, j, combine="sum", scan=j))}, lambda x: {"y": x})  # fmt: skip


def check(p: Program, name: str, **parameters: Any) -> None:
    """Apply by hand: the numbers stay, interpreted and compiled; no bytes are saved, as claimed; undo gives the old program."""
    from compiled import assert_compiled
    from transform_nets import assert_same, results, values

    from shorthaul.analysis.movement import movement
    from shorthaul.ir.fingerprint import fingerprint
    from shorthaul.workbench import apply

    inputs = values(p, 3)
    expected = results(p, inputs)
    before, moved = fingerprint(p), movement(p).bytes
    apply(p, name, **parameters)
    assert fingerprint(p) != before
    verify(p)
    assert_same(p, inputs, expected)
    assert_compiled(p, inputs, expected)
    assert moved - movement(p).bytes == p.log[-1].notes["saves"] == 0
    after = fingerprint(p)
    p.undo()
    assert fingerprint(p) == before
    apply(p, name, **parameters)
    assert fingerprint(p) == after
