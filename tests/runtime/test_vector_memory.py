"""The C++ vector header: memory access with guards and tails, reductions over lanes, index arithmetic, random numbers.

On every instruction set that this CPU has; against PyTorch and NumPy, exactly.
"""

import ctypes
import dataclasses
import mmap

import numpy as np
import pytest
import torch

from shorthaul.ir import philox
from shorthaul.runtime.library import CompiledLibrary, build_library
from shorthaul.runtime.machine import machine

pytestmark = pytest.mark.skipif(machine().compiler is None, reason="no C++ compiler on this machine")

LEVELS = ["avx512", "avx2", "baseline"]
AVAILABLE = LEVELS[LEVELS.index(machine().isa) :]


def call(library: CompiledLibrary, name: str, *arguments: torch.Tensor | np.ndarray | int) -> None:
    """Call a C function with the addresses of arrays and with integers."""
    addresses = {
        torch.Tensor: lambda t: ctypes.c_void_p(t.data_ptr()),
        np.ndarray: lambda t: ctypes.c_void_p(t.ctypes.data),
    }
    library.function(name)(*(addresses.get(type(a), ctypes.c_int64)(a) for a in arguments))


MEMORY = """#include "shorthaul_vec.h"
#define EXPORT extern "C" __attribute__((visibility("default")))
#define FOR_TYPE(T, name) \\
EXPORT void copy_##name(const T* a, T* b, int64_t n) { \\
  sh::for_lanes(0, n, [=](auto L, int64_t i) { sh::store(L, b + i, sh::load(L, a + i)); }); } \\
EXPORT void strided_##name(const T* a, T* b, int64_t n) { \\
  sh::for_lanes(0, n, [=](auto L, int64_t i) { sh::store_strided(L, b + 2 * i, 2, sh::load_strided(L, a + 3 * i, 3)); }); } \\
EXPORT void gather_##name(const T* a, const int64_t* x, T* b, int64_t n) { \\
  sh::for_lanes(0, n, [=](auto L, int64_t i) { sh::store(L, b + i, sh::gather(L, a, sh::load(L, x + i))); }); } \\
EXPORT void scatter_##name(const T* a, const int32_t* x, T* b, int64_t n) { \\
  sh::for_lanes(0, n, [=](auto L, int64_t i) { sh::scatter(L, b, sh::load(L, x + i), sh::load(L, a + i)); }); } \\
EXPORT void guarded_##name(const T* a, const bool* c, T* b, int64_t n, T fill) { \\
  sh::for_lanes(0, n, [=](auto L, int64_t i) { \\
    const auto inside = sh::load(L, c + i); \\
    sh::store(L, b + i, sh::load_if(L, inside, a + i, fill)); \\
    sh::store(L, b + n + i, sh::gather_if(L, inside, a, sh::iota(L, i), fill)); \\
    sh::store_if(L, inside, b + 2 * n + i, sh::load(L, a + i)); \\
    sh::scatter_if(L, inside, b + 3 * n, sh::iota(L, i), sh::load(L, a + i)); }); }
FOR_TYPE(float, float) FOR_TYPE(double, double) FOR_TYPE(int8_t, int8) FOR_TYPE(int16_t, int16) FOR_TYPE(int64_t, int64)
FOR_TYPE(bool, bool) FOR_TYPE(sh::bfloat16, bfloat16)
EXPORT void scatter_add(const float* a, const int64_t* x, float* b, int64_t n) {
  sh::for_lanes(0, n, [=](auto L, int64_t i) { sh::scatter_add(L, b, sh::load(L, x + i), sh::load(L, a + i)); }); }
EXPORT void atomic_add(const float* a, const int64_t* x, float* b, int64_t n) {
#pragma omp parallel for schedule(static, 1) num_threads(4)
  for (int64_t block = 0; block < n; block += 64)
    sh::for_lanes(block, block + 64 < n ? block + 64 : n, [=](auto L, int64_t i) {
      sh::atomic_scatter_add(L, b, sh::load(L, x + i), sh::load(L, a + i)); }); }
template <class T> void reduce(const T* a, T* out, int64_t n) {
  auto sum = sh::splat<T>(sh::lanes<sh::W>{}, T(0)), product = sh::splat<T>(sh::lanes<sh::W>{}, T(1));
  auto low = sum, high = sum;
  low = sh::add(low, T(100)); high = sh::sub(high, T(100));
  auto any = sh::lt(sum, T(0)), all = sh::lnot(any);
  sh::for_lanes(0, n, [&](auto L, int64_t i) {
    const auto x = sh::load(L, a + i);
    sum = sh::add(sum, sh::keep(L, x, T(0)));
    product = sh::mul(product, sh::keep(L, x, T(1)));
    low = sh::min(low, sh::keep(L, x, T(100)));
    high = sh::max(high, sh::keep(L, x, T(-100)));
    any = sh::lor(any, sh::keep(L, sh::gt(x, T(2)), false));
    all = sh::land(all, sh::keep(L, sh::gt(x, T(-2)), true));
  });
  out[0] = sh::hsum(sum); out[1] = sh::hprod(product); out[2] = sh::hmin(low); out[3] = sh::hmax(high);
  out[4] = sh::hany(any); out[5] = sh::hall(all);
}
EXPORT void reduce_float(const float* a, float* out, int64_t n) { reduce(a, out, n); }
EXPORT void reduce_double(const double* a, double* out, int64_t n) { reduce(a, out, n); }
EXPORT void reduce_int64(const int64_t* a, int64_t* out, int64_t n) { reduce(a, out, n); }
EXPORT void index(int64_t* q, int64_t* r, int64_t a, int64_t b) { *q = sh_floordiv(a, b); *r = sh_mod(a, b); }
EXPORT void iota(int64_t* out, int64_t n, int64_t base, int64_t stride) {
  sh::for_lanes(0, n, [=](auto L, int64_t i) { sh::store(L, out + i, sh::iota(L, base + i * stride, stride)); }); }
EXPORT void random(const int64_t* index, float* uniform, float* normal, int64_t n, int64_t seed, int64_t offset) {
  sh::for_lanes(0, n, [=](auto L, int64_t i) {
    const auto x = sh::load(L, index + i);
    sh::store(L, uniform + i, sh::philox_uniform(seed, offset, x));
    sh::store(L, normal + i, sh::philox_normal(seed, offset, x)); });
}
EXPORT void random_scalar(const int64_t* index, float* uniform, float* normal, int64_t n, int64_t seed, int64_t offset) {
  for (int64_t i = 0; i < n; ++i) {
    uniform[i] = sh::philox_uniform(seed, offset, index[i]);
    normal[i] = sh::philox_normal(seed, offset, index[i]); }
}
"""


