"""Compiling and running generated kernels on torch tensors."""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Mapping
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from shorthaul.symbolic import evaluate

from .interpreting import is_interpreting, repair
from .kernel import TritonKernel

_COMPILED: dict[str, Any] = {}
_SIGNATURE = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}


def load(kernel: TritonKernel) -> Any:
    """The jitted function of a kernel's source; the same source is one function."""
    key = hashlib.sha256(kernel.source.encode()).hexdigest()[:24]
    found = _COMPILED.get(key)
    if found is None:
        if is_interpreting():
            repair()
        # Triton reads a function's source through inspect, which looks in linecache
        filename = f"<shorthaul triton {kernel.name} {key}>"
        linecache.cache[filename] = (len(kernel.source), None, kernel.source.splitlines(keepends=True), filename)
        space: dict[str, Any] = {"__name__": f"shorthaul_generated_{key}", "__file__": filename}
        exec(compile(kernel.source, filename, "exec"), space)
        found = _COMPILED[key] = space[kernel.name]
    return found


def factor(n: int) -> int:
    """The power of two up to 16 that divides n."""
    return min(16, n & -n) if n else 16


class Launch:
    """A kernel with tensors and sizes bound; call it to run it (also inside a CUDA graph capture)."""

    def __init__(
        self, kernel: TritonKernel, tensors: Mapping[str, Tensor], sizes: Mapping[str, int], **tiles: Any
    ) -> None:
        self.kernel = kernel
        self.chosen = kernel.tiles(sizes, **tiles)
        self.programs = kernel.grid(sizes, self.chosen)
        self.function = load(kernel)
        every = dict(tensors)
        device = next(iter(tensors.values())).device
        parts = {}
        for name, (container, shape) in kernel.scratch.items():
            count, chunked = shape  # type: ignore[misc]
            parts[name] = evaluate(count, sizes) * (self.chosen["CHUNKS"] if chunked else 1)
            whole = 1
            for n in container.shape[1:]:
                whole *= evaluate(n, sizes)
            every[name] = torch.empty(parts[name] * whole, dtype=torch_dtype(container.dtype.name), device=device)
        wide = any(t.numel() >= 2**31 - 65536 for t in every.values())
        self.arguments: list[Any] = [self._tensor(every, name) for name in kernel.arguments]
        known: dict[str, Any] = {**self.chosen, "INDEX": tl.int64 if wide else tl.int32}
        for s in kernel.sizes:
            if s.name not in sizes:
                raise ValueError(
                    f"kernel {kernel.name} needs the size {s.name}; given are {', '.join(sizes) or 'none'}"
                )
            known[f"{s.name}_m"] = factor(sizes[s.name])
            self.arguments.append(sizes[s.name] // known[f"{s.name}_m"])
        self.arguments += [self.chosen[c] for c in kernel.counts]
        self.constants = {c: known[c] for c in kernel.constexprs}
        self.meta = {"num_warps": self.chosen["num_warps"], "num_stages": self.chosen["num_stages"]}
        self.finish = []
        for stage in kernel.finish:
            merge_sizes = {**sizes, **{s.name: parts[a] for a in stage.arguments if a in parts
                                       for s in stage.sizes if s.name.startswith("PARTS")}}  # fmt: skip
            self.finish.append(Launch(stage, every, merge_sizes))

    def _tensor(self, tensors: Mapping[str, Tensor], name: str) -> Tensor:
        if name not in tensors:
            raise ValueError(f"kernel {self.kernel.name} needs the tensor {name}; given are {', '.join(tensors)}")
        return tensors[name]

    def __call__(self) -> None:
        if self.programs:
            self.function[(self.programs,)](*self.arguments, **self.constants, **self.meta)
        for stage in self.finish:
            stage()

    def signature(self) -> tuple[dict[str, str], dict[str, Any]]:
        """Types of the runtime arguments and the constants, as Triton's compiler takes them."""
        function = self.function
        names = [n for n in function.arg_names if n not in self.constants]
        types = {}
        for name, value in zip(names, self.arguments, strict=True):
            types[name] = f"*{_SIGNATURE[value.dtype]}" if isinstance(value, Tensor) else "i32"
        return types, self.constants


def torch_dtype(name: str) -> torch.dtype:
    """PyTorch's type of that name."""
    return getattr(torch, name)


def launch(
    kernel: TritonKernel, tensors: Mapping[str, Tensor], sizes: Mapping[str, int] | None = None, **tiles: Any
) -> None:
    """Run a kernel (and the merge of its partial results) on tensors that have their containers' layout; ValueError where one lacks."""
    Launch(kernel, tensors, sizes or {}, **tiles)()


def compile_only(bound: Launch, capability: int = 90) -> Any:
    """Compile for a GPU that need not be there; gives Triton's compiled kernel (`.asm["cubin"]`)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, constants = bound.signature()
    names = bound.function.arg_names
    signature = {n: types.get(n, "constexpr") for n in names}
    constexprs = {(names.index(k),): v for k, v in constants.items()}
    aligned = {
        (names.index(n),): [["tt.divisibility", 16]] for n, t in types.items() if t.startswith("*")
    }  # as PyTorch's allocator aligns
    source = ASTSource(bound.function, signature=signature, constexprs=constexprs, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=bound.meta)
