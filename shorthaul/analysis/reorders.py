"""Layout reorders inside convolutions by library.

oneDNN's kernels (and cuDNN's for tensor cores) work on images whose channels are innermost, whole or in blocks. An image with the channels
outermost is copied into that layout before the convolution, a result out of it afterwards: each is read and written once more, in every
call that uses it. Images of at most four channels are read as they are. Weights are packed in either layout, which is not counted; nor
is the reorder of a result that the caller gets in a layout of his (the gradient of an input): no layout of ours avoids it, and the
baseline, which has the same reorder, leaves it out too.
"""

from __future__ import annotations

from typing import Union

from shorthaul.ir.containers import Container, strides_in_order
from shorthaul.ir.nodes import LibraryCall
from shorthaul.ir.program import Program
from shorthaul.symbolic import Expr, prove_le

IntLike = Union[int, Expr]

CONVOLUTIONS = frozenset({"aten::convolution", "aten::conv_grad_input", "aten::conv_grad_weight"})
FEW_CHANNELS = 4
_IMAGES = {"x", "g"}  # connectors of reads; "y" is an image but for the gradient of the weight
_DTYPES = {"float32", "bfloat16", "float16"}  # other types take kernels that work in any layout


def channels_last_strides(shape: tuple[IntLike, ...]) -> tuple[IntLike, ...]:
    """Strides of (N, C, spatial...) with the channels innermost."""
    return strides_in_order(shape, (0, *range(2, len(shape)), 1))


def reordered(call: LibraryCall, program: Program) -> list[str]:
    """The images that a convolution reads or writes in another layout than its kernel works in, once for each use."""
    if call.function not in CONVOLUTIONS:
        return []
    names = [m.container for k, m in call.reads.items() if k in _IMAGES]
    found = [c for c in names if _foreign(program.containers[c]) and prove_le(program.containers[c].shape[1], FEW_CHANNELS) is not True]
    if call.function != "aten::conv_grad_weight":
        results = [program.containers[m.container] for k, m in call.writes.items() if k == "y"]
        found += [c.name for c in results if _foreign(c) and not c.is_external and c.name not in program.results]
    return found


def reorder_bytes(call: LibraryCall, program: Program) -> IntLike:
    """Bytes that are written and read once more for reorders inside the call."""
    total: IntLike = 0
    for name in reordered(call, program):
        total = total + program.containers[name].bytes
    return total


def _foreign(c: Container) -> bool:
    """Whether an image has another layout than channels-last; where all positions but one dimension are single, both are the same."""
    if c.dtype.name not in _DTYPES or len(c.shape) < 3:
        return False
    wanted = channels_last_strides(c.shape)
    return any(not (isinstance(n, int) and n == 1) and a is not b and a != b
               for n, a, b in zip(c.shape, c.actual_strides, wanted, strict=True))  # fmt: skip
