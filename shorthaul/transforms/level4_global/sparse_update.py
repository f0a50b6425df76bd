"""SparseUpdate: the gradient of a table that is read by rows is kept for the touched rows only, and only they are updated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from shorthaul.analysis.movement import node_movement, stored
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import int64
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import full
from shorthaul.ir.nodes import Node, Operator, Origin
from shorthaul.ir.pointwise_program import codes_of, folded, nonlinear
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import Scalar, cast, const, index_value, read, where
from shorthaul.ir.scalar import apply as scalar
from shorthaul.ops.registry import TensorType, definition
from shorthaul.symbolic import Expr, minimum, product, prove_eq

from ..base import Match, Refusal, Transformation, describe, hint_value, require

IntLike = Union[int, Expr]
TABLE, ROWS, WHOLE = "table", "rows", "whole"  # what an operand of an update is; see the operator `row_step`
LOOKUPS = {"embedding_backward": "indices", "index_backward": "i0"}  # operators that add up rows by index, and their operand of indices
GATHERS = {"embedding": ("weight", "indices"), "index": ("x", "i0")}
EMPTY = {"sum": 0, "any": 0, "all": 1}  # reductions, with the number that adds nothing


class SparseUpdate(Transformation):
    """Sum the gradient of a table for the rows that were looked up, and let the optimizer change these rows alone, in place.

    before:  y = w[i]; ...; g = zeros like w; g[i] += gy (dense);  w' = step(w, g)
    after:   y = w[i]; ...; rows, order = sort(i); s[first equal of k] += gy[order[k]];  w'[rows] = step(w[rows], s)

    Applies where the table is trained by its rows only (embeddings, bags of them, indexing of dimension 0; several lookups of one table are
    added up together) and where a row without a gradient stays as it is: SGD without momentum, Adagrad; without weight decay, which shrinks
    every row. What lies between gradient and update is computed on the rows: loss scale and its check for infinities, clipping by norm (the
    norm over the rows' sums is that over the table). The sums are made in the order of the lookups.

    Where the program declares a table lazy (its attribute `lazy_tables`, see `TrainStep(sparse="lazy")`) an untouched row may change in a
    linear way; the steps that it missed are then made up for when it is read.

    static: only where the number of lookups is a number (a captured CUDA graph repeats one size).
    """

    level = 4

    def __init__(self, static: bool = False) -> None:
        self.static = static

    def matches(self, program: Program) -> Iterator[Match]:
        """Updates with an operand that is computed from sums of rows by index."""
        if not program.attributes.get("whole_step"):
            return
        for node in list(program.nodes):
            if isinstance(node, Operator) and node.op == "parameter_update":
                for name in dict.fromkeys(m.container for m in node.reads.values()):
                    if _comes_from_lookups(program, name):
                        yield Match(program, {"update": node, "mid": name})

    def check(self, m: Match) -> None:
        p, node = m.program, m.update
        table = p.containers[m.mid].shape
        found = _lookups(p, m.mid)
        _follow(p, found, node)
        step = _step(p, node, found)
        count: IntLike = 0
        for seed in found.seeds:
            count = count + p.containers[seed.reads[LOOKUPS[seed.op]].container].size
        static = isinstance(count, int) or not self.static
        require(static, "the number of lookups differs from step to step, and a captured graph repeats one")
        m.derived.update(found=found, step=step, count=count, table=table, plan=_plan(p, node, found, step, count))
        saved = hint_value(p, self.saves(m) + m.plan.copied)
        lookups = f"{hint_value(p, count)} lookups of {hint_value(p, table[0])} rows"
        require(saved > 0, f"{lookups} move {-saved} bytes more than the dense gradient")

    def at_stake(self, m: Match) -> IntLike:
        """The dense gradient written and read, the table read and written."""
        return m.program.containers[m.mid].bytes * 4

    def saves(self, m: Match) -> IntLike:
        """What goes with the dense gradient, less what the rows move. The new table still counts whole: `UpdateInPlace` saves that."""
        p, found, plan = m.program, m.found, m.plan
        total: IntLike = 0
        for node in plan.removed:
            for x in node_movement(node, p):
                total = total + x.footprint
        less = (m.table[0] - m.count) * product(m.table[1:])  # elements
        for node in found.nodes:  # they stay, over rows
            for name in {x.container for x in node.reads.values()} & found.rows.keys():
                total = total + less * p.containers[name].dtype.itemsize
            for name in {x.container for x in node.writes.values()} & found.rows.keys():
                total = total + less * p.containers[name].dtype.itemsize
        return total - plan.moved

    def apply(self, m: Match, edit: Edit) -> None:
        p, found, plan = m.program, m.found, m.plan
        for name in found.rows:
            edit.set_container(p.containers[name].with_(shape=(m.count, *m.table[1:]), strides=None))
        for c in plan.containers:
            edit.add_container(c)
        for node in found.nodes:
            sides = ({k: full(p.containers[x.container]) for k, x in side.items()} for side in (node.reads, node.writes))
            edit.replace(node, node.with_(**dict(zip(("reads", "writes"), sides, strict=True))))
        for id, lazy in plan.reads.items():
            edit.replace(p.node(id), *lazy)
        edit.replace(found.last, *plan.sums)
        edit.replace(plan.end, *plan.step)
        for node in plan.removed:
            if p.node_is_current(node):
                edit.remove(node)
        if plan.updates:
            edit.set_signature(p.signature.with_(updates=(*p.signature.updates, *plan.updates)))
        edit.drop_unused(plan.dropped)


# where a gradient comes from ----------------------------------------------------------------------------------------------
@dataclass
class Lookups:
    """seeds: the operators that add up rows, as often as they count. root: their sum, and `last` its node. tree: all nodes of the sum.
    rows: containers that hold the sum, or what is computed from it element by element, with the number that they have in untouched rows.
    nodes: those that compute them, or reduce them to numbers."""

    seeds: list[Operator]
    root: str
    last: Operator
    tree: dict[int, Operator]
    rows: dict[str, Scalar] = field(default_factory=dict)
    nodes: list[Operator] = field(default_factory=list)


def _writer(p: Program, name: str) -> Operator | None:
    writers = p.writers(name)
    return writers[0] if len(writers) == 1 and isinstance(writers[0], Operator) else None


def _is_pointwise(node: Node | None) -> bool:
    return isinstance(node, Operator) and len(node.writes) == 1 and hasattr(definition(node), "code")


def _is_lookup(p: Program, node: Node | None) -> bool:
    return isinstance(node, Operator) and node.op in LOOKUPS and (node.op != "index_backward" or node.attributes["dims"] == (0,))


def _comes_from_lookups(p: Program, name: str) -> bool:
    """Whether a container is computed element by element from at least one sum of rows by index."""
    todo, seen, shape = [name], {name}, p.containers[name].shape
    while todo:
        node = _writer(p, todo.pop())
        if _is_lookup(p, node):
            return True
        if node is not None and _is_pointwise(node):
            for m in node.reads.values():
                if m.container not in seen and _same(p.containers[m.container].shape, shape):
                    seen.add(m.container)
                    todo.append(m.container)
    return False


def _same(a: Sequence[IntLike], b: Sequence[IntLike]) -> bool:
    return len(a) == len(b) and all(x is y or prove_eq(x, y) is True for x, y in zip(a, b, strict=True))


def _lookups(p: Program, name: str) -> Lookups:
    """The sum of lookups from which a gradient is computed. Raises Refusal where something else takes part."""
    shape = p.containers[name].shape
    while True:
        tree: dict[int, Operator] = {}
        seeds = _summed(p, name, tree)
        if seeds is not None:
            last = _writer(p, name)
            assert last is not None
            inside = {m.container for n in tree.values() for m in n.writes.values()} - {name}
            for c in sorted(inside):
                outside = [describe(r) for r in p.readers(c) if r.id not in tree]
                require(not outside and c not in p.results, f"a part of its gradient is used by itself: {', '.join(outside) or c}")
            return Lookups(seeds, name, last, tree)
        node = _writer(p, name)
        what = describe(node) if node is not None else "several nodes"
        require(node is not None and _is_pointwise(node), f"its gradient comes from {what}, which gives every row")
        assert node is not None
        like = [m.container for m in node.reads.values() if _same(p.containers[m.container].shape, shape)]
        dense = [c for c in dict.fromkeys(like) if not _comes_from_lookups(p, c)]
        if dense:
            other = _writer(p, dense[0])
            kept = f"{dense[0]}, a whole tensor that the step keeps (accumulate=)"
            raise Refusal(f"its gradient is combined with {kept if other is None else describe(other) + ', which gives every row'}")
        require(len(set(like)) == 1, f"its lookups are combined by {node.op}")
        name = like[0]


def _summed(p: Program, name: str, tree: dict[int, Operator]) -> list[Operator] | None:
    """The lookups of which a container is the plain sum, None where it is not; `tree` gets the nodes."""
    node = _writer(p, name)
    if node is not None and _is_lookup(p, node):
        tree[node.id] = node
        return [node]
    if node is None or not _is_pointwise(node):
        return None
    code = _code(p, node)
    if code.op != "add" or any(x.op != "read" for x in code.args):
        return None
    parts = [_summed(p, node.reads[str(x.attr)].container, tree) for x in code.args]
    if parts[0] is None or parts[1] is None:
        return None
    tree[node.id] = node
    return parts[0] + parts[1]


def _code(p: Program, node: Operator) -> Scalar:
    """The scalar code of an elementwise operator over its operands' names."""
    types = {k: TensorType(p.containers[m.container].dtype, p.containers[m.container].shape) for k, m in node.reads.items()}
    return definition(node).code(types, node.attributes)  # type: ignore[attr-defined]


def _follow(p: Program, found: Lookups, update: Operator) -> None:
    """Find what is computed from the sum. Raises Refusal where that takes more than its rows."""
    c = p.containers[found.root]
    require(c.is_contiguous and c.dtype.is_float, "its gradient has another layout")
    found.rows[found.root] = const(0, c.dtype)
    for node in p.nodes:  # in the order of the dataflow
        mine = {k: m.container for k, m in node.reads.items() if m.container in found.rows}
        if not mine or node is update:
            continue
        require(isinstance(node, Operator), f"{describe(node)} reads the whole gradient")
        assert isinstance(node, Operator)
        if node.op in EMPTY and len(p.containers[node.reads["x"].container].shape) == _reduced(p, node):
            empty = found.rows[mine["x"]]
            require(float(empty.attr) == EMPTY[node.op], f"{describe(node)} also counts the untouched rows")  # type: ignore[arg-type]
        else:
            found.rows[next(iter(node.writes.values())).container] = _outside(p, found, node, mine)
        found.nodes.append(node)
    for name in found.rows:
        require(name not in p.results, "the caller gets the gradient of every row (grads=True)")


def _reduced(p: Program, node: Operator) -> int:
    """How many dimensions a reduction reduces."""
    rank = len(p.containers[node.reads["x"].container].shape)
    return len({d % rank for d in node.attributes["dims"]}) or rank


def _outside(p: Program, found: Lookups, node: Operator, mine: Mapping[str, str]) -> Scalar:
    """The number that an elementwise result has in untouched rows."""
    require(_is_pointwise(node), f"{describe(node)} reads the whole gradient")
    shape = p.containers[found.root].shape
    for k, m in node.reads.items():
        number = all(n == 1 for n in p.containers[m.container].shape)
        require(k in mine or number, f"{describe(node)} combines the gradient with {m.container}, which is no number")
    result = p.containers[next(iter(node.writes.values())).container]
    require(_same(result.shape, shape), f"{describe(node)} gives the gradient another shape")
    value = folded(_code(p, node), {k: found.rows[c] for k, c in mine.items()})
    require(value.op == "const", f"{describe(node)} makes {value} of an untouched row, which is not known to be one number")
    return value


# what the optimizer does --------------------------------------------------------------------------------------------------
@dataclass
class Step:
    """roles: of each operand. updates: for each result the operand whose new value it is. results: the containers that the caller gets.
    selects: nodes that keep the old value where `keep` holds. lazy: (last, decay, now) of a table whose untouched rows change."""

    roles: tuple[str, ...]
    updates: tuple[int, ...]
    results: tuple[str, ...]
    selects: tuple[Operator, ...]
    keep: str | None
    lazy: tuple[str, str, str] | None = None


def _step(p: Program, node: Operator, found: Lookups) -> Step:
    body: Program = node.attributes["body"]
    shape = p.containers[found.root].shape
    operands = [node.reads[f"x{i}"].container for i in range(len(node.reads))]
    codes = codes_of(body)
    require(codes is not None, "its update is not computed element by element")
    assert codes is not None
    roles = []
    for c in operands:
        own = p.containers[c]
        if c in found.rows:
            roles.append(ROWS)
        elif _same(own.shape, shape):
            require(own.is_external, f"its update also reads {c}, which is computed for every row")
            roles.append(TABLE)
        else:
            require(all(n == 1 for n in own.shape), f"its update also reads {c} of another shape: several parameters are updated together")
            roles.append(WHOLE)
    news = [node.writes[f"y{k}"].container for k in range(len(node.writes))]
    results, selects, keep = [], [], None
    old_of = {new: old for old, new in p.signature.updates}
    updates = []
    for new in news:
        result, select = new, None
        if new not in old_of:
            readers = p.readers(new)
            select = readers[0] if len(readers) == 1 and isinstance(readers[0], Operator) and readers[0].op == "where" else None
            require(select is not None, f"{new} is read by {describe(readers[0]) if readers else 'nothing'} before it is written back")
            assert select is not None
            result = next(iter(select.writes.values())).container
            condition = select.reads["condition"].container
            require(keep in (None, condition) and result in old_of, "new values are chosen by different conditions")
            keep = condition
            require(select.reads["a"].container == old_of[result] and select.reads["b"].container == new, "it is chosen from other values")
            selects.append(select)
        require(old_of[result] in operands, f"the new value of {old_of[result]} does not depend on the old one")
        results.append(result)
        updates.append(operands.index(old_of[result]))
    require(keep is None or len(selects) == len(news), "new values are chosen by different conditions")
    lazy = _untouched(p, operands, roles, updates, found, body, codes)
    return Step(tuple(roles), tuple(updates), tuple(results), tuple(selects), keep, lazy)


def _untouched(p: Program, operands: Sequence[str], roles: Sequence[str], updates: Sequence[int], found: Lookups, body: Program,
               made: Mapping[str, Scalar]) -> tuple[str, str, str] | None:  # fmt: skip
    """The containers of a lazy table whose rows without a gradient change linearly, None where they do not change. Raises Refusal
    where they change otherwise, or the table is not lazy."""
    of_read = {name: i for i, name in enumerate(body.signature.inputs)}
    nothing = {k: found.rows[operands[i]] for k, i in of_read.items() if roles[i] == ROWS}
    codes = [folded(made[name], nothing) for name in body.signature.outputs]
    changed = [i for code, i in zip(codes, updates, strict=True) if code.op != "read" or of_read[str(code.attr)] != i]
    if not changed:
        return None
    names = ", ".join(operands[i] for i in changed)
    why = f"every row of {names} changes at every step, also those that were not looked up (momentum, averages, weight decay)"
    table = operands[roles.index(TABLE)]
    declared = p.attributes.get("lazy_tables", {}).get(table)
    tables = {k for k, i in of_read.items() if roles[i] == TABLE}
    curved = next((text for code in codes if (text := nonlinear(code, tables))), "")
    if curved:
        raise Refusal(f"{why}, and not in a linear way ({curved}): what many steps make of a row has no closed form")
    require(declared is not None, f'{why}; TrainStep(sparse="lazy") makes up for the steps that a row missed when it is read')
    assert declared is not None
    require(all(i in updates for i, role in enumerate(roles) if role == TABLE), "a part of its state is read and not changed")
    for r in p.readers(table):
        by_rows = isinstance(r, Operator) and r.op in GATHERS and (r.op != "index" or r.attributes["dims"] == (0,))
        require(by_rows or (isinstance(r, Operator) and r.op in ("parameter_update", "where")), f"{describe(r)} reads the whole table")
    return declared


# what takes its place -----------------------------------------------------------------------------------------------------
class _Plan:
    """The new operators and containers. sums: they replace the last node of the dense sum. step: those that replace `end`, the update or
    what chooses behind it. reads: by id of a node that reads the table, those that replace it. moved: the bytes of all of them."""

    def __init__(self, program: Program, phase: str) -> None:
        self.p, self.phase = program, phase
        self.containers: list[Container] = []
        self.known: dict[str, Container] = {}
        self.sums: list[Operator] = []
        self.step: list[Operator] = []
        self.reads: dict[int, list[Operator]] = {}
        self.removed: list[Operator] = []
        self.dropped: list[str] = []
        self.updates: list[tuple[str, str]] = []
        self.moved: IntLike = 0
        self.copied: IntLike = 0  # of them what tables that are written in place do not move
        self.behind: dict[str, IntLike] = {}  # bytes behind planned views
        self.end: Operator | None = None

    def container(self, name: str) -> Container:
        return self.known.get(name) or self.p.containers[name]

    def _stored(self, name: str) -> IntLike:
        if name in self.behind:
            return minimum(self.container(name).bytes, self.behind[name])
        return self.known[name].bytes if name in self.known else stored(self.p, self.p.containers[name])

    def op(self, into: list[Operator], name: str, attributes: Mapping[str, Any], operands: Mapping[str, str], origins: tuple[Origin, ...],
           results: Sequence[str] = (), phase: str = "") -> list[str]:  # fmt: skip
        """Plan an operator; results: containers of the program that it writes, new ones where there are none."""
        d = definition(name)
        given = {**d.attributes, **attributes}
        types = {k: TensorType(self.container(c).dtype, self.container(c).shape) for k, c in operands.items()}
        written: dict[str, Container] = {}
        for k, t in d.infer(types, given).items():
            if results:
                c = self.p.containers[results[len(written)]].with_(shape=t.shape)
            else:
                c = Container(self.p.fresh(f"rows_{name}"), t.dtype, t.shape)
                self.containers.append(c)
            self.known[c.name] = written[k] = c
        into.append(Operator(name, given, reads={k: full(self.container(c)) for k, c in operands.items()},
                             writes={k: full(c) for k, c in written.items()}, origins=origins, phase=phase or self.phase))  # fmt: skip
        if d.is_view:
            self.behind[next(iter(written.values())).name] = self._stored(next(iter(operands.values())))
        else:
            rows = next(iter(written.values())).size
            for c in {name: self.container(name) for name in operands.values()}.values():
                by_row = name in ("row_step", "lazy_rows")
                self.moved = self.moved + (minimum(c.size, rows) * c.dtype.itemsize if by_row else self._stored(c.name))
            for c in written.values():
                self.moved = self.moved + c.bytes
            if name == "write_rows":
                self.copied = self.copied + 2 * c.bytes - self.container(operands["values"]).bytes
        return [c.name for c in written.values()]


def _plan(p: Program, node: Operator, found: Lookups, step: Step, count: IntLike) -> _Plan:
    plan = _Plan(p, node.phase)
    origins = found.seeds[0].origins
    table = p.containers[found.root].shape
    rest = table[1:]
    numbers, gradients = [], []
    for seed in found.seeds:
        indices = seed.reads[LOOKUPS[seed.op]].container
        gradient = seed.reads["g" if seed.op == "embedding_backward" else "x"].container
        n = p.containers[indices].size
        flat = _wrapped(plan, plan.sums, indices, table[0] if seed.attributes.get("wrap") else None, origins)
        numbers += plan.op(plan.sums, "reshape", {"shape": (n,)}, {"x": flat}, origins)
        (rows,) = plan.op(plan.sums, "reshape", {"shape": (n, *rest)}, {"x": gradient}, origins)
        padding = seed.attributes.get("padding_idx", -1)
        if not isinstance(padding, int) or padding >= 0:
            (mask,) = plan.op(plan.sums, "reshape", {"shape": (n, *(1 for _ in rest))}, {"x": flat}, origins)
            code = where(scalar("eq", read("x0", plan.container(mask).dtype), padding), 0, read("x1", plan.container(rows).dtype))
            (rows,) = plan.op(plan.sums, "pointwise", {"code": code}, {"x0": mask, "x1": rows}, origins)
        gradients.append(rows)
    joined = []
    for parts in (numbers, gradients):
        if len(parts) > 1:
            parts = plan.op(plan.sums, "cat", {"dim": 0}, {f"x{i}": c for i, c in enumerate(parts)}, origins)
        joined.append(parts[0])
    order_of = {"dim": 0, "descending": False, "below": p.containers[found.root].shape[0]}
    rows, order = plan.op(plan.sums, "sort", order_of, {"x": joined[0]}, origins)
    (starts,) = plan.op(plan.sums, "row_starts", {}, {"rows": rows}, origins)
    plan.op(plan.sums, "row_sums", {}, {"g": joined[1], "order": order, "starts": starts}, origins, [found.root])
    for c in found.rows:
        plan.known.setdefault(c, p.containers[c].with_(shape=(count, *rest)))

    operands = {"rows": rows, "starts": starts}
    if step.keep is not None:
        operands["keep"] = step.keep
    tables = {f"x{i}": node.reads[f"x{i}"].container for i in range(len(node.reads))}
    if step.lazy is not None:
        operands |= {"last": step.lazy[0], "decay": step.lazy[1]}
    attributes = {"body": node.attributes["body"], "roles": step.roles, "updates": step.updates}
    values = plan.op(plan.step, "row_step", attributes, {**operands, **tables}, node.origins)
    for k, value, result in zip(step.updates, values, step.results, strict=True):
        plan.op(plan.step, "write_rows", {}, {"x": tables[f"x{k}"], "rows": rows, "values": value}, node.origins, [result])
    if step.lazy is not None:
        last, _, now = step.lazy
        code = cast(read("x1", plan.container(now).dtype), int64)
        (stamp,) = plan.op(plan.step, "pointwise", {"code": code}, {"x0": rows, "x1": now}, origins)
        (new,) = plan.op(plan.step, "write_rows", {}, {"x": last, "rows": rows, "values": stamp}, node.origins)
        plan.containers[-1] = plan.known[new] = plan.known[new].with_(role="output")
        plan.updates.append((last, new))
        _plan_reads(plan, node, step, tables)
    plan.end = max(step.selects, key=p.position) if step.selects else node
    plan.removed = [*found.tree.values(), node, *step.selects, *(p.node(i) for i in plan.reads)]  # type: ignore[list-item]
    plan.dropped = sorted({m.container for n in plan.removed for m in n.writes.values()})
    return plan


def _wrapped(plan: _Plan, into: list[Operator], indices: str, rows: IntLike | None, origins: tuple[Origin, ...],
             phase: str = "") -> str:  # fmt: skip
    """Row numbers as int64; with `rows`, negative ones count from the end."""
    c = plan.container(indices)
    i = cast(read("x0", c.dtype), int64)
    if rows is not None:
        i = where(i < 0, i + index_value(rows), i)
    if i.op == "read":
        return indices
    return plan.op(into, "pointwise", {"code": i}, {"x0": indices}, origins, phase=phase)[0]


def _plan_reads(plan: _Plan, node: Operator, step: Step, tables: Mapping[str, str]) -> None:
    """Every lookup of a lazy table, brought up to date as it is read."""
    assert step.lazy is not None
    own = [c for (_, c), role in zip(tables.items(), step.roles, strict=True) if role == TABLE]
    for r in plan.p.readers(own[0]):
        if not isinstance(r, Operator) or r.op not in GATHERS:
            continue
        into: list[Operator] = []
        wrap = plan.container(own[0]).shape[0] if r.attributes.get("wrap") else None
        i = _wrapped(plan, into, r.reads[GATHERS[r.op][1]].container, wrap, r.origins, r.phase)
        operands = {"indices": i, "last": step.lazy[0], "decay": step.lazy[1], **{f"x{k}": c for k, c in enumerate(own)}}
        plan.op(into, "lazy_rows", {}, operands, r.origins, [r.writes["y"].container], r.phase)
        plan.reads[r.id] = into
