"""Random programs of maps for property tests: chains of elementwise, reducing, gathering and scattering maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from ir_nets import Net

from shorthaul.ir.builder import at, inside
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float32, int64
from shorthaul.ir.memlet import Indirect
from shorthaul.ir.nodes import Map, Origin
from shorthaul.ir.program import Program
from shorthaul.ir.scalar import Scalar, apply, const, where
from shorthaul.symbolic import Symbol, index

UNARY = ("exp", "neg", "tanh", "sigmoid", "abs", "sign", "floor")
BINARY = ("add", "sub", "mul", "max", "min")


def random_code(rng: np.random.Generator, leaves: list[Scalar]) -> Scalar:
    """A few operations over the leaves."""
    pool = [*leaves, const(round(float(rng.normal()), 2), float32)]
    for _ in range(rng.integers(1, 5)):
        a, b = (pool[i] for i in rng.integers(0, len(pool), 2))
        kind = rng.integers(0, 3)
        if kind == 0:
            pool.append(apply(str(rng.choice(UNARY)), apply("tanh", a)))
        elif kind == 1:
            pool.append(apply(str(rng.choice(BINARY)), a, b))
        else:
            pool.append(where(a > b, a, b * 0.5))
    return pool[-1]


def random_program(seed: int) -> tuple[Program, dict[str, Any]]:
    """(program, inputs). Every container that nothing reads is an output."""
    rng = np.random.default_rng(seed)
    net = Net(f"random{seed}", symbols=[size := Symbol("N", 1)])
    actual = int(rng.integers(1, 5))
    dims = {size: actual, **{int(n): int(n) for n in rng.integers(1, 6, 3)}}
    inputs: dict[str, Any] = {}
    live: list[Container] = []

    def value(c: Container) -> np.ndarray:
        return rng.standard_normal([dims.get(n, n) for n in c.shape]).astype(np.float32)

    for k in range(int(rng.integers(1, 4))):
        choice = list(dims)
        shape = [choice[i] for i in rng.integers(0, len(choice), rng.integers(1, 4))]
        c = net.input(f"x{k}", *(shape if k else [size, *shape[1:]]))  # the first input gives N its value
        inputs[c.name] = value(c)
        live.append(c)
    for k in range(int(rng.integers(1, 6))):
        ranked = [c for c in live if c.shape]
        x = ranked[int(rng.integers(0, len(ranked)))]
        params = tuple(index(f"p{k}_{d}", n) for d, n in enumerate(x.shape))
        origin = (Origin(f"layer{k}", "", "random"),)
        name, shape = f"t{k}", tuple(x.shape)
        kind = rng.integers(0, 6)
        if kind == 0:  # elementwise, with a shifted guarded read
            y = net.container(name, *shape)
            shifted = (params[0] + int(rng.integers(-2, 3)), *params[1:])
            b = at(x, *shifted, guard=inside(shifted[0], shape[0]), fill=float(rng.integers(-1, 2)))
            net.map(params, {"a": at(x, *params), "b": b},
                    {"y": at(y, *params)}, lambda a, b: {"y": random_code(rng, [a, b])}, origins=origin)  # fmt: skip
        elif kind == 1:  # reduction, with an elementwise output beside it
            kept = [d for d in range(len(shape)) if rng.integers(0, 2)]
            y, z = net.container(name, *(shape[d] for d in kept)), net.container(f"u{k}", *shape)
            combine = str(rng.choice(["sum", "max", "min", "prod"]))
            net.map(params, {"x": at(x, *params)}, {"y": at(y, *(params[d] for d in kept), combine=combine), "z": at(z, *params)},
                    lambda x: {"y": random_code(rng, [x]), "z": random_code(rng, [x])}, origins=origin)  # fmt: skip
            live.append(z)
        elif kind == 2:  # gather along the first dimension
            n = int(rng.integers(1, 6))
            ids = net.input(f"ids{k}", n, dtype=int64)
            inputs[ids.name] = rng.integers(0, dims.get(shape[0], shape[0]), n)
            y, i = net.container(name, n, *shape[1:]), index(f"g{k}", n)
            net.map((i, *params[1:]), {"id": at(ids, i), "x": at(x, Indirect("id"), *params[1:])}, {"y": at(y, i, *params[1:])},
                    lambda id, x: {"y": random_code(rng, [x])}, origins=origin)  # fmt: skip
        elif kind == 3:  # scatter-add along the first dimension
            ids = net.input(f"ids{k}", shape[0], dtype=int64)
            rows = int(rng.integers(1, 6))
            inputs[ids.name] = rng.integers(0, rows, dims.get(shape[0], shape[0]))
            y = net.container(name, rows, *shape[1:])
            net.map(params, {"id": at(ids, params[0]), "x": at(x, *params)}, {"y": at(y, Indirect("id"), *params[1:], combine="sum")},
                    lambda id, x: {"y": x}, origins=origin)  # fmt: skip
        elif kind == 4:  # a nest that subtracts the maximum over the last dimension
            y = net.container(name, *shape)
            m = Container(f"m{k}", float32, (), storage="register")
            second = index(f"q{k}", shape[-1])
            net.add(Map(params[:-1], (
                net.flat(params[-1:], {"x": at(x, *params)}, {"m": at(m, combine="max")}, lambda x: {"m": x}),
                net.flat((second,), {"x": at(x, *params[:-1], second), "m": at(m)}, {"y": at(y, *params[:-1], second)},
                         lambda x, m: {"y": random_code(rng, [x, m])}, locals=(m,)),
            ), locals={m.name: m}, origins=origin))  # fmt: skip
        else:  # scan
            y = net.container(name, *shape)
            along = params[int(rng.integers(0, len(params)))]
            net.map(
                params,
                {"x": at(x, *params)},
                {"y": at(y, *params, combine="sum", scan=along)},
                lambda x: {"y": x},
                origins=origin,
            )
        live.append(y)
    program = net.program
    outputs = []
    for name, c in list(program.containers.items()):
        if c.role == "transient" and not program.readers(name):
            program.containers[name] = c.with_(role="output")
            outputs.append(name)
    program.signature = program.signature.with_(outputs=tuple(outputs))
    return program, inputs
