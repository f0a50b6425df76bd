"""The library functions as the runtime calls them: planned results, strided operands, narrow dtypes, any ATen operator."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from shorthaul.analysis.products import plan
from shorthaul.codegen.library import LIBRARY, LibraryError, library, onednn, writes_out

EQUATIONS = [
    ("mk,nk->mn", "mk", "nk"),
    ("mk,kn->mn", "mk", "kn"),
    ("abk,nk->abn", "abk", "nk"),
    ("abn,abk->nk", "abn", "abk"),
    ("km,kn->nm", "km", "kn"),
    ("bmk,bkn->bmn", "bmk", "bkn"),
    ("bhls,bhsv->bhlv", "bhls", "bhsv"),
    ("bhls,bhlv->bhsv", "bhls", "bhlv"),
    ("a1mk,bkn->abmn", "a1mk", "bkn"),
    ("abmn,bkn->a1mk", "abmn", "bkn"),
    ("k,k->", "k", "k"),
    ("m,n->mn", "m", "n"),
    (",k->k", "", "k"),
    ("mk,k->m", "mk", "k"),
    ("bmk,hkn->bhmn", "bmk", "hkn"),
    ("bmn,bkn->1mk", "bmn", "bkn"),
]
SIZES = {"a": 2, "b": 3, "h": 4, "m": 5, "n": 6, "k": 7, "l": 5, "s": 4, "v": 6, "1": 1}


def operand(letters: str, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """A random tensor; `order`: its dimensions from the outermost in memory."""
    shape = [SIZES[c] for c in letters]
    if order is None:
        return torch.rand(shape, dtype=torch.float64) - 0.5
    return (torch.rand([shape[d] for d in order], dtype=torch.float64) - 0.5).permute(
        [order.index(d) for d in range(len(order))]
    )


def reference(equation: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    operands, y = equation.split("->")
    of_a, of_b = operands.split(",")
    squeezed = [x.squeeze([d for d, c in enumerate(w) if c == "1"]) for w, x in ((of_a, a), (of_b, b))]
    result = torch.einsum(equation.replace("1", ""), *squeezed)
    for d, c in enumerate(y):
        if c == "1":
            result = result.unsqueeze(d)
    return result


def orders(letters: str) -> list[tuple[int, ...]]:
    """Orders of dimensions in memory: all of up to three, some of more."""
    n = len(letters)
    if n <= 3:
        return list(itertools.permutations(range(n)))
    return [tuple(range(n)), (0, 2, 1, 3), (0, 3, 1, 2), (3, 2, 1, 0)]


@pytest.mark.parametrize(("equation", "a", "b"), EQUATIONS)
def test_contract_of_any_layout(equation: str, a: str, b: str) -> None:
    """Operands and results with every order of dimensions in memory."""
    torch.manual_seed(0)
    y_letters = equation.split("->")[1]
    for order_a, order_b in itertools.product(orders(a), orders(b)):
        x, z = operand(a, order_a), operand(b, order_b)
        expected = reference(equation, x, z)
        y = LIBRARY["contract"]({"a": x, "b": z}, {"equation": equation}, {})["y"]
        torch.testing.assert_close(y, expected)
        for order_y in orders(y_letters):
            planned = operand(y_letters, order_y)
            y = LIBRARY["contract"]({"a": x, "b": z}, {"equation": equation}, {"y": planned})["y"]
            torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("equation", ["mk,nk->mn", "abk,nk->abn", "bmk,bkn->bmn", "km,kn->nm"])
@pytest.mark.parametrize("alpha", [1, 0.5])
@pytest.mark.parametrize("bias", ["row", "full", "column"])
def test_contract_with_bias(equation: str, alpha: float, bias: str) -> None:
    torch.manual_seed(0)
    of_a, of_b, of_y = equation.replace("->", ",").split(",")
    a, b = operand(of_a), operand(of_b)
    added = {"row": operand(of_y[-1]), "full": operand(of_y), "column": operand(of_y[-2] + "1")}[bias]
    expected = alpha * reference(equation, a, b) - 2 * added
    for out in ({}, {"y": operand(of_y)}):
        y = LIBRARY["contract"](
            {"a": a, "b": b, "bias": added}, {"equation": equation, "alpha": alpha, "beta": -2}, out
        )["y"]
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("equation", ["mk,nk->mn", "abk,nk->abn", "bmk,bkn->bmn", "abn,abk->nk"])
def test_contract_fills_planned_memory(equation: str) -> None:
    """A dense planned result is filled in place: nothing is allocated and copied."""
    of_a, of_b, of_y = equation.replace("->", ",").split(",")
    planned = operand(of_y)
    y = LIBRARY["contract"]({"a": operand(of_a), "b": operand(of_b)}, {"equation": equation}, {"y": planned})["y"]
    assert y is planned
    assert writes_out("contract", y.device, {"equation": equation}, {})


def test_contraction_of_contiguous_operands_copies_nothing() -> None:
    """The gradients of a linear layer are products of views: the plan never orders dimensions so that they have to be copied."""
    for equation in ("abk,nk->abn", "abn,nk->abk", "abn,abk->nk"):
        p = plan(equation)
        of_a, of_b = equation.split("->")[0].split(",")
        first, second = (of_b, of_a) if p.swap else (of_a, of_b)
        for letters, order, groups in (
            (first, p.order_a, (p.batch, p.rows, p.summed)),
            (second, p.order_b, (p.batch, p.summed, p.columns)),
        ):
            x = operand(letters).permute(order)
            sizes, at = [], 0
            for count in groups:
                sizes.append(int(torch.tensor(x.shape[at : at + count]).prod()) if count else 1)
                at += count
            x.view(sizes)  # raises where a copy would be needed


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolution_gradients_in_both_layouts(transposed: bool, groups: int, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    attributes: dict[str, Any] = {
        "stride": (2, 1),
        "padding": (1,),
        "dilation": (1,),
        "transposed": transposed,
        "output_padding": (0,),
        "groups": groups,
    }
    x = torch.rand(2, 4, 7, 6, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    w = (
        torch.rand(4, 6 // groups if transposed else 4 // groups, 3, 3, dtype=torch.float64)
        .to(memory_format=layout)
        .requires_grad_()
    )
    bias = torch.rand(6 if transposed else 4, dtype=torch.float64)
    y = LIBRARY["aten::convolution"]({"x": x, "weight": w, "bias": bias}, attributes, {})["y"]
    g = torch.rand_like(y)
    y.backward(g)
    gx = LIBRARY["aten::conv_grad_input"]({"g": g, "weight": w}, {**attributes, "size": (7, 6)}, {})["y"]
    gw = LIBRARY["aten::conv_grad_weight"]({"g": g, "x": x}, {**attributes, "size": (3, 3)}, {})["y"]
    torch.testing.assert_close(gx, x.grad)
    torch.testing.assert_close(gw, w.grad)
    if layout is torch.channels_last:
        assert y.is_contiguous(memory_format=layout)
        assert gx.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(
    ("x", "kernel", "stride", "padding", "dilation"),
    [((2, 256, 5, 4), (3, 2), (2, 1), (1, 0), (1, 2)), ((3, 512, 6), (4,), (1,), (3,), (1,)),
     ((1, 128, 3, 4, 3), (2, 2, 2), (1,), (0,), (1,)), ((2, 64, 9000), (3,), (1,), (4,), (5,)), ((1, 64, 9000), (2,), (1,), (0,), (512,))],
)  # fmt: skip
def test_gradients_of_large_weights_and_of_weights_over_long_rows(
    x: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...], last: bool
) -> None:
    """They are products with columns, or one for each tap: nothing but rounding tells them from PyTorch's."""
    torch.manual_seed(0)
    images = torch.rand(x, dtype=torch.float64) - 0.5
    weight = torch.rand(256 if len(x) == 3 else 1024, x[1], *kernel, dtype=torch.float64, requires_grad=True)
    arguments = [list(v) * (len(kernel) // len(v)) for v in (stride, padding, dilation)]
    y = torch.ops.aten.convolution.default(images, weight, None, *arguments, False, [0] * len(kernel), 1)
    g = torch.rand_like(y) - 0.5
    y.backward(g)
    if last:
        images, g = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (images, g))
    attributes = {"stride": stride, "padding": padding, "dilation": dilation, "transposed": False, "output_padding": (0,), "groups": 1}
    for wanted in (weight, weight.detach().movedim(1, -1).contiguous().movedim(-1, 1)):
        full = {**attributes, "size": kernel, "strides": {"y": wanted.stride()}}
        found = LIBRARY["aten::conv_grad_weight"]({"g": g, "x": images}, full, {})["y"]
        torch.testing.assert_close(found, weight.grad, rtol=1e-9, atol=1e-9)
        assert weight.numel() < 1 << 20 or found.stride() == wanted.stride()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize("order", ["mk,kn->mn", "mk,nk->mn", "km,kn->mn", "km,nk->mn"])
@pytest.mark.parametrize("terms", [320, 5000])
def test_products_by_onednn(terms: int, order: str, planned: bool, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where MKL uses half of the processor's vectors. Whether it does, or oneDNN is turned off, changes no more than rounding."""
    torch.manual_seed(0)
    sizes = {"m": 192, "n": 256, "k": terms}
    of_a, of_b = order.split("->")[0].split(",")
    a, b = (torch.rand([sizes[c] for c in w]) - 0.5 for w in (of_a, of_b))
    added = {"bias": torch.rand(sizes["n"])} if bias else {}
    exact = torch.einsum(order, a.double(), b.double()) + (added["bias"].double() if bias else 0)
    used = []
    linear = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(onednn.torch.ops.mkldnn, "_linear_pointwise", lambda *given: used.append(1) or linear(*given))
    for narrow in (True, False):
        monkeypatch.setattr(onednn, "narrow_mkl", lambda narrow=narrow: narrow)
        out = {"y": torch.full((sizes["m"], sizes["n"]), torch.nan)} if planned else {}
        y = LIBRARY["contract"]({"a": a, "b": b, **added}, {"equation": order}, out)["y"]
        assert not planned or y is out["y"]
        torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-3)
    assert len(used) == (0 if (terms, order, bias) == (5000, "km,kn->mn", False) else 1)  # a long sum is a convolution's gradient


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("rank", "kernel", "stride", "groups"),
    [(2, 1, 1, 1), (2, 3, 1, 1), (2, 1, 2, 1), (2, 3, 2, 2), (1, 1, 1, 1), (1, 2, 1, 1), (3, 3, 1, 1)],
)
@pytest.mark.parametrize("last", [True, False])
def test_convolutions_fill_planned_memory_on_a_gpu(rank: int, kernel: int, stride: int, groups: int, last: bool, dtype: Any) -> None:
    """Forward with bias, into memory in channels-last or not, against float64."""

    def laid_out(t: torch.Tensor) -> torch.Tensor:
        return (t.movedim(1, -1).contiguous().movedim(-1, 1) if last else t.contiguous()).cuda()

    generator = torch.Generator().manual_seed(0)
    x, w, bias = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).double() for s in
                  ((4, 16, *[9] * rank), (32, 16 // groups, *[kernel] * rank), (32,)))  # fmt: skip
    arguments = [[stride] * rank, [kernel // 2] * rank, [1] * rank, False, [0] * rank, groups]
    expected = torch.ops.aten.convolution.default(x, w, bias, *arguments)
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    attributes = {k: tuple(v) if isinstance(v, list) else v for k, v in zip(names, arguments, strict=True)}
    narrow = {k: laid_out(t.to(dtype)) for k, t in (("x", x), ("weight", w))}
    tolerance = {"rtol": 1e-2, "atol": 5e-2}  # bfloat16, or TF32 over up to 432 products
    y = laid_out(torch.full(expected.shape, torch.nan, dtype=dtype))
    operands = {"x": narrow["x"], "weight": narrow["weight"], "bias": bias.to(dtype).cuda()}
    found = LIBRARY["aten::convolution"](operands, attributes, {"y": y})
    assert found["y"] is y
    torch.testing.assert_close(y.double().cpu(), expected, **tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_convolutions_add_up_in_float32_on_a_gpu(dtype: torch.dtype) -> None:
    """A gradient of weights: a long sum with a small result, which a library splits into parts."""
    g, x = (torch.randn(1 << 18, n, generator=torch.Generator().manual_seed(n)).to(dtype).cuda() for n in (64, 256))
    y = torch.empty(64, 256, dtype=dtype, device="cuda")
    flags = torch.backends.cuda.matmul
    before = flags.allow_fp16_reduced_precision_reduction, flags.allow_bf16_reduced_precision_reduction
    LIBRARY["contract"]({"a": g, "b": x}, {"equation": "nk,nc->kc", "sums": "float32"}, {"y": y})
    exact = g.double().t() @ x.double()
    rounding = torch.finfo(dtype).eps / 2
    assert float((y.double() - exact).norm() / exact.norm()) < rounding / 2  # as one rounding gives: 0.43 of the largest on average
    assert before == (flags.allow_fp16_reduced_precision_reduction, flags.allow_bf16_reduced_precision_reduction)


def test_call_of_any_operator() -> None:
    x = torch.tensor([[3.0, 1.0, 2.0]])
    attributes = {"target": "aten.sort.default", "arguments": [("operand", "x0"), 1], "keywords": {"descending": True}}
    found = LIBRARY["aten::call"]({"x0": x}, attributes, {})
    assert set(found) == {"y0", "y1"}
    assert found["y0"].tolist() == [[3.0, 2.0, 1.0]]
    assert found["y1"].tolist() == [[0, 2, 1]]
    attributes = {
        "target": "aten._to_copy.default",
        "arguments": [("operand", "x0")],
        "keywords": {"dtype": ("torch", "torch.int64")},
    }
    assert LIBRARY["aten::call"]({"x0": x}, attributes, {})["y0"].dtype is torch.int64
    attributes = {
        "target": "aten.cat.default",
        "arguments": [[("operand", "x0"), ("operand", "x0")], 1],
        "keywords": {},
    }
    assert LIBRARY["aten::call"]({"x0": x}, attributes, {})["y0"].shape == (1, 6)


def test_unknown_operators_and_double_registration_are_refused() -> None:
    with pytest.raises(LibraryError, match=r"has no operator aten\.no_such_thing\.default"):
        LIBRARY["aten::call"]({}, {"target": "aten.no_such_thing.default", "arguments": []}, {})
    with pytest.raises(ValueError, match="contract is registered already"):
        library("contract")(lambda reads, attributes, out: {})


def test_narrow_floats() -> None:
    """bfloat16 products accumulate in float32: 4096 times 2**-8 on top of 1."""
    a = torch.full((1, 4097), 2.0**-8, dtype=torch.bfloat16)
    a[0, 0] = 1
    y = LIBRARY["contract"]({"a": a, "b": torch.ones(1, 4097, dtype=torch.bfloat16)}, {"equation": "mk,nk->mn"}, {})[
        "y"
    ]
    assert y.item() == 17.0
