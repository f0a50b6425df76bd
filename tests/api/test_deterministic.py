"""`torch.use_deterministic_algorithms`: what is captured under it gives the same bits at every run. (Kernels for a GPU are tested in
codegen/triton_ordered.py; a CPU's need no other form.)"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import shorthaul as sh
from shorthaul import pipeline
from shorthaul.codegen.library.attention import _by_cudnn
from shorthaul.config import Options
from shorthaul.ir.nodes import LibraryCall
from shorthaul.ir.serialize import from_json, to_json
from shorthaul.runtime.artifact import artifact_key


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch._dynamo.reset()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


class Scattering(nn.Module):
    """Sums by index, forward and backward, and of windows and places between pixels, large enough to be shared out among threads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.scale = nn.Embedding(50, 16), nn.Parameter(torch.randn(16))

    def forward(self, i: Tensor, x: Tensor) -> Tensor:
        rows = self.table(i) * self.scale
        sums = torch.zeros(40, 16, dtype=x.dtype).index_add(0, i % 40, torch.sin(rows))
        places = (i % 7)[:, None].expand_as(rows)
        means = torch.zeros(40, 16, dtype=x.dtype).scatter_reduce(0, places, rows * rows, "mean", include_self=False)
        y = F.interpolate(F.max_pool2d(x, 3, 1), scale_factor=1.7, mode="bilinear")
        grid = torch.tanh(y[:, :2]).permute(0, 2, 3, 1)
        return (sums * means).square().sum() + F.grid_sample(x, grid, align_corners=False).square().sum()


def gradients(m: nn.Module, i: Tensor, x: Tensor) -> list[Tensor]:
    loss = m(i, x)
    return [loss.detach(), *torch.autograd.grad(loss, [*m.parameters(), x])]


def inputs() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randint(0, 50, (20_000,), generator=g), torch.randn(4, 3, 40, 40, generator=g).requires_grad_()


@pytest.mark.parametrize("level", [0, 4])
def test_a_cpu_gives_the_same_bits_with_any_number_of_threads(level: int) -> None:
    torch.use_deterministic_algorithms(True)
    i, x = inputs()
    m = sh.optimize(Scattering(), level=level, strict=True)
    torch.set_num_threads(1)
    first = gradients(m, i, x)
    for threads in (2, 1, 2):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(m, i, x), strict=True)), threads
    exact = gradients(Scattering().double(), i, x.detach().double().requires_grad_())
    for a, b in zip(first, exact, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()  # sums of float32 that cancel


def embedded(i: Tensor, w: Tensor) -> Tensor:
    return F.embedding(i, w).square().sum()


def captured() -> sh.Program:
    return sh.capture(embedded, (torch.tensor([1, 1, 3]), torch.randn(5, 4, requires_grad=True)))


def test_programs_know_the_setting_under_which_they_were_captured() -> None:
    plain = captured()
    torch.use_deterministic_algorithms(True)
    ordered = captured()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert captured().deterministic and ordered.deterministic and not plain.deterministic
    assert artifact_key(plain) != artifact_key(ordered)
    assert from_json(to_json(ordered)).deterministic and ordered.clone().deterministic


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_gpus_programs_sort_what_they_add(deterministic: bool) -> None:
    torch.use_deterministic_algorithms(deterministic)
    p = captured()
    torch.use_deterministic_algorithms(False)  # the program remembers
    pipeline.optimize(p, Options(target="triton"), check=True)
    calls = [n for n in p.nodes if isinstance(n, LibraryCall) and n.function == "ordered_sum"]
    assert len(calls) == deterministic
    assert all("test_deterministic.py" in c.attributes["where"] for c in calls)


def test_bodies_of_loops_know_it_too() -> None:
    class Repeated(nn.Module):
        def forward(self, x: Tensor, i: Tensor) -> Tensor:
            def body(n: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
                return n + 1, torch.zeros_like(x).index_add(0, i, x)

            return torch.ops.higher_order.while_loop(lambda n, x: n < 3, body, (torch.tensor(0), x), ())[1]

    torch.use_deterministic_algorithms(True)
    p = sh.capture(Repeated(), (torch.randn(3, 4), torch.tensor([0, 0, 1])), train=False)
    pipeline.optimize(p, Options(target="triton"), check=True)
    (loop,) = [n for n in p.nodes if n.kind == "loop"]
    assert any(isinstance(n, LibraryCall) and n.function == "ordered_sum" for n in loop.bodies[0].nodes)


def test_compiles_anew_when_the_setting_changes() -> None:
    m = sh.optimize(Scattering(), strict=True)
    i, x = inputs()
    found = []
    for setting in (False, True, False):
        torch.use_deterministic_algorithms(setting)
        gradients(m, i[:50], x)
        found.append(len(m.report().regions))
    assert found == [1, 2, 2]


def test_cudnn_attention_is_not_deterministic() -> None:
    class Attention(nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, q, q)

    for setting in (True, False):
        torch.use_deterministic_algorithms(setting)
        p = sh.capture(Attention(), (torch.randn(2, 2, 8, 8, dtype=torch.bfloat16, requires_grad=True),))
        pipeline.optimize(p, Options(target="triton"))
        found = [n.attributes for n in p.nodes if isinstance(n, LibraryCall) and n.function.startswith("gpu_flash_attention")]
        assert [a["deterministic"] for a in found] == [setting, setting]
    assert not _by_cudnn(torch.empty(1), {"deterministic": True})


# refusals ---------------------------------------------------------------------------------------------------------------
@torch.library.custom_op("test_deterministic::unordered", mutates_args=())
def unordered(x: Tensor) -> Tensor:
    """What PyTorch's own kernels without a fixed order do first."""
    text = "unordered does not have a deterministic implementation, but you set 'torch.use_deterministic_algorithms(True)'. warn_only=True"
    if torch.is_deterministic_algorithms_warn_only_enabled():
        warnings.warn(text, stacklevel=1)
    elif torch.are_deterministic_algorithms_enabled():
        raise RuntimeError(text)
    return x + 1


@unordered.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Unordered(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return unordered(x * 2)


def test_a_library_call_without_an_order_is_refused_with_its_line() -> None:
    torch.use_deterministic_algorithms(True)
    m: Any = sh.optimize(Unordered())
    with pytest.raises(RuntimeError, match=r"does not have a deterministic implementation.*warn_only=True") as caught:
        m(torch.ones(3))
    assert any("test_deterministic.py" in note for note in caught.value.__notes__)


def test_with_warn_only_it_warns() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    m: Any = sh.optimize(Unordered())
    with pytest.warns(UserWarning, match="does not have a deterministic implementation"):
        assert torch.equal(m(torch.ones(3)), torch.full((3,), 3.0))
