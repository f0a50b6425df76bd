"""StackWeights: products of one value with several weights become one product."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

from shorthaul.analysis.movement import distinct
from shorthaul.analysis.products import copied
from shorthaul.ir.builder import at, fresh_params, make_map
from shorthaul.ir.containers import Alias, Container
from shorthaul.ir.edit import Edit
from shorthaul.ir.memlet import full
from shorthaul.ir.nodes import AUTO, LibraryCall, Map, Origin
from shorthaul.ir.program import Form, Program
from shorthaul.ir.sizes import container_sizes, runtime_sizes
from shorthaul.symbolic import Expr, floordiv, mod, prove_divisible, prove_le, summation

from ..base import Match, Transformation, describe, hint_value, require
from .folding import is_product

IntLike = Union[int, Expr]


class StackWeights(Transformation):
    """Make one matrix product of several with the same operand: queries, keys and values, gates, parallel branches.

    before:  q = contract(x, wq);  k = contract(x, wk);  v = contract(x, wv)
    after:   w = (wq, wk, wv) one after the other;  y = contract(x, w)   with q, k and v lying in y

    x is read once, not once for each weight; the weights are copied side by side in every run, so parameters and `state_dict` stay as
    they are. Applies by default where that saves more than the copies cost: with n weights, where n - 1 times x is larger than all weights
    twice. always: also where it costs more (one large product may be faster than several small ones). Gradients of the weights stay
    products of their own, because each is a tensor of its own.
    """

    level = 3

    def __init__(self, always: bool = False) -> None:
        self.always = always

    def matches(self, program: Program) -> Iterator[Match]:
        """Groups of products of one phase that share an operand and differ in the other, in program order."""
        groups: dict[tuple[str, str, str, object], list[LibraryCall]] = {}
        for node in list(program.nodes):
            if is_product(node):
                assert isinstance(node, LibraryCall)
                for k in ("a", "b"):
                    numbers = (node.attributes["equation"], node.attributes.get("alpha", 1), node.attributes.get("beta", 1))
                    key = (node.phase, k, node.reads[k].container, (numbers, "bias" in node.reads))
                    groups.setdefault(key, []).append(node)
        for (_, k, x, _), calls in groups.items():
            if len(calls) > 1:
                yield Match(program, {"first": calls[0], "second": calls[1], "shared": x}, {"calls": calls, "of": k})

    def check(self, m: Match) -> None:
        p, calls = m.program, m.calls
        require(p.form is Form.SCHEDULED, "the program is not scheduled yet: only then may results lie in one another")
        operands, _, y = calls[0].attributes["equation"].partition("->")
        a, _, b = operands.partition(",")
        letters = {"a": a, "b": b}
        m.derived["weight"] = other = "b" if m.of == "a" else "a"
        own = [c for c in y if c in letters[other] and c not in letters[m.of]]
        require(len(own) == 1 and "1" not in letters[other], "the weights have not one dimension of their own")
        require(all(c in own or c not in y for c in letters[other]), "the weights have a dimension of the batch")
        m.derived["dim"], m.derived["result_dim"] = letters[other].index(own[0]), y.index(own[0])
        weights = [c.reads[other].container for c in calls]
        require(len(set(weights)) == len(weights), "two products have the same weight; see CommonSubexpressions")
        for c in calls:
            self._check_result(p, c)
            if "bias" in c.reads:
                bias = p.containers[c.reads["bias"].container]
                require(len(bias.shape) == 1 and m.result_dim == len(y) - 1, f"{bias.name} is not one number for each column")
                require(bias.shape[0] == p.containers[c.reads[other].container].shape[m.dim], f"{bias.name} is repeated")
        late = runtime_sizes(p)
        used = [p.containers[c] for c in (*weights, *(c.writes["y"].container for c in calls))]
        require(all(late.isdisjoint(container_sizes(c)) for c in used), "a size is known at run time only")
        m.derived["views"] = self._views(m)
        self._check_readers(m)
        gain = hint_value(p, self.saves(m))
        require(self.always or gain > 0, f"copying the weights side by side moves {-gain} bytes more than reading {m.shared} once saves")

    def _check_result(self, p: Program, call: LibraryCall) -> None:
        y = p.containers[call.writes["y"].container]
        require(y.name not in p.results and y.role in ("transient", "saved"), f"the caller gets {y.name} as a tensor of its own")
        require(len(p.writers(y.name)) == 1, f"several nodes write {y.name}")
        require(y.alias is None, f"{y.name} shares memory with others")
        require(p.aliases(y.name).isdisjoint(p.results), f"the caller gets a view of {y.name}")
        require(y.is_contiguous, f"{y.name} has a layout of its own")

    def _views(self, m: Match) -> dict[str, Container]:
        """Every result, and every view of one, as it lies in the stacked result (called `whole`), which comes first."""
        p = m.program
        names = [c.writes["y"].container for c in m.calls]
        whole = self._stacked(m, "y", names, m.result_dim, p.fresh(f"{names[0]}_stacked"))
        found = {whole.name: whole}
        offset: IntLike = 0
        for name in names:
            y = p.containers[name]
            found[name] = y.with_(strides=whole.actual_strides, alias=Alias(whole.name, offset * whole.actual_strides[m.result_dim]))
            for view in sorted(p.aliases(name)):
                require(m.result_dim == len(y.shape) - 1, f"{view} is a view of {name}, whose columns are not innermost")
                found[view] = _moved(p, p.containers[view], y, whole, offset)
            offset = offset + y.shape[m.result_dim]
        return found

    def _check_readers(self, m: Match) -> None:
        """What reads a part of the stacked result must take it as it lies there."""
        p = m.program
        for name in [n for n in m.views if n in p.containers]:
            for r in p.readers(name):
                if isinstance(r, Map) or (isinstance(r, LibraryCall) and "attention" in r.function):
                    continue
                require(is_product(r), f"{describe(r)} may need {name} without gaps")
                assert isinstance(r, LibraryCall)
                operands = [x.container for x in (r.reads["a"], r.reads["b"], r.writes["y"])]
                before, after = (set(copied(r.attributes["equation"], *(get(c) for c in operands)))
                                 for get in (p.containers.__getitem__, lambda c: m.views.get(c, p.containers[c])))  # fmt: skip
                require(after <= before, f"{describe(r)} would copy {name}, which has gaps then")

    def _stacked(self, m: Match, connector: str, parts: list[str], dim: int, name: str) -> Container:
        first = m.program.containers[parts[0]]
        size = summation(m.program.containers[c].shape[dim] for c in parts)
        return Container(name, first.dtype, (*first.shape[:dim], size, *first.shape[dim + 1 :]))

    def saves(self, m: Match) -> IntLike:
        """The reads of the shared operand but one, less what copying weights and biases side by side moves."""
        p = m.program
        shared = p.containers[m.shared]
        total: IntLike = (len(m.calls) - 1) * distinct(shared, shared.size) * shared.dtype.itemsize
        for call in m.calls:
            for k in (m.weight, "bias"):
                if k in call.reads:
                    c = p.containers[call.reads[k].container]
                    total = total - (distinct(c, c.size) + c.size) * c.dtype.itemsize
        return total

    def apply(self, m: Match, edit: Edit) -> None:
        p, calls = m.program, m.calls
        origins = tuple(dict.fromkeys(o for c in calls for o in c.origins))
        nodes: list[Map] = []
        reads = dict(calls[0].reads)
        for k, dim in ((m.weight, m.dim), ("bias", 0)):
            if k in reads:
                parts = [c.reads[k].container for c in calls]
                stacked = edit.add_container(self._stacked(m, k, parts, dim, p.fresh(f"{parts[0]}_stacked")))
                nodes += _copies(p, stacked, parts, dim, origins, calls[0].phase)
                reads[k] = full(stacked)
        whole, *views = m.views.values()
        edit.add_container(whole)
        for view in views:
            edit.set_container(view)
        edit.fuse(calls, *nodes, calls[0].copy(reads=reads, writes={"y": full(whole)}, origins=origins))


def _moved(p: Program, view: Container, y: Container, whole: Container, first: IntLike) -> Container:
    """A view of a row-major result where the result's rows are parts, from column `first` on, of longer ones. Raises Refusal."""
    row, longer = y.shape[-1], whole.shape[-1]
    offset: IntLike = 0
    c = view
    while c.name != y.name:
        assert c.alias is not None
        offset, c = offset + c.alias.offset, p.containers[c.alias.base]
    reach = mod(offset, row)  # the last column that it touches
    strides: list[IntLike] = []
    for n, s in zip(view.shape, view.actual_strides, strict=True):
        if prove_divisible(s, row):
            strides.append(floordiv(s, row) * longer)
            continue
        strides.append(s)
        reach = reach + (n - 1) * s
        require(prove_le(0, s), f"{view.name} goes through {y.name} backwards")
    require(prove_le(reach + 1, row), f"{view.name} goes through {y.name} across its rows")
    return view.with_(strides=tuple(strides), alias=Alias(whole.name, floordiv(offset, row) * longer + mod(offset, row) + first))


def _copies(p: Program, stacked: Container, parts: list[str], dim: int, origins: tuple[Origin, ...], phase: str) -> list[Map]:
    """A map for each part that copies it to its place."""
    maps: list[Map] = []
    offset: IntLike = 0
    for name in parts:
        c = p.containers[name]
        q = fresh_params(c.shape)
        place = [s + offset if d == dim else s for d, s in enumerate(q)]
        maps.append(make_map(q, {"x": at(c, *q)}, {"y": at(stacked, *place)}, lambda x: {"y": x}, {name: c.dtype}, name="stack",
                             origins=origins, phase=phase, schedule=AUTO.with_options(pack=True)))  # fmt: skip
        offset = offset + c.shape[dim]
    return maps
