"""An inverted-residual block (MBConv) in training mode as fused map trees, forward and backward.

What fusion makes of the operators, written by hand: 1x1 expansion, batch norm, SiLU, depthwise convolution, batch norm, SiLU,
squeeze-excite, 1x1 projection, batch norm, residual. Each map is one pass over memory; normalization and activation are
recomputed where their input is read, statistics are taken where their input is written. Tensors are channels-last.

The layout of names: y1, y2, y3 are the convolutions' outputs; mean1, rstd1, ... their batch statistics; gamma, beta the norms' parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shorthaul.ir.builder import at, fresh_params, inside, make_map
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import DType, bool_, float32
from shorthaul.ir.memlet import Condition, Memlet
from shorthaul.ir.nodes import Map, Origin, Tasklet
from shorthaul.ir.scalar import Scalar, apply, cast, const, index_value, read, where
from shorthaul.symbolic import Expr, Symbol

SIZES = N, H, W, HO, WO, CI, CE, CO, CR = tuple(
    Symbol(s, 1) for s in ("N", "H", "W", "HO", "WO", "CI", "CE", "CO", "CR")
)


def sigmoid(x: Scalar) -> Scalar:
    return apply("sigmoid", x)


def silu(x: Scalar) -> Scalar:
    return x * sigmoid(x)


def silu_slope(x: Scalar) -> Scalar:
    """The derivative of SiLU."""
    s = sigmoid(x)
    return s * (1 + x * (1 - s))


def f(name: str, dtype: DType = float32) -> Scalar:
    """The value of a read, in float32."""
    return cast(read(name, dtype), float32)


def number(size: object) -> Scalar:
    """A size as a float32 value."""
    return cast(index_value(size), float32)  # type: ignore[arg-type]


@dataclass
class Block:
    """The block's containers and its maps in order. dtype: of activations; taps, stride: of the depthwise convolution.

    keep_activation: store the first activation instead of recomputing it for each tap of the depthwise convolution.
    """

    dtype: DType = float32
    taps: int = 3
    stride: int = 1
    residual: bool = True
    keep_activation: bool = False
    eps: float = 1e-5
    momentum: float = 0.1
    containers: dict[str, Container] = field(default_factory=dict)
    forward: list[Map] = field(default_factory=list)
    backward: list[Map] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._declare()
        self._forward()
        self._backward()

    # containers -------------------------------------------------------------------------------------------------------
    def vector(self, name: str, *shape: Symbol | int, role: str = "transient") -> None:
        self.containers[name] = Container(name, float32, shape, role=role)

    def image(self, name: str, c: Symbol, inner: bool, role: str = "transient") -> None:
        h, w = (H, W) if inner else (HO, WO)
        self.containers[name] = Container(name, self.dtype, (N, c, h, w), (h * w * c, 1, w * c, c), role=role)

    def _declare(self) -> None:
        self.image("x", CI, True, "input")
        self.image("y1", CE, True)
        if self.keep_activation:
            self.image("a1", CE, True)
        self.image("y2", CE, False)
        self.image("y3", CO, False)
        self.image("out", CO, False, "output")
        self.image("dout", CO, False, "cotangent")
        self.image("t", CE, False)
        self.image("dy2", CE, False)
        self.image("dz1", CE, True)
        self.image("dx", CI, True, "gradient")
        for i, c in ((1, CE), (2, CE), (3, CO)):
            for s in ("count", "mean", "m2", "rstd", "scale", "shift", "slope"):
                self.vector(f"{s}{i}", c)
            for s in ("gamma", "beta"):
                self.vector(f"{s}{i}", c, role="parameter")
                self.vector(f"d{s}{i}", c, role="gradient")
            for s in ("running_mean", "running_var"):
                self.vector(f"{s}{i}", c, role="buffer")
                self.vector(f"new_{s}{i}", c, role="output")
        weights = {
            "w1": (CE, CI),
            "w2": (CE, self.taps, self.taps),
            "w3": (CO, CE),
            "v1": (CR, CE),
            "u1": (CR,),
            "v2": (CE, CR),
            "u2": (CE,),
        }
        for name, shape in weights.items():
            self.vector(name, *shape, role="parameter")
            self.vector(f"d{name}", *shape, role="gradient")
        for name in ("w2", "dw2"):  # channels are neighbours, as in the images
            self.containers[name] = self.containers[name].with_(strides=(1, self.taps * CE, CE))
        for name in ("pool", "gate", "dgate", "dpool"):
            self.vector(name, N, CE)
        for name in ("squeezed", "dsqueezed"):
            self.vector(name, N, CR)

    # scalar code --------------------------------------------------------------------------------------------------------
    def norm_reads(self, i: int, c: Symbol) -> dict[str, Memlet]:
        return {f"{s}{i}": at(f"{s}{i}", c) for s in ("mean", "rstd", "scale", "beta")}

    def xhat(self, i: int) -> Scalar:
        return (f(f"y{i}", self.dtype) - f(f"mean{i}")) * f(f"rstd{i}")

    def z(self, i: int) -> Scalar:
        """The i-th norm's output. What depends on the channel alone is computed in a pass of its own (scale = rstd * gamma)."""
        return (f(f"y{i}", self.dtype) - f(f"mean{i}")) * f(f"scale{i}") + f(f"beta{i}")

    def norm_gradient(self, i: int, dz: Scalar) -> Scalar:
        """The gradient of the norm's input from that of its output: scale * (dz - mean(dz) - xhat * mean(dz * xhat))."""
        return f(f"scale{i}") * (dz - f(f"shift{i}")) - (f(f"y{i}", self.dtype) - f(f"mean{i}")) * f(f"slope{i}")

    def narrow(self, value: Scalar) -> Scalar:
        """Rounded to the activations' dtype, as an operand of a product."""
        return cast(cast(value, self.dtype), float32)

    def statistics(self, i: int, c: Symbol, sample: Scalar) -> tuple[dict[str, Scalar], dict[str, Memlet]]:
        code = {"count": const(1, float32), "mean": cast(sample, float32), "m2": const(0, float32)}
        return code, {s: at(f"{s}{i}", c, combine="welford") for s in code}

    def da2(self) -> Scalar:
        """The gradient of the second activation: through the gate, and through the pool."""
        return f("t", self.dtype) * f("gate") + f("dpool") / number(HO * WO)

    def _map(
        self,
        params: tuple[Symbol, ...],
        reads: Mapping[str, Memlet],
        writes: Mapping[str, Memlet],
        code: Mapping[str, Scalar],
        name: str,
    ) -> Map:
        used = {s.attr for v in code.values() for s in _reads(v)}
        dtypes = {m.container: self.containers[m.container].dtype for k, m in reads.items() if k in used}
        phase = "backward" if self._is_backward else "forward"
        return make_map(params, {k: m for k, m in reads.items() if k in used}, writes, code, dtypes, name=name,
                        origins=(Origin("mbconv", "", name),), phase=phase)  # fmt: skip

    def _nest(self, outer: tuple[Symbol, ...], inner: tuple[Symbol, ...], reads: Mapping[str, Memlet], element: Scalar,
              after: Mapping[str, Memlet], writes: Mapping[str, Memlet], code: Mapping[str, Scalar], name: str) -> Map:  # fmt: skip
        """Sum `element` over `inner` into a local, then run `code` on it."""
        acc = Container("acc", float32, (), storage="register")
        used = {s.attr for s in _reads(element)}
        later = {s.attr for v in code.values() for s in _reads(v)}
        first = Tasklet(
            {"acc": element},
            reads={k: m for k, m in reads.items() if k in used},
            writes={"acc": at(acc, combine="sum")},
        )
        second = Tasklet(
            dict(code), reads={k: m for k, m in {**after, "acc": at(acc)}.items() if k in later}, writes=dict(writes)
        )
        return Map(outer, (Map(inner, (first,)), second), locals={"acc": acc}, name=name, origins=(Origin("mbconv", "", name),),
                   phase="backward" if self._is_backward else "forward")  # fmt: skip

    # passes -------------------------------------------------------------------------------------------------------------
    def _forward(self) -> None:
        self._is_backward = False
        add, dt = self.forward.append, self.dtype
        acc = read("acc", float32)
        n, h, w, c = fresh_params((N, H, W, CE))
        (k,) = fresh_params((CI,))
        y = cast(acc, dt)
        code, writes = self.statistics(1, c, y)
        add(self._nest((n, h, w, c), (k,), {"x": at("x", n, k, h, w), "w1": at("w1", c, k)}, f("x", dt) * self.narrow(f("w1")), {},
                       {"y1": at("y1", n, c, h, w), **writes}, {"y1": y, **code}, "expand"))  # fmt: skip
        self._norm_parameters(1, CE)

        n, h, w, c = fresh_params((N, HO, WO, CE))
        p, q = fresh_params((self.taps, self.taps))
        pad = self.taps // 2
        hi, wi = h * self.stride + p - pad, w * self.stride + q - pad
        guard = inside(hi, H) + inside(wi, W)
        taps = {"a1": at("a1", n, c, hi, wi, guard=guard, fill=0), "y1": at("y1", n, c, hi, wi, guard=guard, fill=0),
                "w2": at("w2", c, p, q), **self.norm_reads(1, c)}  # fmt: skip
        element = f("a1", dt) if self.keep_activation else where(in_bounds(hi, wi), silu(self.z(1)), 0)
        if self.keep_activation:
            i, j, k, o = fresh_params((N, H, W, CE))
            add(self._map((i, j, k, o), {"y1": at("y1", i, o, j, k), **self.norm_reads(1, o)}, {"a1": at("a1", i, o, j, k)},
                          {"a1": cast(silu(self.z(1)), dt)}, "activate"))  # fmt: skip
        code, writes = self.statistics(2, c, y)
        add(self._nest((n, h, w, c), (p, q), taps, element * self.narrow(f("w2")), {}, {"y2": at("y2", n, c, h, w), **writes},
                       {"y2": y, **code}, "depthwise"))  # fmt: skip
        self._norm_parameters(2, CE)

        n, h, w, c = fresh_params((N, HO, WO, CE))
        add(self._map((n, h, w, c), {"y2": at("y2", n, c, h, w), **self.norm_reads(2, c)}, {"pool": at("pool", n, c, combine="sum")},
                      {"pool": silu(self.z(2)) / number(HO * WO)}, "squeeze"))  # fmt: skip
        (n, r), (c,) = fresh_params((N, CR)), fresh_params((CE,))
        add(self._nest((n, r), (c,), {"pool": at("pool", n, c), "v1": at("v1", r, c)}, self.narrow(f("pool")) * self.narrow(f("v1")),
                       {"u1": at("u1", r)}, {"squeezed": at("squeezed", n, r)}, {"squeezed": acc + f("u1")}, "squeeze_fc"))  # fmt: skip
        (n, c), (r,) = fresh_params((N, CE)), fresh_params((CR,))
        add(
            self._nest(
                (n, c),
                (r,),
                {"squeezed": at("squeezed", n, r), "v2": at("v2", c, r)},
                self.narrow(silu(f("squeezed"))) * self.narrow(f("v2")),
                {"u2": at("u2", c)},
                {"gate": at("gate", n, c)},
                {"gate": sigmoid(acc + f("u2"))},
                "excite_fc",
            )
        )

        n, h, w, o = fresh_params((N, HO, WO, CO))
        (c,) = fresh_params((CE,))
        code, writes = self.statistics(3, o, y)
        add(
            self._nest(
                (n, h, w, o),
                (c,),
                {"y2": at("y2", n, c, h, w), "gate": at("gate", n, c), "w3": at("w3", o, c), **self.norm_reads(2, c)},
                self.narrow(silu(self.z(2)) * f("gate")) * self.narrow(f("w3")),
                {},
                {"y3": at("y3", n, o, h, w), **writes},
                {"y3": y, **code},
                "project",
            )
        )
        self._norm_parameters(3, CO)
        n, h, w, o = fresh_params((N, HO, WO, CO))
        value = self.z(3) + f("x", dt) if self.residual else self.z(3)
        shortcut = {"x": at("x", n, o, h, w)} if self.residual else {}
        add(self._map((n, h, w, o), {"y3": at("y3", n, o, h, w), **shortcut, **self.norm_reads(3, o)}, {"out": at("out", n, o, h, w)},
                      {"out": cast(value, dt)}, "normalize"))  # fmt: skip

    def _norm_parameters(self, i: int, size: Symbol) -> None:
        """The reciprocal deviation and the running statistics (PyTorch's: the unbiased variance runs)."""
        (c,) = fresh_params((size,))
        m = self.momentum
        count, mean, m2 = f("count"), f("mean"), f("m2")
        rstd = apply("rsqrt", m2 / count + self.eps)
        code = {"rstd": rstd, "scale": rstd * f("gamma"), "running_mean": (1 - m) * f("rm") + m * mean,
                "running_var": (1 - m) * f("rv") + m * (m2 / (count - 1))}  # fmt: skip
        self.forward.append(
            self._map(
                (c,),
                {
                    "count": at(f"count{i}", c),
                    "mean": at(f"mean{i}", c),
                    "m2": at(f"m2{i}", c),
                    "rm": at(f"running_mean{i}", c),
                    "rv": at(f"running_var{i}", c),
                    "gamma": at(f"gamma{i}", c),
                },
                {
                    "rstd": at(f"rstd{i}", c),
                    "scale": at(f"scale{i}", c),
                    "running_mean": at(f"new_running_mean{i}", c),
                    "running_var": at(f"new_running_var{i}", c),
                },
                code,
                f"norm_parameters{i}",
            )
        )

    def _backward(self) -> None:
        self._is_backward = True
        add, dt = self.backward.append, self.dtype
        acc = read("acc", float32)
        n, h, w, o = fresh_params((N, HO, WO, CO))
        dout = f("dout", dt)
        add(self._map((n, h, w, o), {"dout": at("dout", n, o, h, w), "y3": at("y3", n, o, h, w), **self.norm_reads(3, o)},
                      {"dbeta": at("dbeta3", o, combine="sum"), "dgamma": at("dgamma3", o, combine="sum")},
                      {"dbeta": dout, "dgamma": dout * self.xhat(3)}, "norm3_sums"))  # fmt: skip
        self._norm_coefficients(3, CO, N * HO * WO)

        # the gradient of the projection's input (without the gate), and of the gate
        n, h, w, c = fresh_params((N, HO, WO, CE))
        (o,) = fresh_params((CO,))
        dy3 = self.narrow(self.norm_gradient(3, dout))
        dy3_reads = {
            "dout": at("dout", n, o, h, w),
            "y3": at("y3", n, o, h, w),
            **self.norm_reads(3, o),
            **self.sum_reads(3, o),
        }
        t = cast(acc, dt)
        add(self._nest((n, h, w, c), (o,), {**dy3_reads, "w3": at("w3", o, c)}, dy3 * self.narrow(f("w3")),
                       {"y2": at("y2", n, c, h, w), **self.norm_reads(2, c)},
                       {"t": at("t", n, c, h, w), "dgate": at("dgate", n, c, combine="sum")},
                       {"t": t, "dgate": cast(t, float32) * silu(self.z(2))}, "project_data_gradient"))  # fmt: skip
        n, h, w, o, c = fresh_params((N, HO, WO, CO, CE))
        dy3_reads = {
            "dout": at("dout", n, o, h, w),
            "y3": at("y3", n, o, h, w),
            **self.norm_reads(3, o),
            **self.sum_reads(3, o),
        }
        add(self._map((o, c, n, h, w), {**dy3_reads, "y2": at("y2", n, c, h, w), "gate": at("gate", n, c), **self.norm_reads(2, c)},
                      {"dw3": at("dw3", o, c, combine="sum")}, {"dw3": dy3 * self.narrow(silu(self.z(2)) * f("gate"))},
                      "project_weight_gradient"))  # fmt: skip
        self._squeeze_excite_backward()

        n, h, w, c = fresh_params((N, HO, WO, CE))
        dz2 = self.da2() * silu_slope(self.z(2))
        reads = {
            "t": at("t", n, c, h, w),
            "y2": at("y2", n, c, h, w),
            "gate": at("gate", n, c),
            "dpool": at("dpool", n, c),
            **self.norm_reads(2, c),
        }
        add(self._map((n, h, w, c), reads, {"dbeta": at("dbeta2", c, combine="sum"), "dgamma": at("dgamma2", c, combine="sum")},
                      {"dbeta": dz2, "dgamma": dz2 * self.xhat(2)}, "norm2_sums"))  # fmt: skip
        self._norm_coefficients(2, CE, N * HO * WO)
        dy2 = cast(self.norm_gradient(2, dz2), dt)
        add(
            self._map(
                (n, h, w, c),
                {**reads, **self.sum_reads(2, c)},
                {"dy2": at("dy2", n, c, h, w)},
                {"dy2": dy2},
                "norm2_gradient",
            )
        )

        n, h, w, c = fresh_params((N, H, W, CE))
        p, q = fresh_params((self.taps, self.taps))
        dz1 = cast(acc * silu_slope(self.z(1)), dt)
        sample = cast(dz1, float32)
        add(self._nest((n, h, w, c), (p, q), {"dy2": self._gathered(n, c, h, w, p, q), "w2": at("w2", c, p, q)},
                       f("dy2", dt) * self.narrow(f("w2")), {"y1": at("y1", n, c, h, w), **self.norm_reads(1, c)},
                       {"dz1": at("dz1", n, c, h, w), "dbeta": at("dbeta1", c, combine="sum"), "dgamma": at("dgamma1", c, combine="sum")},
                       {"dz1": dz1, "dbeta": sample, "dgamma": sample * self.xhat(1)}, "depthwise_data_gradient"))  # fmt: skip
        self._norm_coefficients(1, CE, N * H * W)
        n, h, w, c, p, q = fresh_params((N, H, W, CE, self.taps, self.taps))
        activation = f("a1", dt) if self.keep_activation else silu(self.z(1))
        add(
            self._map(
                (c, p, q, n, h, w),
                {
                    "a1": at("a1", n, c, h, w),
                    "y1": at("y1", n, c, h, w),
                    "dy2": self._gathered(n, c, h, w, p, q),
                    **self.norm_reads(1, c),
                },
                {"dw2": at("dw2", c, p, q, combine="sum")},
                {"dw2": activation * f("dy2", dt)},
                "depthwise_weight_gradient",
            )
        )

        n, h, w, k = fresh_params((N, H, W, CI))
        (c,) = fresh_params((CE,))
        dy1 = self.narrow(self.norm_gradient(1, f("dz1", dt)))
        value = acc + dout if self.residual else acc
        shortcut = {"dout": at("dout", n, k, h, w)} if self.residual else {}
        add(self._nest((n, h, w, k), (c,), {**self._dy1_reads(n, c, h, w), "w1": at("w1", c, k)}, dy1 * self.narrow(f("w1")), shortcut,
                       {"dx": at("dx", n, k, h, w)}, {"dx": cast(value, dt)}, "expand_data_gradient"))  # fmt: skip
        n, h, w, k, c = fresh_params((N, H, W, CI, CE))
        add(self._map((c, k, n, h, w), {**self._dy1_reads(n, c, h, w), "x": at("x", n, k, h, w)}, {"dw1": at("dw1", c, k, combine="sum")},
                      {"dw1": dy1 * f("x", dt)}, "expand_weight_gradient"))  # fmt: skip

    def sum_reads(self, i: int, c: Symbol) -> dict[str, Memlet]:
        return {f"{s}{i}": at(f"{s}{i}", c) for s in ("shift", "slope")}

    def _norm_coefficients(self, i: int, size: Symbol, count: object) -> None:
        """The two numbers a channel that the gradient of a norm's input needs beside its scale."""
        (c,) = fresh_params((size,))
        code = {"shift": f("dbeta") / number(count), "slope": f("scale") * f("rstd") * (f("dgamma") / number(count))}
        reads = {s: at(f"{s}{i}", c) for s in ("dbeta", "dgamma", "scale", "rstd")}
        self.backward.append(self._map((c,), reads, {s: at(f"{s}{i}", c) for s in code}, code, f"norm_coefficients{i}"))

    def _dy1_reads(self, n: Symbol, c: Symbol, h: Symbol, w: Symbol) -> dict[str, Memlet]:
        return {
            "dz1": at("dz1", n, c, h, w),
            "y1": at("y1", n, c, h, w),
            **self.norm_reads(1, c),
            **self.sum_reads(1, c),
        }

    def _gathered(self, n: Symbol, c: Symbol, h: Symbol, w: Symbol, p: Symbol, q: Symbol) -> Memlet:
        """The element of dy2 that input (h, w) reached through tap (p, q), if any."""
        pad, s = self.taps // 2, self.stride
        oh, ow = (h + pad - p) // s, (w + pad - q) // s
        guard = inside(h + pad - p, HO * s) + inside(w + pad - q, WO * s)
        if s > 1:
            guard += (Condition((h + pad - p) % s, "eq"), Condition((w + pad - q) % s, "eq"))
        return at("dy2", n, c, oh, ow, guard=guard, fill=0)

    def _squeeze_excite_backward(self) -> None:
        add = self.backward.append
        acc = read("acc", float32)
        gate, dgate = f("gate"), f("dgate")
        du2 = dgate * gate * (1 - gate)
        n, c, r = fresh_params((N, CE, CR))
        gates = {"gate": at("gate", n, c), "dgate": at("dgate", n, c)}
        add(self._map((c, r, n), {**gates, "squeezed": at("squeezed", n, r)}, {"dv2": at("dv2", c, r, combine="sum")},
                      {"dv2": self.narrow(du2) * self.narrow(silu(f("squeezed")))}, "excite_fc_weight_gradient"))  # fmt: skip
        add(self._map((c, n), gates, {"du2": at("du2", c, combine="sum")}, {"du2": du2}, "excite_fc_bias_gradient"))
        (n, r), (c,) = fresh_params((N, CR)), fresh_params((CE,))
        add(self._nest((n, r), (c,), {"gate": at("gate", n, c), "dgate": at("dgate", n, c), "v2": at("v2", c, r)},
                       self.narrow(du2) * self.narrow(f("v2")), {"squeezed": at("squeezed", n, r)}, {"dsqueezed": at("dsqueezed", n, r)},
                       {"dsqueezed": acc * silu_slope(f("squeezed"))}, "excite_fc_data_gradient"))  # fmt: skip
        n, c, r = fresh_params((N, CE, CR))
        add(self._map((r, c, n), {"dsqueezed": at("dsqueezed", n, r), "pool": at("pool", n, c)}, {"dv1": at("dv1", r, c, combine="sum")},
                      {"dv1": self.narrow(f("dsqueezed")) * self.narrow(f("pool"))}, "squeeze_fc_weight_gradient"))  # fmt: skip
        add(self._map((r, n), {"dsqueezed": at("dsqueezed", n, r)}, {"du1": at("du1", r, combine="sum")}, {"du1": f("dsqueezed")},
                      "squeeze_fc_bias_gradient"))  # fmt: skip
        (n, c), (r,) = fresh_params((N, CE)), fresh_params((CR,))
        add(
            self._nest(
                (n, c),
                (r,),
                {"dsqueezed": at("dsqueezed", n, r), "v1": at("v1", r, c)},
                self.narrow(f("dsqueezed")) * self.narrow(f("v1")),
                {},
                {"dpool": at("dpool", n, c)},
                {"dpool": acc},
                "squeeze_fc_data_gradient",
            )
        )

    @property
    def maps(self) -> list[Map]:
        return [*self.forward, *self.backward]


def in_bounds(h: Expr, w: Expr) -> Scalar:
    """0 <= h < H and 0 <= w < W as a value."""
    value = const(True, bool_)
    tests = [apply("ge", index_value(e), 0) for e in (h, H - 1 - h, w, W - 1 - w)]
    value = tests[0]
    for t in tests[1:]:
        value = value & t
    return value


def _reads(value: Scalar) -> list[Scalar]:
    from shorthaul.ir.scalar import walk

    return [n for n in walk(value) if n.op == "read"]
