"""Re-reads: what a kernel reads from memory more than once because its reuse does not fit the cache.

Three cases, each optimistic about the schedule (it blocks as well as it can):

- a flat map without a reduction is streamed: nothing is read again;
- a contraction whose reused operands all but the largest fit the cache reads each once; else it moves at least
  2 * points / sqrt(elements of cache) elements (Hong and Kung 1981, for blocks of a matrix product);
- a nest whose inner maps pass several times over the rows of one outer iteration reads them once if they fit, else at every pass.

Sizes that are not known count as fitting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Union

from shorthaul.ir.containers import Container
from shorthaul.ir.nodes import Map
from shorthaul.symbolic import Expr, Symbol

from .footprint import Footprint
from .liveness import value
from .roofline import Machine

IntLike = Union[int, Expr]


def rereads(node: Map, found: Mapping[tuple[str, str], Footprint], containers: Mapping[str, Container], machine: Machine,
            sizes: Mapping[str, int]) -> dict[str, IntLike]:  # fmt: skip
    """Bytes read again by container; containers without re-reads are left out."""
    whole = sum(_known(f.elements, sizes) * containers[name].dtype.itemsize for (name, _), f in found.items())
    if whole <= machine.cache:
        return {}
    if node.tasklet is not None:
        return _contraction(node, found, containers, machine, sizes)
    return _passes(node, found, containers, machine, sizes)


def _known(e: IntLike, sizes: Mapping[str, int]) -> int:
    try:
        return value(e, sizes)
    except KeyError:
        return 0


def _contraction(node: Map, found: Mapping[tuple[str, str], Footprint], containers: Mapping[str, Container], machine: Machine,
                 sizes: Mapping[str, int]) -> dict[str, IntLike]:  # fmt: skip
    t = node.tasklet
    assert t is not None
    if not any(w.combine for w in t.writes.values()):
        return {}
    params = set(node.params)
    reused: dict[str, int] = {}
    for m in t.reads.values():
        if params - set(m.symbols) and not m.is_indirect and (m.container, "read") in found:
            reused[m.container] = _known(found[m.container, "read"].elements, sizes) * containers[m.container].dtype.itemsize
    if len(reused) < 2 or sum(reused.values()) - max(reused.values()) <= machine.cache:
        return {}
    itemsize = max(containers[name].dtype.itemsize for name in reused)
    points = _known(node.domain, sizes)
    traffic = int(2 * points / math.sqrt(machine.cache / itemsize)) * itemsize
    extra = traffic - sum(reused.values())
    if extra <= 0:
        return {}
    # shared out by the operands' sizes: the bound says nothing about each
    total = sum(reused.values())
    return {name: extra * size // total for name, size in reused.items()}


def _passes(node: Map, found: Mapping[tuple[str, str], Footprint], containers: Mapping[str, Container], machine: Machine,
            sizes: Mapping[str, int]) -> dict[str, IntLike]:  # fmt: skip
    outer = max(1, _known(node.domain, sizes))
    readers: dict[str, set[int]] = {}
    used: dict[str, set[Symbol]] = {}
    for i, child in enumerate(node.body):
        accesses = child.accesses() if isinstance(child, Map) else ()
        for a in accesses:
            if not a.is_write and not a.is_local:
                readers.setdefault(a.memlet.container, set()).add(i)
    for a in node.accesses():
        if not a.is_local:
            used.setdefault(a.memlet.container, set()).update(set(a.memlet.symbols) & set(node.params))
    row = 0.0  # bytes that one outer iteration works on
    for name, side in found:
        share = max(1, math.prod(_known(p.size, sizes) or 1 for p in used.get(name, ())))
        row += _known(found[name, side].elements, sizes) * containers[name].dtype.itemsize / share
    row += sum(_known(c.bytes, sizes) for c in node.locals.values())
    result: dict[str, IntLike] = {}
    if row > machine.cache and outer:
        for name, where in readers.items():
            if len(where) > 1 and (name, "read") in found:
                result[name] = found[name, "read"].elements * containers[name].dtype.itemsize * (len(where) - 1)
    return result
