"""The operator registry: one class per operator says everything about it.

A definition gives the ATen overloads it imports from, shape and dtype inference, the `maps` expansion (its meaning), other expansions
with their conditions, optionally a gradient (otherwise the maps are differentiated), and samples from which tests are generated.
Importing this module's package registers all operators; an out-of-tree package registers its own with `@register`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Union

from shorthaul.extension import load
from shorthaul.ir.containers import Container, contiguous_strides
from shorthaul.ir.dtypes import DType
from shorthaul.ir.memlet import Condition
from shorthaul.ir.nodes import Operator
from shorthaul.symbolic import Expr

if TYPE_CHECKING:
    from .builder import Expansion, Gradient

IntLike = Union[int, Expr]


class TensorType(NamedTuple):
    """What inference knows of a tensor."""

    dtype: DType
    shape: tuple[IntLike, ...]

    def __repr__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


class OperatorError(ValueError):
    """An operator was given operands or attributes it does not take; the message names operator, operand, expected and given."""


@dataclass
class Sample:
    """A case for the generated tests: operand types (or values) and attributes. `error`: words that the refusal must contain."""

    operands: Mapping[str, Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass
class ExpansionRule:
    """One way to lower an operator: `apply` builds nodes, `condition` says for which nodes it may be chosen (None: always).

    device: "cuda" for a call that only GPUs have.
    """

    apply: Callable[[Expansion], None]
    condition: Callable[[Operator, Mapping[str, Container]], bool] | None = None
    device: str | None = None


class OperatorDefinition:
    """Base of all operators. Subclass, fill in the class attributes, decorate with `@register`.

    operands: names in order; a trailing `?` marks an optional one, a trailing `*` any number of them (named x0, x1, ...).
    results: names in order. aten: overload names such as "aten.silu.default" whose calls mean this operator.
    attributes: names of static parameters with defaults (REQUIRED where there is none).
    differentiable: operands that can receive a gradient (default: all of floating dtype).
    is_random: reads the containers `seed` and `offset` and has an attribute `stream` (see `uses_random`).
    optional_results: results that the expansions leave out where nobody uses them.
    eager_kernels: how many kernels eager PyTorch runs for it (0 for views).
    defines_sizes: sizes of its results depend on data (see ops/counted.py); of other operators' they follow from `infer`.
    reads_memory: it addresses its operand's memory (see ops/strided.py); what it does not take has no call of PyTorch instead.
    """

    name: str = ""
    operands: tuple[str, ...] = ("x",)
    results: tuple[str, ...] = ("y",)
    aten: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = {}
    default_expansion: str = "maps"
    is_view: bool = False
    is_random: bool = False
    optional_results: tuple[str, ...] = ()
    defines_sizes: bool = False
    reads_memory: bool = False

    def most(self, call: AtenCall) -> IntLike | None:
        """The largest that a size which depends on data can be, None where only the data says (see `defines_sizes`)."""
        return None

    def conditions(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> Iterable[tuple[Condition, str]]:
        """What must hold of sizes that depend on data, with what is wrong where it does not; all else `infer` checks."""
        return ()

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        """Types of the results; raises OperatorError naming what does not fit."""
        raise NotImplementedError

    def maps(self, c: Expansion) -> None:
        """Build the meaning of the operator from maps (into `c`)."""
        raise NotImplementedError

    def expansions(self) -> dict[str, ExpansionRule]:
        """All expansions by name."""
        return {"maps": ExpansionRule(self.maps), **self.more_expansions()}

    def more_expansions(self) -> dict[str, ExpansionRule]:
        """Expansions besides `maps`, such as `library`."""
        return {}

    gradient: ClassVar[Callable[[Any, Gradient], dict[str, Container | None]] | None] = None

    def of_call(self, call: AtenCall) -> OperatorDefinition:
        """The operator that an ATen call becomes, where one overload means several."""
        return self

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        """Operands and attributes of an ATen call. The default takes operands and attributes by position and by name."""
        names = [n.rstrip("?") for n in self.operands]
        tensors = dict(zip(names, call.tensors(), strict=False))
        attrs = {k: call.arguments[k] for k in self.attributes if k in call.arguments}
        return tensors, attrs

    def aten_results_match(self, i: int) -> bool:
        """Whether result i has the type that PyTorch gives it (saved values may be our own)."""
        return True

    def uses_random(self, attributes: Mapping[str, Any]) -> bool:
        """Whether a node with these attributes draws random numbers:
        it then gets the operands `seed` and `offset` and a `stream` of its own.
        """
        return self.is_random

    def samples(self) -> Iterable[Sample]:
        """Cases for the generated tests: good ones and ones that must be refused."""
        return ()

    # helpers ----------------------------------------------------------------------------------------------------------
    def operand_names(self, node: Operator) -> list[str]:
        return list(node.reads)

    def require(self, condition: bool, message: str) -> None:
        """Raise OperatorError unless the condition holds."""
        if not condition:
            raise OperatorError(f"{self.name}: {message}")


REQUIRED = object()


@dataclass
class AtenCall:
    """An ATen call as a definition sees it.

    target: "aten.add.Tensor". arguments: by schema name, defaults filled in; a tensor is a `Container`, lists of tensors are lists of
    Containers, numbers are Python numbers or Exprs. order: schema names in order. results: types of the results as PyTorch computes them.
    layouts: gives the strides that PyTorch laid an argument out in (see `layout`).
    """

    target: str
    arguments: dict[str, Any]
    order: tuple[str, ...]
    results: list[TensorType | None]
    compute: DType | None = None

    def tensors(self) -> list[Any]:
        """Values of the tensor-typed arguments in schema order (None for an absent optional one)."""
        return [v for k, v in self.arguments.items() if isinstance(v, Container) or k in self.tensor_names]

    tensor_names: frozenset[str] = frozenset()
    layouts: Callable[[str], tuple[IntLike, ...]] | None = None

    def layout(self, name: str) -> tuple[IntLike, ...]:
        """The strides of a tensor argument when the graph was captured, for operators that address its memory: row-major where nothing
        else is said. The front end refuses tensors that are a part of another one's memory."""
        return self.layouts(name) if self.layouts is not None else contiguous_strides(self.arguments[name].shape)

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]


REGISTRY: dict[str, OperatorDefinition] = {}
ATEN: dict[str, OperatorDefinition] = {}


def register(cls: type[OperatorDefinition] | OperatorDefinition) -> Any:
    """Add a definition (class decorator, or call with an instance). Raises ValueError when the name or an overload is taken."""
    definition = cls() if isinstance(cls, type) else cls
    if definition.name in REGISTRY:
        raise ValueError(f"operator {definition.name} is registered already")
    for overload in definition.aten:
        if overload in ATEN:
            raise ValueError(f"{overload} is imported by operator {ATEN[overload].name} already")
    REGISTRY[definition.name] = definition
    ATEN.update(dict.fromkeys(definition.aten, definition))
    return cls


@cache
def load_extensions() -> None:
    """Register the operators of other packages (entry point group `shorthaul.operators`), once, before the first graph is imported.
    Raises ExtensionError where one cannot be loaded."""
    for _, thing in load("shorthaul.operators"):
        if isinstance(thing, type) and issubclass(thing, OperatorDefinition) and thing.name not in REGISTRY:
            register(thing)


def definition(op: str | Operator) -> OperatorDefinition:
    """The definition of an operator; KeyError names the unknown one."""
    name = op if isinstance(op, str) else op.op
    if name not in REGISTRY:
        raise KeyError(f"operator {name} is not registered")
    return REGISTRY[name]
