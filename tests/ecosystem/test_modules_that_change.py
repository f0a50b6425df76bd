"""Modules that are copied, stored, changed, shared, interrupted, and used from several places."""

from __future__ import annotations

import copy
import io
import os
import threading
from typing import Any

import pytest
import torch
from ecosystem import Net, agree, batch, close, compiled, mlp, step, twins
from torch import nn
from torch.func import functional_call

import shorthaul as sh
import shorthaul.api
from shorthaul.errors import FallbackWarning


def test_state_moves_between_plain_and_optimized_modules() -> None:
    eager, ours = twins(Net)
    step(ours, batch())
    assert list(ours.state_dict()) == list(eager.state_dict())
    for assign in (False, True):
        other = Net().double()
        ours.load_state_dict(other.state_dict(), assign=assign)
        eager.load_state_dict(other.state_dict())
        for m in (eager, ours):
            m.zero_grad()
            step(m, batch(1))
        agree(eager, ours)
        eager.load_state_dict(ours.state_dict())
    compiled(ours)


def test_copies_and_files_are_plain_modules_with_the_same_state() -> None:
    _, ours = twins(Net)
    step(ours, batch())
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for twin in (copy.deepcopy(ours), torch.load(file, weights_only=False)):
        assert type(twin) is Net and "not optimized" in str(twin.report())
        twin.zero_grad()
        ours.zero_grad()
        ours.load_state_dict(twin.state_dict())
        assert list(twin.state_dict()) == list(ours.state_dict())
        for m in (ours, sh.optimize(twin)):
            step(m, batch(1))
        agree(ours, twin)
        compiled(twin)


def test_weights_tied_after_the_first_call() -> None:
    pair = twins(Net, torch.float64)
    for m in pair:
        m.head = nn.Linear(8, 8, dtype=torch.float64)
        m.head.load_state_dict(m.first.state_dict())
        step(m, batch())
        m.head.weight = m.first.weight
        m.zero_grad()
        step(m, batch())
    agree(*pair)


def test_head_replaced_after_the_first_call() -> None:
    pair = twins(Net)
    for m in pair:
        step(m, batch())
        torch.manual_seed(1)
        m.head = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 2)).double()
        m.zero_grad()
        step(m, batch())
    agree(*pair)
    assert len(compiled(pair[1])) == 2 and not pair[1].report().unused


def test_dtype_changed_after_the_first_call() -> None:
    pair = twins(Net)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5), (torch.float64, 1e-5)):
        for m in pair:
            m.to(dtype)
            m.zero_grad()
            step(m, batch(dtype=dtype))
        agree(*pair, tolerance)


def test_disabled_layers_of_a_sequential_stay_eager_and_the_others_are_compiled() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 8), mlp(8), nn.Tanh())
            self.head = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x)).sin()

    torch.manual_seed(0)
    eager = Deep().double()
    ours = copy.deepcopy(eager)
    sh.disable(ours.body[1][2])
    sh.optimize(ours)
    for m in (eager, ours):
        step(m, batch())
        m.body[1][3].weight.data.mul_(2)
        step(m, batch())
    agree(eager, ours)
    assert ours.report().unused == ["body.1.2.weight", "body.1.2.bias"]
    for m in (eager, ours):
        m.body.append(nn.Tanh())
        handle = m.body.register_forward_hook(lambda module, inputs, output: output * 2)
        step(m, batch())
        handle.remove()
    agree(eager, ours)


def test_two_networks_and_two_optimizers_that_share_a_graph() -> None:
    """A generator and a discriminator in turn, with detach between them."""
    results = []
    for optimized in (False, True):
        torch.manual_seed(0)
        maker = mlp(4).double()
        critic = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(), nn.Linear(8, 1)).double()
        if optimized:
            sh.optimize(maker)
            sh.optimize(critic)
        judge = nn.BCEWithLogitsLoss()
        ones, zeros = torch.ones(5, 1).double(), torch.zeros(5, 1).double()
        of_maker, of_critic = torch.optim.Adam(maker.parameters(), 1e-2), torch.optim.Adam(critic.parameters(), 1e-2)
        for k in range(4):
            made = maker(batch(k))
            of_critic.zero_grad()
            (judge(critic(batch(k + 50, 5, 4)), ones) + judge(critic(made.detach()), zeros)).backward()
            of_critic.step()
            of_maker.zero_grad()
            judge(critic(made), ones).backward()
            of_maker.step()
        results.append((maker, critic))
    for eager, ours in zip(*results, strict=True):
        agree(eager, ours, 1e-8)
        compiled(ours)


