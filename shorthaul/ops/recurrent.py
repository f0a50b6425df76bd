"""The elementwise part of recurrent cells, a step of LSTM and of GRU; their products are contractions beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shorthaul.ir.builder import at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32
from shorthaul.ir.memlet import Memlet
from shorthaul.ir.scalar import Scalar, apply, cast, const
from shorthaul.symbolic import prove_eq

from .builder import Expansion, Gradient
from .registry import AtenCall, OperatorDefinition, Sample, TensorType, register


class Cell(OperatorDefinition):
    """Base: gates `x` from the input and `h` from the hidden state, each (batch, gates * hidden), and a state (batch, hidden)."""

    operands: tuple[str, ...] = ("x", "h", "state")
    gates = 0

    def from_aten(self, call: AtenCall) -> tuple[dict[str, Any], dict[str, Any]]:
        return {k: call[k] for k in self.operands}, {}

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        state = types["state"]
        self.require(
            len(state.shape) == 2 and state.dtype.is_float, f"state {state!r} is not a floating (batch, hidden)"
        )
        wanted = (state.shape[0], self.gates * state.shape[1])
        for k in ("x", "h"):
            t = types[k]
            fits = len(t.shape) == 2 and all(prove_eq(a, b) is not False for a, b in zip(t.shape, wanted, strict=True))
            self.require(
                fits,
                f"gates {k} of shape {list(t.shape)} do not fit state {list(state.shape)}, which asks for {list(wanted)}",
            )
            self.require(t.dtype is state.dtype, f"gates {k} are {t.dtype}, the state {state.dtype}")
        return dict.fromkeys(self.results, state)

    def gate_reads(self, c: Expansion, p: Any, state: Container) -> dict[str, Memlet]:
        """Reads x0, x1, ... and h0, h1, ... of the gates of one unit."""
        n = state.shape[1]
        return {f"{k}{i}": at(c.input(k), p[0], p[1] + i * n) for k in ("x", "h") for i in range(self.gates)}

    def samples(self) -> Iterable[Sample]:
        state, gates = TensorType(float32, (2, 3)), TensorType(float32, (2, 3 * self.gates))
        yield Sample({"x": gates, "h": gates, "state": state}, {})
        yield Sample({"x": gates, "h": state, "state": state}, {}, error="do not fit")


def _sum(v: Mapping[str, Scalar], i: int, compute: Any) -> Scalar:
    return cast(v[f"x{i}"], compute) + cast(v[f"h{i}"], compute)


def _lstm_gates(v: Mapping[str, Scalar], compute: Any) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    """Input, forget, cell and output gate of the gate sums, in PyTorch's order."""
    i, f, g, o = (_sum(v, k, compute) for k in range(4))
    return apply("sigmoid", i), apply("sigmoid", f), apply("tanh", g), apply("sigmoid", o)


@register
class LstmCell(Cell):
    """One step of LSTM: c = f * state + i * g and y = o * tanh(c), with the gates i, f, g, o of x + h."""

    name = "lstm_cell"
    results = ("y", "c")
    aten: tuple[str, ...] = ("shorthaul.lstm_cell.default",)
    gates = 4

    def maps(self, c: Expansion) -> None:
        state, y = c.input("state"), c.output()
        compute = y.dtype.compute
        p = c.params(y.shape)

        def value(state: Scalar, **v: Scalar) -> dict[str, Scalar]:
            i, f, g, o = _lstm_gates(v, compute)
            new = f * cast(state, compute) + i * g
            return {"c": cast(new, y.dtype), "y": cast(o * apply("tanh", new), y.dtype)}

        c.map(
            p,
            {**self.gate_reads(c, p, state), "state": at(state, *p)},
            {"c": at(c.output("c"), *p), "y": at(y, *p)},
            value,
        )

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        if g.grad("y") is None and g.grad("c") is None:
            return {}
        gates, state = g.op("lstm_cell_backward", {}, gy=g.grad("y"), gc=g.grad("c"), **g.inputs())
        return {"x": gates, "h": gates, "state": state}


