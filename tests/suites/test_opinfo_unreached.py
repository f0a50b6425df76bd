"""Entries of PyTorch's operator database that never reach the backend (`UNREACHED`), through `sh.capture`.

They set PyTorch's seed, or have results whose size is data; captured without the seed, and with sizes that are data allowed, each is one
program. It is optimized and interpreted: results and gradients are eager's; those of random entries have eager's shapes, dtypes and
moments, repeat with a seed and change with it. What Dynamo cannot make one graph of stands in `REFUSED`, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import opinfo
import pytest
import torch
from opinfo_expected import UNREACHED
from torch import Tensor
from torch.testing._internal import common_methods_invocations
from torch.utils._pytree import tree_flatten, tree_unflatten

import shorthaul as sh
from shorthaul.codegen.library.interpreting import library_for_interpreter
from shorthaul.frontends.functional import Unsupported
from shorthaul.ir.interpreter import InterpretError, interpret
from shorthaul.ir.nodes import LibraryCall
from shorthaul.ir.program import Program
from shorthaul.testing import sample

WHOLE = {"capture_dynamic_output_shape_ops": True, "capture_scalar_outputs": True}
SAMPLES, DRAWS = 3, 60
# what the refusal says
REFUSED = {
    "allclose": "Data dependent operator",  # a Python bool
    "equal": "Data dependent operator",
    "corrcoef": "Data dependent operator",  # PyTorch compares weights
    "cov": "Data dependent operator",
    "nn.functional.gaussian_nll_loss": "data-dependent",  # looks for negative variances
    "linalg.lstsq": "no meta kernel",
    "linalg.lstsq.grad_oriented": "no meta kernel",
    "nn.functional.ctc_loss": "no meta kernel",
    "resize_": "resize_",
    "resize_as_": "skipped",
    "sparse.mm.reduce": "sparse",
    "sparse.sampled_addmm": "sparse",
    "to_sparse": "sparse",
}
# samples of which PyTorch's tracing of sizes that are data is wrong: the entry, what is said, at capture or when the program runs
PARTLY = {
    "combinations": "PendingUnbackedSymbolNotFound",  # of no combinations
    "masked_select": "is not between",  # a mask larger than the tensor: PyTorch bounds the count by the tensor's size
}
UNSTABLE_GRADIENTS = {"pca_lowrank", "svd_lowrank"}  # of matrices of low rank: they divide by differences of equal singular values
KNOWN = torch.__version__.startswith("2.13")


@pytest.fixture(autouse=True)
def _unseeded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The entries without the wrapper that sets the seed."""
    monkeypatch.setattr(common_methods_invocations, "wrapper_set_seed", lambda f, *args, **kwargs: f(*args, **kwargs))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Call:
    """A sample of an entry as a function of its tensors."""

    def __init__(self, op: Any, s: Any) -> None:
        self.op = op
        self.leaves, self.structure = tree_flatten((s.input, s.args, s.kwargs))
        self.places = [k for k, v in enumerate(self.leaves) if isinstance(v, Tensor)]

    def tensors(self) -> list[Tensor]:
        """The tensors anew: no gradients, and nothing written into them."""
        given = (self.leaves[k] for k in self.places)
        return [t.detach().clone().requires_grad_(t.requires_grad) for t in given]

    def __call__(self, *tensors: Tensor) -> Any:
        values = list(self.leaves)
        for k, t in zip(self.places, tensors, strict=True):
            values[k] = t
        given, args, kwargs = tree_unflatten(values, self.structure)
        return self.op.op(given, *args, **kwargs)

    def eager(self, seed: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Results, and gradients of the sum of the floating ones by tensor."""
        torch.manual_seed(seed)
        tensors = self.tensors()
        found = tree_flatten(self(*tensors))[0]
        outputs = [torch.tensor(o, dtype=torch.float64) if isinstance(o, float) else o for o in found if isinstance(o, (Tensor, float))]
        wanted = [o.sum() for o in outputs if o.requires_grad and o.is_floating_point()]
        if wanted:
            sum(wanted).backward()  # type: ignore[union-attr]
        return [o.detach() for o in outputs], {f"args_{k}": t.grad for k, t in enumerate(tensors) if t.grad is not None}

    def captured(self) -> Program:
        with torch._dynamo.config.patch(**WHOLE):
            program = sh.capture(lambda *tensors: self(*tensors), tuple(self.tensors()), train=self.op.supports_autograd)
        return program.optimize(level=2)

    def ours(self, program: Program, seed: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The same of the program, by the interpreter; two seeds give two sets of random numbers."""
        torch.manual_seed(seed)  # of the calls of PyTorch
        values: dict[str, Any] = {f"args_{k}": t.detach().numpy() for k, t in enumerate(self.tensors())}
        values.update(rng_seed=np.asarray(seed * 7919 + 1), rng_offset=np.asarray(0))
        values = {n: values[n] for n in program.signature.inputs}
        # cotangents of results whose sizes are data are made of ones of the right size
        sizes = interpret(_forward(program), values, library=library_for_interpreter()) if program.signature.cotangents else {}
        torch.manual_seed(seed)
        for output, cotangent in program.signature.cotangents:
            values[cotangent] = np.ones_like(sizes[output])
        found = interpret(program, values, library=library_for_interpreter())
        as_tensor = lambda n: torch.from_numpy(np.array(found[n]))  # noqa: E731
        return [as_tensor(n) for n in program.signature.outputs], {i: as_tensor(g) for i, g in program.signature.gradients}


def _forward(program: Program) -> Program:
    """The program without its backward phase."""
    p = program.clone()
    with p.edit("Test") as edit:
        for n in reversed([n for n in p.nodes if n.phase == "backward"]):
            edit.remove(n)
        edit.set_signature(p.signature.with_(cotangents=(), gradients=()))
    return p


def _is_random(program: Program) -> bool:
    return "rng_seed" in program.signature.inputs or any(isinstance(n, LibraryCall) and n.attributes.get("random") for n in program.nodes)


def _calls(name: str) -> Iterator[Call]:
    op = opinfo.by_name()[name]
    for i, s in enumerate(op.sample_inputs("cpu", torch.float32, requires_grad=op.supports_autograd)):
        if i >= SAMPLES:
            return
        yield Call(op, s)


def _same_distribution(call: Call, program: Program, name: str) -> None:
    """Results change with the seed, and have, like the gradients, eager's moments."""
    ours = [call.ours(program, k) for k in range(DRAWS)]
    eager = [call.eager(k) for k in range(DRAWS)]
    count = len(ours[0][0])
    if sum(o.numel() for o in ours[0][0]) > 9 and not name.startswith("nn.functional.fractional"):  # whose windows are few
        assert len({tuple(o.sum().item() for o in values) for values, _ in ours}) > 1
    for k in range(count):
        _same_moments([values[k] for values, _ in ours], [values[k] for values, _ in eager], f"result {k}")
    for n in ours[0][1] if name not in UNSTABLE_GRADIENTS else ():
        _same_moments([g[n] for _, g in ours], [g[n] for _, g in eager], f"gradient {n}")


def _same_moments(ours: list[Tensor], eager: list[Tensor], what: str) -> None:
    """The means of bounded functions of the elements, over many draws, differ by what chance makes of them."""
    a, b = (torch.stack([t.double().flatten() for t in draws]) for draws in (ours, eager))
    if not b.numel():
        return
    size = b.abs().mean()
    scale = b.abs().median() if b.abs().median() > 1e-4 * size else size + 1e-6
    for name, function in (("tanh", torch.tanh), ("square", lambda z: torch.tanh(z) ** 2)):
        x, y = (function(v / scale).mean(1) for v in (a, b))
        spread = float((x.var() + y.var()) / DRAWS) ** 0.5
        assert abs(float(x.mean() - y.mean())) <= 5 * spread + 1e-5, f"{what}, {name}: {x.mean():.4f} ± {spread:.4f}, eager {y.mean():.4f}"


@pytest.mark.skipif(not KNOWN, reason="the list is for torch 2.13")
@pytest.mark.parametrize("name", sample(sorted(UNREACHED - set(REFUSED)), 8))
@pytest.mark.filterwarnings("ignore")
def test_captured(name: str) -> None:
    for i, call in enumerate(_calls(name)):
        try:
            program = call.captured()
            (expected, gradients), (found, ours) = call.eager(0), call.ours(program, 0)
        except (Unsupported, InterpretError) as e:
            if i > 0 and PARTLY.get(name, "?") in str(e):
                continue
            raise
        if not program.nodes:  # without random numbers here, the call gives an argument or a constant
            continue
        assert [(o.shape, o.dtype) for o in found] == [(o.shape, o.dtype) for o in expected[: len(found)]], f"sample {i}"
        assert ours.keys() == gradients.keys(), f"sample {i}"
        assert [g.shape for g in ours.values()] == [gradients[n].shape for n in ours]
        if not _is_random(program):
            torch.testing.assert_close((found, ours), (expected, gradients), rtol=1e-4, atol=1e-4, equal_nan=True)
            continue
        torch.testing.assert_close(call.ours(program, 0), (found, ours), rtol=0, atol=0, equal_nan=True)
        if i == 0 or max(o.numel() for o in found) > 50:
            _same_distribution(call, program, name)


@pytest.mark.skipif(not KNOWN, reason="the list is for torch 2.13")
@pytest.mark.parametrize("name", sample(sorted(REFUSED), 4))
@pytest.mark.filterwarnings("ignore")
def test_refused(name: str) -> None:
    """A clear error, which names what PyTorch's tracing cannot do; `torch.compile` leaves such a call to eager mode."""
    with pytest.raises(Unsupported, match=REFUSED[name]):
        next(_calls(name)).captured()


def test_the_list_is_about_unreached_entries() -> None:
    assert set(REFUSED) <= UNREACHED
