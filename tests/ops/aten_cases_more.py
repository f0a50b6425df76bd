"""More calls of ATen overloads: views that copy, special functions, reductions, scans. See `aten_cases`."""

from __future__ import annotations

import math

import torch
from aten_cases import F64, add, bools, ints, t

NAN = float("nan")


def special(*values: float) -> torch.Tensor:
    return torch.tensor(values, **F64)


# views and rearrangements ---------------------------------------------------------------------------------------------
add("view_copy.default _reshape_copy.default", lambda: (t(2, 6), [3, 4]))
add("unflatten.int", lambda: (t(2, 6), 1, [3, -1]))
add("squeeze_copy.dim", lambda: (t(2, 1, 3), 1))
add("squeeze_copy.dims", lambda: (t(1, 2, 1), [0, 2]))
add("squeeze_copy.default", lambda: (t(1, 2, 1),))
add("unsqueeze_copy.default", lambda: (t(2, 3), -1))
add("permute_copy.default", lambda: (t(2, 3, 4), [2, 0, 1]))
add("transpose_copy.int", lambda: (t(2, 3, 4), 1, -1))
add("t_copy.default", lambda: (t(2, 3),), lambda: (t(3),))
add("expand_copy.default", lambda: (t(3, 1), [2, 3, 4]))
add("slice_copy.Tensor", lambda: (t(4, 7), 1, 1, 6, 2))
add("narrow_copy.default", lambda: (t(4, 7), 1, 2, 3))
add("select_copy.int", lambda: (t(4, 3, 2), 1, -1))
add("split_copy.Tensor", lambda: (t(3, 7), 3, 1))
add("split_with_sizes_copy.default", lambda: (t(3, 7), [2, 4, 1], 1))
add("unbind_copy.int", lambda: (t(2, 3, 4), 1))
add("alias_copy.default", lambda: (t(2, 3),))
add(
    "diagonal.default diagonal_copy.default",
    lambda: (t(3, 4),),
    lambda: (t(3, 4, 5), 1, 2, 0),
    lambda: (t(3, 4), 7),
    lambda: (t(4, 3), -2),
)
add("diag_embed.default", lambda: (t(3),), lambda: (t(2, 3), -1, 0, 2), lambda: (t(2, 3), 2))
add(
    "repeat.default",
    lambda: (t(2, 3), [4, 1, 2]),
    lambda: (t(2, 3), [1, 1]),
    lambda: (t(), [3]),
    lambda: (t(0, 2), [2, 3]),
)
add(
    "roll.default",
    lambda: (t(4, 3), [1, -2], [0, 1]),
    lambda: (t(4, 3), [5]),
    lambda: (t(4, 3), [7], [0]),
    lambda: (t(0, 3), [1], [0]),
    lambda: (t(0), [2]),
)
add("rot90.default", *(lambda k=k: (t(2, 3, 4), k, [0, 2]) for k in (-1, 0, 1, 2, 3)))
add(
    "unfold.default unfold_copy.default", lambda: (t(3, 7), 1, 3, 2), lambda: (t(5, 2), 0, 2, 1), lambda: (t(), 0, 1, 1)
)
add("slice_scatter.default", lambda: (t(4, 7), t(4, 3), 1, 1, 6, 2), lambda: (t(4, 7), t(3, 7), 0, -3))
add("select_scatter.default", lambda: (t(4, 3, 2), t(4, 2), 1, -1))
add("diagonal_scatter.default", lambda: (t(4, 5), t(3), -1), lambda: (t(4, 2, 5), t(2, 4), 0, 0, 2))
add("block_diag.default", lambda: ([t(2, 3), t(), t(2), t(1, 1)],))
add("linalg_cross.default", lambda: (t(4, 3), t(1, 3)), lambda: ((t(3, 2), t(3, 1)), {"dim": 0}))
_turned = lambda *shape: t(*reversed(shape)).permute(*reversed(range(len(shape))))  # noqa: E731
add(
    "as_strided.default as_strided_copy.default",
    lambda: (t(3, 4), [3, 3], [2, 1], 1),
    lambda: (t(12), [2, 3, 2], [1, 4, 0]),
    lambda: (_turned(3, 4), [2, 2], [5, 1]),
    lambda: (t(5), [], [], 3),
    lambda: (t(2, 3), [0, 2], [1, 1]),
)
add(
    "as_strided_scatter.default",
    lambda: (t(3, 4), t(2, 3), [2, 3], [6, 2], 1),
    lambda: (t(12), t(2), [2], [7]),
    lambda: (t(5), t(), [], [], 3),
)
# elementwise ----------------------------------------------------------------------------------------------------------
add("clamp.Tensor", lambda: (t(3, 4), t(4, high=0), t(3, 1, low=0)), lambda: (t(3, 4), t(4)), lambda: (t(3, 4), None, t(4)),
    lambda: (ints(-9, 9, 5), ints(-5, 0, 5), ints(0, 5, 5)))  # fmt: skip
