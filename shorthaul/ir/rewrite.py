"""Renaming and copying of nodes: what inlining, recomputation and fusion share."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Union

from shorthaul.symbolic import Expr, Symbol, substitute

from .builder import fresh_params
from .edit import Edit
from .memlet import Condition, Memlet
from .nodes import Branch, Defines, LibraryCall, Loop, Map, Node, Operator, Origin, Tasklet
from .scalar import Scalar, substitute_indices
from .sizes import attribute_sizes, runtime_sizes

if TYPE_CHECKING:
    from .program import Program

IntLike = Union[int, Expr]


def _memlets(memlets: Mapping[str, Memlet], names: Mapping[str, str], values: Mapping[Symbol, IntLike]) -> dict[str, Memlet]:
    result = {}
    for k, m in memlets.items():
        new = m.substitute(values) if values else m
        result[k] = new.with_(container=names[m.container]) if m.container in names else new
    return result


def rename(
    node: Node,
    names: Mapping[str, str],
    values: Mapping[Symbol, IntLike] | None = None,
    *,
    fresh: bool = True,
    **changes: Any,
) -> Any:
    """A copy of the node with containers renamed and symbols replaced.

    fresh: give every node below an id of its own and every map new parameters (a real copy); otherwise ids and parameters stay.
    changes: fields to set on every node (phase, origins).
    """
    values = dict(values or {})
    ids: dict[str, Any] = {"id": None} if fresh else {}
    if isinstance(node, Map):
        if fresh:
            new_params = fresh_params([substitute(p.size, values) if isinstance(p.size, Expr) else p.size for p in node.params])
            if any(p.lower != 0 for p in node.params):
                new_params = tuple(
                    Symbol(n.name, _sub(p.lower, values), _sub(p.upper, values))
                    for n, p in zip(new_params, node.params, strict=True)
                )
            values.update(zip(node.params, new_params, strict=True))
        else:
            new_params = tuple(values.get(p, p) for p in node.params)  # type: ignore[misc]
        body = tuple(rename(n, names, values, fresh=fresh, **changes) for n in node.body)
        local = {names.get(k, k): c.with_(name=names.get(k, k)) for k, c in node.locals.items()}
        return node.with_(params=new_params, body=body, locals=local, **ids, **changes)
    reads, writes = _memlets(node.reads, names, values), _memlets(node.writes, names, values)
    if isinstance(node, Tasklet) and values:
        memo: dict[Scalar, Scalar] = {}
        code = {k: substitute_indices(v, values, memo) for k, v in node.code.items()}
        return node.with_(code=code, reads=reads, writes=writes, **ids, **changes)
    if not isinstance(node, (Tasklet, Operator, LibraryCall, Loop, Branch)):
        raise TypeError(f"cannot copy {node}")
    if values:
        changes = {**_with_sizes(node, values), **changes}
    return node.with_(reads=reads, writes=writes, **ids, **changes)


def _with_sizes(node: Node, values: Mapping[Symbol, IntLike]) -> dict[str, Any]:
    """The fields of a node, apart from memlets and scalar code, that hold some of the sizes: with their new values."""
    found: dict[str, Any] = {}
    if node.defines:
        found["defines"] = tuple(_definition(d, values) for d in node.defines)
    if isinstance(node, (Operator, LibraryCall)) and attribute_sizes(node.attributes) & values.keys():
        found["attributes"] = _attribute(node.attributes, values)
    if isinstance(node, Loop):
        found["count"] = _sub(node.count, values)
    if isinstance(node, (Loop, Branch)) and any(not values.keys().isdisjoint(b.symbols) for b in node.bodies):
        raise TypeError(f"cannot copy {node} for other sizes")
    return found


def _definition(d: Defines, values: Mapping[Symbol, IntLike]) -> Defines:
    symbol = values.get(d.symbol, d.symbol)
    assert isinstance(symbol, Symbol)
    return Defines(symbol, d.connector, d.dim, tuple((Condition(_sub(c.expr, values), c.relation), text) for c, text in d.checks))


def _attribute(value: Any, values: Mapping[Symbol, IntLike]) -> Any:
    if isinstance(value, Expr):
        return substitute(value, values)
    if isinstance(value, Mapping):
        return {k: _attribute(v, values) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*(_attribute(v, values) for v in (value.start, value.stop, value.step)))
    return type(value)(_attribute(v, values) for v in value) if isinstance(value, (list, tuple)) else value


def _sub(e: Any, values: Mapping[Symbol, IntLike]) -> Any:
    return substitute(e, values) if isinstance(e, Expr) else e


def _fresh_symbol(program: Program, s: Symbol) -> Symbol:
    """A symbol with the bounds of `s` whose name the program does not know."""
    taken = {t.name for t in program.symbols}
    name = next(n for n in (f"{s.name}_{i}" for i in itertools.count(1)) if n not in taken)
    return Symbol(name, s.lower, s.upper, s.multiple_of)


def inline(body: Program, edit: Edit, bindings: Mapping[str, str], *, phase: str, origins: tuple[Origin, ...] = (),
           hint: str = "") -> tuple[list[Node], list[str]]:  # fmt: skip
    """Copy a program's nodes for use in another one: returns the nodes (not yet added) and the names of its outputs there.

    bindings: container of the enclosing program for each input of the body. Everything else is declared anew, sizes that the body's nodes
    define too.
    """
    program = edit.program
    names = dict(bindings)
    sizes: dict[Symbol, IntLike] = {}
    for s in sorted(runtime_sizes(body), key=lambda s: s.name):
        sizes[s] = edit.add_symbol(_fresh_symbol(program, s) if any(t.name == s.name for t in program.symbols) else s)
    for c in body.containers.values():
        if c.name in names:
            continue
        name = program.fresh(f"{hint}{c.name}")
        names[c.name] = name
        role = c.role if c.role in ("constant", "transient") else "transient"
        if sizes:
            c = c.with_(shape=tuple(_sub(n, sizes) for n in c.shape), strides=c.strides and tuple(_sub(n, sizes) for n in c.strides))
        edit.add_container(c.with_(name=name, role=role))
        if c.name in body.constants:
            edit.set_constant(name, body.constants[c.name])
    changes: dict[str, Any] = {"phase": phase}
    nodes = []
    for n in body.nodes:
        copy = rename(n, names, sizes, **changes)
        nodes.append(copy.with_(origins=origins + tuple(o for o in copy.origins if o not in origins)) if origins else copy)
    return nodes, [names[o] for o in body.signature.outputs]
