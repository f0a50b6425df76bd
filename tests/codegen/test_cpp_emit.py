"""What the C++ emitter gives besides right numbers: shared kernels, readable text, clear errors, results independent of threads."""

from __future__ import annotations

import ctypes
from pathlib import Path

import cpp_cases as c
import cpp_trees as t
import numpy as np
import pytest
from cpp_cases import array, at, flat, table

from shorthaul.codegen.cpp.emit import emit_kernel, emit_source
from shorthaul.ir.builder import fresh_params
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import int64
from shorthaul.ir.memlet import Indirect, Memlet
from shorthaul.ir.nodes import Map, Origin
from shorthaul.symbolic import Symbol


def double(x: str, y: str, n: object, **changes: object) -> tuple[Map, dict[str, Container]]:
    cs = table(array(x, (n,)), array(y, (n,)))
    (i,) = fresh_params((n,))
    m = flat((i,), {"v": at(x, i)}, {"w": at(y, i)}, lambda v: {"w": v * 2.0}, cs)
    return m.with_(**changes), cs


def test_equal_computations_are_one_kernel() -> None:
    a = emit_kernel(*double("x", "y", 100))
    b = emit_kernel(*double("other", "names", 100, origins=(Origin("block.1", "file.py:3", "aten.mul"),), name="renamed"))
    assert a.name == b.name
    assert a.arguments == ("x", "y") and b.arguments == ("other", "names")
    assert emit_kernel(*double("x", "y", 101)).name != a.name
    sources = emit_source([a, b])
    assert sum(text.count(f"void {a.name}(") for text in sources.values()) == 1


def test_symbolic_sizes_of_any_name_are_one_kernel() -> None:
    n, m = Symbol("N", lower=1), Symbol("batch", lower=1)
    a, b = emit_kernel(*double("x", "y", n)), emit_kernel(*double("x", "y", m))
    assert a.name == b.name and a.sizes == (n,) and b.sizes == (m,)


def test_source_names_the_origin_and_the_containers() -> None:
    k = emit_kernel(*double("x", "y", 100, origins=(Origin("block.1.act", "net.py:12", "aten.mul"),), name="mul"))
    assert "block.1.act (aten.mul) at net.py:12" in k.source
    assert "p[0] = x: float32[100]" in k.source


def test_translation_units_are_balanced() -> None:
    kernels = [emit_kernel(*double("x", "y", n)) for n in range(100, 140)]
    units = emit_source(kernels, 4)
    assert len(units) == 4
    lengths = [len(text) for text in units.values()]
    assert max(lengths) < 1.3 * min(lengths)
    assert all('#include "shorthaul_vec.h"' in text for text in units.values())


def test_elementwise_maps_become_one_flat_loop() -> None:
    """Whatever the layout, as long as it is the same everywhere."""
    shape = (4, 24, 10, 12)
    cs = table(array("x", shape, order=(0, 2, 3, 1)), array("y", shape, order=(0, 2, 3, 1)))
    p = fresh_params(shape)
    k = emit_kernel(flat(p, {"x": at("x", *p)}, {"y": at("y", *p)}, lambda x: {"y": x + 1.0}, cs), cs)
    assert k.source.count("for (") + k.source.count("for_lanes(") == 1, k.source


def test_missing_components_of_a_combiner_are_named() -> None:
    cs = table(array("x", (10,)), array("m", ()))
    (i,) = fresh_params((10,))
    m = flat((i,), {"x": at("x", i)}, {"mean": at("m", combine="welford")}, lambda x: {"mean": x}, cs)
    with pytest.raises(ValueError, match="welford needs writes named count, mean, m2; missing count, m2"):
        emit_kernel(m, cs)


def test_undeclared_containers_and_symbols_are_named() -> None:
    m, cs = double("x", "y", 10)
    with pytest.raises(KeyError, match=r"container y .* is not declared"):
        emit_kernel(m, {"x": cs["x"]})
    (i,) = fresh_params((10,))
    bad = flat((i,), {"x": Memlet("x", (Indirect("nothing"),))}, {"y": at("y", i)}, lambda x: {"y": x}, cs)
    with pytest.raises(ValueError, match="<nothing> names no read"):
        emit_kernel(bad, cs)


def test_a_result_without_a_combiner_that_several_iterations_write_is_refused() -> None:
    cs = table(array("x", (100, 20)), array("y", (100,)))
    i, j = fresh_params((100, 20))
    m = flat((i, j), {"x": at("x", i, j)}, {"y": at("y", i)}, lambda x: {"y": x}, cs)
    with pytest.raises(ValueError, match="written by several iterations without a combiner"):
        emit_kernel(m, cs)


