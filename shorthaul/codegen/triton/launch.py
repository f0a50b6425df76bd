"""Generated kernels at concrete sizes: their configuration, compilation without a GPU, and running them on torch tensors."""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from shorthaul.symbolic import evaluate

from .interpreting import HostLibdevice, is_interpreting, repair
from .kernel import TritonKernel

_LOADED: dict[str, Any] = {}
TYPES = {"float64": "fp64", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "int64": "i64", "int32": "i32", "int16": "i16",
         "int8": "i8", "uint8": "u8", "bool": "i1"}  # fmt: skip


def load(kernel: TritonKernel) -> Any:
    """The jitted function of a kernel's source; the same source is one function."""
    return load_source(kernel.source, kernel.name)


def load_source(source: str, name: str) -> Any:
    """The jitted function of that name in a source; the same source is one function."""
    key = hashlib.sha256(source.encode()).hexdigest()[:24]
    found = _LOADED.get(key)
    if found is None:
        if is_interpreting():
            repair()
        # Triton reads a function's source through inspect, which looks in linecache
        filename = f"<shorthaul triton {name} {key}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        space: dict[str, Any] = {"__name__": f"shorthaul_generated_{key}", "__file__": filename}
        exec(compile(source, filename, "exec"), space)
        if is_interpreting():
            space["libdevice"] = HostLibdevice()
        found = _LOADED[key] = space[name]
    return found


def factor(n: int) -> int:
    """The power of two up to 16 that divides n."""
    return min(16, n & -n) if n else 16


@dataclass
class Configuration:
    """A kernel at concrete sizes.

    programs: size of the grid. numbers: the integer arguments after the pointers. constants: constexpr arguments by name. meta: warps and
    stages. scratch: elements and dtype name of each partial result. finish: configurations of the kernels that merge those.
    """

    kernel: TritonKernel
    chosen: dict[str, Any]
    programs: int
    numbers: list[int]
    constants: dict[str, Any]
    meta: dict[str, Any]
    scratch: dict[str, tuple[int, str]] = field(default_factory=dict)
    finish: list[Configuration] = field(default_factory=list)

    def types(self, dtypes: Mapping[str, str]) -> list[str]:
        """Types of the runtime arguments as Triton's compiler takes them. dtypes: name of each container's dtype."""
        return [*(f"*{TYPES[dtypes[a]]}" for a in self.kernel.arguments), *("i32" for _ in self.numbers)]


def configure(kernel: TritonKernel, sizes: Mapping[str, int], wide: bool = False, **tiles: Any) -> Configuration:
    """Choose blocks and grid. wide: a container has so many elements that addresses need 64 bits. Raises ValueError for a missing size."""
    chosen = kernel.tiles(sizes, **tiles)
    scratch, parts = {}, {}
    for name, (container, shape) in kernel.scratch.items():
        count, chunked = shape  # type: ignore[misc]
        parts[name] = evaluate(count, sizes) * (chosen["CHUNKS"] if chunked else 1)
        whole = 1
        for n in container.shape[1:]:
            whole *= evaluate(n, sizes)
        scratch[name] = parts[name] * whole, container.dtype.name
    known: dict[str, Any] = {**chosen, "INDEX": tl.int64 if wide else tl.int32}
    numbers = []
    for s in kernel.sizes:
        if s.name not in sizes:
            raise ValueError(f"kernel {kernel.name} needs the size {s.name}; given are {', '.join(sizes) or 'none'}")
        known[f"{s.name}_m"] = factor(sizes[s.name])
        numbers.append(sizes[s.name] // known[f"{s.name}_m"])
    numbers += [chosen[c] for c in kernel.counts]
    finish = []
    for stage in kernel.finish:
        own = {s.name: parts[a] for a in stage.arguments if a in parts for s in stage.sizes if s.name.startswith("PARTS")}
        finish.append(configure(stage, {**sizes, **own}, wide, **{k: v for k, v in tiles.items() if k in ("budget", "programs")}))
    meta = {"num_warps": chosen["num_warps"], "num_stages": chosen["num_stages"]}
    return Configuration(
        kernel, chosen, kernel.grid(sizes, chosen), numbers, {c: known[c] for c in kernel.constexprs}, meta, scratch, finish
    )


class Launch:
    """A kernel with tensors and sizes bound; call it to run it (also inside a CUDA graph capture)."""

    def __init__(
        self, kernel: TritonKernel, tensors: Mapping[str, Tensor], sizes: Mapping[str, int], **tiles: Any
    ) -> None:
        wide = any(t.numel() >= 2**31 - 65536 for t in tensors.values())
        self._bind(configure(kernel, sizes, wide, **tiles), tensors)

    def _bind(self, c: Configuration, tensors: Mapping[str, Tensor]) -> None:
        self.kernel, self.chosen, self.programs = c.kernel, c.chosen, c.programs
        self.configuration, self.constants, self.meta = c, c.constants, c.meta
        self.function = load(c.kernel)
        device = next(iter(tensors.values())).device
        every = {**tensors, **{n: torch.empty(size, dtype=torch_dtype(d), device=device) for n, (size, d) in c.scratch.items()}}
        self.arguments: list[Any] = [*(self._tensor(every, name) for name in c.kernel.arguments), *c.numbers]
        self.finish = []
        for stage in c.finish:
            launch = Launch.__new__(Launch)
            launch._bind(stage, every)
            self.finish.append(launch)

    def _tensor(self, tensors: Mapping[str, Tensor], name: str) -> Tensor:
        if name not in tensors:
            raise ValueError(f"kernel {self.kernel.name} needs the tensor {name}; given are {', '.join(tensors)}")
        return tensors[name]

    def __call__(self) -> None:
        if self.programs:
            self.function[(self.programs,)](*self.arguments, **self.constants, **self.meta)
        for stage in self.finish:
            stage()


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
    dtypes = {n: str(t.dtype).removeprefix("torch.") for n, t in zip(bound.kernel.arguments, bound.arguments, strict=False)}
    return compile_for(bound.function, bound.configuration, bound.configuration.types(dtypes), capability)


def compile_for(
    function: Any, c: Configuration, types: list[str], capability: int, unaligned: Collection[int] = ()
) -> Any:
    """Compile a jitted function for a compute capability (90 is sm_90). unaligned: positions of pointers that 16 bytes need not divide."""
    return compile_source(function, types, c.constants, c.meta, capability, unaligned)


def compile_source(
    function: Any, types: list[str], constants: Mapping[str, Any], meta: Mapping[str, Any], capability: int, unaligned: Collection[int] = ()
) -> Any:
    """As `compile_for`, with the parts of a configuration: constexpr arguments in their order, warps and stages."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = function.arg_names
    signature = {n: types[i] if i < len(types) else "constexpr" for i, n in enumerate(names)}
    # by position: the function may be that of an equal kernel with other names
    constexprs = {(len(types) + i,): v for i, v in enumerate(constants.values())}
    aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(types) if t.startswith("*") and i not in unaligned}
    source = ASTSource(function, signature=signature, constexprs=constexprs, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(meta))
