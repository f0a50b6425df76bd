"""Writing maps and tasklets in few words; what expansions, gradients and transformations build with.

    b = MapBuilder(edit)
    n, c = b.params(x.shape)
    b.map((n, c), reads={"x": at(x, n, c)}, writes={"s": at(s, c, combine="sum")}, code=lambda x: {"s": x})
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Union

from shorthaul.symbolic import Expr, Symbol, index

from .containers import Container
from .dtypes import DType
from .edit import Edit
from .memlet import Condition, Guard, Memlet, Subscript
from .nodes import AUTO, Map, Node, Origin, Schedule, Tasklet
from .scalar import Scalar, read

IntLike = Union[int, Expr]
Code = Union[Mapping[str, Scalar], Callable[..., Mapping[str, Scalar]]]
_counter = itertools.count()


def at(container: Container | str, *subset: Subscript, guard: Iterable[Condition] = (), fill: int | float | bool | None = None,
       combine: str | None = None, scan: Symbol | None = None) -> Memlet:  # fmt: skip
    """The memlet of one element (or span) of a container."""
    from .memlet import simplify_guard

    name = container if isinstance(container, str) else container.name
    if not isinstance(container, str) and len(subset) != len(container.shape):
        raise ValueError(f"{len(subset)} subscripts for container {container}")
    return Memlet(name, tuple(subset), simplify_guard(tuple(guard)), fill, combine, scan)


def inside(expr: IntLike, size: IntLike) -> Guard:
    """The conditions 0 <= expr < size."""
    return (Condition(expr), Condition(size - 1 - expr))


def fresh_params(sizes: Sequence[IntLike], hint: str = "i") -> tuple[Symbol, ...]:
    """New map parameters running from 0 to size - 1."""
    return tuple(index(f"{hint}{next(_counter)}", n) for n in sizes)


def make_map(params: Sequence[Symbol], reads: Mapping[str, Memlet], writes: Mapping[str, Memlet], code: Code,
             dtypes: Mapping[str, DType], *, name: str = "", origins: tuple[Origin, ...] = (), phase: str = "forward",
             schedule: Schedule = AUTO) -> Map:  # fmt: skip
    """A flat map: one tasklet over `params`. `dtypes` gives the dtype of each container that is read."""
    values = {k: read(k, dtypes[m.container]) for k, m in reads.items()}
    exprs = code(**values) if callable(code) else code
    if set(exprs) != set(writes):
        raise ValueError(f"map {name}: code computes {sorted(exprs)} but writes are {sorted(writes)}")
    tasklet = Tasklet(exprs, reads=reads, writes=writes, origins=origins, phase=phase)
    return Map(tuple(params), (tasklet,), schedule=schedule, name=name, origins=origins, phase=phase)


class MapBuilder:
    """Collects the nodes that replace or join a program within one edit.

    phase and origins are put on every node built. Temporaries are declared at once; nodes are handed over by the caller
    (`edit.replace(op, *builder.nodes)`), so that their position is the caller's choice.
    """

    def __init__(self, edit: Edit, phase: str = "forward", origins: tuple[Origin, ...] = (), hint: str = "t") -> None:
        self.edit = edit
        self.phase = phase
        self.origins = origins
        self.hint = hint
        self.nodes: list[Node] = []

    @property
    def containers(self) -> dict[str, Container]:
        return self.edit.program.containers

    def temp(self, shape: Sequence[IntLike], dtype: DType, hint: str = "", strides: tuple[IntLike, ...] | None = None) -> Container:
        """Declare a transient container."""
        name = self.edit.program.fresh(hint or self.hint)
        return self.edit.add_container(Container(name, dtype, tuple(shape), strides))

    def params(self, sizes: Sequence[IntLike], hint: str = "i") -> tuple[Symbol, ...]:
        """New map parameters."""
        return fresh_params(sizes, hint)

    def map(self, params: Sequence[Symbol], reads: Mapping[str, Memlet], writes: Mapping[str, Memlet], code: Code, name: str = "") -> Map:
        """Append a flat map over the params (see `make_map`)."""
        used = {m.container for m in reads.values()}
        node = make_map(params, reads, writes, code, {c: self.containers[c].dtype for c in used},
                        name=name or self.hint, origins=self.origins, phase=self.phase)  # fmt: skip
        self.nodes.append(node)
        return node
