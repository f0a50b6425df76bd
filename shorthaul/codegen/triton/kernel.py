"""A generated kernel and how it is put together."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import CodeType
from typing import Any, Union

from shorthaul.ir.builder import at, make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType, bool_, float32, int32
from shorthaul.ir.memlet import Memlet
from shorthaul.ir.nodes import Map
from shorthaul.ir.scalar import Scalar, read
from shorthaul.symbolic import Expr, Symbol, evaluate, index, product

from .accumulate import Accumulator
from .emit import Emitter, grid_axes, pointer_name
from .plan import NotSchedulable, Plan, make_plan
from .tiles import choose_tiles

IntLike = Union[int, Expr]

HEADER = """import triton
import triton.language as tl
from triton.language.extra import libdevice

from shorthaul.codegen.triton.prelude import (as_int64, digamma, floor_div, floor_mod, merge_all, merge_any, merge_max, merge_min,
                                              merge_prod, merge_sum, philox_uniform, round_to_tf32)
"""


@dataclass
class TritonKernel:
    """One Triton kernel (with the one that merges its partial results, if it has any).

    arguments: containers whose pointers it takes, in order. sizes: symbols it takes, each as quotient and power-of-two factor so that
    divisibility is known to the compiler without a kernel for each size. counts: numbers of chunks it takes.
    constexprs: names of its blocks. scratch: partial results.
    """

    name: str
    source: str
    plan: Plan
    arguments: tuple[str, ...]
    sizes: tuple[Symbol, ...]
    counts: tuple[str, ...]
    constexprs: tuple[str, ...]
    scratch: dict[str, tuple[Container, IntLike]] = field(default_factory=dict)
    finish: list[TritonKernel] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def containers(self) -> Mapping[str, Container]:
        return self.plan.containers

    def tiles(self, sizes: Mapping[str, int], **changes: Any) -> dict[str, Any]:
        """Blocks, chunks, warps and stages at these sizes, with the caller's changes."""
        return choose_tiles(self.plan, sizes, {**self.options.get("tiles", {}), **changes})

    @cached_property
    def structure(self) -> str:
        """A hash that is equal for kernels which differ only in names and comments, as those of repeated blocks do."""
        module = compile(self.source, self.name, "exec")
        functions = [c for c in module.co_consts if isinstance(c, CodeType)]
        return hashlib.sha256(repr([(_nameless(f), self._constexprs(f)) for f in functions]).encode()).hexdigest()[:24]

    def _constexprs(self, function: CodeType) -> list[bool]:
        """Of the arguments of a function in the source, which are known to the compiler."""
        return [f"{a}: tl.constexpr" in self.source for a in function.co_varnames[: function.co_argcount]]

    def grid(self, sizes: Mapping[str, int], tiles: Mapping[str, Any]) -> int:
        """Number of programs."""
        n = 1
        for axis, kind in grid_axes(self.plan):
            size = evaluate(axis.size, sizes)
            n *= tiles["CHUNKS"] if kind == "chunk" else size if kind == "program" else -(-size // tiles[axis.block])
        return n


def _nameless(code: CodeType) -> tuple[Any, ...]:
    """What a function does: its byte code knows variables by number, and has neither comments nor places."""
    constants = code.co_consts
    if constants and isinstance(constants[0], str):  # the documentation
        constants = constants[1:]
    inner = [_nameless(c) if isinstance(c, CodeType) else (type(c).__name__, c) for c in constants]
    return code.co_code, code.co_names, code.co_argcount, inner


PARTS = Symbol("PARTS", 1)


def emit_kernel(
    m: Map, containers: Mapping[str, Container], name: str = "", options: Mapping[str, Any] | None = None
) -> TritonKernel:
    """The Triton kernel of a top-level map. Raises NotSchedulable with the reason.

    options (the map's schedule options are the defaults): `split`, `row`, `contract` (see `plan.make_plan`), `precision` of float32 matrix
    products ("ieee", "tf32", "tf32x3"), `tiles` (block sizes by name, num_warps, num_stages).
    """
    chosen = {**dict(m.schedule.options), **(options or {})}
    plan = make_plan(m, containers, chosen)
    name = re.sub(r"\W", "_", name or m.name or f"map_{m.id}")
    e = Emitter(plan, chosen.get("precision", "ieee"))
    e.grid()
    e.map(m)
    used = "\n".join(e.lines)
    blocks = [a.block for a in plan.axes if re.search(rf"\b{a.block}\b", used)]
    counts = [c for c in (f"{a.name.upper()}_BLOCKS" for a in plan.axes) if re.search(rf"\b{c}\b", used)]
    chunks = [c for c in ("CHUNKS", "CHUNK_BLOCKS") if re.search(rf"\b{c}\b", used)]
    arguments = tuple(e.pointers)
    sizes = tuple(e.sizes.values())
    scratch, finish = _second_stage(e, name, containers, chosen)
    pointers = [pointer_name(c) for c in arguments]
    runtime = [*pointers, *(f"{s.name}_q" for s in sizes), *chunks]
    constexprs = [*(f"{s.name}_m" for s in sizes), *blocks, *counts, "INDEX"]
    signature = ", ".join([*runtime, *(f"{c}: tl.constexpr" for c in constexprs)])
    once = [f"{s.name}_q" for s in sizes] + chunks
    decorator = f"@triton.jit(do_not_specialize={once})" if once else "@triton.jit"
    head = [decorator, f"def {name}({wrapped(signature, name)}):", f'    """{_summary(m, plan)}"""']
    head += [f"    {s.name} = {s.name}_q * {s.name}_m" for s in sizes]
    for a in plan.axes:
        sizes_of = " x ".join(str(p.size) if str(p.size).isidentifier() else f"({p.size})" for p in a.params)
        head.append(f"    # {a.name}: {a.mode} over {sizes_of or 1}")
    source = "\n\n\n".join([HEADER.rstrip(), *e.helpers.values(), "\n".join([*head, *e.lines])]) + "\n"
    return TritonKernel(name, source, plan, arguments, sizes, tuple(chunks), tuple(constexprs), scratch, finish, chosen)


def _summary(m: Map, plan: Plan) -> str:
    origins = "; ".join(str(o) for o in m.origins)
    text = f"{m.label}: {', '.join(f'{a.name} {a.mode}' for a in plan.axes)}." + (
        f" From {origins}." if origins else ""
    )
    return text.replace('"""', "'''").replace("\\", "/")


def wrapped(text: str, name: str) -> str:
    lines: list[str] = []
    width, pad = 0, " " * (5 + len(name))
    for part in text.split(", "):
        if lines and width + len(part) < 100:
            lines[-1] += ", " + part
            width += len(part) + 2
        else:
            lines.append(part)
            width = len(part)
    return (",\n" + pad).join(lines)


def _second_stage(e: Emitter, name: str, containers: Mapping[str, Container],
                  options: Mapping[str, Any]) -> tuple[dict[str, tuple[Container, IntLike]], list[TritonKernel]]:  # fmt: skip
    """Partial results and the kernels that merge them: one for all results of one shape and one number of parts."""
    scratch: dict[str, tuple[Container, IntLike]] = {}
    groups: dict[tuple, list[Accumulator]] = {}
    for acc in e.partials:
        target = containers[acc.memlets[0].container]
        factor: IntLike = product(a.size for a, kind in acc.partial_axes() if kind == "program")
        chunked = any(kind == "chunk" for _, kind in acc.partial_axes())
        names = tuple(m.container for m in acc.memlets)
        group = groups.setdefault((target.shape, target.actual_strides, factor, chunked), [])
        if all(tuple(m.container for m in other.memlets) != names for other in group):
            group.append(acc)
    finish = []
    for at_group, ((shape, _, factor, chunked), group) in enumerate(groups.items()):
        parts = Symbol(f"PARTS_{at_group}" if len(groups) > 1 else "PARTS", 1)
        finish.append(_merge_kernel(f"{name}_merge{at_group or ''}", group, shape, parts, containers, scratch, options))
        for acc in group:
            for m in acc.memlets:
                part, _ = scratch[acc.partial_name(m)]
                scratch[acc.partial_name(m)] = part, (factor, chunked)  # type: ignore[assignment]
    return scratch, finish


def _merge_kernel(name: str, group: list[Accumulator], shape: tuple[IntLike, ...], parts: Symbol, containers: Mapping[str, Container],
                  scratch: dict[str, tuple[Container, IntLike]], options: Mapping[str, Any]) -> TritonKernel:  # fmt: skip
    p = index("part", parts)
    dims = tuple(index(f"d{i}", n) for i, n in enumerate(shape))
    reads: dict[str, Memlet] = {}
    writes: dict[str, Memlet] = {}
    code: dict[str, Scalar] = {}
    dtypes: dict[str, DType] = {}
    several = len(group) > 1
    if several and any(len(acc.names) > 1 for acc in group):
        raise NotSchedulable(
            f"{name}: a tuple combiner beside another reduction to the same shape; give each its own map"
        )
    for acc in group:
        for memlet, connector, dtype in zip(acc.memlets, acc.connectors, acc.dtypes, strict=True):
            target = containers[memlet.container]
            part = Container(acc.partial_name(memlet), dtype, (parts, *shape), (target.size, *target.actual_strides))
            scratch[part.name] = part, 1
            key = f"{connector}_{len(writes)}" if several else connector
            reads[f"{key}_part"] = at(part, p, *dims)
            dtypes[part.name] = dtype
            value = read(f"{key}_part", dtype)
            code[key] = _narrow(value, target.dtype)
            writes[key] = at(target, *dims, combine=acc.w.combine)
    tree = make_map((p, *dims), reads, writes, code, dtypes, name=name)
    every = {**containers, **{part.name: part for part, _ in scratch.values()}}
    return emit_kernel(tree, every, name, {"split": False, "contract": False, "row": options.get("row", "whole")})


def _narrow(value: Any, target: DType) -> Any:
    from shorthaul.ir.scalar import cast

    if target is bool_:
        return value if value.dtype is not int32 else cast(value, bool_)
    return cast(value, target) if value.dtype is float32 and target.is_float else value
