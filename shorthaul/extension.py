"""What other packages add: entry points by group, and registries of named things.

A package names what it adds in its pyproject.toml; nothing of it is imported before it is asked for:

    [project.entry-points."shorthaul.transformations"]
    MyFusion = "my_package.fusion:MyFusion"

GROUPS lists the groups and what stands behind a name in each. At run time the `register` of the part in question does the same.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

GROUPS = {
    "shorthaul.operators": "an OperatorDefinition, or a module that registers some",
    "shorthaul.transformations": "a Transformation",
    "shorthaul.cost_models": "a CostModel",
    "shorthaul.searches": "a Search of the tuner",
    "shorthaul.targets": "a Target, what programs are compiled for",
    "shorthaul.overlays": "an overlay of the studio",
}
T = TypeVar("T")


class ExtensionError(ImportError):
    """A package that extends Shorthaul cannot be loaded; the message names it, the entry and the reason."""


class UnknownName(KeyError):
    """Nothing of that kind has the name; the message names the nearest."""

    def __str__(self) -> str:
        return str(self.args[0])


@cache
def installed(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group."""
    return tuple(entry_points(group=group))


def load(group: str) -> Iterator[tuple[str, Any]]:
    """What other packages add to a group, by name. Raises ExtensionError where one cannot be imported."""
    for point in installed(group):
        try:
            yield point.name, point.load()
        except Exception as e:
            package = point.dist.name if point.dist is not None else point.value
            raise ExtensionError(f"the package {package} adds {point.name} ({point.value}) to {group}, which cannot be loaded: "
                                 f"{type(e).__name__}: {e}; repair or uninstall it") from e  # fmt: skip


def foreign_sources(things: Iterable[Any]) -> str:
    """A digest of the files that define those of the things which are not this package's own, for keys of caches. Empty where there are
    none; different every time where one has no file."""
    modules = sorted({t.__module__ for t in things if t.__module__.split(".")[0] != "shorthaul"})
    digest = hashlib.sha256()
    for name in modules:
        path = getattr(sys.modules.get(name), "__file__", None)
        digest.update(name.encode() + (Path(path).read_bytes() if path and Path(path).is_file() else os.urandom(16)))
    return digest.hexdigest() if modules else ""


class Registry(Generic[T]):
    """Things of one kind by name, those of other packages included. what: the kind in words, for errors."""

    def __init__(self, what: str, group: str) -> None:
        self.what, self.group = what, group
        self._known: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that adds a thing under a name. Raises ValueError where another one has it."""

        def add(thing: T) -> T:
            if self._known.setdefault(name, thing) is not thing:
                raise ValueError(f"a {self.what} called {name!r} is registered already")
            return thing

        return add

    def all(self) -> dict[str, T]:
        """Every one by name."""
        if not self._loaded:
            for name, thing in load(self.group):
                self.register(name)(thing)
            self._loaded = True
        return dict(self._known)

    def get(self, name: str) -> T:
        """The one of that name. Raises UnknownName with the nearest."""
        known = self.all()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UnknownName(f"no {self.what} is called {name!r}{hint} Known are {', '.join(known)}.")
        return known[name]
