"""The two 16-bit floats that a graph can be converted to.

Imports numpy and onnx only when they are needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Half:
    """A 16-bit floating-point type.

    Attributes:
        name: The precision's name in targets, "fp16" or "bf16".
        largest: The largest finite number.
        smallest_normal: The smallest normal number; smaller ones lose digits.
        tensor_type: The type's name in ONNX operator schemas.
        least_opset: The first operator set whose convolutions and poolings take the type.
        refused: Operators that ONNX allows in this type and the parser of TensorRT for RTX 1.7.1 does not.
    """

    name: str
    largest: float
    smallest_normal: float
    tensor_type: str
    least_opset: int
    refused: frozenset[str]

    @property
    def elem_type(self) -> int:
        """Return the type's number in ONNX's `TensorProto.DataType`."""
        import onnx

        names = {"fp16": "FLOAT16", "bf16": "BFLOAT16"}
        return int(onnx.TensorProto.DataType.Value(names[self.name]))

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """Return the float32 values in this type, rounded to nearest, ties to even."""
        import ml_dtypes
        import numpy as np

        result: np.ndarray = values.astype(np.float16 if self.name == "fp16" else ml_dtypes.bfloat16)
        return result


ROUNDED = "__rounded"
"""Suffix of a 16-bit value's name in a graph whose roundings are explicit casts.

The float that follows it has the name without the suffix.
"""

HALVES = {
    "fp16": Half("fp16", 65504.0, 2.0**-14, "tensor(float16)", 13, frozenset({"Celu"})),
    "bf16": Half(
        "bf16",
        (2.0 - 2.0**-7) * 2.0**127,
        2.0**-126,
        "tensor(bfloat16)",
        22,
        frozenset({"Celu", "HardSwish", "LpPool", "Mish"}),
    ),
}
"""By precision. fp16 has eleven binary digits and ends at 65504; bf16 has eight and fp32's range."""
