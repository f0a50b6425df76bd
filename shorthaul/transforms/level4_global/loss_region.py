"""What a loss does to its logits: the operators, forward and backward, that work on arrays of their size, as a program of some rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shorthaul.ir.containers import Container
from shorthaul.ir.memlet import full
from shorthaul.ir.nodes import Node, Operator
from shorthaul.ir.program import Form, Program, Signature
from shorthaul.ops.registry import definition

from ..base import describe, require

BIG, ROWS, WHOLE, SUM, TOTAL = "logits", "rows", "whole", "sum", "total"
NONE, MEAN, SUMMED = 0, 1, 2  # reductions of a loss
_LAST = ("log_softmax", "softmax")


@dataclass
class Region:
    """The operators and how each uses its containers. rows, classes: sizes of the logits. logits: containers of their size.

    roles: BIG of that size, ROWS with a part for each row, WHOLE the same for all, SUM added up over the rows, TOTAL the total weight of
    the targets. attributes: of each operator over `rows` of them, where they name sizes.
    """

    program: Program
    shape: tuple[int, ...]
    nodes: list[Operator] = field(default_factory=list)
    logits: set[str] = field(default_factory=set)
    roles: dict[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        n = 1
        for s in self.shape[:-1]:
            n *= s
        return n

    @property
    def written(self) -> set[str]:
        return {c for n in self.nodes for c in n.written_containers()}

    @property
    def inputs(self) -> list[str]:
        """What comes from outside, sorted; the total weight too, which has to be known before the gradient of the first row."""
        read = {c for n in self.nodes for c in n.read_containers()}
        return sorted(c for c in read if c not in self.written or self.roles[c] == TOTAL)

    def outputs(self, phase: str) -> list[str]:
        """What something outside needs of what the operators of a phase write, sorted."""
        p, inside = self.program, {n.id for n in self.nodes}
        written = {c for n in self.nodes if n.phase == phase for c in p.writes_of(n)}
        return sorted(c for c in written if c in p.results or any(r.id not in inside for r in p.readers(c)))


def region_of(p: Program, head: Operator) -> Region:
    """The region of the logits that an operator writes. Raises Refusal where something needs them otherwise than row by row."""
    z = p.containers[head.writes["y"].container]
    known = len(z.shape) >= 2 and all(isinstance(n, int) for n in z.shape)
    require(known, f"the logits of {describe(head)} have sizes known at run time only")
    r = Region(p, z.shape)  # type: ignore[arg-type]
    require(r.rows > 1 and r.rows != r.classes, "there is one row only" if r.rows == 1 else "there are as many rows as classes")
    shapes = {z.shape, (r.rows, r.classes)}
    todo, nodes = [z.name], dict[int, Node]()
    r.logits.add(z.name)
    while todo:
        name = todo.pop()
        require(not p.containers[name].is_external and name not in p.results, f"the caller has {name}, which is of the size of the logits")
        for n in (*p.readers(name), *p.writers(name)):
            nodes[n.id] = n
            if isinstance(n, Operator) and n.op == "contract":
                continue  # its other operands may have the same sizes, and are no logits
            found = {c for c in p.reads_of(n) | p.writes_of(n) if p.containers[c].shape in shapes} - r.logits
            r.logits |= found
            todo += sorted(found)
    for n in sorted(nodes.values(), key=p.position):
        require(isinstance(n, Operator), f"{describe(n)} reads the logits")
        assert isinstance(n, Operator)
        r.nodes.append(n)
        for c, role in _roles(r, n).items():
            require(r.roles.setdefault(c, role) == role, f"{describe(n)} uses {c} in another way than the rest of the loss")
    for n in r.nodes:
        for c in p.reads_of(n):
            require(r.roles[c] != SUM or c not in r.written, f"{describe(n)} needs a sum over all rows")
    return r


def _roles(r: Region, n: Operator) -> dict[str, str]:
    """How an operator uses its containers. Raises Refusal where it does not work on the logits row by row."""
    p = r.program
    reads, writes = ({k: p.containers[m.container] for k, m in side.items()} for side in (n.reads, n.writes))
    roles = {c.name: BIG if c.name in r.logits else _role(r, c) for c in (*reads.values(), *writes.values())}
    flat = all(len(c.shape) == 2 for c in (*reads.values(), *writes.values()) if c.name in r.logits)
    refused = f"{describe(n)} reads the logits, too"
    result = next(iter(writes.values()))
    x = reads.get("x")
    if n.op == "contract":
        return _of_contraction(r, n, refused)
    if n.op == "reshape":
        require(set(roles.values()) == {BIG}, refused)
    elif n.op in _LAST:
        assert x is not None
        require(n.attributes["dim"] in (-1, len(x.shape) - 1), f"{describe(n)} is not over the classes")
    elif n.op in ("sum", "amax", "amin"):
        assert x is not None
        rank = len(x.shape)
        dims = {d % rank for d in n.attributes["dims"]} or set(range(rank))
        if dims == {rank - 1} and flat:
            roles[result.name] = ROWS
        else:
            require(n.op == "sum" and dims == set(range(rank - 1)) and not n.attributes["keepdim"], refused)
            roles[result.name] = SUM
    elif n.op == "sum_to":
        require(result.shape == (r.classes,), refused)
        roles[result.name] = SUM
    elif n.op == "expand":
        require(result.name in r.logits and (flat or roles[x.name] == WHOLE), refused)  # type: ignore[union-attr]
    elif n.op in ("nll_loss", "nll_loss_backward"):
        require(flat, refused)
        if n.op == "nll_loss":
            reduced = n.attributes["reduction"] != NONE
            roles[writes["y"].name] = SUM if reduced else ROWS
            roles[writes["total_weight"].name] = TOTAL
        elif n.attributes["reduction"] == MEAN:
            roles[reads["total_weight"].name] = TOTAL
        else:
            require(roles[reads["total_weight"].name] == WHOLE, refused)
            roles[reads["total_weight"].name] = TOTAL
    else:
        elementwise = getattr(definition(n), "code", None) is not None and "reduction" not in n.attributes
        plain = flat or all(len(c.shape) <= 1 for c in reads.values() if c.name not in r.logits)
        require(elementwise and plain and result.name in r.logits, refused)
    return roles


def _role(r: Region, c: Container) -> str:
    return ROWS if c.shape and c.shape[0] == r.rows else WHOLE


def _of_contraction(r: Region, n: Operator, refused: str) -> dict[str, str]:
    p = r.program
    words = _words(n)
    letters = _row_letters(r, n)
    roles = {}
    for k, m in (*n.reads.items(), *n.writes.items()):
        c = p.containers[m.container]
        if k == "bias":
            require(len(c.shape) == 1, refused)
            roles[c.name] = WHOLE
            continue
        word = words[k]
        inside = word[: len(letters)] == letters
        require(not any(a in (word[len(letters) :] if inside else word) for a in letters) and "1" not in word, refused)
        require(len(word) == (len(letters) + 1 if inside else 2), refused)
        roles[c.name] = BIG if c.name in r.logits else ROWS if inside else SUM if k == "y" else WHOLE
    return roles


def _words(n: Operator) -> dict[str, str]:
    operands, _, y = n.attributes["equation"].partition("->")
    a, _, b = operands.partition(",")
    return {"a": a, "b": b, "y": y}


def _row_letters(r: Region, n: Operator) -> str:
    words = _words(n)
    k = next(k for k, m in (*n.reads.items(), *n.writes.items()) if m.container in r.logits)
    return words[k][:-1]


# the program of some rows -------------------------------------------------------------------------------------------------------
def body_of(r: Region, count: int, outputs: Sequence[str]) -> Program:
    """The region's operators over `count` rows, as a program from the region's inputs to these outputs."""
    p = r.program
    same = _same_data(r)
    containers: dict[str, Container] = {}
    for name in sorted(set(r.roles)):
        c = p.containers[name]
        shape = c.shape
        if r.roles[name] == BIG:
            shape = (count, r.classes)
        elif r.roles[name] == ROWS:
            shape = (count, *(c.shape[1:] if len(c.shape) <= 2 else c.shape[-1:]))
        role = "input" if name in r.inputs else "output" if name in outputs else "transient"
        if same.get(name, name) == name:
            containers[name] = Container(name, c.dtype, shape, role=role)
    nodes: list[Node] = []
    for n in r.nodes:
        if n.op == "reshape":
            continue
        reads = {k: full(containers[same.get(m.container, m.container)]) for k, m in n.reads.items()}
        writes = {}
        for k, m in n.writes.items():
            name = same.get(m.container, m.container)
            if r.roles[m.container] == TOTAL:  # known before; what these rows add to it is not needed
                name = f"{name}_of_rows"
                containers[name] = Container(name, p.containers[m.container].dtype, ())
            writes[k] = full(containers[name])
        nodes.append(Operator(n.op, _attributes(r, n, count), n.expansion, reads=reads, writes=writes, origins=n.origins))
    return Program("loss head", Form.OPERATORS, containers, nodes, Signature(tuple(r.inputs), tuple(outputs)))


def _same_data(r: Region) -> dict[str, str]:
    """For each container that reshapes make of another its source: with rows in one dimension they are the same."""
    same: dict[str, str] = {}
    for n in r.nodes:
        if n.op == "reshape":
            source = n.reads["x"].container
            same[n.writes["y"].container] = same.get(source, source)
    return same


def _attributes(r: Region, n: Operator, count: int) -> Mapping[str, Any]:
    found = dict(n.attributes)
    if n.op == "contract":
        letters = _row_letters(r, n)
        words = {k: letters[0] + w[len(letters) :] if w[: len(letters)] == letters else w for k, w in _words(n).items()}
        found["equation"] = f"{words['a']},{words['b']}->{words['y']}"
    elif n.op in _LAST:
        found["dim"] = 1
    elif n.op in ("sum", "amax", "amin"):
        found["dims"] = (1,) if r.roles[n.writes["y"].container] == ROWS else (0,)
    elif n.op == "nll_loss" and found["reduction"] == MEAN:
        found["reduction"] = SUMMED
    elif n.op in ("expand", "nll_loss_backward"):
        found["shape"] = (count, r.classes)
    return found
