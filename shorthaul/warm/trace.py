"""What Dynamo did while it traced a call: whether the call became one graph, and whether the walk covers all that was read.

Dynamo's guards are the list of what a trace depended on. Here they are only a cross-check of `LiveState`: a guard on something that the
walk did not look at, or of a kind not known here, means that no capture record is made.
"""

from __future__ import annotations

import sys
from types import CodeType
from typing import Any

from .code import read_further
from .live_state import LiveState, NotRecordable

# Guards without a source: `calls.settings` compares what they stand for.
_SETTINGS = frozenset({"SHAPE_ENV", "GRAD_MODE", "DETERMINISTIC_ALGORITHMS", "GLOBAL_STATE", "DEFAULT_DEVICE", "TORCH_FUNCTION_STATE",
                       "AUTOGRAD_SAVED_TENSORS_HOOKS", "FSDP_TRAINING_STATE"})  # fmt: skip
# Sources that the walk covers where it covers their base: entries of containers, and parts of functions and classes.
_INSIDE = frozenset({"GetItemSource", "DictGetItemSource", "ListGetItemSource", "TupleIteratorGetItemSource", "ConstDictKeySource",
                     "TypeSource", "TypeDictSource", "TypeMROSource", "DefaultsSource", "ClosureSource", "CodeSource",
                     "UnspecializedNNModuleSource", "UnspecializedBuiltinNNModuleSource", "NNModuleSource", "DictSubclassGetItemSource",
                     "IndexedSource", "TensorPropertySource"})  # fmt: skip
_ATTRIBUTES = frozenset({"AttrSource", "GenericAttrSource", "UnspecializedParamBufferSource", "ParamBufferSource", "CellContentsSource"})
# Attributes that the walk has of every object, class or function that it meets.
_ALWAYS = frozenset({
    "__dict__", "__class__", "__code__", "__closure__", "__defaults__", "__kwdefaults__", "__func__", "__self__", "__mro__", "__globals__",
    "__name__", "__qualname__", "__module__", "__bases__", "__call__", "__wrapped__", "_modules", "_parameters", "_buffers", "forward",
    "__iter__", "__next__", "__len__", "__getitem__", "__contains__", "cell_contents", "fget", "fset", "fdel", "func",
    "args", "keywords", "shape", "dtype", "device", "requires_grad", "default_factory",
})  # fmt: skip
_NEW = frozenset({"AttributeMutationNew", "ValueMutationNew"})  # of objects that the call itself makes
_SCOPES = ("__import_", "__builtins_dict__", "___unnamed_scope")  # Dynamo's names for the globals of a function
_TORCH = ("__import_torch_dot_",)
_ENTRY_NAMES = frozenset({"module", "args", "kwargs", "unrolled"})  # the last is made of the module
_ENTRY_GLOBALS = frozenset({"global_hooks"})  # the dicts that calling a module reads, which the walk has from there
_UNREAD = frozenset({"grad", "_grad", "grad_fn", "_version"})  # of tensors: the walk does not look at them


class Trace:
    """Facts of one compilation, taken while Dynamo's backend runs. Raises NotRecordable where the call is not one plain graph."""

    def __init__(self, gm: Any, entry: CodeType) -> None:
        try:
            tx = sys.modules["torch._dynamo.symbolic_convert"].InstructionTranslator.current_tx()
            output = tx.output
            root, effects, reason = tx.f_code, output.side_effects, gm.compile_subgraph_reason
            self.codes = list(output.traced_code)
            self.guards = list(output.guards)
            changed = [v for v in effects._get_modified_vars() if type(v.mutation_type).__name__ not in _NEW]
            other = effects.tensor_hooks or effects.save_for_backward or output.random_calls
        except AttributeError as e:  # internals of PyTorch, and another version of it
            raise NotRecordable(f"Dynamo's trace cannot be read ({e})") from None
        if root is not entry or reason.graph_break:
            raise NotRecordable("the call has a graph break")
        if changed or other:
            raise NotRecordable("the call has side effects besides its buffers")

    def check(self, live: LiveState) -> None:
        """Refuse where the trace read something that the walk did not."""
        for code in self.codes:
            if read_further(code.co_filename) and id(code) not in live.codes:
                raise NotRecordable(f"{code.co_qualname} ({code.co_filename}:{code.co_firstlineno}) was traced and not found by name")
        for guard in self.guards:
            kind = guard.create_fn_name()
            name = type(guard.originating_source).__name__
            if kind in _SETTINGS and not hasattr(guard.originating_source, "base"):
                continue
            if not _covered(guard.originating_source, live):
                raise NotRecordable(f"the trace depended on {guard.name or name} ({kind})")


def _covered(source: Any, live: LiveState) -> bool:
    if _of_torch(source):
        return True
    while True:
        kind = type(source).__name__
        if kind in _ATTRIBUTES:
            member = source.member
            if member in live.opaque or member in _UNREAD or (member not in live.names and member not in _ALWAYS):
                return False
        elif kind == "LocalSource" or kind == "LocalCellSource":
            return source.local_name in _ENTRY_NAMES
        elif kind == "GlobalSource":
            name = source.global_name
            return name.startswith(_SCOPES) or name in _ENTRY_GLOBALS or (name in live.names and name not in live.opaque)
        elif kind not in _INSIDE:
            return False
        elif kind == "DictGetItemSource" or kind == "GetItemSource":
            if source.index in live.opaque if isinstance(source.index, str) else False:
                return False
        source = source.base


def _of_torch(source: Any) -> bool:
    """Whether it is something inside a module of PyTorch, which the record's key has by its version."""
    while hasattr(source, "base"):
        source = source.base
    return type(source).__name__ == "GlobalSource" and source.global_name.startswith(_TORCH)
