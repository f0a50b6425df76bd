"""One call of a module as a capture record sees it: its arguments, PyTorch's settings, and the shape of what it returns."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .live_state import LiveState, NotRecordable, described

_PLAIN = (type(None), bool, int, str, bytes, torch.dtype, torch.device)
Key = tuple[Any, ...]


def arguments(args: tuple, kwargs: Mapping[str, Any], live: LiveState) -> tuple[Key, list[torch.Tensor]]:
    """What a trace depends on in the arguments, and the tensors among them, each once. Raises NotRecordable."""
    leaves: list[torch.Tensor] = []
    seen: dict[int, int] = {}
    storages: dict[int, int] = {}

    def key(v: Any) -> Any:
        t = type(v)
        if t is torch.Tensor or t is torch.nn.Parameter:
            known = live.index.get(id(v))
            if known is not None:
                return ("own", known)
            place = seen.get(id(v))
            if place is not None:
                return ("same", place)
            if v.device.type not in ("cpu", "cuda") or v.layout is not torch.strided or v.__dict__:
                raise NotRecordable("an argument is a tensor with attributes, or on another device, or not strided")
            seen[id(v)] = len(leaves)
            leaves.append(v)
            shared = storages.setdefault(v.untyped_storage()._cdata, len(storages))
            return (described(v), shared, v.storage_offset() if shared != len(storages) - 1 else 0)
        if t in _PLAIN:
            return (t.__name__, v)
        if t is float or t is complex:
            return (t.__name__, repr(v))
        if t is tuple or t is list:
            return (t.__name__, *[key(x) for x in v])
        if t is dict:
            if not all(type(k) in (str, int) for k in v):
                raise NotRecordable("an argument is a dict with keys other than strings and integers")
            return ("dict", *[(k, key(x)) for k, x in v.items()])
        raise NotRecordable(f"an argument is a {t.__qualname__}")

    return (key(args), key(dict(kwargs))), leaves


def settings() -> Key | None:
    """PyTorch's settings that a trace depends on; None while a mode, a function transform or another tracer is active."""
    c = torch._C
    if c._len_torch_function_stack() or c._len_torch_dispatch_stack() or c._functorch.peek_interpreter_stack() is not None:
        return None
    if c._get_tracing_state() is not None or c._autograd._top_saved_tensors_default_hooks(True) is not None:
        return None
    frames = sys.modules.get("torch._dynamo.eval_frame")
    if frames is not None and frames._stance.stance != "default":
        return None
    kinds = ("cpu", "cuda")
    autocast = (*((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in kinds), torch.is_autocast_cache_enabled())
    others = c._is_any_autocast_enabled()
    deterministic = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    return (
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast if others else (), torch.get_default_dtype(), deterministic,
        torch.get_float32_matmul_precision(),
    )  # fmt: skip


_SETTINGS = ("grad mode", "inference mode", "autocast", "the default dtype", "deterministic algorithms", "the precision of matrix products")


def changed_setting(before: Key, after: Key) -> str:
    """The names of the settings that differ."""
    return ", ".join(name for name, a, b in zip(_SETTINGS, before, after, strict=True) if a != b) + " changed"


_OURS = ("skip_nnmodule_hook_guards", "allow_rnn")


def tracer_is_default() -> bool:
    """Whether Dynamo's configuration, where it is loaded, is the one that it starts with, but for limits, which change no trace, and
    what `optimize` sets by itself."""
    config = sys.modules.get("torch._dynamo.config")
    if config is None:
        return True
    changed = [n for n in config._config if "limit" not in n and n not in _OURS and not config._is_default(n)]
    return all(getattr(config, n) == config._config[n].default for n in changed)


# --- inputs and outputs of the compiled graph by place ---------------------------------------------------------------


def places(inputs: Sequence[Any], live: LiveState, leaves: Sequence[torch.Tensor]) -> list[tuple[str, int]]:
    """Where each input of a graph comes from: ("own", i) of the module's tensors, ("argument", i) of the call's."""
    known = {id(t): ("argument", i) for i, t in enumerate(leaves)}
    found = []
    for x in inputs:
        place = ("own", live.index[id(x)]) if id(x) in live.index else known.get(id(x))
        if place is None:
            raise NotRecordable(f"an input of the graph is neither the module's nor an argument ({type(x).__name__})")
        found.append(place)
    return found


def template(value: Any, outputs: Sequence[Any], live: LiveState, leaves: Sequence[torch.Tensor]) -> Any:
    """How to build what the module returned from the outputs of the graph: nested lists of JSON values. Raises NotRecordable."""
    made = {id(t): ["output", i] for i, t in reversed(list(enumerate(outputs))) if isinstance(t, torch.Tensor)}
    made |= {id(t): ["argument", i] for i, t in enumerate(leaves)}
    made |= {i: ["own", k] for i, k in live.index.items()}
    built: set[int] = set()

    def of(v: Any) -> Any:
        t = type(v)
        if isinstance(v, torch.Tensor):
            if id(v) not in made:
                raise NotRecordable("a returned tensor is no output of the graph")
            return made[id(v)]
        if t in (type(None), bool, int, str):
            return ["constant", v]
        if t is float:
            return ["float", v.hex()]
        if id(v) in built:
            raise NotRecordable("an object is returned twice")
        built.add(id(v))
        if t is tuple or t is list:
            return [t.__name__, [of(x) for x in v]]
        if t is dict:
            if not all(type(k) in (str, int) for k in v):
                raise NotRecordable("a dict is returned with keys other than strings and integers")
            return ["dict", list(v), [of(x) for x in v.values()]]
        if t not in live.classes:
            raise NotRecordable(f"a {t.__qualname__} is returned")
        kind = live.classes.index(t)
        if issubclass(t, tuple) and hasattr(t, "_fields") and t.__mro__ == (t, tuple, object):
            return ["named", kind, [of(x) for x in v]]
        if dataclasses.is_dataclass(t) and t.__mro__ == (t, object) and "__slots__" not in vars(t):
            return ["object", kind, list(vars(v)), [of(x) for x in vars(v).values()]]
        raise NotRecordable(f"a {t.__qualname__} is returned")

    return of(value)


Build = Callable[[Sequence[Any], LiveState, Sequence[torch.Tensor]], Any]


def builder(form: Any) -> Build:
    """A function that builds what the module returns: the inverse of `template`."""
    kind = form[0]
    if kind == "output":
        at = form[1]
        return lambda outputs, live, leaves: outputs[at]
    if kind == "argument":
        at = form[1]
        return lambda outputs, live, leaves: leaves[at]
    if kind == "own":
        at = form[1]
        return lambda outputs, live, leaves: live.tensors[at]
    if kind in ("constant", "float"):
        value = form[1] if kind == "constant" else float.fromhex(form[1])
        return lambda outputs, live, leaves: value
    parts = [builder(f) for f in form[-1]]
    if kind == "tuple":
        return lambda outputs, live, leaves: tuple([p(outputs, live, leaves) for p in parts])
    if kind == "list":
        return lambda outputs, live, leaves: [p(outputs, live, leaves) for p in parts]
    if kind == "dict":
        keys = form[1]
        return lambda outputs, live, leaves: {k: p(outputs, live, leaves) for k, p in zip(keys, parts, strict=True)}
    which = form[1]
    if kind == "named":
        return lambda outputs, live, leaves: live.classes[which](*[p(outputs, live, leaves) for p in parts])
    if kind != "object":
        raise NotRecordable(f"the record has an output of unknown kind {kind!r}")
    names = form[2]

    def made(outputs: Sequence[Any], live: LiveState, leaves: Sequence[torch.Tensor]) -> Any:
        instance = object.__new__(live.classes[which])
        vars(instance).update({n: p(outputs, live, leaves) for n, p in zip(names, parts, strict=True)})
        return instance

    return made
