"""The kernels of one top-level map: what is set before, the map itself, and what merges its partial results."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from shorthaul.analysis.collisions import may_meet
from shorthaul.ir.builder import at, fresh_params, make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.flat import Flat, flat_form
from shorthaul.ir.nodes import Access, Map, Node
from shorthaul.ir.program import Program
from shorthaul.ir.scalar_ops import COMBINERS, identity
from shorthaul.symbolic import Expr, Symbol, free_symbols, product, prove_eq

from .block_kernel import BlockKernel, emit_block_kernels, with_epilogues
from .kernel import PARTS, TritonKernel
from .plan import NotSchedulable
from .text import NoTritonText


@dataclass(frozen=True)
class MapKernels:
    """Kernels that run one after the other.

    batch: number of the batch (`BatchKernels`) that the map belongs to, with its flat form: then its neighbours of that batch run with it.
    """

    kernels: tuple[TritonKernel, ...]
    arguments: tuple[str, ...]
    sizes: tuple[Symbol, ...]
    batch: tuple[int, Flat] | None = None

    @property
    def name(self) -> str:
        """Equal for maps whose kernels differ only in names."""
        return "_".join(k.structure for k in self.kernels)


_EMITTED: WeakKeyDictionary[Node, tuple[tuple, list[int], MapKernels]] = WeakKeyDictionary()


def emit_map(m: Map, program: Program) -> MapKernels:
    """The kernels of a top-level map of a scheduled program. Raises NotSchedulable with the reason.

    Of a container of which other nodes write other parts, a combining map writes only the elements that it reaches; of others, what no
    iteration reaches is set to the combiner's identity first.
    """
    containers = program.containers
    shared = [c for c in program.writes_of(m) if len(program.writers(c)) > 1]
    used = sorted(program.writes_of(m) | program.reads_of(m))
    laid_out = tuple((c, containers[c].dtype, containers[c].shape, containers[c].strides) for c in used)
    key = (m.params, m.name, tuple(shared), laid_out, program.deterministic)
    found = _EMITTED.get(m.body[0])  # which a map with another schedule shares
    if found is None or found[0] != key or found[1] != [id(n) for n in m.body]:
        found = _EMITTED[m.body[0]] = key, [id(n) for n in m.body], _emit(m, containers, shared, program.deterministic)
    kernels = found[2]
    batch = m.schedule.get("batch")
    flat = flat_form(m, containers) if batch is not None else None
    return kernels if flat is None else replace(kernels, batch=(batch, flat))


def emit_joined(m: Map, epilogues: Sequence[Map], program: Program) -> MapKernels | None:
    """The kernels of a map whose last one also runs the flat maps that read its results; None where it has no such kernel."""
    flats = [flat_form(e, program.containers) for e in epilogues]
    kernels = emit_map(m, program).kernels
    last = kernels[-1]
    if None in flats or not isinstance(last, BlockKernel):
        return None
    try:
        joined = with_epilogues(last, [f for f in flats if f is not None])
    except NotSchedulable:
        return None
    return _together((*kernels[:-1], joined), program.containers)


def schedulable(m: Map, program: Program) -> bool:
    """Whether the map has kernels."""
    try:
        emit_map(m, program)
    except NotSchedulable:
        return False
    except NoTritonText:
        pass  # its parts would have no kernels either
    return True


def _emit(m: Map, containers: Mapping[str, Container], shared: Collection[str], ordered: bool) -> MapKernels:
    kernels: list[TritonKernel] = [_fill(c, containers, combine, part) for c, (combine, part) in _uncovered(m, containers, shared).items()]
    kernels += emit_block_kernels(m, containers, ordered=ordered)
    return _together(kernels, containers)


def _together(kernels: Sequence[TritonKernel], containers: Mapping[str, Container]) -> MapKernels:
    every = (*kernels, *(f for k in kernels for f in k.finish))
    outside = dict.fromkeys(a for k in every for a in k.arguments if a in containers)
    sizes = dict.fromkeys(s for k in every for s in k.sizes if not s.name.startswith(PARTS.name))
    return MapKernels(tuple(kernels), tuple(outside), tuple(sizes))


def _uncovered(m: Map, containers: Mapping[str, Container], shared: Collection[str]) -> dict[str, tuple[str, int]]:
    """Containers that must be set before, with combiner and component."""
    found: dict[str, tuple[str, int]] = {}
    for a in m.accesses():
        memlet = a.memlet
        if not a.is_write or a.is_local or memlet.combine is None or memlet.scan is not None:
            continue
        c = containers[memlet.container]
        kept = [p for p in a.params if p in _kept(a)]
        guarded = any(free_symbols(e.expr) & set(kept) for e in memlet.guard if isinstance(e.expr, Expr))
        covered = prove_eq(product(p.size for p in kept), c.size) is True and not guarded
        if may_meet(memlet, a.params, c) or (not covered and memlet.container not in shared):
            components = COMBINERS[memlet.combine].components
            found[memlet.container] = memlet.combine, components.index(a.connector) if len(components) > 1 else 0
    return found


def _kept(a: Access) -> frozenset[Symbol]:
    """Parameters in the subscripts of a write."""
    return frozenset().union(*(free_symbols(s) for s in a.memlet.subset if isinstance(s, Expr)))


def _fill(name: str, containers: Mapping[str, Container], combine: str, component: int) -> TritonKernel:
    c = containers[name]
    params = fresh_params(c.shape)
    value = identity(combine, component, c.dtype)
    return emit_block_kernels(make_map(params, {}, {"y": at(c, *params)}, lambda: {"y": value}, {}, name="fill"), containers)[0]
