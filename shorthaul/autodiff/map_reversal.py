"""Map reversal: the gradient of an operator without a registered one, from the maps that are its meaning.

The operator is expanded into flat maps, which are visited from the last to the first. A read becomes a combining (sum) write of the
gradient and a write becomes a read of it; the tasklet's code becomes its symbolic derivative. The result is a program of its own, held
by one `map_gradient` operator of the backward phase. Temporaries of the expansion that the derivative reads are computed again there.

A sum over the iterations that read an element would scatter. Where the subscripts are affine it is turned into a gather: a new
parameter for each dimension of the operand, solved for one of the old ones (`reverse_access`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Union

from shorthaul.ir.builder import fresh_params, make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.derivative import NotDifferentiable, adjoints
from shorthaul.ir.dtypes import DType
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import Indirect, Memlet, full
from shorthaul.ir.nodes import Map, Node, Operator, Tasklet
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ir.scalar import Scalar, cast, read, reads_of, rewrite
from shorthaul.ops.builder import Expansion, OpBuilder
from shorthaul.ops.map_gradient import MapGradient
from shorthaul.ops.registry import definition
from shorthaul.symbolic import Expr, Symbol, free_symbols

from .reverse_access import Transposed, transpose
from .reverse_combine import Reads, Reducer, seeds

IntLike = Union[int, Expr]


def reverse_operator(edit: Edit, node: Operator, incoming: Mapping[str, Container], wanted: frozenset[str]) -> dict[str, Container]:
    """Add the gradient of an operator to the program being edited, as one operator of phase "backward".

    incoming: gradient of each result that has one, by result name. wanted: names of the operands whose gradients are asked for.
    Returns the gradient container of each wanted operand that the results depend on differentiably, with the operand's shape and dtype.
    Raises NotDifferentiable, naming operator and origin, where the maps use something without a derivative.
    """
    try:
        body, values = _Reversal(edit.program, node, incoming, wanted).run()
    except NotDifferentiable as e:
        raise NotDifferentiable(f"{node.op} ({node.origin}): {e}") from e
    if not body.signature.outputs:
        return {}
    b = OpBuilder(edit, "backward", node.origins, hint="grad")
    results = b.op(MapGradient.name, {"body": body, "of": node.op}, **{f"x{i}": c for i, c in enumerate(values)})
    edit.add(*b.nodes)
    results = results if isinstance(results, tuple) else (results,)
    return dict(zip(body.attributes["gradient_of"], results, strict=True))


def forward_maps(program: Program, node: Operator) -> tuple[Program, dict[str, str], dict[str, str]]:
    """The operator's maps as a program of their own: (program, name of each operand there, name of each result there).

    Every operand gets a container of its own, also where one container is given twice. Nested maps are flattened.
    """
    scratch = Program(name=f"{node.op}_maps", symbols=program.symbols)
    operands: dict[str, str] = {}
    results: dict[str, str] = {}
    with scratch.edit("Expand") as edit:
        for table, memlets, role in ((operands, node.reads, "input"), (results, node.writes, "transient")):
            for k, m in memlets.items():
                c = program.containers[m.container]
                constant = role == "input" and m.container in program.constants
                new = Container(scratch.fresh(k), c.dtype, c.shape, role="constant" if constant else role)
                table[k] = edit.add_container(new).name
        inner = node.copy(reads={k: full(scratch.containers[v]) for k, v in operands.items()},
                          writes={k: full(scratch.containers[v]) for k, v in results.items()})  # fmt: skip
        expansion = Expansion(edit, inner)
        definition(node).maps(expansion)
        nodes: list[Node] = []
        for n in expansion.nodes:
            if not isinstance(n, Map):
                raise NotDifferentiable(f"its maps expansion contains the {n.kind} {n}")
            nodes += flattened(n, edit)
        edit.add(*nodes)
        edit.set_form(Form.MAPS)
    return scratch, operands, results


def flattened(m: Map, edit: Edit) -> list[Map]:
    """The tasklets of a map nest as flat maps in order; locals become containers with the dimensions of the parameters around them."""
    if m.tasklet is not None and not m.locals:
        return [m]
    return _flattened(m, (), {}, edit)


def _flattened(m: Map, outer: tuple[Symbol, ...], grown: Mapping[str, tuple[str, tuple[Symbol, ...]]], edit: Edit) -> list[Map]:
    scope = outer + m.params
    if any(p.lower != 0 or (isinstance(p.upper, Expr) and not free_symbols(p.upper).isdisjoint(scope)) for p in m.params):
        raise NotDifferentiable(f"the map {m.label} has a range that depends on other parameters")
    grown = dict(grown)
    for c in m.locals.values():
        name = edit.program.fresh(c.name)
        edit.add_container(Container(name, c.dtype, (*(p.size for p in scope), *c.shape)))
        grown[c.name] = (name, scope)

    def lift(memlets: Mapping[str, Memlet]) -> dict[str, Memlet]:
        return {k: w.with_(container=grown[w.container][0], subset=(*grown[w.container][1], *w.subset)) if w.container in grown else w
                for k, w in memlets.items()}  # fmt: skip

    flat: list[Map] = []
    for n in m.body:
        if isinstance(n, Map):
            flat += _flattened(n, scope, grown, edit)
        elif isinstance(n, Tasklet):
            t = n.copy(reads=lift(n.reads), writes=lift(n.writes))
            flat.append(Map(scope, (t,), name=m.name, origins=m.origins, phase=m.phase))
        else:
            raise NotDifferentiable(f"the map {m.label} contains the {n.kind} {n}")
    return flat


class _Reversal:
    """One operator's reversal: `forward` are its maps, `p` becomes the body of the gradient."""

    def __init__(self, program: Program, node: Operator, incoming: Mapping[str, Container], wanted: frozenset[str]) -> None:
        self.node = node
        self.outside = program
        self.forward, self.operands, self.results = forward_maps(program, node)
        self.wanted = [k for k in node.reads if k in wanted and program.containers[node.reads[k].container].dtype.is_float]
        self.p = Program(name=f"{node.op}_gradient", form=Form.MAPS, symbols=program.symbols)
        self.values: dict[str, Container] = {}
        for table, memlets in ((self.operands, node.reads), (self.results, node.writes)):
            self.values.update({table[k]: program.containers[m.container] for k, m in memlets.items()})
        self.incoming = {self.results[k]: g for k, g in incoming.items()}
        self.parts: dict[str, list[Container]] = {}
        self.nodes: list[Map] = []

    def run(self) -> tuple[Program, list[Container]]:
        active = {self.operands[k] for k in self.wanted}
        for n in self.forward.nodes:
            if not active.isdisjoint(n.read_containers()):
                active |= {w for w in n.written_containers() if self.forward.containers[w].dtype.is_float}
        with self.p.edit("Reverse") as self.edit:
            gradients: dict[str, Container] = {}
            for name, g in self.incoming.items():
                if name in active:
                    self.parts[name] = [self._declare(f"grad_{name}", g.dtype, g.shape, "input")]
                    gradients[self.parts[name][0].name] = g
            for n in reversed(self.forward.nodes):
                assert isinstance(n, Map)
                self._reverse(n, active)
            outputs = self._outputs()
            self._recompute()
            inputs = self._inputs(gradients)
            self.edit.add(*self.nodes)
            self.edit.set_signature(Signature(inputs=tuple(inputs), outputs=tuple(c.name for c in outputs.values())))
            self.edit.drop_unused(list(self.p.containers))
        self.p.attributes["gradient_of"] = tuple(outputs)
        self.p.log.clear()
        return self.p, list(inputs.values())

    def _inputs(self, gradients: Mapping[str, Container]) -> dict[str, Container]:
        used = {c for n in self.nodes for c in n.read_containers()}
        inputs: dict[str, Container] = {}
        for name, outside in {**self.values, **gradients}.items():
            if name in used:
                self.edit.set_container(self.p.containers[name].with_(role="input"))
                inputs[name] = outside
        return inputs

    # containers of the gradient's program -------------------------------------------------------------------------------
    def _declare(self, hint: str, dtype: DType, shape: tuple[IntLike, ...], role: str = "transient") -> Container:
        name = self.p.fresh(hint)
        while name in self.forward.containers:
            name = self.p.fresh(hint)
        return self.edit.add_container(Container(name, dtype, tuple(shape), role=role))

    def value(self, name: str) -> Container:
        """The forward value of a container, under its own name in the gradient's program."""
        if name not in self.p.containers:
            c = self.forward.containers[name]
            self.edit.add_container(c.with_(role="transient"))
            if name in self.forward.constants:
                self.edit.set_container(self.p.containers[name].with_(role="constant"))
                self.edit.set_constant(name, self.forward.constants[name])
        return self.p.containers[name]

    def total(self, name: str) -> Container | None:
        """The gradient of a forward container, the sum of its parts."""
        parts = self.parts.get(name, [])
        if len(parts) > 1:
            c = self.forward.containers[name]
            result = self._declare(f"grad_{name}", c.dtype.compute, c.shape)
            params = fresh_params(c.shape)
            where = {f"g{i}": Memlet(g.name, params) for i, g in enumerate(parts)}

            def added(**xs: Scalar) -> dict[str, Scalar]:
                values = [cast(x, result.dtype) for x in xs.values()]
                return {"y": sum(values[1:], values[0])}

            self.emit(params, where, {"y": Memlet(result.name, params)}, added, "sum_gradients")
            self.parts[name] = parts = [result]
        return parts[0] if parts else None

    def emit(self, params: tuple[Symbol, ...], reads: Mapping[str, Memlet], writes: Mapping[str, Memlet], code: object, name: str) -> None:
        """Append a flat map to the gradient's program."""
        dtypes = {m.container: self.p.containers[m.container].dtype for m in reads.values()}
        self.nodes.append(make_map(params, reads, writes, code, dtypes, name=f"{self.node.op}_{name}",  # type: ignore[arg-type]
                                   origins=self.node.origins, phase="backward"))  # fmt: skip

    # one map ----------------------------------------------------------------------------------------------------------------
    def _reverse(self, m: Map, active: set[str]) -> None:
        t = m.tasklet
        assert t is not None
        targets = {k: r for k, r in t.reads.items() if r.container in active and self.forward.containers[r.container].dtype.is_float}
        incoming = {k: g for k, w in t.writes.items() if w.container in active and (g := self.total(w.container)) is not None}
        if not targets or not incoming:
            return
        reads: Reads = dict(t.reads)
        for r in reads.values():
            self.value(r.container)
        code = {k: _wide_reads(c, targets) for k, c in t.code.items()}
        reducer = Reducer(m.params, reads, t, code, self.value, self._declare, self.emit)
        adjoint: dict[Scalar, Scalar] = {}
        for k, seed in seeds(reducer, incoming).items():
            root = code[k].args[0] if code[k].op == "cast" and code[k].args[0].dtype.is_float else code[k]
            for leaf, value in adjoints(root, cast(seed, root.dtype)).items():
                if leaf.op == "read" and leaf.attr in targets:
                    adjoint[leaf] = adjoint[leaf] + value if leaf in adjoint else value
        merged: dict[tuple[str, tuple, tuple], list[Scalar]] = {}
        where: dict[tuple[str, tuple, tuple], Memlet] = {}
        for leaf, value in adjoint.items():
            r = targets[leaf.attr]  # type: ignore[index]
            key = (r.container, r.subset, r.guard)
            where[key] = r
            merged.setdefault(key, []).append(value)
        for key, contributions in merged.items():
            self._contribute(m, reads, where[key], sum(contributions[1:], contributions[0]))

    def _contribute(self, m: Map, reads: Reads, target: Memlet, value: Scalar) -> None:
        """Add `value`, computed at each iteration, to the gradient of the element that the iteration reads."""
        c = self.forward.containers[target.container]
        result = self._declare(f"grad_{c.name}", c.dtype.compute, c.shape)
        value = cast(_stored_reads(value, {k: self.p.containers[r.container].dtype for k, r in reads.items()}), result.dtype)
        used = set(reads_of(value))
        used |= {s for k in used for s in _indirect(reads[k])} | set(_indirect(target))
        t: Transposed = transpose(m.params, {k: r for k, r in reads.items() if k in used}, target, c.shape, value)
        self.emit(t.params, t.reads, {"y": t.write.with_(container=result.name)}, {"y": t.value}, "reversed")
        self.parts.setdefault(c.name, []).append(result)

    # results and recomputation ------------------------------------------------------------------------------------------
    def _outputs(self) -> dict[str, Container]:
        outputs: dict[str, Container] = {}
        for k in self.wanted:
            g = self.total(self.operands[k])
            if g is None:
                continue
            dtype = self.forward.containers[self.operands[k]].dtype
            if g.dtype is not dtype or g.role == "input" or g.name in {o.name for o in outputs.values()}:
                params = fresh_params(g.shape)
                narrow = self._declare(f"grad_{k}", dtype, g.shape)
                value = cast(read("g", g.dtype), dtype)
                self.emit(params, {"g": Memlet(g.name, params)}, {"y": Memlet(narrow.name, params)}, {"y": value}, "cast")
                g = narrow
            outputs[k] = self.edit.set_container(self.p.containers[g.name].with_(role="output"))
        return outputs

    def _recompute(self) -> None:
        """Put the forward maps whose temporaries the gradient reads in front of it."""
        needed = {c for n in self.nodes for c in n.read_containers()} - set(self.values)
        again: list[Map] = []
        for n in reversed(self.forward.nodes):
            assert isinstance(n, Map)
            if needed.isdisjoint(n.written_containers()):
                continue
            needed |= n.read_containers() - set(self.values)
            t = n.tasklet
            assert t is not None
            for r in t.reads.values():
                self.value(r.container)
            writes = {}
            tuple_written = any(w.combine and len([v for v in t.writes.values() if v.combine == w.combine]) > 1 for w in t.writes.values())
            for k, w in t.writes.items():
                if w.container in self.values:
                    if not tuple_written:
                        continue
                    c = self.forward.containers[w.container]
                    w = w.with_(container=self._declare(f"{c.name}_again", c.dtype, c.shape).name)
                else:
                    self.value(w.container)
                writes[k] = w
            tasklet = t.copy(writes=writes, code={k: t.code[k] for k in writes}, phase="backward")
            again.append(Map(n.params, (tasklet,), name=n.name, origins=n.origins, phase="backward"))
        self.nodes = [*reversed(again), *self.nodes]


def _indirect(m: Memlet) -> list[str]:
    return [s.name for s in m.subset if isinstance(s, Indirect)]


def _wide_reads(code: Scalar, targets: Mapping[str, Memlet]) -> Scalar:
    """Take `cast(read, float32)` of a 16-bit float for a float32 read, so that its adjoint is not rounded on the way."""

    def leaf(n: Scalar) -> Scalar | None:
        source = n.args[0] if n.op == "cast" else None
        if source is not None and source.op == "read" and source.attr in targets and n.dtype is source.dtype.compute:
            return read(source.attr, n.dtype)  # type: ignore[arg-type]
        return None

    return rewrite(code, leaf)


def _stored_reads(code: Scalar, dtypes: Mapping[str, DType]) -> Scalar:
    """Undo `_wide_reads`: every read has its container's dtype again."""

    def leaf(n: Scalar) -> Scalar | None:
        if n.op == "read" and n.attr in dtypes and n.dtype is not dtypes[n.attr]:  # type: ignore[index]
            return cast(read(n.attr, dtypes[n.attr]), n.dtype)  # type: ignore[arg-type, index]
        return None

    return rewrite(code, leaf)
