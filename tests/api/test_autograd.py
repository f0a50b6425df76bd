"""Gradients, hooks, modes: an optimized module behaves in autograd as the eager one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from api_compare import Pair, assert_same, loss
from test_calls import Net, randn
from torch import nn

import shorthaul as sh


def tanh_net(m: Net, x: Any) -> Any:
    return ((x * m.w).tanh() @ m.v).sigmoid()


def test_gradients_of_inputs() -> None:
    p = Pair(Net(tanh_net))
    p.step(randn(5, 8, grad=True))
    p.step(randn(5, 8))

    def through_inputs(m: nn.Module) -> Any:
        source = randn(5, 8, grad=True)
        loss(m(source.sin())).backward()
        return source.grad

    p.both(through_inputs)


def test_gradient_accumulation() -> None:
    p = Pair(Net(tanh_net))
    for n in (5, 5, 5):
        p.step(randn(n, 8))  # gradients are not cleared


def test_calling_twice_before_backward() -> None:
    p = Pair(Net(tanh_net))

    def twice(m: nn.Module) -> Any:
        first, second = m(randn(5, 8)), m(randn(5, 8) + 1)
        loss(second).backward()
        loss(first).backward()
        return first, second

    p.both(twice)

    def shared(m: nn.Module) -> Any:
        m.zero_grad()
        loss([m(m(randn(5, 8)).repeat(1, 2)), m(randn(5, 8))]).backward()

    p.both(shared)


def test_retain_graph() -> None:
    p = Pair(Net(tanh_net))

    def again(m: nn.Module) -> Any:
        total = loss(m(randn(5, 8)))
        total.backward(retain_graph=True)
        total.backward()

    p.both(again)
    total = loss(p.ours(randn(5, 8)))
    total.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        total.backward()


def test_freed_graph_names_the_region() -> None:
    def f(m: Net, x: Any) -> Any:
        return x * 2 * m.w.sum()

    m = sh.optimize(Net(f))
    y = m(randn(5, 8))
    y.backward(torch.ones_like(y))
    with pytest.raises(RuntimeError, match="second time"):
        y.backward(torch.ones_like(y))


def test_no_grad_and_inference_mode() -> None:
    p = Pair(Net(tanh_net))
    with torch.no_grad():
        p.both(lambda m: m(randn(5, 8)))
    p.step(randn(5, 8))
    with torch.inference_mode():
        p.both(lambda m: m(randn(5, 8)))
    p.step(randn(5, 8))


def test_no_grad_and_detach_inside() -> None:
    def f(m: Net, x: Any) -> Any:
        with torch.no_grad():
            h = (x * m.w).tanh()
        k = (x * m.w).sin()
        return (h * m.w + k.detach() * k) @ m.v, h, k.detach()

    Pair(Net(f)).step(randn(5, 8, grad=True))


def test_frozen_parameters() -> None:
    p = Pair(Net(tanh_net))
    for w, v in ((True, True), (False, True), (True, False), (True, True)):
        for m in (p.eager, p.ours):
            m.zero_grad()
            m.w.requires_grad_(w)
            m.v.requires_grad_(v)
        p.step(randn(5, 8, grad=True))
        assert (p.ours.w.grad is not None) == w and (p.ours.v.grad is not None) == v
    for m in (p.eager, p.ours):
        m.requires_grad_(False)
    p.both(lambda m: m(randn(5, 8)))


def test_gradient_is_none_where_nothing_flows() -> None:
    def f(m: Net, x: Any) -> Any:
        return (x * m.w).sum(-1), x @ m.v

    p = Pair(Net(f))

    def first_only(m: nn.Module) -> Any:
        m.zero_grad()
        loss(m(randn(5, 8))[0]).backward()
        assert m.v.grad is None

    p.both(first_only)

    def second_only(m: nn.Module) -> Any:
        m.zero_grad()
        loss(m(randn(5, 8))[1]).backward()
        assert m.w.grad is None

    p.both(second_only)


class _NoGradientForSecond(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Any, b: Any) -> Any:
        return a * 2 + b

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g * 2, None


def _overwritten(m: Net, x: Any) -> Any:
    y = m.w * 2
    y.copy_(x[0])
    return y + m.v.sum()


ZERO_DERIVATIVES = {
    "steps": lambda m, x: x.sum(-1, keepdim=True) * m.v.sum() + m.w.floor(),
    "signs, and a derivative": lambda m, x: (x @ m.v) * m.w.sign().sum() + m.v.round().sum(),
    "overwritten": _overwritten,
    "filled": lambda m, x: (x * m.w).fill_(2.0) + m.v.sum(),
    "grid of a nearest sample": lambda m, x: torch.nn.functional.grid_sample(
        x.reshape(1, 1, 5, 8), (m.w * 0.1).view(1, 2, 2, 2), "nearest", align_corners=False) * m.v.sum(),
    "a custom function that gives none": lambda m, x: _NoGradientForSecond.apply(x * m.v.sum(), m.w.sin()),
}  # fmt: skip


@pytest.mark.parametrize("name", ZERO_DERIVATIVES)
def test_gradients_are_zeros_or_none_as_in_eager(name: str) -> None:
    """Zeros where every derivative is zero: with weight decay such a parameter moves, one without a gradient does not."""
    p = Pair(Net(ZERO_DERIVATIVES[name]))

    def step(m: nn.Module) -> Any:
        loss(m(randn(5, 8, grad=True))).backward()
        torch.optim.SGD(m.parameters(), lr=0.1, weight_decay=0.5).step()
        return [q.grad for q in m.parameters()]

    p.both(step)


def test_autograd_grad_of_some_inputs() -> None:
    p = Pair(Net(tanh_net))

    def some(m: nn.Module) -> Any:
        x = randn(5, 8, grad=True)
        y = loss(m(x))
        first = torch.autograd.grad(y, [m.v], retain_graph=True)
        return first, torch.autograd.grad(y, [x, m.w])

    p.both(some)
    assert p.ours.w.grad is None


def test_tensor_and_parameter_hooks() -> None:
    p = Pair(Net(tanh_net))

    def hooked(m: nn.Module) -> Any:
        seen: list[Any] = []
        handles = [
            m.w.register_hook(lambda g: g * 2),
            m.v.register_hook(lambda g: seen.append(g.clone())),
            m.v.register_post_accumulate_grad_hook(lambda q: seen.append(q.grad.clone())),
        ]
        x = randn(5, 8, grad=True)
        x.register_hook(lambda g: seen.append(g.clone()))
        y = m(x)
        y.register_hook(lambda g: g + 0.5)
        loss(y).backward()
        for h in handles:
            h.remove()
        return sorted(seen, key=lambda t: t.sum().item())

    p.both(hooked)


def test_module_hooks() -> None:
    torch.manual_seed(0)
    p = Pair(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)), strict=False)

    def hooked(m: nn.Module) -> Any:
        seen: list[Any] = []
        handles = [
            m[1].register_forward_hook(lambda module, inputs, output: output * 2),
            m.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,)),
            m[0].register_full_backward_hook(lambda module, grad_in, grad_out: seen.append(grad_out[0].clone())),
            m.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().clone())),
        ]
        y = m(randn(5, 8))
        loss(y).backward()
        for h in handles:
            h.remove()
        return y, seen

    p.both(hooked)
    p.step(randn(5, 8))


def test_retain_grad_of_an_output() -> None:
    p = Pair(Net(tanh_net))

    def retained(m: nn.Module) -> Any:
        y = m(randn(5, 8))
        y.retain_grad()
        loss(y.sin()).backward()
        return y.grad

    p.both(retained)


def test_outputs_kept_and_changed_by_the_user() -> None:
    def f(m: Net, x: Any) -> Any:
        return (x * m.w) @ m.v, x * 3

    p = Pair(Net(f))

    def changed(m: nn.Module) -> Any:
        y, z = m(randn(5, 8))
        y.mul_(2.0)
        z.zero_()
        loss(y).backward()
        y.data.zero_()
        again, other = m(randn(5, 8))
        return y, z, again, other

    p.both(changed)


def test_saved_output_changed_before_backward_is_an_error_as_in_eager() -> None:
    def f(m: Net, x: Any) -> Any:
        return (x * m.w).softmax(-1)

    p = Pair(Net(f))
    for m in (p.eager, p.ours):
        y = m(randn(5, 8))
        y.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss(y).backward()


def test_parameter_changed_before_backward_is_an_error_as_in_eager() -> None:
    p = Pair(Net(tanh_net))
    for m in (p.eager, p.ours):
        y = loss(m(randn(5, 8)))
        with torch.no_grad():
            m.v.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


def test_memory_of_earlier_calls_is_not_reused_while_needed() -> None:
    p = Pair(Net(tanh_net))

    def run(m: nn.Module) -> Any:
        outputs = [m(randn(5, 8) + k) for k in range(6)]
        kept = [y.clone() for y in outputs]
        loss(outputs[::2]).backward()
        more = [m(randn(5, 8) - k) for k in range(6)]
        loss([*outputs[1::2], *more]).backward()
        assert all(torch.equal(y, k) for y, k in zip(outputs, kept, strict=True))
        return outputs

    p.both(run)


class Straight(torch.autograd.Function):
    """Rounds; the gradient goes straight through."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return g


