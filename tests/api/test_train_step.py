"""TrainStep: one program for forward, loss, backward and update, and the same numbers as the ordinary loop."""

from __future__ import annotations

import copy
import logging
import pickle
from typing import Any

import pytest
import torch
from step_compare import Net, Pair, batch, close, network, same_optimizer, same_state

import shorthaul as sh
from shorthaul.training.program import LossError

CE = torch.nn.functional.cross_entropy
OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.05),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=1e-2),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.1),
}


def sgd(m: torch.nn.Module) -> torch.optim.Optimizer:
    return OPTIMIZERS["momentum"](m)


SLOW = ("sgd", "adam", "momentum")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in OPTIMIZERS])
def test_twenty_steps_are_those_of_the_ordinary_loop(name: str) -> None:
    p = Pair(OPTIMIZERS[name], strict=True)
    kept = list(p.ours.parameters())
    p.train(20)
    p.check()
    assert all(a is b for a, b in zip(kept, p.ours.parameters(), strict=True))
    assert all(q.grad is None for q in kept)
    assert p.step.report().captured and len(p.step.report().regions) == 1


def test_everything_is_updated_where_it_is_and_gradients_stay_inside() -> None:
    p = Pair(OPTIMIZERS["adamw"])
    p.train(1)
    program = p.step.program
    assert program is not None and {n.phase for n in program.nodes} == {"forward"}
    parameters, buffers, states = 7, 3, 14
    assert len(program.signature.updates) == parameters + buffers + states
    copied = {old for old, new in program.signature.updates if program.containers[new].alias is None}
    assert copied <= {"norm_weight"}  # whose kernel needs the old value once more
    assert not program.signature.gradients and not any(c.role in ("gradient", "cotangent") for c in program.containers.values())
    assert program.movement().at().bytes < program.attributes["eager_bytes"]


def test_state_is_true_and_the_ordinary_loop_can_take_over_and_give_back() -> None:
    p = Pair(OPTIMIZERS["adam"])
    p.train(3)
    for i in range(3, 6):  # left
        x, y = batch(i)
        p.optimizer.zero_grad()
        CE(p.ours(x), y).backward()
        p.optimizer.step()
        p.optimizer.zero_grad()
        p.eager_step(x, y)
    p.train(3, 6)  # and back
    p.check()
    assert len(p.step.report().regions) == 1


def test_begins_in_the_middle_of_a_training() -> None:
    def made(m: torch.nn.Module) -> torch.optim.Optimizer:
        o = OPTIMIZERS["adam"](m)
        for i in range(2):
            o.zero_grad()
            CE(m(batch(i)[0]), batch(i)[1]).backward()
            o.step()
        o.zero_grad()
        return o

    p = Pair(made)
    p.train(3, 2)
    p.check()


def test_load_state_dict_between_steps() -> None:
    p = Pair(OPTIMIZERS["adam"])
    p.train(2)
    saved = copy.deepcopy((p.ours.state_dict(), p.optimizer.state_dict(), p.theirs.state_dict(), p.eager.state_dict()))
    p.train(2, 2)
    p.ours.load_state_dict(saved[0])
    p.optimizer.load_state_dict(saved[1])
    p.theirs.load_state_dict(saved[2])
    p.eager.load_state_dict(saved[3])
    p.train(3, 4)
    p.check()
    assert len(p.step.report().regions) == 1


def test_a_schedule_changes_numbers_without_compiling_again() -> None:
    p = Pair(sgd)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 10) for o in (p.optimizer, p.eager)]
    for i in range(6):
        p.both(i)
        for s in schedules:
            s.step()
        for o in (p.optimizer, p.eager):
            o.param_groups[0]["weight_decay"] = 1e-2 / (i + 1)
    p.check()
    assert len(p.step.report().regions) == 1


