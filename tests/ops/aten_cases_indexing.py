"""Calls of ATen overloads that order, search and write by index. See `aten_cases`."""

from __future__ import annotations

import torch
from aten_cases import F64, add, bools, ints, t

NAN = float("nan")


def special(*values: float) -> torch.Tensor:
    return torch.tensor(values, **F64)


# order ----------------------------------------------------------------------------------------------------------------
_rows = (
    lambda: (t(3, 7), 1),
    lambda: (t(70, 2), 0, True),
    lambda: (special(1, NAN, 3, 1, NAN, 2), 0),
    lambda: (special(1, NAN, 3, 1, NAN, 2), 0, True),
    lambda: (t(), 0),
    lambda: (ints(0, 3, 9), 0),
)
add("sort.default argsort.default", *_rows)
_stable = (
    lambda: ((ints(0, 3, 9),), {"stable": True, "dim": 0}),
    lambda: ((t(3, 70),), {"stable": True, "dim": 1, "descending": True}),
)
add("sort.stable argsort.stable", *_stable)
add(
    "topk.default",
    lambda: (t(3, 7), 3),
    lambda: (t(70, 2), 2, 0, False),
    lambda: (special(1, NAN, 3), 2),
    lambda: (t(), 1),
)
add("kthvalue.default", lambda: (t(3, 7), 3), lambda: (t(70, 2), 5, 0, True), lambda: (t(), 1))
_median = (lambda: (t(3, 7), 1), lambda: (t(70, 2), 0, True), lambda: (special(1, NAN, 3, 4), 0), lambda: (t(), 0))
add("median.dim nanmedian.dim", *_median)
add(
    "median.default nanmedian.default",
    lambda: (t(3, 6),),
    lambda: (special(1, NAN, 3, 4),),
    lambda: (t(70),),
    lambda: (special(2, 1, 1, 5),),
)
add("mode.default", lambda: (ints(0, 4, 3, 9).double(), 1), lambda: (t(70, 2), 0, True), lambda: (t(), 0))
# search ---------------------------------------------------------------------------------------------------------------
add(
    "searchsorted.Tensor",
    lambda: (torch.sort(t(5))[0], t(3, 4)),
    lambda: ((torch.sort(t(2, 70))[0], t(2, 3)), {"right": True, "out_int32": True}),
    lambda: ((ints(0, 3, 5).sort()[0], ints(0, 3, 4)), {"side": "right"}),
    lambda: (special(1, 2, 3), special(NAN, 1.5)),
    lambda: ((special(3, 1, 2), t(4)), {"sorter": torch.tensor([1, 2, 0])}),
)
add(
    "bucketize.Tensor",
    lambda: (t(3, 4), torch.sort(t(5))[0]),
    lambda: ((ints(0, 9, 4), special(1, 2, 5)), {"right": True}),
)
add(
    "isin.Tensor_Tensor",
    lambda: (ints(0, 9, 3, 4), ints(0, 9, 5)),
    lambda: ((ints(0, 9, 4), ints(0, 9, 2, 2)), {"invert": True}),
)
add("histc.default", lambda: (t(3, 9), 5), lambda: (t(30), 4, -1, 1), lambda: (special(1, 1), 3))
add("nonzero_static.default", *(lambda n=n: ((ints(0, 2, 3, 4),), {"size": n}) for n in (3, 12, 15)),
    lambda: ((special(0, NAN, -1),), {"size": 3, "fill_value": -7}), lambda: ((bools(5),), {"size": 0}),
    lambda: ((t(),), {"size": 2}))  # fmt: skip
