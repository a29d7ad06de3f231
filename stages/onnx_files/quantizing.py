"""Writes Q/DQ nodes into a float graph: one recipe for x86 processors, one for TensorRT and OpenVINO.

What is quantized, and why, is told with figures in docs/concepts/quantization.md.
"""

from __future__ import annotations

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

from pipeline.errors import StageError
from stages.onnx_files.metadata import LOGITS, write_metadata
from stages.onnx_files.node_names import WEIGHTED, matching_nodes
from stages.onnx_files.quiet import quiet
from stages.onnx_files.ranges import Ranges

PASSED_THROUGH = (
    "AveragePool",
    "Concat",
    "Flatten",
    "Gather",
    "MaxPool",
    "Pad",
    "Reshape",
    "Resize",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
"""What takes INT8 as it comes, so that no conversion stands between two weighted nodes."""

_SHIPPED_FLOAT = ("preprocessing/", "probabilities/")
"""kdpipe's own nodes around the network: pixels and probabilities lose too much in 8 bits."""

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Recipe:
    """How a family of runtimes wants its INT8 file. Both keep the weights to 7 bits: without VNNI,
    x86 processors add two 8-bit products in 16 bits, which saturates with full weights.

    activations, symmetric: type and form of the activations. quantize_bias: biases become int32.
    op_types: what is quantized. outputs: whether the results of weighted nodes are, too.
    """

    name: str
    activations: QuantType
    symmetric: bool
    quantize_bias: bool
    op_types: tuple[str, ...]
    outputs: bool

    @property
    def file(self) -> str:
        return f"student.int8.{self.name}.onnx"


RECIPES = {
    "x86": Recipe(
        name="x86",
        activations=QuantType.QUInt8,
        symmetric=False,
        quantize_bias=True,
        op_types=(*WEIGHTED, *PASSED_THROUGH, "Clip", "Relu"),
        outputs=True,
    ),
    "signed": Recipe(
        name="signed",
        activations=QuantType.QInt8,
        symmetric=True,
        quantize_bias=False,
        op_types=(*WEIGHTED, *PASSED_THROUGH),
        outputs=False,
    ),
}


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the shapes of all its values, which the quantizer needs.

    ONNX Runtime's graph optimiser stays out of it: the exporter has folded the normalisations
    already, and it would split HardSwish in two and leave private operator sets behind.
    """
    with quiet(), tempfile.TemporaryDirectory(prefix="kdpipe-") as folder:
        path = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(model, path, skip_optimization=True)
        except Exception:  # the symbolic inference raises plain Exception for operators it does not know
            quant_pre_process(model, path, skip_optimization=True, skip_symbolic_shape=True)
        return onnx.load(path)


def float_nodes(model: onnx.ModelProto, patterns: Sequence[str]) -> set[str]:
    """Names of the nodes that stay float: kdpipe's own around the network, and those the patterns match.

    patterns: shell wildcards on node names. Raises UsageError for one that matches nothing.
    """
    own = {node.name for node in model.graph.node if node.name.startswith(_SHIPPED_FLOAT)}
    return own | matching_nodes(model, patterns, "quantize.exclude")


def quantized(
    model: onnx.ModelProto,
    ranges: Ranges,
    recipe: Recipe,
    *,
    per_channel: bool,
    skipped: set[str],
    card: Mapping[str, Any],
) -> onnx.ModelProto:
    """The INT8 form of a prepared float graph; the given graph is left as it is.

    ranges: of every activation at the recipe's nodes. per_channel: a weight scale for each output
    channel. skipped: names of nodes that stay float. card: goes into the metadata, as in the float
    file. Logits, and what goes into a softmax, are not quantized.
    """
    source = onnx.ModelProto()
    source.CopyFrom(model)
    found = {
        name: (np.array(low, dtype=np.float32), np.array(high, dtype=np.float32))
        for name, low, high in zip(ranges.tensors, ranges.low, ranges.high, strict=True)
    }
    options = {
        "ActivationSymmetric": recipe.symmetric,
        "WeightSymmetric": True,
        "QuantizeBias": recipe.quantize_bias,
        "OpTypesToExcludeOutputQuantization": [] if recipe.outputs else list(WEIGHTED),
    }
    with quiet():
        quantizer = QDQQuantizer(
            source,
            per_channel,
            True,  # reduce_range, see Recipe
            QuantType.QInt8,
            recipe.activations,
            TensorsData(CalibrationMethod.MinMax, found),
            [],
            sorted(skipped | _with_constant(model)),
            list(recipe.op_types),
            options,
        )
        quantizer.quantize_model()
    result: onnx.ModelProto = quantizer.model.model
    _keep_logits_float(result.graph)
    _keep_scores_float(result.graph)
    _sort(result.graph)
    _require_quantized(result)
    _clean(result, model, card)
    return result


def count_nodes(model: onnx.ModelProto) -> dict[str, int]:
    """How many nodes quantize, dequantize, and compute."""
    kinds = [node.op_type for node in model.graph.node]
    return {
        "quantize_nodes": kinds.count(_Q),
        "dequantize_nodes": kinds.count(_DQ),
        "other_nodes": sum(kind not in (_Q, _DQ) for kind in kinds),
    }


def _with_constant(model: onnx.ModelProto) -> set[str]:
    """Elementwise nodes with a constant operand: a linear layer's bias, a layer's scale. As an
    activation of 8 bits for the whole tensor it would lose what it is there for."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        node.name
        for node in model.graph.node
        if node.op_type in ("Add", "Sub", "Mul", "Div") and constants.intersection(node.input)
    }


