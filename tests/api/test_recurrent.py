"""Recurrent modules: RNN, LSTM and GRU with layers, directions, projections and initial states, compiled whole; what is refused."""

from __future__ import annotations

import pytest
import torch
from api_compare import Pair
from torch import nn

import shorthaul as sh
from shorthaul.frontends import functional_recurrent

CASES = {
    "lstm": (lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2, batch_first=True), (2, 3, 3), None),
    "lstm_states": (lambda: nn.LSTM(3, 4), (3, 2, 3), [(1, 2, 4), (1, 2, 4)]),
    "gru": (lambda: nn.GRU(3, 4, bidirectional=True, bias=False), (3, 2, 3), [(2, 2, 4)]),
    "rnn": (lambda: nn.RNN(3, 4, nonlinearity="relu"), (3, 3), None),
}


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "name",
    ["lstm", pytest.param("lstm_states", marks=pytest.mark.slow), "gru", pytest.param("rnn", marks=pytest.mark.slow)],
)
def test_recurrent_modules_train(name: str) -> None:
    """Strict: no operator falls back, nothing is left to eager mode."""
    module, shape, states = CASES[name]
    pair = Pair(module())
    x = torch.randn(shape, dtype=torch.float64)
    hx = None if states is None else tuple(torch.randn(s, dtype=torch.float64) for s in states)
    start = hx[0] if hx is not None and len(hx) == 1 else hx

    def step(m: nn.Module):
        y, last = m(x, start)
        weight = torch.linspace(0, 1, y.numel(), dtype=y.dtype).view(y.shape)
        last = last if isinstance(last, tuple) else (last,)
        ((y * weight).sum() + sum((t * t).sum() for t in last)).backward()
        return y, last

    pair.both(step)
    assert not torch._dynamo.config.allow_rnn, "Dynamo's configuration is ours only during our calls"
    assert [r.fallback for r in pair.ours.report().regions] == [""]


def test_dropout_between_layers_is_ours() -> None:
    program = sh.capture(nn.LSTM(3, 4, num_layers=2, dropout=0.5), (torch.randn(3, 2, 3),))
    assert sum(getattr(n, "op", "") == "dropout" for n in program.nodes if n.phase == "forward") == 1
    program = sh.capture(nn.LSTM(3, 4, num_layers=2, dropout=0.5).eval(), (torch.randn(3, 2, 3),))
    assert not any(getattr(n, "op", "") == "dropout" for n in program.nodes)


def test_the_products_of_the_input_are_one() -> None:
    """One product of the whole sequence with the input's weights, and one a step with the hidden state's."""
    program = sh.capture(nn.GRU(3, 4), (torch.randn(5, 2, 3),), train=False)
    assert sum(getattr(n, "op", "") == "contract" for n in program.nodes) == 1 + 5
    assert sum(getattr(n, "op", "") == "gru_cell" for n in program.nodes) == 5


def test_long_and_packed_sequences_run_in_eager_mode_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional_recurrent, "MOST_STEPS", 4)
    module = nn.LSTM(3, 4)
    x = torch.randn(5, 2, 3)
    expected = module(x)[0]
    with pytest.warns(sh.FallbackWarning, match="5 steps, 1 layers"):
        actual = sh.optimize(module)(x)[0]
    torch.testing.assert_close(actual, expected)
    with pytest.raises(Exception, match="5 steps, 1 layers"):
        sh.optimize(nn.LSTM(3, 4), strict=True)(x)
