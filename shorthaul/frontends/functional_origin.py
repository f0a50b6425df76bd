"""Where a node of Dynamo's graph comes from: module path and source line."""

from __future__ import annotations

import functools
import os
import re
from typing import Any

import torch
from torch import fx

from shorthaul.frontends.functional import Origin
from shorthaul.frontends.origins import named_line

_TORCH_DIRECTORY = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_OWN_DIRECTORY = os.path.dirname(os.path.abspath(__file__)) + os.sep
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# frames of this package around the user's: the front end, the entries, and code that calls a container layer by layer
_OWN = (_OWN_DIRECTORY, *(os.path.join(_PACKAGE, name) for name in ("api.py", "modules.py", "warm")), "<shorthaul")
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*(?:\n[ \t]+([^\n]+))?')
_STEP = re.compile(r"\[\s*['\"]?([^'\"\]]+)['\"]?\s*\]|\.?([A-Za-z_0-9]+)")
_CONTAINERS = {"_modules", "_parameters", "_buffers"}


@functools.lru_cache(maxsize=8192)
def _innermost_user_frame(stack_trace: str) -> tuple[str, int, str]:
    """(file, line, code) of the innermost frame outside PyTorch and outside this package; of PyTorch's own where there is no other
    (a module of `torch.nn` by itself); nothing where there is none."""
    frames = [frame for frame in _FRAME.findall(stack_trace) if not frame[0].startswith(_OWN)]
    for file, line, code in reversed(frames):
        if not file.startswith(_TORCH_DIRECTORY):
            return file, int(line), code.strip()
    return (frames[-1][0], int(frames[-1][1]), frames[-1][2].strip()) if frames else ("", 0, "")


@functools.lru_cache(maxsize=8192)
def dotted_path(source: str) -> str:
    """`L['self']._modules['blocks']._modules['0'].weight` -> `blocks.0.weight` (the root's name is dropped)."""
    if "cell_contents" in source:  # a module that the traced function closes over
        source = source.split("cell_contents", 1)[1]
    else:
        source = re.sub(r"^[LG]\[['\"][^'\"]*['\"]\]", "", source)
    steps = [bracket or name for bracket, name in _STEP.findall(source)]
    return ".".join(step for step in steps if step not in _CONTAINERS)


def source_name(node: fx.Node) -> str:
    """Dynamo's expression for a placeholder, or an empty string."""
    source = getattr(node, "_dynamo_source", None) or getattr(node.meta.get("grapharg"), "source", None)
    if source is None:
        return ""
    name: Any = source.name  # a method before torch 2.10, a property since
    return name() if callable(name) else name


def readable_name(node: fx.Node) -> str:
    """`L['self']._modules['head']._parameters['weight']` -> `head_weight`, `L['args'][0]` -> `args_0`."""
    source = source_name(node)
    local = re.match(r"^[LG]\[['\"](\w+)['\"]\]", source)
    path = dotted_path(source)
    if local is not None and local.group(1) not in ("self", "module"):
        path = f"{local.group(1)}.{path}" if path else local.group(1)
    name = re.sub(r"\W+", "_", path).strip("_") or node.name
    return name if not name[0].isdigit() else f"m_{name}"


def call_name(node: fx.Node) -> str:
    """A short name of the torch-level call."""
    if isinstance(node.target, str):
        return node.target
    return getattr(node.target, "__name__", None) or str(node.target)


def origin_of(node: fx.Node, fallback: Origin | None = None) -> Origin:
    """The origin of a node of Dynamo's graph; what it does not say is taken from `fallback`."""
    module, module_type = "", ""
    stack = node.meta.get("nn_module_stack")
    if stack:
        path, cls = next(reversed(stack.values()))
        module = dotted_path(path)
        module_type = cls if isinstance(cls, str) else cls.__name__
    elif fallback is not None:
        module, module_type = fallback.module, fallback.module_type
    trace = node.meta.get("stack_trace") or node.stack_trace
    if trace:
        file, line, code = _innermost_user_frame(trace)
        named = named_line(file, line)
        if named is not None:  # a line of generated code stands for a node of an ONNX model
            module, module_type = named
    elif fallback is not None:
        file, line, code = fallback.file, fallback.line, fallback.code
    else:
        file, line, code = "", 0, ""
    return Origin(module, module_type, file, line, code, call_name(node))
