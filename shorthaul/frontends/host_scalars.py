"""Numbers that an optimizer computes on the host: learning rates, bias corrections, step counters.

While an optimizer's step is traced its options and counters are `Traced` numbers and `HostTensor`s: they have today's value and remember
how it was computed. What reaches a tensor becomes a scalar input of the program; a comparison becomes a guard. At every call the same
expressions are evaluated on the options and counters as they are then, in Python's double precision like eager mode's.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Union

import numpy as np
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

Number = Union[int, float]
# ("const", value) | ("option", group, name, place in a tuple or None) | ("state", parameter, name) | ("setting", name: of the step itself)
# | (operation, operand, ...)
Expr = tuple[Any, ...]


class NotTraced(Exception):
    """The step of an optimizer, or a part of it, cannot be traced; the message says why."""


def _float32(x: Number) -> float:
    return float(np.float32(x))


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "truediv": operator.truediv, "pow": operator.pow,
    "floordiv": operator.floordiv, "mod": operator.mod, "neg": operator.neg, "abs": operator.abs, "float32": _float32,
    "lt": operator.lt, "le": operator.le, "eq": operator.eq, "ne": operator.ne,
}  # fmt: skip
LEAVES = ("const", "option", "state", "setting")


def evaluate(expr: Expr, leaf: Callable[[Expr], Number], memo: dict[Expr, Number]) -> Number:
    """The value of an expression. leaf: the value of an option or a state entry. memo: values known already, which it fills."""
    found = memo.get(expr)
    if found is None:
        if expr[0] == "const":
            found = expr[1]
        elif expr[0] in LEAVES:
            found = leaf(expr)
        else:
            found = OPERATIONS[expr[0]](*[evaluate(e, leaf, memo) for e in expr[1:]])
        memo[expr] = found
    return found


def leaves(expr: Expr) -> set[Expr]:
    """The options and state entries in an expression."""
    if expr[0] in LEAVES:
        return set() if expr[0] == "const" else {expr}
    return set().union(*(leaves(e) for e in expr[1:]))


def describe(expr: Expr) -> str:
    """An expression as text, for messages."""
    if expr[0] == "const":
        return repr(expr[1])
    if expr[0] == "option":
        return f"{expr[2]} of group {expr[1]}" + ("" if expr[3] is None else f"[{expr[3]}]")
    if expr[0] == "state":
        return f"state[{expr[2]!r}] of parameter {expr[1]}"
    return f"{expr[0]}({', '.join(map(describe, expr[1:]))})"


class Guards:
    """Comparisons that decided the way of a trace, with their outcomes."""

    def __init__(self) -> None:
        self.outcomes: dict[Expr, bool] = {}

    def decide(self, expr: Expr, outcome: bool) -> bool:
        """Remember a comparison."""
        if leaves(expr):
            self.outcomes[expr] = outcome
        return outcome

    def fix(self, number: Traced) -> None:
        """The trace uses the number itself: it holds for this value only, which a counter would change at every step."""
        if any(e[0] == "state" for e in leaves(number.expr)):
            raise NotTraced(f"it computes with {describe(number.expr)} in a way that cannot be traced")
        self.decide(("eq", number.expr, ("const", number.value)), True)


class Traced(torch.SymFloat):
    """A number that knows its expression. A SymFloat by type, because PyTorch's functions take no other stand-in for a number."""

    def __init__(self, guards: Guards, expr: Expr, value: Number) -> None:
        self.guards, self.expr, self.value = guards, expr, value

    def _make(self, op: str, *operands: Any) -> Any:
        if not all(isinstance(o, (Traced, int, float)) for o in operands):
            return NotImplemented
        exprs = [o.expr if isinstance(o, Traced) else ("const", o) for o in operands]
        values = [o.value if isinstance(o, Traced) else o for o in operands]
        return Traced(self.guards, (op, *exprs), OPERATIONS[op](*values))

    def _compare(self, op: str, *operands: Any) -> Any:
        found = self._make(op, *operands)
        return found if found is NotImplemented else self.guards.decide(found.expr, bool(found.value))

    def __bool__(self) -> bool:
        return self._compare("ne", self, 0)

    def _fixed(self) -> Number:
        self.guards.fix(self)
        return self.value

    def __float__(self) -> float:
        return float(self._fixed())

    def __int__(self) -> int:
        return int(self._fixed())

    def __index__(self) -> int:
        return operator.index(self._fixed())  # type: ignore[arg-type]

    def __round__(self, digits: int | None = None) -> Number:
        return round(self._fixed(), digits)  # type: ignore[call-overload]

    def __hash__(self) -> int:
        return hash(self.expr)

    def __repr__(self) -> str:
        return f"{self.value} = {describe(self.expr)}"

    __str__ = __repr__


