"""Training scripts as researchers write them, five steps each: optimized modules give what eager mode gives, in float64.

Each script takes `o`, which optimizes a module or leaves it as it is, and returns what is compared: losses, and the parameters in the end.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.nn import functional as F

import shorthaul as sh
from shorthaul.testing import masks

STEPS = 5
Optimize = Callable[[nn.Module], Any]


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def final(*modules: nn.Module) -> list[Tensor]:
    """The parameters and buffers of modules."""
    return [t.detach().clone() for m in modules for t in m.state_dict().values()]


def gan(o: Optimize) -> list[Tensor]:
    """Two networks, two optimizers, alternating, the generated images detached for the critic; batch norm, spectral norm."""
    generator = o(nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.LeakyReLU(0.2), nn.Linear(16, 6), nn.Tanh()))
    critic = o(nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 16)), nn.LeakyReLU(0.2), nn.Linear(16, 1)))
    of_generator = torch.optim.Adam(generator.parameters(), lr=1e-2, betas=(0.5, 0.9), eps=1e-4)
    of_critic = torch.optim.Adam(critic.parameters(), lr=1e-2, betas=(0.5, 0.9), eps=1e-4)
    losses = []
    for _ in range(STEPS):
        real = torch.randn(8, 6) * 0.3
        fake = generator(torch.randn(8, 4))
        of_critic.zero_grad()
        loss = F.softplus(-critic(real)).mean() + F.softplus(critic(fake.detach())).mean()
        loss.backward()
        of_critic.step()
        of_generator.zero_grad()
        for p in critic.parameters():
            p.requires_grad_(False)
        adversarial = F.softplus(-critic(fake)).mean()
        adversarial.backward()
        for p in critic.parameters():
            p.requires_grad_(True)
        of_generator.step()
        losses += [loss.detach(), adversarial.detach()]
    return [*losses, *final(generator, critic)]


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 16), nn.SiLU(), nn.Linear(16, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 12))

    def forward(self, x: Tensor, noise: Tensor) -> dict[str, Any]:
        mean, log_variance = self.encoder(x).chunk(2, -1)
        z = mean + torch.exp(0.5 * log_variance) * noise
        return {"logits": self.decoder(z), "posterior": (mean, log_variance)}


def vae(o: Optimize) -> list[Tensor]:
    model = o(VAE())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(STEPS):
        x = torch.rand(6, 12)
        out = model(x, torch.randn(6, 4))
        mean, log_variance = out["posterior"]
        divergence = -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp()).sum(-1)
        each = F.binary_cross_entropy_with_logits(out["logits"], x, reduction="none").sum(-1) + min(1.0, step / 3) * divergence
        optimizer.zero_grad(set_to_none=True)
        each.mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(each.detach())
    return [*losses, *final(model)]


def siamese(o: Optimize) -> list[Tensor]:
    """One network called three times before the backward pass; the hardest negatives of the batch."""
    net = o(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    losses = []
    for _ in range(STEPS):
        anchor, positive, negative = (F.normalize(net(torch.randn(5, 1, 6, 6)), dim=-1) for _ in range(3))
        hardest = torch.cdist(anchor, negative).min(1).values
        loss = F.relu(0.5 + (anchor - positive).norm(dim=-1) - hardest).mean() + F.triplet_margin_loss(anchor, positive, negative)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *final(net)]


class GraphNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 8)
        self.message = nn.ModuleList(nn.Sequential(nn.Linear(17, 8), nn.SiLU()) for _ in range(2))
        self.update = nn.GRUCell(8, 8)
        self.score = nn.Linear(8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, kinds: Tensor, edges: Tensor, weights: Tensor, graph: Tensor, graphs: int) -> Tensor:
        h = self.embed(kinds)
        source, target = edges
        for layer in self.message:
            m = layer(torch.cat([h[source], h[target], weights[:, None]], -1))
            score = self.score(m).squeeze(-1)
            top = torch.full((len(h),), -1e9).scatter_reduce(0, target, score.detach(), "amax")
            e = torch.exp(score - top[target])
            attention = e / torch.zeros(len(h)).index_add(0, target, e)[target]
            h = self.update(torch.zeros_like(h).index_add(0, target, m * attention[:, None]), h)
        pooled = torch.zeros(graphs, 8).scatter_reduce(0, graph[:, None].expand(-1, 8), h, "mean", include_self=False)
        return self.head(pooled)


def graph_network(o: Optimize) -> list[Tensor]:
    """Message passing with attention over edges; the number of nodes and edges changes from step to step."""
    net = o(GraphNetwork())
    optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-2)
    losses = []
    for step in range(STEPS):
        nodes, count = 7 + step, 15 + 2 * step
        edges, graph = torch.randint(0, nodes, (2, count)), torch.arange(nodes) % 3
        loss = F.cross_entropy(net(torch.randint(0, 5, (nodes,)), edges, torch.rand(count), graph, 3), torch.tensor([0, 2, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *final(net)]


class Coupling(nn.Module):
    def __init__(self, flip: bool) -> None:
        super().__init__()
        self.flip, self.net = flip, nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 4))
        self.mix = nn.Parameter(torch.linalg.qr(torch.randn(4, 4))[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.flip(-1).chunk(2, -1) if self.flip else x.chunk(2, -1)
        scale, shift = self.net(a).chunk(2, -1)
        scale = torch.tanh(scale)
        y = torch.cat([a, b * scale.exp() + shift], -1) @ self.mix
        return y, scale.sum(-1) + torch.linalg.slogdet(self.mix)[1]


class Flow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Coupling(i % 2 == 1) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        total = x.new_zeros(len(x))
        for layer in self.layers:
            x, change = layer(x)
            total = total + change
        return -0.5 * (x * x + math.log(2 * math.pi)).sum(-1) + total


def normalizing_flow(o: Optimize) -> list[Tensor]:
    flow = o(Flow())
    optimizer = torch.optim.Adamax(flow.parameters(), lr=1e-2)
    losses = []
    for _ in range(STEPS):
        loss = -flow(torch.randn(9, 4)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *final(flow)]


class Block(nn.Module):
    def __init__(self, width: int, drop: float) -> None:
        super().__init__()
        self.n1, self.n2, self.drop = nn.LayerNorm(width), nn.LayerNorm(width), drop
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def path(self, x: Tensor) -> Tensor:
        if not self.training or self.drop == 0:
            return x
        keep = 1 - self.drop
        return x * x.new_empty(len(x), 1, 1).bernoulli_(keep) / keep

    def forward(self, x: Tensor) -> Tensor:
        n = self.n1(x)
        x = x + self.path(self.attention(n, n, n, need_weights=False)[0])
        return x + self.path(self.mlp(self.n2(x)))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.token, self.place = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8) * 0.02)
        self.blocks = nn.ModuleList(Block(8, d) for d in (0.0, 0.3))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def student_and_teacher(o: Optimize) -> list[Tensor]:
    """A vision transformer with stochastic depth learns from a moving average of itself, as in DINO."""
    plain = ViT()
    teacher = copy.deepcopy(plain).requires_grad_(False).eval()
    student, teacher = o(plain), o(teacher)
    center = torch.zeros(6)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2, eps=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    losses = []
    for _ in range(STEPS):
        x = torch.randn(4, 3, 8, 8)
        with torch.no_grad():
            wanted = ((teacher(x + 0.1) - center) / 0.1).softmax(-1)
            center = 0.9 * center + 0.1 * wanted.mean(0)
        loss = -(wanted * F.log_softmax(student(x), -1)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for p, q in zip(student.parameters(), teacher.parameters(), strict=True):
                q.lerp_(p, 0.1)
        losses.append(loss.detach())
    return [*losses, *final(student, teacher)]


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(-math.log(1e4) * torch.arange(4) / 4))
        self.time = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 16))
        self.enter, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1)
        self.leave = nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = t[:, None] * self.frequencies
        scale, shift = self.time(torch.cat([angle.sin(), angle.cos()], -1))[..., None, None].chunk(2, 1)
        h = self.enter(x)
        low = F.silu(self.down(F.silu(self.norm(h) * (1 + scale) + shift)))
        return self.leave(torch.cat([h, F.interpolate(low, scale_factor=2.0, mode="nearest") + self.up(low)], 1))


def diffusion(o: Optimize) -> list[Tensor]:
    net = o(Denoiser())
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 50), 0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, eps=1e-5)
    losses = []
    for _ in range(STEPS):
        x, noise, t = torch.randn(3, 2, 8, 8), torch.randn(3, 2, 8, 8), torch.randint(0, 50, (3,))
        a = kept[t].view(-1, 1, 1, 1)
        loss = F.mse_loss(net(a.sqrt() * x + (1 - a).sqrt() * noise, t), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *final(net)]


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.lstm = nn.LSTM(8, 8, 2, batch_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, state = self.lstm(self.words(x), state)
        return self.head(y), state


def truncated_backpropagation(o: Optimize) -> list[Tensor]:
    """A language model whose state goes on from chunk to chunk, detached; tied weights."""
    net = o(Language())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    text, state, losses = torch.randint(0, 11, (3, 4 * STEPS + 1)), None, []
    for k in range(STEPS):
        chunk = text[:, 4 * k : 4 * k + 5]
        scores, state = net(chunk[:, :-1], state)
        state = tuple(s.detach() for s in state)
        loss = F.cross_entropy(scores.flatten(0, 1), chunk[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(net.parameters(), 0.25)
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *state, *final(net)]


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.qkv, self.head = nn.Embedding(9, 8), nn.Linear(8, 24), nn.Linear(8, 9)

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h = self.words(x)
        q, k, v = (t.view(*x.shape, 2, 4).transpose(1, 2) for t in self.qkv(h).chunk(3, -1))
        if cache is not None:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        return self.head(h + y.transpose(1, 2).flatten(2)), (k, v)


def decoder_with_cache(o: Optimize) -> list[Tensor]:
    """A step of training, then words one by one from a growing cache, in turn."""
    net = o(Decoder())
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    found: list[Tensor] = []
    for _ in range(STEPS):
        net.train()
        x = torch.randint(0, 9, (2, 6))
        loss = F.cross_entropy(net(x[:, :-1])[0].transpose(1, 2), x[:, 1:], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        net.eval()
        with torch.inference_mode():
            scores, cache = net(x[:, :3])
            for _ in range(4):
                word = scores[:, -1].argmax(-1, keepdim=True)
                scores, cache = net(word, cache)
        found += [loss.detach(), word, scores.clone()]
    return [*found, *final(net)]


class Router(nn.Module):
    """Python decides by what the data is: an early exit, a loop whose length is data, and a branch by a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.halt, self.other = nn.Linear(6, 6), nn.Linear(6, 1), nn.Linear(6, 6)
        self.exit, self.head = nn.Linear(6, 3), nn.Linear(6, 3)

    def step(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.tanh(self.cell(x)) if x.sum() > 0 else torch.tanh(self.other(x)) + x
        return x, self.exit(x), 1 - torch.sigmoid(self.halt(x)).mean()

    def forward(self, x: Tensor, verbose: bool = False) -> list[Tensor]:
        outputs, remaining = [], 1.0
        while remaining > 0.3 and len(outputs) < 4:  # Dynamo leaves a loop that data ends to Python, and compiles the methods it calls
            x, y, kept = self.step(x)
            outputs.append(y)
            remaining *= kept.item()
        if verbose or x.abs().max() > 1.2:
            outputs.append(self.head(x))
        return outputs


def data_dependent_control(o: Optimize) -> list[Tensor]:
    net = o(Router())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    losses = []
    for step in range(STEPS):
        target = torch.randint(0, 3, (5,))
        loss = torch.stack([F.cross_entropy(y, target) for y in net(torch.randn(5, 6), verbose=step % 2 == 0)]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *final(net)]


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.Hardswish())
        self.stages = nn.ModuleList(nn.Conv2d(6, 6, 3, 2, 1) for _ in range(2))
        self.heads = nn.ModuleDict({"classes": nn.Conv2d(6, 4, 1), "boxes": nn.Conv2d(6, 4, 1)})

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        x, levels = self.stem(x), []
        for stage in self.stages:
            x = F.hardswish(stage(x))
            levels.append({name: head(x).flatten(2) for name, head in self.heads.items()})
        return levels