class Reversal(torch.autograd.Function):
    """The identity whose gradient is reversed."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        return -ctx.scale * g, None


class ScaledSquare(torch.autograd.Function):
    """Two tensors, one saved, with a gradient that is not the true one."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
        ctx.save_for_backward(x)
        return x * x * y, x + y

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor, h: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return g * x * 7, h * x


def custom(m: Net, x: Any) -> Any:
    h = Straight.apply(x * m.w * 3)
    h = Reversal.apply(h, 0.5)
    a, b = ScaledSquare.apply(h.tanh(), x)
    return a @ m.v, b


def test_custom_autograd_functions() -> None:
    Pair(Net(custom)).step(randn(5, 8, grad=True))


def test_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
            self.decode.weight = self.encode.weight

        def forward(self, x: Any) -> Any:
            return self.decode(self.encode(x).tanh())

    torch.manual_seed(0)
    p = Pair(Tied())
    p.step(randn(5, 8))
    p.step(randn(5, 8))
    assert p.ours.encode.weight is p.ours.decode.weight


def checkpointed(m: Net, x: Any) -> Any:
    def inner(x: Any, w: Any) -> Any:
        h = (x * w).softmax(-1)
        h = torch.nn.functional.dropout(h.logsumexp(-1, keepdim=True) * h, 0.5) if m.training else h
        return (h @ m.v).softmax(-1).cumsum(0)

    h = torch.utils.checkpoint.checkpoint(inner, x.sin(), m.w, use_reentrant=False)
    return h.softmax(0) * 2