def test_another_option_compiles_again_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    p = Pair(OPTIMIZERS["momentum"])
    p.train(2)
    with caplog.at_level(logging.INFO, "shorthaul"):
        for o in (p.optimizer, p.eager):
            o.param_groups[0]["nesterov"] = True
        p.train(2, 2)
        for o in (p.optimizer, p.eager):
            o.param_groups[0]["weight_decay"] = 0.0
        p.train(2, 4)
    p.check()
    assert "option 'nesterov' of group 0 changed from False to True" in caplog.text
    assert "weight_decay of group 0" in caplog.text
    assert len(p.step.report().regions) == 3
    for o in (p.optimizer, p.eager):  # back to what is compiled already
        o.param_groups[0].update(nesterov=False, weight_decay=1e-2)
    p.train(1, 6)
    p.check()
    assert len(p.step.report().regions) == 3


def test_groups_frozen_and_unused_parameters() -> None:
    class Partly(Net):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Linear(3, 3)

    def made(m: Any) -> torch.optim.Optimizer:
        m.conv.weight.requires_grad_(False)
        groups = [{"params": [m.hidden.weight, m.hidden.bias], "lr": 0.1, "weight_decay": 0.0}, {"params": [m.conv.weight, m.norm.weight]},
                  {"params": [*m.out.parameters(), *m.unused.parameters()], "momentum": 0.0}]  # fmt: skip
        return torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=0.1)

    torch.manual_seed(0)
    p = Pair(made, model=Partly().double())
    p.train(4)
    p.check()
    p.ours.conv.weight.requires_grad_(True)
    p.theirs.conv.weight.requires_grad_(True)
    p.train(3, 4)
    p.check()


def test_tied_weights() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(7, 6)
            self.out = torch.nn.Linear(6, 7, bias=False)
            self.out.weight = self.table.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.tanh(self.table(x)))

    torch.manual_seed(0)
    model = Tied().double()
    other = copy.deepcopy(model)
    a, b = (torch.optim.Adam(m.parameters(), lr=0.1) for m in (model, other))
    step = sh.TrainStep(model, CE, a)
    for _ in range(4):
        x, y = torch.randint(0, 7, (5,)), torch.randint(0, 7, (5,))
        loss = step(x, y)
        b.zero_grad()
        expected = CE(other(x), y)
        expected.backward()
        b.step()
        close(loss, expected.detach(), "loss")
    assert model.out.weight is model.table.weight
    same_state(model.state_dict(), other.state_dict())
    same_optimizer(a, b)


def test_train_and_eval_mode_and_sizes() -> None:
    p = Pair(sgd)
    p.train(2)
    p.ours.eval()
    p.theirs.eval()
    p.train(2, 2)
    p.ours.train()
    p.theirs.train()
    for i, n in enumerate((4, 5, 6, 7, 5)):
        p.both(4 + i, n=n)
    p.check()
    assert len(p.step.report().regions) <= 4


def test_dropout_advances_the_generator() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1)).double()
    step = sh.TrainStep(model, torch.nn.functional.mse_loss, torch.optim.SGD(model.parameters(), lr=0.0))
    x, y = torch.randn(4, 8).double(), torch.randn(4, 1).double()
    torch.manual_seed(3)
    first = [step(x, y).item() for _ in range(3)]
    torch.manual_seed(3)
    assert [step(x, y).item() for _ in range(3)] == first
    assert len(set(first)) == 3


