"""PyTorch's module database against Shorthaul: outputs and gradients of every torch.nn module, in training and evaluation mode.

    python tests/suites/moduleinfo.py [--dtype float32] [--samples 3] [--results FILE] [--only NAME] [--imports]

runs entries of `module_db` through `torch.compile(backend="shorthaul")` and compares with eager mode; see opinfo.py for the options.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from opinfo import TOLERANCE, Outcome, Probe, failed, read, same_types, short, table
from torch.testing._internal.common_modules import module_db
from torch.utils._pytree import tree_flatten, tree_map

SAMPLES = 3


def entries(dtype: torch.dtype = torch.float32) -> list[Any]:
    """The modules of the database that take that dtype on the CPU."""
    return [m for m in module_db if dtype in m.dtypes]


def evaluate(module: torch.nn.Module, call: Any, args: tuple, kwargs: dict) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs of a call, and the gradients of their weighted sum by inputs and parameters (zeros where there is none)."""

    def own(t: Any) -> Any:
        return t.detach().clone().requires_grad_(t.requires_grad) if isinstance(t, torch.Tensor) else t

    args, kwargs = tree_map(own, (args, kwargs))
    torch.manual_seed(0)
    outputs = [o for o in tree_flatten(call(*args, **kwargs))[0] if isinstance(o, torch.Tensor)]
    leaves = [t for t in [*tree_flatten((args, kwargs))[0], *module.parameters()] if isinstance(t, torch.Tensor) and t.requires_grad]
    wanted = [o for o in outputs if o.requires_grad and o.is_floating_point()]
    if not wanted or not leaves:
        return outputs, []
    total = sum((o * torch.linspace(0.5, 1.5, o.numel(), dtype=o.dtype).view(o.shape)).sum() for o in wanted)
    found = torch.autograd.grad(total, leaves, allow_unused=True)  # type: ignore[arg-type]
    return outputs, [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


def outcome(info: Any, dtype: torch.dtype = torch.float32, samples: int = SAMPLES, compiles: bool = True) -> Outcome:
    """Run the first inputs of an entry both ways, in training and evaluation mode. Inputs that eager mode refuses do not count."""
    start = time.perf_counter()
    result = Outcome(info.name, "unusable")
    rank = {s: i for i, s in enumerate(("unusable", "unreached", "native", "random", "fallback", "eager"))}
    for training in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inputs = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)[:samples]
            for i, s in enumerate(inputs):
                try:
                    torch.manual_seed(0)
                    module = info.module_cls(*s.constructor_input.args, **s.constructor_input.kwargs).to(dtype).train(training)
                    twin = copy.deepcopy(module)
                    args, kwargs = s.forward_input.args, s.forward_input.kwargs
                    expected = evaluate(module, module, args, kwargs)
                except Exception:
                    continue
                probe = Probe(compiles)
                torch._dynamo.reset()
                result.samples += 1
                where = f"input {i} in {'training' if training else 'evaluation'}"
                try:
                    # recurrent modules: what sh.optimize sets during its calls
                    with torch._dynamo.config.patch(allow_rnn=True):
                        actual = evaluate(twin, torch.compile(lambda *a, m=twin, **k: m(*a, **k), backend=probe), args, kwargs)
                    if probe.random:
                        same_types(actual, expected)
                    else:
                        torch.testing.assert_close(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], equal_nan=True)
                        state = [v for v in (module, twin) for v in v.buffers()]
                        half = len(state) // 2
                        torch.testing.assert_close(state[half:], state[:half], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
                except AssertionError as e:
                    return failed(result, "mismatch", f"{where}: {short(e)}", start)
                except Exception as e:
                    return failed(result, "error", f"{where}: {type(e).__name__}: {short(e)}", start)
                result.fallbacks = sorted({*result.fallbacks, *probe.fallbacks})
                found = ("eager" if probe.eager else "fallback" if probe.fallbacks else "unreached" if not probe.record.regions
                         else "random" if probe.random else "native")  # fmt: skip
                if rank[found] > rank[result.state]:
                    result.state = found
                if probe.eager and not result.detail:
                    result.detail = probe.eager[0][:300]
    result.seconds = round(time.perf_counter() - start, 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--only", nargs="*", help="names of entries")
    parser.add_argument("--results", type=Path, help="JSON lines; entries that stand there are not run again")
    parser.add_argument("--imports", action="store_true", help="stop after import and differentiation")
    a = parser.parse_args()
    dtype = getattr(torch, a.dtype)
    done = read(a.results) if a.results else []
    known = {o.name for o in done}
    for info in entries(dtype):
        if info.name in known or (a.only and info.name not in a.only):
            continue
        found = outcome(info, dtype, a.samples, not a.imports)
        done.append(found)
        print(f"{found.name:40} {found.state:10} {found.seconds:6.1f} s  {found.detail or ', '.join(found.fallbacks)}"[:250], flush=True)
        if a.results:
            with a.results.open("a") as file:
                file.write(json.dumps(asdict(found)) + "\n")
    print(table(done))


if __name__ == "__main__":
    main()
