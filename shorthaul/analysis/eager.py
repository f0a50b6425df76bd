"""What eager PyTorch moves for a network: the baseline of every ratio.

One kernel per operator, with norms, softmax and attention whole; views move nothing. The backward pass is counted per *forward* operator,
as the kernel that PyTorch runs for it: it reads the incoming gradient and what its formula needs, and writes the gradients that are asked
for. What our own gradients are made of does not enter. Where eager runs several kernels for one operator the minimum of one is counted, so
that the baseline is never inflated. Gradients of a value with several uses are added pairwise: two reads and a write each.

Whole containers count once per kernel; a gather reads the rows that its indices can name, at most its table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Union

from shorthaul.ir.containers import Container
from shorthaul.ir.nodes import Branch, Loop, Node, Operator
from shorthaul.ir.program import Program
from shorthaul.symbolic import Expr, minimum

IntLike = Union[int, Expr]

# Operators whose result shares its operand's memory. `flip` and padding copy.
VIEWS = frozenset({"reshape", "permute", "expand", "slice", "select", "split", "unbind", "detach", "with_value"})
GATHERS = frozenset({"embedding", "gather", "index", "nll_loss"})


@dataclass(frozen=True)
class Rule:
    """The backward kernel of an operator.

    saved: operands and results that it reads besides the incoming gradient ("*": all floating operands, "others": all floating operands but
    the one whose gradient it writes). each: one kernel per gradient, else one for all. free: the gradient is the incoming one or a view of
    it; only what broadcasting needs is counted.
    """

    saved: tuple[str, ...] = ()
    each: bool = False
    free: bool = False


OPERANDS = Rule(("*",))
INCOMING = Rule(each=True)
RESULT = Rule(("y",))
FREE = Rule(free=True)
OTHERS = Rule(("others",), each=True)

BACKWARD: dict[str, Rule] = {
    **dict.fromkeys(("add", "reshape", "permute", "clone", "cat", "stack", "sum", "detach", "with_value"), FREE),
    **dict.fromkeys(("neg", "cast", "rsub", "mean", "flip", "cumsum", "pad", "avg_pool", "adaptive_avg_pool", "tril", "triu"), INCOMING),
    **dict.fromkeys(("relu", "sigmoid", "tanh", "exp", "expm1", "sqrt", "rsqrt", "reciprocal", "elu", "tan"), RESULT),
    **dict.fromkeys(("softmax", "log_softmax"), RESULT),
    **dict.fromkeys(("mul", "contract", "convolution"), OTHERS),
    "where": Rule(("condition",), each=True),
    "masked_fill": Rule(("mask",)),
    **dict.fromkeys(("layer_norm", "batch_norm"), Rule(("x", "weight", "mean", "rstd"))),
    **dict.fromkeys(("amax", "amin"), Rule(("x", "y"))),
    "attention": Rule(("*", "y", "lse", "mask")),
}  # fmt: skip


@dataclass(frozen=True)
class EagerRow:
    """Bytes of one operator of the network in one phase."""

    node: Node
    phase: str
    bytes_read: IntLike
    bytes_written: IntLike

    @property
    def bytes(self) -> IntLike:
        return self.bytes_read + self.bytes_written


def eager_bytes(program: Program) -> IntLike:
    """Bytes that eager PyTorch moves for a program of operators, forward and (where it is differentiated) backward.

    Call it while the program has form OPERATORS; the number is kept in `program.attributes["eager_bytes"]` by who compiles.
    """
    total: IntLike = 0
    for row in eager_rows(program):
        total = total + row.bytes
    return total


def eager_rows(program: Program) -> list[EagerRow]:
    """The same per operator. Gradient accumulation is counted with the operator that computed the value."""
    return _Eager(program).rows()


class _Eager:
    def __init__(self, program: Program) -> None:
        self.p = program
        self.forward = [n for n in program.nodes if n.phase == "forward"]
        self.wrt = [name for name, _ in program.signature.gradients]

    def rows(self) -> list[EagerRow]:
        rows = [EagerRow(n, "forward", *self._forward(n)) for n in self.forward]
        if not self.wrt:
            return rows
        needs = set(self.wrt)
        for n in self.forward:
            if self._passes(n) and not needs.isdisjoint(self.p.reads_of(n)):
                needs |= {c for c in self.p.writes_of(n) if self.p.containers[c].dtype.is_float}
        uses: dict[str, int] = {o: 1 for o, _ in self.p.signature.cotangents if o in needs}
        back = []
        for n in reversed(self.forward):
            live = [k for k, m in n.writes.items() if uses.get(m.container)]
            wanted = [k for k, m in n.reads.items() if m.container in needs] if self._passes(n) else []
            if not live or not wanted:
                continue
            for k in wanted:
                name = n.reads[k].container
                uses[name] = uses.get(name, 0) + 1
            read, written = self._backward(n, live, wanted)
            for k in live:  # by now all uses are known: the nodes behind have been visited
                c = self.p.containers[n.writes[k].container]
                read, written = self._add_up(c, uses[c.name], read, written)
            back.append(EagerRow(n, "backward", read, written))
        for name in self.wrt:
            if uses.get(name, 0) > 1 and self.forward:
                user = next(n for n in self.forward if name in self.p.reads_of(n))
                back.append(EagerRow(user, "backward", *self._add_up(self.p.containers[name], uses[name], 0, 0)))
        return rows + back

    def _add_up(self, c: Container, uses: int, read: IntLike, written: IntLike) -> tuple[IntLike, IntLike]:
        return read + (uses - 1) * 2 * c.bytes, written + (uses - 1) * c.bytes

    def _passes(self, n: Node) -> bool:
        stopped = self.p.attributes.get("stop_gradient", ())
        return not (isinstance(n, Operator) and n.op == "detach") and not all(c in stopped for c in self.p.writes_of(n))

    # bytes ------------------------------------------------------------------------------------------------------------------
    def stored(self, name: str) -> IntLike:
        """Bytes behind a container: a broadcast view has those of what it was expanded from."""
        c = self.p.containers[name]
        for w in self.p.writers(name):
            if isinstance(w, Operator) and w.op in VIEWS:
                return minimum(c.bytes, self.stored(next(iter(w.reads.values())).container))
        return c.bytes

    def _sum(self, names: Iterable[str]) -> IntLike:
        total: IntLike = 0
        for name in dict.fromkeys(names):
            total = total + self.stored(name)
        return total

    def _forward(self, n: Node) -> tuple[IntLike, IntLike]:
        written = self._sum(m.container for m in n.writes.values())
        if isinstance(n, Loop):
            return n.trips * eager_bytes(n.body), 0
        if isinstance(n, Branch):
            return minimum(*(eager_bytes(body) for body in n.bodies)), 0
        if isinstance(n, Operator):
            if n.op in VIEWS:
                return 0, 0
            if n.op == "custom_function":
                return eager_bytes(n.attributes["forward"]), 0
            if n.op in GATHERS:
                return self._gather(n), written
            if n.op in _SAVED:
                written = self.stored(n.writes["y"].container) + _SAVED[n.op](self, n)
        return self._sum(m.container for m in n.reads.values()), written

    def _gather(self, n: Operator) -> IntLike:
        result = next(iter(n.writes.values()))
        y = self.p.containers[result.container]
        total: IntLike = 0
        for name in dict.fromkeys(m.container for m in n.reads.values()):
            c = self.p.containers[name]
            # a loss over classes reduces: it still reads one element per index
            rows = y.size if n.op != "nll_loss" else self._indices(n)
            total = total + (minimum(self.stored(name), rows * c.dtype.itemsize) if c.dtype.is_float else self.stored(name))
        return total

    def _indices(self, n: Operator) -> IntLike:
        return next((self.p.containers[m.container].size for m in n.reads.values() if not self.p.containers[m.container].dtype.is_float), 1)

    def _backward(self, n: Node, live: Collection[str], wanted: Collection[str]) -> tuple[IntLike, IntLike]:
        gy = self._sum(n.writes[k].container for k in live)
        if isinstance(n, Operator) and n.op in _BACKWARD_SPECIAL:
            return _BACKWARD_SPECIAL[n.op](self, n, gy, wanted)
        rule = BACKWARD.get(n.op, OPERANDS) if isinstance(n, Operator) else OPERANDS
        if isinstance(n, Operator) and n.op == "cast" and self._same_dtype(n):
            rule = FREE  # a copy passes its gradient on
        floats = [k for k, m in n.reads.items() if self.p.containers[m.container].dtype.is_float]
        result = max((self.p.containers[n.writes[k].container] for k in live), key=lambda c: len(c.shape))
        pointwise = isinstance(n, Operator) and n.op not in _NOT_POINTWISE
        read: IntLike = 0
        written: IntLike = 0
        together: list[str] = []
        for k in wanted:
            x = self.p.containers[n.reads[k].container]
            broadcast = pointwise and tuple(x.shape) != tuple(result.shape) and rule not in (RESULT,)
            if rule.free:
                if broadcast:
                    read, written = read + gy, written + x.bytes
                continue
            if k == "bias" and rule.each:  # of a product or convolution: a sum of its own
                read, written = read + gy, written + x.bytes
                continue
            names = self._saved(n, rule, floats, k)
            if rule.each:
                read = read + gy + self._sum(names)
            else:
                together += names
            if broadcast:  # the gradient of the broadcast operand, then its sum
                whole = result.size * x.dtype.itemsize
                read, written = read + whole, written + whole
            written = written + x.bytes
        if not rule.each and not rule.free:
            read = read + gy + self._sum(together)
        return read, written

    def _same_dtype(self, n: Node) -> bool:
        return len({self.p.containers[m.container].dtype for m in (*n.reads.values(), *n.writes.values())}) == 1

    def _saved(self, n: Node, rule: Rule, floats: Collection[str], k: str) -> list[str]:
        names: list[str] = []
        for s in rule.saved:
            if s == "*":
                names += [n.reads[f].container for f in floats]
            elif s == "others":
                names += [n.reads[f].container for f in floats if f not in (k, "bias")]
            elif s in n.reads or s in n.writes:
                names.append((n.reads.get(s) or n.writes[s]).container)
        return names


# operators whose operands are smaller than their result for another reason than broadcasting
_NOT_POINTWISE = frozenset({
    "contract", "convolution", "layer_norm", "batch_norm", "batch_norm_inference", "softmax", "log_softmax", "sum",
    "mean", "amax", "amin", "cat", "stack", "reshape", "permute", "clone", "pad", "avg_pool", "adaptive_avg_pool",
    "attention", "cumsum", "with_value", "split", "unbind", "scatter_add", "scatter_sum", "mse_loss", "l1_loss",
    "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div",
    "soft_margin_loss", "flip",
})  # fmt: skip


def _mask_bytes(e: _Eager, n: Operator) -> IntLike:
    """The mask of a dropout: one byte an element."""
    return e.p.containers[n.writes["y"].container].size


def _index_bytes(e: _Eager, n: Operator) -> IntLike:
    """The indices of the maxima of pooling, which eager keeps as int64."""
    return e.p.containers[n.writes["y"].container].size * 8


def _from_saved(e: _Eager, n: Operator, gy: IntLike, wanted: Collection[str]) -> tuple[IntLike, IntLike]:
    """Reads the incoming gradient and a saved mask or index, writes the operand's gradient."""
    return gy + _SAVED[n.op](e, n), e._sum(n.reads[k].container for k in wanted)


