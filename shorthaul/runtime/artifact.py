"""Warm start: optimized programs and their compiled libraries, by what went into them.

An artifact is the scheduled program (as JSON), the interface of its kernels and the key of its shared library. Its key covers the
program of operators with the names of its containers and its origins, the options, the size hints, this package's sources,
PyTorch's version, the compiler and the instruction set. The cache checks every file against its checksum; what is missing or
damaged is made again.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from shorthaul.codegen.cpp.emit import Kernel
from shorthaul.codegen.host import build_host
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.program import Program, with_bodies
from shorthaul.ir.serialize import SerializeError, from_json, to_json

from .build import header_hash
from .cache import Cache, make_key
from .compile import Compiled
from .executable import Executable
from .library import CompiledLibrary
from .machine import machine

FORMAT = 1
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


def tools() -> tuple[str, ...]:
    """What compiled programs depend on besides themselves: this package, PyTorch, the compiler, the instruction set."""
    target = machine()
    compiler = target.compiler
    return (source_hash(), torch.__version__, header_hash(), repr(target.isa_flags), compiler.version if compiler else "")


def artifact_key(program: Program, *options: object) -> str:
    """The key of a program of operators, before it is optimized."""
    names = json.dumps([list(program.containers), [str(o) for n in program.nodes for o in n.origins]])
    wanted = ("size_hints", "stop_gradient", "checkpoint", "part_bytes", "whole_step", "lazy_tables", "deterministic")
    attributes = {k: v for k, v in program.attributes.items() if k in wanted}
    parts = (fingerprint(program), names, repr(sorted(attributes.items(), key=lambda i: i[0])), repr(options))
    return make_key("artifact", str(FORMAT), *parts, *tools())


def store(key: str, program: Program, compiled: Compiled) -> None:
    """Keep an optimized program and its library. A program that cannot be written as JSON is not kept."""
    assert compiled.library is not None
    folder = compiled.library.path.parent
    if Cache("libraries").path(folder.name) != folder:
        return  # the library itself could not be cached
    plain = program.clone()
    plain.attributes = {k: v for k, v in program.attributes.items() if k in KEPT}
    try:
        body = to_json(plain)
    except SerializeError:
        return
    refusals = [[r.transformation, r.where, r.reason, r.bytes] for r in program.attributes.get("refusals", ())]
    kernels = {str(i): [k.name, list(k.arguments), [s.name for s in k.sizes], list(k.checks)] for i, k in compiled.kernels.items()}
    value = {"format": FORMAT, "program": body, "kernels": kernels, "library": folder.name, "refusals": refusals}
    Cache("programs").put(key, {"value.json": json.dumps(value).encode()})


def load(key: str) -> tuple[Program, Compiled] | None:
    """An optimized program that was stored, ready to run; None where there is none."""
    value: Any = Cache("programs").get_json(key)
    if value is None or value.get("format") != FORMAT:
        return None
    folder = Cache("libraries").get(value["library"])
    if folder is None:
        return None
    program = from_json(value["program"])
    kernels = {}
    for p in with_bodies(program):
        symbols = {s.name: s for s in p.symbols}
        for node in p.nodes:
            if str(node.id) in value["kernels"]:
                name, arguments, sizes, checks = value["kernels"][str(node.id)]
                kernels[node.id] = Kernel(name, "", tuple(arguments), tuple(symbols[s] for s in sizes), checks=tuple(checks))
    host = build_host(program, kernels)
    library = CompiledLibrary(folder / "library.so", host.functions)
    program.attributes["refusals"] = [Refusal(*r) for r in value["refusals"]]
    return program, Compiled(Executable(host, library.function), kernels, {}, library)