def test_the_models_own_loss_metrics_and_targets() -> None:
    class Own(Net):
        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Any:
            logits = super().forward(x)
            return {"logits": logits, "loss": CE(logits, labels)}

    torch.manual_seed(0)
    own = Own().double()
    plain = copy.deepcopy(own)
    a, b = sgd(own), sgd(plain)
    step = sh.TrainStep(own, None, a)
    x, y = batch(0)
    loss = step(x, labels=y)
    expected = plain(x, y)["loss"]
    expected.backward()
    b.step()
    close(loss, expected.detach(), "loss")
    same_state(own.state_dict(), plain.state_dict())

    model = network()

    def weighted(out: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return CE(out, y, weight=w), {"right": (out.argmax(1) == y).sum(), "out": out}

    step = sh.TrainStep(model, weighted, sgd(model), targets=2)
    weights = torch.tensor([1.0, 2.0, 3.0]).double()
    out = copy.deepcopy(model)(x)
    loss, metrics = step(x, y, weights)
    close(loss, CE(out, y, weight=weights).detach(), "loss")
    close(metrics["out"], out.detach(), "metric")
    assert metrics["right"] == (out.argmax(1) == y).sum() and not metrics["out"].requires_grad

    model = network()
    step = sh.TrainStep(model, lambda out: out.square().mean(), sgd(model), targets=0)
    assert step(x).shape == ()


def test_parameters_of_the_loss_are_trained_too() -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = torch.nn.Parameter(torch.ones(()).double())

        def forward(self, out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return CE(out * self.temperature, y)

    model, loss_fn = network(), Scaled()
    step = sh.TrainStep(model, loss_fn, torch.optim.Adam([*model.parameters(), *loss_fn.parameters()], lr=0.1))
    before = loss_fn.temperature.item()
    step(*batch(0))
    assert loss_fn.temperature.item() != before


def test_versions_advance_so_that_autograd_notices() -> None:
    model = network()
    step = sh.TrainStep(model, CE, sgd(model))
    x, y = batch(0)
    step(x, y)
    loss = CE(model(x), y)
    step(x, y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_nan_is_what_the_ordinary_loop_makes_of_it() -> None:
    p = Pair(sgd)
    p.train(1)
    x, y = batch(1)
    x[0] = float("nan")
    ours, theirs = p.step(x, y), p.eager_step(x, y)
    assert torch.isnan(ours) and torch.isnan(theirs)
    for a, b in zip(p.ours.parameters(), p.theirs.parameters(), strict=True):
        assert torch.equal(torch.isnan(a), torch.isnan(b))


# bad input ----------------------------------------------------------------------------------------------------------------
def test_arguments_that_do_not_fit() -> None:
    model, other = network(), network()
    with pytest.raises(ValueError, match=r"group 0 holds a parameter of shape .* neither in the model nor in"):
        sh.TrainStep(model, CE, sgd(other))
    with pytest.raises(TypeError, match="the order is TrainStep"):
        sh.TrainStep(model, sgd(model), CE)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not function"):
        sh.TrainStep(lambda x: x, CE, sgd(model))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="loss_fn is a callable"):
        sh.TrainStep(model, 3, sgd(model))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="accumulate is at least 1"):
        sh.TrainStep(model, CE, sgd(model), accumulate=0)
    with pytest.raises(sh.Unsupported, match="wrapped in DataParallel"):
        sh.TrainStep(torch.nn.DataParallel(model), CE, sgd(model))
    step = sh.TrainStep(model, lambda out, y, w: CE(out, y), sgd(model), targets=2)
    with pytest.raises(TypeError, match="the last 2 positional arguments"):
        step(batch(0)[0])


@pytest.mark.parametrize(
    ("loss_fn", "says"),
    [
        (lambda out, y: CE(out, y, reduction="none"), r"a tensor of shape \(4,\)"),
        (lambda out, y: out.argmax(), "no floating-point tensor"),
        (lambda out, y: CE(out.detach(), y), "does not depend on any parameter"),
        (lambda out, y: 1.5, "of type float|no tensor that the model computes"),
        (lambda out, y: (None, out.sum()), "of type NoneType|no tensor that the model computes"),
    ],
)
def test_a_loss_that_is_none(loss_fn: Any, says: str) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(LossError, match=says):
        sh.TrainStep(model, loss_fn, sgd(model))(*batch(0))
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_an_error_of_the_model_is_raised_and_the_step_goes_on() -> None:
    p = Pair(sgd, strict=False)
    with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied|size mismatch|expected"):
        p.step(torch.randn(4, 2, 9, 9).double(), torch.zeros(4, dtype=torch.int64))
    p = Pair(sgd)
    p.train(2)
    p.check()


def test_copies_and_pickles_are_refused() -> None:
    model = network()
    step = sh.TrainStep(model, CE, sgd(model))
    step(*batch(0))
    for make in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            make(step)
    same_state(copy.deepcopy(model).state_dict(), model.state_dict())  # the model can
    pickle.dumps((model, step.optimizer))