@pytest.fixture(scope="module", params=AVAILABLE)
def memory(request, tmp_path_factory):
    target = dataclasses.replace(machine(), isa=request.param)
    return build_library({"memory.cpp": MEMORY}, target=target, cache_directory=tmp_path_factory.mktemp("memory"))


TYPES = {
    "float": torch.float32,
    "double": torch.float64,
    "int8": torch.int8,
    "int16": torch.int16,
    "int64": torch.int64,
}
TYPES |= {"bool": torch.bool, "bfloat16": torch.bfloat16}


def numbers(dtype: torch.dtype, n: int) -> torch.Tensor:
    return (torch.arange(n) % 3 == 0) if dtype == torch.bool else (torch.arange(n) % 100 + 1).to(dtype)


@pytest.mark.parametrize("name", TYPES)
def test_memory_access_of_every_length(memory, name):
    dtype = TYPES[name]
    for n in range(40):
        a = numbers(dtype, 3 * 40)
        b = torch.zeros(4 * 40 + 1, dtype=dtype)
        call(memory, f"copy_{name}", a, b, n)
        assert torch.equal(b[:n], a[:n])
        assert not b[n:].any(), "nothing is written beyond the end"
        b.zero_()
        call(memory, f"strided_{name}", a, b, n)
        assert torch.equal(b[: 2 * n : 2], a[: 3 * n : 3])
        assert not b[1::2].any()
        assert not b[2 * n :].any()
        index = torch.randint(0, 120, (n,), generator=torch.Generator().manual_seed(n))
        b.zero_()
        call(memory, f"gather_{name}", a, index, b, n)
        assert torch.equal(b[:n], a[index])
        assert not b[n:].any()
        place = torch.randperm(40, generator=torch.Generator().manual_seed(n))[:n]
        b.zero_()
        call(memory, f"scatter_{name}", a, place.int(), b, n)
        assert torch.equal(b[:160].index_select(0, place), a[:n])
        assert int((b != 0).sum()) == int((a[:n] != 0).sum())


@pytest.mark.parametrize("name", ["float", "double", "int64", "int8"])
def test_guarded_access(memory, name):
    dtype = TYPES[name]
    fill = {"float": ctypes.c_float, "double": ctypes.c_double, "int64": ctypes.c_int64, "int8": ctypes.c_int8}[name](7)
    for n in (1, 5, 8, 16, 17, 39):
        a, inside = numbers(dtype, n), torch.arange(n) % 3 != 1
        b = torch.zeros(4 * n, dtype=dtype)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (a, inside, b)]
        memory.function(f"guarded_{name}")(*pointers, ctypes.c_int64(n), fill)
        read, zero = torch.where(inside, a, torch.full_like(a, 7)), torch.where(inside, a, torch.zeros_like(a))
        assert torch.equal(b, torch.cat([read, read, zero, zero]))


