"""Writes the source of a kernel from a plan over two block axes (`blocks`)."""

from __future__ import annotations

import itertools
import keyword
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Union

from shorthaul.ir.dtypes import DType, bool_, float64
from shorthaul.ir.memlet import Condition, Memlet
from shorthaul.ir.nodes import Tasklet
from shorthaul.ir.scalar import Scalar, walk
from shorthaul.ir.scalar_ops import COMBINERS, identity
from shorthaul.symbolic import Expr, Symbol, bounds, product

from .accumulate import wide_type
from .block_scans import scan_step, scanned
from .block_states import Deps, Partial, State, counting, partial_name
from .blocks import BlockAxis, BlockPlan, Group, Stage
from .contraction import strip_cast
from .emit import pointer_name
from .plan import NotSchedulable, free
from .text import TRITON_TYPES, alone, combiner_text, computed, index_text, literal
from .windows import points

IntLike = Union[int, Expr]
NONE: Deps = frozenset()


@dataclass
class BlockEmitter:
    """State of one kernel's source."""

    plan: BlockPlan
    lines: list[str] = field(default_factory=list)
    indent: int = 1
    pointers: dict[str, None] = field(default_factory=dict)
    sizes: dict[str, Symbol] = field(default_factory=dict)
    helpers: dict[str, str] = field(default_factory=dict)
    partials: list[Partial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memo: list[dict[tuple, tuple[str, Deps]]] = [{}]
        self.names: dict[Expr, str] = {}
        self.dims: dict[Symbol, Deps] = {}
        self.masks: dict[Symbol, str] = {}
        self.locals: list[dict[tuple, tuple[str, Deps, tuple]]] = [{}]
        self.looped: dict[str, int] = {}  # bytes an element of the blocks that are loaded in the loops that are open
        self.taken = {"tl", "pid", "triton", "libdevice", "chunk", "CHUNKS", "INDEX", "STAGES"}
        self.taken.update(f"{x.name}{end}" for x in self.plan.axes for end in ("", "_in", "_tile", "_step"))
        self.shape = tuple(self._block(d) for d in (0, 1))

    def _block(self, dim: int) -> str:
        found = [x.block for x in self.plan.axes if x.dim == dim]
        return found[0] if found else "1"

    # text -------------------------------------------------------------------------------------------------------------
    def line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def fresh(self, hint: str) -> str:
        base = re.sub(r"\W", "_", hint).strip("_") or "v"
        base = f"v{base}" if base[0].isdigit() else f"{base}_value" if keyword.iskeyword(base) else base
        name = next(n for n in itertools.chain([base], (f"{base}_{i}" for i in itertools.count(1))) if n not in self.taken)
        self.taken.add(name)
        return name

    def named(self, hint: str, text: str) -> str:
        if text.isidentifier():
            return text
        if (found := self.find(("text", text))) is not None:
            return found[0]
        var = self.fresh(hint)
        self.line(f"{var} = {text}")
        self.memo[-1]["text", text] = var, NONE
        return var

    def find(self, key: tuple) -> tuple[str, Deps] | None:
        return next((scope[key] for scope in reversed(self.memo) if key in scope), None)

    def ix(self, e: IntLike) -> str:
        for s in free(e):
            if s not in self.names:
                self.sizes[s.name] = s
        return index_text(e, self.names)

    def block_shape(self, deps: Iterable[int], stage: Stage | None = None) -> str:
        deps = set(deps)
        b = stage.b.block if stage is not None and stage.b is not None else self.shape[1]
        return f"[{self.shape[0] if 0 in deps else '1'}, {b if 1 in deps else '1'}]"

    @contextmanager
    def scope(self) -> Iterator[None]:
        self.indent += 1
        self.memo.append({})
        self.locals.append({})
        yield
        self.locals.pop()
        self.memo.pop()
        self.indent -= 1

    # axes -------------------------------------------------------------------------------------------------------------
    def define(self, axis: BlockAxis, offset: str) -> None:
        spread = "[:, None]" if axis.dim == 0 else "[None, :]"
        self.taken.add(axis.name)
        self.line(f"{axis.name} = {offset + ' + ' if offset != '0' else ''}tl.arange(0, {axis.block}){spread}")
        self.line(f"{axis.name}_in = {axis.name} < {self.ix(axis.size)}")
        self.masks[axis.index] = f"{axis.name}_in"
        self.names[axis.index] = axis.name
        self.dims[axis.index] = frozenset([axis.dim])  # type: ignore[list-item]

    def grid(self) -> None:
        grid = self.plan.grid
        if grid:
            self.line("pid = tl.program_id(0)")
        for at, (axis, kind) in enumerate(grid):
            last = at == len(grid) - 1
            count = f"tl.cdiv({self.ix(axis.size)}, {axis.block})" if kind == "tile" else "CHUNKS"
            name = f"{axis.name}_tile" if kind == "tile" else "chunk"
            self.line(f"{name} = pid{'' if last else f' % ({count})'}")
            if not last:
                self.line(f"pid = pid // ({count})")
            if kind == "tile":
                self.define(axis, f"{name}.to(INDEX) * {axis.block}")
        for axis in self.plan.axes:
            if axis.mode == "whole":
                self.define(axis, "0")

    def expr_dims(self, e: object) -> Deps:
        found = NONE
        for s in free(e):
            found |= self.dims.get(s, NONE)
        return found

    # values -----------------------------------------------------------------------------------------------------------
    def value(self, t: Tasklet, node: Scalar, hint: str = "") -> tuple[str, Deps]:
        """Text and block dimensions of scalar code; everything is computed once a scope."""
        if node.op == "read":
            return self.read(t, str(node.attr))
        if node.op == "const":
            text = literal(node.attr)
            return (f"tl.full([1, 1], {text}, tl.float64)", NONE) if node.dtype is float64 else (text, NONE)
        key = ("value", id(t), node, *self.plan.at.items())
        found = self.find(key)
        if found is not None:
            return found
        if node.op == "index":
            e = self.plan.expr(node.attr)  # type: ignore[arg-type]
            result = self.named("index", f"as_int64({self.ix(e)})"), self.expr_dims(e)
        else:
            args = [self.value(t, a) for a in node.args]
            deps: Deps = frozenset().union(*(d for _, d in args))
            texts = [f"tl.full([1, 1], {x}, {TRITON_TYPES[a.dtype.name]})" if a.op == "const" and a.dtype is not float64 and alone(node)
                     else x for (x, _), a in zip(args, node.args, strict=True)]  # fmt: skip
            text = computed(node, texts)
            result = (self.named(hint or node.op, text) if self._shared(t, node) or len(text) > 60 else text), deps
        self.memo[-1][key] = result
        return result

    def _shared(self, t: Tasklet, node: Scalar) -> bool:
        counts = self.__dict__.setdefault("_counts", {})
        if id(t) not in counts:
            mine: dict[Scalar, int] = {}
            for n in walk(*t.code.values()):
                for x in n.args:
                    mine[x] = mine.get(x, 0) + 1
            for root in t.code.values():
                mine[root] = mine.get(root, 0) + 1
            counts[id(t)] = mine
        return counts[id(t)].get(node, 1) > 1

    def place(self, t: Tasklet, m: Memlet) -> tuple[str, Deps]:
        """Offset of an element from its container's pointer."""
        base, indirect = self.plan.address(m)
        deps = self.expr_dims(base)
        parts = [self.ix(base)] if base != 0 or not indirect else []
        for name, stride in indirect:
            text, d = self.read(t, name)
            deps |= d
            parts.append(text if stride == 1 else f"{text} * ({self.ix(self.plan.expr(stride))})")
        return " + ".join(parts), deps

    def conditions(self, t: Tasklet, guard: Sequence[Condition], deps: Deps) -> tuple[list[str], Deps]:
        """Masks of the block axes along which something varies, and a guard's conditions."""
        for c in guard:
            deps |= self.expr_dims(self.plan.expr(c.expr))
        texts = [self.masks[x.index] for x in self.plan.axes if x.index in self.masks and x.dim in deps and self._open(x)]
        for c in guard:
            if self.holds(c) is not True:
                texts.append(f"({self.ix(self.plan.expr(c.expr))} {'>=' if c.relation == 'ge' else '=='} 0)")
        return texts, deps

    def holds(self, c: Condition) -> bool | None:
        """Whether a condition holds for all points of the block or for none; None: that depends."""
        low, high = bounds(self.plan.expr(c.expr))
        if c.relation == "ge":
            return True if low is not None and low >= 0 else False if high is not None and high < 0 else None
        inside = (low is None or low <= 0) and (high is None or high >= 0)
        return True if low == high == 0 else None if inside else False

    def _open(self, axis: BlockAxis) -> bool:
        return axis is self.plan.a or self.stage is None or axis is self.stage.b

    stage: Stage | None = None

    def read(self, t: Tasklet, name: str) -> tuple[str, Deps]:
        """Load what arrives at a connector; the same element is loaded once a scope."""
        m = t.reads[name]
        if m.container in self.plan.local_names:
            return self.read_local(m)
        c = self.plan.containers[m.container]
        zero: object = False if c.dtype is bool_ else 0
        if any(self.holds(x) is False for x in m.guard):
            return f"tl.full([1, 1], {literal(zero if m.fill is None else m.fill)}, {TRITON_TYPES[c.dtype.name]})", NONE
        place, deps = self.place(t, m)
        texts, full = self.conditions(t, m.guard, deps)
        pointer = self.pointer(m.container)
        key = ("load", pointer, place, tuple(texts), m.fill)
        found = self.find(key)
        if found is not None:
            return found
        target = f"{pointer} + {place}" if place != "0" else pointer
        if full != deps or place == "0" or not deps:
            target += f" + tl.zeros({self.block_shape(full, self.stage)}, tl.int32)"
        if texts:
            other = zero if m.fill is None else m.fill
            if isinstance(other, float) and not math.isfinite(other) and not c.dtype.is_float:
                raise NotSchedulable(f"{m} is filled with {other}")
            target += f", mask={' & '.join(texts)}, other={literal(other)}"
        var = self.fresh(name)
        self.line(f"{var} = tl.load({target})")
        self.memo[-1][key] = var, full
        if len(full) == sum(size != "1" for size in self.shape):
            for axis in self.looped:
                self.looped[axis] += c.dtype.itemsize
        return var, full

    def read_local(self, m: Memlet) -> tuple[str, Deps]:
        subset = tuple(self.plan.expr(s) for s in m.subset)  # type: ignore[arg-type]
        for scope in reversed(self.locals):
            if (key := self.copy_of(m.container)) in scope:
                var, deps, held = scope[key]
                if m.guard or any(a is not b and a != b for a, b in zip(held, subset, strict=True)):
                    break
                return var, deps
        raise NotSchedulable(f"map {self.plan.map.label}: local {m.container} is read where its block does not hold that element")

    def pointer(self, name: str) -> str:
        self.pointers[name] = None
        return pointer_name(name)

    # the tree ---------------------------------------------------------------------------------------------------------
    def kernel(self) -> None:
        """The whole body."""
        self.grid()
        a = self.plan.a
        if a is None or a.mode != "loop":
            self.stages([])
            return
        late = [x for s in self.plan.stages for g in s.groups if g.combine and not g.scatters and self._late(g)
                for x in self.start(s, g, "kernel")]  # fmt: skip
        self.hoist(a)
        with self.loop(a):
            self.stages(late)
        for state in late:
            self.finish(state)

    def _late(self, g: Group) -> bool:
        return self.plan.a is not None and self.plan.reduces(g, self.plan.a)

    @contextmanager
    def loop(self, axis: BlockAxis) -> Iterator[None]:
        if axis.mode == "serial":
            static = isinstance(axis.size, int) and axis.size <= 9
            self.taken.add(axis.name)
            self.line(f"for {axis.name} in {'tl.static_range' if static else 'range'}({self.ix(axis.size)}):")
            self.names[axis.index] = axis.name
            with self.scope():
                yield
            return
        step = self.fresh(f"{axis.name}_step")
        self.line(f"for {step} in tl.range({axis.steps}, num_stages=STAGES):")
        with self.scope():
            self.looped[axis.name] = 0
            first = f"(chunk.to(INDEX) * {axis.steps} + {step})" if axis.chunked else f"tl.cast({step}, INDEX)"
            self.define(axis, f"{first} * {axis.block}")
            yield
            self.plan.loop_bytes = max(self.plan.loop_bytes, self.looped.pop(axis.name))

    def hoist(self, axis: BlockAxis) -> None:
        """Load before a loop what does not change in it."""
        written_out = [x.inner for x in self.plan.splits]
        inner = [axis.index, *written_out, *(x.index for x in self.plan.axes if x.index not in self.names and x is not axis)]
        for s in self.plan.stages:
            written = {m.container for m in s.tasklet.writes.values()}
            self.stage = s
            for name, m in s.tasklet.reads.items():
                if m.container in self.plan.local_names or m.is_indirect or m.container in written:
                    continue
                base, _ = self.plan.address(m)
                used = free(base).union(*(free(self.plan.expr(c.expr)) for c in m.guard))
                if used.isdisjoint(inner):
                    self.read(s.tasklet, name)
            self.stage = None

    def stages(self, late: list[State]) -> None:
        for s in self.plan.stages:
            self.stage = s
            for o in s.tasklet.origins:
                self.line(f"# {o}"[: 118 - 4 * self.indent])
            mine = [x for x in late if x.tasklet is s.tasklet]
            own = [x for g in s.groups if g.combine and not g.scatters and not self._late(g) for x in self.start(s, g, "stage")]
            loops = [x for x in ((s.b,) if s.b is not None else ()) if x.mode == "loop"] + list(s.serial)
            self.nested(s, loops, [*mine, *own])
            for state in own:
                self.finish(state)
            self.stage = None

    def nested(self, s: Stage, loops: Sequence[BlockAxis], states: list[State]) -> None:
        if loops:
            self.hoist(loops[0])
            with self.loop(loops[0]):
                self.nested(s, loops[1:], states)
            return
        for at in points(self.plan.copies):
            with self.point(at):
                for g in s.groups:
                    if g.combine and g.scatters and self.plan.form == "serial":
                        self.read_modify_write(s.tasklet, g)
                    elif g.combine and g.scatters:
                        self.atomic(s.tasklet, g)
                    elif not g.combine:
                        self.write(s, g.connectors[0])
        for tap in points(s.taps):
            for state in states:
                with self.point({**state.at, **tap}):
                    self.add(state)

    @contextmanager
    def point(self, at: dict[Symbol, int]) -> Iterator[None]:
        """Write for these values of what is written out of a window."""
        before = self.plan.stand(at)
        yield
        self.plan.stand(before)

    # writes -----------------------------------------------------------------------------------------------------------
    def write(self, s: Stage, name: str) -> None:
        t, m = s.tasklet, s.tasklet.writes[name]
        value, deps = self.value(t, t.code[name], name)
        dtype = t.code[name].dtype
        if t.code[name].op == "const":
            value = f"tl.full([1, 1], {literal(t.code[name].attr)}, {TRITON_TYPES[dtype.name]})"
        if m.container in self.plan.local_names:
            local = self.plan.containers[m.container].dtype
            if local is not dtype:
                value = f"({value} != 0)" if local is bool_ else f"{value}.to({TRITON_TYPES[local.name]})"
            subset = tuple(self.plan.expr(x) for x in m.subset)  # type: ignore[arg-type]
            self.keep(m.container, self.named(m.container, value), deps, subset)
            return
        self.store(t, m, *self.place(t, m), value)

    def keep(self, name: str, value: str, deps: Deps, subset: tuple) -> None:
        """A local's value: known until the loop over rows ends."""
        self.locals[1 if self.plan.a is not None and self.plan.a.mode == "loop" else 0][self.copy_of(name)] = value, deps, subset

    def copy_of(self, name: str) -> tuple:
        """A local of the copy that is written now."""
        return name, *(self.plan.at[x.inner] for x in self.plan.copies)

    def store(self, t: Tasklet, m: Memlet, place: str, deps: Deps, value: str, guard: Sequence[Condition] | None = None) -> None:
        texts, full = self.conditions(t, m.guard if guard is None else guard, deps)
        target = self.target(m.container, place, deps, full)
        self.line(f"tl.store({target}, {value}{self.masked(texts)})")

    def target(self, container: str, place: str, deps: Deps, full: Deps) -> str:
        target = f"{self.pointer(container)} + {place}"
        return target if deps and full == deps else f"{target} + tl.zeros({self.block_shape(full, self.stage)}, tl.int32)"

    def masked(self, texts: Sequence[str]) -> str:
        return f", mask={' & '.join(texts)}" if texts else ""

    def atomic(self, t: Tasklet, g: Group) -> None:
        name = g.connectors[0]
        m = t.writes[name]
        code = strip_cast(t.code[name])
        value, deps = self.value(t, code, name)
        where, d = self.place(t, m)
        texts, full = self.conditions(t, m.guard, d | deps | frozenset(x.dim for x in self.plan.axes if x.dim is not None))  # type: ignore[arg-type]
        dtype = self.plan.containers[m.container].dtype
        value = f"tl.broadcast_to({value}, {self.block_shape(full, self.stage)})" if deps != full and code.op != "const" else value
        if code.op == "const":
            value = f"tl.full({self.block_shape(full, self.stage)}, {literal(code.attr)}, {TRITON_TYPES[dtype.name]})"
        elif code.dtype is not dtype:
            value = f"{value}.to({TRITON_TYPES[dtype.name]})"
        op = {"sum": "add", "max0": "max"}.get(str(g.combine), g.combine)
        self.line(f'tl.atomic_{op}({self.target(m.container, where, d, full)}, {value}{self.masked(texts)}, sem="relaxed")')

    def read_modify_write(self, t: Tasklet, g: Group) -> None:
        """Combine into memory one step after the other; blocks own what they write."""
        left = []
        for name in g.connectors:
            m = t.writes[name]
            where, d = self.place(t, m)
            texts, full = self.conditions(t, m.guard, d)
            var = self.fresh(f"{name}_old")
            self.line(f"{var} = tl.load({self.target(m.container, where, d, full)}{self.masked(texts)})")
            left.append(var)
        codes = [t.code[n] for n in g.connectors]
        dtypes = tuple(c.dtype for c in codes)
        right = [f"tl.full([1, 1], {literal(c.attr)}, {TRITON_TYPES[c.dtype.name]})" if c.op == "const" else self.value(t, c)[0]
                 for c in codes]  # fmt: skip
        names = [self.fresh(f"{n}_new") for n in g.connectors]
        self.line(f"{', '.join(names)} = {self.merge_call(str(g.combine), dtypes, left, right)}")
        self.line("tl.debug_barrier()")
        for name, var in zip(g.connectors, names, strict=True):
            m = t.writes[name]
            self.store(t, m, *self.place(t, m), var)
        self.line("tl.debug_barrier()")

    # reductions -------------------------------------------------------------------------------------------------------
    def start(self, s: Stage, g: Group, level: str) -> list[State]:
        """The states of a group, one for each copy."""
        return [self._start(s, g, level, at) for at in points(self.plan.copies)]

    def _start(self, s: Stage, g: Group, level: str, at: dict[Symbol, int]) -> State:
        t = s.tasklet
        codes = [strip_cast(t.code[c]) for c in g.connectors]
        dtypes = tuple(wide_type(c.dtype) for c in codes)
        axes = tuple(x for x in (self.plan.a, s.b, *s.serial) if x is not None)
        scope = [x for x in axes if level == "kernel" or x is not self.plan.a]
        dims = frozenset(x.dim for x in axes if x.dim is not None)  # type: ignore[misc]
        names = [self.fresh(f"{c}_state") for c in g.connectors]
        counted = frozenset(x.dim for x in axes if x.dim is not None and self.plan.reduces(g, x))
        counts = counting(str(g.combine), codes) if g.scan is None else frozenset()
        each = tuple(counted if i in counts else dims for i in range(len(codes)))
        state = State(g, t, names, dtypes, codes, dims, level, axes, at, each)  # type: ignore[arg-type]
        if scanned(state) is not None:  # one prefix a row
            state.each = each = tuple(d - {1} for d in each)
        loops = bool(s.taps) or any(x.mode in ("loop", "serial") for x in scope)
        if loops or g.scan is not None:
            for i, name in enumerate(names):
                neutral = self.neutral(state, i)
                self.line(f"{name} = tl.full({self.block_shape(each[i], s)}, {neutral}, {TRITON_TYPES[dtypes[i].name]})")
        else:
            state.level = "once"
        return state

    def neutral(self, s: State, at: int) -> str:
        logic = s.group.combine in ("any", "all")
        value = identity(str(s.group.combine), at, bool_ if logic else s.dtypes[at]).attr
        return literal(int(value) if isinstance(value, bool) else value)  # type: ignore[call-overload]

    def elements(self, s: State) -> list[str]:
        """The elements as states: neutral outside the reduced axes and where a guard fails."""
        t, g = s.tasklet, s.group
        reduced = frozenset(x.dim for x in s.axes if x.dim is not None and self.plan.reduces(g, x))
        guard = t.writes[g.connectors[0]].guard
        texts, _ = self.conditions(t, guard, reduced)  # type: ignore[arg-type]
        out = []
        for at, (code, dtype) in enumerate(zip(s.codes, s.dtypes, strict=True)):
            text, deps = self.value(t, code, g.connectors[at])
            if code.op == "const":
                text = f"tl.full([1, 1], {literal(int(code.attr) if code.dtype is bool_ else code.attr)}, {TRITON_TYPES[dtype.name]})"  # type: ignore[call-overload]
            elif code.dtype is not dtype:
                text = f"{text}.to({TRITON_TYPES[dtype.name]})"
            neutral = self.neutral(s, at)
            if g.combine == "sum" and not guard and s.level != "once" and reduced <= deps and self.zero_outside(t, code, reduced):  # type: ignore[operator]
                texts = []  # what is loaded there is zero already
            if texts and not (code.op == "const" and literal(code.attr) == neutral):
                text = f"tl.where({' & '.join(texts)}, {text}, {neutral})"
                deps |= reduced
            if s.level == "once" and not reduced <= deps:
                text = f"tl.broadcast_to({text}, {self.block_shape(deps | reduced, self.stage)})"
            out.append(text)
        return out

    def vanishes(self, t: Tasklet, node: Scalar) -> bool:
        """Whether an element is zero here, whatever is read: where a stride leaves a tap without an element."""
        if node.op == "read":
            m = t.reads[str(node.attr)]
            return not m.fill and any(self.holds(c) is False for c in m.guard)
        return node.op in ("cast", "mul") and any(self.vanishes(t, a) for a in node.args)

    def zero_outside(self, t: Tasklet, node: Scalar, dims: Deps) -> bool:
        """Whether an element is zero where the block passes the ends of these dimensions, because what it is made of is loaded as zero.

        Every factor has to be: an infinite one would give a NaN.
        """
        if node.op == "read":
            m = t.reads[str(node.attr)]
            return m.container not in self.plan.local_names and not m.fill and dims <= self.expr_dims(self.plan.address(m)[0])
        return node.op in ("cast", "mul", "neg", "add", "sub") and all(self.zero_outside(t, a, dims) for a in node.args)

    def add(self, s: State) -> None:
        if s.group.combine == "sum" and s.level != "once" and self.vanishes(s.tasklet, s.codes[0]):
            return
        elements = self.elements(s)
        if s.level == "once":
            for name, text in zip(s.names, elements, strict=True):
                self.line(f"{name} = {text}")
            return
        if s.group.scan is not None:
            scan_step(self, s, elements)
            return
        if len(s.names) > 1:
            # states are merged by a function of the whole tuple
            elements = [self.named(f"{c}_element", x) for c, x in zip(s.group.connectors, elements, strict=True)]
        self.line(f"{', '.join(s.names)} = {self.merge_call(str(s.group.combine), s.dtypes, s.names, elements)}")

    def merge_call(self, combine: str, dtypes: tuple[DType, ...], left: Sequence[str], right: Sequence[str]) -> str:
        if combine == "sum":
            return f"{left[0]} + {right[0]}"
        return f"{self.merge(combine, dtypes)}({', '.join([*left, *right])})"

    def merge(self, combine: str, dtypes: tuple[DType, ...]) -> str:
        """Name of the function that merges two states; written beside the kernel where it is not in the prelude."""
        c = COMBINERS[combine]
        name = "merge_max" if combine == "max0" else f"merge_{combine}"
        if len(c.components) > 1 and name not in self.helpers:
            left = tuple(Scalar("read", (), d, f"{x}_l") for x, d in zip(c.components, dtypes, strict=True))
            right = tuple(Scalar("read", (), d, f"{x}_r") for x, d in zip(c.components, dtypes, strict=True))
            self.helpers[name] = combiner_text(name, [*left, *right], c.merge(left, right))
        return name

    def finish(self, s: State) -> None:
        """Merge across the block and write the result: a local, the container, or a partial result."""
        if s.group.scan is None:
            with self.point(s.at):
                self._finish(s)

    def _finish(self, s: State) -> None:
        g = s.group
        names = list(s.names)
        dims = sorted(x.dim for x in s.axes if x.dim is not None and self.plan.reduces(g, x))  # type: ignore[type-var]
        if dims and len(names) > 1:
            full = self.block_shape(s.dims, self.stage or self._stage_of(s))
            names = [n if s.level != "once" and d == s.dims else self.named(f"{n}_all", f"tl.broadcast_to({n}, {full})")
                     for n, d in zip(names, s.each, strict=True)]  # fmt: skip
        for d in dims:
            out = [self.fresh(f"{c}_total") for c in g.connectors]
            if g.combine == "sum":
                self.line(f"{out[0]} = tl.sum({names[0]}, axis={d}, keep_dims=True)")
            else:
                operand = names[0] if len(names) == 1 else f"({', '.join(names)})"
                self.line(f"{', '.join(out)} = tl.reduce({operand}, {d}, {self.merge(str(g.combine), s.dtypes)}, keep_dims=True)")
            names = out
        if any(x.chunked and self.plan.reduces(g, x) for x in s.axes):
            self.store_partial(s, names)
            return
        deps = s.dims - set(dims)
        before, self.stage = self.stage, self.stage or self._stage_of(s)
        for at, c in enumerate(g.connectors):
            m = s.tasklet.writes[c]
            text = self.result(s, at, names[at])
            if g.is_local:
                subset = tuple(self.plan.expr(x) for x in m.subset)  # type: ignore[arg-type]
                self.keep(m.container, self.named(m.container, text), deps, subset)
                continue
            own = frozenset(x.index for x in s.axes if self.plan.reduces(g, x))
            guard = [c for c in m.guard if free(self.plan.expr(c.expr)).isdisjoint(own)]
            self.store(s.tasklet, m, *self.place(s.tasklet, m), text, guard)
        self.stage = before

    def _stage_of(self, s: State) -> Stage:
        return next(x for x in self.plan.stages if x.tasklet is s.tasklet)

    def result(self, s: State, at: int, text: str) -> str:
        """A state as the element that is written, rounded as the code says."""
        dtype = s.tasklet.code[s.group.connectors[at]].dtype
        if dtype is bool_:
            return f"({text} != 0)"
        return text if dtype is s.dtypes[at] else f"{text}.to({TRITON_TYPES[dtype.name]})"

    def store_partial(self, s: State, names: Sequence[str]) -> None:
        kept = [x for x in s.axes if not self.plan.reduces(s.group, x)]
        if len(kept) > 1:
            raise NotSchedulable(f"map {self.plan.map.label}: partial results along two axes")
        before, self.stage = self.stage, self._stage_of(s)
        rows = tuple(x.inner for x in self.plan.copies)
        params = (*rows, *(kept[0].params if kept else ()))
        row: IntLike = 0
        for p in rows:
            row = row * p.size + s.at[p]
        size = product(p.size for p in params)
        parts = [kept[0].name if kept else "", self.ix(row * (kept[0].size if kept else 1)) if rows else ""]
        place = " + ".join([*filter(None, parts), f"chunk.to(INDEX) * ({self.ix(size)})" if params else "chunk"])
        deps: Deps = frozenset([kept[0].dim]) if kept else NONE  # type: ignore[list-item]
        texts, _ = self.conditions(s.tasklet, (), deps)
        for c, name in zip(s.group.connectors, names, strict=True):
            target = self.target(partial_name(s.tasklet.writes[c]), place, deps, deps)
            self.line(f"tl.store({target}, {name}{self.masked(texts)})")
        self.stage = before
        if not any(s.at.values()):  # once for all copies
            self.partials.append(Partial(s, params))
