"""The verifier: what must hold for a program to mean something, checked after every stage.

It refuses what is provably wrong, and accepts what it cannot decide (the interpreter checks the rest on real values), with one exception:
several nodes may write one container only where their subsets are provably disjoint.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Union

from shorthaul.symbolic import Expr, Symbol, prove_eq, prove_lt

from .containers import Container
from .memlet import Memlet, Span, is_full
from .nodes import Access, Branch, Defines, LibraryCall, Loop, Map, Node, Operator, Tasklet
from .program import Form, Program
from .propagate import access_box
from .sizes import container_sizes, node_sizes
from .verify_control import check_branch, check_loop
from .verify_map import check_map

IntLike = Union[int, Expr]
PHASES = ("forward", "backward", "update")
RULES = {
    "names": "containers are known under one name, and every one that is used exists",
    "rank": "a memlet has one subscript per dimension of its container",
    "scope": "subscripts, guards and code use parameters of enclosing maps and sizes of the program only",
    "range": "no access is provably outside its container",
    "indirect": "an indirect subscript names an integer read of the same tasklet",
    "code": "a tasklet computes its writes, from its reads",
    "dtype": "code has the dtypes of the containers",
    "combine": "combiners are known, their components complete, and a combining node does not read what it combines into",
    "fill": "a guarded read says what it yields outside",
    "single writer": "every element is written once",
    "order": "everything is written before it is read",
    "signature": "the signature names containers of the right role that exist when the program has run",
    "phase": "no node reads what a later phase writes",
    "form": "nodes are those of the program's form",
    "whole": "operators and library calls read and write whole containers",
    "locals": "locals are in registers or shared memory and are used inside their map only",
    "params": "map parameters are bounded symbols, unique in their nest",
    "alias": "containers share memory in form SCHEDULED only, and within their base",
    "sizes": "a size that a node defines is a symbol of the program, defined once, by a result, and before anything uses it",
    "body": "bodies of loops and branches verify and fit the node",
}


@dataclass(frozen=True)
class Problem:
    """One violation: the rule (see RULES), the node or container, and what is wrong."""

    rule: str
    where: str
    reason: str

    def __str__(self) -> str:
        return f"[{self.rule}] {self.where}: {self.reason}"


class VerifyError(RuntimeError):
    """The program breaks rules; `problems` lists them all."""

    def __init__(self, program: str, problems: list[Problem]) -> None:
        shown = "\n".join(f"  {p}" for p in problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        super().__init__(
            f"program {program} breaks {len(problems)} rule{'s' if len(problems) > 1 else ''}:\n{shown}{more}"
        )
        self.problems = problems


def verify(program: Program, form: Form | None = None) -> None:
    """Check all rules; raises VerifyError with every violation. `form`: also require that the program has come down to it."""
    problems = list(check(program, form))
    if problems:
        raise VerifyError(program.name, problems)


def check(program: Program, form: Form | None = None) -> Iterator[Problem]:
    """The violations of a program."""
    if form is not None and program.form < form:
        yield Problem("form", program.name, f"is in form {program.form.name}, not {form.name}")
    yield from _containers(program)
    broken: set[int] = set()
    for node in program.nodes:
        for rule, reason in _node(program, node):
            broken.add(node.id)
            yield Problem(rule, _where(node), reason)
    yield from _order(program)
    yield from _writers(program, broken)
    yield from _signature(program)
    yield from _sizes(program)


def _where(node: Node) -> str:
    return f"{node}" + (f" ({node.origin})" if node.origins else "")


def _containers(p: Program) -> Iterator[Problem]:
    for name, c in p.containers.items():
        if c.name != name:
            yield Problem("names", name, f"the container under this name calls itself {c.name}")
        if c.storage != "global":
            yield Problem("locals", name, f"a container of the program has global storage, not {c.storage}")
        for n in c.shape:
            if isinstance(n, int) and n < 0:
                yield Problem("range", name, f"has the negative size {n}")
        if c.role == "constant" and name not in p.constants:
            yield Problem("names", name, "a constant without a value")
        if c.alias is not None:
            yield from _alias(p, c)
    for name in p.constants:
        if name not in p.containers:
            yield Problem("names", name, "a constant value without a container")


def _alias(p: Program, c: Container) -> Iterator[Problem]:
    assert c.alias is not None
    if p.form < Form.SCHEDULED:
        yield Problem("alias", c.name, f"lies in {c.alias.base}, but the program is in form {p.form.name}")
    seen = {c.name}
    offset: IntLike = 0
    base = c
    while base.alias is not None:
        offset = offset + base.alias.offset
        if base.alias.base in seen:
            yield Problem("alias", c.name, f"lies in itself through {base.name}")
            return
        if base.alias.base not in p.containers:
            yield Problem("alias", c.name, f"lies in {base.alias.base}, which does not exist")
            return
        seen.add(base.alias.base)
        base = p.containers[base.alias.base]
    last = offset
    for n, s in zip(c.shape, c.actual_strides, strict=True):
        last = last + (n - 1) * s
    if base.dtype is c.dtype and (prove_lt(base.size - 1, last) is True or prove_lt(offset, 0) is True):
        yield Problem("alias", c.name, f"reaches element {last} of {base.name}, which has {base.size}")


def _node(p: Program, node: Node) -> Iterator[tuple[str, str]]:
    if node.phase not in PHASES:
        yield "phase", f"unknown phase {node.phase!r}; phases are {', '.join(PHASES)}"
    if isinstance(node, Map):
        if p.form >= Form.SCHEDULED and node.schedule.kind == "auto":
            yield "form", "a map of a scheduled program has a schedule, not 'auto'"
        yield from check_map(node, p.containers, p.symbols)
    elif isinstance(node, Tasklet):
        yield "form", "a tasklet is inside a map, not at the top"
    elif isinstance(node, (Operator, LibraryCall, Loop, Branch)):
        if isinstance(node, Operator) and p.form >= Form.MAPS:
            yield "form", f"operator {node.op} in a program of form {p.form.name}"
        yield from _whole(p, node, node.reads, "reads")
        yield from _whole(p, node, node.writes, "writes")
        if isinstance(node, Loop):
            yield from check_loop(node, p.containers)
        elif isinstance(node, Branch):
            yield from check_branch(node, p.containers)
        for body in node.bodies if isinstance(node, (Loop, Branch)) else ():
            for problem in check(body):
                yield "body", f"{body.name}: {problem}"
    else:
        yield "form", f"a node of kind {node.kind}"


def _whole(p: Program, node: Node, memlets: Mapping[str, Memlet], verb: str) -> Iterator[tuple[str, str]]:
    for name, m in memlets.items():
        c = p.containers.get(m.container)
        if c is None:
            yield "names", f"{verb} {m.container}, which does not exist"
        elif len(m.subset) != len(c.shape):
            yield "rank", f"{name}: {m} has {len(m.subset)} subscripts for {c}"
        elif not is_full(m, c):
            yield "whole", f"{name}: {verb} {m}, not the whole of {c}"


def _sizes(p: Program) -> Iterator[Problem]:
    """A size that a node defines has one place where it comes from, and is used after it."""
    late = {s: n for n in p.nodes for d in n.defines for s in (d.symbol,)}
    if not late:
        return
    for c in p.containers.values():
        if c.role in ("input", "parameter", "buffer", "constant"):
            for s in sorted(container_sizes(c) & late.keys(), key=str):
                yield Problem("sizes", c.name, f"has the size {s}, which {late[s]} defines later")
    known: set[Symbol] = set()
    for node in p.nodes:
        for s in sorted(node_sizes(node, p.containers) & late.keys() - known, key=str):
            yield Problem("sizes", _where(node), f"uses the size {s} before {late[s]} defines it")
        for d in node.defines:
            yield from (Problem("sizes", _where(node), reason) for reason in _definition(p, node, d))
            if d.symbol in known:
                yield Problem("sizes", _where(node), f"defines the size {d.symbol} a second time")
            known.add(d.symbol)


def _definition(p: Program, node: Node, d: Defines) -> Iterator[str]:
    if d.symbol not in p.symbols:
        yield f"defines the size {d.symbol}, which is no symbol of the program"
    c = p.containers.get(node.writes[d.connector].container) if d.connector in node.writes else None
    if c is None:
        yield f"defines the size {d.symbol} by {d.connector}, which is none of its results"
    elif d.dim is None:
        if c.dtype.is_float or prove_eq(c.size, 1) is not True:
            yield f"defines the size {d.symbol} by {c}, which is not one integer"
    elif d.dim >= len(c.shape) or c.shape[d.dim] is not d.symbol:
        yield f"defines the size {d.symbol} by dimension {d.dim} of {c}, which has another size"


def _order(p: Program) -> Iterator[Problem]:
    """Written before read, and nothing read before all of its writers ran; phases never go back."""
    rank = {phase: i for i, phase in enumerate(PHASES)}
    external = {n for n, c in p.containers.items() if c.is_external}
    written: dict[str, int] = {}
    read: set[str] = set()
    for node in p.nodes:
        mine = rank.get(node.phase, 0)
        reads, writes = p.reads_of(node), p.writes_of(node)
        for c in sorted(reads):
            if c not in p.containers or c in external:
                continue
            source = _memory(p, c)
            known = next((name for name in (c, source) if name in written or name in external), None)
            if c in writes and c not in written:
                yield Problem("order", _where(node), f"reads {c}, which it writes itself")
            elif known is None:
                yield Problem("order", _where(node), f"reads {c}, which no earlier node writes")
            elif written.get(known, 0) > mine:
                yield Problem(
                    "phase",
                    _where(node),
                    f"reads {c} in phase {node.phase}, which phase {PHASES[written[known]]} writes",
                )
        read |= reads
        for c in sorted(writes):
            if c in external:
                yield Problem(
                    "single writer", _where(node), f"writes {c}, whose memory is the caller's ({p.containers[c].role})"
                )
            elif c in read and c not in reads:
                yield Problem("order", _where(node), f"writes {c} after an earlier node read it")
            written[c] = max(mine, written.get(c, 0))
    for name in sorted(p.signature.results):
        if (
            name in p.containers
            and name not in external
            and name not in written
            and _memory(p, name) not in external | written.keys()
        ):
            yield Problem("signature", name, "is a result that no node writes")
    for name in (*p.signature.outputs, *(u for _, u in p.signature.updates)):
        if written.get(name, 0) > 0 and not p.attributes.get("whole_step"):
            yield Problem(
                "phase", name, f"is a result of the forward phase, but phase {PHASES[written[name]]} writes it"
            )


def _memory(p: Program, name: str) -> str:
    c = p.containers[name]
    for _ in range(len(p.containers)):
        if c.alias is None or c.alias.base not in p.containers:
            break
        c = p.containers[c.alias.base]
    return c.name


def _writers(p: Program, broken: set[int]) -> Iterator[Problem]:
    """Several writers of a container write disjoint subsets."""
    for name, c in p.containers.items():
        nodes = p.writers(name)
        if not nodes or any(n.id in broken for n in nodes):
            continue
        accesses = [(n, a) for n in nodes for a in _writes(n, name, c)]
        for (n1, a), (n2, b) in itertools.combinations(accesses, 2):
            if (
                n1 is n2
                and a is not None
                and b is not None
                and a.memlet.combine
                and a.memlet.combine == b.memlet.combine
            ):
                continue  # one node may combine into an element from several places
            if a is None or b is None or not disjoint(access_box(a, c), access_box(b, c)):
                both = f"{_where(n1)} and {_where(n2)}" if n1 is not n2 else _where(n1)
                yield Problem("single writer", both, f"write {name}; their subsets are not provably disjoint")
                break


def _writes(n: Node, name: str, c: Container) -> list[Access | None]:
    """The writes of a container, None for a node that writes it whole."""
    if isinstance(n, Map):
        return [a for a in n.accesses() if a.is_write and not a.is_local and a.memlet.container == name]
    return [None for m in n.writes.values() if m.container == name]


def disjoint(a: list[Span], b: list[Span]) -> bool:
    """Whether two boxes provably share no element: apart along a dimension, or interleaved with a common step."""
    for s, t in zip(a, b, strict=True):
        if (
            prove_lt(s.start + (s.size - 1) * s.step, t.start) is True
            or prove_lt(t.start + (t.size - 1) * t.step, s.start) is True
        ):
            return True
        if s.step == t.step and s.step != 1 and prove_eq((s.start - t.start) % s.step, 0) is False:
            return True
    return False


def _signature(p: Program) -> Iterator[Problem]:
    s = p.signature
    c = p.containers
    listed = [*s.inputs, *s.outputs, *itertools.chain(*s.cotangents, *s.gradients, *s.updates)]
    missing = [n for n in listed if n not in c]
    for name in sorted(set(missing)):
        yield Problem("signature", name, "is in the signature but does not exist")
    if missing:
        return
    for name in s.inputs:
        if c[name].role not in ("input", "parameter", "buffer"):
            yield Problem("signature", name, f"is an input but has role {c[name].role}")
    for name, other in s.cotangents:
        if c[other].role != "cotangent":
            yield Problem("signature", other, f"is the cotangent of {name} but has role {c[other].role}")
    sides = (
        ("cotangent", s.cotangents, s.outputs),
        ("gradient", s.gradients, s.inputs),
        ("update", s.updates, s.inputs),
    )
    for what, pairs, partners in sides:
        for name, other in pairs:
            if name not in partners:
                yield Problem(
                    "signature", name, f"has a {what} but is no {'output' if what == 'cotangent' else 'input'}"
                )
            a, b = c[name], c[other]
            if len(a.shape) != len(b.shape) or any(
                prove_eq(m, n) is False for m, n in zip(a.shape, b.shape, strict=True)
            ):
                yield Problem("signature", other, f"is the {what} of {a} but is {b}")
    external = {name for name, k in c.items() if k.is_external and k.role not in ("constant", "cotangent")}
    for name in sorted(external - set(s.inputs)):
        if p.readers(name):
            yield Problem("signature", name, f"is read as {c[name].role} but is not among the inputs")
