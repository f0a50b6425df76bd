"""Graph breaks inside `nn.Sequential`.

Dynamo does not compile the frames of PyTorch's own containers. Where one of the layers breaks the graph (`shorthaul.disable`, a
print), it would leave the whole container to eager mode, and it cannot resume inside a loop either. So a container gets a call
that is code of its own, with a statement for every layer: the frame is compiled in parts around the layer that breaks it. Where
nothing breaks, Dynamo inlines the container's own forward and never comes here.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain_sequential(module: nn.Module) -> bool:
    """Whether calling the module means calling its layers one after the other."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward and "forward" not in module.__dict__


def unrolled_call(container: nn.Sequential) -> Callable[..., Any]:
    """A function of the container and its arguments that calls it layer by layer; as a whole where it has hooks, or other layers than
    now."""
    names = tuple(container._modules)
    lines = ["def call_Sequential(self, *args, **kwargs):"]
    lines += [f"    if kwargs or len(args) != 1 or tuple(self._modules) != names or {' or '.join(f'self.{h}' for h in _HOOKS)}:",
              "        return self._call_impl(*args, **kwargs)",
              "    value, = args"]  # fmt: skip
    lines += [f"    value = self._modules[{name!r}](value)" for name in names]
    scope: dict[str, Any] = {"names": names}
    exec(compile("\n".join([*lines, "    return value"]), "<shorthaul: nn.Sequential>", "exec"), scope)
    return scope["call_Sequential"]


def unroll_containers(module: nn.Module) -> None:
    """Give every plain `nn.Sequential` inside the module its unrolled call, where it has no call of its own yet."""
    for child in module.modules():
        if child is not module and is_plain_sequential(child) and child._compiled_call_impl is None:
            call = types.MethodType(unrolled_call(child), child)  # type: ignore[arg-type]
            child._compiled_call_impl = call  # type: ignore[assignment]
