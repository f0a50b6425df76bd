"""Writes the source of a Triton kernel from a plan: a walk over the map tree that prints block operations."""

from __future__ import annotations

import itertools
import keyword
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Union

from shorthaul.ir.dtypes import DType, bool_
from shorthaul.ir.memlet import Indirect, Memlet
from shorthaul.ir.nodes import Map, Node, Tasklet
from shorthaul.ir.scalar import Scalar, cast, walk
from shorthaul.ir.scalar_ops import COMBINERS
from shorthaul.symbolic import Atom, Expr, FloorDiv, Mod, Symbol, free_symbols, substitute

from .accumulate import Accumulator
from .contraction import Contraction, strip_widening
from .loops import Nest
from .plan import Axis, NotSchedulable, Plan, Write, free
from .text import TRITON_TYPES, combiner_text, index_text, literal, operation_text

IntLike = Union[int, Expr]
Deps = frozenset[Symbol]
NONE: Deps = frozenset()


class Emitter:
    """State of one kernel's source: lines, names of what has been computed, open axes."""

    def __init__(self, plan: Plan, precision: str = "ieee") -> None:
        self.plan = plan
        self.precision = precision
        self.lines: list[str] = []
        self.indent = 1
        self.memo: list[dict[tuple, str]] = [{}]
        self.names: dict[Expr, str] = {}  # axis indices and their quotients in the current orientation
        self.masks: dict[Symbol, str] = {}
        self.taps: dict[Symbol, int] = {}  # unrolled parameters that have a value now
        self.locals: dict[str, tuple[str, Deps, tuple]] = {}
        self.pointers: dict[str, None] = {}
        self.sizes: dict[str, Symbol] = {}
        self.taken: set[str] = {"tl", "pid", "triton", "libdevice"}
        self.opened: set[str] = set()
        self.accumulators: dict[tuple, Accumulator] = {}
        self.helpers: dict[str, str] = {}
        self.partials: list[Accumulator] = []
        self.view = ""  # orientation of the contraction axis: "", "a" or "b"
        self.roots = [n for _, t in plan.map.tasklets() for n in t.code.values()]
        self.atoms = self._atoms()

    # text -------------------------------------------------------------------------------------------------------------
    def line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def comment(self, text: str) -> None:
        for part in text.splitlines():
            self.line(f"# {part}"[: 118 - 4 * self.indent])

    def fresh(self, hint: str) -> str:
        """A variable name that is not taken."""
        base = re.sub(r"\W", "_", hint).strip("_") or "v"
        base = f"v{base}" if base[0].isdigit() else f"{base}_value" if keyword.iskeyword(base) else base
        name = next(
            n for n in itertools.chain([base], (f"{base}_{i}" for i in itertools.count(1))) if n not in self.taken
        )
        self.taken.add(name)
        return name

    def ix(self, e: IntLike) -> str:
        """Text of an expression in axis indices."""
        e = self.here(e)
        for s in free(e):
            if s not in self.names:
                self.sizes[s.name] = s
        return index_text(e, self.names)

    def here(self, e: IntLike) -> IntLike:
        return substitute(e, self.taps) if self.taps and not isinstance(e, int) else e

    def dim(self, idx: Symbol) -> int | None:
        for a in self.plan.axes:
            if a.index is idx:
                return {"a": 1, "b": 0}[self.view] if a.mode == "contract" else a.dim
        return None

    def shape(self, deps: Iterable[Symbol]) -> str:
        """Shape of a block that varies along the axes."""
        deps = set(deps)
        parts = ["1"] * self.plan.rank
        for a in self.plan.axes:
            d = self.dim(a.index) if a.index in deps and (a.mode != "contract" or self.view) else None
            if d is not None:
                parts[d] = a.block
        return f"[{', '.join(parts)}]"

    def _atoms(self) -> set[Atom]:
        found: set[Atom] = set()

        def visit(e: IntLike) -> None:
            if isinstance(e, Expr):
                for mono in e.terms:
                    for atom in mono:
                        if isinstance(atom, (FloorDiv, Mod)):
                            found.add(atom)
                            visit(atom.dividend)

        for a in self.plan.map.accesses():
            if a.memlet.container not in self.plan.local_names:
                visit(self.plan.address(a.memlet)[0])
            for c in a.memlet.guard:
                visit(self.plan.expr(c.expr))
        for root in self.roots:
            for n in walk(root):
                if n.op == "index":
                    visit(self.plan.expr(n.attr))  # type: ignore[arg-type]
        return found

    # axes -------------------------------------------------------------------------------------------------------------
    def define(self, axis: Axis, offset: str, blocked: bool = True, suffix: str = "") -> None:
        """Bind the axis' variable, its mask and the parameters behind it."""
        var = axis.name + suffix
        self.taken.add(var)
        if blocked:
            dim = self.dim(axis.index) or 0
            spread = "" if self.plan.rank == 1 else "[:, None]" if dim == 0 else "[None, :]"
            self.line(f"{var} = {offset + ' + ' if offset != '0' else ''}tl.arange(0, {axis.block}){spread}")
            self.line(f"{var}_in = {var} < {self.ix(axis.size)}")
            self.masks[axis.index] = f"{var}_in"
        else:
            self.line(f"{var} = {offset}")
        self.names[axis.index] = var
        for at, p in enumerate(axis.params):
            value = self.plan.values[p]
            if isinstance(value, (FloorDiv, Mod)) and value in self.atoms:
                name = self.fresh(f"{var}_{at}")  # by position: sources must not depend on how parameters are called
                text = index_text(value, {k: v for k, v in self.names.items() if k is not value})
                for s in free_symbols(value):
                    if s not in self.names:
                        self.sizes[s.name] = s
                self.line(f"{name} = {text}")
                self.names[value] = name

    @contextmanager
    def body(self) -> Iterator[None]:
        """An indented block with names of its own."""
        self.indent += 1
        self.memo.append({})
        names, masks, local = dict(self.names), dict(self.masks), dict(self.locals)
        yield
        self.names, self.masks, self.locals = names, masks, local
        self.memo.pop()
        self.indent -= 1

    def grid(self) -> None:
        """Find this program's place: lanes vary fastest, so that neighbours share rows in the cache."""
        grid = grid_axes(self.plan)
        self.line("place = tl.program_id(0)")
        for at, (axis, kind) in enumerate(grid):
            count = {
                "tile": f"tl.cdiv({self.ix(axis.size)}, {axis.block})",
                "program": self.ix(axis.size),
                "chunk": "CHUNKS",
            }[kind]
            last = at == len(grid) - 1
            name = {"tile": f"{axis.name}_tile", "program": axis.name, "chunk": "chunk"}[kind]
            if kind == "chunk" and not last:
                raise AssertionError("chunks vary slowest")
            if kind == "program":
                self.define(axis, "place" if last else f"place % ({count})", blocked=False)
            else:
                self.line(f"{name} = place{'' if last else f' % ({count})'}")
            if not last:
                self.line(f"place = place // ({count})")
            if kind == "tile":
                self.define(axis, f"{name}.to(INDEX) * {axis.block}")
        for axis in self.plan.axes:
            if axis.mode == "whole":
                self.define(axis, "0")
            if axis.resident:
                self.open_contract(axis, "0")
        self.opened = {a.name for a in self.plan.axes if a.mode in ("tile", "program", "whole") or a.resident}

    # values -----------------------------------------------------------------------------------------------------------
    def deps(self, t: Tasklet, node: Scalar) -> Deps:
        """Axes along which a value varies."""
        found: set[Symbol] = set()
        for n in walk(node):
            if n.op == "read":
                found |= self.memlet_deps(t, t.reads[n.attr])  # type: ignore[index]
            elif n.op == "index":
                found |= self.axis_deps(n.attr)  # type: ignore[arg-type]
        return frozenset(found)

    def memlet_deps(self, t: Tasklet, m: Memlet) -> Deps:
        if m.container in self.locals:
            found = set(self.locals[m.container][1])
        elif m.container in self.plan.local_names:
            found = set().union(*(self.axis_deps(s) for s in m.subset if not isinstance(s, Indirect)))
        else:
            base, indirect = self.plan.address(m)
            found = set(self.axis_deps(base, raw=False))
            for name, _ in indirect:
                found |= self.memlet_deps(t, t.reads[name])
        for c in m.guard:
            found |= self.axis_deps(c.expr)
        return frozenset(found)

    def axis_deps(self, e: object, raw: bool = True) -> Deps:
        """Axis indices in an expression of map parameters (raw) or already of indices."""
        if not isinstance(e, Expr):
            return NONE
        e = self.here(self.plan.expr(e) if raw else e)
        return free(e) & {a.index for a in self.plan.axes}

    def find(self, key: tuple) -> str | None:
        return next((scope[key] for scope in reversed(self.memo) if key in scope), None)

    def key(self, t: Tasklet, node: object) -> tuple:
        return id(t), node, self.view, tuple(sorted((p.name, v) for p, v in self.taps.items()))

    def value(self, t: Tasklet, node: Scalar, hint: str = "") -> str:
        """Text of a value; what is used more than once gets a variable."""
        if node.op == "const":
            return literal(node.attr)
        plain = (id(t), node, self.view)
        free_of_taps = not self.taps or not self._has_taps(t, node)
        key = (*plain, ()) if free_of_taps else self.key(t, node)
        found = self.find(key)
        if found is not None:
            return found
        if node.op == "read":
            text = self.read(t, str(node.attr))
        elif node.op == "index":
            text = self.ix(self.plan.expr(node.attr))  # type: ignore[arg-type]
            if self.axis_deps(node.attr):  # as a value it is int64: logical indices of large tensors do not fit 32 bits
                wide = {e: f"{name}.to(tl.int64)" for e, name in self.names.items()}
                text = index_text(self.here(self.plan.expr(node.attr)), wide)  # type: ignore[arg-type]
                text = text if text.endswith(".to(tl.int64)") and text[:-13].isidentifier() else f"({text})"
            else:
                text = f"tl.full([], {text}, tl.int64)"
        elif node.op in _COMPARE and all(a.op in ("index", "const") for a in node.args):
            sides = [
                self.ix(self.plan.expr(a.attr)) if a.op == "index" else literal(a.attr)  # type: ignore[arg-type]
                for a in node.args
            ]
            text = f"({sides[0]} {_COMPARE[node.op]} {sides[1]})"
        else:
            text = operation_text(node, [self.value(t, a) for a in node.args])
            if self._uses(t, node) > 1 or len(text) > 76:
                var = self.fresh(hint or node.op)
                self.line(f"{var} = {text}")
                text = var
        self.memo[-1][key] = text
        return text

    def _has_taps(self, t: Tasklet, node: Scalar) -> bool:
        for n in walk(node):
            exprs: list[object] = []
            if n.op == "read":
                m = t.reads[n.attr]  # type: ignore[index]
                exprs = [*m.subset, *(c.expr for c in m.guard)]
            elif n.op == "index":
                exprs = [n.attr]
            if any(isinstance(e, Expr) and free(self.plan.expr(e)) & self.taps.keys() for e in exprs):
                return True
        return False

    def _uses(self, t: Tasklet, node: Scalar) -> int:
        if not hasattr(self, "_counts"):
            self._counts: dict[tuple[int, Scalar], int] = {}
            for _, task in self.plan.map.tasklets():
                for n in walk(*task.code.values()):
                    for a in n.args:
                        self._counts[id(task), a] = self._counts.get((id(task), a), 0) + 1
                for root in task.code.values():
                    self._counts[id(task), root] = self._counts.get((id(task), root), 0) + 1
        return self._counts.get((id(t), node), 1)

    def mask(self, deps: Iterable[Symbol]) -> list[str]:
        wanted = set(deps)
        return [self.masks[a.index] for a in self.plan.axes if a.index in wanted and a.index in self.masks]

    def pointer(self, name: str) -> str:
        self.pointers[name] = None
        return pointer_name(name)

    def _place(self, t: Tasklet, m: Memlet) -> str:
        base, indirect = self.plan.address(m)
        parts = [self.ix(base)] if base != 0 or not indirect else []
        for name, stride in indirect:
            index = self.value(t, Scalar("read", (), self.plan.container(t.reads[name].container).dtype, name))
            parts.append(index if stride == 1 else f"{index} * ({self.ix(stride)})")
        return " + ".join(parts)

    def read(self, t: Tasklet, name: str) -> str:
        """Load what arrives at a connector; the same memlet is loaded once."""
        m = t.reads[name]
        if m.container in self.plan.local_names:
            return self.read_local(m)
        c = self.plan.container(m.container)
        deps = self.memlet_deps(t, m)
        place = self._place(t, m)
        conditions = self.mask(deps) + [self.condition(c) for c in m.guard]
        text = f"{self.pointer(m.container)} + {place}" if place != "0" else self.pointer(m.container)
        key = ("load", text, tuple(conditions), m.fill)
        found = self.find(key)
        if found is not None:
            return found
        if conditions:
            zero = False if c.dtype is bool_ else 0
            text += f", mask={' & '.join(conditions)}, other={literal(zero if m.fill is None else m.fill)}"
        var = self.fresh(name)
        self.line(f"{var} = tl.load({text})")
        self.memo[-1][key] = var
        return var

    def read_local(self, m: Memlet) -> str:
        found = self.locals.get(m.container)
        subset = tuple(self.plan.expr(s) for s in m.subset)  # type: ignore[arg-type]
        if found is None or any(a is not b and a != b for a, b in zip(found[2], subset, strict=True)):
            raise NotSchedulable(f"map {self.plan.map.label}: local {m.container}[{', '.join(map(str, m.subset))}] is read "
                                 "where its block does not hold that element; use the schedule option row='whole'")  # fmt: skip
        return found[0]

    def condition(self, c: object) -> str:
        sign = ">=" if c.relation == "ge" else "=="  # type: ignore[attr-defined]
        return f"({self.ix(self.plan.expr(c.expr))} {sign} 0)"  # type: ignore[attr-defined]

    # nodes ------------------------------------------------------------------------------------------------------------
    def node(self, node: Node) -> None:
        if isinstance(node, Tasklet):
            self.tasklet(node)
        else:
            self.map(node)  # type: ignore[arg-type]

    def map(self, m: Map) -> None:
        """Open the loops of a map around its body; accumulators live just outside the loops that they sum over."""
        params = set(m.params)
        axes = [a for a in self.plan.axes if params & self._params(a) and a.name not in self.opened]
        looped = [a for a in axes if a.mode in ("serial", "chunk", "loop", "contract")]
        unrolled = [a for a in axes if a.mode == "unroll"]
        order = {"chunk": 0, "contract": 1, "loop": 2, "serial": 3}
        looped.sort(key=lambda a: order[a.mode])
        writes = [w for w in self.plan.writes if self._inside(m, w.tasklet) and self._opens_here(w, m)]
        accumulators = []
        for w in writes:
            for taps in self._tap_values(unrolled, w):
                self.taps = {**self.taps, **taps}
                accumulators.append(self._accumulator(w))
                self.taps = {p: v for p, v in self.taps.items() if p not in taps}
        tasks = [t for _, t in m.tasklets()]
        with Nest(self, looped, tasks):
            self._unrolled(m, unrolled)
        for acc in accumulators:
            self.taps = dict(acc.taps)
            acc.finish()
            self.taps = {}

    def _unrolled(self, m: Map, axes: list[Axis]) -> None:
        for taps in itertools.product(*(range(a.size) for a in axes)):  # type: ignore[arg-type]
            self.taps = {a.index: v for a, v in zip(axes, taps, strict=True)}
            if taps:
                self.comment(", ".join(f"{a.name} = {v}" for a, v in zip(axes, taps, strict=True)))
            for node in m.body:
                self.node(node)
        self.taps = {}

    def _tap_values(self, axes: list[Axis], w: Write) -> Iterator[dict[Symbol, int]]:
        used = [a for a in axes if a.params[0] not in w.reduced and a.params[0] in w.scope]
        for taps in itertools.product(*(range(a.size) for a in used)):  # type: ignore[arg-type]
            yield {a.index: v for a, v in zip(used, taps, strict=True)}

    def _params(self, a: Axis) -> set[Symbol]:
        """Map parameters that run over the axis, those of later inner maps too."""
        mine = set(a.params)
        for p in self.plan.owner:
            value = self.plan.values.get(p)
            if value is not None and value is not p and a.index in free(value):
                mine.add(p)
        return mine

    def _inside(self, m: Map, t: Tasklet) -> bool:
        return any(t is other for _, other in m.tasklets())

    def _opens_here(self, w: Write, m: Map) -> bool:
        """Whether `m` is the outermost map with an axis that the write sums over (whole axes count where the write is)."""
        mine = w.reduced & set(m.params)
        if mine and not any(w.reduced & set(o.params) for o in self._ancestors(m)):
            return True
        return not w.reduced and any(t is w.tasklet for t in m.body)

    def _ancestors(self, m: Map) -> list[Map]:
        found: list[Map] = []

        def visit(node: Map, path: list[Map]) -> None:
            if node is m:
                found.extend(path)
            for inner in node.body:
                if isinstance(inner, Map):
                    visit(inner, [*path, node])

        visit(self.plan.map, [])
        return found

    def reduced_axes(self, w: Write) -> list[Axis]:
        """Axes that a write sums over."""
        return [a for a in self.plan.axes if self._params(a) & w.reduced]

    def _accumulator(self, w: Write) -> Accumulator:
        acc = Accumulator(self, w, dict(self.taps))
        self.accumulators[self._acc_key(w, self.taps)] = acc
        acc.start()
        return acc

    def _acc_key(self, w: Write, taps: dict[Symbol, int]) -> tuple:
        kept = {
            p.name: v
            for p, v in taps.items()
            if not any(a.index is p and a.params[0] in w.reduced for a in self.plan.axes)
        }
        return id(w.tasklet), w.connectors, tuple(sorted(kept.items()))

    def tasklet(self, t: Tasklet) -> None:
        """All writes of a tasklet."""
        for o in t.origins:
            self.comment(str(o))
        done: set[str] = set()
        for w in (w for w in self.plan.writes if w.tasklet is t):
            acc = self.accumulators[self._acc_key(w, self.taps)]
            done |= set(w.connectors)
            c = self.plan.contractions.get(id(t))
            if c is not None and c.connector in w.connectors:
                self.dot(c, acc)
            else:
                acc.add()
        for name, m in t.writes.items():
            if name not in done:
                self.write(t, name, m)

    def write(self, t: Tasklet, name: str, m: Memlet) -> None:
        value = self.value(t, t.code[name], name)
        if m.container in self.plan.local_names:
            local = self.plan.container(m.container)
            if t.code[name].op == "const":
                value = f"tl.full({self.shape(())}, {value}, {TRITON_TYPES[local.dtype.name]})"
            elif not value.isidentifier():
                var = self.fresh(m.container)
                self.line(f"{var} = {value}")
                value = var
            subset = tuple(self.plan.expr(s) for s in m.subset)  # type: ignore[arg-type]
            self.locals[m.container] = (
                value,
                self.deps(t, t.code[name]) | frozenset().union(*map(free, subset)),
                subset,
            )
            return
        self.store(m, self._place(t, m), value, self.memlet_deps(t, m))

    def store(self, m: Memlet, place: str, value: str, deps: Deps) -> None:
        conditions = self.mask(deps) + [self.condition(c) for c in m.guard]
        # a block that does not vary along an open axis is written by the first of its copies only
        mask = f", mask={' & '.join(conditions)}" if conditions else ""
        target = f"{self.pointer(m.container)} + {place}"
        blocked = [d for d in deps if self.dim(d) is not None]
        if not blocked:
            target = f"{target} + tl.zeros({self.shape(())}, tl.int32)"
        self.line(f"tl.store({target}, {value}{mask})")

    def dot(self, c: Contraction, acc: Accumulator) -> None:
        """One step of a matrix product on the tensor cores."""
        t = c.tasklet
        sides = [strip_widening(c.a), strip_widening(c.b)]
        if sides[0].dtype is not sides[1].dtype:
            sides = [cast(s, acc.dtypes[0]) for s in (c.a, c.b)]
        texts = []
        k = self.plan.axis_of(next(iter(c.shared)))
        for view, side, name in zip("ab", sides, ("left", "right"), strict=True):
            with self.oriented(k, view):
                text = self.value(t, side)
                full = {k.index} | {a.index for a in self.plan.axes if a.dim == (0 if view == "a" else 1)}
                if side.op != "read" or side.dtype.is_float is False:
                    text = f"tl.where({self.masks[k.index]}, {text}, 0)"
                    if self.deps(t, side) & full != full:
                        text = f"tl.broadcast_to({text}, {self.shape(full)})"
                    text = f"{text}.to({TRITON_TYPES[sides[0].dtype.name]})"
                if self.precision == "tf32" and side.dtype.bits == 32:
                    text = f"round_to_tf32({text})"
                if not text.isidentifier():
                    var = self.fresh(name)
                    self.line(f"{var} = {text}")
                    text = var
                texts.append(text)
        wide = "" if sides[0].dtype.bits < 32 else f', input_precision="{self.precision}"'
        self.line(f"{acc.names[0]} = tl.dot({texts[0]}, {texts[1]}, {acc.names[0]}{wide})")

    @contextmanager
    def oriented(self, k: Axis, view: str) -> Iterator[None]:
        """Look at the contraction axis as columns of the left operand ("a") or rows of the right one ("b")."""
        names, masks = self.names, self.masks
        self.names, self.masks, self.view = dict(names), dict(masks), view
        if k.name + "_" + view in self.taken:
            bound = self.find(("axis", k.name, view))
            if bound is not None:
                self.names.update(self._bound[k.name, view][0])
                self.masks.update(self._bound[k.name, view][1])
        yield
        self.names, self.masks, self.view = names, masks, ""

    def open_contract(self, k: Axis, offset: str) -> None:
        """Define the contraction axis in both orientations."""
        self._bound = getattr(self, "_bound", {})
        for view in "ab":
            names, masks = self.names, self.masks
            self.names, self.masks, self.view = dict(names), dict(masks), view
            self.define(k, offset, suffix="_" + view)
            self._bound[k.name, view] = (
                {e: v for e, v in self.names.items() if e not in names}, {k.index: self.masks[k.index]})  # fmt: skip
            self.memo[-1]["axis", k.name, view] = k.name
            self.names, self.masks, self.view = names, masks, ""

    def combiner_function(self, combine: str, dtypes: tuple[DType, ...]) -> str:
        """Name of the function that merges two states; written beside the kernel where it is not in the prelude."""
        c = COMBINERS[combine]
        if len(c.components) == 1:
            return f"merge_{combine}"
        name = f"merge_{combine}"
        if name not in self.helpers:
            left = tuple(Scalar("read", (), d, f"{x}_l") for x, d in zip(c.components, dtypes, strict=True))
            right = tuple(Scalar("read", (), d, f"{x}_r") for x, d in zip(c.components, dtypes, strict=True))
            self.helpers[name] = combiner_text(name, [*left, *right], c.merge(left, right))
        return name


def grid_axes(plan: Plan) -> list[tuple[Axis, str]]:
    """The axes over which programs are dealt, fastest first."""
    tiles = [(a, "tile") for a in plan.axes if a.mode == "tile"]
    tiles.sort(key=lambda t: -(t[0].dim or 0))
    programs = [(a, "program") for a in plan.axes if a.mode == "program"]
    chunks = [(a, "chunk") for a in plan.axes if a.mode == "chunk" or a.split]
    return tiles + programs + chunks


def pointer_name(container: str) -> str:
    """The kernel's argument for a container."""
    return re.sub(r"\W", "_", f"_{container}" if container[:1].isdigit() else container) + "_ptr"


_COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
