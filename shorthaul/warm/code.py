"""Python code as a trace reads it: a digest of code objects, the names they use, and which files come with Python and PyTorch."""

from __future__ import annotations

import dis
import functools
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch

_TORCH = os.path.dirname(torch.__file__) + os.sep
_NN = os.path.join(_TORCH, "nn") + os.sep
_STDLIB = tuple({sysconfig.get_path(k) + os.sep for k in ("stdlib", "platstdlib")})
_SITE = tuple({sysconfig.get_path(k) + os.sep for k in ("purelib", "platlib")})
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_EXTENDED, _GLOBAL, _NAME, _IMPORT = (dis.opmap[n] for n in ("EXTENDED_ARG", "LOAD_GLOBAL", "LOAD_NAME", "IMPORT_NAME"))
_STORES = tuple(dis.opmap[n] for n in ("STORE_GLOBAL", "DELETE_GLOBAL"))
SHIPPED = frozenset({"torch", "builtins", "numpy", "shorthaul"})


@functools.lru_cache(maxsize=4096)
def shipped_file(filename: str) -> bool:
    """Whether code of this file is fixed by the versions of Python, PyTorch and this package."""
    if filename.startswith((_TORCH, _OURS, "<frozen ", "<shorthaul: ")):
        return True
    return filename.startswith(_STDLIB) and not filename.startswith(_SITE)


@functools.lru_cache(maxsize=4096)
def read_further(filename: str) -> bool:
    """Whether the names that code of this file reads are looked at: the user's, and torch.nn's (which people patch)."""
    return filename.startswith(_NN) or not shipped_file(filename)


@dataclass(frozen=True)
class CodeFacts:
    """digest: over everything in a code object and the ones inside it. loaded: names read from globals or builtins. attributes: other
    names (attributes, methods) and strings that may be such names. imports: modules that it imports. stores: whether it assigns globals."""

    digest: str
    loaded: tuple[str, ...]
    attributes: tuple[str, ...]
    imports: tuple[str, ...]
    stores: bool


@functools.lru_cache(maxsize=8192)
def _facts_by_identity(key: _Identity) -> CodeFacts:
    hasher = hashlib.sha256()
    loaded: dict[str, None] = {}
    attributes: dict[str, None] = {}
    imports: dict[str, None] = {}
    stores = False
    for code in with_nested(key.code):
        hasher.update(repr(_parts(code)).encode())
        for opcode, name in _named(code):
            if opcode in (_GLOBAL, _NAME):
                loaded[name] = None
            elif opcode == _IMPORT:
                imports[name] = None
            stores = stores or opcode in _STORES
        attributes.update((n, None) for n in code.co_names if n not in loaded)
        attributes.update((c, None) for c in code.co_consts if isinstance(c, str) and c.isidentifier())
    return CodeFacts(hasher.hexdigest(), tuple(loaded), tuple(attributes), tuple(imports), stores)


class _Identity:
    """A code object compared by identity: equal code at other places has other origins."""

    __slots__ = ("code",)

    def __init__(self, code: CodeType) -> None:
        self.code = code

    def __hash__(self) -> int:
        return id(self.code)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.code is self.code


def facts(code: CodeType) -> CodeFacts:
    """What a code object is and reads; cached."""
    return _facts_by_identity(_Identity(code))


def with_nested(code: CodeType) -> Iterator[CodeType]:
    """A code object and those of the functions defined inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from with_nested(constant)


def _parts(code: CodeType) -> tuple[Any, ...]:
    constants = tuple(_constant(c) for c in code.co_consts)
    numbers = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags, code.co_firstlineno)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_qualname, code.co_filename)
    return (code.co_code, constants, numbers, names, code.co_linetable, code.co_exceptiontable)


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return ("code", value.co_qualname)
    if isinstance(value, frozenset):
        return ("frozenset", sorted(repr(_constant(v)) for v in value))
    if isinstance(value, tuple):
        return tuple(_constant(v) for v in value)
    return (type(value).__name__, value)


def _named(code: CodeType) -> Iterator[tuple[int, str]]:
    """(opcode, name) of the instructions that read or write globals, or import. (`dis` does the same ten times slower.)"""
    data, names, high = code.co_code, code.co_names, 0
    for at in range(0, len(data), 2):
        opcode, argument = data[at], data[at + 1] | high
        high = argument << 8 if opcode == _EXTENDED else 0
        if opcode == _GLOBAL:
            yield opcode, names[argument >> 1]
        elif opcode in (_NAME, _IMPORT) or opcode in _STORES:
            yield opcode, names[argument]
