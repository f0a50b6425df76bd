"""Tables whose untouched rows are stepped later: `TrainStep(sparse="lazy")`.

Without a gradient an optimizer such as SGD with momentum changes a row x (weight and momentum) linearly: x_t = A_t x_{t-1}, where the
small matrix A_t depends on the numbers of step t alone (learning rate, momentum, weight decay as they were then). A row that was left out
since step s is therefore brought to step t by the product D_t[s] = A_t ... A_{s+1}. The host keeps D_t[s] for every s since the last
`sync`: a step multiplies all of them by A_t from the left, so that schedules of any kind are exact, and nothing is divided or cancelled.
The program reads a row as D[last[row]] applied to it, and writes the touched rows with the number of the step.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from shorthaul.frontends.host_scalars import Expr
from shorthaul.ir.interpret_values import Arithmetic
from shorthaul.ir.pointwise_program import codes_of, folded
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import Scalar, const

WINDOW = 4096  # steps after which every row is brought up to date: one pass over a table, and the length of `decay`
CHUNK = 1 << 18  # rows that are brought up to date at a time


@dataclass
class Change:
    """What a step makes of a row without a gradient.

    body: the traced update. tables: for each of its inputs that is a table the name of the state, "" for the parameter.
    gradients: its inputs that are gradients. scalars: expressions of the numbers that it reads, by input. updated: for each output the
    input whose new value it is.
    """

    body: Program
    tables: dict[str, str]
    gradients: frozenset[str]
    scalars: dict[str, Expr]
    updated: tuple[str, ...]
    _last: tuple[tuple[float, ...], np.ndarray] | None = None  # the numbers of the step before, which mostly stay, and their matrix

    @property
    def key(self) -> tuple:
        """Equal for changes by the same numbers: traces of one optimizer with the same options and numbers do the same."""
        return tuple(self.tables.values()), tuple(self.scalars.values())

    @cached_property
    def _codes(self) -> dict[str, Scalar]:
        """The code of each new value without a gradient, by the input that it replaces."""
        made = codes_of(self.body)
        assert made is not None
        nothing = {g: const(0, self.body.containers[g].dtype) for g in self.gradients}
        return {i: folded(made[o], nothing) for i, o in zip(self.updated, self.body.signature.outputs, strict=True)}

    def matrix(self, value: Callable[[Expr], float]) -> np.ndarray:
        """A: the new values of the tables (rows) from the old ones (columns), in float64."""
        numbers = tuple(value(e) for e in self.scalars.values())
        if self._last is not None and self._last[0] == numbers:
            return self._last[1]
        codes = self._codes
        arithmetic, names = Arithmetic(wide=True), list(self.tables)
        columns = []
        for one in names:
            given = {**dict.fromkeys(names, 0.0), one: 1.0}
            given |= dict(zip(self.scalars, numbers, strict=True))
            found = arithmetic.code(codes, lambda k, given=given: np.asarray(given[k], np.float64), _no_index)  # type: ignore[misc]
            columns.append([float(found[n]) if n in found else given[n] for n in names])
        self._last = numbers, np.array(columns).T
        return self._last[1]


def _no_index(e: Any) -> int:
    raise AssertionError(f"an optimizer's update does not depend on where an element is ({e})")


class Decay:
    """The matrices D[s] of one kind of change, as a tensor (WINDOW + 1, k, k) that the program reads."""

    def __init__(self, k: int, device: torch.device) -> None:
        self.tensor = torch.zeros(WINDOW + 1, k, k, dtype=torch.float64, device=device)
        self._identity = torch.eye(k, dtype=torch.float64, device=device)
        self._matrix = np.zeros((k, k)), self._identity  # of the step before, here and on the device
        self.start()

    def start(self) -> None:
        """Nothing was left out yet."""
        self.tensor[0].copy_(self._identity)

    def advance(self, a: np.ndarray, now: int) -> None:
        """Step `now` was taken: multiply by its matrix. On a GPU the host does not wait for it."""
        if not np.array_equal(a, self._matrix[0]):
            matrix = torch.from_numpy(np.array(a))  # a copy: the device may read it later
            if self.tensor.device.type == "cuda":
                matrix = matrix.pin_memory().to(self.tensor.device, non_blocking=True)
            self._matrix = a.copy(), matrix
        past = self.tensor[:now]
        past.copy_(torch.matmul(self._matrix[1], past))
        self.tensor[now].copy_(self._identity)


@dataclass
class Table:
    """A parameter with the step after which each of its rows is up to date, and its state by name ("" for itself), in D's order."""

    last: torch.Tensor
    decay: Decay
    key: tuple
    tensors: Callable[[], Sequence[torch.Tensor]]


