"""Writing out loops: a tasklet for several values of a parameter becomes one tasklet in which equal accesses are one read."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from shorthaul.ir.scalar import Scalar, read, substitute_reads
from shorthaul.ir.scalar_ops import COMBINERS
from shorthaul.symbolic import IntLike, Symbol, substitute

from .linearize import Code, Ref, depends

Instance = tuple[dict[str, Ref], dict[str, Scalar]]


def instances(code: Code, values: Sequence[Mapping[Symbol, IntLike]]) -> tuple[dict[str, Ref], list[Instance]]:
    """The tasklet for each assignment of parameters: (the reads of all, the writes and values of each)."""
    reads: dict[str, Ref] = {}
    names: dict[Ref, str] = {}
    out: list[Instance] = []
    for k, value in enumerate(values):

        def fn(e: IntLike, value: Mapping[Symbol, IntLike] = value) -> IntLike:
            return e if isinstance(e, int) else substitute(e, value)

        here = code.rewritten(fn)
        renamed: dict[str, str] = {}

        def visit(name: str, here: Code = here, renamed: dict[str, str] = renamed, k: int = k) -> str:
            if name not in renamed:
                ref = here.reads[name]
                ref = replace(ref, indirect=tuple((visit(n), s) for n, s in ref.indirect))
                found = names.setdefault(ref, f"{name}@{k}")
                reads[found] = ref
                renamed[name] = found
            return renamed[name]

        replaced = {n: read(visit(n), r.dtype) for n, r in here.reads.items()}
        memo: dict[Scalar, Scalar] = {}
        writes = {n: replace(r, indirect=tuple((visit(i), s) for i, s in r.indirect)) for n, r in here.writes.items()}
        out.append((writes, {n: substitute_reads(v, replaced, memo) for n, v in here.code.items()}))
    return reads, out


def _merged(combiner: str, values: Sequence[Scalar]) -> Scalar:
    total = values[0]
    for v in values[1:]:
        (total,) = COMBINERS[combiner].merge((total,), (v,))
    return total


def _all_values(params: Sequence[Symbol]) -> list[dict[Symbol, IntLike]]:
    return [dict(zip(params, point, strict=True)) for point in itertools.product(*(range(p.size) for p in params))]  # type: ignore[arg-type]


def unroll_reduced(code: Code, params: Sequence[Symbol]) -> Code:
    """A tasklet whose one-component combining writes reduce the params: the sums written out, the writes plain."""
    reads, parts = instances(code, _all_values(params))
    writes = {n: replace(r, combine=None) for n, r in parts[0][0].items()}
    values = {n: _merged(r.combine, [v[n] for _, v in parts]) for n, r in code.writes.items()}  # type: ignore[arg-type]
    return Code(reads, writes, values, code.origin)


def unroll_kept(code: Code, params: Sequence[Symbol]) -> Code:
    """A tasklet whose writes keep the params: one write for each of their values."""
    reads, parts = instances(code, _all_values(params))
    writes = {f"{n}@{k}": r for k, (w, _) in enumerate(parts) for n, r in w.items()}
    return Code(reads, writes, {f"{n}@{k}": v for k, (_, values) in enumerate(parts) for n, v in values.items()}, code.origin)


def unroll_positions(code: Code, p: Symbol, blocks: Symbol, factor: int) -> Code:
    """The tasklet for `factor` neighbouring values of p = factor * blocks + 0, 1, ...: writes that reduce p merge their values."""
    reads, parts = instances(code, [{p: factor * blocks + k} for k in range(factor)])
    writes: dict[str, Ref] = {}
    values: dict[str, Scalar] = {}
    for n, r in code.writes.items():
        reduces = r.combine is not None and not any(depends(e, frozenset((p,))) for e in r.expressions)
        if reduces:
            writes[n], values[n] = r, _merged(r.combine, [v[n] for _, v in parts])  # type: ignore[arg-type]
        else:
            for k, (w, v) in enumerate(parts):
                writes[f"{n}@{k}"], values[f"{n}@{k}"] = w[n], v[n]
    return Code(reads, writes, values, code.origin)