def test_optimized_modules_that_share_a_part() -> None:
    pairs = []
    for optimized in (False, True):
        torch.manual_seed(0)
        body = mlp(8).double()
        first, second = (nn.Sequential(body, nn.Linear(8, n).double()) for n in (2, 3))
        if optimized:
            sh.optimize(first)
            sh.optimize(second)
        (first(batch()).sum() + second(batch()).square().sum()).backward()
        pairs.append((first, second))
    for eager, ours in zip(*pairs, strict=True):
        agree(eager, ours)


def test_functional_call_with_other_parameters() -> None:
    found = []
    for m in twins(Net):
        parameters = {n: (p.detach() * 2).requires_grad_() for n, p in m.named_parameters()}
        loss = functional_call(m, parameters, (batch(),)).square().mean()
        found.append((loss, *torch.autograd.grad(loss, list(parameters.values()))))
        assert m.first.weight.grad is None
    for a, b in zip(*found, strict=True):
        close(b, a)


def test_inference_mode_between_training_steps() -> None:
    pair = twins(Net)
    for m in pair:
        step(m, batch())
        m.eval()
        with torch.inference_mode():
            assert m(batch()).is_inference()
        m.train()
        step(m, batch())
    agree(*pair)


def test_several_threads() -> None:
    eager, ours = twins(Net)
    eager.eval()
    ours.eval()
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for k in range(10):
                x, y = (batch(100 * seed + k).requires_grad_() for _ in range(2))
                close(torch.autograd.grad(ours(x).square().sum(), x)[0], torch.autograd.grad(eager(y).square().sum(), y)[0])
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures, failures[0]


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> torch.Tensor:
        return batch(i, 1)[0]


def test_data_loader_with_worker_processes() -> None:
    pair = twins(Net)
    for m in pair:
        optimizer = torch.optim.SGD(m.parameters(), 0.01)
        for _ in range(2):
            for x in torch.utils.data.DataLoader(Rows(), batch_size=5, num_workers=1):
                optimizer.zero_grad()
                step(m, x)
                optimizer.step()
    agree(*pair)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.skipif(torch.version.cuda is not None, reason="autograd of a PyTorch built for CUDA refuses to run in a forked process")
def test_child_process_calls_the_model() -> None:
    _, ours = twins(Net)
    expected = step(ours, batch())
    ours.zero_grad()
    child = os.fork()
    if child == 0:
        ok = False
        try:
            ok = torch.allclose(step(ours, batch()), expected)
        finally:
            os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
    step(ours, batch())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_training_goes_on_after_an_error(error: type[BaseException]) -> None:
    """In the middle of forward (after a compiled part ran), and in a hook in the middle of backward."""

    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.bad = mlp(8), mlp(), False

        @torch.compiler.disable
        def check(self) -> None:
            if self.bad:
                raise error("midway")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            self.check()
            return self.second(x)

    def fail(grad: Any) -> None:
        raise error("in a hook")

    pair = twins(Fails)
    for m in pair:
        step(m, batch())
        m.bad = True
        with pytest.raises(error, match="midway"):
            step(m, batch())
        m.bad = False
        step(m, batch(1))
        handle = m.second[0].weight.register_hook(fail)
        with pytest.raises(error, match="in a hook"):
            step(m, batch())
        handle.remove()
        m.zero_grad()
        step(m, batch(2))
    agree(*pair)
    compiled(pair[1])


def test_tensor_subclasses_run_visibly_in_eager_mode() -> None:
    class Marked(torch.Tensor):
        pass

    eager, ours = twins(mlp)
    with pytest.warns(sh.FallbackWarning, match=r"Marked; tensor subclasses are not supported"):
        y = ours(batch().as_subclass(Marked))
    assert type(y) is Marked
    close(y.as_subclass(torch.Tensor), eager(batch()))
    with pytest.raises(Exception, match="tensor subclasses are not supported"):
        twins(mlp, strict=True)[1](batch().as_subclass(Marked))


def test_unfreezing_that_pytorch_does_not_notice_runs_in_eager_mode() -> None:
    """PyTorch 2.11 has no guard for a parameter that is unfrozen; here the compiled graph is called past its guards."""
    found: list[Any] = []

    def backend(gm: torch.fx.GraphModule, examples: list[Any]) -> Any:
        compiled = sh.api.backend(gm, examples)

        def call(*inputs: Any) -> Any:
            found.append((compiled, inputs))
            return compiled(*inputs)

        return call

    model = nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    torch.compile(lambda x: model(x).sin(), backend=backend)(torch.ones(4, 3))
    compiled, inputs = found[0]
    model.weight.requires_grad_(True)
    with pytest.warns(FallbackWarning, match="unfrozen"):
        (y,) = compiled(*inputs)
    y.sum().backward()
    got = model.weight.grad.clone()
    model.zero_grad()
    model(torch.ones(4, 3)).sin().sum().backward()
    torch.testing.assert_close(got, model.weight.grad)