def detector(o: Optimize) -> list[Tensor]:
    """Lists of dictionaries come out; losses of each sample are weighted by a mask; uncertainty weights are learned beside the network."""
    net = o(Detector())
    balance = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([{"params": net.parameters()}, {"params": [balance], "lr": 0.1}], lr=1e-2, eps=1e-4)
    losses = []
    for _ in range(STEPS):
        weight = torch.rand(3)
        total = torch.zeros(3)
        for level in net(torch.randn(3, 3, 16, 16)):
            wanted = torch.randint(0, 4, (3, level["classes"].shape[-1]))
            classes = F.cross_entropy(level["classes"], wanted, reduction="none").mean(1)
            boxes = F.smooth_l1_loss(level["boxes"], torch.zeros_like(level["boxes"]), reduction="none", beta=0.5).mean((1, 2))
            total = total + classes * (-balance[0]).exp() + boxes * (-balance[1]).exp() + balance.sum()
        optimizer.zero_grad()
        (total * weight).sum().backward()
        optimizer.step()
        losses.append(total.detach())
    return [*losses, balance.detach().clone(), *final(net)]


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 16), nn.Tanh())
        self.choice, self.mean, self.value = nn.Linear(16, 3), nn.Linear(16, 2), nn.Linear(16, 1)
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> tuple[Categorical, Normal, Tensor]:
        h = self.body(x)
        return Categorical(logits=self.choice(h)), Normal(self.mean(h), self.log_std.exp()), self.value(h).squeeze(-1)


