"""ExpansionChoice: how each operator is lowered."""

from __future__ import annotations

from collections.abc import Mapping

from shorthaul.ir.containers import Container
from shorthaul.ir.nodes import Operator
from shorthaul.ops.registry import OperatorDefinition


def choose_expansion(node: Operator, definition: OperatorDefinition, containers: Mapping[str, Container]) -> str:
    """The name of the expansion for one operator.

    A choice made before (`node.expansion`) stands. Otherwise `library` where the operator has it and its condition holds: contractions of
    some size, whose arithmetic a library keeps in the caches; everything else becomes maps, which fuse.
    """
    rules = definition.expansions()
    weight = node.writes["y"] if node.op == "conv_grad_weight" else node.reads.get("weight")
    if node.expansion is None and node.attributes.get("groups", 1) != 1 and weight is not None and containers[weight.container].shape[1] == 1:
        return "maps"  # depthwise: a window a channel, bound by memory; as a map it fuses with its neighbours
    if node.expansion is not None:
        if node.expansion not in rules:
            raise ValueError(f"{node.label} of {node.origin} has no expansion {node.expansion!r}; it has {', '.join(rules)}")
        return node.expansion
    for name in ("library", "composition"):
        rule = rules.get(name)
        if rule is not None and (rule.condition is None or rule.condition(node, containers)):
            return name
    return definition.default_expansion