def _keep_logits_float(graph: onnx.GraphProto) -> None:
    """Takes away a Q/DQ pair at the very end: it would only coarsen the answer."""
    producers = {name: node for node in graph.node for name in node.output}
    last = producers[LOGITS]
    if last.op_type != _DQ or last.input[0] not in producers:
        return
    pair = producers[last.input[0]]
    unquantized = pair.input[0]
    for node in graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == unquantized:
                    names[position] = LOGITS
    graph.node.remove(last)
    graph.node.remove(pair)


def _keep_scores_float(graph: onnx.GraphProto) -> None:
    """Takes away the Q/DQ pair between attention's scores and their softmax.

    Between two conversions ONNX Runtime makes it a QLinearSoftmax, which is true to its output only
    at a scale of 1/256: with any other, a transformer's logits went wrong by 0.4 of their deviation.
    """
    producers = {name: node for node in graph.node for name in node.output}
    for softmax in [node for node in graph.node if node.op_type == "Softmax"]:
        last = producers.get(softmax.input[0])
        if last is None or last.op_type != _DQ or last.input[0] not in producers:
            continue
        pair = producers[last.input[0]]
        softmax.input[0] = pair.input[0]
        for node in (last, pair):
            if not any(node.output[0] in other.input for other in graph.node):
                graph.node.remove(node)


def _sort(graph: onnx.GraphProto) -> None:
    """Puts every node after what it reads, and each conversion right before its first use."""
    producers = {name: node for node in graph.node for name in node.output}
    ordered: list[onnx.NodeProto] = []
    placed: set[str] = set()

    def place(node: onnx.NodeProto) -> None:
        if node.output[0] in placed:
            return
        placed.add(node.output[0])
        for name in node.input:
            if name in producers:
                place(producers[name])
        ordered.append(node)

    for node in graph.node:
        place(node)
    del graph.node[:]
    graph.node.extend(ordered)


def _require_quantized(model: onnx.ModelProto) -> None:
    if not any(node.op_type == _DQ for node in model.graph.node):
        raise StageError(
            "Nothing of the student was quantized.",
            where="stage quantize",
            why="no node that can be quantized is left: quantize.exclude takes them all, or the network "
            f"has none of {', '.join(WEIGHTED)}",
            hint="shorten quantize.exclude, or drop the int8 targets",
        )


def _clean(result: onnx.ModelProto, source: onnx.ModelProto, card: Mapping[str, Any]) -> None:
    """Leaves the operator sets in use, the card, and no initialiser that nothing reads."""
    used = {node.domain for node in result.graph.node}
    for entry in [entry for entry in result.opset_import if entry.domain not in used]:
        result.opset_import.remove(entry)
    read = {name for node in result.graph.node for name in node.input}
    for tensor in [tensor for tensor in result.graph.initializer if tensor.name not in read]:
        result.graph.initializer.remove(tensor)
    # Shapes of values that are no more; every runtime infers its own.
    del result.graph.value_info[:]
    result.producer_name, result.producer_version = source.producer_name, source.producer_version
    write_metadata(result, card)