def _binary(op: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def forward(self: Traced, other: Any) -> Any:
        return self._make(op, self, other)

    def reflected(self: Traced, other: Any) -> Any:
        return self._make(op, other, self)

    return forward, reflected


for _op in ("add", "sub", "mul", "truediv", "pow", "floordiv", "mod"):
    _f, _r = _binary(_op)
    setattr(Traced, f"__{_op}__", _f)
    setattr(Traced, f"__r{_op}__", _r)
for _op in ("neg", "abs"):
    setattr(Traced, f"__{_op}__", lambda self, _op=_op: self._make(_op, self))
for _name, (_op, _swap) in {"lt": ("lt", False), "gt": ("lt", True), "le": ("le", False), "ge": ("le", True), "eq": ("eq", False),
                            "ne": ("ne", False)}.items():  # fmt: skip

    def _comparison(self: Traced, other: Any, _op: str = _op, _swap: bool = _swap) -> Any:
        return self._compare(_op, *((other, self) if _swap else (self, other)))

    setattr(Traced, f"__{_name}__", _comparison)


class HostTensor(torch.Tensor):
    """A tensor of one element on the CPU that holds a Traced number: a step counter, an option given as a tensor."""

    number: Traced

    @staticmethod
    def of(number: Traced, dtype: torch.dtype) -> HostTensor:
        """A tensor with that number, rounded to the dtype."""
        with unset_fake_temporarily(), torch._C.DisableTorchFunction():
            t = torch.Tensor._make_subclass(HostTensor, torch.empty((), dtype=dtype))
        t.hold(number)
        return t

    def hold(self, number: Traced) -> None:
        """Set the value, rounded as a tensor of this dtype rounds it."""
        with torch._C.DisableTorchFunction():
            self.number = rounded(number, self.dtype)


def rounded(number: Traced, dtype: torch.dtype) -> Traced:
    """The number as a tensor of the dtype holds it."""
    if dtype is torch.float32:
        return number._make("float32", number)
    if dtype is torch.float64 or not dtype.is_floating_point:
        return number
    raise NotTraced(f"it keeps a counter of dtype {dtype}")


# operations on host tensors and numbers, by the name of PyTorch's function (in place where it ends in "_")
_NAMES = {"add": "add", "sub": "sub", "mul": "mul", "div": "truediv", "truediv": "truediv",
          "true_divide": "truediv", "pow": "pow", "neg": "neg", "abs": "abs",
          "lt": "lt", "gt": "gt", "le": "le", "ge": "ge", "eq": "eq", "ne": "ne"}  # fmt: skip
_QUESTIONS = frozenset({"dim", "numel", "size", "is_floating_point", "is_complex", "__get__", "is_cpu", "ndimension", "element_size"})


def host_call(func: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """A function of PyTorch whose tensors are all HostTensors. Raises NotTraced for one that is not known here."""
    name = func.__name__
    plain = name.strip("_")
    reflected = plain in ("rsub", "radd", "rmul", "rdiv", "rtruediv", "rpow")
    plain = plain[1:] if reflected or (name.startswith("__i") and plain != "item") else plain
    first = args[0]
    if name in _QUESTIONS:
        with torch._C.DisableTorchFunction():
            return func(*args, **kwargs)
    if name == "item":
        return first.number
    if name in ("__float__", "__int__", "__bool__", "__index__"):
        return getattr(first.number, name)()
    if name in ("detach", "clone", "cpu"):
        return HostTensor.of(first.number, first.dtype)
    in_place = name.endswith("_") and (not name.startswith("__") or name.startswith("__i"))
    template = next(a for a in args if isinstance(a, HostTensor))
    numbers = [a.number if isinstance(a, HostTensor) else a for a in args]
    if name in ("copy_", "fill_"):
        value = numbers[1] if isinstance(numbers[1], Traced) else Traced(template.number.guards, ("const", numbers[1]), numbers[1])
    elif plain in _NAMES and not (set(kwargs) - {"alpha"}) and kwargs.get("alpha", 1) == 1:
        given = [rounded(n, template.dtype) if isinstance(n, Traced) else n for n in numbers]
        if reflected:
            given.reverse()
        if _NAMES[plain] in ("gt", "ge"):
            return template.number._compare({"gt": "lt", "ge": "le"}[_NAMES[plain]], *reversed(given))
        if _NAMES[plain] in ("lt", "le", "eq", "ne"):
            return template.number._compare(_NAMES[plain], *given)
        value = template.number._make(_NAMES[plain], *given)
    else:
        raise NotTraced(f"it calls {name} on a step counter")
    if in_place:
        first.hold(value)
        return first
    return HostTensor.of(value, template.dtype)
