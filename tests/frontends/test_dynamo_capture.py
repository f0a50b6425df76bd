"""`capture_graph`: Dynamo's graph of one call without running it, and without traces left behind."""

from __future__ import annotations

import frontend_networks as N
import pytest
import torch
from frontend_reference import ReferenceBackend, execute
from torch import nn

from shorthaul.frontends.dynamo import capture_graph
from shorthaul.frontends.functional import Unsupported, functionalize


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def test_nothing_runs_and_no_buffer_changes():
    module = N.ResNet(4, 1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    generator = torch.get_rng_state()
    gm, example_inputs, real = capture_graph(module, (torch.randn(2, 3, 32, 32, generator=torch.Generator()),))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert len(example_inputs) == len(real) == sum(node.op == "placeholder" for node in gm.graph.nodes)
    assert all(p.grad is None for p in module.parameters())


def test_real_inputs_are_the_callers_own_tensors():
    module, x = N.MLP(), torch.randn(3, 8)
    gm, example_inputs, real = capture_graph(module, (x,))
    graph = functionalize(gm, example_inputs)
    parameters = dict(module.named_parameters())
    for spec, tensor in zip(graph.inputs, real):
        assert tensor is (parameters[spec.fqn] if spec.role == "parameter" else x)
    assert {spec.fqn for spec in graph.inputs if spec.role == "parameter"} == set(parameters)


def test_names_of_parameters_and_buffers():
    module = N.ResNet(4, 1)
    gm, example_inputs, real = capture_graph(module, (torch.randn(2, 3, 32, 32),))
    graph = functionalize(gm, example_inputs)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for spec, tensor in zip(graph.inputs, real):
        if spec.role in ("parameter", "buffer"):
            assert tensors[spec.fqn] is tensor
    assert {spec.role for spec in graph.inputs} == {"parameter", "buffer", "input"}


def test_tied_weights_are_one_input():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.decode = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
            self.decode.weight = self.encode.weight

        def forward(self, tokens):
            return self.decode(self.encode(tokens))

    gm, example_inputs, _ = capture_graph(Tied(), (torch.tensor([1, 2]),))
    parameters = [spec for spec in functionalize(gm, example_inputs).inputs if spec.role == "parameter"]
    assert len([spec for spec in parameters if spec.duplicate_of is None]) == 1


def test_captured_graph_computes_the_call():
    module = N.Bert().double()
    tokens, mask = torch.randint(1, 50, (2, 8)), torch.ones(2, 8, dtype=torch.bool)
    gm, example_inputs, real = capture_graph(module, (tokens,), {"mask": mask})
    (out,) = execute(functionalize(gm, example_inputs), real)
    torch.testing.assert_close(out, module(tokens, mask=mask))


def test_functions_and_closures():
    layer, scale = nn.Linear(4, 4), torch.rand(4, requires_grad=True)
    gm, example_inputs, real = capture_graph(lambda x: layer(x) * scale, (torch.randn(2, 4),))
    graph = functionalize(gm, example_inputs)
    assert {spec.fqn for spec in graph.inputs if spec.role == "parameter"} == {"weight", "bias"}
    assert any(tensor is scale for tensor in real)


def test_train_and_eval_are_captured_as_they_are():
    module, x = N.EfficientNetLike(0.3), torch.randn(2, 3, 32, 32)
    train = functionalize(*capture_graph(module, (x,))[:2])
    assert "aten.dropout.default" in train.targets and "aten.bernoulli.p" in train.targets
    evaluated = functionalize(*capture_graph(module.eval(), (x,))[:2])
    assert "aten.dropout.default" not in evaluated.targets and not evaluated.mutations


def test_later_compilation_of_the_same_module_works():
    module, x = N.MLP(), torch.randn(3, 8)
    capture_graph(module, (x,))
    backend = ReferenceBackend()
    compiled = torch.compile(module, backend=backend)
    torch.testing.assert_close(compiled(x), module(x))
    capture_graph(module, (x,))
    torch.testing.assert_close(compiled(x), module(x))
    assert len(backend.graphs) == 1


def test_captures_do_not_influence_each_other():
    module = N.MLP()
    for rows in (3, 5, 9):  # no dimension becomes dynamic because an earlier capture had another size
        _, example_inputs, _ = capture_graph(module, (torch.randn(rows, 8),))
        assert not any(isinstance(value, torch.SymInt) for value in example_inputs)


def test_dynamic_capture_has_symbolic_sizes():
    gm, example_inputs, real = capture_graph(N.Bert(), (torch.randint(1, 50, (3, 8)),), dynamic=True)
    graph = functionalize(gm, example_inputs)
    tokens = next(spec for spec in graph.inputs if spec.dtype is torch.int64 and len(spec.shape) == 2)
    assert all(isinstance(size, torch.SymInt) for size in tokens.shape)
    assert [spec.role for spec in graph.inputs].count("size") == sum(isinstance(v, int) for v in real)


def test_marked_dynamic_dimension():
    x = torch.randn(6, 8)
    torch._dynamo.mark_dynamic(x, 0)
    graph = functionalize(*capture_graph(N.MLP(), (x,))[:2])
    (spec,) = (spec for spec in graph.inputs if spec.role == "input")
    assert isinstance(spec.shape[0], torch.SymInt) and spec.shape[1] == 8


def test_graph_break_names_the_line():
    def function(x):
        y = x * 2
        print("a graph break")
        return y

    with pytest.raises(Unsupported, match=r'test_dynamo_capture.py", line \d+'):
        capture_graph(function, (torch.randn(3),))


def test_users_handlers_do_not_swallow_the_capture():
    def function(x):
        try:
            return x * 2
        except Exception:
            return x

    gm, _, _ = capture_graph(function, (torch.randn(3),))
    assert len(gm.graph.nodes) == 3


def test_errors_of_the_users_code_surface():
    with pytest.raises(Exception, match=r"(?s)(shapes|size).*") as info:
        capture_graph(nn.Linear(4, 4), (torch.randn(2, 5),))
    assert "linear" in str(info.value).lower()


def test_no_tensor_work_is_refused():
    with pytest.raises(Unsupported, match="no tensor computation"):
        capture_graph(lambda n: n + 1, (3,))


def test_identity_is_an_input():
    graph = functionalize(*capture_graph(lambda x: x, (torch.randn(3),))[:2])
    assert [spec.kind for spec in graph.outputs] == ["input"]


def test_eager_stance_does_not_run_the_model():
    module = N.Structured()
    with torch.compiler.set_stance("force_eager"):
        capture_graph(module, (torch.randn(3, 8),))
    assert module.calls == 0


def test_disabled_dynamo_is_refused():
    module = N.Structured()
    with torch._dynamo.config.patch(disable=True), pytest.raises(Unsupported, match="disabled"):
        capture_graph(module, (torch.randn(3, 8),))
    assert module.calls == 0


def test_readable_names():
    graph = functionalize(*capture_graph(N.MLP(), (torch.randn(3, 8),))[:2])
    assert [spec.name for spec in graph.inputs] == [n.name for n in graph.graph.nodes if n.op == "placeholder"]
    assert {"layers_0_weight", "layers_3_bias", "args_0"} <= {spec.name for spec in graph.inputs}


def test_arguments_must_be_a_tuple():
    with pytest.raises(TypeError, match="tuple"):
        capture_graph(nn.Linear(3, 3), torch.randn(2, 3))


def test_changing_float_becomes_an_input():
    def function(x, scale):
        return (x * scale + scale * 2).sum() * scale

    backend = ReferenceBackend()
    compiled = torch.compile(function, backend=backend)
    for scale in (2.0, 3.0, 4.5, 5.5):
        x = torch.randn(3, dtype=torch.float64)
        torch.testing.assert_close(compiled(x, scale), function(x, scale))
    assert len(backend.graphs) == 2
    assert "aten._local_scalar_dense.default" in backend.graphs[1].targets


def test_exported_program():
    """torch.export's graph (mutating ATen, buffers written in place) comes through the same door."""
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    program = torch.export.export(module, (x,))
    inputs = [*module.parameters(), *module.buffers(), x]
    graph = functionalize(program.graph_module, inputs)
    assert {"aten.linear.default", "aten.dropout.default"} <= set(graph.targets)
    assert len(graph.mutations) == 3
    origins = {n.meta["origin"].module for n in graph.graph.nodes if n.op == "call_function"}
    assert origins >= {"0", "1", "2"}
