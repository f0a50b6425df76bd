"""ONNX element types in PyTorch, and tensors of a model file as PyTorch tensors.

Types that PyTorch has no arithmetic for are *held* in a wider one: 4-bit and 2-bit integers as int8 or uint8, float4e2m1 as
float32. What holds them always has a value of the narrow type, so that nothing but `Cast` and quantization needs to know.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

from shorthaul.errors import OnnxError

HELD: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32, TensorProto.DOUBLE: torch.float64, TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16, TensorProto.BOOL: torch.bool,
    TensorProto.INT8: torch.int8, TensorProto.INT16: torch.int16, TensorProto.INT32: torch.int32, TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8, TensorProto.UINT16: torch.uint16, TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64, TensorProto.COMPLEX64: torch.complex64, TensorProto.COMPLEX128: torch.complex128,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn, TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2, TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    TensorProto.INT4: torch.int8, TensorProto.UINT4: torch.uint8, TensorProto.FLOAT4E2M1: torch.float32,
}  # fmt: skip
# types that only newer releases of onnx and PyTorch have
for _name, _held in (("FLOAT8E8M0", getattr(torch, "float8_e8m0fnu", None)), ("INT2", torch.int8), ("UINT2", torch.uint8)):
    if hasattr(TensorProto, _name) and _held is not None:
        HELD[getattr(TensorProto, _name)] = _held

_NARROW_INTEGERS = {getattr(TensorProto, n) for n in ("INT4", "UINT4", "INT2", "UINT2") if hasattr(TensorProto, n)}
_FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
# bits an element takes in raw data, where it is not the size of the type that holds it
_BITS: dict[int, int] = {TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.FLOAT4E2M1: 4} | {
    getattr(TensorProto, n): 2 for n in ("INT2", "UINT2") if hasattr(TensorProto, n)
}


def type_name(elem: int | None) -> str:
    """The name of an element type: `FLOAT`, `INT64`; `?` where it is not known."""
    return TensorProto.DataType.Name(elem) if elem in TensorProto.DataType.values() else "?" if elem is None else str(elem)


def held(elem: int, where: str) -> torch.dtype:
    """The PyTorch type that holds an element type. Raises OnnxError naming `where` for strings and types unknown here."""
    found = HELD.get(elem)
    if found is None:
        raise OnnxError(f"{where}: element type {type_name(elem)} has no PyTorch type", "Only numbers and booleans can be computed with.")
    return found


def is_float(elem: int | None) -> bool:
    """Whether gradients exist for tensors of this type."""
    return elem in _FLOATS


def bits_of(elem: int) -> int:
    """Bits an element takes in a file."""
    return _BITS.get(elem, HELD[elem].itemsize * 8)


def to_torch(array: np.ndarray, elem: int) -> torch.Tensor:
    """A NumPy array (with the extension types of `ml_dtypes` where onnx uses them) as the tensor that holds it; copies."""
    dtype = HELD[elem]
    if elem in _NARROW_INTEGERS:
        return torch.from_numpy(np.array(array, dtype="int8" if dtype is torch.int8 else "uint8"))
    if elem == TensorProto.FLOAT4E2M1:
        return torch.from_numpy(np.array(array, dtype="float32"))
    array = np.array(array, order="C", copy=True)  # keeps rank 0, which ascontiguousarray does not
    if array.dtype.type.__module__ != "numpy":  # an extension type
        width = np.dtype(f"u{array.dtype.itemsize}")
        return torch.from_numpy(array.view(width).copy()).view(dtype)
    return torch.from_numpy(array).view(dtype) if array.dtype.itemsize == dtype.itemsize else torch.from_numpy(array).to(dtype)


def to_numpy(tensor: torch.Tensor, elem: int) -> np.ndarray:
    """The tensor as onnx's NumPy array of the element type."""
    tensor = tensor.detach().cpu().contiguous()
    target = onnx.helper.tensor_dtype_to_np_dtype(elem)
    if elem in _NARROW_INTEGERS or elem == TensorProto.FLOAT4E2M1:
        return tensor.numpy().astype(target)
    if tensor.dtype is not HELD[elem]:
        tensor = tensor.to(HELD[elem])
    if tensor.dtype.itemsize == 1 or tensor.dtype is torch.bfloat16:
        plain = tensor.view(torch.uint8 if tensor.dtype.itemsize == 1 else torch.int16)
        return plain.numpy().view(target)
    return tensor.numpy()


def elements(dims: Iterable[int]) -> int:
    """The product of dimensions."""
    return math.prod(int(d) for d in dims)


_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def check_size(t: TensorProto, stored: int | None = None) -> None:
    """Refuse a tensor whose data are not what its dimensions say, before anything of that size is allocated.

    stored: bytes in the external file, where the data are there.
    """
    where = f"tensor {t.name!r}"
    if any(d < 0 for d in t.dims):
        raise OnnxError(f"{where} declares the dimensions {list(t.dims)}")
    if t.data_type == TensorProto.STRING:
        if len(t.string_data) != elements(t.dims):
            raise OnnxError(f"{where} declares {elements(t.dims)} strings and holds {len(t.string_data)}")
        return
    held(t.data_type, where)
    count, bits = elements(t.dims), bits_of(t.data_type)
    wanted = (count * bits + 7) // 8
    if stored is None and t.HasField("raw_data"):
        stored = len(t.raw_data)
    if stored is not None:
        if stored != wanted:
            raise OnnxError(f"{where} declares {list(t.dims)} of {type_name(t.data_type)}, which is {wanted} bytes, and holds {stored}",
                            "The file is damaged or cut short; export the model again.")  # fmt: skip
        return
    have = max((len(getattr(t, f)) for f in _FIELDS), default=0)
    per = 2 if t.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1
    packed = (count * bits + 7) // 8 if bits < 8 else count * per
    if have != packed:
        raise OnnxError(f"{where} declares {list(t.dims)} of {type_name(t.data_type)} and holds {have} values",
                        "The file is damaged or cut short; export the model again.")  # fmt: skip


def tensor_of(t: TensorProto) -> torch.Tensor:
    """The tensor of a TensorProto whose data are inside it. Raises OnnxError where they do not fit its dimensions."""
    check_size(t)
    try:
        return to_torch(numpy_helper.to_array(t), t.data_type)
    except (ValueError, TypeError) as e:
        raise OnnxError(f"tensor {t.name!r} cannot be read: {e}") from e


def sparse_tensor_of(t: onnx.SparseTensorProto) -> torch.Tensor:
    """The dense tensor of a sparse one. Raises OnnxError for indices outside its dimensions."""
    values, indices = tensor_of(t.values), tensor_of(t.indices)
    count, where = elements(t.dims), f"sparse tensor {t.values.name!r}"
    if any(d < 0 for d in t.dims) or count > 2**31:
        raise OnnxError(f"{where} declares the dimensions {list(t.dims)}, more than can be held densely")
    if indices.dim() == 2:
        if indices.shape[1] != len(t.dims) or any(bool((indices[:, i] >= d).any()) for i, d in enumerate(t.dims)):
            raise OnnxError(f"{where} has indices outside its dimensions {list(t.dims)}")
        strides = torch.tensor([math.prod(t.dims[i + 1 :]) for i in range(len(t.dims))], dtype=torch.int64)
        indices = (indices * strides).sum(1)
    if indices.numel() != values.numel() or (indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= count)):
        raise OnnxError(f"{where} has indices outside its dimensions {list(t.dims)}")
    dense = torch.zeros(count, dtype=values.dtype)
    dense[indices] = values
    return dense.reshape(tuple(t.dims))
