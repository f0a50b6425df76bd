"""Kernels over two block axes, put together: source, arguments, and the kernels that merge partial results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Union

from shorthaul.ir.builder import at, fresh_params
from shorthaul.ir.containers import Container
from shorthaul.ir.flat import Flat
from shorthaul.ir.memlet import Memlet
from shorthaul.ir.nodes import Map, Tasklet
from shorthaul.ir.scalar import Scalar, cast, read
from shorthaul.symbolic import Expr, Symbol, evaluate

from .block_emit import BlockEmitter
from .block_states import Partial, partial_container
from .blocks import BlockPlan, choose_blocks, plan_flat, plan_nest, plan_window
from .emit import pointer_name
from .epilogues import EpilogueEmitter
from .kernel import HEADER, PARTS, TritonKernel, wrapped
from .plan import NotSchedulable, Plan, free

IntLike = Union[int, Expr]


@dataclass
class BlockKernel(TritonKernel):
    """A kernel whose blocks come from a `BlockPlan`."""

    blocks: BlockPlan | None = None

    def tiles(self, sizes: Mapping[str, int], **changes: Any) -> dict[str, Any]:
        assert self.blocks is not None
        return choose_blocks(self.blocks, sizes, changes)

    def grid(self, sizes: Mapping[str, int], tiles: Mapping[str, Any]) -> int:
        assert self.blocks is not None
        n = 1
        for axis, kind in self.blocks.grid:
            n *= tiles["CHUNKS"] if kind == "chunk" else -(-evaluate(axis.size, sizes) // tiles[axis.block])
        return n


def emit_block_kernels(m: Map, containers: Mapping[str, Container], split: bool = True, ordered: bool = False) -> list[BlockKernel]:
    """The kernels of a map, in the order in which they run. ordered: see `plan_flat`. Raises NotSchedulable with the reason."""
    plans = plan_flat(m, containers, split, ordered) if m.tasklet is not None else [_plan_nest(m, containers, split)]
    label = re.sub(r"\W", "_", m.name or "map").strip("_") or "map"
    label = f"map_{label}" if label[0].isdigit() else label
    return [_emit(plan, f"{label}_{i}_kernel" if i else f"{label}_kernel") for i, plan in enumerate(plans)]


def _plan_nest(m: Map, containers: Mapping[str, Container], split: bool) -> BlockPlan:
    try:
        return plan_window(m, containers)
    except NotSchedulable:
        return plan_nest(m, containers, split)


def with_epilogues(kernel: BlockKernel, epilogues: Sequence[Flat]) -> BlockKernel:
    """The same kernel, whose last merge of partial results also runs flat maps. Raises NotSchedulable where it has none that could."""
    if not kernel.finish:
        raise NotSchedulable(f"{kernel.name}: no kernel merges partial results")
    last = kernel.finish[-1]
    (plan,) = plan_flat(last.plan.map, last.plan.containers, split=False)
    return replace(kernel, finish=[*kernel.finish[:-1], _emit(plan, last.name, EpilogueEmitter(plan, epilogues))])


def _emit(plan: BlockPlan, name: str, emitter: BlockEmitter | None = None) -> BlockKernel:
    m = plan.map
    e = emitter or BlockEmitter(plan)
    e.kernel()
    used = "\n".join(e.lines)
    sizes = tuple(e.sizes.values())
    words = set(re.findall(r"\b[A-Z][A-Z0-9_]*\b", used))
    constexprs = [*(f"{s.name}_m" for s in sizes), *(x.block for x in plan.axes if x.block in words),
                  *(x.steps for x in plan.axes if x.steps in words), *(c for c in ("CHUNKS", "INDEX", "STAGES") if c in words)]  # fmt: skip
    arguments = tuple(e.pointers)
    runtime = [*(pointer_name(c) for c in arguments), *(f"{s.name}_q" for s in sizes)]
    signature = ", ".join([*runtime, *(f"{c}: tl.constexpr" for c in constexprs)])
    once = [f"{s.name}_q" for s in sizes]
    head = [f"@triton.jit(do_not_specialize={once})" if once else "@triton.jit", f"def {name}({wrapped(signature, name)}):"]
    head.append(f'    """{_summary(m, plan)}"""')
    head += [f"    {s.name} = {s.name}_q * {s.name}_m" for s in sizes]
    source = "\n\n\n".join([HEADER.rstrip(), *e.helpers.values(), "\n".join([*head, *(e.lines or ["    pass"])])]) + "\n"
    scratch: dict[str, tuple[Container, IntLike]] = {}
    finish = [_merge(f"{name.removesuffix('_kernel')}_merge{i or ''}", group, plan, scratch) for i, group in enumerate(_groups(e.partials))]
    held = Plan(m, {**plan.containers, **{n: c for n, (c, _) in scratch.items()}})
    return BlockKernel(name, source, held, arguments, sizes, (), tuple(constexprs), scratch, list(finish), blocks=plan)  # type: ignore[arg-type]


def _summary(m: Map, plan: BlockPlan) -> str:
    def axis(x: Any) -> str:
        return f"{x.name} {x.mode} over {' x '.join(str(p.size) for p in x.params)}"

    origins = "; ".join(str(o) for o in m.origins)
    text = f"{m.label}: {plan.form}; {', '.join(map(axis, plan.axes)) or 'one value'}." + (f" From {origins}." if origins else "")
    return text.replace("\\", "/").replace('"""', "'''")


