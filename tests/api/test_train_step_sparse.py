"""TrainStep with embeddings: only the touched rows are updated, exactly or lazily, with the numbers of dense training."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from step_compare import close, same_optimizer, same_state

import shorthaul as sh

MSE = torch.nn.functional.mse_loss
ROWS = 150
Make = Callable[[torch.nn.Module], torch.optim.Optimizer]


class Tables(torch.nn.Module):
    """A table with padding, bags of another one, and a third that is looked up twice, once by indices that may be negative."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(ROWS, 4, padding_idx=3)
        self.bags = torch.nn.EmbeddingBag(ROWS, 4, mode="mean")
        self.plain = torch.nn.Parameter(torch.randn(ROWS, 4))
        self.out = torch.nn.Linear(4, 1)

    def forward(self, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        x = self.table(i).sum(1) + self.bags(j) + self.plain[j[:, 0] - 5] * self.plain.index_select(0, i[:, 1])
        return self.out(torch.tanh(x)).squeeze(1)


def batch(t: int, n: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Few different rows for the first operand, so that rows are looked up several times; any for the second."""
    g = torch.Generator().manual_seed(t)
    i, j = torch.randint(0, 9, (n, 3), generator=g), torch.randint(0, ROWS, (n, 2), generator=g)
    return i, j, torch.randn(n, generator=g).double()


class Both:
    """A network for the step and an equal one for the ordinary loop, which is dense."""

    def __init__(self, make: Make, model: torch.nn.Module | None = None, **options: Any) -> None:
        torch.manual_seed(0)
        self.ours = (Tables() if model is None else model).double()
        self.theirs = copy.deepcopy(self.ours)
        self.optimizer, self.eager = make(self.ours), make(self.theirs)
        self.step = sh.TrainStep(self.ours, MSE, self.optimizer, strict=True, **options)
        self.norm = options.get("clip_grad_norm")

    def train(self, first: int, last: int, after: Callable[[torch.optim.Optimizer], None] = lambda o: None, n: int = 6) -> None:
        for t in range(first, last):
            *inputs, y = batch(t, n)
            loss = self.step(*inputs, y)
            self.eager.zero_grad()
            expected = MSE(self.theirs(*inputs), y)
            expected.backward()
            if self.norm is not None:
                torch.nn.utils.clip_grad_norm_(self.theirs.parameters(), self.norm)
            self.eager.step()
            close(loss, expected.detach(), f"loss of step {t}")
            for o in (self.optimizer, self.eager):
                after(o)

    def check(self) -> None:
        same_state(self.ours.state_dict(), self.theirs.state_dict())
        same_optimizer(self.optimizer, self.eager)

    @property
    def sparse(self) -> set[str]:
        """Tables whose rows alone are updated, in place."""
        p = self.step.program
        assert p is not None
        calls = [n for n in p.nodes if getattr(n, "function", "") == "write_rows"]
        return {n.reads["x"].container for n in calls if p.containers[n.writes["y"].container].alias is not None}

    def refusal(self, table: str = "table_weight") -> str:
        p = self.step.program
        assert p is not None
        return next(r.reason for r in p.attributes["refusals"] if r.transformation == "SparseUpdate" and table in r.where)


ALL = {"table_weight", "bags_weight", "plain"}


def sgd(m: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(m.parameters(), lr=0.1)


# exactly ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "options"),
    [(sgd, {"clip_grad_norm": 0.02}), (lambda m: torch.optim.Adagrad(m.parameters(), lr=0.1, lr_decay=0.1), {})],
    ids=["sgd with clipping", "adagrad"],
)
def test_only_touched_rows_are_updated(make: Make, options: dict[str, Any]) -> None:
    b = Both(make, **options)
    b.train(0, 6)
    b.check()
    assert b.sparse >= ALL
    p = b.step.program
    assert p is not None and not [c for c in p.containers.values() if c.size == ROWS * 4 and not c.is_external and c.alias is None]


def test_a_scaler_that_skips_a_step_leaves_rows_alone() -> None:
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3) for _ in range(2)]
    b = Both(sgd, scaler=scalers[0])
    for t in range(4):
        i, j, y = batch(t)
        if t == 1:
            y[0] = float("inf")
        b.step(i, j, y)
        b.eager.zero_grad()
        scalers[1].scale(MSE(b.theirs(i, j), y)).backward()
        scalers[1].step(b.eager)
        scalers[1].update()
        assert scalers[0].state_dict() == scalers[1].state_dict()
    b.check()
    assert b.sparse == ALL


def test_a_step_with_another_number_of_lookups() -> None:
    b = Both(sgd)
    for t, n in enumerate((6, 4, 7, 5)):
        b.train(t, t + 1, n=n)
    b.check()
    assert b.sparse == ALL and len(b.step.report().regions) <= 3


def test_an_index_out_of_range_changes_nothing() -> None:
    b = Both(sgd)
    b.train(0, 1)
    i, j, y = batch(1)
    j[0, 0] = ROWS + 7
    with pytest.raises(IndexError, match="is out of range"):
        b.step(i, j, y)
    b.check()


@pytest.mark.parametrize(
    ("make", "options", "why"),
    [
        (sgd, {"grads": True}, "the caller gets the gradient"),
        (sgd, {"accumulate": 2}, "a whole tensor that the step keeps"),
        (lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9), {}, r'changes at every step.*sparse="lazy"'),
        (lambda m: torch.optim.Adam(m.parameters()), {"sparse": "lazy"}, r"not in a linear way \(sqrt of its values\).*no closed form"),
    ],
)
def test_dense_where_it_has_to_be_with_the_reason_in_the_report(make: Make, options: dict[str, Any], why: str) -> None:
    b = Both(make, **options)
    if options.get("accumulate"):
        for t in range(2):
            b.step(*batch(t))
    else:
        b.train(0, 2)
        b.check()
    assert not b.sparse
    assert re.search(why, b.refusal()), b.refusal()
    assert "SparseUpdate at parameter_update of table_weight" in str(b.step.report())


def test_a_table_that_is_also_a_matrix_is_dense() -> None:
    class Tied(Tables):
        def forward(self, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
            return super().forward(i, j) + (self.table(i[:, 0]) @ self.table.weight.T).sum(1) * 0.1

    b = Both(sgd, Tied())
    b.train(0, 2)
    b.check()
    assert b.sparse == {"bags_weight", "plain"}
    assert "which gives every row" in b.refusal()


def test_off() -> None:
    b = Both(sgd, sparse="off")
    b.train(0, 1)
    b.check()
    assert not b.sparse
    with pytest.raises(ValueError, match="sparse is one of 'exact', 'lazy', 'off'"):
        sh.TrainStep(b.ours, MSE, b.optimizer, sparse="sometimes")


# lazily -------------------------------------------------------------------------------------------------------------------
LAZY: dict[str, Make] = {
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "nesterov": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.03),
    "decay": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, weight_decay=0.1),
    "dampening": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, weight_decay=0.1, momentum=0.8, dampening=0.3),
    "maximize": lambda m: torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.8, maximize=True, weight_decay=0.1),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01, momentum=0.9),
    "adadelta": lambda m: torch.optim.Adadelta(m.parameters(), lr=0.1),
}


QUICK = ("momentum", "nesterov", "rmsprop")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in LAZY])
def test_lazy_training_is_dense_training(name: str) -> None:
    b = Both(LAZY[name], sparse="lazy")
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 12) for o in (b.optimizer, b.eager)]

    def after(o: torch.optim.Optimizer) -> None:
        (schedules[0] if o is b.optimizer else schedules[1]).step()
        if o.param_groups[0].get("momentum"):
            o.param_groups[0]["momentum"] *= 0.99

    b.train(0, 40, after)
    # two programs at most: with dampening the first step is PyTorch's own
    assert b.sparse >= ALL and sum(r.compiled is not None for r in b.step.report().regions) <= 2
    behind = b.ours.plain.detach().clone()
    b.check()  # state_dict brings the rows up to date
    # without a gradient these two move their state only
    assert name in ("rmsprop", "adadelta") or not torch.equal(behind, b.ours.plain)
    b.train(40, 45, after)
    b.check()


def test_lazy_after_saving_and_loading() -> None:
    b = Both(LAZY["momentum"], sparse="lazy")
    b.train(0, 7)
    file = io.BytesIO()
    torch.save((b.ours.state_dict(), b.optimizer.state_dict(), b.theirs.state_dict(), b.eager.state_dict()), file)
    b.train(7, 12)
    file.seek(0)
    for part, state in zip((b.ours, b.optimizer, b.theirs, b.eager), torch.load(file), strict=True):
        part.load_state_dict(state)
    b.train(12, 20)
    b.check()
    assert b.sparse >= ALL


@pytest.mark.parametrize("how", ["sync", "eval", "forward", "with", "copy", "pickle", "delete"])
def test_rows_are_up_to_date_whenever_somebody_else_looks(how: str) -> None:
    b = Both(LAZY["momentum"], sparse="lazy")
    model: Any = b.ours
    with b.step:
        b.train(0, 8)
        assert not torch.allclose(b.ours.plain, b.theirs.plain)
        if how == "sync":
            b.step.sync()
        elif how == "eval":
            assert b.ours.eval() is b.ours and not b.ours.table.training
        elif how == "forward":
            close(b.ours(*batch(0)[:2]).detach(), b.theirs(*batch(0)[:2]).detach(), "output")
        elif how == "copy":
            model = copy.deepcopy(b.ours)
            assert type(model) is Tables and model.train(False) is model and b.ours.training
        elif how == "pickle":
            model = pickle.loads(pickle.dumps(b.ours))
            assert model.eval() is model and b.ours.training
    if how == "delete":
        b.step = None  # type: ignore[assignment]
        gc.collect()
    for p, q in zip(model.parameters(), b.theirs.parameters(), strict=True):
        close(p, q, how)


def test_lazy_and_the_ordinary_loop_take_turns() -> None:
    b = Both(LAZY["momentum"], sparse="lazy")
    b.train(0, 5)
    *inputs, y = batch(5)
    for model, optimizer in ((b.ours, b.optimizer), (b.theirs, b.eager)):
        optimizer.zero_grad()
        MSE(model(*inputs), y).backward()
        optimizer.step()
    b.train(6, 10)
    b.check()


def test_a_window_that_is_full_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("lazy", "program"):
        monkeypatch.setattr(f"shorthaul.training.{module}.WINDOW", 5)
    monkeypatch.setattr("shorthaul.training.lazy.CHUNK", 40)
    b = Both(LAZY["momentum"], sparse="lazy")
    b.train(0, 12)
    assert b.step.lazy is not None and b.step.lazy.now == 2
    b.check()


def test_what_is_not_lazy_says_why() -> None:
    b = Both(LAZY["momentum"], sparse="lazy", scaler=torch.amp.GradScaler("cpu"))
    b.step(*batch(0))
    assert "GradScaler" in str(b.step.report()) and not b.sparse
