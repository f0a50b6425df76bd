"""Programs to JSON and back.

The round trip is exact: fingerprint, printed text, meaning and node ids are the same. Expressions and scalar code are stored once each
in tables, so that what was shared stays shared. Constants are base64 of NumPy's npy format. Of the log, names, parameters
and notes are kept, not the closures that undo it: undoing a rewrite of a program that was read raises `EditError`.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Mapping
from typing import Any, Union

import numpy as np

from shorthaul import symbolic
from shorthaul.symbolic import Expr, Symbol

from .containers import Alias, Container
from .dtypes import DType, dtype
from .edit import Rewrite
from .memlet import Condition, Indirect, Memlet, Span
from .nodes import Branch, Defines, LibraryCall, Loop, Map, Node, Operator, Origin, Schedule, Tasklet, reserve_ids
from .program import Form, Program, Signature
from .scalar import Scalar, walk
from .scalar_ops import COMBINERS, SCALAR_OPS

Json = Any
IntLike = Union[int, Expr]
FORMAT = "shorthaul program"
VERSION = 1


class SerializeError(ValueError):
    """A value that cannot be written, or input that is no program of this version."""

REFUSALS = "refusals"  # the attribute with what was not applied and why: said to people after a run, no part of the program


def to_json(program: Program) -> dict[str, Json]:
    """The program as nested dicts and lists of JSON types. Raises SerializeError for an attribute of a type that is not supported."""
    writer = _Writer()
    body = writer.program(program)
    return {"format": FORMAT, "version": VERSION, **body, "expressions": writer.expressions, "scalars": writer.scalars}


def dumps(program: Program) -> str:
    """The program as JSON text."""
    return json.dumps(to_json(program), allow_nan=False, separators=(",", ":"))


def from_json(data: Mapping[str, Json] | str) -> Program:
    """The program that `to_json` or `dumps` wrote. Raises SerializeError that says what is wrong, and where."""
    if isinstance(data, str):
        try:
            data = json.loads(data)
        except json.JSONDecodeError as error:
            raise SerializeError(f"not JSON: {error}") from error
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise SerializeError("this is not a program written by shorthaul")
    if data.get("version") != VERSION:
        raise SerializeError(
            f"the program has format version {data.get('version')!r}; this release reads version {VERSION}"
        )
    reader = _Reader()
    try:
        reader.tables(data["expressions"], data["scalars"])
        return reader.program(data)
    except SerializeError as error:
        raise SerializeError(f"{reader.place}: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        what = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise SerializeError(f"malformed program, at {reader.place}: {what}") from error


class _Writer:
    def __init__(self) -> None:
        self.expressions: list[Json] = []
        self.scalars: list[Json] = []
        self._expr_at: dict[Expr, int] = {}
        self._scalar_at: dict[Scalar, int] = {}

    def program(self, p: Program) -> dict[str, Json]:
        return {
            "name": p.name,
            "form": p.form.name,
            "symbols": [self.expr(s) for s in p.symbols],
            "containers": [self.container(c) for c in p.containers.values()],
            "nodes": [self.node(n) for n in p.nodes],
            "signature": {
                "inputs": list(p.signature.inputs),
                "outputs": list(p.signature.outputs),
                **{k: [list(pair) for pair in getattr(p.signature, k)] for k in ("cotangents", "gradients", "updates")},
            },
            "constants": {name: _array(np.asarray(v)) for name, v in p.constants.items()},
            "log": [self.rewrite(r) for r in p.log],
            "revision": p.version,
            "attributes": self.value({k: v for k, v in p.attributes.items() if k != REFUSALS}),
        }

    def expr(self, e: IntLike | None) -> Json:
        """An int as itself, an expression as [position in the table]."""
        if e is None or isinstance(e, int):
            return e
        if e not in self._expr_at:
            encoded = symbolic.to_json(e)
            self._expr_at[e] = len(self.expressions)
            self.expressions.append(encoded)
        return [self._expr_at[e]]

    def scalar(self, s: Scalar) -> int:
        for n in walk(s):
            if n not in self._scalar_at:
                attr = self.expr(n.attr) if n.op == "index" else self.value(n.attr)  # type: ignore[arg-type]
                row = [n.op, [self._scalar_at[a] for a in n.args], n.dtype.name, attr]
                self._scalar_at[n] = len(self.scalars)
                self.scalars.append(row)
        return self._scalar_at[s]

    def container(self, c: Container) -> Json:
        return {
            "name": c.name, "dtype": c.dtype.name, "shape": [self.expr(n) for n in c.shape],
            "strides": None if c.strides is None else [self.expr(n) for n in c.strides],
            "storage": c.storage, "role": c.role,
            "alias": None if c.alias is None else [c.alias.base, self.expr(c.alias.offset)],
        }  # fmt: skip

    def memlet(self, m: Memlet) -> Json:
        def subscript(s: Any) -> Json:
            if isinstance(s, Span):
                return {"span": [self.expr(s.start), self.expr(s.size), self.expr(s.step)]}
            return {"indirect": s.name} if isinstance(s, Indirect) else self.expr(s)

        return {
            "container": m.container, "subset": [subscript(s) for s in m.subset],
            "guard": [[self.expr(c.expr), c.relation] for c in m.guard], "fill": self.value(m.fill),
            "combine": m.combine, "scan": self.expr(m.scan),
        }  # fmt: skip

    def node(self, n: Node) -> Json:
        common = {
            "id": n.id,
            "kind": n.kind,
            "phase": n.phase,
            "origins": [[o.module, o.source, o.operator] for o in n.origins],
        }
        if isinstance(n, Map):
            return {
                **common, "params": [self.expr(p) for p in n.params], "body": [self.node(b) for b in n.body],
                "locals": [self.container(c) for c in n.locals.values()], "name": n.name,
                "schedule": [n.schedule.kind, self.value(n.schedule.options)],
            }  # fmt: skip
        common["reads"] = {k: self.memlet(m) for k, m in n.reads.items()}
        common["writes"] = {k: self.memlet(m) for k, m in n.writes.items()}
        if n.defines:
            common["defines"] = [self.definition(d) for d in n.defines]
        if isinstance(n, Tasklet):
            return {**common, "code": {k: self.scalar(s) for k, s in n.code.items()}}
        if isinstance(n, Operator):
            return {**common, "op": n.op, "attributes": self.value(n.attributes), "expansion": n.expansion}
        if isinstance(n, LibraryCall):
            return {**common, "function": n.function, "attributes": self.value(n.attributes)}
        if isinstance(n, Loop):
            return {
                **common,
                "body": self.program(n.body),
                "count": self.expr(n.count),
                "carried": [list(c) for c in n.carried],
                "scanned": list(n.scanned),
                "stacked": list(n.stacked),
                "condition": n.condition,
                "index": n.index,
                "reverse": n.reverse,
                "tile": None if n.tile is None else list(n.tile),
                "summed": list(n.summed),
            }
        if isinstance(n, Branch):
            return {**common, "then": self.program(n.then), "otherwise": self.program(n.otherwise)}
        raise SerializeError(f"node {n} of kind {n.kind} cannot be written")

    def definition(self, d: Defines) -> Json:
        checks = [[self.expr(c.expr), c.relation, text] for c, text in d.checks]
        return [self.expr(d.symbol), d.connector, d.dim, checks]

    def rewrite(self, r: Rewrite) -> Json:
        return {"name": r.name, "parameters": self.value(r.parameters, lenient=True), "notes": self.value(r.notes, lenient=True),
                "removed": sorted(r.removed), "created": sorted(r.created)}  # fmt: skip

    def value(self, v: Any, lenient: bool = False) -> Json:
        """An attribute. JSON has no tuples, infinities or types: those are tagged. Lenient (for notes): text instead of an error."""
        if v is None or isinstance(v, (bool, int, str)):
            return v
        if isinstance(v, np.generic):
            return self.value(v.item(), lenient)
        if isinstance(v, float):
            return v if math.isfinite(v) else {"float": str(v)}
        if isinstance(v, list):
            return [self.value(x, lenient) for x in v]
        if isinstance(v, (tuple, set, frozenset)):
            items = [self.value(x, lenient) for x in (v if isinstance(v, tuple) else sorted(v, key=repr))]
            return {type(v).__name__: items}
        if isinstance(v, Mapping):
            return {"dict": [[self.value(k, lenient), self.value(x, lenient)] for k, x in v.items()]}
        if isinstance(v, DType):
            return {"dtype": v.name}
        if isinstance(v, Expr):
            return {"expr": self.expr(v)[0]}
        if isinstance(v, Scalar):
            return {"scalar": self.scalar(v)}
        if isinstance(v, Memlet):
            return {"memlet": self.memlet(v)}
        if isinstance(v, Origin):
            return {"origin": [v.module, v.source, v.operator]}
        if isinstance(v, slice):
            return {"slice": [self.value(x) for x in (v.start, v.stop, v.step)]}
        if isinstance(v, np.ndarray):
            return {"array": _array(v)}
        if isinstance(v, Program):
            return {"program": self.program(v)}
        if lenient:
            return str(v)
        raise SerializeError(f"a value of type {type(v).__name__} cannot be written: {v!r}")


def _array(a: np.ndarray) -> str:
    if a.dtype.hasobject:
        raise SerializeError("an array of Python objects cannot be written")
    buffer = io.BytesIO()
    np.save(buffer, a, allow_pickle=False)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _load_array(text: str) -> np.ndarray:
    return np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False)


class _Reader:
    def __init__(self) -> None:
        self.place = "the header"
        self._expressions: list[IntLike] = []
        self._scalars: list[Scalar] = []

    def tables(self, expressions: list[Json], scalars: list[Json]) -> None:
        for i, e in enumerate(expressions):
            self.place = f"expression {i}"
            self._expressions.append(symbolic.from_json(e))
        for i, (op, args, kind, attr) in enumerate(scalars):
            self.place = f"scalar {i}"
            if op not in SCALAR_OPS and op not in ("read", "const", "index", "cast"):
                raise SerializeError(f"unknown scalar operation {op!r}")
            if any(not 0 <= a < i for a in args):
                raise SerializeError(f"operands {args} are not before their user")
            if len(args) != (SCALAR_OPS[op].arity if op in SCALAR_OPS else op == "cast"):
                raise SerializeError(f"{op} with {len(args)} operands")
            value = self.expr(attr) if op == "index" else self.value(attr)
            self._scalars.append(Scalar(op, tuple(self._scalars[a] for a in args), dtype(kind), value))

    def program(self, data: Mapping[str, Json]) -> Program:
        self.place = "the header"
        if data["form"] not in Form.__members__:
            raise SerializeError(f"unknown form {data['form']!r}")
        containers: dict[str, Container] = {}
        for c in data["containers"]:
            self.place = f"container {c.get('name')}"
            containers[c["name"]] = self.container(c)
        nodes = [self.node(n) for n in data["nodes"]]
        self.place = "the signature"
        s = data["signature"]
        pairs = {k: tuple((a, b) for a, b in s[k]) for k in ("cotangents", "gradients", "updates")}
        signature = Signature(tuple(s["inputs"]), tuple(s["outputs"]), **pairs)
        self.place = "the constants"
        constants = {name: _load_array(v) for name, v in data["constants"].items()}
        self.place = "the log"
        log = [Rewrite(r["name"], self.value(r["parameters"]), self.value(r["notes"]), frozenset(r["removed"]), frozenset(r["created"]))
               for r in data["log"]]  # fmt: skip
        self.place = "the header"
        symbols = tuple(self.symbol(e) for e in data["symbols"])
        return Program(data["name"], Form[data["form"]], containers, nodes, signature, symbols, constants, log,
                       int(data["revision"]), self.value(data["attributes"]))  # fmt: skip

    def expr(self, e: Json) -> Any:
        if e is None or (isinstance(e, int) and not isinstance(e, bool)):
            return e
        (at,) = e
        return self._expressions[at]

    def symbol(self, e: Json) -> Symbol:
        found = self.expr(e)
        if not isinstance(found, Symbol):
            raise SerializeError(f"{found} is not a symbol")
        return found

    def container(self, c: Mapping[str, Json]) -> Container:
        strides = None if c["strides"] is None else tuple(self.expr(n) for n in c["strides"])
        alias = None if c["alias"] is None else Alias(c["alias"][0], self.expr(c["alias"][1]))
        return Container(
            c["name"],
            dtype(c["dtype"]),
            tuple(self.expr(n) for n in c["shape"]),
            strides,
            c["storage"],
            c["role"],
            alias,
        )

    def memlet(self, m: Mapping[str, Json]) -> Memlet:
        def subscript(s: Json) -> Any:
            if isinstance(s, Mapping):
                return Indirect(s["indirect"]) if "indirect" in s else Span(*(self.expr(e) for e in s["span"]))
            return self.expr(s)

        if m["combine"] is not None and m["combine"] not in COMBINERS:
            raise SerializeError(f"unknown combiner {m['combine']!r}")
        guard = tuple(Condition(self.expr(e), relation) for e, relation in m["guard"])
        scan = None if m["scan"] is None else self.symbol(m["scan"])
        return Memlet(
            m["container"], tuple(subscript(s) for s in m["subset"]), guard, self.value(m["fill"]), m["combine"], scan
        )

    def node(self, n: Mapping[str, Json]) -> Node:
        place = self.place = f"node {n.get('id')}"
        reserve_ids(n["id"])
        common: dict[str, Any] = {
            "id": n["id"],
            "phase": n["phase"],
            "origins": tuple(Origin(*o) for o in n["origins"]),
        }
        kind = n["kind"]
        if kind == Map.kind:
            body = tuple(self.node(b) for b in n["body"])
            self.place = place
            locals = {c["name"]: self.container(c) for c in n["locals"]}
            schedule = Schedule(n["schedule"][0], self.value(n["schedule"][1]))
            return Map(tuple(self.symbol(p) for p in n["params"]), body, locals, schedule, n["name"], **common)
        common["reads"] = {k: self.memlet(m) for k, m in n["reads"].items()}
        common["writes"] = {k: self.memlet(m) for k, m in n["writes"].items()}
        common["defines"] = tuple(self.definition(d) for d in n.get("defines", ()))
        if kind == Tasklet.kind:
            return Tasklet({k: self._scalars[s] for k, s in n["code"].items()}, **common)
        if kind == Operator.kind:
            return Operator(n["op"], self.value(n["attributes"]), n["expansion"], **common)
        if kind == LibraryCall.kind:
            return LibraryCall(n["function"], self.value(n["attributes"]), **common)
        if kind == Loop.kind:
            return Loop(self.program(n["body"]), self.expr(n["count"]), tuple((a, b) for a, b in n["carried"]), n["scanned"], n["stacked"],
                        n["condition"], n["index"], n["reverse"], n.get("tile"), n.get("summed", ()), **common)  # fmt: skip
        if kind == Branch.kind:
            return Branch(self.program(n["then"]), self.program(n["otherwise"]), **common)
        raise SerializeError(f"unknown kind of node {kind!r}")

    def definition(self, d: Json) -> Defines:
        symbol, connector, dim, checks = d
        return Defines(self.symbol(symbol), connector, dim, tuple((Condition(self.expr(e), r), text) for e, r, text in checks))

    def value(self, v: Json) -> Any:
        if isinstance(v, list):
            return [self.value(x) for x in v]
        if not isinstance(v, Mapping):
            return v
        ((tag, x),) = v.items()
        if tag == "float":
            return float(x)
        if tag in ("tuple", "set", "frozenset"):
            return {"tuple": tuple, "set": set, "frozenset": frozenset}[tag](self.value(i) for i in x)
        if tag == "dict":
            return {self.value(k): self.value(i) for k, i in x}
        if tag == "dtype":
            return dtype(x)
        if tag == "expr":
            return self._expressions[x]
        if tag == "scalar":
            return self._scalars[x]
        if tag == "memlet":
            return self.memlet(x)
        if tag == "origin":
            return Origin(*x)
        if tag == "slice":
            return slice(*(self.value(i) for i in x))
        if tag == "array":
            return _load_array(x)
        if tag == "program":
            return self.program(x)
        raise SerializeError(f"unknown value {tag!r}")
