"""`torch.vmap` and `associative_scan` inside optimized modules: kernels over whole batches, as in eager mode."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from api_compare import Pair
from test_calls import Net, randn
from torch import Tensor, nn
from torch._higher_order_ops.associative_scan import associative_scan, associative_scan_op
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import shorthaul as sh
from shorthaul.testing import sample

FLOAT = torch.float64


def of_rows(m: Net, x: Tensor) -> Any:
    """Products with what is batched on either side, on both, and on none."""
    return torch.vmap(lambda r: ((r * m.w) @ m.v, m.v.T @ r, r @ r, torch.outer(r, r).softmax(-1), r[:3].expand(2, 3)))(x)


def of_columns(m: Net, x: Tensor) -> Any:
    return torch.vmap(lambda c, n: (c * n).cumsum(0), in_dims=(1, 0), out_dims=1)(x, m.w)


def nested(m: Net, x: Tensor) -> Any:
    """All pairs."""
    return torch.vmap(lambda a: torch.vmap(lambda b: (a - b).square().sum().neg().exp() * m.w)(x))(x)


def layers(m: Net, x: Tensor) -> Any:
    def one(r: Tensor) -> Tensor:
        y = F.layer_norm(F.linear(r, m.v.T, m.w[:4]), (4,))
        y = F.gelu(F.conv1d(y[None], m.w[None, None, :3], padding=1))
        return F.scaled_dot_product_attention(y[..., None], y[..., None] * 2, y[..., None], is_causal=True)

    return torch.vmap(one)(x)


def written(m: Net, x: Tensor) -> Any:
    def one(r: Tensor) -> Tensor:
        y = r * m.w
        y[2:4].mul_(2)
        y.add_(1)
        return y.sin()

    return torch.vmap(one)(x)


def detached(m: Net, x: Tensor) -> Any:
    """What is no part of the gradient inside a vmap stays none."""

    def one(r: Tensor) -> Tensor:
        y = r * m.w
        with torch.no_grad():
            scale = y.abs().max()
            other = y[2:] * 2
        return y / scale + y.detach().sum() + other.sum()

    return torch.vmap(one)(x)


def picked(m: Net, x: Tensor) -> Any:
    index = x.argmax(1)
    return torch.vmap(lambda r, i: (r * m.w)[i] + F.one_hot(i, 8) * F.cross_entropy(r * m.w, i))(x, index)


def in_chunks(m: Net, x: Tensor) -> Any:
    return torch.vmap(lambda r: (r * m.w).tanh() @ m.v, chunk_size=2)(x)


def under_a_checkpoint(m: Net, x: Tensor) -> Any:
    return checkpoint(lambda x: torch.vmap(lambda r: (r * m.w).tanh() @ m.v)(x), x, use_reentrant=False)


def recurrence(m: Net, x: Tensor) -> Any:
    """A selective state space: h[t] = a[t] h[t-1] + b[t]."""

    def combine(p: Any, q: Any) -> Any:
        return p[0] * q[0], q[0] * p[1] + q[1]

    y = x * m.w
    return associative_scan(combine, (y.sigmoid(), y.sin()), 0, combine_mode="generic")


def backwards(m: Net, x: Tensor) -> Any:
    return associative_scan(torch.logaddexp, x * m.w, -1, reverse=True, combine_mode="generic")


def matrices(m: Net, x: Tensor) -> Any:
    """Products of matrices: what combines is not pointwise."""
    return associative_scan(lambda a, b: a @ b, (x * m.w)[:, :4].reshape(-1, 2, 2), 0, combine_mode="generic")


USES = [of_rows, of_columns, nested, layers, written, detached, picked, in_chunks, under_a_checkpoint, recurrence, backwards, matrices]


@pytest.mark.parametrize("f", sample(USES, 6))
def test_trains_as_in_eager_mode(f: Callable[..., Any]) -> None:
    p = Pair(Net(f))
    for _ in range(2):
        p.step(randn(5, 8, grad=True))
    (region,) = p.regions
    assert not region.graph_break and not region.fallbacks


class Ensemble(nn.Module):
    """Members as one batch: what `torch.func.stack_module_state` is for."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()

        def member() -> nn.Module:
            return nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(32, 2))

        members = [member() for _ in range(count)]
        self.parameters_of_members = nn.ParameterDict({n.replace(".", "/"): p.detach() for n, p in stack_module_state(members)[0].items()})
        self.__dict__["one"] = copy.deepcopy(members[0]).to("meta")

    def forward(self, x: Tensor) -> Tensor:
        named = {n.replace("/", "."): p for n, p in self.parameters_of_members.items()}
        return torch.vmap(lambda p: functional_call(self.one, p, (x,)))(named)


def test_an_ensemble_trains() -> None:
    torch.manual_seed(0)
    p = Pair(Ensemble())
    optimizers = [torch.optim.Adam(m.parameters(), 1e-2, eps=1e-4) for m in (p.eager, p.ours)]
    for _ in range(4):
        p.step(randn(6, 1, 8))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    (region,) = p.regions
    assert set(region.library_calls) <= {"contract", "aten::convolution", "aten::conv_grad_input", "aten::conv_grad_weight"}


