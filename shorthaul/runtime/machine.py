"""What this machine offers: instruction set, cores, caches, C++ compiler, GPU, cache directory.

Nothing here needs torch at import time; the parts that ask torch do so when they are called. ``machine()`` is computed
once per process and is what compile flags and cache keys are made from.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from shorthaul.analysis.processor import processor_info

# Instruction-set levels for x86-64, widest first: the CPU flags each needs and the compiler flags that select it.
# Named instead of -march=native: the cache key must say for what a library was built. Single -m flags instead of
# -march=x86-64-v4: compilers older than that name take them too.
_AVX512 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_AVX2 = ("avx2", "fma", "bmi1", "bmi2", "f16c")
_AVX2_FLAGS = ("-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mf16c", "-mtune=generic")
_LEVELS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "avx512": (_AVX2 + _AVX512, (*_AVX2_FLAGS, *(f"-m{name}" for name in _AVX512), "-mprefer-vector-width=512")),
    "avx2": (_AVX2, _AVX2_FLAGS),
    "baseline": ((), ()),
}
_EXTRA_FLAGS = ("avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8")


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: the path to run, its family (``gcc`` or ``clang``) and its first version line."""

    path: str
    family: str
    version: str


@dataclass(frozen=True)
class Machine:
    """A description of the CPU and its compiler. Sizes are in bytes."""

    vendor: str
    model: str
    architecture: str
    isa: str  # "avx512", "avx2" or "baseline"
    extensions: tuple[str, ...]  # of avx512_bf16, amx_bf16, ...: present in the CPU beyond the level
    cores: int  # usable by this process: affinity mask and container quota
    caches: dict[str, int] = field(hash=False)  # "L1d", "L2", "L3": size of one cache
    compiler: Compiler | None

    @property
    def isa_flags(self) -> tuple[str, ...]:
        """Compiler flags that select the instruction set."""
        return _LEVELS[self.isa][1]

    @property
    def kind(self) -> str:
        """What compiled code depends on; two machines of one kind can share a cache."""
        return f"{self.architecture}-{self.isa}"

    @property
    def vector_bytes(self) -> int:
        """Bytes in a SIMD register."""
        return {"avx512": 64, "avx2": 32}.get(self.isa, 16)


def threads() -> int:
    """The number of threads kernels run with: PyTorch's own setting, asked at each call."""
    import torch

    return torch.get_num_threads()


@functools.lru_cache(maxsize=1)
def machine() -> Machine:
    """Describe this machine. ``SHORTHAUL_ISA`` (avx512, avx2, baseline) lowers the instruction set, ``CXX`` names the
    compiler; both are read once."""
    info = processor_info()
    flags = frozenset(info.get("flags", "").split())
    isa = next(level for level, (needs, _) in _LEVELS.items() if flags.issuperset(needs))
    wanted = os.environ.get("SHORTHAUL_ISA")
    if wanted:
        order = list(_LEVELS)
        if wanted not in order:
            raise ValueError(f"SHORTHAUL_ISA={wanted!r} is not known; use one of {', '.join(order)}")
        if order.index(wanted) < order.index(isa):
            raise ValueError(f"SHORTHAUL_ISA={wanted!r}, but this CPU offers {isa!r} at most; unset it or lower it")
        isa = wanted
    return Machine(
        vendor=info.get("vendor_id", "unknown"),
        model=info.get("model name", platform.processor() or "unknown"),
        architecture=platform.machine(),
        isa=isa,
        extensions=tuple(name for name in _EXTRA_FLAGS if name in flags),
        cores=usable_cores(),
        caches=_cache_sizes(),
        compiler=find_compiler(),
    )


def usable_cores() -> int:
    """Cores this process may use: its affinity mask, cut by the container's CPU quota (rounded up)."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, cores if quota is None else min(cores, quota))


def _cgroup_quota() -> int | None:
    try:  # version 2: "max 100000" or "150000 100000"
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else -(-int(limit) // int(period))
    except (OSError, ValueError):
        pass
    try:
        limit_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        period_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text())
        return None if limit_us <= 0 else -(-limit_us // period_us)
    except (OSError, ValueError):
        return None


def _cache_sizes() -> dict[str, int]:
    sizes: dict[str, int] = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level = (folder / "level").read_text().strip()
            kind = (folder / "type").read_text().strip()
            size = (folder / "size").read_text().strip()
        except OSError:
            continue
        if kind == "Instruction":
            continue
        unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(size[-1:], 1)
        sizes[f"L{level}d" if level == "1" else f"L{level}"] = int(size.rstrip("KMG")) * unit
    return sizes


def find_compiler() -> Compiler | None:
    """The C++ compiler: ``$CXX`` if set (an error where it does not run), else g++, else clang++; None without one."""
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["g++", "clang++", "c++"]:
        path = shutil.which(name)
        if path is None:
            continue
        try:
            shown = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            continue
        version = shown.splitlines()[0].strip() if shown else "unknown version"
        return Compiler(path, "clang" if "clang" in shown.lower() else "gcc", version)
    return None


@dataclass(frozen=True)
class Gpu:
    """The first GPU and Triton, as torch sees them; ``name`` is None without a GPU."""

    name: str | None
    capability: tuple[int, int] | None
    memory: int | None  # bytes
    triton: str | None  # version


def gpu() -> Gpu:
    """Ask torch for a GPU and the installation for Triton. Imports torch; slow the first time."""
    import importlib.metadata

    import torch

    try:
        triton: str | None = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = None
    if not torch.cuda.is_available():
        return Gpu(None, None, None, triton)
    properties = torch.cuda.get_device_properties(0)
    return Gpu(properties.name, (properties.major, properties.minor), properties.total_memory, triton)


def describe() -> dict[str, str]:
    """The machine as ordered label → text, for ``shorthaul doctor``."""
    from .cache import default_directory

    m, g = machine(), gpu()
    extensions = f" ({', '.join(m.extensions)})" if m.extensions else ""
    return {
        "CPU": f"{m.vendor} {m.model}",
        "Instruction set": m.isa + extensions,
        "Usable cores": f"{m.cores}, kernels use {threads()} threads",
        "Caches": ", ".join(f"{name} {size // 1024} KiB" for name, size in m.caches.items()) or "unknown",
        "C++ compiler": f"{m.compiler.path}: {m.compiler.version}" if m.compiler else f"none; {NO_COMPILER_REMEDY}",
        "GPU": f"{g.name}, compute capability {g.capability}" if g.name else "none",
        "Triton": g.triton or "not installed",
        "Cache directory": str(default_directory()),
        "Python": sys.version.split()[0],
    }


NO_COMPILER_REMEDY = (
    "install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; conda: conda install gxx) "
    "or name it in the environment variable CXX"
)