def test_shared_results_are_written_where_the_map_reaches_only() -> None:
    """A combining map sets what no iteration reaches to the identity, unless other maps write there."""
    case = c.every_second(5)
    alone, beside = emit_kernel(case.map, case.containers), emit_kernel(case.map, case.containers, shared={"s"})
    library = load([alone, beside])
    x = np.ones((5, 4), np.float32)
    for kernel, gap in ((alone, 0.0), (beside, 7.0)):
        s = np.full(11, 7.0, np.float32)
        arrays = {"x": x, "s": s}
        call(library, kernel, [arrays[n] for n in kernel.arguments])
        np.testing.assert_array_equal(s[0:10:2], 4.0)
        np.testing.assert_array_equal(s[1:10:2], gap)


@pytest.mark.parametrize(
    "case",
    [c.full_reduction(300_000), c.column_reduction(5000, 40), c.statistics(8, 24, 900, True),
     t.depthwise_weights(6, 24, 16, 16, 3, 1, True), t.layer_norm_backward(2000, 64), c.scatter_add(3000, 50, 64)],
    ids=lambda case: case.name,
)  # fmt: skip
def test_results_do_not_depend_on_the_number_of_threads(case: c.Case) -> None:
    kernel = emit_kernel(case.map, case.containers)
    library = load([kernel])
    rng = np.random.default_rng(3)
    written = case.map.written_containers()
    inputs = {n: c.random_input(k, case, rng) for n, k in case.containers.items() if n not in written}
    results = []
    openmp = ctypes.CDLL(str(_openmp()))
    before = openmp.omp_get_max_threads()
    try:
        for threads in (1, 2, 3):
            openmp.omp_set_num_threads(threads)
            results.append(c.run_kernel(kernel, library, case, inputs))
    finally:
        openmp.omp_set_num_threads(before)
    for name in written:
        for other in results[1:]:
            np.testing.assert_array_equal(results[0][name], other[name])


def test_long_sums_stay_accurate() -> None:
    """A float32 sum of many values of one sign loses no more than pairwise summation does."""
    n = 3_000_000
    case = c.full_reduction(n)
    kernel = emit_kernel(case.map, case.containers)
    library = load([kernel])
    x = np.random.default_rng(0).random(n).astype(np.float32) + 0.5
    s = np.zeros((), np.float32)
    call(library, kernel, [x, s])
    exact = x.sum(dtype=np.float64)
    assert abs(float(s) - exact) / exact < 3e-7


def test_empty_domains() -> None:
    n = Symbol("N", lower=0)
    cs = table(array("x", (n, 20)), array("s", (20,)))
    i, j = fresh_params((n, 20))
    kernel = emit_kernel(flat((i, j), {"x": at("x", i, j)}, {"s": at("s", j, combine="sum")}, lambda x: {"s": x}, cs), cs)
    library = load([kernel])
    s = np.full(20, np.nan, np.float32)
    call(library, kernel, [np.zeros((0, 20), np.float32), s], [0])
    np.testing.assert_array_equal(s, 0)


def test_indices_of_int64_reach_far() -> None:
    """Addresses are 64 bits wide: the text multiplies in int64_t."""
    cs = table(array("idx", (4,), int64), array("w", (100, 3)), array("y", (4, 3)))
    i, j = fresh_params((4, 3))
    m = flat((i, j), {"idx": at("idx", i), "w": Memlet("w", (Indirect("idx"), j))}, {"y": at("y", i, j)}, lambda idx, w: {"y": w}, cs)
    assert "int64_t(" in emit_kernel(m, cs).source


_CACHE: list[Path] = []


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    _CACHE.append(tmp_path_factory.mktemp("kernels"))


def _openmp() -> Path:
    from shorthaul.runtime.build import openmp_runtime

    found = openmp_runtime()
    if found is None:
        pytest.skip("PyTorch has no OpenMP runtime here")
    return found


def load(kernels: list) -> ctypes.CDLL:
    from shorthaul.runtime.build import build

    return ctypes.CDLL(str(build(emit_source(kernels, 1), symbols=[k.name for k in kernels], cache_directory=_CACHE[-1])))


def call(library: ctypes.CDLL, kernel, arrays: list[np.ndarray], sizes: tuple | list = ()) -> None:  # type: ignore[no-untyped-def]
    pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
    values = (ctypes.c_int64 * max(1, len(sizes)))(*sizes)
    getattr(library, kernel.name)(pointers, values)


