"""Calls of every ATen overload that the registry imports, for comparison with PyTorch. A case is (arguments,
keywords); tensors are float64 where they float.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch

Case = tuple[tuple[Any, ...], dict[str, Any]]
CASES: dict[str, Callable[[], list[Case]]] = {}
_generator = torch.Generator()


def t(*shape: int, low: float = -2.0, high: float = 2.0) -> torch.Tensor:
    return torch.rand(shape, generator=_generator, dtype=torch.float64) * (high - low) + low


def ints(low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=_generator)


def bools(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=_generator) < 0.6


def case(*targets: str) -> Callable[[Callable[[], list[Case]]], Callable[[], list[Case]]]:
    def add(f: Callable[[], list[Case]]) -> Callable[[], list[Case]]:
        for target in targets:
            assert target not in CASES, target
            CASES[target] = f
        return f

    return add


def cases(target: str) -> list[Case]:
    """The cases of an overload; built anew (with the same values) at each call."""
    _generator.manual_seed(zlib.crc32(target.encode()))
    return CASES[target]()


def simple(*calls: Any) -> Callable[[], list[Case]]:
    """Cases from functions without arguments that give (arguments, keywords) or arguments alone."""
    return lambda: [
        c if isinstance(c, tuple) and len(c) == 2 and isinstance(c[1], dict) else (c, {}) for c in (f() for f in calls)
    ]


F64 = {"dtype": torch.float64}


def add(targets: str, *calls: Any) -> None:
    for target in targets.split():
        assert "aten." + target not in CASES, target
        CASES["aten." + target] = simple(*calls)


# elementwise, in the order of elementwise.py --------------------------------------------------------------------------
add(
    "add.Tensor sub.Tensor rsub.Tensor",
    lambda: (t(3, 4), t(4)),
    lambda: ((t(3, 1), t(3, 4)), {"alpha": 2}),
    lambda: (ints(-5, 5, 3), ints(-5, 5, 3)),
)
add("add.Scalar sub.Scalar rsub.Scalar", lambda: (t(3, 4), 2.5), lambda: ((ints(-5, 5, 3), 3), {"alpha": 2}))
add("mul.Tensor maximum.default minimum.default atan2.default", lambda: (t(3, 4), t(4)))
add("mul.Scalar", lambda: (t(3, 4), 2.5), lambda: (ints(0, 5, 3), 1.5))
add("div.Tensor", lambda: (t(3, 4), t(4, low=0.5)), lambda: (ints(-5, 5, 3), ints(1, 5, 3)))
add("div.Scalar", lambda: (t(3, 4), 2.5))
add(
    "div.Tensor_mode",
    lambda: ((t(3, 4), t(4, low=0.5)), {"rounding_mode": "floor"}),
    lambda: ((t(3, 4), t(4, low=0.5)), {"rounding_mode": "trunc"}),
    lambda: ((ints(-9, 9, 5), ints(1, 5, 5)), {"rounding_mode": "floor"}),
)
add(
    "div.Scalar_mode",
    lambda: ((t(3, 4), 0.7), {"rounding_mode": "floor"}),
    lambda: ((t(3, 4), 0.7), {"rounding_mode": None}),
)
add(
    "floor_divide.default remainder.Tensor fmod.Tensor",
    lambda: (t(3, 4), t(4, low=0.5)),
    lambda: (ints(-9, 9, 5), ints(1, 5, 5)),
)
add("floor_divide.Scalar remainder.Scalar fmod.Scalar", lambda: (t(3, 4), 0.7), lambda: (ints(-9, 9, 5), 3))
add("pow.Tensor_Tensor", lambda: (t(3, 4, low=0.3), t(4)))
add(
    "pow.Tensor_Scalar",
    *(lambda e=e: (t(3, 4, low=0.3), e) for e in (2, 3, 0.5, -1, -0.5, -2, 1.7)),
    lambda: (t(3, 4), 2),
    lambda: (t(3), 3.0),
)
add("pow.Scalar", lambda: (1.7, t(3, 4)))
add(
    "neg.default abs.default sign.default square.default exp.default expm1.default tanh.default sigmoid.default erf.default erfc.default "
    "sin.default cos.default atan.default sinh.default cosh.default asinh.default floor.default ceil.default round.default trunc.default "
    "isnan.default isinf.default logical_not.default relu6.default silu.default mish.default hardsigmoid.default hardswish.default "
    "log_sigmoid.default",
    lambda: (t(3, 4),),
    lambda: (t(3, 4, low=-8, high=8),),
)
add("relu.default", lambda: (t(3, 4),), lambda: (torch.tensor([0.0, -0.0, 1.0, float("nan")], **F64),))
add(
    "log.default log2.default log10.default sqrt.default rsqrt.default reciprocal.default lgamma.default digamma.default",
    lambda: (t(3, 4, low=0.2, high=4),),
)
add("asin.default acos.default atanh.default log1p.default tan.default", lambda: (t(3, 4, low=-0.9, high=0.9),))
add("acosh.default", lambda: (t(3, 4, low=1.1),))
add(
    "eq.Tensor ne.Tensor lt.Tensor le.Tensor gt.Tensor ge.Tensor",
    lambda: (ints(0, 3, 3, 4), ints(0, 3, 4)),
    lambda: (t(3), t(3)),
)
add(
    "eq.Scalar ne.Scalar lt.Scalar le.Scalar gt.Scalar ge.Scalar", lambda: (ints(0, 3, 3, 4), 1), lambda: (t(3, 4), 0.2)
)
add(
    "logical_and.default logical_or.default logical_xor.default",
    lambda: (ints(0, 2, 3, 4), t(4)),
    lambda: (bools(3), bools(3)),
)
add(
    "bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor",
    lambda: (ints(0, 16, 3, 4), ints(0, 16, 4)),
    lambda: (bools(3), bools(3)),
)
add("bitwise_and.Scalar bitwise_or.Scalar bitwise_xor.Scalar", lambda: (ints(0, 16, 3, 4), 6))
add("bitwise_not.default", lambda: (ints(0, 16, 3, 4),), lambda: (bools(5),))
add("where.self", lambda: (bools(3, 4), t(4), t(3, 1)))
add("where.ScalarSelf", lambda: (bools(3, 4), 1.5, t(3, 1)))
add("where.ScalarOther", lambda: (bools(3, 4), t(3, 1), -1.5))
add("masked_fill.Scalar", lambda: (t(3, 4), bools(3, 4), float("-inf")), lambda: (t(3, 4), bools(4), 2.0))
add("masked_fill.Tensor", lambda: (t(3, 4), bools(4), torch.tensor(2.0, **F64)))
add(
    "clamp.default",
    lambda: (t(3, 4), -0.5, 0.7),
    lambda: ((t(3, 4),), {"max": 0.3}),
    lambda: (torch.tensor([1.0, float("nan"), -3.0], **F64), -1.0, 1.0),
)
add("clamp_min.default clamp_max.default", lambda: (t(3, 4), 0.25))
add("hardtanh.default", lambda: (t(3, 4),), lambda: (t(3, 4), -0.3, 0.8))
add("gelu.default", lambda: (t(3, 4),), lambda: ((t(3, 4),), {"approximate": "tanh"}))
add("softplus.default", lambda: (t(3, 4),), lambda: (t(3, 4, low=-8, high=8), 2.0, 3.0))
add("elu.default", lambda: (t(3, 4),), lambda: (t(3, 4), 1.6, 1.05, 0.8))
add("leaky_relu.default", lambda: (t(3, 4),), lambda: (t(3, 4), 0.2))
add("lerp.Scalar", lambda: (t(3, 4), t(4), 0.3))
add("lerp.Tensor", lambda: (t(3, 4), t(4), t(3, 1)))
add("addcmul.default", lambda: (t(3, 4), t(4), t(3, 1)), lambda: ((t(3, 4), t(4), t(3, 1)), {"value": 0.5}))
add("addcdiv.default", lambda: ((t(3, 4), t(4), t(3, 1, low=0.5)), {"value": 0.5}))
add("clone.default alias.default lift_fresh_copy.default detach.default", lambda: (t(3, 4),), lambda: (ints(0, 9, 4),))
add("contiguous.default", lambda: (t(3, 4),))
add(
    "_to_copy.default",
    lambda: ((t(3, 4),), {"dtype": torch.float32}),
    lambda: ((ints(-3, 3, 4),), F64),
    lambda: ((t(3, 4),), {"dtype": torch.int64}),
    lambda: ((bools(4),), F64),
)
# views ----------------------------------------------------------------------------------------------------------------
add(
    "view.default reshape.default _unsafe_view.default",
    lambda: (t(2, 6), [3, 4]),
    lambda: (t(2, 3, 4), [2, -1]),
    lambda: (t(1, 6, 1), [6]),
)
add("_reshape_alias.default", lambda: (t(2, 6), [3, 4], [4, 1]))
add("squeeze.dim", lambda: (t(2, 1, 3), 1), lambda: (t(2, 3), 1))
add("squeeze.dims", lambda: (t(1, 2, 1), [0, 2]))
add("squeeze.default", lambda: (t(1, 2, 1),))
add("unsqueeze.default", lambda: (t(2, 3), 1), lambda: (t(2, 3), -1))
add("flatten.using_ints", lambda: (t(2, 3, 4), 1), lambda: (t(2, 3, 4),))
add("permute.default", lambda: (t(2, 3, 4), [2, 0, 1]), lambda: (t(2, 3), [-1, 0]))
add("transpose.int", lambda: (t(2, 3, 4), 1, -1))
add("t.default mT.default numpy_T.default", lambda: (t(2, 3),))
add("expand.default", lambda: (t(3, 1), [2, 3, 4]), lambda: (t(3, 1), [-1, 4]))
add("expand_as.default", lambda: (t(3, 1), t(2, 3, 4)))
add("broadcast_to.default", lambda: (t(3, 1), [2, 3, 4]))
add(
    "slice.Tensor",
    lambda: (t(4, 7), 1, 1, 6, 2),
    lambda: (t(4, 7), 0, -3, 9223372036854775807),
    lambda: (t(4, 7), 1, None, -2),
)
add("narrow.default", lambda: (t(4, 7), 1, 2, 3))
add("select.int", lambda: (t(4, 3, 2), 1, 2), lambda: (t(4, 3), 0, -1))
add("flip.default", lambda: (t(4, 3), [0, -1]))
add("cat.default concat.default", lambda: ([t(2, 3), t(2, 4)], 1), lambda: ([t(2, 3), t(1, 3)],))
add("constant_pad_nd.default", lambda: (t(2, 3), [1, 2], 0.5), lambda: (t(2, 5), [-1, 2, 1, 0]))
add("stack.default", lambda: ([t(2, 3), t(2, 3)], 1), lambda: ([t(2), t(2), t(2)], -1))
add("split.Tensor unsafe_split.Tensor", lambda: (t(3, 7), 3, 1), lambda: (t(6, 2), 2))
add("split_with_sizes.default unsafe_split_with_sizes.default split.sizes", lambda: (t(3, 7), [2, 4, 1], 1))
add("chunk.default unsafe_chunk.default", lambda: (t(3, 7), 3, -1))
add("unbind.int", lambda: (t(2, 3, 4), 1))
# reductions -----------------------------------------------------------------------------------------------------------
add("sum.dim_IntList mean.dim", lambda: (t(3, 4, 5), [1]), lambda: (t(3, 4, 5), [0, -1], True))
add("sum.default", lambda: (t(3, 4),), lambda: (ints(0, 9, 4),), lambda: (bools(5),))
add("mean.default", lambda: (t(3, 4),))
add(
    "amax.default amin.default",
    lambda: (t(3, 4), [1]),
    lambda: (t(3, 4), [], True),
    lambda: (torch.tensor([[1.0, 1.0, 0.0]], **F64), [1]),
)
add("max.default min.default", lambda: (t(3, 4),), lambda: (torch.tensor([1.0, float("nan"), 3.0], **F64),))
add("any.dim all.dim", lambda: (bools(3, 4), 1), lambda: (bools(3, 4), 0, True))
add("any.default all.default", lambda: (bools(3, 4),))
add("any.dims all.dims", lambda: (bools(3, 4), [0, 1]))
add("argmax.default argmin.default", lambda: (t(3, 4), 1), lambda: (t(3, 4),), lambda: (t(3, 4), 0, True))
add("cumsum.default", lambda: (t(3, 4), 1), lambda: (t(3, 4), -2))
# normalization --------------------------------------------------------------------------------------------------------
add("_softmax.default _log_softmax.default", lambda: (t(4, 7), -1, False), lambda: (t(2, 3, 5), 1, False))
add("softmax.int log_softmax.int", lambda: (t(4, 7), -1), lambda: (t(2, 3, 5), 0))
add("layer_norm.default", lambda: (t(4, 6), [6], t(6), t(6)), lambda: (t(2, 3, 6), [3, 6], None, None, 1e-3))
add("native_layer_norm.default", lambda: (t(4, 6), [6], t(6), t(6), 1e-5))
add(
    "_native_batch_norm_legit_functional.default",
    lambda: (t(4, 3, 2, 5), t(3), t(3), t(3), t(3, low=0.5), True, 0.3, 1e-4),
)
add(
    "_native_batch_norm_legit.no_stats",
    lambda: (t(6, 3), None, None, True, 0.1, 1e-5),
    lambda: (t(6, 3, 4), t(3), t(3), True, 0.1, 1e-5),
)
add("_native_batch_norm_legit_no_training.default", lambda: (t(4, 3, 5), t(3), t(3), t(3), t(3, low=0.5), 0.1, 1e-5))
# contractions ---------------------------------------------------------------------------------------------------------
add("linear.default", lambda: (t(3, 4), t(5, 4), t(5)), lambda: (t(2, 3, 4), t(5, 4)), lambda: (t(4), t(5, 4), t(5)))
add(
    "matmul.default",
    *(
        lambda a=a, b=b: (t(*a), t(*b))
        for a, b in (
            ((3, 4), (4, 5)),
            ((4,), (4,)),
            ((4,), (4, 5)),
            ((3, 4), (4,)),
            ((2, 3, 4), (4, 5)),
            ((2, 3, 4), (2, 4, 5)),
            ((3, 4), (2, 4, 5)),
            ((2, 1, 3, 4), (6, 4, 5)),
            ((1, 3, 4), (6, 4, 5)),
            ((2, 3, 4), (4,)),
            ((4,), (2, 4, 5)),
        )
    ),
)
add("mm.default", lambda: (t(3, 4), t(4, 5)))
add("bmm.default", lambda: (t(2, 3, 4), t(2, 4, 5)))
add(
    "addmm.default",
    lambda: (t(5), t(3, 4), t(4, 5)),
    lambda: ((t(3, 1), t(3, 4), t(4, 5)), {"alpha": 0.5, "beta": -2.0}),
)
add("baddbmm.default", lambda: ((t(2, 3, 5), t(2, 3, 4), t(2, 4, 5)), {"alpha": 0.5, "beta": 2.0}))
add("mv.default", lambda: (t(3, 4), t(4)))
add("dot.default", lambda: (t(4), t(4)))
add("addmv.default", lambda: (t(3), t(3, 4), t(4)))
# convolution, pooling -------------------------------------------------------------------------------------------------
add(
    "convolution.default",
    lambda: (t(2, 3, 6, 5), t(4, 3, 3, 3), t(4), [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    lambda: (t(2, 3, 7, 6), t(4, 3, 3, 2), None, [2, 3], [1, 0], [1, 1], False, [0, 0], 1),
    lambda: (t(2, 4, 8), t(6, 2, 3), t(6), [2], [2], [2], False, [0], 2),
    lambda: (t(2, 4, 6, 6), t(8, 1, 3, 3), None, [2, 2], [1, 1], [1, 1], False, [0, 0], 4),
    lambda: (t(1, 2, 3, 4, 5), t(3, 2, 1, 2, 3), None, [1, 1, 1], [0, 1, 1], [1, 1, 1], False, [0, 0, 0], 1),
    lambda: (t(2, 4, 3, 3), t(4, 3, 3, 2), t(3), [2, 2], [1, 0], [1, 1], True, [1, 0], 1),
    lambda: (t(2, 4, 5), t(4, 2, 3), None, [1], [0], [2], True, [0], 2),
)
add("max_pool1d.default", lambda: (t(3, 9), [3], [2], [1], [1]))
add(
    "max_pool2d.default",
    lambda: (t(2, 3, 6, 4), [2, 2]),
    lambda: (t(2, 3, 7, 6), [3, 2], [2, 1], [1, 1], [1, 1], True),
    lambda: (t(3, 7, 7), 3, 2),
)
add("max_pool3d.default", lambda: (t(2, 2, 4, 4, 4), [2, 2, 2]))
add("max_pool1d_with_indices.default", lambda: (t(2, 3, 9), [3], [2]))
add("max_pool2d_with_indices.default", lambda: (t(2, 3, 6, 4), [2, 2]), lambda: (t(2, 3, 7, 6), [3, 2], [2, 1], [1, 1]))
add("max_pool3d_with_indices.default", lambda: (t(2, 2, 4, 4, 4), [3, 2, 2], [1, 2, 2]))
add("avg_pool1d.default", lambda: (t(2, 3, 9), [4], [3]))
add(
    "avg_pool2d.default",
    lambda: (t(2, 3, 6, 4), [2, 2]),
    lambda: (t(2, 3, 8, 6), [3, 3], [2, 2], [1, 1], True, True),
    lambda: (t(2, 3, 8, 6), [3, 3], [2, 2], [1, 1], True, False),
    lambda: (t(2, 3, 8, 6), [3, 2], [2, 2], [1, 0], False, True, 5),
)
add("avg_pool3d.default", lambda: (t(2, 2, 4, 4, 4), [2, 2, 2]))
add(
    "_adaptive_avg_pool2d.default adaptive_avg_pool2d.default",
    lambda: (t(2, 3, 7, 6), [3, 2]),
    lambda: (t(2, 3, 7, 6), [1, 1]),
    lambda: (t(2, 3, 4, 4), [6, 2]),
)
add("_adaptive_avg_pool3d.default adaptive_avg_pool3d.default", lambda: (t(2, 2, 4, 5, 3), [2, 2, 2]))
add("adaptive_avg_pool1d.default", lambda: (t(2, 3, 7), [3]))
# indexing -------------------------------------------------------------------------------------------------------------
add("embedding.default", lambda: (t(7, 3), ints(0, 7, 2, 5)), lambda: (t(7, 3), torch.tensor([1, 2, 2, 0]), 2))
add("gather.default", lambda: (t(4, 5), 0, ints(0, 4, 3, 5)), lambda: (t(4, 5), -1, ints(0, 5, 4, 2)))
add(
    "scatter_add.default",
    lambda: (t(4, 5), 0, ints(0, 4, 3, 5), t(3, 6)),
    lambda: (t(4, 5), 1, ints(0, 5, 4, 7), t(4, 7)),
)
add(
    "index.Tensor",
    lambda: (t(4, 5, 6), [None, ints(-5, 5, 2, 3)]),
    lambda: (t(4, 5, 6), [ints(0, 4, 3), ints(-5, 5, 2, 1)]),
    lambda: (t(4, 5, 6), [ints(0, 4, 3), None, ints(0, 6, 3)]),
)
add("index_select.default", lambda: (t(4, 5), 1, ints(0, 5, 7)))
# losses ---------------------------------------------------------------------------------------------------------------
_nll = (
    lambda: (t(5, 4), ints(0, 4, 5)),
    lambda: (t(5, 4), torch.tensor([0, 3, -100, 1, 2]), t(4, low=0.2)),
    lambda: (t(5, 4), ints(0, 4, 5), t(4, low=0.2), 2, 1),
    lambda: (t(5, 4), ints(0, 4, 5), None, 0, 1),
)
add("nll_loss.default", *_nll)
add("nll_loss_nd.default", *_nll, lambda: (t(2, 4, 3, 3), ints(0, 4, 2, 3, 3)), lambda: (t(4), torch.tensor(2)))
add(
    "nll_loss2d.default",
    lambda: (t(2, 4, 3, 3), ints(0, 4, 2, 3, 3)),
    lambda: (t(2, 4, 3, 3), ints(0, 4, 2, 3, 3), t(4, low=0.2), 0, 2),
)
add(
    "nll_loss_forward.default",
    lambda: (t(5, 4), ints(0, 4, 5), None, 1, -100),
    lambda: (t(5, 4), ints(0, 4, 5), t(4, low=0.2), 2, 1),
)
add("nll_loss2d_forward.default", lambda: (t(2, 4, 3, 3), ints(0, 4, 2, 3, 3), None, 1, -100))
add(
    "mse_loss.default l1_loss.default smooth_l1_loss.default huber_loss.default soft_margin_loss.default",
    *(lambda r=r: (t(3, 4), t(3, 4), r) for r in (0, 1, 2)),
)
add(
    "binary_cross_entropy.default",
    *(lambda r=r: (t(3, 4, low=0.1, high=0.9), t(3, 4, low=0, high=1), t(4), r) for r in (0, 1, 2)),
)
add(
    "binary_cross_entropy_with_logits.default",
    lambda: (t(3, 4), t(3, 4, low=0, high=1)),
    lambda: (t(3, 4), t(3, 4, low=0, high=1), t(4), t(4, low=0.5), 2),
    lambda: (t(3, 4, low=-60, high=60), bools(3, 4).double(), None, None, 0),
)
add(
    "kl_div.default",
    lambda: (t(3, 4), t(3, 4, low=0, high=1)),
    lambda: ((t(3, 4), t(3, 4), 2), {"log_target": True}),
    lambda: (t(3), torch.tensor([0.0, 0.5, 0.5], **F64), 0),
)
# creation -------------------------------------------------------------------------------------------------------------
add("zeros.default ones.default", lambda: (([2, 3],), F64))
add("zeros_like.default ones_like.default zero.default", lambda: (t(2, 3),), lambda: (ints(0, 4, 3),))
add("new_zeros.default new_ones.default", lambda: (t(2, 3), [4]))
add("full.default", lambda: (([2, 3], 1.5), F64), lambda: (([], 7), {}))
add("full_like.default", lambda: (t(2, 3), 4))
add("new_full.default", lambda: (t(2, 3), [4], 2.5))
add("fill.Scalar", lambda: (t(2, 3), 2.5))
add("fill.Tensor", lambda: (t(2, 3), t()))
add("copy.default", lambda: (t(2, 3), t(2, 3)), lambda: (t(2, 3), t(3)), lambda: (ints(0, 9, 2, 3), t(3)))
add("scalar_tensor.default", lambda: ((3.5,), F64))
add("arange.default", lambda: ((5,), {}), lambda: ((4,), F64))
add("arange.start", lambda: (2, 7), lambda: ((0.5, 4.0), F64))
add("arange.start_step", lambda: (2, 11, 3), lambda: ((0.5, 4.0, 0.25), F64), lambda: (9, 2, -2))
add("eye.default", lambda: ((3,), F64))
add("eye.m", lambda: ((3, 4), F64))
add(
    "tril.default triu.default",
    lambda: (t(2, 4, 5),),
    lambda: (t(4, 3), -1),
    lambda: (t(4, 5), 1),
    lambda: (bools(4, 5),),
)
# attention ------------------------------------------------------------------------------------------------------------
_qkv = lambda: (t(2, 3, 4, 8), t(2, 3, 5, 8), t(2, 3, 5, 8))  # noqa: E731
add(
    "scaled_dot_product_attention.default",
    _qkv,
    lambda: (*_qkv(), bools(4, 5)),
    lambda: (*_qkv(), t(2, 1, 4, 5)),
    lambda: (*_qkv(), None, 0.0, True),
    lambda: ((*_qkv(),), {"scale": 0.3}),
    lambda: (t(4, 6), t(5, 6), t(5, 3)),
    lambda: (t(2, 4, 6), t(2, 5, 6), t(2, 5, 3)),
    lambda: ((t(2, 4, 3, 6), t(2, 2, 5, 6), t(2, 2, 5, 6)), {"enable_gqa": True}),
)
add(
    "_scaled_dot_product_flash_attention_for_cpu.default",
    _qkv,
    lambda: (*_qkv(), 0.0, True),
    lambda: ((*_qkv(),), {"attn_mask": t(4, 5)}),
)
# what has no value to compare: uninitialized memory, random numbers (see test_random.py), our own marker, sizes that depend on data
INCOMPARABLE = {
    "aten.nonzero.default",
    "aten.repeat_interleave.Tensor",
    "aten.empty.memory_format",
    "aten.empty_like.default",
    "aten.new_empty.default",
    "aten.empty_strided.default",
    "aten.new_empty_strided.default",
    "aten.empty_permuted.default",
    "aten.dropout.default",
    "aten.native_dropout.default",
    "aten.bernoulli.p",
    "aten.bernoulli.default",
    "aten.bernoulli.Tensor",
    "aten.exponential.default",
    "aten.cauchy.default",
    "aten.log_normal.default",
    "aten.geometric.default",
    "aten.normal.Tensor_Tensor",
    "aten.normal.Tensor_float",
    "aten.normal.float_Tensor",
    "aten.normal.float_float",
    "aten.rand.default",
    "aten.rand_like.default",
    "aten.uniform.default",
    "aten.randn.default",
    "aten.randn_like.default",
    "aten.normal_functional.default",
    "aten.randint.default",
    "aten.randint.low",
    "aten.randint_like.default",
    "aten.randint_like.low_dtype",
    "shorthaul.with_value.default",
}
# operands that PyTorch refuses to differentiate: argument -> parts of the overload's name
FROZEN = {
    "values": ("heaviside",),
    "start": ("space",),
    "end": ("space",),
    "x": ("polynomial",),
    "n": ("polynomial",),
    "self": ("heaviside", "aten.igamma", "special_zeta", "bessel_j", "bessel_y", "modified_bessel", "airy"),
    "other": ("special_zeta.other_scalar",),
    "weight": ("binary_cross_entropy", "nll_loss", "multi_margin_loss"),
    "pos_weight": ("binary_cross_entropy",),
    "running_mean": ("batch_norm",),
    "running_var": ("batch_norm",),
    "target": ("soft_margin_loss",),
    "random_samples": ("fractional_max_pool",),
    "attn_mask": ("flash_attention",),
}
# (overload, case) whose gradient PyTorch does not compute, or defines differently
NO_PYTORCH_GRADIENT = {
    ("aten._unsafe_masked_index_put_accumulate.default", 0): "PyTorch traces its gradient into shapes of its own",
    ("aten.floor_divide.default", 0): "PyTorch has no derivative of floor_divide",
    ("aten.floor_divide.Scalar", 0): "PyTorch has no derivative of floor_divide",
    ("aten.remainder.Scalar_Tensor", 0): "PyTorch has no derivative of remainder by its divisor where the dividend is a number",
    ("aten.ldexp.Tensor", 0): "PyTorch's gradient rounds 2**n to an integer where n is one",
    ("aten.sgn.default", 0): "PyTorch's gradient is a zero tensor without memory",
    ("aten.sgn.default", 1): "PyTorch's gradient is a zero tensor without memory",
    ("aten.scatter_add.default", 0): "PyTorch's gradient has the wrong shape where src is larger than index",
    ("aten.scatter.src", 1): "PyTorch's gradient has the wrong shape where src is larger than index",
    ("aten.clamp.default", 2): "at a NaN PyTorch's gradient of clamp is 0, that of the identity it computes there is 1",
    **{("aten.as_strided_scatter.default", i): "PyTorch gives what is overwritten the gradient, and the rest none" for i in range(3)},
    ("aten.kl_div.default", 2): "at a target of 0 PyTorch's gradient by the target is 0 / 0, ours that of 0 log(0) = 0",
}
# PyTorch's own rounding: its kernels multiply by 1/6, or divide by alpha, in float32; its Bessel functions (against the C library's)
# and its trigamma are not better than this in float64
LOOSE = {
    "aten.hardsigmoid.default": 1e-7,
    "aten.celu.default": 1e-7,
    **{f"aten.special_bessel_{n}.default": 2e-6 for n in ("j0", "j1", "y0", "y1")},
    "aten.polygamma.default": 1e-9,
    "aten.special_polygamma.default": 1e-9,
}
# operators that have a gradient here and none in PyTorch
BEYOND_PYTORCH = {"heaviside", "bessel_j0", "bessel_j1", "bessel_y0", "bessel_y1", "i0", "i1", "k0", "k1", "k0e", "k1e",
                  "spherical_bessel_j0", "linspace"}  # fmt: skip
