"""Loading compiled libraries."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .build import build, openmp_runtime


class CompiledLibrary:
    """A shared library of kernels, loaded into this process.

    The functions are called by ctypes, which releases the interpreter lock: pass addresses as ``c_void_p`` and sizes
    as ``c_int64`` (or set ``argtypes`` once, which ``function`` does where it is given the types).
    """

    def __init__(self, path: Path, symbols: Sequence[str] = ()) -> None:
        """Load ``path``. Raises OSError where it is no library for this machine, AttributeError for a missing symbol."""
        if (openmp := openmp_runtime()) is not None:
            ctypes.CDLL(str(openmp))  # loaded already, or now: the library names it without a path
        self.path = path
        self._library = ctypes.CDLL(str(path))
        for symbol in symbols:
            self.function(symbol)

    def __repr__(self) -> str:
        return f"CompiledLibrary({str(self.path)!r})"

    def function(
        self, name: str, argument_types: Sequence[type] | None = None, result_type: type | None = None
    ) -> Callable[..., Any]:
        """The C function ``name``, returning nothing unless ``result_type`` says otherwise."""
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise AttributeError(
                f'{self.path} defines no function {name!r}; is it declared extern "C" and visible?'
            ) from None
        function.restype = result_type
        if argument_types is not None:
            function.argtypes = list(argument_types)
        return function

    def address(self, name: str) -> int:
        """The address of the C function ``name``, for tables of kernels."""
        self.function(name)  # with its error for a name that is not there
        address = ctypes.cast(getattr(self._library, name), ctypes.c_void_p).value
        assert address is not None
        return address


def build_library(sources: Mapping[str, str], *, symbols: Sequence[str] = (), **options: Any) -> CompiledLibrary:
    """:func:`shorthaul.runtime.build.build`, and load the result. Another process may have removed the cache entry in
    between (to make room); it is then built once more."""
    for attempt in (1, 2):
        path = build(sources, symbols=symbols, **options)
        try:
            return CompiledLibrary(path, symbols)
        except OSError:
            if attempt == 2 or path.exists():
                raise
    raise AssertionError("unreachable")
