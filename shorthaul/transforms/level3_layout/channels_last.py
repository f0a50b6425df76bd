"""ChannelsLast: the layout of images, over forward and backward jointly."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Union

from shorthaul.analysis.reorders import channels_last_strides, reordered
from shorthaul.ir.builder import at, fresh_params, make_map
from shorthaul.ir.containers import Container, strides_in_order
from shorthaul.ir.edit import Edit
from shorthaul.ir.nodes import AUTO, LibraryCall, Map
from shorthaul.ir.program import Program
from shorthaul.ir.rewrite import rename
from shorthaul.symbolic import Expr, Symbol, product

from ..base import Match, Transformation, hint_value, require

IntLike = Union[int, Expr]
_SPATIAL = ("conv", "pool")


def is_image(program: Program, name: str) -> bool:
    """A transient of rank 3 to 5 whose layout is ours to choose: of floating dtype, or between maps alone, as the places of maxima."""
    c = program.containers[name]
    if any(isinstance(w, Map) and w.schedule.get("pack") for w in program.writers(name)):
        return False
    return (
        (c.dtype.is_float or _is_ours(program, name))
        and 3 <= len(c.shape) <= 5
        and not c.is_external
        and c.role != "output"
        and c.role != "gradient"
        and c.alias is None
    )


class ChannelsLast(Transformation):
    """Lay out the images around convolutions channels-last, forward and backward alike.

    before:  y: f32[N, C, H, W]   (NCHW)         after:  y: f32[N, C, H, W] strides (H*W*C, 1, W*C, C)

    Channels innermost make 1x1 convolutions matrix products without a reorder and depthwise windows and per-channel maps vectors over
    channels. The layout spreads from convolutions along maps that access both containers at the same point; what only meets
    the caller's tensors keeps their layout. Depthwise weights are packed to match.

    keep: elements from which on the gradient of weights keeps their layout, if the images have not even a quarter of them. On a CPU such
    a gradient is a product that gives either layout (`codegen/library/convolution.py`), and its reader is the weights' update.
    """

    level = 3
    allowed = {"keep": range(1 << 40)}

    def __init__(self, keep: int = 0) -> None:
        self.keep = keep

    def matches(self, program: Program) -> Iterator[Match]:
        """One place: the program."""
        yield Match(program, {})

    def check(self, m: Match) -> None:
        kept = self._kept(m.program)
        seeds = _seeds(m.program) - kept
        require(bool(seeds), "there is no convolution or pooling of images whose layout is ours")
        chosen = _spread(m.program, seeds)
        weights = {w for _, w in _windows(m.program, chosen)}
        m.derived["chosen"] = frozenset(
            c
            for c in chosen - weights - kept
            if m.program.containers[c].actual_strides != channels_last_strides(m.program.containers[c].shape)
        )
        require(bool(m.chosen), "the images are laid out channels-last already")

    def _kept(self, program: Program) -> set[str]:
        found = set()
        for node in program.nodes:
            if self.keep and isinstance(node, LibraryCall) and node.function == "aten::conv_grad_weight":
                result = node.writes["y"].container
                x, y = (hint_value(program, product(program.containers[c].shape)) for c in (node.reads["x"].container, result))
                if y >= self.keep and y > 4 * x:
                    found.add(result)
        return found

    def saves(self, m: Match) -> IntLike:
        """Each container moves as a whole in either layout, but convolutions by library need not reorder it any more; packing reads and
        writes weights and the caller's images once."""
        p, total = m.program, self._reorders(m)
        for name in {weight for _, weight in _windows(p, m.chosen)}:
            if p.containers[name].is_external:
                total = total - 2 * p.containers[name].bytes
        for name in _foreign_inputs(p):
            total = total - 2 * p.containers[name].bytes
        return total

    def _reorders(self, m: Match) -> IntLike:
        """Bytes of the reorders inside library calls that the layout makes unnecessary."""
        p = m.program
        gone = set(m.chosen) | set(_foreign_inputs(p))
        total: IntLike = 0
        for node in p.nodes:
            if isinstance(node, LibraryCall):
                for name in reordered(node, p):
                    total = total + (2 * p.containers[name].bytes if name in gone else 0)
        return total

    def apply(self, m: Match, edit: Edit) -> None:
        for name in sorted(m.chosen):
            c = m.program.containers[name]
            edit.set_container(c.with_(strides=channels_last_strides(c.shape)))
        _pack_weights(m.program, edit, m.chosen)
        _pack_inputs(m.program, edit)


def assign_channels_last(program: Program, keep: int = 0) -> int:
    """Apply ChannelsLast. Returns how many containers changed."""
    t = ChannelsLast(keep)
    m = next(t.matches(program))
    return len(m.chosen) if t.try_apply(m) else 0


