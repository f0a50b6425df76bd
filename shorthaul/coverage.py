"""The page of operators, from the registry: `python -m shorthaul.coverage` makes it, `--check` says whether it is current."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shorthaul.ops
from shorthaul.autodiff import differentiate
from shorthaul.errors import DifferentiationError
from shorthaul.ir.containers import Container
from shorthaul.ir.derivative import NotDifferentiable
from shorthaul.ir.memlet import full
from shorthaul.ir.nodes import Map, Operator
from shorthaul.ir.program import Program, Signature
from shorthaul.ir.scalar import walk
from shorthaul.ir.scalar_ops import SCALAR_OPS
from shorthaul.ops.expand import choose_maps, expand
from shorthaul.ops.registry import REGISTRY, OperatorDefinition, Sample

assert shorthaul.ops  # registers all operators
PAGE = Path(__file__).resolve().parent.parent / "docs" / "coverage.md"
ONNX_TABLE = "shorthaul.frontends.onnx_model.table"
HEAD = """\
# Operators

Made by `python -m shorthaul.coverage` from the registry; a test looks that it is current.

What an operator does is defined by its maps. *ATen*: the PyTorch overloads that become it; any other overload is a call of PyTorch,
listed by `model.report()` and refused by `strict=True`. *Gradient*: written for the operator, or derived from its maps. *Targets*: what its
maps can be compiled to (C++ for CPUs, Triton for GPUs), and `library` where a call of PyTorch is the other choice.
"""


def program_of(d: OperatorDefinition, s: Sample) -> Program:
    """A program of one operator on a sample: inputs named as its operands, outputs as its results."""
    attributes = {**d.attributes, **s.attributes}
    results = d.infer(s.operands, attributes)
    p = Program(d.name)
    with p.edit("Sample") as edit:
        for k, t in s.operands.items():
            edit.add_container(Container(f"in_{k}", t.dtype, tuple(t.shape), role="input"))
        for k, t in results.items():
            edit.add_container(Container(f"out_{k}", t.dtype, tuple(t.shape), role="output"))
        reads = {k: full(p.containers[f"in_{k}"]) for k in s.operands}
        edit.add(Operator(d.name, attributes, reads=reads, writes={k: full(p.containers[f"out_{k}"]) for k in results}))
        edit.set_signature(Signature(tuple(f"in_{k}" for k in s.operands), tuple(f"out_{k}" for k in results)))
    return p


def gradient_of(d: OperatorDefinition, s: Sample) -> str:
    """How the operator is differentiated: "written", "maps", or an empty string where no gradient flows."""
    p = program_of(d, s)
    floats = [
        [n for n in names if p.containers[n].dtype.is_float] for names in (p.signature.outputs, p.signature.inputs)
    ]
    if not all(floats):
        return ""
    try:
        differentiate(p, floats[0], floats[1])
    except (DifferentiationError, NotDifferentiable, ValueError):
        return ""
    return ("written" if d.gradient is not None else "maps") if p.signature.gradients else ""


def targets_of(d: OperatorDefinition, s: Sample) -> list[str]:
    """What the operator can run as."""
    p = program_of(d, s)
    expand(p, choose_maps)
    used = {
        n.op
        for m in p.nodes
        if isinstance(m, Map)
        for _, t in m.tasklets()
        for n in walk(*t.code.values())
        if n.op in SCALAR_OPS
    }
    triton = all(SCALAR_OPS[op].triton for op in used)
    return ["C++", *(["Triton"] if triton else []), *d.more_expansions()]


def rows() -> Iterator[tuple[str, str, str, str]]:
    """(operator, ATen overloads, gradient, targets) of every operator, by name."""
    for name, d in sorted(REGISTRY.items()):
        sample = next((s for s in d.samples() if not s.error), None)
        aten = ", ".join(f"`{a.removeprefix('aten.').removesuffix('.default')}`" for a in d.aten)
        if sample is None:
            yield name, aten, "", ""
        else:
            yield name, aten, gradient_of(d, sample), ", ".join(targets_of(d, sample))


def onnx_operators() -> dict[str, list[int]]:
    """The versions of operator sets from which on an ONNX operator is read, by name; empty without the importer."""
    try:
        if importlib.util.find_spec(ONNX_TABLE) is None:
            return {}
        table: dict[tuple[str, str], list[Any]] = importlib.import_module(ONNX_TABLE).TABLE
        importlib.import_module(f"{ONNX_TABLE.rpartition('.')[0]}.operators")
    except ImportError:
        return {}
    return {
        f"{domain}.{name}" if domain else name: [e.since for e in entries] for (domain, name), entries in table.items()
    }


def page() -> str:
    """The text of the page."""
    lines = [HEAD, "| operator | ATen | gradient | targets |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows()]
    found = onnx_operators()
    if found:
        lines += ["", "## ONNX", "",
                  "An ONNX operator becomes the operators above by way of PyTorch functions. [onnx.md](onnx.md) lists "
                  "every operator of ONNX, what runs",
                  "in onnx's reference implementation or not at all, and the cases of its backend suite that do not pass.", "",
                  "| operator | since |", "|---|---|"]  # fmt: skip
        lines += [f"| {name} | {', '.join(map(str, since))} |" for name, since in sorted(found.items())]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=PAGE)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is not current")
    a = parser.parse_args()
    text = page()
    if a.check:
        current = a.file.exists() and a.file.read_text() == text
        print(f"{a.file} is {'current' if current else 'not current: run python -m shorthaul.coverage'}")
        return 0 if current else 1
    a.file.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
