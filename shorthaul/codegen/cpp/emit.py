"""Maps as C++ functions, and functions as translation units.

A kernel is `extern "C" void NAME(void* const* p, const int64_t* s)`: p holds a pointer for each of `Kernel.arguments`, s a value for each
of `Kernel.sizes`. Its name is a hash of its text, in which containers and parameters have neutral names, so that equal computations
on other containers, or for other values of symbolic sizes, are one kernel. Temporary buffers are the kernel's own business (`sh_scratch`:
kept by each thread for the next call).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from shorthaul.ir.containers import Container
from shorthaul.ir.nodes import Map
from shorthaul.ir.scalar import Scalar
from shorthaul.ir.scalar_ops import identity
from shorthaul.symbolic import Expr, IntLike, Symbol, free_symbols, index, product, prove_eq, prove_lt, summation

from .collisions import split
from .common import share_rows
from .expressions import ctype
from .linearize import Code, Nest, Ref, depends, lower, simplify
from .loops import Writer
from .pack import packed
from .pad import pad_locals
from .plan import DEFAULT, Limits, groups
from .text import Block, Names, Place
from .window_tiles import rewrite_windows

HEADER = "shorthaul_vec.h"
SPECIAL = '#include "shorthaul_special.h"\n'

PRELUDE = """\
#include "shorthaul_vec.h"
#include <stdlib.h>

static inline int64_t sh_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t sh_max(int64_t a, int64_t b) { return a > b ? a : b; }

// A buffer of at least so many bytes that belongs to the calling thread; `which` tells apart buffers in use at the same time.
static void* sh_scratch(int which, int64_t bytes) {
  static thread_local struct { void* memory; int64_t size; } kept[64];
  auto& k = kept[which & 63];
  if (k.size < bytes) {
    free(k.memory);
    k.size = (bytes + 4095) / 4096 * 4096;
    k.memory = aligned_alloc(64, size_t(k.size));
    if (!k.memory) abort();
  }
  return k.memory;
}

