"""One forward and backward pass of a copy of a model: outputs, gradients and buffers by name."""

from __future__ import annotations

import contextlib
import copy
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from shorthaul.testing.masks import masks
from shorthaul.testing.training import other_layout, restride_parameters

SPREAD_OF_INPUTS = 2.0**-6  # how far the inputs of further samples lie from the given ones, relative
Variant = str  # "": as given; "layout": another memory layout; "nudge 3": parameters and inputs off by a unit in the last place


def copy_of(model: nn.Module, *, wide: bool = False, variant: Variant = "") -> nn.Module:
    """A copy without gradients, in float64 with `wide`. Raises TypeError for a module that cannot be copied."""
    try:
        twin = copy.deepcopy(model)
    except Exception as e:
        what = f"verify works on copies, and {type(model).__name__} cannot be copied ({str(e).splitlines()[0]})"
        raise TypeError(f"{what}; remove what holds a computed tensor as an attribute, or verify the module without it") from e
    twin.zero_grad(set_to_none=True)
    if wide:
        twin.double()
        for m in twin.modules():  # tensors that are attributes, neither parameters nor buffers
            for name, value in vars(m).items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    setattr(m, name, value.double())
    if variant == "layout":
        restride_parameters(twin)
    elif variant:
        with torch.no_grad():
            for i, p in enumerate(twin.parameters()):
                if p.is_floating_point():
                    p.data = nudged(p.data, f"{variant} {i}")
    return twin


class Float64(TorchFunctionMode):
    """While it is on, what is made or cast to a narrower floating type is float64: the reference of a model that makes float32 tensors of
    its own (masks, positions, `.float()`) is exact all the same."""

    def __enter__(self) -> Any:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        torch.set_default_dtype(self.before)
        super().__exit__(*exception)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        args, named = tree_map(_widened, (args, dict(kwargs or {})))
        return (Tensor.double if func in _NARROWING else func)(*args, **named)


_NARROWING = {Tensor.float, Tensor.half, Tensor.bfloat16}


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point and value.itemsize > 1 else value


def nudged(x: Tensor, name: str) -> Tensor:
    """Each element up or down by about one unit in the last place, or as it is; by chance, but always the same for a name."""
    steps = torch.randint(-1, 2, x.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    return (x.double() * (1 + steps * torch.finfo(x.dtype).eps)).to(x.dtype)


def sampled(inputs: Any, seed: int) -> Any:
    """The given inputs for seed 0; near ones, with other rounding errors, for the others."""
    generator = torch.Generator().manual_seed(seed)

    def near(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point() or seed == 0:
            return x
        moved = x.detach() * (1 + SPREAD_OF_INPUTS * torch.randn(x.shape, generator=generator, dtype=torch.float64)).to(x.dtype)
        return moved.requires_grad_(x.requires_grad)

    return tree_map(near, inputs)


def run(
    module: nn.Module,
    inputs: tuple,
    kwargs: Mapping[str, Any],
    *,
    seed: int,
    loss: Callable[[Any], Tensor] | None = None,
    masked: bool = False,
    wide: bool = False,
    exact: bool = False,
    variant: Variant = "",
) -> dict[str, Tensor]:
    """Call the module and go backward from `loss` of its outputs (a random linear function of them by default).

    wide: inputs in float64. exact: what the module makes by itself, too (`Float64`).
    Names are `output/0`, `gradient/path.of.parameter`, `input/0`, `buffer/path`.
    """

    def placed(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        y = x.detach().clone()
        if variant and x.is_floating_point():
            y = other_layout(y) if variant == "layout" else nudged(y, variant)
        y = y.double() if wide and x.is_floating_point() else y
        return y.requires_grad_(x.requires_grad)

    args, named = tree_map(placed, (inputs, dict(kwargs)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with Float64() if exact else contextlib.nullcontext():
            with masks(module) if masked else contextlib.nullcontext():
                outputs = module(*args, **named)
            found = {f"output/{i}": t for i, t in enumerate(tensors_of(outputs))}
            total = loss(outputs) if loss is not None else random_function(list(found.values()), seed)
        if isinstance(total, Tensor) and total.requires_grad:
            total.backward()
    result = {n: t.detach().clone() for n, t in found.items()}
    result.update((f"gradient/{n}", p.grad.detach().clone()) for n, p in module.named_parameters() if p.grad is not None)
    result.update((f"buffer/{n}", b.detach().clone()) for n, b in module.named_buffers())
    leaves = [x for x in tree_leaves((args, named)) if isinstance(x, Tensor)]
    result.update((f"input/{i}", x.grad.detach().clone()) for i, x in enumerate(leaves) if x.grad is not None)
    return result


def tensors_of(outputs: Any) -> list[Tensor]:
    """The tensors of a structure of outputs, dataclasses included."""
    found: list[Tensor] = []
    for leaf in tree_leaves(outputs, is_leaf=lambda v: hasattr(v, "__dataclass_fields__")):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dataclass_fields__"):
            found += tensors_of([getattr(leaf, name) for name in leaf.__dataclass_fields__])
    return found


def random_function(outputs: Sequence[Tensor], seed: int) -> Tensor | None:
    """A sum of all differentiable outputs with weights in [0.5, 1.5) that every dtype holds exactly."""
    total = None
    generator = torch.Generator().manual_seed(seed)
    for t in outputs:
        if t.requires_grad and t.is_floating_point():
            weights = torch.randint(64, 192, t.shape, generator=generator).to(torch.float64) / 128
            term = (t * weights.to(t.dtype)).sum() if t.dtype == torch.float64 else (t.float() * weights.float()).sum()
            total = term if total is None else total + term
    return total


@contextlib.contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """The module's dropout layers keep everything."""
    layers = [m for m in module.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    before = [m.p for m in layers]
    for m in layers:
        m.p = 0.0
    try:
        yield
    finally:
        for m, p in zip(layers, before, strict=True):
            m.p = p


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two runs gave the same outputs to the bit (NaN counts as equal)."""
    return a.keys() == b.keys() and all(bool(((a[n] == b[n]) | (a[n] != a[n])).all()) for n in a if n.startswith("output/"))
