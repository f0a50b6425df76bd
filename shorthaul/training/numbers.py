"""What a step computes on the host at every call: learning rates, bias corrections, step counters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from shorthaul.frontends.host_scalars import Expr, Number, describe, evaluate
from shorthaul.frontends.optimizers import Update, flat_parameters, option_values


class HostNumbers:
    """The numbers of one traced update. scalars: the expressions that the program reads, in order. setting: gives those of the step itself.

    A call asks `misfit` whether the trace holds for the options and counters as they are, then `values`, and after the step `commit`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, update: Update, scalars: list[Expr], setting: Callable[[str], Number]) -> None:
        self.optimizer, self.update, self.scalars, self.setting = optimizer, update, scalars, setting
        self._options = option_values(optimizer)
        self._listing = [p for p, _ in flat_parameters(optimizer)]
        self._ids = _ids(optimizer)
        self._memo: dict[Expr, Number] = {}
        writes: dict[Expr, list[tuple[int, str]]] = {}
        for i, name, expr in update.host:
            writes.setdefault(expr, []).append((i, name))
        self._writes = writes

    def _leaf(self, expr: Expr) -> Number:
        if expr[0] == "option":
            _, group, name, place = expr
            value = self.optimizer.param_groups[group][name]
            value = value if place is None else value[place]
        elif expr[0] == "setting":
            return self.setting(expr[1])
        else:
            value = self.optimizer.state[self._listing[expr[1]]][expr[2]]
        return value.item() if isinstance(value, torch.Tensor) else value

    def misfit(self) -> str:
        """Why the traced update does not hold now, an empty string where it does. Reads options and counters."""
        if _ids(self.optimizer) != self._ids:
            return "the parameters of the optimizer's groups changed"
        memo = self._memo = {}
        for g, (traced, now) in enumerate(zip(self._options, option_values(self.optimizer), strict=True)):
            if traced != now:
                name = next(k for k in {**traced, **now} if traced.get(k) != now.get(k))
                return f"option {name!r} of group {g} changed from {traced.get(name)!r} to {now.get(name)!r}"
        try:
            for expr, outcome in self.update.guards.items():
                if bool(evaluate(expr, self._leaf, memo)) is not outcome:
                    return f"{describe(expr)} is {not outcome} now"
            for i, name, like in self.update.lockstep:
                if self._leaf(("state", i, name)) != evaluate(("state", like, name), self._leaf, memo):
                    return f"state[{name!r}] of parameter {i} differs from that of parameter {like}, which took the same steps"
        except (KeyError, IndexError, TypeError) as e:
            return f"options or state of the optimizer changed their form ({type(e).__name__}: {e})"
        return ""

    def values(self) -> list[float]:
        """The numbers that the program reads."""
        return [float(evaluate(e, self._leaf, self._memo)) for e in self.scalars]

    def commit(self, found: torch.Tensor | None) -> None:
        """Write the new values of counters into the optimizer's state. found: not zero where the update was skipped, which the host must
        know then (as GradScaler.step asks in eager mode)."""
        if self._writes and found is not None and found.item():
            return
        new = [evaluate(expr, self._leaf, self._memo) for expr in self._writes]  # all of them before the first is written
        for value, places in zip(new, self._writes.values(), strict=True):
            tensors: list[torch.Tensor] = []
            for i, name in places:
                state: dict[str, Any] = self.optimizer.state[self._listing[i]]
                if isinstance(state[name], torch.Tensor):
                    tensors.append(state[name])
                else:
                    state[name] = type(state[name])(value)
            if tensors:
                source = torch.tensor(value, dtype=tensors[0].dtype)
                torch._foreach_copy_(tensors, [source] * len(tensors))


def _ids(optimizer: torch.optim.Optimizer) -> list[list[int]]:
    return [[id(p) for p in g["params"]] for g in optimizer.param_groups]
