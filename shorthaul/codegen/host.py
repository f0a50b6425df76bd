"""The host program: which kernels and library calls run in which order, and where every container lives.

Target-independent. A phase is a list of steps; runs of kernels without a library call between them become one *segment*, a C function that
calls them on a table of pointers, so that the interpreter is entered once a segment and not once a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from shorthaul.ir.containers import Container
from shorthaul.ir.launches import launched_together
from shorthaul.ir.nodes import Branch, Defines, LibraryCall, Loop, Map, Node
from shorthaul.ir.program import Program
from shorthaul.ir.sizes import container_sizes, runtime_sizes
from shorthaul.symbolic import Expr, Symbol, evaluate, free_symbols

IntLike = Union[int, Expr]


class HostError(ValueError):
    """A program holds a node that no step can run."""


LABEL = 160  # characters of module names that a profiler's range shows


@dataclass(frozen=True)
class KernelCall:
    """One kernel: the emitted function's name, its containers in the order of its arguments, its sizes, what indices it checks."""

    function: str
    arguments: tuple[str, ...]
    sizes: tuple[Symbol, ...]
    node: int
    checks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Segment:
    """Kernels that run one after the other, as one C function."""

    function: str
    kernels: tuple[KernelCall, ...]


@dataclass(frozen=True)
class LibraryStep:
    """One library call: operand and result names with their containers."""

    function: str
    attributes: Mapping[str, Any]
    reads: tuple[tuple[str, str], ...]
    writes: tuple[tuple[str, str], ...]
    node: int
    origin: str = ""
    defines: tuple[Defines, ...] = ()


@dataclass(frozen=True)
class ControlStep:
    """A branch or a loop, with its bodies as host programs. It allocates its results, as most library calls do."""

    control: Branch | Loop
    bodies: tuple[HostProgram, ...]

    @property
    def reads(self) -> tuple[tuple[str, str], ...]:
        return tuple((k, m.container) for k, m in self.control.reads.items())

    @property
    def writes(self) -> tuple[tuple[str, str], ...]:
        return tuple((k, m.container) for k, m in self.control.writes.items())

    @property
    def defines(self) -> tuple[Defines, ...]:
        return self.control.defines

    @property
    def origin(self) -> str:
        return str(self.control.origin)


Step = Union[Segment, LibraryStep, ControlStep]


@dataclass(frozen=True)
class Part:
    """Steps `first` to `last` (exclusive) of the backward phase, after which the named gradients are complete."""

    first: int
    last: int
    gradients: tuple[str, ...]


@dataclass
class Phase:
    """Steps in order, and for each container that lives in this phase alone the first and last step that touches it.

    spans: the same by the positions of nodes, of which a C function runs several one after the other; what memory is planned by. parts:
    the phase cut where gradients are complete; each part runs as an autograd node of its own. labels: of each step, for profilers: the
    modules that it is of.
    """

    name: str
    steps: list[Step] = field(default_factory=list)
    lifetimes: dict[str, tuple[int, int]] = field(default_factory=dict)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


@dataclass
class HostProgram:
    """Everything the runtime needs, apart from the compiled library.

    kinds: where a container lives: "external" (the caller's tensor), "constant", "result" (a fresh tensor for the caller), "saved" (from
    the forward to the backward phase), "transient" (within one phase), "alias" (in another container). pointers: index of each container
    in the pointer table. late: symbols that steps define. dynamic: containers whose sizes those are; they get memory when they are known.
    memory_plan: see `analysis.arena`.
    """

    containers: dict[str, Container]
    kinds: dict[str, str]
    pointers: dict[str, int]
    symbols: tuple[Symbol, ...]
    phases: dict[str, Phase]
    source: str
    signature: Any
    constants: dict[str, Any]
    late: frozenset[Symbol] = frozenset()
    dynamic: frozenset[str] = frozenset()
    memory_plan: str = "soon"

    @property
    def functions(self) -> list[str]:
        """Names of the C functions of all segments, those of bodies too."""
        names = []
        for phase in self.phases.values():
            for step in phase.steps:
                if isinstance(step, Segment):
                    names.append(step.function)
                elif isinstance(step, ControlStep):
                    names += [f for body in step.bodies for f in body.functions]
        return names


