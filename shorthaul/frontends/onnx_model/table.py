"""The table of operators: for each ONNX operator and version a function over PyTorch tensors.

    @operator("Gather", host=("axis",))
    def gather(data, indices, *, axis): ...

Operands are positional, in the order of the schema, None where left out. An attribute is passed by keyword where the function has
a parameter of that name, with the schema's default; so an attribute that later versions made an operand (`axes` of `Squeeze`)
is a parameter either way. A function that ignores an attribute of its schema says so in `ignores`: a test looks for it.
Some keywords are not attributes but are filled in by the emitter: `count` (results wanted), `device`, `types` (element
types of the operands as ONNX numbers), `result` (the element type of the result, where known).
Operators that can have several results, in the newest version that the function is for, return a tuple.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

FILLED_IN = ("count", "device", "types", "result")


@dataclass(frozen=True)
class Entry:
    """One function of the table.

    since: the first version of the domain's operator set that it is for. host: operands wanted as numbers (`host.ints`). on_host: what
    it does where all operands are host values. scalars: operands may be Python numbers beside a tensor.
    """

    name: str
    domain: str
    since: int
    function: Callable[..., Any]
    host: frozenset[str]
    on_host: Callable[..., Any] | None
    scalars: bool
    ignores: frozenset[str]
    operands: tuple[str, ...]  # positional parameters
    variadic: bool
    keywords: frozenset[str]  # every parameter that can be passed by name


TABLE: dict[tuple[str, str], list[Entry]] = {}


def operator(
    *names: str,
    since: int = 1,
    domain: str = "",
    host: Sequence[str] = (),
    on_host: Callable[..., Any] | None = None,
    scalars: bool = False,
    ignores: Sequence[str] = (),
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function for operators of these names, from version `since` of the operator set on."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        parameters = inspect.signature(function).parameters.values()
        positional = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
        for name in names:
            entries = TABLE.setdefault((domain, name), [])
            if any(e.since == since for e in entries):
                raise ValueError(f"{domain or 'ai.onnx'}.{name} has an entry since version {since} already")
            entries.append(
                Entry(name, domain, since, function, frozenset(host), on_host, scalars, frozenset(ignores), positional,
                      any(p.kind is p.VAR_POSITIONAL for p in parameters),
                      frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)))
            )  # fmt: skip
            entries.sort(key=lambda e: e.since)
        return function

    return enter


def find(domain: str, name: str, version: int) -> Entry | None:
    """The entry for an operator in that version of its operator set, or None."""
    found = [e for e in TABLE.get((domain, name), ()) if e.since <= version]
    return found[-1] if found else None
