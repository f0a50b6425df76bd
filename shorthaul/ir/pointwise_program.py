"""Programs that compute element by element, such as an optimizer's update: their scalar code, and what it does to an element whose gradient
is zero (nothing, a linear change, or something else).

Unlike `scalar_ops.simplify`, which keeps what holds for every value, `folded` makes 0 of `0 * x` and `0 / x`: it speaks of finite numbers.
Where an optimizer makes NaN of an element without a gradient (an infinite learning rate), an element that is left out keeps its number.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .nodes import Map
from .program import Program
from .scalar import Scalar, cast, const, read, substitute_reads, walk
from .scalar_ops import simplify


def codes_of(program: Program) -> dict[str, Scalar] | None:
    """The code of each output over reads that are named like the inputs, where every map computes each element from the same element of
    full inputs and from inputs of one element; None for another program."""
    codes = {n: read(n, program.containers[n].dtype) for n in program.signature.inputs}
    if program.constants:
        return None
    for node in program.nodes:
        if not isinstance(node, Map) or node.tasklet is None or not node.is_elementwise:
            return None
        shape = tuple(q.size for q in node.params)
        for m in (*node.tasklet.reads.values(), *node.tasklet.writes.values()):
            own = program.containers[m.container].shape
            pairs = zip(m.subset, node.params[len(shape) - len(own) :], own, strict=False)
            if m.guard or len(own) > len(shape) or not (all(n == 1 for n in own) or all(s is q or n == 1 for s, q, n in pairs)):
                return None
            if not all(n == 1 for n in own) and own != shape:
                return None
        values = {k: codes[m.container] for k, m in node.tasklet.reads.items()}
        codes |= {m.container: substitute_reads(node.tasklet.code[k], values) for k, m in node.tasklet.writes.items()}
    return {n: codes[n] for n in program.signature.outputs}


def folded(code: Scalar, values: Mapping[str, Scalar]) -> Scalar:
    """The code with values in the place of reads, folded as numbers: a constant, a read, or what is left."""
    memo: dict[Scalar, Scalar] = {}
    for node in walk(code):
        args = tuple(memo[a] for a in node.args)
        if node.op == "read":
            memo[node] = values.get(str(node.attr), node)
        elif node.op == "cast":
            memo[node] = _cast(args[0], node)
        else:
            memo[node] = _fold(node, args)
    return memo[code]


def _cast(x: Scalar, node: Scalar) -> Scalar:
    # there and back through a wider float changes nothing
    wider = x.dtype.is_float and node.dtype.is_float and x.dtype.itemsize >= node.dtype.itemsize
    if x.op == "cast" and wider and x.args[0].dtype is node.dtype:
        return x.args[0]
    return cast(x, node.dtype)


def _fold(node: Scalar, args: tuple[Scalar, ...]) -> Scalar:
    zero = [is_zero(a) for a in args]
    nothing = const(0, node.dtype) if node.dtype.is_float else None
    if nothing is not None and node.op == "mul" and any(zero):
        return nothing
    if nothing is not None and node.op == "div" and zero[0]:
        return nothing
    if node.op == "add" and any(zero):
        return args[0] if zero[1] else args[1]
    if node.op == "sub" and zero[1]:
        return args[0]
    return simplify(node.op, args, node.dtype) if args else node


def is_zero(s: Scalar) -> bool:
    """Whether it is the number 0 (or -0.0)."""
    return s.op == "const" and not isinstance(s.attr, bool) and s.attr == 0


def nonlinear(code: Scalar, names: Collection[str]) -> str:
    """Why the code is not a sum of numbers times the reads of these names; empty where it is one (casts count as exact)."""
    degree: dict[Scalar, int] = {}
    for node in walk(code):
        own = [degree[a] for a in node.args]
        homogeneous = [d == 1 or is_zero(a) for d, a in zip(own, node.args, strict=True)]
        linear = {
            "neg": True, "cast": node.dtype.is_float, "add": all(homogeneous), "sub": all(homogeneous), "mul": sum(own) == 1,
            "div": own == [1, 0], "where": own[:1] == [0] and all(homogeneous[1:]),
        }  # fmt: skip
        if node.op == "read":
            degree[node] = int(node.attr in names)
        elif not any(own):
            degree[node] = 0
        elif linear.get(node.op, False):
            degree[node] = 1
        else:
            return f"{node.op} of its values" if node.op not in ("add", "sub") else "adding a number"
    # a result that is a number of its own is no multiple of the values
    return "" if degree[code] or is_zero(code) else "a number of its own"