def saved_by(program: Any) -> dict[str, Any]:
    """What the forward phase computes and the backward phase reads: container -> the node that writes it."""
    written = {c: n for n in program.nodes if n.phase == "forward" for c in program.writes_of(n)}
    return {c: written[c] for n in program.nodes if n.phase == "backward" for c in program.reads_of(n) if c in written}


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_regions(reentrant: bool) -> None:
    def inner(x: Any, w: Any) -> Any:
        return (x * w).tanh().softmax(-1).sin()

    def f(m: Net, x: Any) -> Any:
        h = torch.utils.checkpoint.checkpoint(inner, x, m.w, use_reentrant=reentrant)
        return h @ m.v

    Pair(Net(f), strict=False).step(randn(5, 8, grad=True))


def test_checkpointed_values_are_not_saved() -> None:
    from shorthaul.transforms.level4_global.checkpoint import Checkpoint

    m = Net(checkpointed)
    program = sh.capture(m, (randn(5, 8, grad=True),))
    region = set(program.attributes["checkpoint"])
    assert region & set(saved_by(program)), "without the transformation the region's values are saved"
    (match,) = Checkpoint().matches(program)
    assert Checkpoint().try_apply(match)
    assert not region & set(saved_by(program))
    (match,) = Checkpoint().matches(program)
    assert not Checkpoint().try_apply(match), "there is nothing left to compute again"


def test_checkpointed_gradients() -> None:
    p = Pair(Net(checkpointed))
    for m in (p.eager, p.ours):
        m.eval()
    for n in (5, 3, 6):
        p.step(randn(n, 8, grad=True))