def _groups(partials: list[Partial]) -> list[list[Partial]]:
    """Partial results along the same parameters are merged by one kernel; tuple combiners by one each (their writes have fixed names)."""
    groups: dict[Any, list[Partial]] = {}
    for i, p in enumerate(partials):
        key = p.kept if len(p.state.names) == 1 else (p.kept, i)
        groups.setdefault(key, []).append(p)
    return list(groups.values())


def _merge(name: str, group: list[Partial], plan: BlockPlan, scratch: dict[str, tuple[Container, IntLike]]) -> BlockKernel:
    """A kernel that merges the parts of results in a fixed order: deterministic, without atomics."""
    old = group[0].kept
    part = fresh_params((PARTS,))[0]
    new = fresh_params([p.size for p in old])
    # other maps of a nest call the same parameters by other names
    there = {plan.values.get(o, o): n for o, n in zip(old, new, strict=True)}
    values: dict[Symbol, IntLike] = {p: there.get(v, v if isinstance(v, int) else p) for p, v in plan.values.items()}
    reads: dict[str, Memlet] = {}
    writes: dict[str, Memlet] = {}
    code: dict[str, Scalar] = {}
    every = dict(plan.containers)
    for i, p in enumerate(group):
        s = p.state
        for connector, dtype in zip(s.group.connectors, s.dtypes, strict=True):
            target = s.tasklet.writes[connector]
            c = partial_container(target, dtype, p.kept, PARTS)
            scratch[c.name] = c, (1, True)  # type: ignore[assignment]
            every[c.name] = c
            key = connector if len(s.names) > 1 else f"y{i}"
            reads[f"{key}_part"] = at(c, part, *new)
            value = read(f"{key}_part", dtype)
            code[key] = cast(value, s.tasklet.code[connector].dtype) if dtype.is_float else value
            # parameters of one value that the subscripts hold are gone; a guard of the kept ones stays
            kept_only = tuple(g for g in target.guard if {values.get(p, p) for p in free(g.expr)} <= set(new))
            writes[key] = target.with_(guard=kept_only).substitute(values)
    t = Tasklet(code, reads=reads, writes=writes, origins=group[0].state.tasklet.origins)
    tree = Map((part, *new), (t,), name=name, origins=t.origins)
    (kernel,) = emit_block_kernels(tree, every, split=False)
    return kernel
