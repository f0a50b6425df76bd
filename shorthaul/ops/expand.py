"""Lowering: every operator of a program is replaced by maps or library calls, as one rewrite."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from shorthaul.ir.containers import Container
from shorthaul.ir.nodes import Node, Operator
from shorthaul.ir.program import Form, Program

from .builder import Expansion
from .registry import OperatorDefinition, OperatorError, definition

Choice = Callable[[Operator, OperatorDefinition, Mapping[str, Container]], str]


def choose_default(node: Operator, operator: OperatorDefinition, containers: Mapping[str, Container]) -> str:
    """The expansion set on the node, else the first whose condition holds, `maps` last."""
    if node.expansion is not None:
        return node.expansion
    for name, rule in operator.more_expansions().items():
        if rule.condition is None or rule.condition(node, containers):
            return name
    return "maps"


def choose_maps(node: Operator, operator: OperatorDefinition, containers: Mapping[str, Container]) -> str:
    """Maps for everything: the meaning of the program."""
    return "maps"


def expand(program: Program, choose: Choice = choose_default) -> None:
    """Lower every operator in one edit and set form MAPS. choose: the name of the expansion of each operator.

    Results that nobody uses are dropped first where the definition allows it (`optional_results`); containers that
    are left without a writer go.
    Raises OperatorError for an unknown expansion or one whose condition does not hold, naming operator and origin.
    """
    with program.edit("Expand") as edit:
        dropped: list[str] = []
        nodes: list[Node] = []
        for node in list(program.nodes):
            if not isinstance(node, Operator):
                continue
            d = definition(node)
            unused = [k for k in d.optional_results if k in node.writes and _unused(program, node.writes[k].container)]
            if unused and len(unused) < len(node.writes):
                slim = node.with_(writes={k: m for k, m in node.writes.items() if k not in unused})
                dropped += [node.writes[k].container for k in unused]
                edit.replace(node, slim)
                node = slim
            name = choose(node, d, program.containers)
            rules = d.expansions()
            if name not in rules:
                raise OperatorError(f"{node.op} of {node.origin} has no expansion {name!r}; it has {', '.join(rules)}")
            condition = rules[name].condition
            if condition is not None and not condition(node, program.containers):
                raise OperatorError(f"expansion {name!r} of {node.op} of {node.origin} does not apply to its operands")
            c = Expansion(edit, node)
            rules[name].apply(c)
            edit.replace(node, *c.nodes)
            nodes += c.nodes
        edit.drop_unused(dropped)
        edit.set_form(Form.MAPS)


def _unused(program: Program, container: str) -> bool:
    return not program.readers(container) and container not in program.results