def _seeds(program: Program) -> set[str]:
    found: set[str] = set()
    for node in program.nodes:
        spatial = isinstance(node, LibraryCall) and any(s in node.function for s in _SPATIAL)
        windows = isinstance(node, Map) and any(s in node.name for s in ("conv", "pool"))
        if spatial or windows:
            found |= {c for c in program.reads_of(node) | program.writes_of(node) if is_image(program, c)}
    return found


def _spread(program: Program, seeds: set[str]) -> set[str]:
    chosen = set(seeds)
    todo = list(seeds)
    while todo:
        name = todo.pop()
        rank = len(program.containers[name].shape)
        for node in (*program.readers(name), *program.writers(name)):
            if not isinstance(node, Map):
                continue
            for other in program.reads_of(node) | program.writes_of(node):
                c = program.containers[other]
                if other not in chosen and is_image(program, other) and len(c.shape) == rank and _same_points(node, name, other):
                    chosen.add(other)
                    todo.append(other)
    return chosen


def _same_points(node: Map, a: str, b: str) -> bool:
    """Whether some access of each container runs over the channels by the same parameter in the same place."""
    subsets = {name: [x.memlet.subset for x in node.accesses() if x.memlet.container == name] for name in (a, b)}
    return any(isinstance(s[1], Symbol) and s[1] is t[1] for s in subsets[a] for t in subsets[b]) or any(
        s[1] == 0 and t[1] == 0 for s in subsets[a] for t in subsets[b]
    )


def _windows(program: Program, chosen: Collection[str]) -> Iterator[tuple[Map, str]]:
    """Depthwise windows over the images, each with a weight that it reads channel by channel."""
    for node in list(program.nodes):
        if not isinstance(node, Map) or program.reads_of(node).isdisjoint(chosen):
            continue
        reads = [a.memlet for a in node.accesses() if not a.is_write and not a.is_local]
        channels = {m.subset[1] for m in reads if m.container in chosen and isinstance(m.subset[1], Symbol)}
        for name in sorted({m.container for m in reads if m.subset and m.subset[0] in channels}):
            c = program.containers[name]
            if len(c.shape) >= 3 and c.shape[1] == 1 and (c.role in ("parameter", "input") or _is_ours(program, name)):
                yield node, name


def _is_ours(program: Program, name: str) -> bool:
    """A transient between maps, whose strides can be changed in place: a weight that was rounded to a narrower type, say."""
    c = program.containers[name]
    if c.is_external or c.alias is not None or name in program.results or program.aliases(name):
        return False
    return all(isinstance(n, Map) for n in (*program.readers(name), *program.writers(name)))


def _pack_weights(program: Program, edit: Edit, chosen: Collection[str]) -> None:
    """Weights of depthwise windows have the channels innermost, so that a vector of channels is one load; the caller's get a copy."""
    packed: dict[str, str] = {}
    for node, weight in _windows(program, chosen):
        c = program.containers[weight]
        if not c.is_external:
            edit.set_container(c.with_(strides=_innermost_first(c.shape)))
            continue
        if weight not in packed:
            packed[weight] = _pack(program, edit, weight, _innermost_first(program.containers[weight].shape))
        current = program.node(node.id)
        edit.replace(current, rename(current, {weight: packed[weight]}, fresh=False))


def _foreign_inputs(program: Program) -> list[str]:
    """The caller's images in another layout that convolutions by library read: a library would work in that layout."""
    found = []
    for name in program.signature.inputs:
        c = program.containers[name]
        if c.role == "input" and c.dtype.is_float and 3 <= len(c.shape) <= 5 and c.actual_strides != channels_last_strides(c.shape):
            if any(isinstance(r, LibraryCall) and _SPATIAL[0] in r.function for r in program.readers(name)):
                found.append(name)
    return found


def _pack_inputs(program: Program, edit: Edit) -> None:
    """The caller's images are copied into the layout once, for the forward and the backward convolution."""
    for name in _foreign_inputs(program):
        readers = [r for r in program.readers(name) if isinstance(r, LibraryCall)]
        packed = _pack(program, edit, name, channels_last_strides(program.containers[name].shape))
        for r in readers:
            edit.replace(r, rename(r, {name: packed}, fresh=False))


def _pack(program: Program, edit: Edit, name: str, strides: tuple[IntLike, ...]) -> str:
    """Copy a container into other strides before its first reader; gives the copy's name."""
    c = program.containers[name]
    p = fresh_params(c.shape)
    first = min(program.readers(name), key=program.position)
    copy = edit.add_container(Container(program.fresh(f"{name}_packed"), c.dtype, c.shape, strides))
    pack = make_map(p, {"x": at(c, *p)}, {"y": at(copy, *p)}, lambda x: {"y": x}, {name: c.dtype}, name="pack",
                    origins=first.origins, phase=first.phase, schedule=AUTO.with_options(pack=True))  # fmt: skip
    edit.add(pack, before=first)
    return copy.name


def _innermost_first(shape: tuple[IntLike, ...]) -> tuple[IntLike, ...]:
    """Strides with the first dimension innermost."""
    return strides_in_order(shape, (*range(1, len(shape)), 0))
