"""Small programs for the tests of the intermediate representation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shorthaul.ir.builder import make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType, float32
from shorthaul.ir.memlet import Memlet
from shorthaul.ir.nodes import Map
from shorthaul.ir.program import Form, Program


class Net:
    """A program under construction: declare containers, append maps."""

    def __init__(self, name: str = "test", symbols: Sequence[Any] = ()) -> None:
        self.program = Program(name, Form.MAPS, symbols=tuple(symbols))

    def container(self, name: str, *shape: Any, dtype: DType = float32, role: str = "transient") -> Container:
        c = Container(name, dtype, tuple(shape), role=role)
        with self.program.edit("declare") as edit:
            edit.add_container(c)
        signature = self.program.signature
        if role in ("input", "parameter", "buffer"):
            self.program.signature = signature.with_(inputs=(*signature.inputs, name))
        if role == "output":
            self.program.signature = signature.with_(outputs=(*signature.outputs, name))
        return c

    def input(self, name: str, *shape: Any, dtype: DType = float32) -> Container:
        return self.container(name, *shape, dtype=dtype, role="input")

    def output(self, name: str, *shape: Any, dtype: DType = float32) -> Container:
        return self.container(name, *shape, dtype=dtype, role="output")

    def flat(self, params: Sequence[Any], reads: Mapping[str, Memlet], writes: Mapping[str, Memlet], code: Callable[..., Any],
             locals: Sequence[Container] = (), **options: Any) -> Map:  # fmt: skip
        """A flat map over containers of the program or the given locals."""
        types = {c.name: c.dtype for c in (*self.program.containers.values(), *locals)}
        return make_map(params, reads, writes, code, types, **options)

    def add(self, node: Any) -> Any:
        with self.program.edit("add") as edit:
            edit.add(node)
        return node

    def map(
        self,
        params: Sequence[Any],
        reads: Mapping[str, Memlet],
        writes: Mapping[str, Memlet],
        code: Callable[..., Any],
        **options: Any,
    ) -> Map:
        return self.add(self.flat(params, reads, writes, code, **options))
