"""The capture record as JSON: how a compiled program meets the module and the call that it was captured from."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from shorthaul.frontends.functional import GraphRef, OutputSpec, ViewSpec, rebuilder
from shorthaul.ir.nodes import Origin
from shorthaul.ir.program import Program
from shorthaul.runtime.artifact import CPU, load, tools
from shorthaul.runtime.bridge import CompiledGraph, Interface
from shorthaul.runtime.cache import Cache, make_key
from shorthaul.runtime.compile import Compiled
from shorthaul.runtime.graphs import graphed

from .calls import Key
from .live_state import LiveState, NotRecordable

FORMAT = 2
KIND = "captures"
_DTYPES = {str(d): d for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
                               torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128)}  # fmt: skip
_FIELDS = ("inputs", "sizes", "results", "size_results", "rebuild", "mutations", "random", "depends", "where", "watched")


@dataclass
class Capture:
    """What one compilation leaves for its record. artifact: the key of the optimized program, empty
    where it is not kept. outputs: how the graph's outputs are rebuilt.
    foreign: operators that are defined outside PyTorch and this package. in_place: inputs that CUDA graphs read where they are; None
    where there are no such graphs."""

    graph: CompiledGraph
    artifact: str
    outputs: Sequence[OutputSpec]
    operators: Counter[str]
    fallbacks: list[tuple[str, Origin]]
    foreign: list[str]
    device: torch.device
    in_place: frozenset[str] | None


@dataclass
class Found:
    """A record from the cache, ready to run."""

    graph: CompiledGraph
    program: Program
    compiled: Compiled
    inputs: list[tuple[str, int]]
    form: Any
    operators: Counter[str]
    fallbacks: list[tuple[str, Origin]]


def record_key(live: LiveState, leaves: Sequence[torch.Tensor], call: Key, settings: Key, options: object) -> str:
    """The key of a record: the live state, the call with its tensors, the settings, the options, and everything that the compiled program
    depends on."""
    device = next((t.device for t in (*live.tensors, *leaves) if t.device.type != "cpu"), CPU)
    environment = sorted((k, v) for k, v in os.environ.items() if k.startswith(("TORCHDYNAMO", "TORCH_DYNAMO", "TORCH_COMPILE")))
    return make_key("capture", str(FORMAT), live.digest, repr(call), repr(settings), repr(options), sys.version, np.__version__,
                    repr(environment), repr(_distributed()), *tools(device))  # fmt: skip


def _distributed() -> bool:
    """Whether processes train together: their backward phases are cut into smaller parts."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def store(key: str, capture: Capture, inputs: list[tuple[str, int]], form: Any) -> None:
    """Write a record. Raises NotRecordable where a part of it has no JSON form."""
    i = capture.graph.interface
    if not capture.artifact:
        raise NotRecordable("kernels of this target are not kept between processes")
    if capture.foreign or extended():
        raise NotRecordable("operators are defined outside Shorthaul: " + ", ".join(capture.foreign or extended()))
    if tuple(f.name for f in fields(Interface)) != _FIELDS:
        raise NotRecordable("the interface of compiled graphs has fields that the record does not know")
    if i.sizes or capture.graph.program.symbols:
        raise NotRecordable("sizes are symbolic")
    if any(not isinstance(v, (int, float, bool, type(None))) for v in i.size_results.values()):
        raise NotRecordable("a result is an expression of sizes")
    value = {
        "format": FORMAT, "artifact": capture.artifact, "places": inputs, "form": form,
        "name": capture.graph.name, "device": str(capture.device),
        "in_place": None if capture.in_place is None else sorted(capture.in_place),
        "interface": {
            "inputs": i.inputs, "results": i.results, "size_results": list(i.size_results.items()),
            "mutations": i.mutations, "random": list(i.random), "depends": {k: sorted(v) for k, v in i.depends.items()}, "where": i.where,
            "watched": sorted(i.watched),
        },
        "outputs": [_output(o) for o in capture.outputs],
        "operators": dict(capture.operators),
        "fallbacks": [[reason, o.module, o.source, o.operator] for reason, o in capture.fallbacks],
    }  # fmt: skip
    Cache(KIND).put(key, {"value.json": json.dumps(value, allow_nan=False).encode()})


