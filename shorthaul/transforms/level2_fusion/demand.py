"""What statements under common rows read from outside, when some of the locals between them are evaluated where they are read.

Derived from the statements' memlets before anything is substituted, so that a claim does not rest on the fused code.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Union

from shorthaul.ir.memlet import Condition, Indirect, Memlet
from shorthaul.ir.nodes import Access, Map, Tasklet
from shorthaul.ir.scalar import substitute_indices
from shorthaul.symbolic import Expr, Symbol

from .compose import never, reading, tasklet_of, used_reads, written_params

IntLike = Union[int, Expr]


def demanded(statements: Sequence[Map], outer: tuple[Symbol, ...], local: Collection[str],
             kept: Collection[str]) -> dict[str, list[Access]]:  # fmt: skip
    """Reads of outside containers, by container.

    local: the locals that the statements write; those that are not in `kept` have no memory any more: each read of one evaluates the
    statement that writes it, and so reads that statement's operands where the reader needs them, which may be fewer elements.
    """
    gone = set(local) - set(kept)
    makers = {m.container: (s, k) for s in statements for k, m in tasklet_of(s).writes.items() if m.container in gone}

    def reads(t: Tasklet, names: Iterable[str], values: Mapping[Symbol, IntLike], guard: tuple[Condition, ...],
              params: tuple[Symbol, ...]) -> Iterator[Access]:  # fmt: skip
        here = t.with_(reads={k: m.substitute(values) for k, m in t.reads.items()}) if values else t
        for k in sorted(names):
            m = here.reads[k]
            if guard:
                m = m.with_(guard=tuple(dict.fromkeys((*m.guard, *guard))), fill=m.fill if m.fill is not None else 0)
            if any(never(c) for c in m.guard):
                continue
            if m.container in makers:
                maker, label = makers[m.container]
                r = reading(maker, written_params(maker, m.container), m)
                t_maker = tasklet_of(maker)
                # a condition on indices may become false at the reader's points and drop a read
                code = substitute_indices(t_maker.code[label], r.substitution)
                yield from reads(t_maker, used_reads(t_maker, [code]), r.substitution, r.guard, params)
            elif m.container not in local:
                yield Access(here, k, m, params, False, False)

    found: dict[str, list[Access]] = {}
    for s in statements:
        t = tasklet_of(s)
        writes = {k: m for k, m in t.writes.items() if m.container not in makers}
        names = used_reads(t, [t.code[k] for k in writes]) | _addresses(t, writes.values())
        for a in reads(t, names, {}, (), (*outer, *s.params)):
            found.setdefault(a.memlet.container, []).append(a)
    return found


def _addresses(t: Tasklet, memlets: Iterable[Memlet]) -> set[str]:
    """Connectors that hold the indices of the memlets, those that hold indices of others included."""
    todo = [i.name for m in memlets for i in m.subset if isinstance(i, Indirect)]
    found: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += [i.name for i in t.reads[name].subset if isinstance(i, Indirect)]
    return found