def proximal_policy(o: Optimize) -> list[Tensor]:
    """The model gives distributions; actions are drawn outside; clipped ratios, a value loss, entropy; two epochs a batch."""
    net = o(ActorCritic())
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, eps=1e-5)
    losses = []
    for _ in range(STEPS):
        x = torch.randn(10, 5)
        with torch.no_grad():
            choices, moves, value = net(x)
            choice, move = torch.randint(0, 3, (10,)), moves.mean + 0.5 * torch.randn(10, 2)
            before = choices.log_prob(choice) + moves.log_prob(move).sum(-1)
            gain = torch.randn(10) - value
        for _ in range(2):
            choices, moves, value = net(x)
            ratio = (choices.log_prob(choice) + moves.log_prob(move).sum(-1) - before).exp()
            policy = -torch.min(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
            loss = policy + 0.5 * F.huber_loss(value, gain) - 0.01 * (choices.entropy().mean() + moves.entropy().mean())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return [*losses, *final(net)]


SCRIPTS = [gan, vae, siamese, graph_network, normalizing_flow, student_and_teacher, diffusion, truncated_backpropagation,
           decoder_with_cache, data_dependent_control, detector, proximal_policy]  # fmt: skip


def drawing_alike(module: nn.Module) -> nn.Module:
    """Eager mode with the random numbers that the optimized module draws in training."""

    class Alike:
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with masks(module) if module.training else nullcontext():
                return module(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            return getattr(module, name)

    return Alike()  # type: ignore[return-value]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.__name__)
def test_script_gives_what_eager_mode_gives(script: Callable[[Optimize], list[Tensor]]) -> None:
    made: list[Any] = []

    def optimized(module: nn.Module) -> nn.Module:
        made.append(sh.optimize(module))
        return module

    runs = []
    for optimize in (drawing_alike if script is student_and_teacher else lambda m: m, optimized):
        torch.manual_seed(0)
        runs.append(script(optimize))
    assert len(runs[0]) == len(runs[1])
    for i, (eager, ours) in enumerate(zip(*runs, strict=True)):
        torch.testing.assert_close(ours, eager, rtol=1e-9, atol=1e-11, msg=lambda m, i=i: f"result {i}: {m}")
    for module in made:
        regions = module.report().regions
        assert regions and not any(r.fallback for r in regions), [r.fallback for r in regions]