// The first index out of range of a call goes into fault: number of the check + 1, index, size, the kernel that runs, that of the fault.
static __attribute__((noinline, cold, unused)) void sh_fault(int64_t* fault, int64_t site, int64_t index, int64_t size) {
  int64_t none = 0;
  if (!__atomic_compare_exchange_n(fault, &none, site + 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return;
  fault[1] = index, fault[2] = size, fault[4] = fault[3];
}

// An index that is data, before it becomes an address; 0 for one that is out of range.
static inline int64_t sh_index(int64_t index, int64_t size, int64_t* fault, int64_t site) {
  if (__builtin_expect(uint64_t(index) < uint64_t(size), 1)) return index;
  sh_fault(fault, site, index, size);
  return 0;
}

template <class L, class V> SH_INLINE V sh_indices(L tag, V index, int64_t size, int64_t* fault, int64_t site) {
  if constexpr (L::width == 1) return sh_index(index, size, fault, site);
  else {
    if (__builtin_expect(sh::hany(sh::lor(sh::lt(index, int64_t(0)), sh::ge(index, size))), 0))
      for (int lane = 0; lane < L::width; ++lane)
        index.set(lane, lane < tag.count() ? sh_index(index[lane], size, fault, site) : 0);
    return index;
  }
}

// f(first + lane) for every lane.
template <class L, class F> SH_INLINE auto sh_each(L, int64_t first, F f) {
  if constexpr (L::width == 1) return f(first);
  else {
    sh::vec<int64_t, L::width> r;
    for (int lane = 0; lane < L::width; ++lane) r.set(lane, f(first + lane));
    return r;
  }
}
"""


@dataclass(frozen=True)
class Kernel:
    """A compiled map's interface and text. See the module's page.

    name: "k_" and a hash. source: the function alone. arguments: container names in the order of the pointers. sizes: free symbols in the
    order of the size array. scratch_bytes: memory that the kernel keeps for partial results while it runs. checks: what the indices are
    for that it checks; where there are any, p has one more entry for the first fault (see `sh_fault`).
    """

    name: str
    source: str
    arguments: tuple[str, ...]
    sizes: tuple[Symbol, ...]
    scratch_bytes: IntLike = 0
    checks: tuple[str, ...] = ()


def emit_kernel(m: Map, containers: Mapping[str, Container], name: str | None = None, shared: Collection[str] = (),
                limits: Limits | None = None) -> Kernel:  # fmt: skip
    """The C++ function that runs a top-level map.

    shared: containers of which other nodes write other parts; of those, a combining map writes only the elements that it reaches. Of
    others it also sets the elements that no iteration reaches, to the combiner's identity. limits: tuning parameters (default: those of the
    map's schedule options).
    Raises ValueError, KeyError or TypeError, naming the memlet, for a map that is not well formed.
    """
    limits = DEFAULT.with_options(dict(m.schedule.options)) if limits is None else limits
    nest = simplify(split(lower(pad_locals(m), containers)), merge=not limits.as_written)
    nest = share_rows(nest) if limits.as_written else packed(share_rows(rewrite_windows(nest, limits)))
    names = Names(containers)
    for code in nest.codes():
        for ref in (*code.reads.values(), *code.writes.values()):
            if not ref.local:
                names.pointer(ref.container)
    for s in _free_sizes(nest, containers, names.arguments):
        names.size(s)
    body = Block()
    fills = _fills(nest, names, shared)
    writer = Writer(names, limits)
    place = Place(body, parallel=True)
    possibly_empty = [p.size for p in nest.params if not (isinstance(p.size, int) and p.size > 0) and prove_lt(0, p.size) is not True]
    empty = any(isinstance(n, int) for n in possibly_empty)
    if possibly_empty and not empty:
        block = body.open(f"if ({' || '.join(f'({names.index(n)}) <= 0' for n in possibly_empty)}) {{")
        for fill, _ in fills:
            writer.run(simplify(fill), Place(block, parallel=True))
        block.add("return;")
    for fill, needed in fills:
        if needed or empty:
            writer.run(simplify(fill), place)
    for code in nest.codes() if not empty else ():
        for ref in (*code.reads.values(), *code.writes.values()):
            for size, what in ref.bounds:  # nothing can be read in place of what is out of range
                if not (isinstance(size, int) and size > 0) and prove_lt(0, size) is not True:
                    site = names.check(f"{what}, at {code.origin}")
                    body.add(f"if ({names.index(size)} <= 0) {{ sh_fault(fault, {site}, 0, 0); return; }}")
    if not empty:
        writer.run(nest, place)
    return _finish(m, nest, names, body, name)


def _finish(m: Map, nest: Nest, names: Names, body: Block, name: str | None) -> Kernel:
    written = {r.container for c in nest.codes() for r in c.writes.values()}
    head = []
    for k, c in enumerate(names.arguments):
        T = ctype(names.containers[c].dtype)
        const = "" if c in written else "const "
        head.append(f"{const}{T}* const p{k} = ({const}{T}*)p[{k}];")
    head += [f"const int64_t n{k} = s[{k}];" for k in range(len(names.sizes))]
    if names.checks:
        head.append(f"int64_t* const fault = (int64_t*)p[{len(names.arguments)}];")
    if names.scratch:
        offset: IntLike = 0
        lines = []
        for q, dtype, elements in names.scratch:
            T = ctype(dtype)
            lines.append(f"{T}* const {q} = ({T}*)(scratch + {names.index(offset)});")
            offset = offset + (elements * dtype.itemsize + 63) // 64 * 64
        head += [f"char* const scratch = (char*)sh_scratch(0, {names.index(offset)});", *lines]
    block = Block('extern "C" __attribute__((visibility("default"))) void NAME(void* const* p, const int64_t* s) {', "}")
    block.add("(void)s;", *head, *body.lines)
    lines = block.render()
    hashed = "\n".join(x for x in lines if not x.lstrip().startswith("//@"))
    name = name or "k_" + hashlib.sha256(hashed.encode()).hexdigest()[:16]
    origins = list(dict.fromkeys(str(o) for o in m.origins))
    comment = [f"// {m.label}: {'; '.join(origins)}" if origins else f"// {m.label}",
               *(f"//   p[{k}] = {names.containers[c]!r}" for k, c in enumerate(names.arguments))]  # fmt: skip
    text = "\n".join(x.replace("//@", "//") for x in [*comment, *lines]).replace("void NAME(", f"void {name}(")
    return Kernel(name, text + "\n", tuple(names.arguments), tuple(names.sizes), names.scratch_bytes(), tuple(names.checks))


def _free_sizes(nest: Nest, containers: Mapping[str, Container], used: Iterable[str]) -> list[Symbol]:
    """Free symbols in a deterministic order: of parameters' sizes, expressions, then containers."""
    found: dict[Symbol, None] = {}
    params: set[Symbol] = set()

    def visit(e: IntLike) -> None:
        if isinstance(e, Expr):
            for s in sorted(free_symbols(e), key=lambda s: s.uid):
                found.setdefault(s)

    def walk(n: Nest) -> None:
        params.update(n.params)
        for p in n.params:
            visit(p.size)
        for node in n.body:
            if isinstance(node, Nest):
                walk(node)

    walk(nest)
    for e in nest.expressions():
        visit(e)
    for c in used:
        for e in (*containers[c].shape, *containers[c].actual_strides):
            visit(e)
    return [s for s in found if s not in params]


def _fills(nest: Nest, names: Names, shared: Collection[str]) -> list[tuple[Nest, bool]]:
    """For each container that is combined into: the nest that sets it to the identity, and whether it must always run."""
    out: list[tuple[Nest, bool]] = []

    def visit(n: Nest, scope: frozenset[Symbol]) -> None:
        scope = scope | frozenset(n.params)
        for node in n.body:
            if isinstance(node, Nest):
                visit(node, scope)
                continue
            for g in groups(node, scope):
                for k, name in enumerate(g.names):
                    ref = node.writes[name]
                    if g.combiner is None or ref.local or g.scan is not None:
                        continue
                    c = names.containers[ref.container]
                    covered = prove_eq(product(p.size for p in g.kept), c.size) is True and not any(
                        depends(e.expr, g.kept) for e in ref.guard
                    )
                    needed = g.scatters or (not covered and ref.container not in shared)
                    out.append((_fill(c, identity(g.combiner, k, c.dtype)), needed))

    visit(nest, frozenset())
    return out


def _fill(c: Container, value: Scalar) -> Nest:
    params = [index(f"f{k}", n) for k, n in enumerate(c.shape)]
    address = summation(p * s for p, s in zip(params, c.actual_strides, strict=True))
    return Nest(params, [Code({}, {"y": Ref(c.name, c.dtype, address)}, {"y": value})])


def emit_source(kernels: Iterable[Kernel], units: int = 4) -> dict[str, str]:
    """Kernels grouped into at most `units` translation units of about equal length, as text by file name; equal kernels once."""
    distinct = {k.name: k for k in kernels}
    bins: list[list[Kernel]] = [[] for _ in range(max(1, min(units, len(distinct))))]
    load = [0] * len(bins)
    for k in sorted(distinct.values(), key=lambda k: (-len(k.source), k.name)):
        at = load.index(min(load))
        bins[at].append(k)
        load[at] += len(k.source)
    texts = ("\n".join(k.source for k in sorted(b, key=lambda k: k.name)) for b in bins if b)
    return {f"kernels_{n}.cpp": (SPECIAL if "sh::special::" in t else "") + PRELUDE + "\n" + t for n, t in enumerate(texts)}


__all__ = ["Kernel", "emit_kernel", "emit_source"]
