"""Measuring this machine for the cost model: bandwidth by level of memory, arithmetic, what starting a kernel costs.

`measure` takes some seconds; `shorthaul doctor --measure` calls it and keeps the result in the cache directory, where `described` finds
it. Without it `described` gives the description that ships for the kind of machine.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shorthaul.analysis.roofline import MACHINES, Machine

from .build import build
from .cache import default_directory
from .library import CompiledLibrary
from .machine import machine, threads

FILE = "machine.json"
FORMAT = 1
LARGEST = 1 << 28  # bytes of the arrays for the bandwidth of memory: more than most last caches
SECONDS = 0.15  # for each number

SOURCE = r"""
#include <stdint.h>
#include <omp.h>
// a = b + s c over an own part of the arrays for each thread, `times` times: what a fused elementwise kernel does
extern "C" __attribute__((visibility("default"))) void sh_triad(float* a, const float* b, const float* c, int64_t n, int64_t times) {
  #pragma omp parallel
  {
    const int64_t part = n / omp_get_num_threads(), first = part * omp_get_thread_num();
    for (int64_t t = 0; t < times; ++t) {
      float* p = a + first; const float *q = b + first, *r = c + first; const float s = 0.5f + t;
      #pragma omp simd
      for (int64_t i = 0; i < part; ++i) p[i] = q[i] + s * r[i];
      __asm__ volatile("" ::: "memory");
    }
  }
}
// ten independent chains of multiply-add, which with two constants fit the registers of any instruction set
#define CHAINS(NAME, T)                                                                                                        \
  extern "C" __attribute__((visibility("default"))) void NAME(T* out, int64_t times) {                                         \
    typedef T V __attribute__((vector_size(SH_VECTOR)));                                                                       \
    _Pragma("omp parallel") {                                                                                                  \
      const T seed = T(omp_get_thread_num() + 1);                                                                              \
      V x[10], scale = V{} + T(0.999) , shift = V{} + seed;                                                                     \
      for (int k = 0; k < 10; ++k) x[k] = shift * T(k);                                                                         \
      for (int64_t t = 0; t < times; ++t)                                                                                      \
        for (int k = 0; k < 10; ++k) x[k] = x[k] * scale + shift;                                                               \
      V sum = V{};                                                                                                             \
      for (int k = 0; k < 10; ++k) sum += x[k];                                                                                 \
      out[omp_get_thread_num()] = sum[0] + sum[1];                                                                             \
    }                                                                                                                          \
  }
CHAINS(sh_fma_float, float)
CHAINS(sh_fma_double, double)
extern "C" __attribute__((visibility("default"))) void sh_nothing() {
  #pragma omp parallel
  { __asm__ volatile("" ::: "memory"); }
}
"""


def machine_key(device: torch.device) -> str:
    """What measured times depend on: the processor and the threads that kernels run with, or the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    m = machine()
    return f"{m.vendor} {m.model}, {m.isa}, {m.cores} cores, {threads()} threads"


def described(device: torch.device | None = None) -> Machine:
    """This machine for the cost model: as it was measured, else what ships for its kind (a GPU by its name, "cpu" otherwise)."""
    device = device or torch.device("cpu")
    found = _stored().get(machine_key(device))
    if found is not None:
        return Machine(**{**found, "levels": tuple(tuple(level) for level in found["levels"])})
    name = machine_key(device).lower() if device.type == "cuda" else "cpu"
    return next((m for k, m in MACHINES.items() if k in name), MACHINES["h100" if device.type == "cuda" else "cpu"])


def _path() -> Path:
    return default_directory() / FILE


def _stored() -> dict[str, Any]:
    try:
        value = json.loads(_path().read_text())
    except (OSError, ValueError):
        return {}
    return value["machines"] if isinstance(value, dict) and value.get("format") == FORMAT else {}


def keep(found: Machine) -> Path:
    """Write a measured machine where `described` looks for it; returns the file."""
    machines = {**_stored(), machine_key(torch.device("cpu")): dataclasses.asdict(found)}
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(json.dumps({"format": FORMAT, "machines": machines}, indent=1))
    draft.replace(path)
    return path


def measure(seconds: float = SECONDS) -> Machine:
    """Measure this machine's CPU with as many threads as kernels use. seconds: for each number. Raises NoCompiler without a compiler."""
    library = CompiledLibrary(build({"measure.cpp": SOURCE}, symbols=["sh_triad"], flags=("-O3", f"-DSH_VECTOR={machine().vector_bytes}")))
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    triad = library.function("sh_triad", [pointer, pointer, pointer, integer, integer])
    caches, cores = machine().caches, threads()
    arrays = [torch.zeros(LARGEST // 12, dtype=torch.float32) for _ in range(3)]
    addresses = [a.data_ptr() for a in arrays]

    def bandwidth(bytes: int) -> float:
        n = max(256, bytes // 12)
        times = max(1, (1 << 22) // n)
        return n * 12 * times / _fastest(lambda: triad(*addresses, n, times), seconds)

    memory = bandwidth(LARGEST)
    levels = []
    for name, size in caches.items():
        whole = size * (cores if name != "L3" else 1)  # every core has its own, but for the last
        if name.startswith("L") and whole < LARGEST // 2:
            levels.append((name, whole, max(memory, bandwidth(whole // 2))))
    out = torch.zeros(1024, dtype=torch.float64)
    flops = {}
    for name, symbol in (("float32", "sh_fma_float"), ("float64", "sh_fma_double")):
        f = library.function(symbol, [pointer, integer])
        width = machine().vector_bytes // (4 if name == "float32" else 8)
        # a multiply-add counts once: most operations of kernels are no such pair
        flops[name] = 10 * width * 20000 * cores / _fastest(lambda f=f: f(out.data_ptr(), 20000), seconds)  # type: ignore[misc]
    contraction = {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        a = torch.rand(512, 512, dtype=torch.float32).to(dtype)
        contraction[str(dtype).removeprefix("torch.")] = 2 * 512**3 / _fastest(lambda a=a: a @ a, seconds)  # type: ignore[misc]
    flops["bfloat16"] = flops["float32"]
    nothing = library.function("sh_nothing", [])
    last = max((size for _, size, _ in levels), default=max(caches.values(), default=32 << 20))
    return Machine("this machine", memory, last, flops, contraction, _fastest(nothing, seconds), tuple(levels))


def _fastest(run: Callable[[], object], seconds: float) -> float:
    """Seconds a call: the lower quartile, since whatever disturbs only makes it slower."""
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 10000):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.quantiles(times, n=4)[0]


def table(found: Machine) -> str:
    """What was measured, as text."""
    rows = [("Memory bandwidth", f"{found.bandwidth / 1e9:.1f} GB/s")]
    rows += [(f"{name} bandwidth", f"{rate / 1e9:.1f} GB/s ({size // 1024} KiB)") for name, size, rate in found.levels]
    rows += [(f"Arithmetic, {d}", f"{v / 1e9:.1f} GFLOP/s") for d, v in found.flops.items() if d != "bfloat16"]
    rows += [(f"Matrix products, {d}", f"{v / 1e9:.1f} GFLOP/s") for d, v in found.contraction_flops.items()]
    rows.append(("Starting a kernel", f"{found.launch * 1e6:.2f} µs"))
    width = max(len(a) for a, _ in rows)
    return "\n".join(f"{a:{width}}  {b}" for a, b in rows)
