"""Fission: a nested kernel becomes one kernel for each of its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Union

from shorthaul.ir.containers import Container
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import Memlet
from shorthaul.ir.nodes import Access, Map, Schedule, Tasklet
from shorthaul.ir.program import Program
from shorthaul.ir.rewrite import rename
from shorthaul.symbolic import Expr, Symbol, product, summation

from .. import traffic
from ..base import Match, Transformation, require

IntLike = Union[int, Expr]


@dataclass(frozen=True)
class _Local:
    """A local: the parameters outside it, which become its first dimensions, and its name among the program's containers."""

    container: Container
    params: tuple[Symbol, ...]
    name: str


class Fission(Transformation):
    """Split a nested kernel at the nodes of its body; what they hand each other goes through memory.

    before:  map i: (local s; map j: s (sum) = x[i, j];  map j: y[i, j] = x[i, j] / s)
    after:   map i, j: s'[i] (sum) = x[i, j];            map i, j: y[i, j] = x[i, j] / s'[i]

    The inverse of ReductionFusion, for a target that has no schedule for the nest. wanted: the maps to split (all, if None).
    """

    level = 1

    def __init__(self, wanted: Callable[[Map], bool] | None = None) -> None:
        self._wanted = wanted

    def matches(self, program: Program) -> Iterator[Match]:
        for node in list(program.nodes):
            if isinstance(node, Map) and (self._wanted is None or self._wanted(node)):
                yield Match(program, {"node": node})

    def check(self, m: Match) -> None:
        require(m.node.tasklet is None, "it is flat")
        for inner in _maps(m.node):
            require(all(p.lower == 0 for p in inner.params), "a parameter does not start at 0")

    def saves(self, m: Match) -> IntLike:
        """Less than nothing: locals are written and read, and what several parts read is read by each."""
        total: IntLike = 0
        found: dict[str, _Local] = {}
        parts = list(_parts(m.node, (), {}, found, lambda name: name))
        for name, local in found.items():
            size = product((*(p.size for p in local.params), *local.container.shape)) * local.container.dtype.itemsize
            touched = sum(name in part.reads_ for part in parts) + sum(name in part.writes_ for part in parts)
            total = total - touched * size
        reads: dict[str, list[list[Access]]] = {}
        for part in parts:
            for name, accesses in traffic.reads_of_map(part.map).items():
                if name not in found:
                    reads.setdefault(name, []).append(accesses)
        for name, lists in reads.items():
            together = traffic.together(m.program, name, [a for accesses in lists for a in accesses])
            total = total + together - summation(traffic.together(m.program, name, accesses) for accesses in lists)
        return total

    def apply(self, m: Match, edit: Edit) -> None:
        found: dict[str, _Local] = {}
        taken: set[str] = set()

        def fresh(name: str) -> str:
            new = m.program.fresh(name)
            while new in taken:
                new += "_"
            taken.add(new)
            return new

        parts = list(_parts(m.node, (), {}, found, fresh))
        for name, local in found.items():
            shape = (*(p.size for p in local.params), *local.container.shape)
            edit.add_container(Container(name, local.container.dtype, shape, _strides(local)))
        edit.replace(m.node, *(rename(p.map, {}) for p in parts))


@dataclass(frozen=True)
class _Part:
    map: Map
    reads_: frozenset[str]
    writes_: frozenset[str]


def _parts(
    m: Map, outer: tuple[Symbol, ...], known: Mapping[str, _Local], found: dict[str, _Local], fresh: Callable[[str], str]
) -> Iterator[_Part]:
    """A flat map for every tasklet below, in order."""
    params = (*outer, *m.params)
    known = dict(known)
    for name, c in m.locals.items():
        known[name] = local = _Local(c, params, fresh(name))
        found[local.name] = local
    for node in m.body:
        if isinstance(node, Map):
            yield from _parts(node, params, known, found, fresh)
        elif isinstance(node, Tasklet):
            t = node.with_(reads=_moved(node.reads, known), writes=_moved(node.writes, known))
            used = m.name or "; ".join(o.operator for o in t.origins)
            flat = Map(params, (t,), schedule=Schedule("parallel"), name=used, origins=t.origins or m.origins, phase=m.phase)
            yield _Part(flat, flat.read_containers(), flat.written_containers())


def _moved(memlets: Mapping[str, Memlet], known: Mapping[str, _Local]) -> dict[str, Memlet]:
    result = {}
    for k, x in memlets.items():
        local = known.get(x.container)
        result[k] = x if local is None else x.with_(container=local.name, subset=(*local.params, *x.subset))
    return result


def _strides(local: _Local) -> tuple[IntLike, ...] | None:
    """The order of the local's own dimensions stays."""
    if local.container.strides is None:
        return None
    step: IntLike = product(local.container.shape)
    strides: list[IntLike] = []
    for p in reversed(local.params):
        strides.insert(0, step)
        step = step * p.size
    return (*strides, *local.container.strides)


def _maps(m: Map) -> Iterator[Map]:
    yield m
    for node in m.body:
        if isinstance(node, Map):
            yield from _maps(node)
