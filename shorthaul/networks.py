"""Networks by name: what the command line and the studio are told to open."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class LoadError(Exception):
    """The name leads to no network; the message says which part of it is wrong."""


def load_network(place: str) -> tuple[Any, tuple[Any, ...]]:
    """The module and inputs that `FILE.py:FUNCTION` or `package.module:function` returns.

    Raises `LoadError` that says which part of `place` is wrong.
    """
    source, colon, name = place.rpartition(":")
    if not colon or not source or not name:
        raise LoadError(f"{place!r} names no function; write FILE.py:FUNCTION or package.module:function")
    if source.endswith(".py"):
        path = Path(source).resolve()
        if not path.is_file():
            raise LoadError(f"there is no file {source}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = loaded
        sys.path.insert(0, str(path.parent))
        spec.loader.exec_module(loaded)
    else:
        sys.path.insert(0, "")
        try:
            loaded = importlib.import_module(source)
        except ModuleNotFoundError as error:
            raise LoadError(f"cannot import {source}: {error}") from error
    function: Callable[[], Any] | None = getattr(loaded, name, None)
    if function is None:
        raise LoadError(f"{source} has no function {name}")
    result = function()
    if not isinstance(result, tuple) or len(result) != 2 or not callable(result[0]):
        raise LoadError(f"{name} must return (module, inputs), not {type(result).__name__}")
    module, inputs = result
    return module, tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)


def load_onnx_network(path: str) -> tuple[Any, tuple[Any, ...]]:
    """The module of an ONNX file, and inputs for it. Raises `LoadError` where the file is none."""
    from shorthaul.onnx_models import OnnxError, load_onnx

    try:
        module = load_onnx(path)
        return module, module.example_inputs()
    except OnnxError as error:
        raise LoadError(str(error)) from error