def test_checkpointed_dropout_draws_the_same_mask_again() -> None:
    """The gradient of a sum of dropped values is 0 where they were dropped and 2 where they were kept."""

    def inner(x: Any) -> Any:
        return torch.nn.functional.dropout(x.exp().log(), 0.5)

    def f(m: Net, x: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(inner, x, use_reentrant=False)

    m = sh.optimize(Net(f), strict=True)
    x = (randn(50, 8).abs() + 1).requires_grad_()
    y = m(x)
    y.sum().backward()
    assert torch.allclose(x.grad, y / x)
    assert 0 < (x.grad == 0).sum() < x.numel()


def test_higher_order_gradients_are_refused() -> None:
    m = sh.optimize(Net(tanh_net))
    x = randn(5, 8, grad=True)
    with pytest.raises(RuntimeError, match=r"create_graph=True.*test_autograd\.py:\d+.*disable"):
        torch.autograd.grad(m(x).sum(), [x], create_graph=True)
    torch.autograd.grad(m(x).sum(), [x])


def test_gradients_are_handed_over_without_a_copy() -> None:
    """The tensor that the backward phase allocates becomes `.grad` itself."""
    m = sh.optimize(Net(tanh_net))
    pointers = []
    m.v.register_hook(lambda g: pointers.append(g.data_ptr()))
    loss(m(randn(5, 8))).backward()
    assert m.v.grad.data_ptr() == pointers[0]


def test_saved_memory_is_freed_by_backward() -> None:
    from shorthaul.runtime.memory import ARENAS

    def f(m: Net, x: Any) -> Any:
        return (x @ m.v).cumsum(0).logsumexp(1).sin()

    m = sh.optimize(Net(f))
    kept = []
    for _ in range(12):
        y = m(randn(500, 8))
        y.sum().backward()
        kept.append(y)  # the outputs live on, what was saved for them does not
    assert len(ARENAS._free) < 12
    assert_same(kept[0].detach(), kept[-1].detach())


class Deep(nn.Module):
    """Enough parameters that the backward phase is cut into parts."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(400, 400) for _ in range(6))

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x).tanh()
        return x


def test_gradients_arrive_in_parts() -> None:
    torch.manual_seed(0)
    p = Pair(Deep())
    p.step(randn(3, 400, grad=True))

    def order(m: nn.Module) -> Any:
        seen: list[str] = []
        handles = [q.register_post_accumulate_grad_hook(lambda _, n=n: seen.append(n)) for n, q in m.named_parameters()]
        live = []
        first = next(iter(m.parameters()))
        handles.append(dict(m.named_parameters())["layers.5.weight"].register_hook(lambda g: live.append(first.grad is None)))
        m.zero_grad()
        loss(m(randn(3, 400))).backward()
        for h in handles:
            h.remove()
        assert live == [True], "the first layer's gradient must come after the last one's"
        return [n for n in seen if n.endswith("weight")]

    p.both(order)


def test_parts_of_several_calls_interleave() -> None:
    torch.manual_seed(0)
    p = Pair(Deep())

    def run(m: nn.Module) -> Any:
        x = randn(3, 400, grad=True)
        a, b = m(x), m(x + 1)
        h = m.layers[3].weight.register_hook(lambda g: loss(m(randn(3, 400))).detach() * g / 10)  # runs the module between two parts
        total = loss([a, b])
        first = torch.autograd.grad(total, [m.layers[5].weight], retain_graph=True)
        total.backward(retain_graph=True)
        total.backward()
        h.remove()
        return first, x.grad

    p.both(run)


class Remembers(nn.Module):
    """Computes with what it makes of a buffer."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.w, self.make = nn.Parameter(torch.linspace(0.5, 1.5, 8)), make
        self.register_buffer("memory", torch.linspace(-1, 1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.make(self.memory) * self.w * x).sin()


@pytest.mark.parametrize("make", [torch.clone, lambda b: b * 2, lambda b: b.flip(0), lambda b: b.view(2, 4).exp().flatten()])
def test_a_buffer_that_eager_mode_does_not_save_may_change_before_backward(make: Any) -> None:
    p = Pair(Remembers(make))

    def run(m: Any) -> Any:
        y = m(randn(3, 8))
        with torch.no_grad():
            m.memory.mul_(0.5)
        y.sum().backward()
        return y

    for _ in range(2):
        p.both(run)


@pytest.mark.parametrize("make", [lambda b: b, lambda b: b.view(2, 4).flatten()])
def test_a_buffer_that_eager_mode_saves_must_not_change_before_backward(make: Any) -> None:
    p = Pair(Remembers(make))
    for m in (p.eager, p.ours):
        y = m(randn(3, 8))
        with torch.no_grad():
            m.memory.mul_(0.5)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
