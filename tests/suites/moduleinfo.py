"""PyTorch's module database against Shorthaul: outputs and gradients of every torch.nn module, in training and evaluation mode.

    python tests/suites/moduleinfo.py [--dtype float32] [--samples 3] [--results FILE] [--only NAME] [--imports]

runs entries of `module_db` through `torch.compile(backend="shorthaul")` and compares with eager mode; see opinfo.py for the options.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from judging import SAMPLES, TOLERANCE, Case, Outcome, fresh, judge, run
from torch.testing._internal.common_modules import module_db
from torch.utils._pytree import tree_flatten


def entries(dtype: torch.dtype = torch.float32) -> list[Any]:
    """The modules of the database that take that dtype on the CPU."""
    return [m for m in module_db if dtype in m.dtypes]


def evaluate(module: torch.nn.Module, call: Any, args: tuple, kwargs: dict) -> tuple[list[Any], list[Any], list[Any]]:
    """Outputs of a call, the gradients of their weighted sum by inputs and parameters (None where there is none), and the buffers."""
    args, kwargs = fresh((args, kwargs))
    torch.manual_seed(0)
    outputs = [o for o in tree_flatten(call(*args, **kwargs))[0] if isinstance(o, torch.Tensor)]
    leaves = [t for t in [*tree_flatten((args, kwargs))[0], *module.parameters()] if isinstance(t, torch.Tensor) and t.requires_grad]
    wanted = [o for o in outputs if o.requires_grad and o.is_floating_point()]
    if not wanted or not leaves:
        return outputs, [], list(module.buffers())
    total = sum((o * torch.linspace(0.5, 1.5, o.numel(), dtype=o.dtype).view(o.shape)).sum() for o in wanted)
    found = torch.autograd.grad(total, leaves, allow_unused=True)  # type: ignore[arg-type]
    return outputs, list(found), list(module.buffers())


def outcome(info: Any, dtype: torch.dtype = torch.float32, samples: int = SAMPLES, compiles: bool = True) -> Outcome:
    """Run the first inputs of an entry both ways, in training and evaluation mode. Inputs that eager mode refuses do not count."""

    def close(actual: Any, expected: Any) -> None:
        torch.testing.assert_close(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], equal_nan=True)

    def case(s: Any, where: str, training: bool) -> Case:
        args, kwargs = s.forward_input.args, s.forward_input.kwargs
        twins: list[torch.nn.Module] = []

        def eager() -> Any:
            torch.manual_seed(0)
            module = info.module_cls(*s.constructor_input.args, **s.constructor_input.kwargs).to(dtype).train(training)
            twins.append(copy.deepcopy(module))
            return evaluate(module, module, args, kwargs)

        def compiled(backend: Any) -> Any:
            # recurrent modules: what sh.optimize sets during its calls
            with torch._dynamo.config.patch(allow_rnn=True):
                return evaluate(twins[0], torch.compile(lambda *a, m=twins[0], **k: m(*a, **k), backend=backend), args, kwargs)

        return Case(where, eager, compiled, close)

    def cases() -> Iterator[Case]:
        for training in (True, False):
            inputs = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)[:samples]
            for i, s in enumerate(inputs):
                yield case(s, f"input {i} in {'training' if training else 'evaluation'}", training)

    return judge(info.name, cases(), compiles)


if __name__ == "__main__":
    run(__doc__, entries, lambda info: info.name, outcome)
