"""What is launched on a GPU: machine code with its parameters, for fixed sizes.

A kernel's parameters are read by the driver from addresses when it is launched. Here those addresses are the entries of the phase's own
pointer table, so that a launch is one call of the driver with arguments that never change. Nothing here needs Triton: a warm start loads
machine code from the cache (`FixedKernels`) and launches it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from shorthaul.codegen.host import Segment
from shorthaul.errors import DeviceError

Step = Callable[[int, int], None]
TRITON = "3.6"  # the version that kernels are tested with
SHARED_BY_DEFAULT = 49152  # bytes of shared memory that a kernel has without asking for more


class KernelTarget(Protocol):
    """What an executable asks of the kernels of a GPU."""

    @property
    def device(self) -> torch.device: ...

    def compile_all(self, segments: Sequence[Segment], sizes: Mapping[str, int], wide: bool, unaligned: frozenset[str]) -> None:
        """Compile the distinct kernels at these sizes."""

    def scratch(self, segment: Segment, sizes: Mapping[str, int]) -> list[tuple[str, int]]:
        """Names and bytes of the partial results of a segment."""

    def prepare(self, segment: Segment, binding: Any, table: Any, slots: Mapping[str, int]) -> Step:
        """A function that runs the segment on what the pointer table holds when it is called. slots: entry of each container."""


@dataclass(frozen=True)
class Binary:
    """A compiled kernel: the name of its function in the machine code, bytes of shared memory, warps of a program."""

    name: str
    code: bytes
    shared: int
    warps: int


class Launched(NamedTuple):
    """One launch: containers and partial results whose pointers it takes, the integers after them, and the size of its grid."""

    node: int
    kernel: str
    arguments: tuple[str, ...]
    numbers: tuple[int, ...]
    programs: int
    binary: Binary


@dataclass(frozen=True)
class FixedKernels:
    """The kernels of a program of fixed sizes from a cache. launches: by the nodes of their segment; partial: names and bytes of the
    partial results, likewise."""

    launches: Mapping[tuple[int, ...], Sequence[Launched]]
    partial: Mapping[tuple[int, ...], list[tuple[str, int]]]
    device: torch.device

    def compile_all(self, segments: Sequence[Segment], sizes: Mapping[str, int], wide: bool, unaligned: frozenset[str]) -> None:
        """They are compiled."""

    def scratch(self, segment: Segment, sizes: Mapping[str, int]) -> list[tuple[str, int]]:
        return self.partial[nodes_of(segment)]

    def prepare(self, segment: Segment, binding: Any, table: Any, slots: Mapping[str, int]) -> Step:
        return in_turn([bind(launch, table, slots, self.device) for launch in self.launches[nodes_of(segment)]])


def nodes_of(segment: Segment) -> tuple[int, ...]:
    return tuple(k.node for k in segment.kernels)


def in_turn(steps: Sequence[Step]) -> Step:
    """One step that runs several."""
    if len(steps) == 1:
        return steps[0]

    def run(address: int, sizes: int) -> None:
        for step in steps:
            step(address, sizes)

    return run


NULL = (ctypes.c_uint64 * 1)(0)


def bind(launched: Launched, table: Any, slots: Mapping[str, int], device: torch.device) -> Step:
    """A step that launches a kernel on the addresses that the pointer table holds then."""
    function = loaded(launched.binary, device)
    numbers = (ctypes.c_int32 * max(1, len(launched.numbers)))(*launched.numbers)
    base, at = table.ctypes.data, ctypes.addressof(numbers)
    values = [base + 8 * slots[n] for n in launched.arguments] + [at + 4 * i for i in range(len(launched.numbers))]
    values += [ctypes.addressof(NULL)] * 2  # memory that Triton's own tools may ask for
    parameters = (ctypes.c_void_p * len(values))(*values)
    launch, stream, index = driver().cuLaunchKernel, torch._C._cuda_getCurrentRawStream, device.index
    one, grid, threads, bytes_ = (
        ctypes.c_uint(n) for n in (1, launched.programs, 32 * launched.binary.warps, launched.binary.shared)
    )
    handle, name = ctypes.c_void_p(function), launched.kernel

    def run(address: int, sizes: int, _keep: Any = (numbers, table)) -> None:
        error = launch(handle, grid, one, one, threads, one, one, bytes_, ctypes.c_void_p(stream(index)), parameters, None)
        if error:
            raise RuntimeError(f"kernel {name} could not be launched: CUDA driver error {error}")

    return run


# --- machine code -------------------------------------------------------------------------------------------------------

_LOADED: dict[tuple[Binary, torch.device], int] = {}


def loaded(binary: Binary, device: torch.device) -> int:
    """The driver's handle of a kernel; loaded once a process and device. Raises DeviceError where the driver refuses it."""
    found = _LOADED.get((binary, device))
    if found is None:
        with torch.cuda.device(device):
            found = _LOADED[binary, device] = _load(binary, device)
    return found


def _load(binary: Binary, device: torch.device) -> int:
    cuda = driver()

    def do(name: str, *arguments: Any) -> None:
        if error := getattr(cuda, name)(*arguments):
            raise DeviceError(f"the kernel {binary.name} cannot be loaded on {device}: {name} gave CUDA driver error {error}")

    context = ctypes.c_void_p()
    do("cuCtxGetCurrent", ctypes.byref(context))
    if context.value is None:  # a thread that has not used the device yet
        do("cuDevicePrimaryCtxRetain", ctypes.byref(context), ctypes.c_int(device.index))
        do("cuCtxSetCurrent", context)
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    do("cuModuleLoadData", ctypes.byref(module), binary.code)
    do("cuModuleGetFunction", ctypes.byref(function), module, binary.name.encode())
    if binary.shared > SHARED_BY_DEFAULT:
        do("cuFuncSetCacheConfig", function, ctypes.c_int(_PREFER_SHARED))
        do("cuFuncSetAttribute", function, ctypes.c_int(_MAX_DYNAMIC_SHARED_BYTES), ctypes.c_int(binary.shared))
    assert function.value is not None
    return function.value


_PREFER_SHARED = 1  # CU_FUNC_CACHE_PREFER_SHARED
_MAX_DYNAMIC_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


@functools.cache
def triton_version() -> str:
    """The version of Triton, with a warning where it is not the one that kernels are tested with. Raises DeviceError, with the remedy,
    where there is none."""
    try:
        found = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError as e:
        raise DeviceError(f"tensors are on a GPU, and Triton is not installed. Install triton {TRITON}.") from e
    if found.split(".")[:2] != TRITON.split("."):
        warnings.warn(f"Triton {found} is installed; the kernels are tested with {TRITON}. If one does not compile, install that.",
                      stacklevel=2)  # fmt: skip
    return found


@functools.cache
def driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
