"""Containers: the named arrays between which data moves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Union

from shorthaul.symbolic import Expr, product

from .dtypes import DType

IntLike = Union[int, Expr]

ROLES = ("input", "parameter", "buffer", "output", "gradient", "cotangent", "saved", "transient", "constant")
STORAGES = ("global", "shared", "register")


@dataclass(frozen=True, eq=False)
class Alias:
    """Only after memory planning: the container's elements live in `base`, from `offset` (elements) on."""

    base: str
    offset: IntLike = 0


@dataclass(frozen=True, eq=False)
class Container:
    """A named array.

    shape: symbolic sizes; `()` is a scalar. strides: in elements, None for contiguous row-major.
    storage: "global", or "shared"/"register" for a local of a map's body.
    role: what it is in the program's signature: "input", "parameter", "buffer" and "cotangent" (the incoming gradient of an output)
    come from outside; "output" and "gradient" go out; "saved" is written forward and read backward; "constant" has its value in the
    program.
    """

    name: str
    dtype: DType
    shape: tuple[IntLike, ...]
    strides: tuple[IntLike, ...] | None = None
    storage: str = "global"
    role: str = "transient"
    alias: Alias | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES or self.storage not in STORAGES:
            raise ValueError(f"container {self.name}: unknown role {self.role!r} or storage {self.storage!r}")
        if self.strides is not None and len(self.strides) != len(self.shape):
            raise ValueError(f"container {self.name}: {len(self.strides)} strides for {len(self.shape)} dimensions")

    @cached_property
    def size(self) -> IntLike:
        """Number of elements."""
        return product(self.shape)

    @cached_property
    def bytes(self) -> IntLike:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    @cached_property
    def actual_strides(self) -> tuple[IntLike, ...]:
        """The strides in elements, contiguous ones spelled out."""
        return contiguous_strides(self.shape) if self.strides is None else self.strides

    @cached_property
    def is_contiguous(self) -> bool:
        """Row-major without gaps (sizes of one dimension may have any stride)."""
        pairs = zip(self.actual_strides, contiguous_strides(self.shape), self.shape, strict=True)
        return all(a is b or a == b or n == 1 for a, b, n in pairs)

    @property
    def is_external(self) -> bool:
        """Its memory belongs to the caller."""
        return self.role in ("input", "parameter", "buffer", "cotangent", "constant")

    def with_(self, **changes: object) -> Container:
        """A copy with fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        layout = "" if self.strides is None else f" strides ({', '.join(map(str, self.strides))})"
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]{layout} {self.role}"


def contiguous_strides(shape: tuple[IntLike, ...]) -> tuple[IntLike, ...]:
    """Row-major strides in elements."""
    strides: list[IntLike] = []
    step: IntLike = 1
    for n in reversed(shape):
        strides.append(step)
        step = step * n
    return tuple(reversed(strides))


def strides_in_order(shape: tuple[IntLike, ...], order: tuple[int, ...]) -> tuple[IntLike, ...]:
    """Dense strides with the dimensions in `order` from the outermost to the innermost."""
    strides: dict[int, IntLike] = {}
    step: IntLike = 1
    for d in reversed(order):
        strides[d] = step
        step = step * shape[d]
    return tuple(strides[d] for d in range(len(shape)))
