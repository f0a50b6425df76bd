"""`shorthaul.verify`: right models pass, wrong ones fail, and what is at fault is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import shorthaul as sh
import shorthaul.runtime.compile
from shorthaul import pipeline
from shorthaul.cli import main
from shorthaul.config import Options
from shorthaul.ir.nodes import Map
from shorthaul.modules import optimize_with
from shorthaul.ops.registry import definition
from shorthaul.verification.locate import locate, record


class Block(nn.Module):
    """What the faults are put into: a layer norm, a sine, a batch norm."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.drop, self.batch, self.head = nn.Dropout(p), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.batch(self.drop(self.norm(self.first(x)).sin())).tanh())


def batch(n: int = 16, width: int = 8) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was compiled with a fault stays."""
    monkeypatch.setenv("SHORTHAUL_CACHE_DIR", str(tmp_path))


def test_right_model_passes_and_stays_as_it_is() -> None:
    model = Block()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    found = sh.verify(model, batch().requires_grad_())
    assert found.ok, found
    names = {r.name for r in found.agreement.rows}
    assert {"output/0", "input/0", "buffer/batch.running_mean", *(f"gradient/{n}" for n, _ in model.named_parameters())} <= names
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and model.first.weight.grad is None
    text = str(found)
    assert text.startswith("agrees with eager") and "gradient/norm.weight" in text
    assert "norm (aten.layer_norm.default) at" in text and "test_verification.py:" in text, text


HELD = torch.ones(8, 8)


class Narrow(nn.Module):
    """It makes float32 tensors of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.scale = nn.Linear(8, 8), torch.full((8, 8), 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = (x @ torch.ones(8, 8).tril()).float() + torch.arange(8, dtype=torch.float32) / 3
        return self.linear(h) @ self.scale


def test_a_model_that_makes_float32_tensors_has_an_exact_reference() -> None:
    found = sh.verify(Narrow(), batch())
    assert found.ok, found
    assert max(r.eager for r in found.agreement.rows) > 0  # eager's own error: the reference is not made of float32
    assert torch.get_default_dtype() is torch.float32


def test_a_model_that_does_not_run_in_float64_is_refused_in_words() -> None:
    class Stubborn(Narrow):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) @ HELD

    with pytest.raises(TypeError, match=r"run in float64, and Stubborn does not run in it: .*dtype.*make it a buffer"):
        sh.verify(Stubborn(), batch())


def test_optimized_model_with_a_loss_and_keyword_arguments() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: torch.Tensor, *, scale: float, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.block(x) * scale
            return {"loss": F.cross_entropy(y, labels), "y": y}

    model = sh.optimize(Scaled())
    found = sh.verify(model, (batch(),), kwargs={"scale": 2.0, "labels": torch.arange(16) % 4}, loss=lambda out: out["loss"])
    assert found.ok, found
    assert {"output/0", "output/1"} <= {r.name for r in found.agreement.rows}


def test_random_numbers_are_those_of_the_optimized_model() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block(0.3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.block(x)
            y = y + 0.1 * torch.randn_like(y)
            return F.dropout(y, 0.5) * torch.rand(4)

    found = sh.verify(Noisy(), batch())
    assert found.ok, found
    assert any("given those of the optimized model" in n for n in found.notes)


def test_dropout_is_switched_off_where_masks_cannot_be_given() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.LayerNorm(8), nn.Tanh())
            self.tail = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = checkpoint(self.block, x, use_reentrant=False)
            torch._dynamo.graph_break()
            return self.tail(y)

    found = sh.verify(Parts(), batch(), seeds=(0,))
    assert found.ok, found
    assert any("switched off" in n for n in found.notes)


def test_what_cannot_be_compared_is_said() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x[torch.randperm(16)])

    with pytest.raises(ValueError, match=r"random numbers that eager mode cannot be given.*no rule for.*randperm"):
        sh.verify(Shuffled(), batch())
    model = Block()
    model.kept = model.first(batch())  # type: ignore[assignment]
    with pytest.raises(TypeError, match="verify works on copies, and Block cannot be copied"):
        sh.verify(model, batch())
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module, not function"):
        sh.verify(lambda x: x, batch())  # type: ignore[arg-type]


class Jumps(nn.Module):
    """A jump at a threshold of its own for every input."""

    def __init__(self, thresholds: torch.Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full(thresholds.shape, 3.0))
        self.register_buffer("thresholds", thresholds)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.tanh(x) >= self.thresholds, x * self.scale, x)


