"""RNN, LSTM and GRU modules in our operators: the input's product once for the whole sequence, then step by step.

A layer of T steps becomes T small products and T elementwise cells. Lengths are part of the program: another length is another program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from shorthaul.frontends.functional import Unsupported
from shorthaul.frontends.functional_record import ours

aten = torch.ops.aten
MOST_STEPS = 2048  # of all layers and directions; longer ones would take minutes to compile
State = tuple[torch.Tensor, ...]
Step = Callable[[torch.Tensor, torch.Tensor, State], State]


def _lstm_step(x: torch.Tensor, gates: torch.Tensor, state: State) -> State:
    return ours.lstm_cell.default(x, gates, state[1])


def _gru_step(x: torch.Tensor, gates: torch.Tensor, state: State) -> State:
    return (ours.gru_cell.default(x, gates, state[0]),)


def _tanh_step(x: torch.Tensor, gates: torch.Tensor, state: State) -> State:
    return (torch.tanh(x + gates),)


def _relu_step(x: torch.Tensor, gates: torch.Tensor, state: State) -> State:
    return (torch.relu(x + gates),)


def _direction(
    x: torch.Tensor, state: State, weights: Sequence[torch.Tensor], biased: bool, step: Step, backwards: bool, linear: Callable
) -> tuple[torch.Tensor, State]:
    """One layer in one direction over x (time, batch, features): the hidden states of all steps, and the last state."""
    w_input, w_hidden = weights[:2]
    b_input, b_hidden = weights[2:4] if biased else (None, None)
    projection = weights[-1] if len(weights) in (3, 5) else None
    inputs = linear(x, w_input, b_input).unbind(0)
    found = []
    for at in reversed(inputs) if backwards else inputs:
        state = step(at, linear(state[0], w_hidden, b_hidden), state)
        if projection is not None:
            state = (linear(state[0], projection), *state[1:])
        found.append(state[0])
    return torch.stack(found[::-1] if backwards else found), state


def _run(
    step: Step, input: torch.Tensor, initial: State, params: Sequence[torch.Tensor], biased: bool, layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    from shorthaul.frontends.functional_composites import dropout as drop
    from shorthaul.frontends.functional_composites import linear

    directions = 2 if bidirectional else 1
    x = input.transpose(0, 1) if batch_first else input
    steps = int(x.shape[0])
    if steps * layers * directions > MOST_STEPS:
        raise Unsupported(
            f"a recurrent layer of {steps} steps, {layers} layers and {directions} directions would be unrolled",
            remedy=f"Up to {MOST_STEPS} steps of all layers are; use shorter sequences, or a loop over parts of the sequence.",
        )
    per = len(params) // (layers * directions)
    last: list[State] = []
    for layer in range(layers):
        outputs = []
        for d in range(directions):
            k = layer * directions + d
            start = tuple(s.select(0, k) for s in initial)
            y, state = _direction(x, start, params[k * per : (k + 1) * per], biased, step, d == 1, linear)
            outputs.append(y)
            last.append(state)
        x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
        if dropout and train and layer < layers - 1:
            x = drop(x, dropout, train)
    finals = tuple(torch.stack(s) for s in zip(*last, strict=True))
    return (x.transpose(0, 1) if batch_first else x, *finals)


def lstm(input: torch.Tensor, hx: Any, params: Any, *rest: Any) -> tuple[torch.Tensor, ...]:
    if isinstance(hx, torch.Tensor):
        raise _packed()
    return _run(_lstm_step, input, tuple(hx), params, *rest)


def _with_one_state(step: Step) -> Callable[..., tuple[torch.Tensor, ...]]:
    def function(input: torch.Tensor, hx: Any, params: Any, *rest: Any) -> tuple[torch.Tensor, ...]:
        if isinstance(params, torch.Tensor):
            raise _packed()
        return _run(step, input, (hx,), params, *rest)

    return function


def _packed() -> Unsupported:
    return Unsupported("a packed sequence has sizes that depend on data", remedy="Pass a padded tensor, and mask what it computes.")


def lstm_cell(input: torch.Tensor, hx: Any, w_ih: torch.Tensor, w_hh: torch.Tensor, b_ih: Any = None, b_hh: Any = None) -> State:
    from shorthaul.frontends.functional_composites import linear

    return ours.lstm_cell.default(linear(input, w_ih, b_ih), linear(hx[0], w_hh, b_hh), hx[1])


def gru_cell(input: torch.Tensor, hx: torch.Tensor, w_ih: torch.Tensor, w_hh: torch.Tensor, b_ih: Any = None, b_hh: Any = None) -> Any:
    from shorthaul.frontends.functional_composites import linear

    return ours.gru_cell.default(linear(input, w_ih, b_ih), linear(hx, w_hh, b_hh), hx)


_gru, _tanh, _relu = (_with_one_state(step) for step in (_gru_step, _tanh_step, _relu_step))
RECURRENT: dict[Any, Callable] = {
    torch._VF.lstm: lstm, torch._VF.gru: _gru, torch._VF.rnn_tanh: _tanh, torch._VF.rnn_relu: _relu,
    torch.lstm: lstm, torch.gru: _gru, torch.rnn_tanh: _tanh, torch.rnn_relu: _relu,
    torch._VF.lstm_cell: lstm_cell, torch.lstm_cell: lstm_cell, torch._VF.gru_cell: gru_cell, torch.gru_cell: gru_cell,
}  # fmt: skip