def build_host(
    program: Program, kernels: Mapping[int, Any], *, parts: int = 8, part_bytes: int = 1 << 20, prefix: str = "", single: bool = False,
    apart: bool = False,
) -> HostProgram:  # fmt: skip
    """Lay out a scheduled program. kernels: node id -> emitted kernel (name, arguments, sizes), those of bodies too.

    prefix: what the names of C functions begin with (bodies have their own). single: every kernel, or batch of kernels, is a segment of its
    own, for a target that launches them one by one and wants memory back after each. apart: every kernel is one with C functions, so that
    it can be timed. The backward phase is cut into at most `parts` parts with at least `part_bytes` of gradients each; the program's
    attribute of that name, where it has one, says otherwise.
    """
    part_bytes = program.attributes.get("part_bytes", part_bytes)
    nodes = {phase: [n for n in program.nodes if n.phase == phase] for phase in ("forward", "backward")}
    kinds = _kinds(program, nodes)
    used = [name for name in program.containers if name in kinds]
    pointers = {name: i for i, name in enumerate(used)}
    phases: dict[str, Phase] = {}
    text: list[str] = []
    for phase, listing in nodes.items():
        cuts = _cuts(program, listing, parts, part_bytes) if phase == "backward" else []
        phases[phase] = _phase(program, phase, listing, kernels, kinds, cuts, prefix, single or apart)
        for step in phases[phase].steps:
            if isinstance(step, Segment) and not single:
                text.append(_segment_source(step, pointers, program.symbols))
            elif isinstance(step, ControlStep):
                text += [body.source for body in step.bodies]
    declared = {k.function for p in phases.values() for s in p.steps if isinstance(s, Segment) for k in s.kernels}
    head = "" if single else "#include <stdint.h>\n"
    head += "".join(f'extern "C" void {name}(void* const*, const int64_t*);\n' for name in sorted(declared) if not single)
    late = runtime_sizes(program)
    dynamic = frozenset(n for n in used if not late.isdisjoint(container_sizes(program.containers[n]))) if late else frozenset[str]()
    plan = program.attributes.get("memory_plan", "soon")
    return HostProgram({n: program.containers[n] for n in used}, kinds, pointers, program.symbols, phases, head + "\n".join(text),
                       program.signature, dict(program.constants), late, dynamic, plan)  # fmt: skip


def _kinds(program: Program, nodes: Mapping[str, Sequence[Node]]) -> dict[str, str]:
    written = {p: {c for n in listing for c in program.writes_of(n)} for p, listing in nodes.items()}
    read = {p: {c for n in listing for c in program.reads_of(n)} for p, listing in nodes.items()}
    external = set(program.signature.inputs) | {c for _, c in program.signature.cotangents}
    kinds: dict[str, str] = {}
    for name, c in program.containers.items():
        touched = any(name in s for s in (*written.values(), *read.values()))
        if name in external:
            kinds[name] = "external"
        elif c.role == "constant":
            if touched or name in program.results:
                kinds[name] = "constant"
        elif c.alias is not None:
            kinds[name] = "alias"
        elif name in program.results:
            kinds[name] = "result"
        elif touched:
            kinds[name] = "saved" if name in written["forward"] and name in read["backward"] else "transient"
    # memory lives as long as any alias of it
    for name, kind in list(kinds.items()):
        if kind == "alias":
            base = _base(program, name)
            if base not in kinds:
                kinds[base] = "transient"
            if kinds[base] == "transient" and name in read["backward"] and base in written["forward"]:
                kinds[base] = "saved"
            if kinds[base] == "transient" and name in program.results:
                kinds[base] = "result"
    return kinds


def _base(program: Program, name: str) -> str:
    while program.containers[name].alias is not None:
        name = program.containers[name].alias.base  # type: ignore[union-attr]
    return name


