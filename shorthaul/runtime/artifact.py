"""Warm start: optimized programs and their compiled libraries, by what went into them.

An artifact is the scheduled program (as JSON), the interface of its kernels and the key of its shared library; for a GPU, instead of the
library, the machine code of its kernels and how each is launched (programs of fixed sizes only). Its key covers the program of operators
with the names of its containers and its origins, the options, the size hints, this package's sources, PyTorch's version, and the compiler
and the instruction set, or Triton's version and the GPU. The cache checks every file against its checksum; what is missing or damaged is
made again.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from shorthaul.codegen.cpp.emit import Kernel
from shorthaul.codegen.host import Segment, build_host
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.program import Program, with_bodies
from shorthaul.ir.serialize import SerializeError, from_json, to_json

from .build import header_hash
from .cache import Cache, make_key
from .compile import Compiled
from .executable import Executable
from .gpu_launch import Binary, FixedKernels, Launched, nodes_of, triton_version
from .library import CompiledLibrary
from .machine import machine

FORMAT = 2
# attributes of a program that its run needs
KEPT = ("size_hints", "eager_bytes", "part_bytes", "whole_step", "memory_plan", "deterministic")


class Refusal(NamedTuple):
    """A refusal as it was stored: the fields of `transforms.base.Refused`."""

    transformation: str
    where: str
    reason: str
    bytes: int


@functools.cache
def source_hash() -> str:
    """A hash over the package's sources: any change of the compiler makes new artifacts."""
    root = Path(__file__).resolve().parent.parent
    return make_key(*(part for path in sorted(root.rglob("*.py")) for part in (str(path.relative_to(root)), path.read_bytes())))


CPU = torch.device("cpu")


def tools(device: torch.device = CPU) -> tuple[str, ...]:
    """What compiled programs depend on besides themselves: this package, PyTorch, and what compiles for the device."""
    common = (source_hash(), torch.__version__)
    if device.type == "cuda":
        return (*common, triton_version(), str(torch.version.cuda), torch.cuda.get_device_name(device),
                repr(torch.cuda.get_device_capability(device)))  # fmt: skip
    target = machine()
    compiler = target.compiler
    return (*common, header_hash(), repr(target.isa_flags), compiler.version if compiler else "")


def artifact_key(program: Program, *options: object, device: torch.device = CPU) -> str:
    """The key of a program of operators, before it is optimized."""
    names = json.dumps([list(program.containers), [str(o) for n in program.nodes for o in n.origins]])
    wanted = ("size_hints", "stop_gradient", "checkpoint", "part_bytes", "whole_step", "lazy_tables", "deterministic")
    attributes = {k: v for k, v in program.attributes.items() if k in wanted}
    parts = (fingerprint(program), names, repr(sorted(attributes.items(), key=lambda i: i[0])), repr(options))
    return make_key("artifact", str(FORMAT), *parts, *tools(device))


def store(key: str, program: Program, compiled: Compiled) -> None:
    """Keep an optimized program and its kernels. A program that cannot be written as JSON, and one for a GPU with sizes that are not
    fixed, is not kept."""
    files: dict[str, bytes] = {}
    if compiled.library is not None:
        folder = compiled.library.path.parent
        if Cache("libraries").path(folder.name) != folder:
            return  # the library itself could not be cached
        made: dict[str, object] = {"library": folder.name}
    elif not program.symbols:
        made = {"launches": _launches(compiled.executable, files)}
    else:
        return
    plain = program.clone()
    plain.attributes = {k: v for k, v in program.attributes.items() if k in KEPT}
    try:
        body = to_json(plain)
    except SerializeError:
        return
    refusals = [[r.transformation, r.where, r.reason, r.bytes] for r in program.attributes.get("refusals", ())]
    kernels = {str(i): [k.name, list(k.arguments), [s.name for s in k.sizes], list(getattr(k, "checks", ()))]
               for i, k in compiled.kernels.items()}  # fmt: skip
    value = {"format": FORMAT, "program": body, "kernels": kernels, "refusals": refusals, **made}
    Cache("programs").put(key, {"value.json": json.dumps(value).encode(), **files})


def load(key: str, device: torch.device = CPU) -> tuple[Program, Compiled] | None:
    """An optimized program that was stored, ready to run on the device; None where there is none."""
    kept = Cache("programs").get(key)
    value: Any = json.loads((kept / "value.json").read_bytes()) if kept is not None else None
    if kept is None or value.get("format") != FORMAT:
        return None
    folder = Cache("libraries").get(value["library"]) if "library" in value else None
    if folder is None and "launches" not in value:
        return None
    program = from_json(value["program"])
    kernels = {}
    for p in with_bodies(program):
        symbols = {s.name: s for s in p.symbols}
        for node in p.nodes:
            if str(node.id) in value["kernels"]:
                name, arguments, sizes, checks = value["kernels"][str(node.id)]
                kernels[node.id] = Kernel(name, "", tuple(arguments), tuple(symbols[s] for s in sizes), checks=tuple(checks))
    program.attributes["refusals"] = [Refusal(*r) for r in value["refusals"]]
    host = build_host(program, kernels, single=folder is None)
    if folder is None:
        return program, Compiled(Executable(host, None, _fixed(value["launches"], kept, device)), kernels, {}, None)
    library = CompiledLibrary(folder / "library.so", host.functions)
    return program, Compiled(Executable(host, library.function), kernels, {}, library)


# --- kernels of a GPU ---------------------------------------------------------------------------------------------------


def _launches(executable: Executable, files: dict[str, bytes]) -> dict[str, Any]:
    """How the kernels of an executable of fixed sizes are launched. Adds their machine code to the files, each once."""
    target: Any = executable.target
    binding = executable.layout({}).binding
    binaries: dict[Binary, int] = {}
    segments = []
    for phase in executable.host.phases.values():
        for s in phase.steps:
            if isinstance(s, Segment):
                launches = [[*launch[:-1], binaries.setdefault(launch.binary, len(binaries))] for launch in target.launched(s, binding)]
                segments.append([nodes_of(s), target.scratch(s, binding.sizes), launches])
    files.update({f"{i}.cubin": b.code for b, i in binaries.items()})
    return {"segments": segments, "binaries": [[b.name, b.shared, b.warps] for b in binaries]}


def _fixed(value: dict[str, Any], folder: Path, device: torch.device) -> FixedKernels:
    """The inverse of `_launches`."""
    binaries = [Binary(name, (folder / f"{i}.cubin").read_bytes(), shared, warps)
                for i, (name, shared, warps) in enumerate(value["binaries"])]  # fmt: skip
    launches, scratch = {}, {}
    for nodes, partial, listing in value["segments"]:
        launches[tuple(nodes)] = [Launched(node, kernel, tuple(arguments), tuple(numbers), programs, binaries[i])
                                  for node, kernel, arguments, numbers, programs, i in listing]  # fmt: skip
        scratch[tuple(nodes)] = [(name, size) for name, size in partial]
    return FixedKernels(launches, scratch, device)
