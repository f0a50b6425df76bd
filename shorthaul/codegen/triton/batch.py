"""One kernel for many small flat maps of one form (`transforms.level2_fusion.batch_kernels`).

Its programs are dealt to the maps in order, as many to each as its elements need. A program finds its map by comparing its number with
the first one of every map, and takes that map's pointers and size; the rest is the kernel of the flat form. The pointers are ordinary
arguments, so that a captured launch keeps its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shorthaul.ir.containers import Container
from shorthaul.ir.flat import ELEMENTS, Flat
from shorthaul.symbolic import evaluate

from .block_emit import BlockEmitter
from .blocks import plan_flat
from .emit import pointer_name
from .kernel import HEADER, TritonKernel, wrapped
from .plan import Plan, next_power_of_two

START = "    pid = tl.program_id(0)"
BLOCK = 1024


@dataclass
class BatchKernel(TritonKernel):
    """A kernel for several maps. members: their flat forms, in the order of its arguments."""

    members: tuple[Flat, ...] = ()

    def tiles(self, sizes: Mapping[str, int], **changes: Any) -> dict[str, Any]:
        elements = [int(evaluate(f.elements, sizes)) for f in self.members]
        block = min(changes.get("budget", BLOCK), next_power_of_two(max(elements)))
        found: dict[str, Any] = {"num_warps": 4 if block > 256 else 1, "num_stages": 1, "BLOCK_B": block}
        first = 0
        for k, n in enumerate(elements):
            found |= {f"N_{k}": n, f"FIRST_{k}": first}
            first += -(-n // block)
        return {**found, "PROGRAMS": first}

    def grid(self, sizes: Mapping[str, int], tiles: Mapping[str, Any]) -> int:
        return int(tiles["PROGRAMS"])


def emit_batch(members: Sequence[Flat], containers: Mapping[str, Container], name: str) -> BatchKernel:
    """The kernel of maps of one form (equal keys). containers: of the program. Raises NotSchedulable like `emit_block_kernels`."""
    shape = members[0]
    (plan,) = plan_flat(shape.tree, shape.containers)
    e = BlockEmitter(plan)
    e.kernel()
    body = list(e.lines)
    body[body.index(START)] = "    pid = pid - first"
    operands = [int(c.removeprefix("c")) for c in e.pointers]  # those that the code uses
    shared = [p for p in operands if len({f.names[p] for f in members}) == 1]
    own = [p for p in operands if p not in shared]
    arguments = [*(shape.names[p] for p in shared), *(f.names[p] for f in members for p in own)]
    pointers = [*(pointer_name(f"c{p}") for p in shared), *(f"c{p}_of_{k}" for k in range(len(members)) for p in own)]
    counts = tuple(f"{what}_{k}" for k in range(len(members)) for what in (("N", "FIRST") if k else ("N",)))
    label = re.sub(r"\W", "_", name or "map").strip("_") or "map"
    name = f"{'map_' if label[0].isdigit() else ''}{label}_batch_kernel"
    constants = [c for c in ("BLOCK_B", "INDEX") if re.search(rf"\b{c}\b", "\n".join(body))]
    signature = ", ".join([*pointers, *counts, *(f"{c}: tl.constexpr" for c in constants)])
    origins = dict.fromkeys(str(o) for f in members for o in f.tree.origins)
    head = [f"@triton.jit(do_not_specialize={list(counts)})", f"def {name}({wrapped(signature, name)}):",
            f'    """{len(members)} maps of one form: {shape.tree.label}."""', *(f"    # {o}" for o in origins), START]  # fmt: skip
    head += [f"    {pointer_name(f'c{p}')} = c{p}_of_0" for p in own]
    head += [f"    {ELEMENTS.name} = N_0", "    first = 0"]
    for k in range(1, len(members)):
        head.append(f"    here = pid >= FIRST_{k}")
        head += [f"    {x} = tl.where(here, {y}, {x})" for x, y in
                 [*((pointer_name(f"c{p}"), f"c{p}_of_{k}") for p in own), (ELEMENTS.name, f"N_{k}"), ("first", f"FIRST_{k}")]]  # fmt: skip
    source = "\n\n\n".join([HEADER.rstrip(), *e.helpers.values(), "\n".join([*head, *body])]) + "\n"
    held = Plan(shape.tree, {c: containers[c] for c in arguments})
    return BatchKernel(name, source, held, tuple(arguments), (), counts, tuple(constants), members=tuple(members))