def test_chaotic_network_passes_and_the_note_says_why() -> None:
    """Thresholds at which eager is right by luck: its rounded tanh lies on the exact one's side, that of our kernel on the other."""
    x = torch.linspace(-0.7, 0.7, 20001)  # where a nudge of x moves its tanh
    eager, ours = torch.tanh(x), sh.optimize(nn.Sequential(nn.Tanh(), nn.Flatten(0)))(x)
    right = torch.tanh(x.double()) >= eager.double()
    unlucky, lucky = (t.nonzero().flatten()[:n] for t, n in ((right & (ours < eager), 2), (right & (ours == eager), 62)))
    if not len(unlucky):
        pytest.skip("this machine's tanh and ours round alike")
    chosen = torch.cat([unlucky, lucky])
    found = sh.verify(Jumps(eager[chosen]), x[chosen], seeds=(0,), find_fault=False)
    assert found.ok, found
    assert any("chaotic" in n for n in found.notes), found
    plain = sh.verify(Jumps(eager[chosen] + 1e-3), x[chosen], seeds=(0,))  # away from the jumps nothing is noted
    assert plain.ok and not plain.notes


def test_wrong_transformation_is_named(monkeypatch: pytest.MonkeyPatch, fresh_cache: None) -> None:
    original = pipeline.eliminate_common_subexpressions

    def and_a_fault(program: Any) -> Any:
        result = original(program)
        node = next(n for n in program.nodes if isinstance(n, Map) and n.is_elementwise and n.phase == "backward" and n.tasklet)
        code = {k: v * 1.01 for k, v in node.tasklet.code.items()}  # type: ignore[union-attr]
        with program.edit("WrongScale", where="here") as edit:
            edit.replace(node, node.with_(body=(node.tasklet.with_(code=code),)))  # type: ignore[union-attr]
        return result

    monkeypatch.setattr(pipeline, "eliminate_common_subexpressions", and_a_fault)
    found = sh.verify(Block(), batch())
    assert not found.ok
    (fault,) = found.faults
    assert (fault.stage, fault.name, fault.where) == ("transformation", "WrongScale", "here")
    assert fault.node is not None and fault.node.phase == "backward" and "test_verification.py" in fault.origin.source
    assert "at fault in region 0: transformation WrongScale, at here" in str(found) and "DOES NOT AGREE" in str(found)


def test_wrong_meaning_of_an_operator_is_named(monkeypatch: pytest.MonkeyPatch, fresh_cache: None) -> None:
    kind = type(definition("layer_norm"))
    original = kind.maps

    def wrong(self: Any, c: Any) -> None:
        c.node = c.node.with_(attributes={**c.node.attributes, "eps": 0.3})
        original(self, c)

    monkeypatch.setattr(kind, "maps", wrong)
    (fault,) = sh.verify(Block(), batch(), seeds=(0,)).faults
    assert (fault.stage, fault.name, fault.origin.module) == ("operator", "layer_norm", "norm")


def test_wrong_gradient_of_an_operator_is_named(monkeypatch: pytest.MonkeyPatch, fresh_cache: None) -> None:
    kind = type(definition("layer_norm"))
    original = kind.gradient

    def wrong(self: Any, g: Any) -> Any:
        found = dict(original(self, g))  # type: ignore[misc]
        return {**found, "x": g.pointwise(lambda v: v * 1.02, found["x"], dtype=found["x"].dtype)}

    monkeypatch.setattr(kind, "gradient", wrong)
    (fault,) = sh.verify(Block(), batch(), seeds=(0,)).faults
    assert (fault.stage, fault.name, fault.origin.module) == ("operator", "gradient of layer_norm", "norm")


def test_wrong_kernel_is_named(monkeypatch: pytest.MonkeyPatch, fresh_cache: None) -> None:
    original = shorthaul.runtime.compile.emit_kernel

    def wrong(node: Any, *args: Any, **options: Any) -> Any:
        kernel = original(node, *args, **options)
        return dataclasses.replace(kernel, source=kernel.source.replace("sh::sin(", "sh::cos("))

    monkeypatch.setattr(shorthaul.runtime.compile, "emit_kernel", wrong)
    found = sh.verify(Block(), batch(), seeds=(0,))
    (fault,) = found.faults
    assert fault.stage == "kernel" and fault.name.startswith("k_") and fault.node is not None, found
    assert any("sin" in o.operator for o in fault.node.origins)
    assert "test_verification.py:" in str(fault)


NETWORK = """
import torch
def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()), (torch.randn(4, 8),)
"""


def test_kernels_that_write_parts_of_a_container_are_not_at_fault() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x.sin() * self.scale, x.cumsum(1)])

    model, calls = optimize_with(Joined(), Options(0, trace=True)), []
    model(batch())
    with record(model.report().regions, calls):
        model(batch()).sum().backward()
    assert len(calls) == 1 and locate(calls[0]) is None


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "verified_network.py"
    file.write_text(NETWORK)
    assert main(["verify", f"{file}:make", "--worst", "2"]) == 0
    shown = capsys.readouterr().out
    assert "agrees with eager" in shown and "tensors nearer to their reference" in shown
    monkeypatch.setattr("shorthaul.testing.numerics.MEDIAN_RATIO", -1.0)  # a rule that nothing keeps
    monkeypatch.setattr("shorthaul.testing.numerics.ULPS", {torch.float32: -1.0})
    monkeypatch.setattr("shorthaul.testing.numerics.WORST_RATIO", -1.0)
    assert main(["verify", f"{file}:make"]) == 1
    assert "DOES NOT AGREE" in capsys.readouterr().out