add("clamp_min.Tensor clamp_max.Tensor", lambda: (t(3, 4), t(4)))
add("fmax.default fmin.default", lambda: (t(3, 4), t(4)), lambda: (special(1, NAN, 2), special(NAN, 3, NAN)))
add("frac.default angle.default sgn.default sinc.default deg2rad.default rad2deg.default exp2.default special_exp2.default "
    "special_erfcx.default special_log_ndtr.default i0.default special_i1.default special_i0e.default special_i1e.default "
    "special_spherical_bessel_j0.default special_bessel_j0.default special_bessel_j1.default special_airy_ai.default "
    "special_modified_bessel_i0.default special_modified_bessel_i1.default",
    lambda: (t(3, 4),), lambda: (t(3, 4, low=-6, high=6),))  # fmt: skip
add("special_bessel_y0.default special_bessel_y1.default special_modified_bessel_k0.default special_modified_bessel_k1.default "
    "special_scaled_modified_bessel_k0.default special_scaled_modified_bessel_k1.default",
    lambda: (t(3, 4, low=0.1, high=8),))  # fmt: skip
add("signbit.default isposinf.default isneginf.default", lambda: (special(0.0, -0.0, math.inf, -math.inf, -2.0),))
add("copysign.Tensor", lambda: (t(3, 4), t(4)), lambda: (special(0.0, 1.0, -2.0), special(-1.0, -0.0, 3.0)))
add("copysign.Scalar", lambda: (t(3, 4), -1.0))
add("heaviside.default", lambda: (special(0.0, -1.0, 2.0), t(3)))
add(
    "nan_to_num.default",
    lambda: (special(NAN, math.inf, -math.inf, 1.5),),
    lambda: (special(NAN, math.inf, -math.inf, 1.5), 1.0, 2.0, -3.0),
)
add(
    "round.decimals",
    lambda: ((t(3, 4),), {"decimals": 2}),
    lambda: ((t(3, 4, high=900),), {"decimals": -2}),
    lambda: ((t(3),), {"decimals": 0}),
)
add("nextafter.default", lambda: (t(3, 4), t(4)))
add("ldexp.Tensor", lambda: (t(3, 4), ints(-4, 5, 4)), lambda: (t(3), t(3)))
add("hypot.default logaddexp.default logaddexp2.default", lambda: (t(3, 4), t(4)))
add("remainder.Scalar_Tensor", lambda: (1.7, t(3, 4, low=0.5)))
add("xlogy.Tensor", lambda: (t(3, 4), t(4, low=0.2)), lambda: (special(0.0, 0.0, 2.0), special(0.5, 3.0, 2.0)))
add("xlogy.Scalar_Self", lambda: (0.7, t(3, 4, low=0.2)))
add("xlogy.Scalar_Other", lambda: (t(3, 4), 0.7))
add("special_xlog1py.default", lambda: (t(3, 4), t(4, low=-0.7)))
add("special_xlog1py.self_scalar", lambda: (0.7, t(3, 4, low=-0.7)))
add("special_xlog1py.other_scalar", lambda: (t(3, 4), 0.7))
add("logit.default", lambda: (t(3, 4, low=0.05, high=0.95),), lambda: (t(3, 4), 0.1))
add("special_entr.default", lambda: (t(3, 4, low=0.1),))
_pair = (lambda: (ints(-40, 40, 3, 4), ints(1, 6, 4)),)
add(
    "bitwise_left_shift.Tensor bitwise_right_shift.Tensor __lshift__.Tensor __rshift__.Tensor gcd.default lcm.default",
    *_pair,
)
add(
    "bitwise_left_shift.Tensor_Scalar bitwise_right_shift.Tensor_Scalar __lshift__.Scalar __rshift__.Scalar",
    lambda: (ints(-40, 40, 5), 2),
)
add("mvlgamma.default", lambda: (t(3, 4, low=1.5, high=5), 3))
add("polygamma.default special_polygamma.default", *(lambda n=n: (n, t(3, 4, low=0.3, high=5)) for n in range(4)))
add("igamma.default igammac.default", lambda: (t(3, 4, low=0.3, high=5), t(4, low=0.3, high=5)))
add("special_zeta.default", lambda: (t(3, 4, low=1.5, high=5), t(4, low=0.3, high=5)))
add("special_zeta.self_scalar", lambda: (2.5, t(4, low=0.3, high=5)))
add("special_zeta.other_scalar", lambda: (t(3, low=1.5, high=5), 1.5))
add("erfinv.default", lambda: (t(3, 4, low=-0.95, high=0.95),))
add("special_ndtri.default", lambda: (t(3, 4, low=0.02, high=0.98),))
add("frexp.Tensor", lambda: (t(3, 4, low=-20, high=20),))
for _name in (
    *(f"{s}chebyshev_polynomial_{k}" for s in ("", "shifted_") for k in "tuvw"),
    "hermite_polynomial_h",
    "hermite_polynomial_he",
    "laguerre_polynomial_l",
    "legendre_polynomial_p",
):
    add(f"special_{_name}.default", lambda: (t(5, 4, low=-1, high=1), torch.arange(-1, 3, dtype=torch.float64)))
    add(f"special_{_name}.n_scalar", lambda: (t(5), 5))
    add(f"special_{_name}.x_scalar", lambda: (0.7, torch.arange(5, dtype=torch.float64)))
