"""Functions that generated kernels call."""

import triton
import triton.language as tl


@triton.jit
def floor_div(a, b):
    """a // b rounded down for b > 0 (Triton's own rounds towards zero)."""
    return (a - ((a % b) + b) % b) // b


@triton.jit
def floor_mod(a, b):
    """a % b in 0 .. b - 1 for b > 0."""
    return ((a % b) + b) % b


@triton.jit
def round_to_tf32(x):
    """float32 rounded to the 10 fraction bits of tf32, to nearest, ties away from zero (as cuDNN and cuBLAS prepare operands).

    Tensor cores drop the other bits, and Triton hands operands on as they are: every factor would be too small by 3.5e-4 on average, and
    a variance of products by 1.4e-3. Infinities and NaNs stay.
    """
    bits = x.to(tl.uint32, bitcast=True)
    rounded = ((bits + 0x1000) & 0xFFFFE000).to(tl.float32, bitcast=True)
    return tl.where((bits & 0x7F800000) == 0x7F800000, x, rounded)


@triton.jit
def philox_uniform(seed, offset, index):
    """float32 in [0, 1) by Philox4x32-10 (Salmon et al., SC 2011): key = seed, counter = (index, offset), all int64.

    The upper 24 bits of the first word; the same bits as `shorthaul.ir.philox.uniform`.
    """
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c0 = (index & 0xFFFFFFFF).to(tl.uint32)
    c1 = ((index >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c2 = (offset & 0xFFFFFFFF).to(tl.uint32) + tl.zeros_like(c0)
    c3 = ((offset >> 32) & 0xFFFFFFFF).to(tl.uint32) + tl.zeros_like(c0)
    for _ in tl.static_range(10):
        low0 = c0 * tl.full([], 0xD2511F53, tl.uint32)
        low1 = c2 * tl.full([], 0xCD9E8D57, tl.uint32)
        high0 = tl.umulhi(c0, tl.full([], 0xD2511F53, tl.uint32))
        high1 = tl.umulhi(c2, tl.full([], 0xCD9E8D57, tl.uint32))
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = k0 + tl.full([], 0x9E3779B9, tl.uint32)
        k1 = k1 + tl.full([], 0xBB67AE85, tl.uint32)
    return (c0 >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def digamma(x):
    """Recurrence up to 10, then the asymptotic series; reflection for negative arguments; as `scalar_ops` has it, in float64."""
    z = x.to(tl.float64)
    negative = z <= 0
    w = tl.where(negative, 1.0 - z, z)
    shift = z * 0.0
    for _ in tl.static_range(10):
        low = w < 10
        shift = tl.where(low, shift - 1.0 / w, shift)
        w = tl.where(low, w + 1.0, w)
    i = 1.0 / (w * w)
    # numerators and denominators are exact in float32, which is what a bare number becomes
    series = i * (1.0 - i * (1.0 / (z * 0.0 + 10.0) - i * (1.0 / (z * 0.0 + 21.0) - i * (
        1.0 / (z * 0.0 + 20.0) - i * (1.0 / (z * 0.0 + 11.0) - i * 691.0 / 2730.0))))) / 12.0
    value = shift + tl.log(w) - 0.5 / w - series
    pi = tl.full([1, 1], 3.141592653589793, tl.float64)
    reflected = value - pi * tl.cos(pi * z) / tl.sin(pi * z)
    value = tl.where(negative, reflected, value)
    value = tl.where(negative & (z == tl.floor(z)), float("nan"), value)
    return tl.where(z == 0, -float("inf"), value).to(x.dtype)


@triton.jit
def merge_sum(a, b):
    return a + b


@triton.jit
def merge_prod(a, b):
    return a * b


@triton.jit
def merge_max(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def merge_min(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def merge_any(a, b):
    return a | b


@triton.jit
def merge_all(a, b):
    return a & b


@triton.jit
def as_int64(x):
    """An index as a block of int64."""
    return tl.zeros([1, 1], tl.int64) + x
