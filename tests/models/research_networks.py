"""Networks of `test_research_networks` that are longer than a few lines."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WindowBlock(nn.Module):
    """Attention in shifted windows with a table of relative positions, layer scale, and paths dropped by sample."""

    def __init__(self, width: int, heads: int, side: int, window: int, shift: int, drop: float) -> None:
        super().__init__()
        self.heads, self.side, self.window, self.shift, self.drop = heads, side, window, shift, drop
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.scale = nn.ParameterList(nn.Parameter(torch.full((width,), 0.5)) for _ in range(2))
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.1)
        places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = places[:, :, None] - places[:, None] + window - 1
        self.register_buffer("apart", apart[0] * (2 * window - 1) + apart[1], persistent=False)
        part = torch.zeros(1, side, side, 1)
        for i, rows in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None)) if shift else ()):
            for j, columns in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None))):
                part[:, rows, columns] = 3 * i + j
        parts = self.windows(part).squeeze(-1)
        self.register_buffer("mask", (parts[:, None] != parts[:, :, None]) * -100.0, persistent=False)

    def windows(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = x.view(b, h // self.window, self.window, w // self.window, self.window, c)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.window**2, c)

    def whole(self, x: Tensor, b: int) -> Tensor:
        n = self.side // self.window
        x = x.view(b, n, n, self.window, self.window, -1)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(b, self.side, self.side, -1)

    def path(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = x.new_empty((x.shape[0], *[1] * (x.dim() - 1))).bernoulli_(1 - self.drop)
        return x * kept.div_(1 - self.drop)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        h = self.windows(h)
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + self.table[self.apart].permute(2, 0, 1)
        n = len(self.mask)
        scores = (scores.view(-1, n, *scores.shape[1:]) + self.mask[:, None]).view(scores.shape)
        h = self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = x + self.path(self.scale[0] * torch.roll(self.whole(h, len(x)), (self.shift, self.shift), (1, 2)))
        return x + self.path(self.scale[1] * self.mlp(self.norm2(x)))


class WindowTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 2, 2)
        self.blocks = nn.Sequential(*(WindowBlock(8, 2, 8, 4, shift, 0.2) for shift in (0, 2)))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patch(x).permute(0, 2, 3, 1)).mean((1, 2)))


class RotaryAttention(nn.Module):
    """Shared key heads, positions as rotations, root-mean-square norms of queries and keys."""

    def __init__(self, width: int, heads: int, shared: int) -> None:
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, width // heads
        self.q, self.k, self.v = (nn.Linear(width, n * self.size, bias=False) for n in (heads, shared, shared))
        self.out = nn.Linear(width, width, bias=False)
        self.qnorm, self.knorm = nn.RMSNorm(self.size), nn.RMSNorm(self.size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        def heads(y: Tensor, n: int) -> Tensor:
            return y.view(*y.shape[:2], n, self.size).transpose(1, 2)

        def turned(y: Tensor) -> Tensor:
            a, b = y.chunk(2, -1)
            return y * cos + torch.cat((-b, a), -1) * sin

        q, k = turned(self.qnorm(heads(self.q(x), self.heads))), turned(self.knorm(heads(self.k(x), self.shared)))
        k, v = (t.repeat_interleave(self.heads // self.shared, 1) for t in (k, heads(self.v(x), self.shared)))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class LanguageModel(nn.Module):
    def __init__(self, words: int = 17, width: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.attention = nn.ModuleList(RotaryAttention(width, 4, 2) for _ in range(2))
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(5))
        self.gate, self.up, self.down = (nn.ModuleList(nn.Linear(*s, bias=False) for _ in range(2)) for s in ((16, 24), (16, 24), (24, 16)))
        self.register_buffer("turns", 1e4 ** -(torch.arange(0, 4, 2) / 4), persistent=False)

    def forward(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        angle = torch.outer(torch.arange(x.shape[1], dtype=self.turns.dtype), self.turns).repeat(1, 2)
        h, cos, sin = self.words(x), angle.cos(), angle.sin()
        for i, attention in enumerate(self.attention):
            h = h + attention(self.norms[2 * i](h), cos, sin)
            y = self.norms[2 * i + 1](h)
            h = h + self.down[i](F.silu(self.gate[i](y)) * self.up[i](y))
        logits = 30 * torch.tanh(self.norms[4](h) @ self.words.weight.T / 30)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        return loss + 1e-3 * logits.logsumexp(-1).square().mean(), logits


class Spectral(nn.Module):
    """A Fourier layer: low frequencies times complex weights (Li et al., 2021)."""

    def __init__(self, width: int, kept: int) -> None:
        super().__init__()
        self.kept = kept
        self.real, self.imaginary = (nn.Parameter(torch.randn(width, width, kept, kept) / width) for _ in range(2))
        self.past = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, norm="ortho")
        low = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, : self.kept, : self.kept], torch.complex(self.real, self.imaginary))
        spread = F.pad(torch.view_as_real(low), (0, 0, 0, spectrum.shape[-1] - self.kept, 0, spectrum.shape[-2] - self.kept))
        return F.gelu(torch.fft.irfft2(torch.view_as_complex(spread.contiguous()), s=x.shape[-2:], norm="ortho") + self.past(x))


class FlowStep(nn.Module):
    """Activation norm that the first batch sets, an invertible 1×1 convolution, an affine coupling (Glow)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift, self.log_scale = (nn.Parameter(torch.zeros(1, channels, 1, 1)) for _ in range(2))
        self.register_buffer("ready", torch.tensor(False))
        self.mix = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels))[0])
        self.net = nn.Sequential(nn.Conv2d(channels // 2, 8, 3, padding=1), nn.ELU(), nn.Conv2d(8, channels, 3, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.ready:
            with torch.no_grad():
                self.shift.copy_(-x.mean((0, 2, 3), keepdim=True))
                self.log_scale.copy_(-x.std((0, 2, 3), keepdim=True).log())
                self.ready.fill_(True)
        pixels = x.shape[-1] * x.shape[-2]
        x = (x + self.shift) * self.log_scale.exp()
        x = F.conv2d(x, self.mix[..., None, None])
        a, b = x.chunk(2, 1)
        scale, move = self.net(a).chunk(2, 1)
        scale = torch.sigmoid(scale + 2)
        volume = pixels * (self.log_scale.sum() + torch.linalg.slogdet(self.mix)[1]) + scale.log().sum((1, 2, 3))
        return torch.cat([a, (b + move) * scale], 1), volume


class Flow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(FlowStep(4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(len(x))
        x = F.pixel_unshuffle(x, 2)
        for step in self.steps:
            x, volume = step(x)
            total = total + volume
        return total - 0.5 * (x.square() + math.log(2 * math.pi)).sum((1, 2, 3))


class Codes(nn.Module):
    """Nearest codes, straight through; the codes are averages that move in the forward pass (VQ-VAE)."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(count, width))
        self.register_buffer("uses", torch.ones(count))
        self.register_buffer("sums", self.codes.clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = torch.cdist(x, self.codes).argmin(-1)
        chosen = F.embedding(found, self.codes)
        if self.training:
            with torch.no_grad():
                hits = F.one_hot(found.flatten(), len(self.codes)).to(x.dtype)
                self.uses.lerp_(hits.sum(0), 0.1)
                self.sums.mul_(0.9).add_(hits.T @ x.flatten(0, -2), alpha=0.1)
                self.codes.copy_(self.sums / self.uses[:, None].clamp_min(1e-5))
        return x + (chosen - x).detach(), F.mse_loss(x, chosen.detach())


class Quantized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv1d(1, 8, 4, 2, 1), nn.SiLU(), nn.Conv1d(8, 4, 3, padding=1))
        self.codes = Codes(6, 4)
        self.decoder = nn.Sequential(nn.ConvTranspose1d(4, 8, 4, 2, 1), nn.SiLU(), nn.Conv1d(8, 1, 3, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, commitment = self.codes(self.encoder(x).transpose(1, 2))
        return self.decoder(z.transpose(1, 2)), commitment


class Masked(nn.Module):
    """Random patches are left out by sorting noise; a decoder fills them in (MAE)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(6, 8), nn.Parameter(torch.randn(10, 8) * 0.1)
        layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder, self.decoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), copy.deepcopy(layer)
        self.blank, self.head = nn.Parameter(torch.zeros(1, 1, 8)), nn.Linear(8, 6)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        order = noise.argsort(1)
        back, kept = order.argsort(1), order[:, :4]
        h = self.embed(x) + self.place
        h = self.encoder(h.gather(1, kept[..., None].expand(-1, -1, 8)))
        h = torch.cat([h, self.blank.expand(len(x), 6, -1)], 1).gather(1, back[..., None].expand(-1, -1, 8))
        y = self.head(self.decoder(h + self.place))
        hidden = (back >= 4) * 1.0
        wanted = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()
        return ((y - wanted).square().mean(-1) * hidden).sum() / hidden.sum()


class Neighbours(nn.Module):
    """Edges to the nearest points in the space of features, found anew in every layer (DGCNN)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(2 * c, 8, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU()) for c in (3, 8))
        self.head = nn.Sequential(nn.Linear(32, 8), nn.SiLU(), nn.Linear(8, 4))

    def edges(self, x: Tensor, k: int = 4) -> Tensor:
        b, c, n = x.shape
        dots = x.transpose(1, 2) @ x
        length = dots.diagonal(dim1=1, dim2=2)
        near = (length[:, :, None] + length[:, None] - 2 * dots).detach().topk(k, -1, largest=False).indices
        flat = x.transpose(1, 2).reshape(b * n, c)
        found = flat[(near + torch.arange(b)[:, None, None] * n).view(-1)].view(b, n, k, c)
        own = x.transpose(1, 2)[:, :, None].expand(-1, -1, k, -1)
        return torch.cat([found - own, own], -1).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for layer in self.layers:
            x = layer(self.edges(x)).amax(-1)
            found.append(x)
        y = torch.cat(found, 1)
        return self.head(torch.cat([y.amax(-1), y.mean(-1)], 1))


class Radiance(nn.Module):
    """Samples along rays, encoded, and summed up by how much light passes (NeRF)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(3))
        self.body = nn.Sequential(nn.Linear(18, 16), nn.SiLU(), nn.Linear(16, 4))

    def forward(self, origin: Tensor, direction: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        edges = torch.linspace(1, 3, noise.shape[1] + 1)
        depth = edges[:-1] + noise * edges.diff()
        points = origin[:, None] + depth[..., None] * direction[:, None]
        angle = (points[..., None] * self.frequencies).flatten(-2)
        color, density = self.body(torch.cat([angle.sin(), angle.cos()], -1)).split([3, 1], -1)
        steps = torch.cat([depth.diff(dim=1), torch.full_like(depth[:, :1], 1e3)], 1)
        opaque = 1 - torch.exp(-F.softplus(density[..., 0]) * steps)
        passed = torch.cumprod(torch.cat([torch.ones_like(opaque[:, :1]), 1 - opaque + 1e-10], 1), 1)[:, :-1]
        weight = opaque * passed
        return (weight[..., None] * color.sigmoid()).sum(1), (weight * depth).sum(1)