def test_sizes_become_symbolic() -> None:
    p = Pair(Net(of_rows))
    for n in (5, 3, 9, 4):
        p.step(randn(n, 8, grad=True))
    assert len(p.regions) == 2


def test_scans_of_changing_length() -> None:
    p = Pair(Net(recurrence))
    for n in (6, 5, 9, 1):
        p.step(randn(n, 8, grad=True))
    assert not any(r.graph_break or r.fallbacks for r in p.regions)


def test_without_gradients() -> None:
    p = Pair(Net(recurrence))

    def run(m: Any) -> Any:
        with torch.no_grad():
            return m(randn(5, 8, grad=True))

    p.both(run)
    assert not any(n.phase == "backward" for n in p.regions[0].program.nodes)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_dropout_has_one_mask_forward_and_backward(randomness: str) -> None:
    m = sh.optimize(Net(lambda m, x: torch.vmap(lambda r: F.dropout(r * m.w, 0.5), randomness=randomness)(x)), strict=True)
    x = torch.ones(64, 8, dtype=FLOAT, requires_grad=True)
    y = m(x)
    y.sum().backward()
    kept = y.detach() != 0
    torch.testing.assert_close(x.grad, torch.where(kept, 2 * m.w.detach(), 0.0))
    rows = {tuple(row.tolist()) for row in kept}
    assert len(rows) == 1 if randomness == "same" else len(rows) > 30
    assert randomness == "same" or 0.35 < kept.double().mean() < 0.65


def test_the_operator_for_pointwise_scans() -> None:
    """In combine_mode="pointwise", which PyTorch has for GPUs only, the scan comes as one operator."""
    from shorthaul.frontends.functional import functionalize

    graph = torch.fx.Graph()
    places = [graph.placeholder(n) for n in "abw"]
    body = torch.fx.symbolic_trace(lambda a, b, c, d, w: (a * c, c * b * w + d))
    root = nn.Module()
    root.combine = body
    scanned = graph.call_function(associative_scan_op, (graph.get_attr("combine"), tuple(places[:2]), (places[2],)))
    graph.output((graph.call_function(lambda pair: pair[1], (scanned,)),))
    inputs = [torch.rand(7, 3, dtype=FLOAT), torch.rand(7, 3, dtype=FLOAT), torch.rand(3, dtype=FLOAT)]
    (wanted,) = torch.fx.GraphModule(root, graph)(*inputs)
    assert torch.equal(functionalize(torch.fx.GraphModule(root, graph), inputs).module()(*inputs)[0], wanted)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, dtype=FLOAT))
        self.register_buffer("mean", torch.zeros(3, 4, dtype=FLOAT))
        self.register_buffer("variance", torch.ones(3, 4, dtype=FLOAT))

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda x, m, v: F.batch_norm(x * self.scale, m, v, training=self.training))(x, self.mean, self.variance)


@pytest.mark.filterwarnings("ignore::shorthaul.FallbackWarning")
def test_running_statistics_are_left_to_eager_mode() -> None:
    p = Pair(Normed(), strict=False)
    p.step(randn(3, 6, 4, grad=True))
    assert "running statistics" in p.regions[0].fallback
    p.eager.eval()
    p.ours.eval()
    p.step(randn(3, 6, 4, grad=True))
    assert not p.regions[-1].fallback


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda m, x: torch.vmap(lambda r: F.dropout(r * m.w))(x), "randomness"),
        (lambda m, x: torch.vmap(torch.func.grad(lambda r: (r * m.w).sin().sum()))(x), "torch.func transformations"),
        (lambda m, x: torch.func.jvp(lambda x: x * m.w, (x,), (x,))[1], "torch.func transformations"),
        (lambda m, x: torch.vmap(lambda r: torch.cond(r.sum() > 0, lambda r: r * m.w, lambda r: r, (r,)))(x), "inside a vmap"),
    ],
)
def test_what_is_refused_closes_its_levels(f: Callable[..., Any], words: str) -> None:
    with pytest.raises(sh.Unsupported, match=rf"(?s){words}.*test_vmap.py"):
        sh.capture(Net(f), (randn(5, 8),))
    assert torch._C._functorch.get_dynamic_layer_stack_depth() == 0
    assert not torch._is_functional_tensor(torch.ones(2) + 1)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):  # as for checkpoints
        pass


@pytest.mark.parametrize(("transform", "name"), [(torch.vmap, "torch.vmap"), (torch.func.jacrev, "torch.func.grad")])
def test_a_transformation_around_an_optimized_module_runs_it_in_eager_mode(transform: Any, name: str) -> None:
    m = Net(recurrence).double()
    ours = sh.optimize(copy.deepcopy(m))
    x = randn(3, 5, 8)
    with pytest.warns(sh.FallbackWarning, match=f"Net was called inside {name}"):
        found = transform(ours)(x)
    for a, b in zip(found, transform(m)(x), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(ours(x), m(x), strict=True):  # calls outside it are compiled as ever
        torch.testing.assert_close(a, b)
    assert ours.report().regions
    with pytest.raises(sh.Unsupported, match=f"Net was called inside {name}"):
        transform(sh.optimize(copy.deepcopy(m), strict=True))(x)
