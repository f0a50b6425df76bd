"""Names of places that survive a rerun: which node of which module, as text.

A reference is `module: label [backward] #2`: the module path that the node comes from, its label (the operators in it), its phase
where that is not forward, and its number among the nodes that share all of this, in program order, where it is not the first. Node ids
differ from run to run and from block to block; references do not, so recipes and explanations are written in them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .nodes import LibraryCall, Map, Node, Operator

if TYPE_CHECKING:
    from .program import Program

MODEL = "<model>"


def kind_of_place(node: Node) -> str:
    """What the references of alike nodes have in common: module, label and phase."""
    label = node.label if isinstance(node, (Map, Operator, LibraryCall)) else node.kind
    return f"{node.origin.module or MODEL}: {label}" + ("" if node.phase == "forward" else f" [{node.phase}]")


def reference(program: Program, node: Node) -> str:
    """The reference of a node of the program."""
    kind = kind_of_place(node)
    number = program.alike(kind).index(node) + 1
    return kind if number == 1 else f"{kind} #{number}"


def references(program: Program) -> dict[int, str]:
    """The reference of every node by id, in one pass."""
    seen: Counter[str] = Counter()
    found = {}
    for node in program.nodes:
        kind = kind_of_place(node)
        seen[kind] += 1
        found[node.id] = kind if seen[kind] == 1 else f"{kind} #{seen[kind]}"
    return found


def find(program: Program, text: str) -> Node | None:
    """The node that a reference names today, None if there is none."""
    kind, mark, number = text.rpartition(" #")
    if not mark or not number.isdigit():
        kind, number = text, "1"
    nodes, at = program.alike(kind), int(number)
    return nodes[at - 1] if 1 <= at <= len(nodes) else None


def module_of(text: str) -> str:
    """The module path of a reference."""
    return text.partition(": ")[0]


def moved(text: str, old: str, new: str) -> str:
    """The reference with the module prefix `old` replaced by `new` (unchanged where it lies elsewhere)."""
    module, colon, rest = text.partition(": ")
    if module == old or module.startswith(old + "."):
        return new + module[len(old) :] + colon + rest
    return text


def common_prefix(modules: Iterable[str]) -> str:
    """The longest module path that all of them lie in, empty where there is none."""
    parts = [m.split(".") for m in modules]
    if not parts:
        return ""
    shared = []
    for step in zip(*parts, strict=False):
        if len(set(step)) > 1:
            break
        shared.append(step[0])
    return ".".join(shared)


def isomorphic_modules(program: Program, module: str) -> list[str]:
    """The other modules with the same nodes (labels, phases and numbers, by module path within them), in program order.

    Ask a program of operators: fusion mixes the nodes of neighbouring modules. Raises KeyError for a module without nodes.
    """
    inside: dict[str, Counter[str]] = {}
    for node in program.nodes:
        path = node.origin.module.split(".") if node.origin.module else []
        kind = kind_of_place(node).partition(": ")[2]
        for i in range(1, len(path) + 1):
            inside.setdefault(".".join(path[:i]), Counter())[f"{'.'.join(path[i:])}: {kind}"] += 1
    if module not in inside:
        raise KeyError(f"no node of program {program.name} comes from a module {module!r}; there are {', '.join(list(inside)[:8])}, ...")
    return [other for other, found in inside.items() if other != module and found == inside[module]]


# Containers at a place are named by how one of its nodes accesses them, since their own names differ from block to block.


def accessed(node: Node) -> tuple[list[str], list[str]]:
    """Containers that a node reads and that it writes, each once, in the order of its connectors."""
    if isinstance(node, Map):
        outside = [a for a in node.accesses() if not a.is_local]
        return ([*dict.fromkeys(a.memlet.container for a in outside if not a.is_write)],
                [*dict.fromkeys(a.memlet.container for a in outside if a.is_write)])  # fmt: skip
    return [*dict.fromkeys(m.container for m in node.reads.values())], [*dict.fromkeys(m.container for m in node.writes.values())]


def container_reference(name: str, nodes: dict[str, Node]) -> str:
    """`first>0`: the first container that the node called `first` writes; `first<1`: the second that it reads; else `=name`."""
    for sign, side in ((">", 1), ("<", 0)):
        for role, node in nodes.items():
            found = accessed(node)[side]
            if name in found:
                return f"{role}{sign}{found.index(name)}"
    return f"={name}"


def find_container(program: Program, text: str, nodes: dict[str, Node]) -> str | None:
    """The container that a reference names, None if there is none."""
    if text.startswith("="):
        return text[1:] if text[1:] in program.containers else None
    for sign, side in ((">", 1), ("<", 0)):
        role, found, number = text.partition(sign)
        if found and role in nodes and number.isdigit():
            names = accessed(nodes[role])[side]
            return names[int(number)] if int(number) < len(names) else None
    return None
