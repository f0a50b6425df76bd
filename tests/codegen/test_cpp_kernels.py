"""Kernels of the C++ target against the interpreter in float64: every class of map, odd sizes, layouts and dtypes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import cpp_cases as c
import cpp_trees as t
import numpy as np
import pytest
from cpp_cases import Case

from shorthaul.codegen.cpp.emit import Kernel
from shorthaul.codegen.cpp.plan import Limits
from shorthaul.ir.dtypes import bfloat16, float16, float32, float64, int8, int32, int64, uint8


def _cases() -> Iterator[Case]:
    for dtype in (float32, float64, bfloat16, float16, int64, int32, int8, uint8):
        for n in (1, 7, 17, 1000) if dtype is float32 else (17, 100):
            yield c.elementwise(dtype, n)
    yield c.elementwise(float32, 200_000)
    for dtype in (float32, float64):
        yield from c.all_float_operations(dtype)
    for dtype in (int64, int32, int8, uint8):
        yield from c.integer_operations(dtype)
    yield from c.casts()
    for sizes in ((2, 7, 5), (3, 16, 40), (1, 24, 33), (8, 100, 49)):
        for layout in ((0, 1, 2), (0, 2, 1), (1, 0, 2)):
            yield c.broadcast(sizes, layout)
    for shape in ((7, 5), (33, 17), (100, 64)):
        yield c.transposed(shape)
    yield c.transposed((40, 41), float64)
    for n in (1, 19):
        yield c.gaps(n)
        yield c.in_place(n)
        yield c.positions(n)
        yield c.random_numbers(n)
        yield c.reversed_roll(n)
        yield c.guarded_write(n)
        yield c.compared_conditions(5, n, "argmax")
        yield c.compared_conditions(n, 21, "argmin")
        yield c.every_second(n)
        yield c.scatter(n)
        yield t.chain_of_tasklets(n)
    for rows, cols in ((1, 1), (7, 17), (5, 1000), (300, 3), (2, 40_000), (2000, 33)):
        yield c.row_reduction(rows, cols)
        yield c.column_reduction(rows, cols)
    for rows, n, divisor in ((3, 8, 2), (2, 9, 2), (2, 6, 6), (50, 64, 4), (1, 1000, 7)):
        yield c.divided_sum(rows, n, divisor)
    yield c.divided_sum(4, 12, 3, float64)
    for n, window, stride in ((9, 3, 2), (40, 5, 1), (7, 2, 2), (300, 4, 3)):
        yield c.overlapping_sum(n, window, stride)
    yield c.overlapping_sum(9, 3, 2, "max")
    for rows, n, cols in ((5, 5, 25), (1, 50, 7), (3, 7, 300)):
        yield t.gathered_windows(rows, n, cols, 3)
    for n, k, step in ((12, 4, 6), (12, 4, 2), (50, 7, 1)):
        yield c.folded_sum(n, k, step)
    for combiner in ("max", "min", "prod"):
        yield c.row_reduction(9, 50, combiner)
        yield c.column_reduction(50, 9, combiner)
    for dtype in (float64, int64, int32):
        yield c.row_reduction(9, 50, "sum", dtype)
        yield c.column_reduction(500, 19, "sum", dtype)
        yield c.column_reduction(40, 19, "max", dtype)
    for n in (1, 100, 100_000):
        yield c.full_reduction(n)
        yield c.full_reduction(n, "max")
    yield c.full_reduction(100_000, "sum", float64)
    for combiner in ("any", "all"):
        for axis in (0, 1):
            yield c.condition_reduction(37, 70, combiner, axis)
    for channels_last in (True, False):
        yield c.statistics(3, 5, 7, channels_last)
        yield c.statistics(4, 24, 100, channels_last)
        yield c.statistics(2, 64, 33, channels_last)
        yield t.two_dimensional_rows(2, 20, 9, channels_last)
        yield t.two_dimensional_rows(3, 5, 100, channels_last)
        for shape in ((1, 3, 5, 6), (2, 24, 9, 8), (2, 16, 12, 13)):
            for k, s in ((3, 1), (3, 2), (5, 1), (5, 2)):
                yield t.depthwise(*shape, k, s, channels_last)
                if shape[1] != 16:
                    yield t.depthwise_weights(*shape, k, s, channels_last)
                    yield t.depthwise_data(*shape, k, s, channels_last)
        yield t.max_pool(2, 20, 9, 10, channels_last)
        yield t.convolution(2, 5, 18, 6, 7, 3, channels_last)
    yield t.depthwise(2, 20, 7, 9, 3, 1, True, float64)
    for shape in ((2, 20, 9, 8), (3, 16, 12, 7)):
        for k, s in ((3, 1), (3, 2), (5, 1), (5, 2)):
            yield t.image_forward(*shape, k, s, staged=False)
            yield t.image_forward(*shape, k, s, staged=True)
            yield t.image_backward(*shape, k, s)
    for k, s in ((3, 1), (5, 2)):
        yield t.depthwise_fused(2, 24, 9, 11, k, s)
    for combiner in ("welford", "argmax", "argmin", "online_softmax"):
        for axis in (0, 1, 2):
            yield c.tuple_combiner(combiner, 13, 40, axis)
        yield c.tuple_combiner(combiner, 3000, 17, 1)
    for shape in ((5, 7, 9), (33, 48, 100), (64, 10, 300)):
        yield c.contraction(*shape)
        yield c.contraction(*shape, transpose_b=True)
    yield c.contraction(9, 21, 30, dtype=float64)
    for axis in (0, 1):
        yield c.half_reduction(70, 130, axis)
        for shape in ((5, 33), (40, 7)):
            yield c.prefix(*shape, axis)
            yield c.prefix(*shape, axis, "max")
        yield c.prefix(6, 21, axis, "sum", int64)
    yield c.embedding(50, 11, 33)
    yield c.embedding(3, 1000, 1)
    yield c.scatter_add(200, 11, 33)
    yield c.scatter_add(5, 3, 1)
    yield c.histogram(1000, 13)
    yield c.pick(40, 10)
    for n, m in ((1, 1), (5, 40), (20, 17)):
        yield c.padded(n, m)
    yield c.padded(6, 30, bfloat16)
    yield c.padded(6, 30, int32)
    for rows, cols in ((1, 1), (5, 7), (9, 100), (3, 1000), (40, 16)):
        yield t.softmax(rows, cols)
        yield t.softmax(rows, cols, transposed_layout=True)
        yield t.layer_norm(rows, cols)
        yield t.layer_norm_backward(rows, cols)
    yield t.layer_norm(50, 9, transposed_layout=True)
    yield t.layer_norm(2, 20_000)
    yield t.softmax(6, 50, dtype=bfloat16)
    yield t.softmax(6, 50, dtype=float64)
    yield t.layer_norm_backward(500, 40)
    for n in (40, 500):
        yield t.table_beside_rows(n)
    for n, tile in ((10, 4), (33, 8)):
        yield t.ragged(n, tile)
    for kind in ("elementwise", "columns", "rows", "full", "mixed"):
        for n in (1, 100):
            yield c.symbolic(kind, n)


# small enough that even the smallest test is cut into pieces, tiles and blocks of sums
SMALL = Limits(row_tile=3, inner_reduction=4, chunk=32, long_sum=32, parallel_work=-1, pieces=5, enough=4)

CASES = {case.name: case for case in _cases()}


PIECES = [
    case
    for case in CASES.values()
    if not case.name.startswith(("casts", "integer op", "elementwise"))
    and not case.name.endswith((" lanes", " plain"))
    and "40000" not in case.name
]


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Kernel], ctypes.CDLL]:
    cases = _that_run(request, test_kernel_agrees_with_interpreter, "name")
    return c.build_all([CASES[name] for name in cases], tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def built_in_pieces(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Kernel], ctypes.CDLL]:
    cases = _that_run(request, test_kernel_in_pieces_agrees_with_interpreter, "case")
    return c.build_all(cases, tmp_path_factory.mktemp("kernels"), limits=SMALL)


def _that_run(request: pytest.FixtureRequest, test: Callable[..., None], parameter: str) -> list[Any]:
    """The parameters of a test that this session runs: only their kernels are compiled."""
    items: list[Any] = [item for item in request.session.items if getattr(item, "function", None) is test]
    return [item.callspec.params[parameter] for item in items if not any(item.iter_markers("skip"))]


def _check(case: Case, built: tuple[dict[str, Kernel], ctypes.CDLL]) -> None:
    kernels, library = built
    rng = np.random.default_rng(7)
    written = case.map.written_containers()
    inputs = {n: c.random_input(k, case, rng) for n, k in case.containers.items() if n in case.map.read_containers() and n not in written}
    got = c.run_kernel(kernels[case.name], library, case, inputs)
    want = c.oracle(case, inputs)
    for name in sorted(written):
        c.compare(case, name, got[name], want[name])


@pytest.mark.parametrize("name", CASES)
def test_kernel_agrees_with_interpreter(name: str, built: tuple[dict[str, Kernel], ctypes.CDLL]) -> None:
    _check(CASES[name], built)


@pytest.mark.parametrize("case", PIECES, ids=lambda case: case.name)
def test_kernel_in_pieces_agrees_with_interpreter(case: Case, built_in_pieces: tuple[dict[str, Kernel], ctypes.CDLL]) -> None:
    _check(case, built_in_pieces)
