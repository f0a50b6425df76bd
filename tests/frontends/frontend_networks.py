"""Small networks of the usual families, for the front end's tests."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


class MLP(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 4), nn.GELU())

    def forward(self, x):
        return F.log_softmax(self.layers(x), -1)


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.shortcut is None else self.shortcut(x)
        return self.relu(out)


class ResNet(nn.Module):
    """The shape of ResNet-18 at any width."""

    def __init__(self, width: int = 8, blocks: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        layers, inputs = [], width
        for stage in range(4):
            for block in range(blocks):
                outputs = width * 2**stage
                layers.append(BasicBlock(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x):
        return self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.Sigmoid(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 10))

    def forward(self, x):
        return self.head(torch.flatten(self.features(x), 1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, reduced, 1), nn.Conv2d(reduced, channels, 1)

    def forward(self, x):
        scale = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(scale), inplace=True)))


class MBConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, expansion: int = 4, stride: int = 1, drop: float = 0.0) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.SiLU(inplace=True)
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.SiLU(inplace=True),
        )
        self.excite = SqueezeExcite(hidden, max(1, inputs // 4))
        self.project = nn.Sequential(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual, self.drop = stride == 1 and inputs == outputs, drop

    def forward(self, x):
        out = self.project(self.excite(self.depthwise(self.expand(x))))
        if self.residual:
            if self.drop and self.training:  # stochastic depth: drop the branch of whole images
                keep = torch.empty(x.shape[0], 1, 1, 1, device=x.device, dtype=x.dtype).bernoulli_(1 - self.drop)
                out = out * keep.div_(1 - self.drop)
            out = out + x
        return out


class EfficientNetLike(nn.Module):
    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.blocks = nn.Sequential(MBConv(8, 8, drop=drop), MBConv(8, 16, stride=2), MBConv(16, 16, drop=drop))
        self.dropout, self.head = nn.Dropout(drop), nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.dropout(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1)))


class EncoderLayer(nn.Module):
    """A BERT layer with `scaled_dot_product_attention`."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x, mask=None):
        batch, length, width = x.shape
        split = lambda t: t.view(batch, length, self.heads, width // self.heads).transpose(1, 2)  # noqa: E731
        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        dropout = self.dropout if self.training else 0.0
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        context = context.transpose(1, 2).reshape(batch, length, width)
        x = self.norm1(x + self.drop(self.out(context)))
        return self.norm2(x + self.drop(self.down(F.gelu(self.up(x)))))


class Bert(nn.Module):
    def __init__(self, vocabulary=50, width=16, heads=2, layers=2, classes=3, dropout=0.0, length=32) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width, padding_idx=0), nn.Embedding(length, width)
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(dropout)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, dropout) for _ in range(layers))
        self.head = nn.Linear(width, classes)

    def forward(self, tokens, mask=None, labels=None):
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.drop(self.norm(self.tokens(tokens) + self.positions(positions)))
        attend = None if mask is None else mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, attend)
        logits = self.head(x[:, 0])
        if labels is None:
            return logits
        return F.cross_entropy(logits, labels), logits


class ManualAttention(nn.Module):
    """Attention written out, with a causal mask and fused query, key and value."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("causal", torch.tril(torch.ones(64, 64, dtype=torch.bool)), persistent=False)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (p.view(b, t, self.heads, -1).transpose(1, 2) for p in self.qkv(x).split(c, dim=2))
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~self.causal[:t, :t], float("-inf")).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).contiguous().view(b, t, c))


class TorchEncoder(nn.Module):
    """PyTorch's own encoder layer (multi-head attention)."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=norm_first)

    def forward(self, x, key_padding_mask=None):
        return self.layer(x, src_key_padding_mask=key_padding_mask)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = MLP(8), nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x):
        return checkpoint(self.second, checkpoint(self.first, x, use_reentrant=False), use_reentrant=False)


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -ctx.scale * grad, None


class ClampedExp(torch.autograd.Function):
    """Saves an input and an output, two outputs of which one is not differentiable, in-place work inside."""

    @staticmethod
    def forward(ctx, x, weight):
        y = x.clone()
        y.mul_(weight).clamp_(max=2.0)
        y = y.exp()
        big = y > 1
        ctx.save_for_backward(x, weight, y)
        ctx.mark_non_differentiable(big)
        return y, big

    @staticmethod
    def backward(ctx, grad, _):
        x, weight, y = ctx.saved_tensors
        inner = grad * y * 0.5
        return inner * weight, (inner * x).sum(0)


class CustomFunctions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.weight = nn.Linear(8, 8), nn.Parameter(torch.rand(8))

    def forward(self, x):
        y = StraightThrough.apply(self.inner(x) * 3)
        y, big = ClampedExp.apply(y, self.weight)
        return Reverse.apply(y, 0.3), big


@dataclasses.dataclass
class Result:
    loss: torch.Tensor
    parts: dict
    count: int


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x, *, scale=2.0, target=None):
        self.calls += 1
        y = self.layer(x) * scale
        with torch.no_grad():
            self.mean.mul_(0.9).add_(y.mean(0), alpha=0.1)
        loss = y.square().mean() if target is None else F.mse_loss(y, target)
        return Result(loss, {"y": y, "flat": y.view(-1), "input": x, "none": None}, x.shape[0])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(8, 8)

    def forward(self, x):
        state, states = torch.zeros(x.shape[0], 8, device=x.device, dtype=x.dtype), []
        for step in x.unbind(1):
            state = self.cell(step, state)
            states.append(state)
        return torch.stack(states, 1)


def transformer(layers: int = 12) -> tuple[nn.Module, tuple]:
    return Bert(width=32, layers=layers, dropout=0.1), (torch.randint(1, 50, (2, 16)),)


def resnet18() -> tuple[nn.Module, tuple]:
    return ResNet(width=8), (torch.randn(2, 3, 64, 64),)
