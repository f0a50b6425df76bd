"""Reads and scalar code as C++ statements, each at the outermost loop on which its value does not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shorthaul.ir.dtypes import DType, bool_, float32
from shorthaul.ir.memlet import Condition
from shorthaul.ir.scalar import Scalar, read, walk
from shorthaul.ir.scalar_ops import COMBINERS, identity
from shorthaul.symbolic import IntLike, Symbol, free_symbols

from .expressions import ctype, is_half, literal, needs_splat, operation
from .linearize import Code, Ref, decompose, stride_of
from .text import Names


@dataclass(frozen=True)
class Value:
    """A C++ expression (a name or a literal), the loop level where it is defined, and whether it has lanes."""

    text: str
    level: int
    vec: bool


class Frame:
    """The loops of one nest while its code is written: `pre[k]` and `post[k]` are the lines before and after the loop inside level k.

    Level -1 is the place in front of the loops. lanes: the parameter that became vector lanes (of this nest or around it).
    """

    def __init__(self, names: Names, symbols: Sequence[Symbol], lanes: Symbol | None) -> None:
        self.names = names
        self.level_of = {s: k for k, s in enumerate(symbols)}  # a later loop of the same symbol wins
        self.depth = len(symbols)
        self.lanes = lanes
        self.pre: dict[int, list[str]] = {k: [] for k in range(-1, len(symbols))}
        self.post: dict[int, list[str]] = {k: [] for k in range(-1, len(symbols))}
        self.constants: dict[Symbol, int] = {}
        self._memo: dict[tuple[int, str], str] = {}

    # index expressions ---------------------------------------------------------------------------------------------------
    def level(self, e: IntLike) -> int:
        return -1 if isinstance(e, int) else max((self.level_of.get(s, -1) for s in free_symbols(e)), default=-1)

    def uses_lanes(self, e: IntLike) -> bool:
        return self.lanes is not None and not isinstance(e, int) and self.lanes in free_symbols(e)

    def text(self, e: IntLike) -> str:
        return self.names.index(e)

    def lane_index(self, e: IntLike) -> str:
        """An index expression that depends on the lanes, as int64 lanes."""
        assert self.lanes is not None
        stride = stride_of(e, self.lanes)
        if stride is None:
            v = self.names.param(self.lanes)
            return f"sh_each(L, {v}, [&](int64_t {v}) {{ return {self.text(e)}; }})"
        return f"sh::iota(L, {self.text(e)}, {self.text(stride)})"

    def define(self, level: int, text: str, prefix: str = "v", kind: str = "const auto") -> str:
        """A name for an expression, defined once at its level."""
        key = (level, text)
        if key not in self._memo:
            self._memo[key] = self.names.fresh(prefix)
            self.pre[level].append(f"{kind} {self._memo[key]} = {text};")
        return self._memo[key]

    # scalar code -------------------------------------------------------------------------------------------------------
    def evaluate(self, code: Code, roots: Sequence[Scalar], env: dict[Scalar, Value]) -> list[Value]:
        """The values of scalar code; `env` is shared by all roots of a tasklet."""
        for node in walk(*roots):
            if node not in env:
                env[node] = self._node(code, node, env)
        return [env[r] for r in roots]

    def _node(self, code: Code, node: Scalar, env: dict[Scalar, Value]) -> Value:
        if node.op == "const":
            return Value(literal(node.attr, node.dtype), -1, False)
        if node.op == "index":
            e: IntLike = node.attr  # type: ignore[assignment]
            if self.uses_lanes(e):
                level = max(self.level(e), self.level_of.get(self.lanes, -1))  # type: ignore[arg-type]
                return Value(self.define(level, self.lane_index(e)), level, True)
            return Value(self.define(self.level(e), f"int64_t({self.text(e)})"), self.level(e), False)
        if node.op == "read":
            return self.read(code, node.attr, env)  # type: ignore[arg-type]
        args = [env[a] for a in node.args]
        level = max(a.level for a in args)
        vec = any(a.vec for a in args)
        texts = [a.text for a in args]
        if vec and needs_splat(node):
            texts = [a.text if a.vec else self.splat(x.dtype, a.text) for a, x in zip(args, node.args, strict=True)]
        return Value(self.define(level, operation(node, texts)), level, vec)

    def splat(self, dtype: DType, text: str) -> str:
        if is_half(dtype):
            return f"sh::splat<float>(L, sh::cast<float>({text}))"
        return f"sh::splat<{ctype(dtype)}>(L, {text})"

    # reads ---------------------------------------------------------------------------------------------------------------
    def read(self, code: Code, name: str, env: dict[Scalar, Value]) -> Value:
        """The value that arrives through a read connector."""
        ref = code.reads[name]
        key = read(name, ref.dtype)
        if key in env:
            return env[key]
        target, level, vec = self.target(code, ref, env)
        value = self._load(ref, target, level, vec)
        env[key] = value
        return value

    def target(self, code: Code, ref: Ref, env: dict[Scalar, Value], within: Sequence[Condition] | None = None) -> tuple[Target, int, bool]:
        """Where an access goes: its parts as text, the level at which all of them are known, and whether it depends on the lanes.

        within: the conditions under which it happens, where they are not its guard.
        """
        level = max((self.level(e) for e in ref.expressions), default=-1)
        scalar_terms: list[str] = []
        lane_terms: list[str] = []
        for (name, stride), (size, what) in zip(ref.indirect, ref.bounds, strict=True):
            value = self.checked(self.read(code, name, env), size, f"{what}, at {code.origin}", ref.guard if within is None else within)
            level = max(level, value.level)
            step = self.text(stride)
            if value.vec:
                lane_terms.append(f"sh::mul({value.text}, int64_t({step}))")
            else:
                scalar_terms.append(f"{value.text} * {_parens(step)}")
        uniform: list[Condition] = []
        lanewise: list[Condition] = []
        for c in ref.guard:
            (lanewise if self.uses_lanes(c.expr) else uniform).append(c)
        private = ref.container in self.names.private
        base = self.text(ref.address)
        if scalar_terms:
            base = " + ".join([base, *scalar_terms]) if base != "0" else " + ".join(scalar_terms)
        lane_stride = stride_of(ref.address, self.lanes) if self.lanes is not None else 0
        lane_index: str | None = None
        if lane_stride is None or lane_terms:
            index = self.lane_index(ref.address) if self.uses_lanes(ref.address) else f"sh::splat<int64_t>(L, {base})"
            if self.uses_lanes(ref.address) and scalar_terms:
                index = f"sh::add({index}, int64_t({' + '.join(scalar_terms)}))"
            for t in lane_terms:
                index = f"sh::add({index}, {t})"
            lane_index = index
        vec = self.uses_lanes(ref.address) or bool(lane_terms) or bool(lanewise) or private
        if vec:
            level = max(level, self.level_of.get(self.lanes, -1))  # type: ignore[arg-type]
        text_stride = "0" if lane_stride is None or lane_index is not None else self.text(lane_stride)
        return Target(self.names.pointer(ref.container), base, text_stride, lane_index, uniform, lanewise, private), level, vec

    def checked(self, value: Value, size: IntLike, what: str, guard: Sequence[Condition]) -> Value:
        """An index that is data as int64, which stands in for 0 and is reported where it is out of range and the guard holds."""
        site, n = self.names.check(what), self.text(size)
        lanewise = [c for c in guard if self.uses_lanes(c.expr)]
        uniform = self.condition([c for c in guard if c not in lanewise])
        level = max([value.level, self.level(size), *(self.level(c.expr) for c in guard)])
        mask = self.lane_condition(lanewise) if lanewise else ""
        if lanewise:
            level = max(level, self.level_of.get(self.lanes, -1))  # type: ignore[arg-type]
        if value.vec:
            index = f"sh::cast<int64_t>({value.text})"
            index = f"sh::select({mask}, {index}, int64_t(0))" if mask else index
            text, other = f"sh_indices(L, {index}, {n}, fault, {site})", "sh::splat<int64_t>(L, int64_t(0))"
        else:
            uniform = " && ".join(t for t in (uniform, f"sh::hany({mask})" if mask else "") if t)
            text, other = f"sh_index(int64_t({value.text}), {n}, fault, {site})", "int64_t(0)"
        return Value(self.define(level, f"({uniform}) ? {text} : {other}" if uniform else text), level, value.vec)

    def _load(self, ref: Ref, t: Target, level: int, vec: bool) -> Value:
        where = _plus(t.pointer, t.base)
        guard = self.condition(t.uniform)
        fill_dtype = float32 if is_half(ref.dtype) else ref.dtype
        fill = literal(ref.fill if ref.fill is not None else 0, fill_dtype)
        register = ref.local and t.pointer.startswith("r")
        element = t.pointer if register else f"{t.pointer}[{t.base}]"
        if register and not ref.guard:
            return Value(element, level, t.private)
        widen = "sh::cast<float>({})" if is_half(ref.dtype) else "{}"
        if not vec:
            if not guard:
                return Value(self.define(level, element), level, False)
            loaded = widen.format(element)
            return Value(self.define(level, f"{guard} ? {loaded} : {fill}", kind=f"const {ctype(fill_dtype)}"), level, False)
        if register:
            plain = element if t.private else self.splat(ref.dtype, element)
        elif t.private:
            plain = f"sh::load(sh::lanes<sh::W>{{}}, {t.pointer} + ({t.base}) * sh::W)"
        elif t.lane_index is not None:
            plain = f"sh::gather(L, {t.pointer}, {t.lane_index})"
        elif t.stride == "0":
            plain = self.splat(ref.dtype, element)
        elif t.stride == "1":
            plain = f"sh::load(L, {where})"
        else:
            plain = f"sh::load_strided(L, {where}, {t.stride})"
        if not guard and not t.lanewise:
            return Value(self.define(level, plain), level, True)
        # guarded lanes: memory is touched only where the conditions hold
        name = self.names.fresh("v")
        self.pre[level].append(f"auto {name} = sh::splat<{ctype(fill_dtype)}>(L, {fill});")
        plain = widen.format(plain) if t.stride != "0" or t.lane_index is not None or t.private else plain
        if not t.lanewise:
            self.pre[level].append(f"if ({guard}) {name} = {plain};")
            return Value(name, level, True)
        ends = self.ends(t.lanewise)
        raw_fill = literal(ref.fill if ref.fill is not None else 0, ref.dtype)
        mask = self.lane_condition(t.lanewise)
        if register or t.private:
            self.pre[level].append(f"{'if (' + guard + ') ' if guard else ''}{name} = sh::select({mask}, {plain}, {name});")
            return Value(name, level, True)
        index = t.lane_index
        if index is None and t.stride != "1":
            index = f"sh::iota(L, {t.base}, {t.stride})"
        slow = (f"sh::load_if(L, {mask}, {where}, {raw_fill})" if index is None
                else f"sh::gather_if(L, {mask}, {t.pointer}, {index}, {raw_fill})")  # fmt: skip
        slow = widen.format(slow)
        front = f"if ({guard}) {{ " if guard else ""
        back = " }" if guard else ""
        if ends is None or t.lane_index is not None:
            self.pre[level].append(f"{front}{name} = {slow};{back}")
        else:
            self.pre[level].append(f"{front}if ({ends}) {name} = {plain}; else {name} = {slow};{back}")
        return Value(name, level, True)

    # conditions ------------------------------------------------------------------------------------------------------------
    def condition(self, conditions: Sequence[Condition]) -> str:
        """Conditions that do not depend on the lanes, as one C++ expression ("" for none)."""
        return " && ".join(f"{_parens(self.text(c.expr))} {'>=' if c.relation == 'ge' else '=='} 0" for c in conditions)

    def ends(self, conditions: Sequence[Condition]) -> str | None:
        """A test that all lanes satisfy the conditions: both ends do. None where that is not enough."""
        assert self.lanes is not None
        tests = []
        for c in conditions:
            stride = stride_of(c.expr, self.lanes)
            if stride is None or c.relation != "ge":
                return None
            last = c.expr + stride * Symbol("(L.count() - 1)")
            names = {**self.names.symbols, Symbol("(L.count() - 1)"): "(L.count() - 1)"}
            from .expressions import index_text

            tests += [f"{self.text(c.expr)} >= 0", f"{index_text(last, names)} >= 0"]
        return " && ".join(tests)

    def lane_condition(self, conditions: Sequence[Condition]) -> str:
        """Conditions on lanes as a vector condition."""
        parts = [f"sh::{'ge' if c.relation == 'ge' else 'eq'}({self.lane_index(c.expr)}, int64_t(0))" for c in conditions]
        text = parts[0]
        for p in parts[1:]:
            text = f"sh::land({text}, {p})"
        return text

    # combining -------------------------------------------------------------------------------------------------------------
    def merge(self, combiner: str, left: Sequence[str], right: Sequence[str], dtypes: Sequence[DType], vec: bool,
              out: list[str]) -> list[str]:  # fmt: skip
        """Texts of the merged components; lines that they need go to `out`. Operands are all lanes or all plain."""
        row = COMBINERS[combiner]
        l = tuple(read(f"l{k}", d) for k, d in enumerate(dtypes))
        r = tuple(read(f"r{k}", d) for k, d in enumerate(dtypes))
        merged = row.merge(l, r)
        texts: dict[Scalar, str] = dict(zip((*l, *r), (*left, *right), strict=True))
        single = len(dtypes) == 1
        for node in walk(*merged):
            if node in texts:
                continue
            if node.op == "const":
                texts[node] = literal(node.attr, node.dtype)
                continue
            args = [texts[a] for a in node.args]
            if vec and needs_splat(node):
                args = [self.splat(a.dtype, t) if a.op == "const" else t for a, t in zip(node.args, args, strict=True)]
            text = operation(node, args)
            if not single:
                name = self.names.fresh("t")
                out.append(f"const auto {name} = {text};")
                text = name
            texts[node] = text
        return [texts[m] for m in merged]

    def across(self, combiner: str, accumulators: Sequence[str], dtypes: Sequence[DType], out: list[str]) -> list[str]:
        """The lanes of accumulators merged into plain values."""
        simple = {"sum": "hsum", "prod": "hprod", "max": "hmax", "max0": "hmax", "min": "hmin", "any": "hany", "all": "hall"}
        if combiner in simple:
            name = self.names.fresh("t")
            out.append(f"{ctype(dtypes[0])} {name} = sh::{simple[combiner]}({accumulators[0]});")
            return [name]
        totals = [self.names.fresh("t") for _ in accumulators]
        for t, a, d in zip(totals, accumulators, dtypes, strict=True):
            out.append(f"{ctype(d)} {t} = {a}[0];")
        lines: list[str] = []
        merged = self.merge(
            combiner, totals, [f"{ctype(d)}({a}[lane])" for a, d in zip(accumulators, dtypes, strict=True)], dtypes, False, lines
        )
        out.append("for (int lane = 1; lane < sh::W; ++lane) {")
        out += ["  " + line for line in lines]
        out += [f"  {t} = {m};" for t, m in zip(totals, merged, strict=True)]
        out.append("}")
        return totals


@dataclass(frozen=True)
class Target:
    """Where an access goes. `base`: address text for lane 0; `stride`: text between lanes; `lane_index`: address lanes where they are
    not linear; `private`: a row of a local that has lanes of its own."""

    pointer: str
    base: str
    stride: str
    lane_index: str | None
    uniform: list[Condition]
    lanewise: list[Condition]
    private: bool


def identity_text(combiner: str, component: int, dtype: DType) -> str:
    return literal(identity(combiner, component, dtype).attr, dtype)


def _parens(text: str) -> str:
    return text if text.replace("_", "").isalnum() else f"({text})"


def _plus(pointer: str, base: str) -> str:
    return pointer if base == "0" else f"{pointer} + {base}"


__all__ = ["Callable", "Frame", "Target", "Value", "bool_", "decompose", "identity_text"]