# reductions -----------------------------------------------------------------------------------------------------------
add("var.correction std.correction var_mean.correction std_mean.correction", lambda: (t(3, 4, 5),), lambda: (t(3, 4, 5), [1]),
    lambda: ((t(3, 4, 5), [0, -1]), {"correction": 0, "keepdim": True}))  # fmt: skip
_orders = (2, 1, 0, math.inf, -math.inf, 3, 0.5, 1.5)
add(
    "linalg_vector_norm.default",
    *(lambda p=p: (t(3, 4, 5), p, [1]) for p in _orders),
    lambda: (t(3, 4),),
    lambda: (t(3, 4), 2, [0, 1], True),
)
add("norm.ScalarOpt_dim", *(lambda p=p: (t(3, 4, 5), p, [1]) for p in _orders))
add("norm.ScalarOpt_dim_dtype", lambda: ((t(3, 4), 2, [1], True), F64))
add("norm.Scalar", lambda: (t(3, 4), 3))
add("norm.ScalarOpt_dtype", lambda: ((t(3, 4), None), F64))
add("dist.default", *(lambda p=p: (t(3, 4), t(4), p) for p in (2, 1, 3, math.inf)))
add("renorm.default", lambda: (t(3, 4), 2, 0, 1.0), lambda: (t(3, 4, 2), 1, -2, 3.0))
add(
    "logsumexp.default",
    lambda: (t(3, 4, 5), [1]),
    lambda: (t(3, 4, low=-900, high=900), [0, 1], True),
    lambda: (special(-math.inf, 1.0), [0]),
)
add("prod.default", lambda: (t(3, 4),), lambda: (ints(-3, 3, 5),), lambda: (special(2.0, 0.0, 3.0),))
add("prod.dim_int", lambda: (t(3, 4), 1), lambda: (special(0.0, 0.0, 3.0), 0, True))
add("nansum.default", lambda: (special(1.0, NAN, 3.0),), lambda: (t(3, 4), [1], True))
add("count_nonzero.default", lambda: (ints(0, 3, 3, 4),), lambda: (ints(0, 3, 3, 4), 1))
add("count_nonzero.dim_IntList", lambda: (ints(0, 3, 3, 4), [0, 1]))
add("trace.default", lambda: (t(3, 4),), lambda: (t(4, 2),), lambda: (ints(0, 9, 3, 3),))
add("aminmax.default", lambda: (t(3, 4),), lambda: ((t(3, 4),), {"dim": 1, "keepdim": True}))
add(
    "max.dim min.dim",
    lambda: (t(3, 4), 1),
    lambda: (t(3, 4), 0, True),
    lambda: (special(1.0, 3.0, 3.0), 0),
    lambda: (t(), 0),
)
# scans ----------------------------------------------------------------------------------------------------------------
add(
    "cumprod.default",
    lambda: (t(3, 1), 1),
    lambda: (t(3, 4), 1),
    lambda: (t(3, 4), -2),
    lambda: (special(2.0, 0.0, 3.0, 0.0, 4.0), 0),
    lambda: (ints(-3, 3, 5), 0),
)
add(
    "cummax.default cummin.default",
    lambda: (t(3, 4), 1),
    lambda: (t(3, 4), 0),
    lambda: (special(1.0, 3.0, 3.0, NAN, 2.0), 0),
    lambda: (ints(-3, 3, 9), 0),
)
add("logcumsumexp.default", lambda: (t(3, 4), 1), lambda: (t(4, low=-900, high=900), 0), lambda: (t(), 0))
# products, creation, distances -----------------------------------------------------------------------------------------
add("vdot.default", lambda: (t(4), t(4)))
add(
    "addbmm.default",
    lambda: (t(3, 5), t(2, 3, 4), t(2, 4, 5)),
    lambda: ((t(5), t(2, 3, 4), t(2, 4, 5)), {"alpha": 0.5, "beta": 2.0}),
)
add("addr.default", lambda: (t(3, 5), t(3), t(5)), lambda: ((t(5), t(3), t(5)), {"alpha": 0.5, "beta": 2.0}))
add("native_dropout_backward.default", lambda: (t(3, 4), bools(3, 4), 2.5))
add(
    "linspace.default", lambda: ((-1, 2, 7), F64), lambda: ((3, 3, 1), F64), lambda: ((0, 9, 5), {"dtype": torch.int64})
)
add("logspace.default", lambda: ((-1, 2, 7), F64), lambda: ((0, 3, 4, 2.0), F64))
add("linspace.Tensor_Tensor logspace.Tensor_Tensor", lambda: ((special(0.5)[0], special(2.0)[0], 5), F64))
add("linspace.Tensor_Scalar logspace.Tensor_Scalar", lambda: ((special(0.5)[0], 2.0, 5), F64))
add("linspace.Scalar_Tensor logspace.Scalar_Tensor", lambda: ((0.5, special(2.0)[0], 5), F64))
add("_cdist_forward.default", *(lambda p=p: (t(2, 3, 4), t(1, 5, 4), p, 0) for p in (2.0, 1.0, 3.0, math.inf, 0.0)))
add("_euclidean_dist.default", lambda: (t(3, 4), t(5, 4)))
add("_softmax_backward_data.default _log_softmax_backward_data.default", lambda: (t(4, 7), t(4, 7), -1, torch.float64))
add(
    "_safe_softmax.default",
    lambda: (t(4, 7), -1),
    lambda: (torch.stack([special(1, -math.inf), special(-math.inf, -math.inf)]), 1),
)
add("log_sigmoid_forward.default", lambda: (t(3, 4, low=-8, high=8),))
