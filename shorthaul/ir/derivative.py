"""Reverse-mode derivatives of scalar code, from the rule table of `scalar_ops`."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from shorthaul.errors import DifferentiationError

from .dtypes import DType
from .scalar import Scalar, apply, cast, const, walk
from .scalar_ops import SCALAR_OPS, NoRule


class NotDifferentiable(DifferentiationError):
    """Scalar code uses an operation without a derivative rule."""


def adjoints(root: Scalar, seed: Scalar | None = None, names: Collection[str] | None = None) -> dict[Scalar, Scalar]:
    """d root / d node for every node of the code that root depends on differentiably (times `seed`, default one).

    names: the reads of interest (default: all). Raises NotDifferentiable for an operation whose row has no derivative for an operand
    that depends on them.
    """
    order = [n for n in walk(root) if n.dtype.is_float]
    active = _active(root, names)
    adjoint: dict[Scalar, Scalar] = {root: const(1, root.dtype) if seed is None else seed}
    for node in reversed(order):
        incoming = adjoint.get(node)
        if incoming is None or not node.args:
            continue
        if node.op == "cast":
            source = node.args[0]
            if source.dtype.is_float:
                _accumulate(adjoint, source, converted(incoming, source.dtype))
            continue
        if not any(a in active for a in node.args):
            continue
        rule = SCALAR_OPS[node.op].derivative
        if rule is None:
            raise NotDifferentiable(f"scalar operation {node.op} has no derivative rule")
        if node.op == "where":
            # select the gradient instead of multiplying it by a mask: no NaN comes out of the branch that was not taken
            condition, a, b = node.args
            zero = const(0, node.dtype)
            _accumulate(adjoint, a, apply("where", condition, incoming, zero))
            _accumulate(adjoint, b, apply("where", condition, zero, incoming))
            continue
        for i, (operand, partial) in enumerate(zip(node.args, rule(*node.args, node), strict=True)):
            if isinstance(partial, NoRule):
                if operand in active:
                    raise NotDifferentiable(f"scalar operation {node.op} has no derivative rule for its operand {i}")
            elif partial is not None and operand in active and not _is_zero(partial):
                _accumulate(adjoint, operand, scaled(incoming, partial))
    return adjoint


def scaled(incoming: Scalar, partial: Scalar) -> Scalar:
    """incoming * partial, inside a branch that was selected: a zero for the other branch stays zero where `partial` is infinite."""
    if incoming.op == "where":
        condition, a, b = incoming.args
        if _is_zero(b):
            return apply("where", condition, scaled(a, partial), b)
        if _is_zero(a):
            return apply("where", condition, a, scaled(b, partial))
    return incoming * partial


def converted(incoming: Scalar, dtype: DType) -> Scalar:
    """A cast inside a branch that was selected (see `scaled`)."""
    if incoming.op == "where":
        condition, a, b = incoming.args
        return apply("where", condition, converted(a, dtype), converted(b, dtype))
    return cast(incoming, dtype)


def partials(root: Scalar, names: Iterable[str]) -> dict[str, Scalar | None]:
    """d root / d read for each read name; None where root does not depend on it differentiably."""
    names = list(names)
    adjoint = adjoints(root, names=names)
    found = {n.attr: adjoint.get(n) for n in walk(root) if n.op == "read"}
    return {name: found.get(name) for name in names}


def _active(root: Scalar, names: Collection[str] | None) -> set[Scalar]:
    """Nodes that depend on a floating read (of those names) through floating operations."""
    active: set[Scalar] = set()
    for n in walk(root):
        wanted = n.op == "read" and (names is None or n.attr in names)
        if n.dtype.is_float and (wanted or any(a in active for a in n.args)):
            active.add(n)
    return active


def _is_zero(s: Scalar) -> bool:
    return s.op == "const" and s.attr == 0


def _accumulate(adjoint: dict[Scalar, Scalar], node: Scalar, value: Scalar) -> None:
    if not _is_zero(value):
        adjoint[node] = adjoint[node] + value if node in adjoint else value
