"""Calls of the overloads behind torch.nn modules: activations, padding, pooling, interpolation, norms, margin losses, windows."""

from __future__ import annotations

import torch
from aten_cases import CASES, F64, INCOMPARABLE, add, ints, simple, t
from torch.nn.functional import max_pool2d_with_indices, max_pool3d_with_indices

SPECIAL = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 0.5, -0.5, 1e4, -1e4)


def special() -> torch.Tensor:
    return torch.tensor(SPECIAL, **F64)


# activations ----------------------------------------------------------------------------------------------------------
add("celu.default", lambda: (t(3, 4), 1.7), lambda: (special()[1:], 0.5))
add("_prelu_kernel.default", lambda: (t(3, 4), t(1, 4)), lambda: (special(), t(1)))
add("hardshrink.default softshrink.default", lambda: (t(3, 4), 0.6), lambda: (special(),))
add("threshold.default", lambda: (t(3, 4), 0.1, 20.0), lambda: (special(), 0.5, -3.0))
add("glu.default", lambda: (t(3, 4),), lambda: (t(2, 6, 3), 1), lambda: (t(2, 0, 4), 1), lambda: (t(4) * 1e3,))
INCOMPARABLE.add("aten.rrelu_with_noise_functional.default")  # random: tests/ops/test_random.py


# padding and windows --------------------------------------------------------------------------------------------------
add("reflection_pad1d.default", lambda: (t(2, 3, 5), [4, 2]), lambda: (t(3, 5), [0, 3]))
add("replication_pad1d.default", lambda: (t(2, 3, 5), [4, 7]), lambda: (t(3, 1), [2, 1]), lambda: (t(2, 3, 5), [-1, 2]))
add("reflection_pad2d.default", lambda: (t(2, 3, 4, 5), [1, 4, 3, 0]), lambda: (t(2, 3, 4), [-1, 2, 1, -2]))
add("replication_pad2d.default", lambda: (t(2, 3, 4, 5), [1, 6, 3, 0]), lambda: (t(2, 3, 4), [-1, 2, 1, -2]))
add("reflection_pad3d.default replication_pad3d.default", lambda: (t(1, 2, 3, 4, 5), [1, 4, 3, 0, 2, 2]))
add("_pad_circular.default", lambda: (t(2, 3, 5), [5, 2]), lambda: (t(1, 2, 3, 4, 5), [1, 5, 4, 0, 1, 2]))
add(
    "im2col.default",
    lambda: (t(2, 3, 6, 5), [3, 2], [1, 2], [1, 0], [2, 1]),
    lambda: (t(3, 4, 4), [2, 2], [1, 1], [0, 0], [2, 2]),
)
add("col2im.default", lambda: (t(2, 12, 12), [4, 5], [2, 2], [1, 1], [0, 0], [1, 1]),
    lambda: (t(18, 9), [6, 5], [3, 2], [1, 2], [1, 0], [2, 1]))  # fmt: skip


# pooling --------------------------------------------------------------------------------------------------------------
add(
    "adaptive_max_pool2d.default",
    lambda: (t(2, 3, 7, 5), [3, 4]),
    lambda: (t(3, 4, 4), [1, 6]),
    lambda: (t(0, 3, 4, 4), [2, 2]),
)
add("adaptive_max_pool3d.default", lambda: (t(2, 2, 4, 5, 3), [2, 3, 2]))
add("fractional_max_pool2d.default", lambda: (t(2, 3, 7, 6), [2, 3], [3, 2], t(2, 3, 2, low=0.0, high=1.0)),
    lambda: (t(3, 7, 6), [2, 3], [1, 4], t(1, 3, 2, low=0.0, high=1.0)))  # fmt: skip
add("fractional_max_pool3d.default", lambda: (t(2, 2, 5, 6, 4), [2, 2, 3], [3, 2, 1], t(2, 2, 3, low=0.0, high=1.0)))
add("max_unpool2d.default", lambda: (t(2, 3, 2, 2), torch.tensor([0, 3, 9, 11]).view(1, 1, 2, 2).repeat(2, 3, 1, 1), [3, 4]),
    lambda: (t(1, 2, 2), torch.tensor([[[5, 1], [0, 2]]]), [2, 3]))  # fmt: skip
add("max_unpool3d.default", lambda: (t(1, 2, 1, 2, 2), torch.tensor([0, 3, 9, 23]).view(1, 1, 1, 2, 2).repeat(1, 2, 1, 1, 1),
                                     [2, 3, 4], [2, 2, 2], [0, 0, 0]))  # fmt: skip


# interpolation --------------------------------------------------------------------------------------------------------
add("upsample_nearest1d.default _upsample_nearest_exact1d.default", lambda: (t(2, 3, 5), [10]), lambda: (t(2, 3, 5), [7]),
    lambda: (t(2, 3, 5), [8], 1.7), lambda: (t(2, 3, 5), [2]))  # fmt: skip
add("upsample_nearest2d.default _upsample_nearest_exact2d.default", lambda: (t(2, 3, 5, 4), [10, 16]), lambda: (t(2, 3, 5, 4), [7, 3]),
    lambda: (t(2, 3, 5, 4), [8, 9], 1.7, 2.3))  # fmt: skip
