"""ExpansionChoice: how each operator is lowered."""

from __future__ import annotations

from collections.abc import Mapping

from shorthaul.ir.containers import Container
from shorthaul.ir.edit import Edit
from shorthaul.ir.nodes import Operator
from shorthaul.ops.registry import OperatorDefinition, definition

from ..base import Match, OperatorNode, Path, Transformation, require


class ExpansionChoice(Transformation):
    """Fix the expansion that an operator will be lowered by.

    before:  y = convolution(x, w)        after:  y = convolution(x, w) by maps

    What it saves shows when the operator is lowered and its neighbours are fused with it. to: the name of the expansion.
    """

    level = 1
    pattern = Path(OperatorNode("node"))

    def __init__(self, to: str = "maps") -> None:
        self.to = to

    def check(self, m: Match) -> None:
        rules = definition(m.node).expansions()
        require(self.to in rules, f"{m.node.label} has no expansion {self.to!r}; it has {', '.join(rules)}")
        condition = rules[self.to].condition
        require(condition is None or condition(m.node, m.program.containers), f"expansion {self.to!r} does not take these operands")
        require(m.node.expansion != self.to, f"it is lowered by {self.to!r} already")

    def apply(self, m: Match, edit: Edit) -> None:
        edit.replace(m.node, m.node.with_(expansion=self.to))


def choose_expansion(
    node: Operator, definition: OperatorDefinition, containers: Mapping[str, Container], libraries: tuple[str, ...] = ("library",)
) -> str:
    """The name of the expansion for one operator. libraries: expansions that call a library on the target, the preferred first.

    A choice made before (`node.expansion`) stands. Otherwise `library` where the operator has it and its condition holds: contractions of
    some size, whose arithmetic a library keeps in the caches; everything else becomes maps, which fuse.
    """
    rules = definition.expansions()
    weight = node.writes["y"] if node.op == "conv_grad_weight" else node.reads.get("weight")
    if (
        node.expansion is None
        and node.op.startswith("conv")
        and node.attributes.get("groups", 1) != 1
        and weight is not None
        and len(containers[weight.container].shape) > 1  # not the weights of a group norm
        and containers[weight.container].shape[1] == 1
    ):
        return "maps"  # depthwise: a window a channel, bound by memory; as a map it fuses with its neighbours
    if node.expansion is not None:
        if node.expansion not in rules:
            raise ValueError(f"{node.label} of {node.origin} has no expansion {node.expansion!r}; it has {', '.join(rules)}")
        return node.expansion
    for name in (*libraries, "composition"):
        rule = rules.get(name)
        if rule is not None and (rule.condition is None or rule.condition(node, containers)):
            return name
    return definition.default_expansion
