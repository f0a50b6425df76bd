"""Element types of containers and scalars.

A `DType` is one of the constants below; equality is identity. Names are PyTorch's and NumPy's.
bfloat16 has no NumPy type: the interpreter holds such values as float32 that were rounded to bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class DType:
    """An element type: `kind` is "float", "int", "uint" or "bool"; `bits` its width in memory."""

    name: str
    kind: str
    bits: int

    @property
    def itemsize(self) -> int:
        """Bytes an element takes in memory."""
        return max(1, self.bits // 8)

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def numpy(self) -> np.dtype:
        """The NumPy type that the interpreter computes with."""
        return np.dtype("float32" if self.name == "bfloat16" else self.name)

    @property
    def compute(self) -> DType:
        """The type that arithmetic on this type runs in: 16-bit floats compute in float32."""
        return float32 if self.is_float and self.bits < 32 else self

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple:
        return dtype, (self.name,)


float64 = DType("float64", "float", 64)
float32 = DType("float32", "float", 32)
bfloat16 = DType("bfloat16", "float", 16)
float16 = DType("float16", "float", 16)
int64 = DType("int64", "int", 64)
int32 = DType("int32", "int", 32)
int16 = DType("int16", "int", 16)
int8 = DType("int8", "int", 8)
uint8 = DType("uint8", "uint", 8)
bool_ = DType("bool", "bool", 8)

DTYPES: dict[str, DType] = {
    d.name: d for d in (float64, float32, bfloat16, float16, int64, int32, int16, int8, uint8, bool_)
}

_RANK = {"bool": 0, "uint8": 1, "int8": 1, "int16": 2, "int32": 3, "int64": 4,
         "float16": 5, "bfloat16": 5, "float32": 6, "float64": 7}  # fmt: skip


def dtype(name: str) -> DType:
    """The type of that name; raises ValueError with the supported names otherwise."""
    found = DTYPES.get(name.removeprefix("torch."))
    if found is None:
        raise ValueError(f"dtype {name} is not supported; supported are {', '.join(DTYPES)}")
    return found


def promote(*types: DType) -> DType:
    """PyTorch's promotion between tensors of equal standing (no rule for Python numbers or 0-d tensors)."""
    best = types[0]
    for t in types[1:]:
        if t is best:
            continue
        if {t.name, best.name} == {"float16", "bfloat16"}:
            best = float32
        elif {t.name, best.name} == {"uint8", "int8"}:
            best = int16
        elif _RANK[t.name] > _RANK[best.name]:
            best = t
    return best


def round_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 values to the nearest bfloat16 (ties to even), kept as float32; NaN stays NaN."""
    f = np.array(values, dtype=np.float32, order="C")  # keeps scalars scalars, unlike ascontiguousarray
    bits = f.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(f), f, rounded.view(np.float32))
