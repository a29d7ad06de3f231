"""The two 16-bit floats that a graph can be converted to. Light until numbers are rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Half:
    """name: as in targets. largest, smallest_normal: its range; below the latter digits are lost.
    tensor_type: as ONNX schemas write it. least_opset: the first whose convolutions and poolings take it.
    refused: operators that ONNX allows in it and the parser of TensorRT for RTX 1.7.1 does not.
    """

    name: str
    largest: float
    smallest_normal: float
    tensor_type: str
    least_opset: int
    refused: frozenset[str]

    @property
    def elem_type(self) -> int:
        """ONNX's number of the type."""
        import onnx

        names = {"fp16": "FLOAT16", "bf16": "BFLOAT16"}
        return int(onnx.TensorProto.DataType.Value(names[self.name]))

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """float32 values in this type, ties to even."""
        import ml_dtypes
        import numpy as np

        result: np.ndarray = values.astype(np.float16 if self.name == "fp16" else ml_dtypes.bfloat16)
        return result


ROUNDED = "__rounded"
"""Ends the name of a 16-bit value in a graph whose roundings are written out; the float behind it has the
bare name."""

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
