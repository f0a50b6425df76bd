"""Embeddings with `sparse=True`: PyTorch looks them up in front of the compiled graph, and so their tables get sparse gradients.

    before:  graph(table, ids): embedding(ids, table, sparse=True) ...        after:  graph(rows): rows ...
             rows = embedding(ids, table, sparse=True), by PyTorch, at each call

The compiled graph gives the rows a dense gradient, and PyTorch's own backward makes it the table's sparse one. Indices that the graph
computes of other integers are computed in front of it, too. Where no gradient is asked for, the lookup is an ordinary one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from shorthaul.frontends.functional import Unsupported
from shorthaul.frontends.functional_origin import origin_of
from shorthaul.ir.nodes import Origin

# where `sparse` stands among the positional arguments, and where the table
_LOOKUPS: dict[Any, tuple[int, int, str]] = {
    F.embedding: (6, 1, "weight"),
    F.embedding_bag: (7, 1, "weight"),
    torch.embedding: (4, 0, "weight"),
}
_IN_PLACE = {f for name, f in vars(operator).items() if name.startswith("i") and f"__{name}__" in vars(operator)} | {operator.setitem}
_RANDOM = ("rand", "bernoulli", "multinomial", "poisson", "normal", "uniform", "exponential", "geometric", "cauchy")


@dataclass
class Lookups:
    """A graph without its sparse lookups.

    gm, examples: what is compiled; the rows are its last inputs. rows: from the inputs of the whole graph to the rows. calls: the lookups,
    for the report.
    """

    gm: fx.GraphModule
    examples: list[Any]
    rows: Callable[..., Sequence[torch.Tensor]]
    calls: list[tuple[str, Origin]]

    def around(self, graph: Callable[..., Any]) -> Callable[..., Any]:
        """The whole graph, from the compiled rest of it."""
        if not self.calls:
            return graph
        return lambda *inputs: graph(*inputs, *self.rows(*inputs))


def sparse_lookups(gm: fx.GraphModule, examples: Sequence[Any], strict: bool = False) -> Lookups | None:
    """Take the sparse lookups out of a graph of Dynamo's; None where it has none.

    Raises Unsupported, with the place, for a lookup whose rows must be known in the middle of the graph: of computed tables, of tables or
    indices that the graph writes before, of indices that are drawn at random or come from floating numbers, or in a nested graph.
    """
    found = [n for n in gm.graph.nodes if _is_sparse(n)]
    for name, inner in gm.named_modules():
        if name and isinstance(inner, fx.GraphModule):
            for n in inner.graph.nodes:
                if _is_sparse(n) and torch.is_grad_enabled():
                    raise Unsupported("a sparse embedding inside a checkpoint region or a branch", origin_of(n), "Use sparse=False.")
    if not found:
        return None
    differentiated = torch.is_grad_enabled()
    taken = [n for n in found if differentiated and n.meta["example_value"].requires_grad]
    needed = _needed(gm, taken)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(gm.graph, copies)
    graph.output(output)
    for n, copy in copies.items():
        if hasattr(n, "_dynamo_source"):
            copy._dynamo_source = n._dynamo_source
    for n in found:
        _densify(copies[n])
    inputs = graph.find_nodes(op="placeholder")
    for k, n in enumerate(taken):
        with graph.inserting_after(inputs[-1]):
            rows = graph.placeholder(f"rows_{k}")
        rows.meta.update({key: n.meta[key] for key in ("example_value", "stack_trace", "nn_module_stack") if key in n.meta})
        inputs.append(rows)
        copies[n].replace_all_uses_with(rows)
        graph.erase_node(copies[n])
    rest = fx.GraphModule(gm, graph)
    front = _front(gm, needed, taken)
    calls = []
    for n in taken:
        place, name = origin_of(n), n.target.__name__
        reason = f"{name} with sparse=True is a call of PyTorch in front of the graph, whose gradient is sparse"
        if strict:
            raise Unsupported(f"strict=True refuses the fallback: {reason}", place, "Use sparse=False, or allow fallbacks.")
        calls.append((reason, Origin(place.module, place.source, name)))
    return Lookups(rest, [*examples, *(n.meta["example_value"] for n in taken)], front, calls)


def _argument(n: fx.Node, at: int, name: str) -> Any:
    return n.args[at] if len(n.args) > at else n.kwargs.get(name)


def _is_sparse(n: fx.Node) -> bool:
    return n.op == "call_function" and n.target in _LOOKUPS and _argument(n, _LOOKUPS[n.target][0], "sparse") is True


def _densify(n: fx.Node) -> None:
    at = _LOOKUPS[n.target][0]
    if len(n.args) > at:
        n.update_arg(at, False)
    else:
        n.update_kwarg("sparse", False)


def _needed(gm: fx.GraphModule, taken: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes that lookups are made of, themselves included."""
    needed: set[fx.Node] = set()
    for lookup in taken:
        place = origin_of(lookup)
        table = _argument(lookup, *_LOOKUPS[lookup.target][1:])
        if table.op != "placeholder" or (_argument(lookup, 3, "max_norm") is not None and lookup.target in (F.embedding, F.embedding_bag)):
            what = "that writes its table (max_norm)" if table.op == "placeholder" else "of a computed table"
            raise Unsupported(f"a sparse embedding {what}", place, "Use sparse=False.")
        before = _before(lookup)
        for n in before:
            value = n.meta.get("example_value")
            plain = n.op in ("placeholder", "get_attr") or not isinstance(value, torch.Tensor) or not value.is_floating_point()
            if not plain or any(word in str(n.target) for word in _RANDOM):
                raise Unsupported(f"a sparse embedding by indices that {n.name} computes", place, "Use sparse=False.")
        needed |= before | {lookup}
    last = taken[-1] if taken else None
    for n in gm.graph.nodes if last is not None else ():
        if n is last:
            break
        if _writes(n) and isinstance(n.args[0], fx.Node) and not (_before(n.args[0]) | {n.args[0]}).isdisjoint(needed):
            raise Unsupported(f"a sparse embedding of what the graph writes before ({n.name})", origin_of(n), "Use sparse=False.")
    return needed


def _before(n: fx.Node) -> set[fx.Node]:
    """All nodes that a node is computed of."""
    found: set[fx.Node] = set()
    open_ = list(n.all_input_nodes)
    while open_:
        m = open_.pop()
        if m not in found:
            found.add(m)
            open_ += m.all_input_nodes
    return found


def _writes(n: fx.Node) -> bool:
    """Whether a call changes its first argument."""
    if n.op == "call_method":
        name = str(n.target)
        special = name == "__setitem__" or (name.startswith("__i") and name != "__invert__")
        return special or (name.endswith("_") and not name.endswith("__"))
    if n.op != "call_function" or not n.args:
        return False
    return n.target in _IN_PLACE or (getattr(n.target, "__name__", "").endswith("_"))


def _front(gm: fx.GraphModule, needed: set[fx.Node], taken: Sequence[fx.Node]) -> Callable[..., Sequence[torch.Tensor]]:
    """The function of the graph's inputs that gives the rows of all lookups."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for n in gm.graph.nodes:
        if n in needed or n.op == "placeholder":
            copies[n] = graph.node_copy(n, copies.__getitem__)
    graph.output(tuple(copies[n] for n in taken))
    return fx.GraphModule(gm, graph).forward  # type: ignore[no-any-return]