# writes by index ------------------------------------------------------------------------------------------------------
_unique = lambda: torch.stack([torch.randperm(4)[:3] for _ in range(5)], 1)  # noqa: E731
add(
    "scatter.src",
    lambda: (t(4, 5), 0, _unique(), t(3, 5)),
    lambda: (t(4, 5), 0, _unique(), t(4, 6)),
    lambda: (t(), 0, torch.tensor(0), t()),
)
add("scatter.value", lambda: (t(4, 5), 0, ints(0, 4, 3, 5), 2.5), lambda: (t(4, 5), 1, ints(0, 5, 2, 3), -1.0))
add(
    "scatter.reduce",
    *(
        lambda r=r: ((ints(0, 4, 4, 5), 0, ints(0, 4, 3, 5), ints(1, 4, 3, 5)), {"reduce": r})
        for r in ("add", "multiply")
    ),
)
_reductions = ("sum", "prod", "mean", "amax", "amin")
add(
    "scatter_reduce.two",
    *(
        lambda r=r, s=s: ((t(4, 5), 0, ints(0, 4, 3, 5), t(3, 5), r), {"include_self": s})
        for r in _reductions
        for s in (True, False)
    ),
    lambda: (special(1, 0, 2), 0, torch.tensor([0, 0, 2]), special(0, 3, 0), "prod"),
    lambda: (special(1, 3, 2), 0, torch.tensor([1, 1, 2]), special(3, 3, 2), "amax"),
)
add(
    "index_add.default",
    lambda: (t(4, 5), 1, ints(0, 5, 3), t(4, 3)),
    lambda: ((t(4, 5), 0, ints(0, 4, 6), t(6, 5)), {"alpha": 2}),
)
add("index_copy.default", lambda: (t(4, 5), 1, torch.tensor([3, 0, 2]), t(4, 3)))
add("index_fill.int_Scalar", lambda: (t(4, 5), 1, torch.tensor([3, -5]), 2.5))
add("index_fill.int_Tensor", lambda: (t(4, 5), 1, torch.tensor([3, 0]), t()))
add(
    "index_reduce.default",
    *(
        lambda r=r, s=s: ((t(4, 5), 0, ints(0, 4, 6), t(6, 5), r), {"include_self": s})
        for r in _reductions[1:]
        for s in (True, False)
    ),
)
add(
    "index_put.default",
    lambda: (t(4, 5, 6), [None, torch.tensor([3, -5])], t(4, 2, 6)),
    lambda: (t(4, 5), [torch.tensor([1, 2, -1]), torch.tensor([0, 3, 4])], t(3)),
    lambda: (t(4, 5), [ints(0, 4, 9)], t(5), True),
    lambda: (t(4, 5, 6), [ints(0, 4, 7), None, ints(0, 6, 7)], t(7, 5), True),
    lambda: (t(4, 5), [bools(4, 5)], t()),
    lambda: (t(4, 5), [None, bools(5)], t(1), True),
    lambda: (t(4, 5), [torch.tensor([True, False, True, True])], t(3, 1)),
    lambda: (t(4, 5), [None, torch.tensor([True, False, True, True, False])], t(4, 3), True),
)
add("_index_put_impl.default _unsafe_index_put.default", lambda: (t(4, 5), [ints(0, 4, 9)], t(5), True))
add("_unsafe_index.Tensor", lambda: (t(4, 5, 6), [None, ints(-5, 5, 2, 3)]))
add("take.default", lambda: (t(3, 4), ints(-12, 12, 2, 5)), lambda: (t(), torch.tensor([0, 0])))
add(
    "put.default",
    lambda: (t(3, 4), torch.tensor([[1, -1], [5, 0]]), t(4)),
    lambda: (t(3, 4), ints(-12, 12, 9), t(9), True),
)
add("masked_scatter.default", lambda: (t(3, 4), bools(4), t(5, 4)), lambda: (t(3, 4), bools(3, 4), t(5, 4)))
add("_unsafe_masked_index.default", lambda: (t(4, 5), bools(3), [ints(0, 4, 2, 3), ints(0, 5, 3)], 2.5))
add("_unsafe_masked_index_put_accumulate.default", lambda: (t(4, 5), bools(6), [ints(0, 4, 6), ints(0, 5, 6)], t(6)))
