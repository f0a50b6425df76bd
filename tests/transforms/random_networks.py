"""Random networks for property tests: directed graphs of operators that are differentiated and expanded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from transform_nets import network

from shorthaul.ir.containers import Container
from shorthaul.ir.program import Program
from shorthaul.ops.builder import OpBuilder
from shorthaul.symbolic import Symbol

UNARY = ("tanh", "sigmoid", "relu", "gelu", "silu", "square", "softplus", "neg", "exp")
BINARY = ("add", "sub", "mul", "maximum")
SIZE = Symbol("N", 1)


class Grower:
    """Appends random operators to a network; `live` are the values so far."""

    def __init__(
        self, rng: np.random.Generator, b: OpBuilder, live: list[Container], unary: Sequence[str] = UNARY
    ) -> None:
        self.rng = rng
        self.unary = unary
        self.b = b
        self.live = live
        self.used: set[str] = set()

    def pick(self) -> Container:
        # later values more often, so that graphs get deep
        weights = np.arange(1, len(self.live) + 1, dtype=float) ** 2
        c = self.live[int(self.rng.choice(len(self.live), p=weights / weights.sum()))]
        self.used.add(c.name)
        return c

    def dim(self, x: Container) -> int:
        return int(self.rng.integers(0, len(x.shape)))

    def dims(self, x: Container) -> tuple[int, ...]:
        found = tuple(d for d in range(len(x.shape)) if self.rng.integers(0, 2))
        return found or (self.dim(x),)

    def fixed_dim(self, x: Container) -> int | None:
        found = [d for d, n in enumerate(x.shape) if isinstance(n, int)]
        return found[int(self.rng.integers(0, len(found)))] if found else None

    def step(self) -> None:
        kinds = [k for k in dir(self) if k.startswith("do_")]
        weights = np.array(
            [{"do_unary": 4, "do_binary": 6, "do_broadcast": 3, "do_reduce": 3}.get(k, 1) for k in kinds], float
        )
        made = getattr(self, str(self.rng.choice(kinds, p=weights / weights.sum())))()
        if made is not None:
            self.live += made if isinstance(made, (list, tuple)) else [made]

    # one operator each ---------------------------------------------------------------------------------------------------
    def do_unary(self) -> Any:
        op = str(self.rng.choice(self.unary))
        x = self.pick()
        return self.b.op(op, x=self.b.op("tanh", x=x) if op == "exp" else x)

    def do_binary(self) -> Any:
        x = self.pick()
        partners = [c for c in self.live if c.shape == x.shape]
        y = partners[int(self.rng.integers(0, len(partners)))]
        self.used.add(y.name)
        return self.b.op(str(self.rng.choice(BINARY)), a=x, b=y)

    def do_broadcast(self) -> Any:
        """With a value of fewer dimensions, or of size one along some."""
        x = self.pick()
        fits = [c for c in self.live if c is not x and len(c.shape) <= len(x.shape)
                and all(n in (1, m) for n, m in zip(c.shape[::-1], x.shape[::-1], strict=False))]  # fmt: skip
        if not fits:
            return None
        y = fits[int(self.rng.integers(0, len(fits)))]
        self.used.add(y.name)
        return self.b.op(str(self.rng.choice(BINARY)), a=x, b=y)

    def do_permute(self) -> Any:
        x = self.pick()
        return self.b.op("permute", {"dims": tuple(int(d) for d in self.rng.permutation(len(x.shape)))}, x=x)

    def do_reshape(self) -> Any:
        x = self.pick()
        shape = list(x.shape)
        if len(shape) > 1 and self.rng.integers(0, 2):
            d = int(self.rng.integers(0, len(shape) - 1))
            shape[d : d + 2] = [shape[d] * shape[d + 1]]
        else:
            d = self.dim(x)
            n = shape[d]
            if isinstance(n, int) and n % 2 == 0 and n > 2 and len(shape) < 4:
                shape[d : d + 1] = [2, n // 2]
            elif len(shape) < 4:
                shape.insert(d, 1)
        return self.b.op("reshape", {"shape": tuple(shape)}, x=x)

    def do_expand(self) -> Any:
        x = self.pick()
        ones = [d for d, n in enumerate(x.shape) if isinstance(n, int) and n == 1]
        if not ones:
            return None
        shape = list(x.shape)
        shape[ones[0]] = 3
        return self.b.op("expand", {"shape": tuple(shape)}, x=x)

    def do_slice(self) -> Any:
        x = self.pick()
        d = self.fixed_dim(x)
        if d is None or x.shape[d] < 2:
            return None
        n = x.shape[d]
        start = int(self.rng.integers(0, n - 1))
        return self.b.op(
            "slice",
            {
                "dim": d,
                "start": start,
                "stop": int(self.rng.integers(start + 1, n + 1)),
                "step": int(self.rng.integers(1, 3)),
            },
            x=x,
        )

    def do_select(self) -> Any:
        x = self.pick()
        d = self.fixed_dim(x)
        if d is None or len(x.shape) < 2:
            return None
        return self.b.op("select", {"dim": d, "index": int(self.rng.integers(0, x.shape[d]))}, x=x)

    def do_flip(self) -> Any:
        x = self.pick()
        return self.b.op("flip", {"dims": (self.dim(x),)}, x=x)

    def do_cat(self) -> Any:
        x = self.pick()
        d = self.dim(x)
        fits = [
            c
            for c in self.live
            if len(c.shape) == len(x.shape)
            and all(i == d or n == m for i, (n, m) in enumerate(zip(c.shape, x.shape, strict=True)))
        ]
        y = fits[int(self.rng.integers(0, len(fits)))]
        self.used.add(y.name)
        return self.b.op("cat", {"dim": d}, x0=x, x1=y)

    def do_pad(self) -> Any:
        x = self.pick()
        pad = tuple(int(n) for n in self.rng.integers(0, 2, 2))
        return self.b.op("pad", {"pad": pad, "value": 0.5}, x=x)

    def do_reduce(self) -> Any:
        x = self.pick()
        op = str(self.rng.choice(["sum", "mean", "amax"]))
        dims = self.dims(x)
        keepdim = bool(self.rng.integers(0, 3)) or len(dims) == len(x.shape)
        return self.b.op(op, {"dims": dims, "keepdim": keepdim}, x=x)

    def do_softmax(self) -> Any:
        x = self.pick()
        return self.b.op(str(self.rng.choice(["softmax", "log_softmax"])), {"dim": self.dim(x)}, x=x)

    def do_layer_norm(self) -> Any:
        x = self.pick()
        if not isinstance(x.shape[-1], int):
            return None
        return self.b.op("layer_norm", {"normalized_shape": (x.shape[-1],)}, x=x)[0]

    def do_batch_norm(self) -> Any:
        x = self.pick()
        if len(x.shape) < 3:
            return None
        return self.b.op("batch_norm", x=x)[0]

    def do_cumsum(self) -> Any:
        x = self.pick()
        return self.b.op("cumsum", {"dim": self.dim(x)}, x=x)

    def do_contract(self) -> Any:
        x = self.pick()
        if len(x.shape) < 2:
            return None
        letters = "abcd"[: len(x.shape)]
        fits = [
            c
            for c in self.live
            if len(c.shape) == len(x.shape) and c.shape[-1] == x.shape[-1] and c.shape[:-2] == x.shape[:-2]
        ]
        y = fits[int(self.rng.integers(0, len(fits)))]
        self.used.add(y.name)
        other = letters[:-2] + "z" + letters[-1]
        return self.b.op("contract", {"equation": f"{letters},{other}->{letters[:-1]}z"}, a=x, b=y)


def random_network(
    seed: int, steps: int = 8, *, inner: Sequence[int] | None = None, unary: Sequence[str] = UNARY
) -> tuple[Program, dict[Symbol, int]]:
    """(differentiated program of maps, actual sizes); everything that nothing reads is an output. inner: sizes of all dimensions but the
    first, which are small random ones else; unary: functions of one operand to choose from."""
    rng = np.random.default_rng(seed)
    symbolic = bool(rng.integers(0, 3) == 0)
    first = SIZE if symbolic else int(rng.integers(1, 4))
    rest = [int(n) for n in rng.integers(1, 5, rng.integers(1, 4))]
    rest = rest if inner is None else list(inner)
    inputs: dict[str, Any] = {"x": (first, *rest)}
    parameters: dict[str, Any] = {}
    if rng.integers(0, 2):
        inputs["y"] = (first, *rest)
    if rng.integers(0, 2):
        parameters["w"] = (rest[-1],)
    if rng.integers(0, 2):
        parameters["u"] = (*rest[:-1], 1)

    def build(b: OpBuilder, *given: Container) -> list[Container]:
        grow = Grower(rng, b, list(given), unary)
        for _ in range(steps):
            grow.step()
        read = {m.container for n in b.nodes for m in n.reads.values()}
        ends = [c for c in grow.live[len(given) :] if c.name not in read]
        return ends or [b.op("tanh", x=given[0])]

    sizes = {SIZE: int(rng.integers(1, 4))} if symbolic else {}
    return network(build, parameters=parameters, sizes=[SIZE] if symbolic else [], **inputs), sizes