def _scatter(e: _Eager, n: Operator, gy: IntLike, wanted: Collection[str]) -> tuple[IntLike, IntLike]:
    """The gradient of a gather is its whole table, dense."""
    indices = [m.container for m in n.reads.values() if not e.p.containers[m.container].dtype.is_float]
    return gy + e._sum(indices), e._sum(n.reads[k].container for k in wanted)


def _embed(e: _Eager, n: Operator, gy: IntLike, wanted: Collection[str]) -> tuple[IntLike, IntLike]:
    """A slice's gradient: zeros of the operand's size, into which the incoming gradient is copied."""
    return gy, gy + sum((e.p.containers[n.reads[k].container].bytes for k in wanted), 0)


def _expand(e: _Eager, n: Operator, gy: IntLike, wanted: Collection[str]) -> tuple[IntLike, IntLike]:
    """Summing what broadcasting had repeated; the incoming gradient is not itself broadcast."""
    y = e.p.containers[next(iter(n.writes.values())).container]
    return y.bytes, sum((e.p.containers[n.reads[k].container].bytes for k in wanted), 0)


def _join(e: _Eager, n: Operator, gy: IntLike, wanted: Collection[str]) -> tuple[IntLike, IntLike]:
    """The gradient of a split is the concatenation of its parts' gradients."""
    return gy, sum((e.p.containers[n.reads[k].container].bytes for k in wanted), 0)


