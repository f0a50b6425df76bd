"""ONNX models train: a perceptron, a convolutional network and a transformer, saved again and read by others."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx_models import convolutional, perceptron, transformer

import shorthaul as sh
from shorthaul.testing.numerics import compare

MODELS = {"perceptron": perceptron, "convolutional": convolutional, "transformer": transformer}


def batch_of(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    if name == "transformer":
        tokens = torch.randint(11, (4, 7), generator=g)
        return tokens, tokens.roll(-1, 1)
    shape = (16, 8) if name == "perceptron" else (8, 3, 12, 12)
    return torch.randn(shape, generator=g), torch.randint(4, (shape[0],), generator=g)


def loss_of(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(scores.flatten(0, -2), target.flatten())


def step_of(module: torch.nn.Module, name: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Loss and gradients of one step."""
    x, target = batch_of(name)
    module.zero_grad()
    if dtype is torch.float64:  # beside the declared types: the code itself takes any
        scores = module._code.run(module, x.device, x.double() if x.is_floating_point() else x)[0]
    else:
        scores = module(x)
    loss = loss_of(scores, target)
    loss.backward()
    return {"loss": loss.detach(), **{f"gradient/{n}": p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_is_saved_and_read_by_others(name: str, tmp_path: Path) -> None:
    proto = MODELS[name]()
    module = sh.load_onnx(proto)
    eager, exact = step_of(module, name), step_of(copy.deepcopy(module).double(), name, torch.float64)
    model = sh.optimize(module)
    assert model is module
    verdict = compare(step_of(model, name), eager, exact, title=name)
    assert verdict.ok, verdict
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, target = batch_of(name)
    losses = []
    for _ in range(25):
        loss = loss_of(model(x), target)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0], losses
    text = str(model.report())
    assert "runs in eager mode" not in text
    path = tmp_path / "trained.onnx"
    sh.save_onnx(model, path)
    saved = onnx.load(path)
    onnx.checker.check_model(saved)
    assert [n.name for n in saved.graph.node] == [n.name for n in proto.graph.node]
    assert [t.name for t in saved.graph.initializer] == [t.name for t in proto.graph.initializer]
    again = sh.load_onnx(path)
    with torch.no_grad():
        plain = copy.deepcopy(module)
        torch.testing.assert_close(again(x), plain(x), rtol=0, atol=0)
        (independent,) = ReferenceEvaluator(saved).run(None, {proto.graph.input[0].name: x.numpy()})
        np.testing.assert_allclose(independent, again(x).numpy(), rtol=2e-4, atol=2e-5)


def test_parameters_are_named_as_in_the_model() -> None:
    module = sh.load_onnx(convolutional())
    names = dict(module.named_parameters())
    assert list(names) == ["stem.weight", "bn.scale", "bn.bias", "body.weight", "body.bias", "head.weight", "head.bias"]
    assert [n for n, _ in module.named_buffers()] == ["bn.mean", "bn.var"]  # statistics; shape constants are in the code
    assert module.stem.weight.shape == (6, 3, 3, 3)
    assert "Reshape(a, target" in module.code or "Reshape" in module.code


def test_copies_pickles_and_states(tmp_path: Path) -> None:
    module = sh.load_onnx(perceptron())
    x, _ = batch_of("perceptron")
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.fc1.weight.add_(1.0)
    assert not torch.equal(module.fc1.weight, other.fc1.weight)
    back = pickle.loads(pickle.dumps(other))
    assert torch.equal(back(x), other(x))
    module.load_state_dict(other.state_dict())
    assert torch.equal(module(x), other(x))
    assert torch.equal(module(x=x), module(x))
    # in a process that has not loaded a model
    torch.save(module, tmp_path / "module.pt")
    code = f"import torch; m = torch.load({str(tmp_path / 'module.pt')!r}, weights_only=False); print(m.program(torch.ones(2, 8)).name)"
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_the_program_and_its_movement_name_the_nodes() -> None:
    module = sh.load_onnx(perceptron())
    program = module.program(torch.ones(32, 8))
    assert {n.origin.module for n in program.nodes if n.phase == "forward"} == {"/fc1/Gemm", "/act/Relu", "/fc2/Gemm"}
    program.optimize()
    assert "/fc2/Gemm" in program.movement().table(by="module")


def test_sizes_computed_in_the_graph_neither_break_it_nor_depend_on_data() -> None:
    program = sh.load_onnx(convolutional()).program(torch.ones(2, 3, 12, 12))  # capture refuses graph breaks
    assert "reshape" in str(program).lower() or "view" in str(program).lower()


def test_external_data_are_written_and_read(tmp_path: Path) -> None:
    module = sh.load_onnx(transformer())
    sh.save_onnx(module, tmp_path / "m.onnx", external_data=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    tokens, _ = batch_of("transformer")
    assert torch.equal(sh.load_onnx(tmp_path / "m.onnx")(tokens), module(tokens))


def test_saving_refuses_another_type(tmp_path: Path) -> None:
    module = sh.load_onnx(perceptron())
    with pytest.raises(sh.OnnxError, match=r"fc1.weight.*float64"):
        sh.save_onnx(module.double(), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match=r"torch\.onnx\.export"):
        sh.save_onnx(torch.nn.Linear(2, 2), tmp_path / "m.onnx")


def test_frozen_and_unfrozen_parameters() -> None:
    module = sh.load_onnx(perceptron())
    module.fc1.weight.requires_grad_(False)
    gradients = step_of(module, "perceptron")
    assert "gradient/fc1.weight" not in gradients
    module.fc1.weight.requires_grad_(True)
    assert "gradient/fc1.weight" in step_of(module, "perceptron")
