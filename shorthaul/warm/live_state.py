"""What a trace of a module may read: the module tree, the code it would go through and the names that this code uses.

The walk goes from the module through its attributes, classes, functions, their globals, closures and defaults. Of a namespace (an object's
attributes, a class, a Python module) it takes the names that occur in the code it has found: the set of names grows until nothing is new.
Code that comes with PyTorch or Python is fixed by their versions; it is named, not read, except torch.nn, whose globals people patch.

The walk leaves a digest, equal in another process exactly where everything found is equal, and what `unchanged` compares before a call.
"""

from __future__ import annotations

import builtins
import collections
import enum
import functools
import hashlib
import operator
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .code import SHIPPED, facts, read_further, shipped_file, with_nested

LIMIT = 200_000  # objects; larger states are left to a trace
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented), range, slice)
_TORCH_PLAIN = (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size)
_DESCRIPTORS = (types.MethodDescriptorType, types.WrapperDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType,
                types.ClassMethodDescriptorType, types.MethodWrapperType)  # fmt: skip
_DICTS = (dict, collections.OrderedDict, collections.defaultdict)
_TENSORS = (torch.Tensor, torch.nn.Parameter)
HOOKS = ("_backward_pre_hooks", "_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs",
         "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")  # fmt: skip
STRUCTURE = ("_parameters", "_buffers", "_modules", "training", *HOOKS)
OURS = frozenset({"_compiled_call_impl", "report"})  # what `optimize` adds to a module
# of a class: what no traced code reads without naming it, or what Python and Dynamo set themselves
_SKIPPED = frozenset({
    "__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__",
    "__qualname__", "__firstlineno__", "__static_attributes__", "__parameters__", "__orig_bases__", "__dataclass_fields__",
    "__dataclass_params__", "__match_args__", "__abstractmethods__", "_abc_impl", "__init__", "__new__", "__post_init__",
    "__init_subclass__", "__repr__", "__slots__", "__setstate__", "__getstate__", "__slotnames__", "__reduce__", "__reduce_ex__", "__del__",
    "__dir__", "__str__",
})  # fmt: skip
_MAKES = ("__init__", "__new__", "__post_init__")


class NotRecordable(Exception):
    """Something that the walk does not understand: no capture record is made or used."""


class _Namespace:
    """Names of which the walk looks at those that code uses. exact: new keys count too; else only their number, and not even that in
    namespaces of PyTorch or Python (`shipped`), which grow as parts of them are imported. ordered: the keys have a meaningful order."""

    __slots__ = ("exact", "forced", "mapping", "names", "ordered", "shipped")

    def __init__(self, mapping: Mapping[str, Any], exact: bool, ordered: bool, shipped: bool) -> None:
        self.mapping, self.exact, self.ordered, self.shipped = mapping, exact, ordered, shipped
        self.names: dict[str, None] = {}
        self.forced: set[str] = set()


