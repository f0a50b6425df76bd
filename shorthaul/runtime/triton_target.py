"""Triton kernels of a host program: compiled in parallel, launched on a GPU without Python's launcher (`gpu_launch`), or run by
Triton's interpreter."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from shorthaul.codegen.host import Segment
from shorthaul.codegen.triton.batch import emit_batch
from shorthaul.codegen.triton.emit_map import MapKernels
from shorthaul.codegen.triton.kernel import TritonKernel
from shorthaul.codegen.triton.launch import Configuration, configure, load, torch_dtype
from shorthaul.codegen.triton.worker import Answer, Request
from shorthaul.errors import DeviceError

from .compile_pool import compile_requests
from .gpu_launch import Binary, Launched, Step, bind, in_turn
from .layout import Binding

LEAST_CAPABILITY = (8, 0)
# the interpreter takes as long for a large block as for a small one
INTERPRETED = {"budget": 1 << 16, "programs": 3}


class TritonTarget:
    """The kernels of one program by node, on one device."""

    def __init__(self, kernels: Mapping[int, MapKernels], device: torch.device) -> None:
        self.kernels = kernels
        self.device = device
        self.interprets = device.type == "cpu"
        self._scratch_bytes: dict[str, int] = {}
        self._batches: dict[tuple[int, ...], TritonKernel] = {}
        if not self.interprets:
            require_gpu(device)

    # configuration ----------------------------------------------------------------------------------------------------
    def configurations(self, segment: Segment, sizes: Mapping[str, int], wide: bool) -> list[tuple[int, int, Configuration]]:
        """(node, position among its kernels, configuration) in the order in which they run, merges of partial results included."""
        found = []
        for node, kernels in self._launched(segment):
            at = 0
            for kernel in kernels:
                first = configure(kernel, sizes, wide, **(INTERPRETED if self.interprets else {}))
                for c in (first, *first.finish):
                    found.append((node, at, c))
                    at += 1
        return found

    def _launched(self, segment: Segment) -> list[tuple[int, Sequence[TritonKernel]]]:
        """The kernels of a segment by node: those of a batch are one, the first node's."""
        found: list[tuple[int, Sequence[TritonKernel]]] = []
        batch: list[int] = []
        for i, call in enumerate(segment.kernels):
            mine = self.kernels[call.node]
            following = self.kernels[segment.kernels[i + 1].node].batch if i + 1 < len(segment.kernels) else None
            batch.append(call.node)
            if mine.batch is not None and following is not None and following[0] == mine.batch[0]:
                continue
            found.append((batch[0], mine.kernels if len(batch) == 1 else [self._batch(tuple(batch))]))
            batch = []
        return found

    def _batch(self, nodes: tuple[int, ...]) -> TritonKernel:
        if nodes not in self._batches:
            of = [self.kernels[n] for n in nodes]
            containers = {a: c for m in of for k in m.kernels for a, c in k.containers.items()}
            self._batches[nodes] = emit_batch([m.batch[1] for m in of if m.batch is not None], containers, of[0].kernels[0].plan.map.label)
        return self._batches[nodes]

    def scratch(self, segment: Segment, sizes: Mapping[str, int]) -> list[tuple[str, int]]:
        """Names and bytes of the partial results of a segment."""
        found = {}
        for node, _, c in self.configurations(segment, sizes, False):
            for name, (elements, dtype) in c.scratch.items():
                found[scratch_name(node, name)] = elements * torch_dtype(dtype).itemsize
        self._scratch_bytes.update(found)
        return list(found.items())

    def dtypes(self, c: Configuration) -> dict[str, str]:
        return {n: x.dtype.name for n, x in (*c.kernel.containers.items(), *((n, x) for n, (x, _) in c.kernel.scratch.items()))}

    def compile_all(self, segments: Sequence[Segment], sizes: Mapping[str, int], wide: bool, unaligned: frozenset[str]) -> None:
        """Compile the distinct kernels at these sizes, several at once."""
        if self.interprets:
            return
        work: dict[tuple, _Job] = {}
        for segment in segments:
            for _, _, c in self.configurations(segment, sizes, wide):
                job = self._job(c, unaligned)
                work.setdefault(job.key, job)
        missing = [j for j in work.values() if j.key not in _BINARIES]
        for job, answer in zip(missing, compile_requests([j.request() for j in missing]), strict=True):
            job.accept(answer)

    def _job(self, c: Configuration, unaligned: frozenset[str]) -> _Job:
        types = c.types(self.dtypes(c))
        off = tuple(i for i, a in enumerate(c.kernel.arguments) if a in unaligned)
        constants = tuple(str(v) for v in c.constants.values())
        key = (c.kernel.structure, tuple(types), constants, tuple(c.meta.values()), off, self.device)
        return _Job(key, c, types, off, self.device)

    # binding ----------------------------------------------------------------------------------------------------------
    def prepare(self, segment: Segment, binding: Binding, table: Any, slots: Mapping[str, int]) -> Step:
        """A function that runs the segment on what the pointer table holds when it is called. slots: entry of each container."""
        if not self.interprets:
            return in_turn([bind(launched, table, slots, self.device) for launched in self.launched(segment, binding)])
        steps = []
        for node, _, c in self.configurations(segment, binding.sizes, binding.wide):
            if c.programs:
                steps.append(self._interpreted(c, self._names(node, c), binding, table, slots))
        return in_turn(steps)

    def launched(self, segment: Segment, binding: Binding) -> list[Launched]:
        """The launches of a segment, in the order in which they run."""
        found = []
        for node, _, c in self.configurations(segment, binding.sizes, binding.wide):
            if c.programs:
                binary = self._job(c, binding.unaligned).binary()
                found.append(Launched(node, c.kernel.name, tuple(self._names(node, c)), tuple(c.numbers), c.programs, binary))
        return found

    def _names(self, node: int, c: Configuration) -> list[str]:
        """Containers and partial results, as the memory plan calls them, whose pointers a kernel takes."""
        partial = {scratch_name(node, a) for a in c.kernel.arguments} & self._scratch_bytes.keys()
        return [scratch_name(node, a) if scratch_name(node, a) in partial else a for a in c.kernel.arguments]

    def _interpreted(self, c: Configuration, names: Sequence[str], binding: Binding, table: Any, slots: Mapping[str, int]) -> Step:
        function, dtypes = load(c.kernel), self.dtypes(c)
        extent = self._scratch_bytes

        def run(address: int, sizes: int) -> None:
            tensors = []
            for name, argument in zip(names, c.kernel.arguments, strict=True):
                dtype = torch_dtype(dtypes[argument])
                tensors.append(_tensor_at(int(table[slots[name]]), extent.get(name) or binding.bytes[name], dtype))
            function[(c.programs,)](*tensors, *c.numbers, **c.constants, **c.meta)

        return run