def find(key: str) -> Found | None:
    """The record of a key with its program, ready to run; None where there is none, or where its program is gone."""
    value: Any = Cache(KIND).get_json(key) if not extended() else None
    if value is None or value.get("format") != FORMAT:
        return None
    loaded = load(value["artifact"], torch.device(value["device"]))
    if loaded is None:
        return None
    program, compiled = loaded
    compiled = graphed(compiled, None if value["in_place"] is None else frozenset(value["in_place"]))
    v = value["interface"]
    outputs = [_load_output(o) for o in value["outputs"]]
    interface = Interface(
        v["inputs"], {}, v["results"], dict(v["size_results"]), rebuilder(outputs), [(a, b) for a, b in v["mutations"]], tuple(v["random"]),
        {k: frozenset(names) for k, names in v["depends"].items()}, v["where"], frozenset(v["watched"]),
    )  # fmt: skip
    graph = CompiledGraph(value["name"], program, interface, compiled.executable)
    fallbacks = [(reason, Origin(*rest)) for reason, *rest in value["fallbacks"]]
    places = [(kind, at) for kind, at in value["places"]]
    return Found(graph, program, compiled, places, value["form"], Counter(value["operators"]), fallbacks)


def extended() -> list[str]:
    """Operators that somebody registered: their definitions are in no key, so that records are neither used nor made."""
    registry = sys.modules.get("shorthaul.ops.registry")
    return [n for n, d in registry.REGISTRY.items() if not type(d).__module__.startswith("shorthaul.")] if registry else []


def _output(o: OutputSpec) -> dict[str, Any]:
    if o.value is not None and type(o.value) not in (bool, int, str):
        raise NotRecordable(f"a constant result is a {type(o.value).__name__}")
    view = None
    if o.view is not None:
        ops = o.view.ops
        view = [_encode(o.view.size), _encode(o.view.stride), _encode(o.view.offset),
                None if ops is None else [[str(t), _encode(a), [[k, _encode(x)] for k, x in kw.items()]] for t, a, kw in ops]]  # fmt: skip
    return {"kind": o.kind, "graph_output": o.graph_output, "input": o.input, "output": o.output, "value": o.value, "view": view}


def _load_output(data: dict[str, Any]) -> OutputSpec:
    view = None
    if data["view"] is not None:
        size, stride, offset, ops = data["view"]
        chain = None if ops is None else [(_operator(t), _decode(a), {k: _decode(x) for k, x in kw}) for t, a, kw in ops]
        view = ViewSpec(_decode(size), _decode(stride), _decode(offset), chain)
    return OutputSpec(data["kind"], data["graph_output"], data["input"], data["output"], view, data["value"])


def _operator(name: str) -> Any:
    namespace, packet, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


def _encode(v: Any) -> Any:
    if v is None or type(v) in (bool, int, str):
        return ["", v]
    if type(v) is float:
        return ["float", v.hex()]
    if isinstance(v, GraphRef):
        return ["result", v.index]
    if isinstance(v, torch.dtype) and str(v) in _DTYPES:
        return ["dtype", str(v)]
    if isinstance(v, (tuple, list)):
        return ["tuple" if isinstance(v, tuple) else "list", [_encode(x) for x in v]]
    raise NotRecordable(f"a view has an argument of type {type(v).__name__}")


def _decode(data: Any) -> Any:
    kind, v = data
    if kind == "":
        return v
    if kind == "float":
        return float.fromhex(v)
    if kind == "result":
        return GraphRef(v)
    if kind == "dtype":
        return _DTYPES[v]
    return (tuple if kind == "tuple" else list)(_decode(x) for x in v)
