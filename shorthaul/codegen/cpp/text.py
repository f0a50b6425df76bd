"""C++ text under construction: nested blocks of lines, and the names of a kernel."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Union

from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType
from shorthaul.symbolic import IntLike, Symbol, product

from .expressions import ctype, index_text


class Block:
    """Lines and blocks between `header` and `footer` (both may be empty)."""

    def __init__(self, header: str = "", footer: str = "") -> None:
        self.header, self.footer = header, footer
        self.lines: list[Union[str, Block]] = []

    def add(self, *lines: Union[str, Block]) -> None:
        self.lines.extend(lines)

    def open(self, header: str, footer: str = "}") -> Block:
        """A new block behind what is there."""
        child = Block(header, footer)
        self.lines.append(child)
        return child

    def render(self, depth: int = 0) -> list[str]:
        inner = depth + 1 if self.header else depth
        out = ["  " * depth + line for line in self.header.split("\n")] if self.header else []
        for line in self.lines:
            out += line.render(inner) if isinstance(line, Block) else ["  " * inner + line]
        if self.footer:
            out.append("  " * depth + self.footer)
        return out


@dataclass
class Range:
    """The part of a parameter's range that the loops now run over, as C++ text. `whole`: it is all of it."""

    low: str
    high: str
    whole: bool = True


@dataclass
class Outer:
    """A loop around the place of emission: its parameter, the text of its first value, and whether threads share it out."""

    symbol: Symbol
    first: str
    shared: bool = False


@dataclass
class Place:
    """Where code is emitted: the block, the loops around it and the lanes, if an outer loop runs over them."""

    block: Block
    path: tuple[Outer, ...] = ()
    lanes: Symbol | None = None
    scope_start: Mapping[str, int] = field(default_factory=dict)  # local container -> length of the path where it is declared
    parallel: bool = False  # threads are not running yet
    ranges: Mapping[Symbol, Range] = field(default_factory=dict)


class Names:
    """Names in a kernel: containers p0, p1, ..., parameters i0, i1, ..., sizes n0, n1, ..., values v0, v1, ..."""

    def __init__(self, containers: Mapping[str, Container]) -> None:
        self.containers = dict(containers)
        self.arguments: list[str] = []
        self.sizes: list[Symbol] = []
        self.symbols: dict[Symbol, str] = {}
        self.pointers: dict[str, str] = {}
        self.private: set[str] = set()  # locals declared inside a loop over lanes: each lane has one of its own
        self.scratch: list[tuple[str, DType, IntLike]] = []  # (name, dtype, elements) of the kernel's temporary buffers
        self.checks: list[str] = []  # what the indices that the kernel checks are for
        self._counters: dict[str, itertools.count] = {}

    def fresh(self, prefix: str) -> str:
        return f"{prefix}{next(self._counters.setdefault(prefix, itertools.count()))}"

    def param(self, s: Symbol) -> str:
        """The name of a parameter, defined where its loop is opened."""
        if s not in self.symbols:
            self.symbols[s] = self.fresh("i")
        return self.symbols[s]

    def size(self, s: Symbol) -> str:
        """The name of a free size, which becomes an argument of the kernel."""
        if s not in self.symbols:
            self.symbols[s] = f"n{len(self.sizes)}"
            self.sizes.append(s)
        return self.symbols[s]

    def pointer(self, container: str) -> str:
        """The pointer to a container, which becomes an argument of the kernel unless it is a local."""
        if container not in self.pointers:
            self.pointers[container] = f"p{len(self.arguments)}"
            self.arguments.append(container)
        return self.pointers[container]

    def check(self, what: str) -> int:
        """The number of a check of an index; it tells the runtime what went wrong."""
        if what not in self.checks:
            self.checks.append(what)
        return self.checks.index(what)

    def buffer(self, dtype: DType, elements: IntLike) -> str:
        """A temporary buffer of the call; gives a container key."""
        key = f"buffer {len(self.scratch)}"
        self.pointers[key] = f"q{len(self.scratch)}"
        self.containers[key] = Container(key, dtype, (elements,))
        self.scratch.append((self.pointers[key], dtype, elements))
        return key

    def index(self, e: IntLike) -> str:
        return index_text(e, self.symbols)

    def scratch_bytes(self) -> IntLike:
        return sum_bytes(self.scratch)


def sum_bytes(buffers: list[tuple[str, DType, IntLike]]) -> IntLike:
    """Bytes of the buffers, each on a cache line of its own."""
    total: IntLike = 0
    for _, dtype, elements in buffers:
        n = elements * dtype.itemsize
        total = total + ((n + 63) // 64 * 64)
    return total


__all__ = ["Block", "Names", "Outer", "Place", "Range", "ctype", "product"]