def _pad(e: _Eager, n: Operator, gy: IntLike, wanted: Collection[str]) -> tuple[IntLike, IntLike]:
    x = sum((e.p.containers[n.reads[k].container].bytes for k in wanted), 0)
    return x, x


def _subtract(e: _Eager, n: Operator, gy: IntLike, wanted: Collection[str]) -> tuple[IntLike, IntLike]:
    """The minuend's gradient is the incoming one, the subtrahend's its negative; sums where they were broadcast."""
    y = e.p.containers[next(iter(n.writes.values())).container]
    read: IntLike = 0
    written: IntLike = 0
    for i, k in enumerate(n.reads):
        x = e.p.containers[n.reads[k].container]
        if k in wanted:
            if i > 0:
                read, written = read + gy, written + y.bytes
            if tuple(x.shape) != tuple(y.shape):
                read, written = read + y.bytes, written + x.bytes
    return read, written


def _divide(e: _Eager, n: Operator, gy: IntLike, wanted: Collection[str]) -> tuple[IntLike, IntLike]:
    """The dividend's gradient needs the divisor, the divisor's both; each is summed where its operand was broadcast."""
    y = e.p.containers[next(iter(n.writes.values())).container]
    names = [m.container for m in n.reads.values()]
    read: IntLike = 0
    written: IntLike = 0
    for i, k in enumerate(n.reads):
        x = e.p.containers[n.reads[k].container]
        if k in wanted:
            read, written = read + gy + e._sum(names if i else names[1:]), written + x.bytes
            if tuple(x.shape) != tuple(y.shape):
                read, written = read + y.bytes, written + y.bytes
    return read, written


def _custom(e: _Eager, n: Operator, gy: IntLike, wanted: Collection[str]) -> tuple[IntLike, IntLike]:
    return eager_bytes(n.attributes["backward"]), 0


# what the forward kernel writes beside its result, and the backward kernel reads
_SAVED: dict[str, Callable[[_Eager, Operator], IntLike]] = {
    "dropout": _mask_bytes, "native_dropout": _mask_bytes, "max_pool": _index_bytes, "max_pool_with_indices": _index_bytes,
}  # fmt: skip
_BACKWARD_SPECIAL: dict[str, Callable[..., tuple[IntLike, IntLike]]] = {
    **dict.fromkeys(_SAVED, _from_saved), **dict.fromkeys(GATHERS, _scatter), "slice": _embed, "select": _embed, "expand": _expand,
    "split": _join, "unbind": _join, "pad": _pad, "sub": _subtract, "div": _divide, "custom_function": _custom,
}  # fmt: skip
