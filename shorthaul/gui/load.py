"""What a session can be opened on: a Program, a module with inputs, a program or model file, a function that makes a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shorthaul.analysis.roofline import MACHINES
from shorthaul.ir.program import Form, Program


class SessionError(Exception):
    """The studio cannot do what was asked; the message says what is wrong and what to do now. The session is as it was."""


Subject = tuple[Any, tuple[Any, ...], bool]  # a model, its inputs, whether it trains


def load(what: Any, inputs: tuple | None = None, *, train: bool = True) -> tuple[Program, Subject | None]:
    """The program of anything that the studio opens, and the model that it was captured from, if it was. Raises SessionError.

    what: a Program (it is copied), an nn.Module or function with its `inputs`, or text: "program.json", "model.onnx",
    "FILE.py:function" or "package.module:function", a function that returns (module, inputs).
    """
    if isinstance(what, Program):
        return what.clone(), None
    if isinstance(what, Path):
        what = str(what)
    if isinstance(what, str):
        return _named(what, train)
    if not callable(what):
        raise SessionError(f"cannot open a {type(what).__name__}: give a Program, a module with inputs, or the name of a file or function")
    if inputs is None:
        raise SessionError(f"{type(what).__name__} needs example inputs: sh.studio(model, (x,))")
    return _capture(what, inputs if isinstance(inputs, tuple) else (inputs,), train)


def _named(place: str, train: bool) -> tuple[Program, Subject | None]:
    if place.endswith(".json"):
        from shorthaul.ir.serialize import SerializeError, from_json

        try:
            return from_json(Path(place).read_text()), None
        except (OSError, UnicodeDecodeError, SerializeError) as e:
            raise SessionError(f"cannot open {place}: {e}. `Save as JSON` in the studio, or ir.serialize.dumps, writes programs") from e
    from shorthaul.networks import LoadError, load_network, load_onnx_network

    try:
        module, inputs = load_onnx_network(place) if place.endswith(".onnx") else load_network(place)
    except LoadError as e:
        raise SessionError(str(e)) from e
    return _capture(module, inputs, train)


def _capture(model: Any, inputs: tuple, train: bool) -> tuple[Program, Subject | None]:
    from shorthaul.api import capture

    try:
        if train and hasattr(model, "train"):
            model.train()
        return capture(model, inputs, train=train), (model, inputs, train)
    except Exception as e:  # whatever a user's model raises: the studio says where, and stays
        raise SessionError(f"cannot capture {type(model).__name__}: {type(e).__name__}: {e}") from e


def machine_of(inputs: Any) -> str:
    """The described machine that is most like the one on which these inputs lie."""
    import shorthaul.workbench as workbench

    given = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    places = {str(getattr(x, "device", "")) for x in given}
    names = [name.lower() for device, name in workbench.devices().items() if device.startswith("cuda") and device in places]
    gpus = [m for m in MACHINES if m != "cpu"]
    return next((m for name in names for m in gpus if m in name), gpus[0] if names else "cpu")


def target_of(machine: str) -> str:
    """What code is made for a machine."""
    return "cpp" if machine == "cpu" else "triton"


def lowered(program: Program, level: int | None, target: str = "cpp") -> Program:
    """The program itself, or a copy lowered to a level for a target where it still consists of operators."""
    if level is None or program.form is not Form.OPERATORS:
        return program
    import shorthaul.workbench as workbench

    return workbench.optimize(program.clone(), level, target=target)