def _cuts(program: Program, nodes: Sequence[Node], parts: int, part_bytes: int) -> list[int]:
    """Positions in the backward phase after which a part ends, so that parts complete about equal bytes of gradients."""
    done: dict[int, int] = {}
    hints = program.attributes.get("size_hints", {})
    for name, at in _complete(program, nodes).items():
        size = program.containers[name].bytes
        done[at] = done.get(at, 0) + (
            size if isinstance(size, int) else evaluate(size, {s: hints.get(s.name, 64) for s in free_symbols(size)})
        )
    total = sum(done.values())
    count = min(parts, total // max(part_bytes, 1))
    cuts: list[int] = []
    reached = 0
    for at in sorted(done):
        reached += done[at]
        if reached < total and reached * count >= total * (len(cuts) + 1):
            cuts.append(at)
    return cuts


def _complete(program: Program, nodes: Sequence[Node]) -> dict[str, int]:
    """For each gradient the position of the last node that touches it."""
    gradients = {g for _, g in program.signature.gradients}
    last: dict[str, int] = {}
    for at, n in enumerate(nodes):
        for c in program.reads_of(n) | program.writes_of(n):
            base = _base(program, c)
            if base in gradients:
                last[base] = at
    return last


def _phase(program: Program, phase: str, nodes: Sequence[Node], kernels: Mapping[int, Any], kinds: Mapping[str, str],
           cuts: Sequence[int] = (), prefix: str = "", single: bool = False) -> Phase:  # fmt: skip
    result = Phase(phase)
    pending: list[KernelCall] = []

    def flush() -> None:
        if pending:
            result.steps.append(Segment(f"segment_{prefix}{phase}_{len(result.steps)}", tuple(pending)))
            pending.clear()

    touched: list[tuple[str, int, int]] = []
    of_step: dict[int, list[Node]] = {}
    ends, ends_at, cut = set(cuts), [0], False
    for position, n in enumerate(nodes):
        joined = position + 1 < len(nodes) and launched_together(n, nodes[position + 1])
        if isinstance(n, Map):
            k = kernels[n.id]
            pending.append(KernelCall(k.name, k.arguments, k.sizes, n.id, getattr(k, "checks", ())))
            at = len(result.steps)
            if single and not joined:
                flush()
        elif isinstance(n, LibraryCall):
            flush()
            at = len(result.steps)
            reads, writes = (tuple((k, m.container) for k, m in side.items()) for side in (n.reads, n.writes))
            result.steps.append(LibraryStep(n.function, n.attributes, reads, writes, n.id, str(n.origin), n.defines))
        elif isinstance(n, (Branch, Loop)):
            flush()
            at = len(result.steps)
            bodies = tuple(build_host(b, kernels, prefix=f"{prefix}{phase}_{at}_{i}_") for i, b in enumerate(n.bodies))
            result.steps.append(ControlStep(n, bodies))
        else:
            raise HostError(f"{n} ({n.origin}) is not a kernel or a library call; expand and schedule the program first")
        touched += [(c, position, at) for c in program.reads_of(n) | program.writes_of(n)]
        of_step.setdefault(at, []).append(n)
        cut = cut or position in ends
        if cut and not (single and joined):
            flush()
            ends_at.append(len(result.steps))
            cut = False
    flush()
    result.labels = [_label(phase, of_step[at]) for at in range(len(result.steps))]
    for c, position, at in touched:
        base = _base(program, c)
        for spans, here in ((result.lifetimes, at), (result.spans, at if single else position)):
            first, last = spans.get(base, (here, here))
            spans[base] = (min(first, here), max(last, here))
    gradients = [g for _, g in program.signature.gradients] if phase == "backward" else []
    for first, last in zip(ends_at, [*ends_at[1:], len(result.steps)], strict=True):
        final = last == len(result.steps)
        done = [
            g
            for g in gradients
            if (result.lifetimes[g][1] < last and result.lifetimes[g][1] >= first if g in result.lifetimes else final)
        ]
        result.parts.append(Part(first, last, tuple(done)))
    return result


def _label(phase: str, nodes: Sequence[Node]) -> str:
    modules = dict.fromkeys(o.module or o.operator for n in nodes for o in n.origins)
    text = ", ".join(m for m in modules if m) or nodes[0].label
    return f"shorthaul {phase}: {text if len(text) <= LABEL else text[: LABEL - 2] + ' …'}"


def _segment_source(segment: Segment, pointers: Mapping[str, int], symbols: Sequence[Symbol]) -> str:
    place = {s: i for i, s in enumerate(symbols)}
    lines = [f'extern "C" __attribute__((visibility("default"))) void {segment.function}(void* const* t, const int64_t* z) {{']
    for k in segment.kernels:
        fault = f"t[{len(pointers)}]"  # behind the containers' pointers
        arguments = ", ".join([*(f"t[{pointers[a]}]" for a in k.arguments), *([fault] if k.checks else [])])
        if k.checks:
            lines.append(f"  ((int64_t*){fault})[3] = {k.node};")
        sizes = ", ".join(f"z[{place[s]}]" for s in k.sizes) or "0"
        lines.append(f"  {{ void* p[] = {{{arguments}}}; const int64_t s[] = {{{sizes}}}; {k.function}(p, s); }}")
    return "\n".join([*lines, "}", ""])
