"""What a map's combining writes pass back to each iteration.

For a write `y[...] (combiner) = e` this gives the adjoint of the element `e` as scalar code ("seed"): for a sum the gradient of y itself;
for other combiners it also depends on y, on e and on small statistics that maps of their own compute first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shorthaul.ir.builder import fresh_params
from shorthaul.ir.containers import Container
from shorthaul.ir.derivative import NotDifferentiable
from shorthaul.ir.dtypes import DType
from shorthaul.ir.memlet import Indirect, Memlet
from shorthaul.ir.nodes import Tasklet
from shorthaul.ir.scalar import Scalar, apply, cast, const, read, reads_of, rewrite, where
from shorthaul.ir.scalar_ops import COMBINERS
from shorthaul.symbolic import Symbol

Reads = dict[str, Memlet]


@dataclass
class Reducer:
    """A map being reversed: its parameters, reads (to which seeds add their own), tasklet and code, and how to declare and emit."""

    params: tuple[Symbol, ...]
    reads: Reads
    tasklet: Tasklet
    code: Mapping[str, Scalar]
    value: Callable[[str], Container]
    declare: Callable[..., Container]
    emit: Callable[..., None]

    def read(self, c: Container, like: Memlet, hint: str, dtype: DType | None = None) -> Scalar:
        """Read another container where the tasklet writes `like`: same subset, zero where the write does not happen."""
        name, i = hint, 0
        while name in self.reads:
            i += 1
            name = f"{hint}{i}"
        self.reads[name] = Memlet(c.name, like.subset, like.guard, 0 if like.guard else None)
        return cast(read(name, c.dtype), dtype or c.dtype.compute)

    def reduce(self, like: Memlet, value: Scalar, combine: str, hint: str) -> Container:
        """A statistic with one element per element of `like`'s container: `value` combined over the iterations that write it."""
        target = self.value(like.container)
        result = self.declare(hint, value.dtype, target.shape)
        value = stored(value, self.reads, self.value)
        used = closure(value, self.reads)
        used = used | {s.name for s in like.subset if isinstance(s, Indirect)}
        reads = {k: m for k, m in self.reads.items() if k in used}
        write = like.with_(container=result.name, combine=combine, scan=None)
        self.emit(self.params, reads, {"y": write}, {"y": value}, hint)
        return result


def stored(code: Scalar, reads: Reads, value: Callable[[str], Container]) -> Scalar:
    """The code with every read in its container's own dtype."""

    def leaf(n: Scalar) -> Scalar | None:
        if n.op != "read" or n.attr not in reads:
            return None
        dtype = value(reads[n.attr].container).dtype  # type: ignore[index]
        return cast(read(n.attr, dtype), n.dtype) if dtype is not n.dtype else None  # type: ignore[arg-type]

    return rewrite(code, leaf)


def closure(code: Scalar, reads: Reads) -> set[str]:
    """Reads that the code uses, and those that their indirect subscripts use."""
    used = set(reads_of(code))
    return used | {s.name for k in used for s in reads[k].subset if isinstance(s, Indirect)}


def seeds(r: Reducer, incoming: Mapping[str, Container]) -> dict[str, Scalar]:
    """The adjoint of each write's element, by connector."""
    found: dict[str, Scalar] = {}
    done: set[str] = set()
    for k in incoming:
        w = r.tasklet.writes[k]
        if w.combine is None:
            found[k] = r.read(incoming[k], w, "gradient")
        elif w.combine in done:
            continue
        elif w.combine in _RULES:
            if len(COMBINERS[w.combine].components) > 1:
                done.add(w.combine)
            if w.scan is not None and w.combine != "sum":
                raise NotDifferentiable(f"prefixes of the combiner {w.combine} have no derivative rule")
            found.update(_RULES[w.combine](r, k, incoming))
        else:
            raise NotDifferentiable(f"the combiner {w.combine} has no derivative rule")
    return found


def _element(r: Reducer, k: str) -> Scalar:
    """The element that the iteration gives to write k, in its compute dtype."""
    return cast(r.code[k], r.code[k].dtype.compute)


def _sum(r: Reducer, k: str, incoming: Mapping[str, Container]) -> dict[str, Scalar]:
    w = r.tasklet.writes[k]
    if w.scan is None:
        return {k: r.read(incoming[k], w, "gradient")}
    # y[i] = sum of e[j], j <= i: the adjoint of e[i] is the sum of the gradients from the end back to i
    axes = [d for d, s in enumerate(w.subset) if s is w.scan]
    if len(axes) != 1 or w.guard:
        raise NotDifferentiable(f"prefixes along {w.scan} of {w} are not along one dimension")
    axis, g = axes[0], incoming[k]
    params = fresh_params(g.shape)
    back = list(params)
    last = g.shape[axis] - 1
    suffix = r.declare("suffix", g.dtype.compute, g.shape)
    reads = {"g": Memlet(g.name, tuple(last - p if d == axis else p for d, p in enumerate(back)))}
    write = Memlet(suffix.name, tuple(params), combine="sum", scan=params[axis])
    r.emit(params, reads, {"y": write}, lambda g: {"y": cast(g, suffix.dtype)}, "suffix_sum")
    flipped = w.with_(subset=tuple(last - s if d == axis else s for d, s in enumerate(w.subset)), combine=None, scan=None)  # type: ignore[operator]
    return {k: r.read(suffix, flipped, "gradient")}