@register
class LstmCellBackward(LstmCell):
    """The gradients of an LSTM step by its gate sums and its state, from those of y and c."""

    name = "lstm_cell_backward"
    operands = ("gy?", "gc?", "x", "h", "state")
    results = ("gates", "gstate")
    aten = ()
    gradient = None  # type: ignore[assignment]

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        super().infer(types, attributes)
        return {"gates": types["x"], "gstate": types["state"]}

    def maps(self, c: Expansion) -> None:
        state, gates, out = c.input("state"), c.output("gates"), c.output("gstate")
        compute, n = state.dtype.compute, state.shape[1]
        p = c.params(state.shape)
        reads = {
            **self.gate_reads(c, p, state),
            "state": at(state, *p),
            **{k: at(c.input(k), *p) for k in ("gy", "gc") if c.has(k)},
        }

        def value(state: Scalar, gy: Scalar | None = None, gc: Scalar | None = None, **v: Scalar) -> dict[str, Scalar]:
            i, f, g, o = _lstm_gates(v, compute)
            old = cast(state, compute)
            t = apply("tanh", f * old + i * g)
            dy = const(0, compute) if gy is None else cast(gy, compute)
            dc = dy * o * (1 - t * t)
            dc = dc if gc is None else dc + cast(gc, compute)
            found = [dc * g * i * (1 - i), dc * old * f * (1 - f), dc * i * (1 - g * g), dy * t * o * (1 - o)]
            return {"s": cast(dc * f, out.dtype), **{f"g{k}": cast(d, gates.dtype) for k, d in enumerate(found)}}

        c.map(p, reads, {"s": at(out, *p), **{f"g{k}": at(gates, p[0], p[1] + k * n) for k in range(4)}}, value)

    def samples(self) -> Iterable[Sample]:
        state, gates = TensorType(float32, (2, 3)), TensorType(float32, (2, 12))
        yield Sample({"gy": state, "gc": state, "x": gates, "h": gates, "state": state}, {})


def _gru_gates(v: Mapping[str, Scalar], compute: Any) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    """Reset, update and new gate, and the hidden part of the new one."""
    r, z = apply("sigmoid", _sum(v, 0, compute)), apply("sigmoid", _sum(v, 1, compute))
    hidden = cast(v["h2"], compute)
    return r, z, apply("tanh", cast(v["x2"], compute) + r * hidden), hidden


@register
class GruCell(Cell):
    """One step of GRU: y = n + z * (state - n), with the gates r, z of x + h and n = tanh(x_n + r * h_n)."""

    name = "gru_cell"
    aten: tuple[str, ...] = ("shorthaul.gru_cell.default",)
    gates = 3

    def maps(self, c: Expansion) -> None:
        state, y = c.input("state"), c.output()
        compute = y.dtype.compute
        p = c.params(y.shape)

        def value(state: Scalar, **v: Scalar) -> dict[str, Scalar]:
            _, z, n, _ = _gru_gates(v, compute)
            return {"y": cast((cast(state, compute) - n) * z + n, y.dtype)}

        c.map(p, {**self.gate_reads(c, p, state), "state": at(state, *p)}, {"y": at(y, *p)}, value)

    def gradient(self, g: Gradient) -> dict[str, Container | None]:  # type: ignore[override]
        if g.grad() is None:
            return {}
        x, h, state = g.op("gru_cell_backward", {}, gy=g.grad(), **g.inputs())
        return {"x": x, "h": h, "state": state}


@register
class GruCellBackward(GruCell):
    """The gradients of a GRU step by both gates and its state."""

    name = "gru_cell_backward"
    operands = ("gy", "x", "h", "state")
    results = ("gx", "gh", "gstate")
    aten = ()
    gradient = None  # type: ignore[assignment]

    def infer(self, types: Mapping[str, TensorType], attributes: Mapping[str, Any]) -> dict[str, TensorType]:
        super().infer(types, attributes)
        return {"gx": types["x"], "gh": types["h"], "gstate": types["state"]}

    def maps(self, c: Expansion) -> None:
        state, gx, gh, out = c.input("state"), c.output("gx"), c.output("gh"), c.output("gstate")
        compute, size = state.dtype.compute, state.shape[1]
        p = c.params(state.shape)

        def value(state: Scalar, gy: Scalar, **v: Scalar) -> dict[str, Scalar]:
            r, z, n, hidden = _gru_gates(v, compute)
            dy = cast(gy, compute)
            dn = dy * (1 - z) * (1 - n * n)
            dr = dn * hidden * r * (1 - r)
            dz = dy * (cast(state, compute) - n) * z * (1 - z)
            found = {f"x{k}": d for k, d in enumerate((dr, dz, dn))} | {
                f"h{k}": d for k, d in enumerate((dr, dz, dn * r))
            }
            return {"s": cast(dy * z, out.dtype), **{k: cast(d, gx.dtype) for k, d in found.items()}}

        reads = {**self.gate_reads(c, p, state), "state": at(state, *p), "gy": at(c.input("gy"), *p)}
        writes = {f"{k}{i}": at(t, p[0], p[1] + i * size) for k, t in (("x", gx), ("h", gh)) for i in range(3)}
        c.map(p, reads, {"s": at(out, *p), **writes}, value)

    def samples(self) -> Iterable[Sample]:
        state, gates = TensorType(float32, (2, 3)), TensorType(float32, (2, 9))
        yield Sample({"gy": state, "x": gates, "h": gates, "state": state}, {})