def scratch_name(node: int, partial: str) -> str:
    """The name of a partial result in the memory plan."""
    return f"{partial}@{node}"


def _tensor_at(address: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    if not size:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=dtype)


@dataclass
class _Job:
    """A kernel to compile for the types and constants of one configuration; loaded once a process and device."""

    key: tuple
    configuration: Configuration
    types: list[str]
    unaligned: tuple[int, ...]
    device: torch.device

    def request(self) -> Request:
        c = self.configuration
        major, minor = torch.cuda.get_device_capability(self.device)
        constants = {k: None if k == "INDEX" else v for k, v in c.constants.items()}
        wide = c.constants.get("INDEX") == tl.int64
        return Request(c.kernel.source, c.kernel.name, tuple(self.types), constants, wide, c.meta, 10 * major + minor, self.unaligned)

    def accept(self, answer: Answer) -> Binary:
        """Keep the machine code. Raises DeviceError where there is none, or where it asks for memory that nobody gives it."""
        k = self.configuration.kernel
        if answer.error:
            where = "; ".join(str(o) for o in k.plan.map.origins[:3])
            raise DeviceError(f"the Triton kernel {k.name} of {where} does not compile: {answer.error[:400]}. "
                              "This is a defect of the code generator: please report it.")  # fmt: skip
        if answer.memory:
            raise DeviceError(f"the Triton kernel {k.name} asks for memory of its own")
        found = _BINARIES[self.key] = Binary(answer.name, answer.code, answer.shared, answer.warps)
        return found

    def binary(self) -> Binary:
        """Its machine code, compiled where it is not yet."""
        return _BINARIES.get(self.key) or self.accept(compile_requests([self.request()])[0])


_BINARIES: dict[tuple, Binary] = {}


def require_gpu(device: torch.device) -> None:
    """Raise DeviceError, with the remedy, where kernels for the device cannot be compiled or run."""
    if torch.version.hip or device.type != "cuda":
        raise DeviceError(f"tensors are on {device}. CPUs and NVIDIA GPUs are supported.")
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        raise DeviceError(f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}; "
                          "kernels are made for 8.0 (A100) and later")  # fmt: skip
    if triton.knobs.runtime.interpret:
        raise DeviceError("TRITON_INTERPRET is set, under which Triton makes no GPU kernels. Unset it.")