@pytest.mark.parametrize("name", ["float", "double", "int8", "int16", "int64", "bool", "bfloat16"])
def test_tails_do_not_touch_the_next_page(memory, name):
    """The array ends where a page ends that nobody may touch: an access beyond it kills the process."""
    page = mmap.PAGESIZE
    area = mmap.mmap(-1, 3 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + page), page, 0) == 0
    try:
        size = TYPES[name].itemsize
        for n in (1, 3, 7, 9, 15, 17):
            end = ctypes.c_void_p(start + page - n * size)
            elsewhere = torch.zeros(64, dtype=TYPES[name])
            memory.function(f"copy_{name}")(end, ctypes.c_void_p(elsewhere.data_ptr()), ctypes.c_int64(n))
            memory.function(f"copy_{name}")(ctypes.c_void_p(elsewhere.data_ptr()), end, ctypes.c_int64(n))
    finally:
        libc.mprotect(ctypes.c_void_p(start + page), page, mmap.PROT_READ | mmap.PROT_WRITE)


def test_scattered_sums(memory):
    n = 1000
    a = torch.arange(n).float()
    index = torch.arange(n) % 13
    expected = torch.zeros(13).index_add_(0, index, a)
    for name in ("scatter_add", "atomic_add"):
        b = torch.zeros(13)
        call(memory, name, a, index, b, n)
        assert torch.equal(b, expected), name  # whole numbers below 2**24: any order gives the same sum


@pytest.mark.parametrize("name", ["float", "double", "int64"])
def test_reductions_over_lanes(memory, name):
    dtype = TYPES[name]
    for n in range(1, 36):
        a = (
            torch.randint(1, 3, (n,), generator=torch.Generator().manual_seed(n)) * (1 - 2 * (torch.arange(n) % 2))
        ).to(dtype)
        a[n // 2] = 3 if n % 3 else 1
        out = torch.zeros(6, dtype=dtype)
        call(memory, f"reduce_{name}", a, out, n)
        want = [a.sum(), a.prod(), a.min(), a.max(), (a > 2).any(), (a > -2).all()]
        assert out.tolist() == [float(w) for w in want], n
    if dtype.is_floating_point:
        a = torch.tensor([1.0, float("nan"), 2.0], dtype=dtype)
        out = torch.zeros(6, dtype=dtype)
        call(memory, f"reduce_{name}", a, out, 3)
        assert out[:4].isnan().all()


def test_index_arithmetic(memory):
    q, r = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    for a in (-(2**40), -8, -7, -1, 0, 1, 6, 7, 2**40 + 1):
        for b in (-7, -3, -1, 1, 3, 7, 2**33):
            call(memory, "index", q, r, a, b)
            assert (q.item(), r.item()) == divmod(a, b)
    out = torch.zeros(37, dtype=torch.int64)
    call(memory, "iota", out, 37, -5, 3)
    assert torch.equal(out, torch.arange(37) * 3 - 5)


def test_philox_has_the_same_bits_in_numpy(memory):
    index = np.concatenate([np.arange(1001), np.arange(1001) * (1 << 33) + 5, np.array([-1, -(2**63), 2**63 - 1])])
    for seed, offset in ((0, 0), (1, 0), (0, 1), (0x123456789ABCDEF, 2**40 + 3), (-1, -2)):
        for suffix in ("", "_scalar"):
            uniform, normal = np.empty(len(index), np.float32), np.empty(len(index), np.float32)
            call(memory, "random" + suffix, index, uniform, normal, len(index), seed, offset)
            assert (uniform == philox.uniform(seed, offset, index)).all()
            np.testing.assert_allclose(normal, philox.normal(seed, offset, index), rtol=2e-5, atol=2e-6)


def test_philox_is_the_published_generator():
    """The known answers of the reference implementation for Philox4x32-10."""
    zeros = philox.words(0, 0, np.zeros(1, np.int64))
    assert [int(w[0]) for w in zeros] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = philox.words(-1, -1, np.full(1, -1))
    assert [int(w[0]) for w in ones] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_random_numbers_are_distributed_as_they_should():
    u, z = philox.uniform(3, 5, np.arange(200_000)), philox.normal(3, 5, np.arange(200_000))
    assert 0 <= u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    assert abs(u.mean() - 0.5) < 0.003
    assert abs(z.mean()) < 0.01
    assert abs(z.std() - 1) < 0.01
