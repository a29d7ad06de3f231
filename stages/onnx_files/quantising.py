"""Writes Q/DQ nodes into a float graph: one recipe for x86 processors, one for TensorRT and OpenVINO."""

from __future__ import annotations

import difflib
import fnmatch
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

from pipeline.errors import UsageError
from stages.onnx_files.metadata import LOGITS, write_metadata
from stages.onnx_files.quiet import quiet
from stages.onnx_files.ranges import Ranges

OP_TYPES = (
    "Add", "AveragePool", "Clip", "Concat", "Conv", "ConvTranspose", "Flatten", "Gather", "Gemm",
    "GlobalAveragePool", "LeakyRelu", "MatMul", "MaxPool", "Mul", "Pad", "Relu", "Reshape", "Resize",
    "Sigmoid", "Slice", "Softmax", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip

@dataclass(frozen=True)
class Recipe:
    name: str
    activations: QuantType
    symmetric: bool
    reduce_range: bool
    quantise_bias: bool
    @property
    def file(self) -> str:
        return f"student.int8.{self.name}.onnx"

RECIPES = {
    "x86": Recipe("x86", QuantType.QUInt8, False, True, True),
    "signed": Recipe("signed", QuantType.QInt8, True, False, False),
}

def prepared(model: onnx.ModelProto, skip_optimization=True) -> onnx.ModelProto:
    with quiet(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prepared.onnx"
        quant_pre_process(model, path, skip_optimization=skip_optimization)
        return onnx.load(path)

def quantised(model, ranges, recipe, *, per_channel, skipped, op_types=OP_TYPES, float_logits=True, extra=None):
    data = {
        name: (np.array(low, dtype=np.float32), np.array(high, dtype=np.float32))
        for name, low, high in zip(ranges.tensors, ranges.low, ranges.high, strict=True)
    }
    copy = onnx.ModelProto(); copy.CopyFrom(model)
    with quiet():
        quantiser = QDQQuantizer(copy, per_channel, recipe.reduce_range, QuantType.QInt8, recipe.activations,
            TensorsData(CalibrationMethod.MinMax, data), [], sorted(skipped), list(op_types),
            {"ActivationSymmetric": recipe.symmetric, "WeightSymmetric": True, "QuantizeBias": recipe.quantise_bias, **(extra or {})})
        quantiser.quantize_model()
    found = quantiser.model.model
    if float_logits:
        producer = {o: n for n in found.graph.node for o in n.output}
        dq = producer[LOGITS]
        if dq.op_type == "DequantizeLinear":
            q = producer[dq.input[0]]
            src = q.input[0]
            node = producer[src]
            for n in found.graph.node:
                for i, x in enumerate(n.input):
                    if x == src: n.input[i] = LOGITS
            for i, x in enumerate(node.output):
                if x == src: node.output[i] = LOGITS
            found.graph.node.remove(dq); found.graph.node.remove(q)
    return found
