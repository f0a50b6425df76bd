"""Whole networks through the front door: values, gradients, buffers, structure and flags as in eager."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import frontend_networks as N
import pytest
import torch
from frontend_reference import ReferenceBackend
from torch import nn
from torch.utils import _pytree as pytree


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def leaves(value: Any) -> list[Any]:
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def same(found: Any, expected: Any, what: str, tolerance: float | None = None) -> None:
    if not isinstance(expected, torch.Tensor):
        assert found == expected, what
        return
    assert found.dtype == expected.dtype and found.shape == expected.shape, what
    assert found.stride() == expected.stride() or found.numel() <= 1, (
        f"{what}: strides {found.stride()} {expected.stride()}"
    )
    tolerance = tolerance or {torch.bfloat16: 2e-2, torch.float32: 1e-5}.get(expected.dtype, 1e-10)
    torch.testing.assert_close(
        found, expected, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m: f"{what}: {m}"
    )


def against_eager(
    module: nn.Module, calls: list[tuple[tuple, dict]], dtype=torch.float64, tolerance=None
) -> ReferenceBackend:
    """Run `calls` on the module and on a compiled copy; compare everything that a caller can see."""
    eager = module.to(dtype)
    other = copy.deepcopy(eager)
    backend = ReferenceBackend()
    compiled = torch.compile(other, backend=backend, fullgraph=True)
    for args, kwargs in calls:
        cast = lambda t: t.to(dtype) if t.is_floating_point() else t  # noqa: E731
        args, kwargs = pytree.tree_map_only(torch.Tensor, cast, (args, kwargs))
        copies = pytree.tree_map_only(
            torch.Tensor, lambda t: t.clone().requires_grad_(t.is_floating_point()), (args, kwargs)
        )
        twins = pytree.tree_map_only(
            torch.Tensor, lambda t: t.clone().requires_grad_(t.is_floating_point()), (args, kwargs)
        )
        expected, found = eager(*copies[0], **copies[1]), compiled(*twins[0], **twins[1])
        assert type(found) is type(expected)
        ours, theirs = leaves(found), leaves(expected)
        assert len(ours) == len(theirs)
        for index, (a, b) in enumerate(zip(ours, theirs)):
            same(a, b, f"output {index}", tolerance)
            if isinstance(b, torch.Tensor):
                assert a.requires_grad == b.requires_grad, f"output {index}"
        loss_of = lambda values: sum(v.sin().sum() for v in values if isinstance(v, torch.Tensor) and v.requires_grad)  # noqa: E731
        loss_of(theirs).backward()
        loss_of(ours).backward()
        for (name, p), q in zip(eager.named_parameters(), other.parameters()):
            assert (p.grad is None) == (q.grad is None), name
            if p.grad is not None:
                same(q.grad, p.grad, f"gradient of {name}", tolerance)
        for (name, p), q in zip(eager.named_buffers(), other.buffers()):
            same(q, p, f"buffer {name}")
        for index, (p, q) in enumerate(zip(pytree.tree_leaves(copies), pytree.tree_leaves(twins))):
            if isinstance(p, torch.Tensor):
                same(q, p, f"input {index} afterwards")
                assert (p.grad is None) == (q.grad is None), f"input {index}"
                if p.grad is not None:
                    same(q.grad, p.grad, f"gradient of input {index}", tolerance)
    return backend


TOKENS = torch.randint(1, 50, (2, 8))
PADDED = torch.arange(8)[None] < torch.tensor([8, 5])[:, None]
NETWORKS = {
    "mlp": (lambda: N.MLP(), ((torch.randn(3, 8),), {})),
    "lenet": (lambda: N.LeNet(), ((torch.randn(2, 1, 28, 28),), {})),
    "resnet": (lambda: N.ResNet(4, 1), ((torch.randn(2, 3, 33, 33),), {})),
    "resnet_eval": (lambda: N.ResNet(4, 1).eval(), ((torch.randn(2, 3, 32, 32),), {})),
    "efficientnet": (lambda: N.EfficientNetLike(), ((torch.randn(2, 3, 32, 32),), {})),
    "bert": (lambda: N.Bert(), ((TOKENS,), {})),
    "bert_mask_labels": (lambda: N.Bert(), ((TOKENS,), {"mask": PADDED, "labels": torch.tensor([0, 2])})),
    "manual_attention": (lambda: N.ManualAttention(), ((torch.randn(2, 8, 16),), {})),
    "torch_encoder": (lambda: N.TorchEncoder(), ((torch.randn(2, 8, 16),), {})),
    "torch_encoder_mask": (lambda: N.TorchEncoder(True), ((torch.randn(2, 8, 16),), {"key_padding_mask": ~PADDED})),
    "checkpointed": (lambda: N.Checkpointed(), ((torch.randn(3, 8),), {})),
    "custom_functions": (lambda: N.CustomFunctions(), ((torch.randn(3, 8),), {})),
    "structured": (lambda: N.Structured(), ((torch.randn(3, 8),), {})),
    "structured_kwargs": (lambda: N.Structured(), ((torch.randn(3, 8),), {"scale": 0.5, "target": torch.randn(3, 8)})),
    "recurrent": (lambda: N.Recurrent(), ((torch.randn(2, 3, 8),), {})),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network_as_in_eager(name):
    build, call = NETWORKS[name]
    backend = against_eager(build(), [call, call])
    assert len(backend.graphs) == 1


def resized(call: tuple[tuple, dict], batch: int) -> tuple[tuple, dict]:
    return pytree.tree_map_only(torch.Tensor, lambda t: torch.cat([t] * batch)[:batch], call)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("resnet_eval", "structured_kwargs")])
def test_changing_batch(name):
    build, call = NETWORKS[name]
    backend = against_eager(build(), [resized(call, 3), resized(call, 5), resized(call, 7)])
    assert len(backend.graphs) == 2
    assert any(spec.role == "size" for spec in backend.graphs[1].inputs)
    assert any(isinstance(size, torch.SymInt) for spec in backend.graphs[1].inputs for size in spec.shape)


def targets(backend: ReferenceBackend) -> set[str]:
    return set(backend.graphs[-1].targets)


@pytest.mark.parametrize("name", ["bert", "torch_encoder_mask", "manual_attention"])
def test_composites_stay_whole(name):
    build, call = NETWORKS[name]
    found = targets(against_eager(build(), [call]))
    assert "aten.linear.default" in found
    assert (
        "aten.scaled_dot_product_attention.default" if name != "manual_attention" else "aten.matmul.default"
    ) in found
    assert not found & {"aten.addmm.default", "aten.bmm.default", "aten.t.default", "aten.native_layer_norm.default"}


def test_dropout_is_one_random_node_each():
    module = N.Bert(dropout=0.25, layers=1)
    backend = ReferenceBackend()
    torch.compile(module, backend=backend, fullgraph=True)(TOKENS).sum().backward()
    nodes = [n for n in backend.graphs[0].graph.nodes if n.target is torch.ops.aten.dropout.default]
    assert len(nodes) == 3
    assert all(n.args[1:] == (0.25, True) for n in nodes)


def test_batch_norm_statistics_are_results():
    backend = against_eager(N.ResNet(4, 1), [((torch.randn(2, 3, 32, 32),), {})])
    graph = backend.graphs[0]
    written = {graph.inputs[m.input].fqn for m in graph.mutations}
    assert {"stem.1.running_mean", "stem.1.running_var", "stem.1.num_batches_tracked"} <= written
    assert all(graph.inputs[m.input].role == "buffer" and not m.differentiable for m in graph.mutations)
    assert "aten._native_batch_norm_legit_functional.default" in graph.targets


def test_origins_name_module_and_line():
    backend = against_eager(N.Bert(layers=2), [((TOKENS,), {})])
    origins = {str(n.target): n.meta["origin"] for n in backend.graphs[0].graph.nodes if n.op == "call_function"}
    attention = origins["aten.scaled_dot_product_attention.default"]
    assert attention.module == "layers.1"
    assert attention.file.endswith("frontend_networks.py") and "F.scaled_dot_product_attention" in attention.code
    assert {o.module for o in (n.meta["origin"] for n in backend.graphs[0].graph.nodes if n.op == "call_function")} >= {
        "layers.0.query",
        "layers.1.norm2",
        "head",
    }


def test_checkpoint_regions_are_marked():
    graph = against_eager(N.Checkpointed(), [((torch.randn(3, 8),), {})]).graphs[0]
    regions = {n.meta["checkpoint"] for n in graph.graph.nodes if n.op == "call_function"}
    assert len(regions) == 2 and None not in regions


def test_custom_function_keeps_its_backward():
    graph = against_eager(N.CustomFunctions(), [((torch.randn(3, 8),), {})]).graphs[0]
    functions = list(graph.attributes.values())
    assert len(functions) == 3
    exp = functions[1]
    assert exp.n_outputs >= 2 and exp.non_differentiable == (1,) and len(exp.takes_gradient) == 2
    assert "aten.round.default" in functions[0].forward.targets and not functions[0].backward.targets
    for function in functions:
        for part in (function.forward, function.backward):
            assert all(not n.target._schema.is_mutable for n in part.graph.nodes if hasattr(n.target, "_schema"))


def test_autocast_becomes_casts():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.conv = nn.Linear(8, 8), nn.Linear(8, 8), nn.Conv1d(1, 2, 3)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                y = self.first(self.first(x))
                z = torch.matmul(y, self.second.weight) @ y.t()
                y = nn.functional.scaled_dot_product_attention(y[None, None], x[None, None], y[None, None]).flatten(
                    0, 2
                )
                with torch.autocast("cpu", enabled=False):
                    y = self.second(y.float())
                loss = nn.functional.mse_loss(y, x) + self.conv(y[:, None]).sum() + nn.functional.softmax(z, -1).sum()
            return y, z, loss

    graph = against_eager(Net(), [((torch.randn(3, 8),), {})], torch.float32).graphs[0]
    weight = next(i for i, spec in enumerate(graph.inputs) if spec.fqn == "first.weight")
    node = [n for n in graph.graph.nodes if n.op == "placeholder"][weight]
    assert len(node.users) == 1, "autocast casts a weight once in a region"
    assert not torch.is_autocast_enabled("cpu")


def test_whole_step_under_outer_autocast():
    module = N.Bert(layers=1)
    expected_module, backend = copy.deepcopy(module), ReferenceBackend()
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = expected_module(TOKENS), compiled(TOKENS)
    same(found, expected, "output")
    expected.float().sum().backward()
    found.float().sum().backward()
    for (name, p), q in zip(expected_module.named_parameters(), module.parameters()):
        same(q.grad.bfloat16(), p.grad.bfloat16(), name)