add("upsample_nearest3d.default _upsample_nearest_exact3d.default", lambda: (t(1, 2, 2, 3, 4), [3, 3, 8]))
_half = (lambda: (t(2, 3, 7, 5), [3, 2], False), lambda: (t(1, 2, 5, 6), [8, 3], False), lambda: (t(1, 2, 9, 6), [2, 4], True),
         lambda: (t(1, 2, 9, 7), [4, 3], False, 0.45, 0.5), lambda: (t(1, 1, 6, 6), [1, 6], False))  # fmt: skip
add("_upsample_bilinear2d_aa.default _upsample_bicubic2d_aa.default", *_half)
add("_upsample_bilinear2d_aa.vec _upsample_bicubic2d_aa.vec", lambda: (t(2, 2, 7, 5), None, False, [0.5, 0.7]),
    lambda: (t(2, 2, 7, 5), [4, 3], False, None))  # fmt: skip
add("max_pool2d_with_indices_backward.default", lambda: (t(2, 3, 2, 2), t(2, 3, 4, 5), [2, 2], [2, 2], [0, 0], [1, 1], False,
                                                         max_pool2d_with_indices(t(2, 3, 4, 5), 2)[1]))  # fmt: skip
add("max_pool3d_with_indices_backward.default", lambda: (t(2, 2, 2, 1), t(2, 4, 5, 2), [2] * 3, [2] * 3, [0] * 3, [1] * 3, False,
                                                         max_pool3d_with_indices(t(2, 4, 5, 2), 2)[1]))  # fmt: skip
add("upsample_linear1d.default", lambda: (t(2, 3, 5), [8], False), lambda: (t(2, 3, 5), [8], True), lambda: (t(2, 3, 5), [8], False, 1.7),
    lambda: (t(2, 3, 5), [1], True))  # fmt: skip
add("upsample_bilinear2d.default upsample_bicubic2d.default", lambda: (t(2, 3, 5, 4), [7, 3], False), lambda: (t(2, 3, 5, 4), [7, 9], True),
    lambda: (t(2, 3, 5, 4), [8, 9], False, 1.7, 2.3), lambda: (t(1, 1, 1, 1), [3, 2], False))  # fmt: skip
add(
    "upsample_trilinear3d.default",
    lambda: (t(1, 2, 2, 3, 4), [3, 3, 6], False),
    lambda: (t(1, 2, 2, 3, 4), [1, 5, 2], True),
)
for _name in ("upsample_nearest{}d", "_upsample_nearest_exact{}d"):
    for _d in (1, 2, 3):
        add(
            f"{_name.format(_d)}.vec",
            lambda d=_d: (t(1, 2, *(3,) * d), None, [1.5] * d),
            lambda d=_d: (t(1, 2, *(3,) * d), [5] * d, None),
        )
for _name, _d in (
    ("upsample_linear1d", 1),
    ("upsample_bilinear2d", 2),
    ("upsample_trilinear3d", 3),
    ("upsample_bicubic2d", 2),
):
    add(
        f"{_name}.vec",
        lambda d=_d: (t(1, 2, *(3,) * d), None, False, [1.5] * d),
        lambda d=_d: (t(1, 2, *(3,) * d), [5] * d, True, None),
    )
add("grid_sampler_2d.default", *(lambda m=m, p=p, a=a: (t(2, 3, 4, 5), t(2, 3, 2, 2, low=-1.6, high=1.6), m, p, a)
                                 for m in (0, 1, 2) for p in (0, 1, 2) for a in (False, True)))  # fmt: skip
add("grid_sampler_3d.default", *(lambda m=m, p=p: (t(1, 2, 3, 4, 2), t(1, 2, 2, 1, 3, low=-1.6, high=1.6), m, p, m == p)
                                 for m in (0, 1) for p in (0, 1, 2)))  # fmt: skip


# norms and losses -----------------------------------------------------------------------------------------------------
add(
    "group_norm.default",
    lambda: (t(2, 6, 3, 2), 3, t(6), t(6), 1e-4),
    lambda: (t(3, 4), 2),
    lambda: (t(2, 4, 5), 4, t(4)),
)
add("native_group_norm.default", lambda: (t(2, 6, 5), t(6), t(6), 2, 6, 5, 3, 1e-4))
add("multi_margin_loss.default", lambda: (t(4, 3), ints(0, 3, 4)), lambda: (t(4, 3), ints(0, 3, 4), 2, 0.5, t(3, low=0.1), 2),
    lambda: (t(3), torch.tensor(1)), lambda: (t(4, 3), ints(0, 3, 4), 1, 1, None, 0), lambda: (t(3), torch.tensor([2])))  # fmt: skip
add("multilabel_margin_loss_forward.default", lambda: (t(2, 4), torch.tensor([[3, 0, -1, 1], [-1, 0, 0, 0]]), 1),
    lambda: (t(2, 4), torch.tensor([[3, 0, 1, 2], [1, -1, 2, -1]]), 0), lambda: (t(4), torch.tensor([2, 1, -1, 0]), 2))  # fmt: skip


# recurrent cells ------------------------------------------------------------------------------------------------------
CASES["shorthaul.lstm_cell.default"] = simple(lambda: (t(2, 12), t(2, 12), t(2, 3)), lambda: (t(0, 12), t(0, 12), t(0, 3)))
CASES["shorthaul.gru_cell.default"] = simple(lambda: (t(2, 9), t(2, 9), t(2, 3)))
