"""RNN, GRU and LSTM, unrolled over time: elementwise code and matrix products that fuse, forward and backward.

Shapes as in ONNX: X [time, batch, inputs] (layout 0), weights [directions, gates·hidden, ...]; results Y [time, directions, batch,
hidden] and the last states [directions, batch, hidden]. Beyond a sequence's length states stay and Y is zero.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shorthaul.errors import OnnxError
from shorthaul.frontends.onnx_model.table import operator

# the function, and ONNX's default alpha and beta
_ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], float, float]] = {
    "relu": (lambda x, a, b: torch.relu(x), 0, 0),
    "tanh": (lambda x, a, b: torch.tanh(x), 0, 0),
    "sigmoid": (lambda x, a, b: torch.sigmoid(x), 0, 0),
    "affine": (lambda x, a, b: a * x + b, 1.0, 0.0),
    "leakyrelu": (lambda x, a, b: F.leaky_relu(x, a), 0.01, 0),
    "thresholdedrelu": (lambda x, a, b: torch.where(x > a, x, 0.0), 1.0, 0),
    "scaledtanh": (lambda x, a, b: a * torch.tanh(b * x), 1.0, 1.0),
    "hardsigmoid": (lambda x, a, b: torch.clamp(a * x + b, 0.0, 1.0), 0.2, 0.5),
    "elu": (lambda x, a, b: F.elu(x, a), 1.0, 0),
    "softsign": (lambda x, a, b: F.softsign(x), 0, 0),
    "softplus": (lambda x, a, b: F.softplus(x), 0, 0),
}
_WITH_ALPHA = {"affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu"}
_WITH_BETA = {"affine", "scaledtanh", "hardsigmoid"}


def _activations(names: Any, alphas: Any, betas: Any, default: list[str], directions: int) -> list[list[Callable[[Tensor], Tensor]]]:
    """For each direction the functions of its gates; alphas and betas are given in order to those that have one."""
    names = [n.lower() for n in (names or default * directions)]
    alpha, beta = list(alphas or ()), list(betas or ())
    found: list[Callable[[Tensor], Tensor]] = []
    for n in names:
        if n not in _ACTIVATIONS:
            raise OnnxError(f"no activation {n!r}; there are {', '.join(_ACTIVATIONS)}")
        f, a, b = _ACTIVATIONS[n]
        a = alpha.pop(0) if n in _WITH_ALPHA and alpha else a
        b = beta.pop(0) if n in _WITH_BETA and beta else b
        found.append(functools.partial(_apply, f, a, b))
    each = len(default)
    return [found[d * each : (d + 1) * each] for d in range(directions)]


def _apply(f: Callable[..., Tensor], a: float, b: float, x: Tensor) -> Tensor:
    return f(x, a, b)


Step = Callable[[Tensor, tuple], tuple]


def _run(steps: list[Step], x: Tensor, states: list[tuple], direction: str, lengths: Any) -> tuple[Tensor, list[Tensor]]:
    """Run one step function a direction over time; returns Y and the last states (as ONNX shapes them)."""
    time = x.shape[0]
    results, last = [], []
    for d, (step, state) in enumerate(zip(steps, states, strict=True)):
        backwards = direction == "reverse" or d == 1
        outputs: list[Tensor] = []
        for t in reversed(range(time)) if backwards else range(time):
            new = step(x[t], state)
            if lengths is not None:
                alive = (t < lengths)[:, None]
                outputs.append(torch.where(alive, new[0], torch.zeros_like(new[0])))
                new = tuple(torch.where(alive, n, s) for n, s in zip(new, state, strict=True))
            else:
                outputs.append(new[0])
            state = new
        results.append(torch.stack(outputs[::-1] if backwards else outputs))
        last.append(state)
    return torch.stack(results, 1), [torch.stack(kind) for kind in zip(*last, strict=True)]


def _split_bias(b: Any, d: int) -> tuple[Any, Any]:
    return (None, None) if b is None else b[d].chunk(2)


def _clipped(x: Tensor, clip: float | None) -> Tensor:
    return x if clip is None else x.clamp(-clip, clip)


class _Layout:
    """Layout 1 has the batch first; inside, time is first."""

    def __init__(self, x: Tensor, layout: int, r: Tensor, direction: str) -> None:
        self.layout, self.r = layout, r
        self.x = x.transpose(0, 1) if layout else x
        self.directions = 2 if direction == "bidirectional" else 1
        if self.directions != r.shape[0]:
            raise OnnxError(f"direction {direction!r} with recurrent weights of {r.shape[0]} directions")

    def initial(self, state: Any) -> list[Tensor]:
        if state is None:
            zero = self.x.new_zeros(self.x.shape[1], self.r.shape[-1])
            return [zero] * self.directions
        return list((state.transpose(0, 1) if self.layout else state).unbind(0))

    def results(self, y: Tensor, last: list[Tensor]) -> tuple[Tensor, ...]:
        if not self.layout:
            return y, *last
        return y.permute(2, 0, 1, 3), *[s.transpose(0, 1) for s in last]


@operator("RNN", ignores=("hidden_size", "output_sequence"))
def rnn(
    x: Tensor, w: Tensor, r: Tensor, b: Any = None, lengths: Any = None, initial_h: Any = None, *, activations: Any, activation_alpha: Any,
    activation_beta: Any, clip: float | None, direction: str, layout: int = 0,
) -> tuple[Tensor, ...]:  # fmt: skip
    place = _Layout(x, layout, r, direction)
    functions = _activations(activations, activation_alpha, activation_beta, ["Tanh"], place.directions)

    def step_of(d: int) -> Step:
        wb, rb = _split_bias(b, d)

        def step(xt: Tensor, state: tuple) -> tuple:
            return (functions[d][0](_clipped(F.linear(xt, w[d], wb) + F.linear(state[0], r[d], rb), clip)),)

        return step

    states = [(h,) for h in place.initial(initial_h)]
    return place.results(*_run([step_of(d) for d in range(place.directions)], place.x, states, direction, lengths))


@operator("GRU", ignores=("hidden_size", "output_sequence"))
def gru(
    x: Tensor, w: Tensor, r: Tensor, b: Any = None, lengths: Any = None, initial_h: Any = None, *, activations: Any, activation_alpha: Any,
    activation_beta: Any, clip: float | None, direction: str, layout: int = 0, linear_before_reset: int = 0,
) -> tuple[Tensor, ...]:  # fmt: skip
    place = _Layout(x, layout, r, direction)
    functions = _activations(activations, activation_alpha, activation_beta, ["Sigmoid", "Tanh"], place.directions)
    hidden = r.shape[-1]

    def step_of(d: int) -> Step:
        wb, rb = _split_bias(b, d)
        f, g = functions[d]

        def step(xt: Tensor, state: tuple) -> tuple:
            h = state[0]
            gates = F.linear(xt, w[d], wb)
            both = gates[:, : 2 * hidden] + F.linear(h, r[d][: 2 * hidden], None if rb is None else rb[: 2 * hidden])
            z, reset = f(_clipped(both, clip)).chunk(2, 1)
            r_h, rb_h = r[d][2 * hidden :], None if rb is None else rb[2 * hidden :]
            recurrent = reset * F.linear(h, r_h, rb_h) if linear_before_reset else F.linear(reset * h, r_h, rb_h)
            new = g(_clipped(gates[:, 2 * hidden :] + recurrent, clip))
            return ((1 - z) * new + z * h,)

        return step

    states = [(h,) for h in place.initial(initial_h)]
    return place.results(*_run([step_of(d) for d in range(place.directions)], place.x, states, direction, lengths))


@operator("LSTM", ignores=("hidden_size", "output_sequence"))
def lstm(
    x: Tensor, w: Tensor, r: Tensor, b: Any = None, lengths: Any = None, initial_h: Any = None, initial_c: Any = None, p: Any = None, *,
    activations: Any, activation_alpha: Any, activation_beta: Any, clip: float | None, direction: str, input_forget: int, layout: int = 0,
) -> tuple[Tensor, ...]:  # fmt: skip
    place = _Layout(x, layout, r, direction)
    functions = _activations(activations, activation_alpha, activation_beta, ["Sigmoid", "Tanh", "Tanh"], place.directions)

    def step_of(d: int) -> Step:
        wb, rb = _split_bias(b, d)
        f, g, h = functions[d]
        peep = p[d].chunk(3) if p is not None else None  # of the input, output and forget gates

        def step(xt: Tensor, state: tuple) -> tuple:
            hidden, cell = state
            i, o, forget, c = (F.linear(xt, w[d], wb) + F.linear(hidden, r[d], rb)).chunk(4, 1)
            if peep is not None:
                i, forget = i + peep[0] * cell, forget + peep[2] * cell
            i = f(_clipped(i, clip))
            forget = 1 - i if input_forget else f(_clipped(forget, clip))
            new = forget * cell + i * g(_clipped(c, clip))
            o = f(_clipped(o if peep is None else o + peep[1] * new, clip))
            return o * h(new), new

        return step

    states = list(zip(place.initial(initial_h), place.initial(initial_c), strict=True))
    return place.results(*_run([step_of(d) for d in range(place.directions)], place.x, states, direction, lengths))
