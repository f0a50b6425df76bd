"""Machines as their bandwidth, cache and arithmetic, and the time that a kernel needs at least on one (the roofline model).

Williams, Waterman, Patterson 2009: a kernel takes at least the time to move its bytes and at least the time to compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Machine:
    """bandwidth: bytes per second between memory and the last cache. cache: bytes of that cache. flops: operations per second by
    dtype, for contractions (`contraction_flops`, tensor cores, in full precision of the dtype) and for everything else (`flops`).
    launch: seconds that starting a kernel costs. levels: the caches from the smallest, each with its bytes and bandwidth, where known: a
    kernel that works on less than a cache holds is taken to find it there. processors: multiprocessors of a GPU (0: no GPU)."""

    name: str
    bandwidth: float
    cache: int
    flops: Mapping[str, float] = field(default_factory=dict)
    contraction_flops: Mapping[str, float] = field(default_factory=dict)
    launch: float = 0.0
    levels: tuple[tuple[str, int, float], ...] = ()
    processors: int = 0

    def bandwidth_of(self, bytes: float) -> float:
        """Bytes per second for a kernel that moves so many: that of the first cache that holds them."""
        return next((bandwidth for _, size, bandwidth in self.levels if bytes <= size), self.bandwidth)

    def peak(self, dtype: str, contraction: bool = False) -> float:
        """Operations per second; float32's where the dtype has no entry."""
        table = self.contraction_flops if contraction and self.contraction_flops else self.flops
        return table.get(dtype, table.get("float32", 0.0))

    def time(self, bytes: float, flops: float = 0.0, dtype: str = "float32", contraction: bool = False) -> float:
        """Least seconds for a kernel that moves `bytes` and computes `flops` operations."""
        peak = self.peak(dtype, contraction)
        return self.launch + max(bytes / self.bandwidth_of(bytes), flops / peak if peak else 0.0)


_MIB = 1 << 20
# GPU numbers are the vendor's data sheets (SXM parts, dense, no sparsity); float32 contractions without TF32.
MACHINES: dict[str, Machine] = {
    m.name: m
    for m in (
        Machine("cpu", 20e9, 32 * _MIB, {"float32": 100e9, "float64": 50e9, "bfloat16": 100e9},
                {"float32": 150e9, "float64": 75e9, "bfloat16": 300e9}, 2e-6),
        Machine("a100", 2.0e12, 40 * _MIB, {"float32": 19.5e12, "float64": 9.7e12, "bfloat16": 39e12, "float16": 78e12},
                {"float32": 19.5e12, "float64": 19.5e12, "bfloat16": 312e12, "float16": 312e12}, 3e-6, processors=108),
        Machine("h100", 3.35e12, 50 * _MIB, {"float32": 67e12, "float64": 34e12, "bfloat16": 134e12, "float16": 134e12},
                {"float32": 67e12, "float64": 67e12, "bfloat16": 989e12, "float16": 989e12}, 3e-6, processors=132),
        Machine("h200", 4.8e12, 50 * _MIB, {"float32": 67e12, "float64": 34e12, "bfloat16": 134e12, "float16": 134e12},
                {"float32": 67e12, "float64": 67e12, "bfloat16": 989e12, "float16": 989e12}, 3e-6, processors=132),
    )
}  # fmt: skip


def machine(name: str | Machine | None = None) -> Machine:
    """A machine by name ("cpu", the default: two cores of a server; "a100", "h100", "h200"); ValueError names the known ones."""
    if isinstance(name, Machine):
        return name
    found = MACHINES.get(name or "cpu")
    if found is None:
        raise ValueError(f"no machine is called {name!r}; known are {', '.join(MACHINES)}, or pass a Machine")
    return found
