"""Layers, losses and idioms of all kinds through the front door, against eager in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_functional_networks import against_eager
from torch import nn
from torch.nn.utils import parametrizations

from shorthaul.testing.sampling import sample


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


class Apply(nn.Module):
    """A function as a module; `module` holds parameters for it."""

    def __init__(self, function, module=None):
        super().__init__()
        self.function, self.module = function, module

    def forward(self, *args, **kwargs):
        return (
            self.function(self.module, *args, **kwargs) if self.module is not None else self.function(*args, **kwargs)
        )


def image(*shape):
    return torch.randn(*(shape or (2, 4, 9, 8)))


def extent(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(x.aminmax()) if torch.__version__ >= "2.12" else ()  # which has no derivative before


MODULES = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, 2, 1), image(2, 4, 9)),
    "conv2d_same": (lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=2), image()),
    "conv2d_reflect": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), image()),
    "conv2d_groups": (lambda: nn.Conv2d(4, 8, 3, groups=4), image()),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), image(1, 2, 4, 4, 4)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 3, 3, 2, 1, 1), image()),
    "unbatched_conv": (lambda: nn.Conv2d(4, 3, 3), image(4, 8, 8)),
    "max_pool1d": (lambda: nn.MaxPool1d(2), image(2, 4, 8)),
    "max_pool2d_indices": (lambda: nn.MaxPool2d(2, return_indices=True), image(2, 4, 8, 8)),
    "max_pool3d": (lambda: nn.MaxPool3d(2), image(2, 4, 4, 4, 4)),
    "adaptive_pools": (lambda: Apply(lambda x: F.adaptive_max_pool2d(x, 3) + F.adaptive_avg_pool2d(x, 3)), image()),
    "lp_pool": (lambda: nn.LPPool2d(2, 2), image()),
    "batch_norm1d": (lambda: nn.BatchNorm1d(4), image(3, 4)),
    "batch_norm_no_affine": (lambda: nn.BatchNorm2d(4, affine=False), image()),
    "batch_norm_no_stats": (lambda: nn.BatchNorm2d(4, track_running_stats=False), image()),
    "batch_norm3d_eval": (lambda: nn.BatchNorm3d(4).eval(), image(2, 4, 3, 3, 3)),
    "batch_norm_frozen": (lambda: nn.BatchNorm2d(4).requires_grad_(False), image()),
    "instance_norm": (lambda: nn.InstanceNorm2d(4, affine=True), image()),
    "instance_norm_stats": (lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), image()),
    "instance_norm_eval": (lambda: nn.InstanceNorm2d(4, track_running_stats=True).eval(), image()),
    "group_norm": (lambda: nn.GroupNorm(2, 4), image()),
    "layer_norm": (lambda: nn.LayerNorm((9, 8)), image()),
    "rms_norm": (lambda: nn.RMSNorm(8), image()),
    "local_response_norm": (lambda: nn.LocalResponseNorm(2), image()),
    "prelu": (lambda: nn.PReLU(4), image()),
    "glu": (lambda: nn.GLU(1), image()),
    "activations": (
        lambda: Apply(
            lambda x: sum(
                f(x)
                for f in (F.hardswish, F.mish, F.softplus, F.elu, F.selu, F.celu, F.relu6, F.hardsigmoid, F.logsigmoid)
            )
        ),
        image(),
    ),
    "activations_more": (
        lambda: Apply(
            lambda x: sum(
                f(x) for f in (F.softsign, F.tanhshrink, F.hardshrink, F.softshrink, F.threshold_relu)
            )
            if hasattr(F, "threshold_relu")
            else F.softsign(x) + F.tanhshrink(x) + F.hardshrink(x) + F.softshrink(x) + F.threshold(x, 0.1, 3.0)
        ),
        image(),
    ),
    "gelu_tanh": (lambda: nn.GELU("tanh"), image()),
    "softmaxes": (lambda: Apply(lambda x: x.softmax(1) + F.log_softmax(x, 2) + F.softmin(x, 1)), image()),
    "gumbel_free": (lambda: Apply(lambda x: F.normalize(x, dim=1) + F.cosine_similarity(x, x.flip(0))[:, None]), image()),
    "bilinear": (lambda: Apply(lambda m, x: m(x, x * 2), nn.Bilinear(4, 4, 3)), image(5, 4)),
    "embedding_bag": (lambda: Apply(lambda m, i: m(i), nn.EmbeddingBag(9, 4, mode="mean")), torch.randint(0, 9, (3, 5))),
    "pixel_shuffle": (lambda: nn.PixelShuffle(2), image()),
    "upsample_nearest": (lambda: nn.Upsample(scale_factor=2), image()),
    "upsample_bilinear": (lambda: nn.Upsample(size=(5, 7), mode="bilinear", align_corners=True), image()),
    "upsample_bicubic": (lambda: nn.Upsample(scale_factor=1.5, mode="bicubic"), image()),
    "grid_sample": (
        lambda: Apply(lambda x: F.grid_sample(x, F.affine_grid(torch.eye(2, 3, dtype=x.dtype)[None].repeat(2, 1, 1), x.shape))),
        image(),
    ),
    "unfold_fold": (lambda: Apply(lambda x: F.fold(F.unfold(x, 3), (9, 8), 3)), image()),
    "pads": (lambda: Apply(lambda x: F.pad(x, (1, 2)) .sum() + F.pad(x, (1, 1), mode="circular") + 0), image(2, 4, 9)),
    "multihead": (lambda: Apply(lambda m, x: m(x, x, x), nn.MultiheadAttention(8, 2, batch_first=True)), image(2, 5, 8)),
    "multihead_cross": (
        lambda: Apply(lambda m, x: m(x, x[:, :3], x[:, :3], need_weights=False)[0], nn.MultiheadAttention(8, 2, kdim=8, batch_first=True)),
        image(4, 5, 8),
    ),
    "transformer_decoder": (
        lambda: Apply(lambda m, x: m(x, x.flip(1), tgt_is_causal=False), nn.TransformerDecoderLayer(8, 2, 16, 0.0)),
        image(2, 5, 8),
    ),
    "sdpa_causal": (
        lambda: Apply(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3)),
        image(2, 2, 5, 4),
    ),
    "lstm_cell": (lambda: Apply(lambda m, x: m(x, m(x)), nn.LSTMCell(4, 4)), image(3, 4)),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), image(3, 4)),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(4, 4)), image(3, 4)),
    "losses": (
        lambda: Apply(
            lambda x: F.mse_loss(x, x * 2)
            + F.l1_loss(x, x * 2)
            + F.smooth_l1_loss(x, x * 3)
            + F.huber_loss(x, x * 3)
            + F.binary_cross_entropy_with_logits(x, x.sigmoid().detach())
            + F.binary_cross_entropy(x.sigmoid(), x.sigmoid().detach())
            + F.kl_div(x.log_softmax(-1), x.softmax(-1))
            + F.poisson_nll_loss(x, x.abs())
        ),
        image(3, 4),
    ),
    "cross_entropies": (
        lambda: Apply(
            lambda x: F.cross_entropy(x, torch.tensor([0, 2, -100]))
            + F.cross_entropy(x, torch.tensor([0, 2, 1]), label_smoothing=0.1, weight=x[0].exp().detach())
            + F.cross_entropy(x, x.softmax(-1), reduction="sum")
            + F.cross_entropy(x[None].movedim(2, 1), torch.tensor([[0, 1, 1]]), reduction="none").sum()
            + F.multi_margin_loss(x, torch.tensor([0, 2, 1]))
        ),
        image(3, 4),
    ),
    "metric_losses": (
        lambda: Apply(lambda x: F.triplet_margin_loss(x, x * 2, x + 1) + F.cosine_embedding_loss(x, x * 2, torch.ones(3))),
        image(3, 4),
    ),
    "einsum": (lambda: Apply(lambda x: torch.einsum("bchw,bdhw->bcd", x, x * 2)), image()),
    "products": (lambda: Apply(lambda x: torch.baddbmm(x, x, x.mT) + torch.addmm(x[0], x[0], x[1])), image(2, 4, 4)),
    "vectors": (lambda: Apply(lambda x: x.mv(x[0]) + x @ x[0] + torch.dot(x[0], x[1]) + torch.outer(x[0], x[1])[0]), image(4, 4)),
    "linalg": (lambda: Apply(lambda x: torch.linalg.inv(x @ x.mT + torch.eye(4)) + torch.linalg.norm(x)), image(2, 4, 4)),
    "fft": (lambda: Apply(lambda x: torch.fft.irfft(torch.fft.rfft(x) * 2)), image(2, 8)),
    "sorting": (lambda: Apply(lambda x: x.topk(2).values + x.sort(descending=True)[0][:, :2] + x.kthvalue(2)[0][:, None]), image(3, 4)),
    "gather_scatter": (
        lambda: Apply(
            lambda x: x.gather(1, torch.tensor([[0, 1], [2, 3], [1, 1]]))
            + torch.zeros(3, 2, dtype=x.dtype).scatter_add(1, torch.tensor([[0, 1], [1, 1], [0, 0]]), x[:, 1:3])
        ),
        image(3, 4),
    ),
    "scatter_inplace": (
        lambda: Apply(lambda x: torch.zeros_like(x).scatter_(1, x.argmax(1, keepdim=True), 1.0) * x + F.one_hot(x.argmax(1), 4)),
        image(3, 4),
    ),
    "cumulative": (lambda: Apply(lambda x: x.cumsum(1) + x.cumprod(0) + x.cummax(1)[0] + x.logcumsumexp(1)), image(3, 4)),
    "statistics": (
        lambda: Apply(lambda x: torch.stack([x.std(), x.var(0).sum(), *torch.var_mean(x), x.logsumexp(1).sum(), x.median()])),
        image(3, 4),
    ),
    "extrema": (lambda: Apply(lambda x: (x.max(1), x.min(), x.amax((0, 1)), x.argmin(), torch.maximum(x, -x), *extent(x))), image(3, 4)),
    "shapes": (
        lambda: Apply(
            lambda x: (
                x.movedim(0, 1).reshape(-1, 3).contiguous(),
                x.roll(1, 0).flip(1),
                x.repeat(2, 1).repeat_interleave(2, 0),
                torch.cat([x, x[:1]]).unfold(0, 2, 1).clone(),
                torch.tril(x) + torch.triu(x, 1),
                x.expand(2, 3, 4).tile(1, 2, 1),
                torch.diag_embed(x).diagonal(0, 1, 2) * 1,
            )
        ),
        image(3, 4),
    ),
    "indexing": (lambda: Apply(lambda x: x[..., None, 1::2][[0, 2]] + x[1:, None, -2:]), image(3, 4)),
    "meshgrid": (lambda: Apply(lambda x: sum(torch.meshgrid(x[0], torch.linspace(0, 1, 3, dtype=x.dtype), indexing="ij"))), image(3, 4)),
    "where_clamp": (lambda: Apply(lambda x: torch.where(x > 0, x, 0.1).clamp(0.05, 1).lerp(x, 0.3).nan_to_num()), image(3, 4)),
    "masked_select_free": (lambda: Apply(lambda x: x.masked_fill(x > 0, -1).masked_scatter(x > 0, x * 2)), image(3, 4)),
    "complex_view": (lambda: Apply(lambda x: torch.view_as_real(torch.view_as_complex(x) * (1 + 2j)).sum(-1)), image(3, 2)),
    "integers": (lambda: Apply(lambda x: (x.long() // 2 % 3 << 1, x.to(torch.float32), x.int() & 3, x.bool())), image(3, 4)),
    "ema_buffer": (lambda: nn.Sequential(nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.0), nn.Identity()), image(3, 4)),
    "moving_window": (lambda: Apply(lambda x: torch.stack([x[:, i : i + 2].sum(1) for i in range(3)], 1).square_()), image(3, 4)),
}  # fmt: skip
QUICK = sample(sorted(MODULES), 40)


@pytest.mark.parametrize("name", QUICK)
def test_module_as_in_eager(name):
    build, *args = MODULES[name]
    backend = against_eager(build(), [(tuple(args), {})])
    assert len(backend.graphs) == 1


def test_sizes_that_depend_on_data():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.experts = nn.Linear(4, 2), nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

        def forward(self, x):
            choice, out = self.gate(x).argmax(-1), torch.zeros_like(x)
            for index, expert in enumerate(self.experts):
                rows = (choice == index).nonzero().squeeze(-1)
                out = out.index_add(0, rows, expert(x[rows]).view(rows.shape[0], 2, 2).flatten(1))
            return out, x[x > 0].sum()

    against_eager(Experts(), [((torch.randn(6, 4),), {}), ((torch.randn(6, 4),), {})])