class LiveState:
    """The walk from one module. digest: hex. tensors: in the order found. names: all that code uses. codes: the code objects that were
    read. opaque: names of things that are known by their class only. Raises NotRecordable."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.tensors: list[torch.Tensor] = []
        self.names: dict[str, None] = {}
        self.codes: set[int] = set()
        self.opaque: set[str] = set()
        self.classes: list[type] = []
        self.index: dict[int, int] = {}  # of a tensor, by id
        self._tokens: dict[int, int] = {}
        self._kept: list[Any] = []  # so that ids stay theirs
        self._out: list[str] = []
        self._pending: collections.deque[Callable[[], None]] = collections.deque()
        self._namespaces: dict[int, _Namespace] = {}
        self._all_names: list[str] = []
        self._done = 0
        self._storages: dict[int, int] = {}
        self._objects: list[tuple[Any, type, Any]] = []
        self._hooks: list[Any] = []
        self._containers: list[tuple[Any, tuple, tuple]] = []
        self._sets: list[tuple[Any, frozenset]] = []
        self._functions: list[tuple[Any, Any, Any, Any, tuple, tuple]] = []
        self._orders: list[tuple[type, tuple]] = []
        self._mark(dict.fromkeys((*STRUCTURE, "forward", "__call__", "_call_impl", "_wrapped_call_impl", "_slow_forward", "__getattr__")))
        self.value(module, "module")
        self.value(torch.Tensor, "Tensor")
        self._drain()
        self.digest = hashlib.sha256("\0".join(self._out).encode()).hexdigest()
        self._out.clear()
        self._freeze()

    # the walk ---------------------------------------------------------------------------------------------------------
    def _mark(self, names: Mapping[str, Any] | tuple[str, ...]) -> None:
        for n in names:
            if n not in self.names:
                self.names[n] = None
                self._all_names.append(n)

    def _drain(self) -> None:
        while True:
            if self._pending:
                self._pending.popleft()()
            elif self._done < len(self._all_names):
                fresh, self._done = self._all_names[self._done :], len(self._all_names)
                for space in list(self._namespaces.values()):
                    self._look(space, fresh)
            else:
                return

    def _namespace(
        self, mapping: Mapping[str, Any], *, exact: bool, ordered: bool, shipped: bool = False, forced: tuple[str, ...] = ()
    ) -> None:
        space = self._namespaces.get(id(mapping))
        if space is None:
            space = self._namespaces[id(mapping)] = _Namespace(mapping, exact, ordered, shipped)
            self._kept.append(mapping)
            self._look(space, self._all_names[: self._done])
        for n in forced:
            if n not in space.forced:
                space.forced.add(n)
                if n in mapping:
                    self._look(space, [n])
                else:
                    builtin = getattr(builtins, n, None)
                    self._out.append(f"builtin {n}")
                    self.value(builtin, n)

    def _look(self, space: _Namespace, names: list[str]) -> None:
        mapping = space.mapping
        if not space.ordered:
            found = [n for n in names if n in mapping]
        elif len(names) > len(mapping):
            wanted = set(names)
            found = [n for n in mapping if n in wanted]
            if space.shipped:  # Dynamo sets some methods of nn.Module again
                found.sort()
        else:
            found = sorted(n for n in names if n in mapping)
        for n in found:
            if n not in space.names and n not in OURS:
                space.names[n] = None
                self._out.append(n)
                self.value(mapping[n], "" if space.shipped and space.ordered else n)  # a shipped class's own descriptors are fixed

    def _new(self, v: Any) -> bool:
        """Whether the object is met for the first time; writes its number."""
        token = self._tokens.get(id(v))
        if token is not None:
            self._out.append(f"#{token}")
            return False
        self._tokens[id(v)] = len(self._tokens)
        if len(self._tokens) > LIMIT:
            raise NotRecordable(f"the module reaches more than {LIMIT} objects")
        self._kept.append(v)
        return True

    def value(self, v: Any, name: str) -> None:
        """Write a description of a value; what it leads to is looked at later."""
        t = type(v)
        out = self._out
        if t in _PLAIN or t in _TORCH_PLAIN:
            out.append(f"{t.__name__} {v!r}")
        elif t is tuple:
            out.append(f"tuple {len(v)}")
            for x in v:
                self.value(x, name)
        elif t in _DICTS:
            if self._new(v):
                self._containers.append((v, tuple(v), tuple(v.values())))
                out.append(f"{t.__name__} {len(v)}")
                if t is collections.defaultdict:
                    self.value(v.default_factory, name)
                for k, x in v.items():
                    self.value(k, name)
                    self.value(x, name)
        elif t is list or t is collections.deque:
            if self._new(v):
                self._containers.append((v, tuple(v), ()))
                out.append(f"{t.__name__} {len(v)}")
                for x in v:
                    self.value(x, name)
        elif t is set or t is frozenset:
            if not all(type(x) in _PLAIN for x in v):
                raise NotRecordable(f"{name} is a set of objects")
            if t is set:
                self._sets.append((v, frozenset(v)))
            out.append(f"{t.__name__} {sorted(map(repr, v))}")
        elif issubclass(t, torch.Tensor):
            self._tensor(v, name)
        elif t is types.FunctionType:
            self._function(v, name)
        elif isinstance(v, torch.nn.Module):
            if self._new(v):
                out.append("module")
                self._type(t)
                self._pending.append(functools.partial(self._module, v))
        elif isinstance(v, type):
            self._class(v, name)
        elif isinstance(v, types.ModuleType):
            self._python_module(v, name)
        elif t is types.MethodType:
            out.append("method")
            self.value(v.__func__, name)
            self.value(v.__self__, name)
        elif t is types.BuiltinFunctionType:
            owner = v.__self__
            if owner is None or isinstance(owner, (types.ModuleType, type)) or _is_pybind(owner):
                out.append(f"builtin {v.__module__}.{v.__name__} {owner.__name__ if isinstance(owner, type) else ''}")
            else:
                self._opaque(v, name)
        elif t.__name__ == "instancemethod" and isinstance(v.__func__, types.BuiltinFunctionType):
            self.value(v.__func__, name)
        elif t in _DESCRIPTORS:
            out.append(f"descriptor {v!r}" if t is not types.MethodWrapperType else f"wrapper {v.__name__}")
        elif t is staticmethod or t is classmethod:
            out.append(t.__name__)
            self.value(v.__func__, name)
        elif t is property:
            out.append("property")
            for f in (v.fget, v.fset, v.fdel):
                self.value(f, name)
        elif t is functools.partial:
            if self._new(v):
                out.append("partial")
                self.value(v.func, name)
                self.value(v.args, name)
                self.value(v.keywords, name)
        elif isinstance(v, enum.Enum):
            out.append(f"enum {v.name}")
            self._class(t, name)
        elif t is functools.cached_property:
            out.append("cached_property")
            self.value(v.func, name)
        elif t.__module__ == "functools" and hasattr(v, "__wrapped__"):  # lru_cache
            out.append("cached")
            self.value(v.__wrapped__, name)
        elif t.__module__ in ("typing", "types") or t.__module__ == "torch._ops":
            out.append(f"{t.__qualname__} {v}")
        elif self._is_ordinary(t):
            if self._new(v):
                out.append("object")
                self._type(t)
                self._objects.append((v, t, v.__dict__))
                self._namespace(v.__dict__, exact=True, ordered=True)
        else:
            self._opaque(v, name)

    def _is_ordinary(self, t: type) -> bool:
        """Whether the whole state of an instance is its `__dict__`, and its class is not PyTorch's or Python's."""
        if _shipped(t) or "__dict__" not in dir(t):
            return False
        return all(c is object or (isinstance(c, type) and not vars(c).get("__slots__") and not _from_c(c)) for c in t.__mro__)

    def _opaque(self, v: Any, name: str) -> None:
        """Something known by its class only: fine as long as a trace does not look at it (`trace.py` asks its guards)."""
        self._out.append(f"opaque {type(v).__module__}.{type(v).__qualname__}")
        if name:
            self.opaque.add(name)

    def _tensor(self, t: torch.Tensor, name: str) -> None:
        if type(t) not in _TENSORS:
            raise NotRecordable(f"{name} is a {type(t).__qualname__}, a subclass of torch.Tensor")
        if not self._new(t):
            return
        if t.device.type not in ("cpu", "cuda") or t.layout is not torch.strided:
            raise NotRecordable(f"{name} is on {t.device} with layout {t.layout}")
        self.index[id(t)] = len(self.tensors)
        self.tensors.append(t)
        storage = t.untyped_storage()._cdata
        shared = self._storages.setdefault(storage, len(self._storages))
        self._out.append(f"{described(t)} {shared} {t.storage_offset()}")
        if t.__dict__:
            self._namespace(t.__dict__, exact=True, ordered=True)

    def _module(self, m: torch.nn.Module) -> None:
        attributes = m.__dict__
        self._objects.append((m, type(m), attributes))
        self._hooks.extend(attributes[h] for h in HOOKS if h in attributes and not attributes[h])
        self._namespace(attributes, exact=True, ordered=True)

    def _function(self, f: types.FunctionType, name: str) -> None:
        code = f.__code__
        self._out.append(f"function {code.co_filename} {code.co_qualname} {code.co_firstlineno}")
        if not read_further(code.co_filename) or not self._new(f):
            return
        known = facts(code)
        self.codes.update(map(id, with_nested(code)))
        self._out.append(known.digest)
        if known.stores:
            raise NotRecordable(f"{code.co_qualname} assigns global variables")
        cells = f.__closure__ or ()
        try:
            contents = tuple(c.cell_contents for c in cells)
        except ValueError:
            raise NotRecordable(f"{code.co_qualname} has an empty closure cell") from None
        self._functions.append((f, code, f.__defaults__, f.__kwdefaults__, cells, contents))

        def look() -> None:
            for d in f.__defaults__ or ():
                self.value(d, "__defaults__")
            for k, d in (f.__kwdefaults__ or {}).items():
                self._out.append(k)
                self.value(d, "__kwdefaults__")
            for n, c in zip(code.co_freevars, contents, strict=True):
                self.value(c, n)
            if f.__dict__:
                self.value(f.__dict__, "__dict__")
            for n in known.imports:
                if n in sys.modules:
                    self.value(sys.modules[n], n)
            self._mark(known.loaded)
            self._mark(known.attributes)
            self._globals(f.__globals__, known.loaded)

        self._pending.append(look)

    def _type(self, c: type) -> None:
        """The class of an object: its methods by the names that code uses, and all special methods."""
        if not self._new(c):
            return
        self._out.append(f"class {c.__module__}.{c.__qualname__}")
        if _from_c(c):
            return
        self.classes.append(c)
        for base in c.__mro__[1:]:
            self._type(base)
        if not _shipped(c):
            self._orders.append((c, c.__mro__))
            if type(c) is not type:
                self._type(type(c))
        self._pending.append(functools.partial(self._members, c))

    def _members(self, c: type) -> None:
        own = c.__dict__
        shipped = _shipped(c)
        special: tuple[str, ...] = ()
        if not shipped or issubclass(c, torch.nn.Module):  # what loops, calls and subscripts run is named nowhere
            special = tuple(n for n in own if n.startswith("__") and n.endswith("__") and n not in _SKIPPED)
        self._namespace(own, exact=not shipped, ordered=True, shipped=shipped, forced=special)

    def _class(self, c: type, name: str) -> None:
        """A class as a value: it may be called, so what makes its instances counts too."""
        self._type(c)
        if not _shipped(c) and not _from_c(c) and not issubclass(c, torch.nn.Module):

            def makers() -> None:
                for base in c.__mro__:
                    if not _shipped(base) and not _from_c(base):
                        self._namespace(base.__dict__, exact=True, ordered=True, forced=tuple(n for n in _MAKES if n in base.__dict__))

            self._pending.append(makers)

    def _python_module(self, m: types.ModuleType, name: str) -> None:
        if type(m) is not types.ModuleType:
            # computed attributes (torch.backends.*): as long as a trace does not look at them
            self.opaque.update(n for n in dir(type(m)) if not n.startswith("__") and n not in m.__dict__)
        if self._new(m):
            self._out.append(f"package {m.__name__}")
            self._pending.append(lambda: self._globals(m.__dict__))

    def _globals(self, names: dict[str, Any], forced: tuple[str, ...] = ()) -> None:
        self._namespace(names, exact=False, ordered=False, shipped=_is_shipped_package(names), forced=forced)

    # the comparison before a call -------------------------------------------------------------------------------------
    def _freeze(self) -> None:
        self._views: list[tuple[Mapping[str, Any], Any, Any, tuple]] = []
        for space in self._namespaces.values():
            names = list(space.names)
            keys: Any = [*space.mapping] if space.exact else -1 if space.shipped else len(space.mapping)
            padded = names * 2 if len(names) == 1 else names  # itemgetter of one name gives no tuple
            get = operator.itemgetter(*padded) if names else None
            self._views.append((space.mapping, keys, get, get(space.mapping) if get else ()))
        self._metadata = [_metadata(t) for t in self.tensors]
        del self._namespaces, self._pending, self._storages

    def unchanged(self) -> bool:
        """Whether all that was found is still there: the same objects, and tensors of the same kind and shape. Cheap: no walk."""
        is_ = operator.is_
        if any(self._hooks):
            return False
        for o, t, d in self._objects:
            if type(o) is not t or o.__dict__ is not d:
                return False
        try:
            for mapping, keys, get, values in self._views:
                if keys != -1 and (len(mapping) if type(keys) is int else [*mapping]) != keys:
                    return False
                if get and not all(map(is_, get(mapping), values)):
                    return False
        except KeyError:
            return False
        for c, keys, values in self._containers:
            if len(c) != len(keys) or not all(map(is_, c, keys)) or (values and not all(map(is_, c.values(), values))):
                return False
        for f, code, defaults, keywords, cells, contents in self._functions:
            if f.__code__ is not code or f.__defaults__ is not defaults or f.__kwdefaults__ is not keywords:
                return False
            for cell, content in zip(cells, contents):
                if cell.cell_contents is not content:
                    return False
        return (
            all(c.__mro__ is order for c, order in self._orders)
            and all(s == known for s, known in self._sets)
            and [_metadata(t) for t in self.tensors] == self._metadata
        )


def described(t: torch.Tensor) -> str:
    """Kind and shape of a tensor, equal in another process."""
    return f"{type(t).__name__} {t.dtype} {tuple(t.shape)} {t.stride()} {t.requires_grad} {t.is_leaf} {t.device} {t.layout} {_keys(t)}"


def _metadata(t: torch.Tensor) -> tuple[Any, ...]:
    return (t.__class__, t.dtype, t.shape, t.stride(), t.requires_grad, t.device)


def _keys(t: torch.Tensor) -> int:
    """Views with conjugation or negation pending, wrappers of function transforms, inference tensors: all are dispatch keys."""
    return int(torch._C._dispatch_keys(t).raw_repr())


def _is_shipped_package(namespace: Mapping[str, Any]) -> bool:
    """Whether a namespace is that of a Python module which comes with PyTorch or Python."""
    file = namespace.get("__file__")
    return "__name__" in namespace and (namespace["__name__"] in sys.builtin_module_names or (isinstance(file, str) and shipped_file(file)))


def _is_pybind(owner: Any) -> bool:
    """Whether a builtin's owner is the record that pybind11 keeps of every function."""
    return type(owner).__name__ == "PyCapsule" or type(owner).__module__ == "pybind11_builtins"


def _shipped(c: type) -> bool:
    """Whether a class is PyTorch's, NumPy's, Python's or this package's, and stands where its name says."""
    if not isinstance(c.__module__, str):  # a class may define the attribute for its instances
        return False
    top = c.__module__.partition(".")[0]
    if (top not in SHIPPED and top not in sys.stdlib_module_names) or top == "__main__":
        return False
    home = sys.modules.get(c.__module__)
    found: Any = home
    for part in c.__qualname__.split("."):
        found = getattr(found, part, None)
    file = getattr(home, "__file__", None)
    return found is c and (file is None or shipped_file(file) or top == "numpy")


def _from_c(c: type) -> bool:
    """Whether a class cannot be changed from Python."""
    return not c.__flags__ & (1 << 9)  # Py_TPFLAGS_HEAPTYPE