def _extremum(r: Reducer, k: str, incoming: Mapping[str, Container]) -> dict[str, Scalar]:
    # elements that tie share the gradient equally, as PyTorch's amax
    w = r.tasklet.writes[k]
    e = _element(r, k)
    best = r.read(r.value(w.container), w, "best", e.dtype)
    hit = apply("eq", e, best)
    ties = r.reduce(w, cast(hit, e.dtype), "sum", "ties")
    share = r.read(incoming[k], w, "gradient", e.dtype) / r.read(ties, w, "ties", e.dtype)
    return {k: where(hit, share, 0)}


def _prod(r: Reducer, k: str, incoming: Mapping[str, Container]) -> dict[str, Scalar]:
    # the product of the other elements: exact also where one or more elements are zero
    w = r.tasklet.writes[k]
    e = _element(r, k)
    is_zero = apply("eq", e, 0)
    rest = r.read(r.reduce(w, where(is_zero, 1, e), "prod", "nonzero_product"), w, "rest", e.dtype)
    zeros = r.read(r.reduce(w, cast(is_zero, e.dtype), "sum", "zeros"), w, "zeros", e.dtype)
    others = where(is_zero, where(apply("eq", zeros, 1), rest, 0), where(apply("eq", zeros, 0), rest / where(is_zero, 1, e), 0))
    return {k: r.read(incoming[k], w, "gradient", e.dtype) * others}


def _welford(r: Reducer, k: str, incoming: Mapping[str, Container]) -> dict[str, Scalar]:
    # N = sum n_i, mean = sum n_i x_i / N, m2 = sum (m2_i + n_i (x_i - mean)^2); counts carry no gradient
    w = r.tasklet.writes
    count, mean = _element(r, "count"), _element(r, "mean")
    if reads_of(count) and "count" in incoming:
        raise NotDifferentiable("the count of a Welford reduction is differentiated")
    total = r.read(r.value(w["count"].container), w["count"], "total_count", mean.dtype)
    middle = r.read(r.value(w["mean"].container), w["mean"], "total_mean", mean.dtype)
    found: dict[str, Scalar] = {}
    if "mean" in incoming:
        found["mean"] = r.read(incoming["mean"], w["mean"], "gradient_mean", mean.dtype) * (count / total)
    if "m2" in incoming:
        g = r.read(incoming["m2"], w["m2"], "gradient_m2", mean.dtype)
        spread = g * (2 * count * (mean - middle))
        found["mean"] = found["mean"] + spread if "mean" in found else spread
        found["m2"] = g
    return found


def _arg(r: Reducer, k: str, incoming: Mapping[str, Container]) -> dict[str, Scalar]:
    w = r.tasklet.writes
    e = _element(r, "value")
    chosen = r.read(r.value(w["index"].container), w["index"], "chosen")
    g = r.read(incoming["value"], w["value"], "gradient", e.dtype)
    return {"value": where(apply("eq", r.code["index"], chosen), g, 0)}


def _online_softmax(r: Reducer, k: str, incoming: Mapping[str, Container]) -> dict[str, Scalar]:
    # M = max m_i, S = sum s_i exp(m_i - M); dS/dM = -S
    w = r.tasklet.writes
    m, s = _element(r, "max"), _element(r, "sum")
    top = r.read(r.value(w["max"].container), w["max"], "top", m.dtype)
    zero = const(0, m.dtype)
    gm = r.read(incoming["max"], w["max"], "gradient_max", m.dtype) if "max" in incoming else zero
    found: dict[str, Scalar] = {}
    scaled = zero
    if "sum" in incoming:
        gs = r.read(incoming["sum"], w["sum"], "gradient_sum", m.dtype)
        factor = apply("exp", m - top)
        found["sum"] = gs * factor
        scaled = gs * s * factor
        gm = gm - gs * r.read(r.value(w["sum"].container), w["sum"], "whole", m.dtype)
    hit = apply("eq", m, top)
    ties = r.read(r.reduce(w["max"], cast(hit, m.dtype), "sum", "ties"), w["max"], "ties", m.dtype)
    found["max"] = where(hit, gm / ties, 0) + scaled
    return found


_RULES: dict[str, Callable[[Reducer, str, Mapping[str, Any]], dict[str, Scalar]]] = {
    "sum": _sum, "max": _extremum, "min": _extremum, "prod": _prod, "welford": _welford, "argmax": _arg, "argmin": _arg,
    "online_softmax": _online_softmax,
}  # fmt: skip