class LazyTables:
    """All lazy tables of a step. now: steps since the last `sync`."""

    def __init__(self) -> None:
        self.now = 0
        self.tables: dict[int, Table] = {}  # by place among the optimizer's parameters
        self._decays: dict[tuple, Decay] = {}

    def prepare(self, wanted: Mapping[int, tuple[Change, Callable[[], Sequence[torch.Tensor]]]]) -> None:
        """Make these the tables that the next step leaves rows out of; what others left out is made up for first."""
        if {i: t.key for i, t in self.tables.items()} == {i: c.key for i, (c, _) in wanted.items()}:
            return
        self.sync()
        self._decays = {k: d for k, d in self._decays.items() if k in {c.key for c, _ in wanted.values()}}
        old, self.tables = self.tables, {}
        for place, (change, tensors) in wanted.items():
            table = tensors()[0]
            decay = self._decays.get(change.key)
            if decay is None:
                decay = self._decays[change.key] = Decay(len(change.tables), table.device)
            known = old.get(place)
            last = known.last if known is not None else torch.zeros(table.shape[0], dtype=torch.int64, device=table.device)
            self.tables[place] = Table(last, decay, change.key, tensors)

    def advance(self, matrices: Mapping[tuple, np.ndarray]) -> None:
        """A step was taken."""
        if not self.tables:
            return
        self.now += 1
        for key, a in matrices.items():
            self._decays[key].advance(a, self.now)
        if self.now == WINDOW:
            self.sync()

    def sync(self) -> None:
        """Bring every row up to date."""
        if not self.now:
            return
        with torch.no_grad():
            for table in self.tables.values():
                _catch_up(table, self.now)
                table.last.zero_()
        for decay in self._decays.values():
            decay.start()
        self.now = 0


def _catch_up(table: Table, now: int) -> None:
    """Apply D[last] to every row, a chunk at a time; up-to-date rows have the identity there."""
    tensors, d = table.tensors(), table.decay.tensor[: now + 1]
    k = len(tensors)
    used = [[bool(d[:, i, j].any()) for j in range(k)] for i in range(k)]
    scaled = [bool((d[:, i, i] != 1).any()) for i in range(k)]
    in_order = not any(used[i][j] for i in range(k) for j in range(i))  # no tensor needs an earlier one: each may be overwritten in turn
    for first in range(0, len(table.last), CHUNK):
        last = table.last[first : first + CHUNK]
        if bool((last == now).all()):
            continue
        parts = [t[first : first + CHUNK] for t in tensors]
        olds = parts if in_order else [x.clone() for x in parts]
        shape = (-1, *(1 for _ in parts[0].shape[1:]))
        for i, x in enumerate(parts):
            wide = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
            new = x.to(wide)
            if scaled[i]:
                new.mul_(d[:, i, i][last].to(wide).view(shape))
            for j, old in enumerate(olds):
                if j != i and used[i][j]:
                    new.addcmul_(d[:, i, j][last].to(wide).view(shape), old.to(wide))
            if new is not x:
                x.copy_(new)


class Sync:
    """A hook that brings lazy tables up to date. Copies and pickles of it, which are those of its module, have no tables."""

    def __init__(self, tables: LazyTables | None = None) -> None:
        self._tables = None if tables is None else weakref.ref(tables)

    def __call__(self, *_: Any) -> None:
        if torch.compiler.is_compiling():  # the step's own capture goes through the modules
            return
        found = None if self._tables is None else self._tables()
        if found is not None:
            found.sync()

    def __deepcopy__(self, memo: dict[int, Any]) -> Sync:
        return Sync()

    def __reduce__(self) -> tuple:
        return Sync, ()


class SyncedTrain:
    """`module.train` of a model with lazy tables: brings them up to date when it leaves training, and before the model is copied or
    pickled. Copies and pickles have the class's own method."""

    def __init__(self, module: torch.nn.Module, sync: Sync) -> None:
        self._module, self._sync = weakref.ref(module), sync

    def __call__(self, mode: bool = True) -> torch.nn.Module:
        module = self._module()
        assert module is not None
        if not mode:
            self._sync()
        return type(module).train(module, mode)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        self._sync()
        copied = memo[id(self._module())]
        return types.MethodType(type(copied).train, copied)

    def __reduce__(self) -> tuple:
        self._sync()
        return getattr, (self._module(), "train")


def watch(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tables: LazyTables) -> None:
    """Bring tables up to date before anything else looks at them: `state_dict`, loading one, `eval()`, copies and pickles, a forward call
    outside of the step."""
    sync = Sync(tables)
    for m in model.modules():
        if m is model or next(m.parameters(recurse=False), None) is not None:
            m.register_state_dict_pre_hook(sync)
            m.register_load_state_dict_pre_hook(sync)
            m.register_forward_pre_hook(sync)
    optimizer.register_state_dict_pre_hook(sync)
    optimizer.register_load_state_dict_pre_hook(sync)
    # the first entry, so that a copy or pickle meets it before it takes the parameters
    entries = {k: v for k, v in vars(model).items() if k != "train"}
    vars(model).clear()
    vars(model).update(train=SyncedTrain(model, sync), **entries)
