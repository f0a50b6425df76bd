"""A transformation: dividing by a power of two becomes multiplying by its reciprocal, which is exact and faster."""

import math

from shorthaul.ir.scalar import apply, const, rewrite
from shorthaul.transforms.base import MapNode, Path, Transformation, require


class ExactReciprocal(Transformation):
    """Multiply by the reciprocal of a power of two instead of dividing.

    before:  map i: y[i] = x[i] / 8.0        after:  map i: y[i] = x[i] * 0.125
    """

    level = 1
    pattern = Path(MapNode("node"))

    def check(self, m):
        require(m.node.tasklet is not None, "it is a nest of kernels")
        m.derived["code"] = {k: rewrite(v, _reciprocal) for k, v in m.node.tasklet.code.items()}
        require(m.code != dict(m.node.tasklet.code), "it divides by no power of two")

    def apply(self, m, edit):
        edit.replace(m.node, m.node.with_(body=(m.node.tasklet.with_(code=m.code),)))


def _reciprocal(s):
    if s.op == "div" and s.dtype.is_float and s.args[1].op == "const" and math.frexp(s.args[1].attr)[0] in (0.5, -0.5):
        return apply("mul", s.args[0], const(1 / s.args[1].attr, s.dtype))
    return None
