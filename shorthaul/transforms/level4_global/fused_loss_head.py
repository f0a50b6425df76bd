"""FusedLossHead: the last projection, the loss and their gradients a few rows at a time, so that the logits are never there as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from shorthaul.analysis.movement import node_movement
from shorthaul.analysis.roofline import machine
from shorthaul.analysis.tiles import loop_working_set
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import int64
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import full
from shorthaul.ir.nodes import Loop, Node, Operator
from shorthaul.ir.program import Form, Program
from shorthaul.ir.rewrite import rename
from shorthaul.ir.scalar import apply, cast, const, read, where
from shorthaul.symbolic import Expr

from ..base import Match, Transformation, describe, require
from .loss_region import MEAN, NONE, ROWS, SUM, TOTAL, Region, body_of, region_of

IntLike = Union[int, Expr]
PASSES = 6  # over the logits that the fused kernels of a loss make without this: written, read, read, gradient written, read, read
KEPT = 5  # of them that remain where a part of the logits does not stay in the cache: the backward phase does not read them again


@dataclass
class _Plan:
    """What is put in the place of a region, apart from the loop's own body.

    entry: the gradient of the loss that comes in, None where none does (it is constant). incoming: operators that make of it what the
    region reads. before, behind: operators before and behind the loop, forward. scaled: for each result of the backward phase the operators
    that make it of the loop's. inputs, outputs: container of each connector of the loop. new: containers.
    """

    region: Region
    entry: str | None
    incoming: list[Node]
    before: list[Node] = field(default_factory=list)
    behind: list[Node] = field(default_factory=list)
    scaled: dict[str, list[Node]] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    new: dict[str, Container] = field(default_factory=dict)
    loop: Loop | None = None


class FusedLossHead(Transformation):
    """Compute a linear layer and a cross-entropy together with their gradients, some rows at a time.

    before:  forward: z = x W^T + b (rows x classes, saved);  l = cross_entropy(z, target)
             backward: dz = (softmax(z) - onehot(target)) * dl;  dx = dz W;  dW = dz^T x;  db = sum(dz)
    after:   forward: loop over parts of the rows:  z' = x' W^T + b;  l += ...;  dz' = softmax(z') - onehot(target');  dx'_1 = dz' W;
             dW_1 += dz'^T x';  db_1 += sum(dz')             backward: dx = dx_1 * dl;  dW = dW_1 * dl;  db = db_1 * dl

    Gradients are linear in the one number that comes in, so they are made for one where the logits are, and scaled later; what is saved is
    of the size of x and W. Where the training step is one program the number is known and nothing is scaled. Class weights, ignored
    targets, label smoothing and every reduction are taken as they stand, as are elementwise operators between the layer and the loss. The
    total weight of the targets is computed first.

    rows: how many at a time (a divisor of all); 0 for the number that moves the least. Then it applies only where the logits do not stay
    in the cache, and that is less than before: weights and their gradients are read again for every part, unless a part and they fit it.
    """

    level = 4
    allowed = {"rows": range(1 << 40)}

    def __init__(self, rows: int = 0) -> None:
        self.rows = rows

    def matches(self, program: Program) -> Iterator[Match]:
        for n in list(program.nodes):
            if isinstance(n, Operator) and n.op == "log_softmax" and n.phase == "forward":
                head = _layer_before(program, n)
                if head is not None:
                    yield Match(program, {"head": head, "loss": n, "mid": head.writes["y"].container})

    def check(self, m: Match) -> None:
        p: Program = m.program
        require(p.form is Form.OPERATORS, "the program is lowered already")
        region = region_of(p, m.head)
        require(any(n.phase == "backward" for n in region.nodes), f"no gradient of {describe(m.head)} is asked for")
        late = [c for c in sorted(region.roles) if not isinstance(p.containers[c].size, int)]
        require(not late, f"the size of {', '.join(late)} is known at run time only")
        depends = _dependents(p, region)
        late = [c for c in region.inputs if c in depends and region.roles[c] != TOTAL]
        require(not late, f"{', '.join(late)} is computed from the loss")
        for c in region.outputs("forward") + region.outputs("backward"):
            dtype = p.containers[c].dtype
            require(region.roles[c] in (ROWS, SUM, TOTAL), f"the gradient of {describe(m.head)} is needed as a whole")
            require(region.roles[c] != SUM or dtype.compute is dtype, f"{c} would be added up in {dtype}")
        entry, incoming = _incoming(p, region, depends)
        count = self._count(p, region, m.head, entry)
        plan = _Plan(region, entry, incoming)
        _complete(p, plan, count)
        m.derived["plan"] = plan

    def _count(self, p: Program, r: Region, head: Operator, entry: str | None) -> int:
        """How many rows at a time. Raises Refusal where no number of them moves less, or the one that is asked for does not divide."""
        if self.rows:
            require(r.rows % self.rows == 0 and self.rows < r.rows, f"{self.rows} does not divide {r.rows} rows into parts")
            return self.rows
        item = p.containers[head.writes["y"].container].dtype.itemsize
        logits, weight, hidden = r.rows * r.classes * item, *(known(p.containers[head.reads[k].container].bytes) for k in "ba")
        require(logits >= machine().cache // 2, f"the {logits} bytes of the logits stay in the cache anyway")
        scaling = 0 if entry is None else 2 * (weight + hidden)
        best: tuple[int, int] | None = None
        for count in (n for n in range(1, r.rows) if r.rows % n == 0):
            parts = r.rows // count
            if 2 * weight + 2 * (logits + hidden) // parts <= machine().cache:
                gain = PASSES * logits + hidden + weight - scaling
            else:
                gain = (PASSES - KEPT) * logits + hidden - 2 * weight * (parts - 1) - 4 * weight * (parts - 1) - scaling
            if best is None or gain > best[0]:
                best = gain, count
        assert best is not None
        require(best[0] > 0, f"reading the weight again for every part of the rows would move {-best[0]} bytes more")
        return best[1]

    def saves(self, m: Match) -> IntLike:
        """What the region's operators move, less what the loop and the operators around it will."""
        p, plan = m.program, m.plan
        moved = sum(known(x.bytes) for n in plan.region.nodes for x in node_movement(n, p))
        again = sum(known(x.bytes) for n in plan.incoming for x in node_movement(n, p))
        containers = {**p.containers, **plan.new}
        small = [n for n in (*plan.before, *plan.behind, *(n for s in plan.scaled.values() for n in s)) if n not in plan.incoming]
        return moved - again - _loop_bytes(plan) - sum(_bytes(n, containers) for n in small)

    def apply(self, m: Match, edit: Edit) -> None:
        p, plan = m.program, m.plan
        r: Region = plan.region
        for c in plan.new.values():
            edit.add_container(c)
        forward = [n for n in r.nodes if n.phase == "forward"]
        names: dict[str, str] = {plan.entry: plan.inputs["one"]} if plan.entry is not None else {}
        names |= {c: p.fresh(f"{c}_of_one") for n in plan.incoming for c in sorted(p.writes_of(n))}
        for n in plan.incoming:
            for c in sorted(p.writes_of(n)):
                edit.add_container(p.containers[c].with_(name=names[c], role="transient"))
        incoming = [rename(n, names, phase="forward") for n in plan.incoming]
        loop = _with_inputs(p, plan, names)
        new = [*plan.before, *incoming, loop, *plan.behind]
        earlier = _needed_first(p, new, forward)
        edit.fuse([*forward, *earlier], *earlier, *new)
        for n in r.nodes:
            if n.phase == "backward":
                edit.replace(n, *(x for c in sorted(p.writes_of(n)) for x in plan.scaled.get(c, ())))
        edit.drop_unused(r.written)


def _needed_first(p: Program, new: Sequence[Node], replaced: Sequence[Node]) -> list[Node]:
    """Nodes behind the first of those replaced that the new ones need the results of, in program order."""
    first = min(map(p.position, replaced))
    written = {c for n in new for c in n.written_containers()}
    found: dict[int, Node] = {}
    todo = sorted({c for n in new for c in n.read_containers()} - written)
    while todo:
        for w in p.writers(todo.pop()):
            if w.phase == "forward" and p.position(w) > first and w.id not in found:
                found[w.id] = w
                todo += sorted(p.reads_of(w))
    return sorted(found.values(), key=p.position)


def known(n: IntLike) -> int:
    """A size that `check` has found to be a number."""
    assert isinstance(n, int)
    return n


def _layer_before(p: Program, loss: Operator) -> Operator | None:
    """The contraction whose result, by way of reshapes and elementwise operators of one operand, goes into a softmax."""
    name = loss.reads["x"].container
    while True:
        writers = p.writers(name)
        n = writers[0] if len(writers) == 1 else None
        if not isinstance(n, Operator) or n.phase != loss.phase:
            return None
        if n.op == "contract":
            return n
        if len(n.reads) != 1:
            return None
        name = next(iter(n.reads.values())).container


def _dependents(p: Program, r: Region) -> set[str]:
    """What the forward phase computes from the loss, apart from the total weight of the targets, which is computed without it."""
    found = {c for n in r.nodes if n.phase == "forward" for c in p.writes_of(n) if r.roles[c] != TOTAL}
    for n in p.nodes:
        if n.phase == "forward" and not p.reads_of(n).isdisjoint(found):
            found |= {c for c in p.writes_of(n) if r.roles.get(c) != TOTAL}
    return found


def _incoming(p: Program, r: Region, depends: set[str]) -> tuple[str | None, list[Node]]:
    """The one number through which the gradient comes in (None where it is constant), and the operators from there to the region."""
    inside = {n.id for n in r.nodes}
    cotangents = {c for _, c in p.signature.cotangents}

    def made_backward(c: str) -> Node | None:
        return next((w for w in p.writers(c) if w.phase == "backward"), None)

    ends = [c for c in r.inputs if c in cotangents or made_backward(c) is not None]

    def path(entry: str | None) -> list[Node] | None:
        nodes: dict[int, Node] = {}
        todo = [c for c in ends if c != entry]
        while todo:
            c = todo.pop()
            w = made_backward(c)
            foreign = w is not None and (w.id in inside or not isinstance(w, Operator) or len(p.writers(c)) > 1)
            if c in cotangents or c in depends or foreign:
                return None
            if w is not None and w.id not in nodes:
                nodes[w.id] = w
                todo += [x for x in sorted(p.reads_of(w)) if x != entry]
        return sorted(nodes.values(), key=p.position)

    above: dict[str, int] = {}
    todo = list(ends)
    while todo:
        c = todo.pop()
        if c not in above:
            w = made_backward(c)
            above[c] = p.position(w) if w is not None else -1
            todo += sorted(p.reads_of(w)) if w is not None else []
    numbers = [c for c in above if (above[c] >= 0 or c in cotangents) and p.containers[c].shape == () and p.containers[c].dtype.is_float]
    for entry in (None, *sorted(numbers, key=lambda c: (above[c], c))):
        found = path(entry)
        if found is not None:
            return entry, found
    require(False, "its gradient does not come in as one number")
    raise AssertionError


def _complete(p: Program, plan: _Plan, count: int) -> None:
    """The operators around the loop, and the loop."""
    r = plan.region
    taken: set[str] = set()

    def declare(name: str, dtype: Any, shape: tuple[Any, ...]) -> str:
        fresh = p.fresh(name)
        while fresh in taken:
            fresh = f"{fresh}_"
        taken.add(fresh)
        plan.new[fresh] = Container(fresh, dtype, shape)
        return fresh

    def container(name: str) -> Container:
        return plan.new[name] if name in plan.new else p.containers[name]

    def operator(op: str, attributes: Mapping[str, Any], reads: Mapping[str, str], y: str, phase: str = "forward") -> Operator:
        return Operator(op, attributes, reads={k: full(container(c)) for k, c in reads.items()}, writes={"y": full(container(y))},
                        origins=r.nodes[0].origins, phase=phase)  # fmt: skip

    def reshaped(name: str, shape: tuple[Any, ...], nodes: list[Node]) -> str:
        y = declare(f"{name}_rows", container(name).dtype, shape)
        nodes.append(operator("reshape", {"shape": shape}, {"x": name}, y))
        return y

    if plan.entry is not None:
        dtype = p.containers[plan.entry].dtype
        one = declare("one", dtype, ())
        plan.before.append(operator("full", {"shape": (), "value": 1, "dtype": dtype}, {}, one))
        plan.inputs["one"] = one
    for n in r.nodes:
        if n.op == "nll_loss":
            _total_weight(p, n, plan.before, declare, operator)
    for c in r.inputs:
        shape = p.containers[c].shape
        plan.inputs[c] = reshaped(c, (r.rows, shape[-1]), plan.before) if r.roles[c] == ROWS and len(shape) > 2 else c
    means = {n.writes["y"].container: n for n in r.nodes if n.op == "nll_loss" and n.attributes["reduction"] == MEAN}
    for c in (c for c in r.outputs("forward") if r.roles[c] != TOTAL):
        plan.outputs[c] = c
        if c in means:
            own = p.containers[c]
            plan.outputs[c] = declare(f"{c}_sum", own.dtype, ())
            code = read("x0", own.dtype) / read("x1", own.dtype)
            total = means[c].writes["total_weight"].container
            plan.behind.append(operator("pointwise", {"code": code}, {"x0": plan.outputs[c], "x1": total}, c))
    for c in r.outputs("backward"):
        own = p.containers[c]
        shape = (r.rows, own.shape[-1]) if r.roles[c] == ROWS and len(own.shape) > 2 else own.shape
        if plan.entry is None and shape == own.shape and c not in p.results:
            plan.outputs[c] = c
            continue
        unit = plan.outputs[c] = declare(f"{c}_of_one", own.dtype, shape)
        value = cast(read("x0", own.dtype), own.dtype.compute)
        reads = {"x0": unit}
        if plan.entry is not None:
            reads["x1"] = plan.entry
            value = value * cast(read("x1", p.containers[plan.entry].dtype), own.dtype.compute)
        nodes: list[Node] = []
        result = c if shape == own.shape else declare(f"{c}_scaled", own.dtype, shape) if plan.entry is not None or c in p.results else unit
        if result != unit:
            nodes.append(operator("pointwise", {"code": cast(value, own.dtype)}, reads, result, "backward"))
        if result != c:
            nodes.append(operator("reshape", {"shape": own.shape}, {"x": result}, c, "backward"))
        plan.scaled[c] = nodes
    body = body_of(r, count, tuple(plan.outputs))
    scanned = tuple(c for c in r.inputs if r.roles[c] == ROWS)
    stacked, summed = (tuple(c for c in plan.outputs if r.roles[c] == role) for role in (ROWS, SUM))
    plan.loop = Loop(body, r.rows // count, (), scanned, stacked, tile=(count,), summed=summed,
                     reads={c: full(container(plan.inputs[c])) for c in r.inputs},
                     writes={c: full(container(x)) for c, x in plan.outputs.items()}, origins=r.nodes[0].origins)  # fmt: skip


def _total_weight(p: Program, n: Operator, nodes: list[Node], declare: Any, operator: Any) -> None:
    """Operators that compute the total weight of the targets, the second result of a loss, without the logits."""
    total = n.writes["total_weight"].container
    dtype = p.containers[total].dtype
    if n.attributes["reduction"] == NONE:
        nodes.append(operator("full", {"shape": (), "value": 0, "dtype": dtype}, {}, total))
        return
    target = p.containers[n.reads["target"].container]
    t = read("x0", target.dtype)
    ignored = apply("eq", t, n.attributes["ignore_index"])
    counted = declare("counted", dtype, target.shape)
    if "weight" not in n.reads:
        nodes.append(operator("pointwise", {"code": where(ignored, const(0, dtype), const(1, dtype))}, {"x0": target.name}, counted))
    else:
        index, weight = declare("class", int64, target.shape), declare("weight", dtype, target.shape)
        nodes.append(operator("pointwise", {"code": cast(where(ignored, 0, t), int64)}, {"x0": target.name}, index))
        nodes.append(operator("gather", {"dim": 0}, {"x": n.reads["weight"].container, "index": index}, weight))
        code = where(ignored, const(0, dtype), read("x1", dtype))
        nodes.append(operator("pointwise", {"code": code}, {"x0": target.name, "x1": weight}, counted))
    nodes.append(operator("sum", {"dims": (), "keepdim": False, "dtype": dtype}, {"x": counted}, total))


def _with_inputs(p: Program, plan: _Plan, names: Mapping[str, str]) -> Loop:
    """The loop, reading what is made for an incoming gradient of one."""
    loop = plan.loop
    assert loop is not None
    found = {k: p.containers[names[plan.inputs[k]]] if plan.inputs[k] in names else None for k in loop.reads}
    return loop.with_(reads={k: m if found[k] is None else full(found[k]) for k, m in loop.reads.items()})  # type: ignore[arg-type]


def _loop_bytes(plan: _Plan) -> int:
    """Bytes of the loop: what its rows are, once; what is the same for all, and sums, for each part unless all fits the cache."""
    loop = plan.loop
    assert loop is not None
    body, parts = loop.body, known(loop.trips)
    fits = loop_working_set(loop, {}) <= machine().cache
    most: dict[tuple[str, str], int] = {}
    total = 0
    for n in body.nodes:
        for x in node_movement(n, body):
            total += known(x.bytes) * parts
            key = x.container, x.side
            most[key] = max(most.get(key, 0), known(x.bytes))
    if not fits:
        return total + sum(3 * (parts - 1) * known(body.containers[c].bytes) for c in loop.summed)
    result = 0
    for (c, side), number in most.items():
        if c in loop.reads or (side == "write" and (c in loop.stacked or c in loop.summed)):
            result += number * (parts if c in loop.scanned or c in loop.stacked else 1)
    return result


def _bytes(n: Node, containers: Mapping[str, Container]) -> int:
    """Bytes of an operator: operands and results, of a table the rows that are named; views move nothing."""
    assert isinstance(n, Operator)
    if n.op == "reshape":
        return 0
    y = containers[n.writes["y"].container]
    total = known(y.bytes)
    for k, m in n.reads.items():
        c = containers[m.container]
        total += min(known(c.bytes), known(y.size) * c.dtype.itemsize) if n.op == "gather" and k == "x" else known(c.bytes)
    return total


