"""ImageFusion: a window (depthwise convolution, pooling) and its neighbours become one kernel over the images of a batch."""

from __future__ import annotations

from shorthaul.ir.nodes import Access, Map
from shorthaul.ir.program import Program
from shorthaul.symbolic import Symbol, prove_le

from ..base import hint_value, require
from .compose import same_size
from .reduction_fusion import ReductionFusion


class ImageFusion(ReductionFusion):
    """Put a map and the window map that reads its result under one loop over the batch; the image between them stays in the cache.

    before:  map n, c, h, w: z[n, c, h, w] = silu(a[c]*x[n, c, h, w] + b[c])
             map n, c, h, w, i, j: y[n, c, h, w] (sum) = z[n, c, h+i, w+j] * k[c, i, j]
    after:   map n: (map c, h, w: z[c, h, w] = silu(...);  map c, h, w, i, j: y[n, c, h, w] (sum) = z[c, h+i, w+j] * k[c, i, j])

    A window reads each element several times, so substitution would evaluate the producer as often; here it runs once an element,
    and its result never reaches memory. row_bytes: the largest image (all containers together) that the cache is trusted to hold.
    interleaved: see `ReductionFusion`.
    """

    level = 2
    tunable = {"row_bytes": (1 << 18, 1 << 20, 1 << 26)}

    def __init__(self, row_bytes: int = 16 * 1024 * 1024, interleaved: int = 1) -> None:
        super().__init__(row_bytes, interleaved)

    def require_images(self, p: Program, a: Map, b: Map, mid: str) -> None:
        """Raise Refusal unless `b` could read `mid` image by image from `a`."""
        pairs = self._rows(p, a, b, mid)
        self._require_rows_in_cache(p, a, [pa for pa, _ in pairs])
        self._require_rows_in_cache(p, b, [pb for _, pb in pairs])

    def _rows(self, p: Program, a: Map, b: Map, mid: str) -> list[tuple[Symbol, Symbol]]:
        window = any(x.memlet.combine and not x.is_local for m in (a, b) for x in m.accesses() if x.is_write)
        nested = a.tasklet is None or b.tasklet is None
        require(window or nested, "neither combines values; see MapFusion")
        if not nested:
            repeated = prove_le(b.domain, a.domain) is not True or any(x.memlet.combine for x in a.accesses() if x.is_write)
            require(repeated, "the consumer reads each element once; see MapFusion")
        c = p.containers[mid]
        require(len(c.shape) >= 3, "there are no images")
        writes = [x for x in a.accesses() if x.is_write and x.memlet.container == mid and not x.is_local]
        reads = [x for x in b.accesses() if not x.is_write and x.memlet.container == mid and not x.is_local]
        pairs = []
        for d, stride in enumerate(c.actual_strides):
            pa, pb = _plain(writes, d), _plain(reads, d)
            if pa in a.params and pb in b.params and pa is not None and pb is not None and same_size(pa.size, pb.size) and stride != 1:
                pairs.append((hint_value(p, stride), pa, pb))
        require(bool(pairs), "the consumer does not follow the producer's images")
        _, pa, pb = max(pairs, key=lambda t: t[0])
        require(hint_value(p, pa.size) >= 2, "there is one image only")
        for m, q in ((a, pa), (b, pb)):
            require(m.tasklet is not None or {x for x in m.params if x.size != 1} == {q}, "the nested kernel runs over other rows")
        return [(pa, pb)]


def _plain(accesses: list[Access], d: int) -> Symbol | None:
    """The parameter that all accesses have as their subscript of dimension d."""
    found = {x.memlet.subset[d] for x in accesses}
    s = found.pop() if len(found) == 1 else None
    return s if isinstance(s, Symbol) else None
