"""Loop nests as C++: flat nests with lanes, accumulators and pieces for threads, and trees of nests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType, bool_
from shorthaul.ir.memlet import Condition
from shorthaul.ir.scalar import Scalar, read
from shorthaul.symbolic import IntLike, Symbol, bounds, ceildiv, free_symbols, index, product, prove_eq, summation

from .expressions import ctype, is_half
from .linearize import Code, Nest, Ref, depends, simplify, stride_of
from .plan import DEFAULT, LANES, Group, Limits, Loop, Plan, estimate, groups, plan, plan_tree
from .text import Block, Names, Outer, Place, Range
from .values import Frame, Value, identity_text

# float32 differences that are added up before they go into a float64 sum: its cost is hidden, the errors stay those of one step
SHORT_SUM = 16


@dataclass
class Slots:
    """Partial results of one group: a buffer a component, indexed by piece of work and kept parameters."""

    refs: list[Ref]
    start: int  # loops further out are not the buffers' business: they are merged behind each of their iterations


class Writer:
    """Writes a simplified nest as C++ into a block."""

    def __init__(self, names: Names, limits: Limits = DEFAULT) -> None:
        self.names = names
        self.limits = limits
        self.slots: dict[tuple[int, tuple[str, ...]], Slots] = {}

    # nests ---------------------------------------------------------------------------------------------------------------
    def run(self, nest: Nest, place: Place, split: bool = True) -> None:
        """A nest at a place, with threads where they pay and are not running yet."""
        scope = frozenset(o.symbol for o in place.path) | frozenset(nest.params)
        code = nest.leaf
        around = frozenset(o.symbol for o in place.path)
        if any(depends(x.size, around) for x in nest.params):  # the pieces, and their buffers, would differ from one iteration to the next
            place = replace(place, parallel=False)
        if code is not None:
            p = plan(nest, code, scope, vector=place.lanes is None, parallel=place.parallel, split=split, limits=self.limits)
        else:
            p = plan_tree(nest, scope, vector=place.lanes is None, parallel=place.parallel, limits=self.limits)
        if not p.items:
            self._loops(nest, p, replace(place, parallel=place.parallel and code is None))
            return
        finals: list[Nest] = []
        inner = self._open_items(nest, p, place, finals, split)
        self._loops(nest, p, inner)
        for f in finals:
            self.run(simplify(f), place, split=False)

    def _loops(self, nest: Nest, p: Plan, place: Place) -> None:
        if nest.leaf is not None:
            self.leaf(nest.leaf, p, place)
            return
        block, path, ranges, lanes = place.block, place.path, dict(place.ranges), place.lanes
        shared = {s for s, chunk in p.items if chunk is None}
        for loop in p.loops:
            if loop.symbol in shared:
                continue
            block, outer, _ = self._open(loop, block, ranges)
            path = (*path, outer)
            if loop.kind == "vec":
                lanes = loop.symbol
        starts = {**place.scope_start, **{k: len(path) for k in nest.locals}}
        body = Place(block, path, lanes, starts, place.parallel and lanes is None, ranges)
        for name, c in nest.locals.items():
            self._declare(name, c, body)
        for node in nest.body:
            if isinstance(node, Code):
                self.leaf(node, Plan([], None), body)
            else:
                self.run(node, body)

    def _declare(self, key: str, c: Container, place: Place) -> None:
        T = ctype(c.dtype)
        if place.lanes is not None:
            self.names.private.add(key)
        if c.shape == ():
            name = self.names.pointers[key] = self.names.fresh("r")
            if place.lanes is None:
                place.block.add(f"{T} {name}{{}};")
            else:
                element = "float" if is_half(c.dtype) else T
                place.block.add(f"auto {name} = sh::splat<{element}>(L, {element}(0));")
            return
        name = self.names.pointers[key] = self.names.fresh("b")
        elements = c.size
        if isinstance(elements, int) and elements * c.dtype.itemsize * (LANES if place.lanes is not None else 1) <= self.limits.stack:
            count = f"{elements}" + (" * sh::W" if place.lanes is not None else "")
            place.block.add(f"alignas(64) {T} {name}[{count}];")
        else:
            count = f"({self.names.index(elements)}) * int64_t(sizeof({T}))" + (" * sh::W" if place.lanes is not None else "")
            number = self.names.fresh("buffer")[len("buffer") :]
            place.block.add(f"{T}* const {name} = ({T}*)sh_scratch({int(number) + 1}, {count});")

    # loops -----------------------------------------------------------------------------------------------------------------
    def _open(self, loop: Loop, block: Block, ranges: dict[Symbol, Range]) -> tuple[Block, Outer, str]:
        """Open one loop in a block; updates `ranges` for loops inside. Gives (inner block, what it is for accumulators, tag)."""
        s = loop.symbol
        r = ranges.get(s) or Range("0", self.names.index(s.size), isinstance(s.size, int) and s.size % LANES == 0)
        if loop.kind == "tile":
            b, high = self.names.fresh("b"), self.names.fresh("e")
            inner = block.open(f"for (int64_t {b} = {r.low}; {b} < {r.high}; {b} += {loop.step}) {{")
            inner.add(f"const int64_t {high} = {b} + {loop.step} < {r.high} ? {b} + {loop.step} : {r.high};")
            ranges[s] = Range(b, high, r.whole and loop.step % LANES == 0)
            return inner, Outer(s, f"{b} == {r.low}"), ""
        i = self.names.param(s)
        outer = Outer(s, f"{i} == {r.low}")
        if loop.kind == "seq":
            return block.open(f"for (int64_t {i} = {r.low}; {i} < {r.high}; ++{i}) {{"), outer, ""
        if r.whole:
            inner = block.open(f"for (int64_t {i} = {r.low}; {i} < {r.high}; {i} += sh::W) {{")
            inner.add("const sh::lanes<sh::W> L{};")
        elif s not in ranges and isinstance(s.size, int) and s.size < LANES // 2:
            inner = block.open("{")
            inner.add(f"const int64_t {i} = 0;", f"const sh::tail<sh::W> L{{{s.size}}};")
        else:
            inner = block.open(f"sh::for_lanes({r.low}, {r.high}, [&](auto L, const int64_t {i}) __attribute__((always_inline)) {{", "});")
        return inner, outer, "L"

    def _open_items(self, nest: Nest, p: Plan, place: Place, finals: list[Nest], split: bool) -> Place:
        """Open the loop over pieces of work and prepare partial results; `finals` receives the nests that merge them."""
        names = self.names
        pieces: list[tuple[Symbol, Symbol]] = []  # (parameter, the symbol that counts its pieces)
        for s, chunk in p.items:
            if chunk is None:
                names.param(s)
                pieces.append((s, s))
            else:
                count = index(f"piece of {s.name}", ceildiv(s.size, chunk))
                names.symbols[count] = names.fresh("c")
                pieces.append((s, count))
        total = product(c.size for _, c in pieces)
        work = p.work if isinstance(p.work, int) else _most(p.work, free_symbols(p.work) - set(names.sizes))
        condition = f" if ({names.index(work)} > {self.limits.parallel_work})" if not isinstance(work, int) else ""
        if not isinstance(work, int) or work > self.limits.parallel_work:
            place.block.add(f"#pragma omp parallel for schedule(static){condition}")
        for scope, code, local in _codes(nest, frozenset(o.symbol for o in place.path)) if split else ():
            for g in groups(code, scope):
                if g.combiner is not None and not (local & {code.writes[n].container for n in g.names}):
                    self._make_slots(code, g, pieces, scope, place, finals)
        item = names.fresh("item")
        block = place.block.open(f"for (int64_t {item} = 0; {item} < {names.index(total)}; ++{item}) {{")
        ranges = dict(place.ranges)
        rest, path = item, place.path
        for (s, chunk), (_, count) in reversed(list(zip(p.items, pieces, strict=True))):
            c = names.symbols[count]
            last = count is pieces[0][1]
            n = names.index(count.size)
            block.add(f"const int64_t {c} = {rest}{'' if last else f' % ({n})'};")
            if not last:
                rest_name = names.fresh("rest")
                block.add(f"const int64_t {rest_name} = {rest} / ({n});")
                rest = rest_name
            if chunk is None:
                path = (*path, Outer(s, "", shared=True))
            else:
                low, high, step = names.fresh("lo"), names.fresh("hi"), names.index(chunk)
                size = names.index(s.size)
                block.add(f"const int64_t {low} = {c} * ({step}), {high} = {low} + ({step}) < {size} ? {low} + ({step}) : {size};")
                exact = isinstance(s.size, int) and s.size % LANES == 0 and isinstance(chunk, int) and chunk % LANES == 0
                ranges[s] = Range(low, high, exact)
        return Place(block, path, place.lanes, place.scope_start, False, ranges)

    def _make_slots(self, code: Code, g: Group, pieces: Sequence[tuple[Symbol, Symbol]], scope: frozenset[Symbol], place: Place,
                    finals: list[Nest]) -> None:  # fmt: skip
        """Give a group buffers for partial results if threads share out what it reduces, and queue the nest that merges them."""
        own = frozenset(o.symbol for o in place.path)
        reduced = [(s, c) for s, c in pieces if s not in g.address]
        refs = [code.writes[n] for n in g.names]
        if g.scatters or g.scan is not None or not (reduced or any(is_half(r.dtype) for r in refs)):
            return
        kept = sorted(
            (s for s in scope if s in g.address and s not in own), key=lambda s: (-_size_of(stride_of(refs[0].address, s)), s.uid)
        )
        coordinate: IntLike = 0
        for _, c in reduced:
            coordinate = coordinate * c.size + c
        loops = scope | own
        count = product(_most(c.size, loops) for _, c in reduced)
        strides: dict[Symbol, IntLike] = {}
        step: IntLike = 1
        for s in reversed(kept):
            strides[s] = step
            step = step * _most(s.size, loops)
        keys = [self.names.buffer(r.dtype.compute, count * step) for r in refs]
        where = coordinate * step + summation(s * n for s, n in strides.items())
        slot = [Ref(k, r.dtype.compute, where) for k, r in zip(keys, refs, strict=True)]
        piece = index("piece", count)
        self.slots[id(code), g.names] = Slots(slot, len(place.path))
        # the nest that merges: reads the buffers, combines into the real containers
        held = frozenset(kept) | own
        merged = [replace(r, guard=tuple(c for c in r.guard if depends(c.expr, scope) <= held)) for r in refs]
        source = piece * step + summation(s * n for s, n in strides.items())
        reads = {f"part{k}": Ref(key, r.dtype.compute, source) for k, (key, r) in enumerate(zip(keys, refs, strict=True))}
        values: dict[str, Scalar] = {n: read(f"part{k}", refs[k].dtype.compute) for k, n in enumerate(g.names)}
        finals.append(Nest([*kept, piece], [Code(reads, dict(zip(g.names, merged, strict=True)), values)]))

    # flat nests ----------------------------------------------------------------------------------------------------------
    def leaf(self, code: Code, p: Plan, place: Place) -> None:
        """The loops of a plan around one tasklet."""
        shared = {s for s, chunk in p.items if chunk is None}
        loops = [loop for loop in p.loops if loop.symbol not in shared]
        for loop in loops:
            self.names.param(loop.symbol)
        frame = Frame(self.names, [loop.symbol for loop in loops], p.vector if p.vector is not None else place.lanes)
        scope = frozenset(o.symbol for o in place.path) | {loop.symbol for loop in loops}
        env: dict[Scalar, Value] = {}
        found = groups(code, scope)
        found = [self._with_private(code, g, place) for g in found]
        values = {g.names: frame.evaluate(code, [code.code[n] for n in g.names], env) for g in found}
        for ref in code.writes.values():
            frame.target(code, ref, env)  # index reads of writes come before any store
        # open the loops on paper: what each is for accumulators
        block = Block()
        ranges = dict(place.ranges)
        blocks, outers = [block], []
        for loop in loops:
            block, outer, _ = self._open(loop, block, ranges)
            blocks.append(block)
            outers.append(outer)
        group_writer = _GroupWriter(self, code, p, loops, outers, frame, env, place)
        if code.origin:
            place.block.add(f"//@ {code.origin}")
        for g in found:
            if g.combiner is None:
                frame_level = len(loops) - 1
                for n, value in zip(g.names, values[g.names], strict=True):
                    group_writer.store(code.writes[n], value.text, value.vec, code.code[n].dtype, frame_level, frame.post[frame_level])
        for g in found:
            if g.combiner is not None:
                group_writer.combine(g, values[g.names])
        for k, b in enumerate(blocks):  # put the lines around the loop inside
            loop_lines = b.lines[:]
            head = [x for x in loop_lines if isinstance(x, str)]
            child = [x for x in loop_lines if not isinstance(x, str)]
            b.lines = [*head, *frame.pre[k - 1], *child, *frame.post[k - 1]]
        place.block.add(*(blocks[0].lines if loops or not frame.pre[-1] else [self._scoped(blocks[0])]))

    def _with_private(self, code: Code, g: Group, place: Place) -> Group:
        """A local exists once for each iteration of the loops around its declaration: they count as kept."""
        starts = [place.scope_start[code.writes[n].container] for n in g.names if code.writes[n].local]
        around = frozenset(o.symbol for o in place.path[: min(starts, default=0)])
        return replace(g, address=g.address | around, kept=g.kept | around) if around else g

    def _scoped(self, block: Block) -> Block:
        out = Block("{", "}")
        out.lines = block.lines
        return out


class _GroupWriter:
    """Stores and accumulators of one flat nest."""

    def __init__(self, writer: Writer, code: Code, p: Plan, loops: list[Loop], outers: list[Outer], frame: Frame,
                 env: dict[Scalar, Value], place: Place) -> None:  # fmt: skip
        self.writer, self.code, self.plan, self.loops, self.outers = writer, code, p, loops, outers
        self.frame, self.env, self.place = frame, env, place
        self.lane_level = next((k for k, loop in enumerate(loops) if loop.kind == "vec"), None)

    def _lanes_at(self, level: int) -> bool:
        return self.place.lanes is not None or (self.lane_level is not None and level >= self.lane_level)

    def combine(self, g: Group, values: Sequence[Value]) -> None:
        """One combining write: accumulators in registers over the inner loops that it reduces, then the store or a merge into memory."""
        frame, loops, names = self.frame, self.loops, self.frame.names
        refs = [self.code.writes[n] for n in g.names]
        dtypes = [r.dtype.compute for r in refs]
        combiner = g.combiner
        assert combiner is not None
        deepest = len(loops) - 1
        kept_level = max((k for k, loop in enumerate(loops) if loop.symbol in g.address), default=-1)
        if g.scan is not None and (kept_level < 0 or loops[kept_level].symbol is not g.scan):
            raise ValueError(f"a scan along {g.scan} must write one element at each of its values, in one flat map")
        lanes = frame.lanes
        lanes_reduced = lanes is not None and lanes not in g.address
        inner = kept_level < deepest
        identities = [identity_text(combiner, k, d) for k, d in enumerate(dtypes)]
        held = frozenset(g.kept)
        every = frozenset(o.symbol for o in self.place.path) | {loop.symbol for loop in loops}
        masked = [c for c in dict.fromkeys(c for r in refs for c in r.guard) if not depends(c.expr, every) <= held]

        # the contribution of one innermost iteration
        body: list[str] = []
        in_lanes = self._lanes_at(deepest)
        texts = [v.text if v.vec or not in_lanes else frame.splat(d, v.text) for v, d in zip(values, dtypes, strict=True)]
        texts = [f"sh::cast<{ctype(d)}>({t})" if self.code.code[n].dtype is not d else t
                 for t, d, n in zip(texts, dtypes, g.names, strict=True)]  # fmt: skip
        lanewise = [c for c in masked if frame.uses_lanes(c.expr)]
        uniform = frame.condition([c for c in masked if not frame.uses_lanes(c.expr)])
        if lanewise:
            mask = names.fresh("m")
            body.append(f"const auto {mask} = {frame.lane_condition(lanewise)};")
            texts = [f"sh::select({mask}, {t}, {frame.splat(d, i)})" for t, i, d in zip(texts, identities, dtypes, strict=True)]
        if lanes_reduced and in_lanes:
            texts = [f"sh::keep(L, {t}, {i})" for t, i in zip(texts, identities, strict=True)]
        target = frame.post[deepest]
        merged = False
        if inner and not masked and _is_lifted_welford(self.code, g):
            current, merged = self._accumulate_shifted(texts[1], values[1], dtypes, kept_level, lanes_reduced, in_lanes, body)
            target += body
        elif inner:
            current = self._accumulate(combiner, g, dtypes, identities, texts, kept_level, uniform, body, target)
        else:
            current = [names.fresh("a") for _ in dtypes]
            for a, t, i, d in zip(current, texts, identities, dtypes, strict=True):
                if uniform:
                    start = frame.splat(d, i) if in_lanes else i
                    body.append(f"auto {a} = {start};")
                    body.append(f"if ({uniform}) {a} = {self._resized(d, t, in_lanes)};")
                else:
                    body.append(f"auto {a} = {self._resized(d, t, in_lanes)};")
            target += body
        self._finish(g, combiner, dtypes, refs, current, kept_level, lanes_reduced, merged)

    def _resized(self, dtype: DType, text: str, vec: bool) -> str:
        return f"sh::resize<1>({text})" if dtype is bool_ and vec else text

    def _accumulate(self, combiner: str, g: Group, dtypes: list[DType], identities: list[str], texts: list[str], kept_level: int,
                    uniform: str, body: list[str], target: list[str]) -> list[str]:  # fmt: skip
        frame, names = self.frame, self.frame.names
        lanes_inside = self.lane_level is not None and self.lane_level > kept_level
        vec = lanes_inside or self._lanes_at(kept_level)
        tag = "sh::lanes<sh::W>{}" if lanes_inside else "L"

        def declare(level: int) -> list[str]:
            found = []
            for i, d in zip(identities, dtypes, strict=True):
                a = names.fresh("a")
                start = f"sh::splat<{ctype(d)}>({tag}, {i})" if vec else f"{ctype(d)}({i})"
                frame.pre[level].append(f"auto {a} = {start};")
                found.append(a)
            return found

        total = declare(kept_level)
        current = total
        flush = next((k for k, loop in enumerate(self.loops) if loop is self.plan.flush), None)
        blocked = flush is not None and flush > kept_level and combiner == "sum" and dtypes[0].is_float and dtypes[0].bits == 32
        if blocked:
            assert flush is not None
            current = declare(flush)
        lines: list[str] = []
        merged = frame.merge(combiner, current, texts, dtypes, vec, lines)
        if uniform:
            body.append(f"if ({uniform}) {{")
            body += ["  " + x for x in (*lines, *(f"{a} = {m};" for a, m in zip(current, merged, strict=True)))]
            body.append("}")
        else:
            body += [*lines, *(f"{a} = {m};" for a, m in zip(current, merged, strict=True))]
        target += body
        if blocked:
            assert flush is not None
            more: list[str] = []
            both = frame.merge(combiner, total, current, dtypes, vec, more)
            frame.post[flush] += [*more, *(f"{a} = {m};" for a, m in zip(total, both, strict=True))]
        return total

    def _accumulate_shifted(self, text: str, value: Value, dtypes: list[DType], kept_level: int, lanes_reduced: bool, in_lanes: bool,
                            body: list[str]) -> tuple[list[str], bool]:  # fmt: skip
        """Count, mean and squared deviations of plain values, by sums of differences from the first value of each lane.

        Such a shift lies among the values, so the sums cancel no more than a deviation from the mean would, and a step needs
        no division (Chan, Golub, LeVeque 1983, section 3). Gives the three components for the merge with other blocks, and whether
        the lanes are merged.
        """
        frame, names = self.frame, self.frame.names
        deepest = len(self.loops) - 1
        lanes_inside = self.lane_level is not None and self.lane_level > kept_level
        vec = lanes_inside or self._lanes_at(kept_level)
        T, tag = ctype(dtypes[1]), "sh::lanes<sh::W>{}" if lanes_inside else "L"
        count, shift, total, squares = (names.fresh("a") for _ in range(4))
        started = names.fresh("t")
        counts_lanes = vec and lanes_reduced and in_lanes  # a last partial vector counts in some lanes only
        zero, one = f"{T}(0)", f"{T}(1)"
        frame.pre[kept_level].append(f"bool {started} = false;")
        frame.pre[kept_level].append(f"auto {count} = {f'sh::splat<{T}>({tag}, 0)' if counts_lanes else zero};")
        for a in (shift, total, squares):
            frame.pre[kept_level].append(f"auto {a} = {f'sh::splat<{T}>({tag}, 0)' if vec else zero};")
        x = text if value.vec or not self._lanes_at(deepest) else frame.splat(dtypes[1], value.text)
        d = names.fresh("t")
        body.append(f"if (!{started}) {{ {started} = true; {shift} = {x}; }}")
        difference = f"sh::sub({value.text}, {shift})"
        body.append(f"const auto {d} = {f'sh::keep(L, {difference}, {zero})' if counts_lanes else difference};")
        body.append(f"{count} = {f'sh::add({count}, sh::keep(L, sh::splat<{T}>(L, 1), {zero}))' if counts_lanes else f'{count} + {one}'};")
        body.append(f"{total} = sh::add({total}, {d});")
        body.append(f"{squares} = sh::add({squares}, sh::mul({d}, {d}));")
        out = frame.post[kept_level]
        share, n, mean, m2 = (names.fresh("t") for _ in range(4))
        if T == "float":
            total, squares = self._empty_blocks(total, squares, tag if vec else None, kept_level, body, out)
            D = "double"
        else:
            D = T
        if vec and lanes_reduced:
            each = count if counts_lanes else f"sh::splat<{T}>({tag}, {count})"
            out.append(f"auto [{n}, {mean}, {m2}] = sh::hmoments({each}, {shift}, {total}, {squares});")
            return [n, mean, m2], True
        out.append(f"const auto {share} = sh::div({total}, sh::cast<{D}>(sh::max({count}, {one})));")
        out.append(f"auto {n} = {f'sh::splat<{T}>(L, {count})' if vec and not counts_lanes else count};")
        out.append(f"auto {mean} = sh::add({shift}, sh::cast<{T}>({share}));")
        out.append(f"auto {m2} = sh::max(sh::cast<{T}>(sh::sub({squares}, sh::mul({total}, {share}))), {zero});")
        return [n, mean, m2], False

    def _empty_blocks(self, total: str, squares: str, tag: str | None, kept_level: int, body: list[str], out: list[str]) -> tuple[str, str]:
        """Let float32 sums run over few elements before they are added to float64 ones: a mean that is zero but for rounding, as after
        another batch norm, is otherwise wrong by the square root of the number of elements. Gives the float64 sums."""
        frame, names = self.frame, self.frame.names
        step = names.fresh("t")
        frame.pre[kept_level].append(f"int {step} = 0;")
        wide, empty = [], []
        for a in (total, squares):
            w = names.fresh("a")
            frame.pre[kept_level].append(f"auto {w} = {f'sh::splat<double>({tag}, 0)' if tag else 'double(0)'};")
            empty.append(f"{w} = sh::add({w}, sh::cast<double>({a}));")
            wide.append(w)
        again = " ".join(f"{a} = {f'sh::splat<float>({tag}, 0)' if tag else 'float(0)'};" for a in (total, squares))
        body.append(f"if (++{step} == {SHORT_SUM}) {{ {step} = 0; {' '.join(empty)} {again} }}")
        out += empty
        return wide[0], wide[1]

    def _finish(self, g: Group, combiner: str, dtypes: list[DType], refs: list[Ref], current: list[str], level: int,
                lanes_reduced: bool, merged_lanes: bool) -> None:  # fmt: skip
        """Behind the reduced loops: merge lanes (unless that is done), merge with what memory holds, store."""
        frame, names = self.frame, self.frame.names
        out = frame.post[level]
        vec = self._lanes_at(level)
        lanes_inside = self.lane_level is not None and self.lane_level > level
        if lanes_reduced and (vec or lanes_inside):
            if not merged_lanes:
                current = frame.across(combiner, current, dtypes, out)
            vec = False
        if g.scan is not None:
            state = []
            for k, d in enumerate(dtypes):
                a = names.fresh("s")
                text = identity_text(combiner, k, d)
                frame.pre[level - 1].append(f"auto {a} = {f'sh::splat<{ctype(d)}>(L, {text})' if vec else f'{ctype(d)}({text})'};")
                state.append(a)
            lines: list[str] = []
            merged = frame.merge(combiner, state, current, dtypes, vec, lines)
            out += [*lines, *(f"{a} = {m};" for a, m in zip(state, merged, strict=True))]
            current = state
        slots = self.writer.slots.get((id(self.code), g.names))
        targets = slots.refs if slots is not None else [replace(r, guard=self._kept_guard(r, g)) for r in refs]
        again = self._first(g, targets[0], level)
        if g.scan is None and (again or g.scatters):
            lines = []
            old = []
            for r, d in zip(targets, dtypes, strict=True):
                t, _, lane_target = frame.target(self.code, replace(r, guard=()), self.env, r.guard)
                old.append(
                    f"sh::cast<{ctype(d)}>({self._load_text(r, t, lane_target)})"
                    if is_half(r.dtype)
                    else self._load_text(r, t, lane_target)
                )
            merged = frame.merge(combiner, old, current, dtypes, vec, lines)
            update = [*lines, *(f"{a} = {self._resized(d, m, vec)};" for a, m, d in zip(current, merged, dtypes, strict=True))]
            guard = frame.condition([c for c in targets[0].guard if not frame.uses_lanes(c.expr)])
            conditions = [c for c in (f"!({again})" if again else "", guard) if c]
            if conditions:
                out.append(f"if ({' && '.join(conditions)}) {{")
                out += ["  " + x for x in update]
                out.append("}")
            else:
                out += update
        for r, a, d in zip(targets, current, dtypes, strict=True):
            self.store(r, a, vec, d, level, out)

    def _kept_guard(self, r: Ref, g: Group) -> tuple[Condition, ...]:
        every = frozenset(o.symbol for o in self.place.path) | {loop.symbol for loop in self.loops}
        return tuple(c for c in r.guard if depends(c.expr, every) <= g.kept)

    def _first(self, g: Group, ref: Ref, level: int) -> str:
        """The condition that nothing has been merged into memory yet; "" when no loop around `level` is reduced."""
        slots = self.writer.slots.get((id(self.code), g.names))
        start = slots.start if slots is not None else self.place.scope_start[ref.container] if ref.local else 0
        around = [o for o in self.place.path[start:] if not o.shared] + self.outers[: max(level, 0)]
        reduced = [o for o in around if o.symbol not in g.address]
        if g.scatters:
            return ""
        return " && ".join(o.first for o in reduced)

    def _load_text(self, ref: Ref, t: object, lane_target: bool) -> str:
        from .values import Target

        assert isinstance(t, Target)
        if t.pointer.startswith("r") and ref.local:
            return t.pointer
        if t.private:
            return f"sh::load(sh::lanes<sh::W>{{}}, {t.pointer} + ({t.base}) * sh::W)"
        if not lane_target:
            return f"{t.pointer}[{t.base}]"
        if t.lane_index is not None:
            return f"sh::gather(L, {t.pointer}, {t.lane_index})"
        if t.stride == "1":
            return f"sh::load(L, {t.pointer} + {t.base})"
        return f"sh::load_strided(L, {t.pointer} + {t.base}, {t.stride})"

    def store(self, ref: Ref, text: str, vec: bool, dtype: DType, level: int, out: list[str]) -> None:
        """Store a value of `dtype` through a write access; lines go to `out`, which belongs to `level`."""
        frame = self.frame
        t, _, lane_target = frame.target(self.code, ref, self.env)
        in_lanes = self._lanes_at(level)
        if ref.dtype is not dtype or is_half(ref.dtype):
            if lane_target and not vec:
                text, vec = frame.splat(dtype, text), True
            text = f"sh::cast<{ctype(ref.dtype)}>({text})"
        guard = frame.condition(t.uniform)
        front = f"if ({guard}) " if guard else ""
        register = ref.local and t.pointer.startswith("r")
        if not lane_target:
            if vec and not (register and in_lanes):
                raise ValueError(f"container {ref.container} is written by several iterations without a combiner")
            out.append(f"{front}{t.pointer} = {text};" if register else f"{front}{t.pointer}[{t.base}] = {text};")
            return
        if not vec:
            text = frame.splat(dtype, text)
        if register:
            if is_half(ref.dtype):
                text = f"sh::cast<float>({text})"
            text = self._resized(ref.dtype, text, True)
            if t.lanewise:
                text = f"sh::select({frame.lane_condition(t.lanewise)}, {text}, {t.pointer})"
            out.append(f"{front}{t.pointer} = {text};")
            return
        where = t.pointer if t.base == "0" else f"{t.pointer} + {t.base}"
        if t.private:
            text = self._resized(ref.dtype, text, True)
            out.append(f"{front}sh::store(sh::lanes<sh::W>{{}}, {t.pointer} + ({t.base}) * sh::W, {text});")
            return
        if t.lane_index is not None:
            plain = f"sh::scatter(L, {t.pointer}, {t.lane_index}, {text});"
        elif t.stride == "1":
            plain = f"sh::store(L, {where}, {text});"
        elif t.stride == "0":
            raise ValueError(f"container {ref.container} is written by several iterations without a combiner")
        else:
            plain = f"sh::store_strided(L, {where}, {t.stride}, {text});"
        if not t.lanewise:
            out.append(front + plain)
            return
        mask = frame.lane_condition(t.lanewise)
        ends = frame.ends(t.lanewise)
        if t.lane_index is not None:
            out.append(f"{front}sh::scatter_if(L, {mask}, {t.pointer}, {t.lane_index}, {text});")
            return
        slow = (f"sh::store_if(L, {mask}, {where}, {text});" if t.stride == "1"
                else f"sh::scatter_if(L, {mask}, {t.pointer}, sh::iota(L, {t.base}, {t.stride}), {text});")  # fmt: skip
        out.append(f"{front}{{ if ({ends}) {plain} else {slow} }}" if ends is not None else front + slow)


def _is_lifted_welford(code: Code, g: Group) -> bool:
    """Whether a group counts plain values: (1, x, 0) of every iteration."""
    if g.combiner != "welford" or g.scan is not None:
        return False
    count, _, m2 = (code.code[n] for n in g.names)
    return count.op == "const" and count.attr == 1 and m2.op == "const" and m2.attr == 0


def _codes(nest: Nest, scope: frozenset[Symbol]) -> Iterator[tuple[frozenset[Symbol], Code, frozenset[str]]]:
    """All tasklets below with the parameters in scope and the locals declared inside the nest."""

    def below(n: Nest, scope: frozenset[Symbol], local: frozenset[str]) -> Iterator[tuple[frozenset[Symbol], Code, frozenset[str]]]:
        scope, local = scope | frozenset(n.params), local | n.locals.keys()
        for node in n.body:
            if isinstance(node, Nest):
                yield from below(node, scope, local)
            else:
                yield scope, node, local

    yield from below(nest, scope, frozenset())


def _most(size: IntLike, loops: frozenset[Symbol]) -> IntLike:
    """A size that does not depend on the loops around it: the largest that it takes (a last tile may be shorter)."""
    if isinstance(size, int) or free_symbols(size).isdisjoint(loops):
        return size
    high = bounds(size)[1]
    if high is None:
        raise ValueError(f"the size {size} of a buffer is not bounded")
    return high


def _size_of(stride: IntLike | None) -> int:
    return 0 if stride is None else abs(stride) if isinstance(stride, int) else estimate(stride)


__all__ = ["Writer", "prove_eq"]
