"""Insert Q/DQ nodes into a float graph: one recipe for x86 processors, one for TensorRT and OpenVINO.

docs/concepts/quantization.md explains what is quantized and why, with figures.
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
"""Operators that pass INT8 through, so no conversion is needed between two weighted nodes."""

_FLOAT_PREFIXES = ("preprocessing/", "probabilities/")
"""kdpipe's own nodes around the network: pixels and probabilities lose too much in 8 bits."""

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Recipe:
    """The form of the INT8 file for a family of runtimes.

    Both recipes limit the weights to 7 bits: without VNNI, x86 processors add two 8-bit products in 16 bits,
    which saturates with full weights.

    Attributes:
        name: The recipe's name, part of the file's name.
        activations: Type of the activations.
        symmetric: Whether the activations' zero point is 0.
        quantize_bias: Whether biases become int32.
        op_types: Operators that are quantized.
        outputs: Whether the results of weighted nodes are quantized too.
    """

    name: str
    activations: QuantType
    symmetric: bool
    quantize_bias: bool
    op_types: tuple[str, ...]
    outputs: bool

    @property
    def file(self) -> str:
        """Return the file's name."""
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
    """Return the graph with the shapes of all its values, which the quantizer needs.

    ONNX Runtime's graph optimiser is not used: the exporter has folded the normalisations already, and the
    optimiser would split HardSwish in two and add private operator sets.
    """
    with quiet(), tempfile.TemporaryDirectory(prefix="kdpipe-") as folder:
        path = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(model, path, skip_optimization=True)
        except Exception:  # the symbolic inference raises plain Exception for unknown operators
            quant_pre_process(model, path, skip_optimization=True, skip_symbolic_shape=True)
        return onnx.load(path)


def float_nodes(model: onnx.ModelProto, patterns: Sequence[str]) -> set[str]:
    """Return the names of the nodes that stay float: kdpipe's own around the network, and matching ones.

    Args:
        model: The graph.
        patterns: Shell wildcards on node names.

    Raises:
        UsageError: If a pattern matches nothing.
    """
    own = {node.name for node in model.graph.node if node.name.startswith(_FLOAT_PREFIXES)}
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
    """Return the INT8 form of a prepared float graph.

    Logits and the inputs of a softmax are not quantized.

    Args:
        model: The float graph from `prepare`; it stays unchanged.
        ranges: The range of every activation at the recipe's nodes.
        recipe: The form of the INT8 file.
        per_channel: Whether each output channel has its own weight scale.
        skipped: Names of nodes that stay float.
        card: Its facts become the file's metadata, equal to the float file's.

    Raises:
        StageError: If no node was quantized.
    """
    source = onnx.ModelProto()
    source.CopyFrom(model)
    tensor_ranges = {
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
            TensorsData(CalibrationMethod.MinMax, tensor_ranges),
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
    """Count the nodes that quantize, dequantize, and compute."""
    kinds = [node.op_type for node in model.graph.node]
    return {
        "quantize_nodes": kinds.count(_Q),
        "dequantize_nodes": kinds.count(_DQ),
        "other_nodes": sum(kind not in (_Q, _DQ) for kind in kinds),
    }


def _with_constant(model: onnx.ModelProto) -> set[str]:
    """Return the elementwise nodes with a constant operand, such as a linear layer's bias or a layer's scale.

    As an activation with one 8-bit scale for the whole tensor, the constant would lose its precision.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        node.name
        for node in model.graph.node
        if node.op_type in ("Add", "Sub", "Mul", "Div") and constants.intersection(node.input)
    }


def _keep_logits_float(graph: onnx.GraphProto) -> None:
    """Remove a Q/DQ pair at the end of the graph: it would only coarsen the logits."""
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
    """Remove the Q/DQ pair between attention's scores and their softmax.

    Between two conversions ONNX Runtime replaces the softmax by a QLinearSoftmax, which is correct only at an
    output scale of 1/256. With other scales, a transformer's logits differed by 0.4 of their deviation.
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
    """Sort the nodes topologically, with each conversion directly before its first use."""
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
            why="no node that can be quantized is left: quantize.exclude matches them all, or the network "
            f"has none of {', '.join(WEIGHTED)}",
            hint="shorten quantize.exclude, or drop the int8 targets",
        )


def _clean(result: onnx.ModelProto, source: onnx.ModelProto, card: Mapping[str, Any]) -> None:
    """Remove unused operator sets and initialisers, and write the card into the metadata."""
    used = {node.domain for node in result.graph.node}
    for entry in [entry for entry in result.opset_import if entry.domain not in used]:
        result.opset_import.remove(entry)
    read = {name for node in result.graph.node for name in node.input}
    for tensor in [tensor for tensor in result.graph.initializer if tensor.name not in read]:
        result.graph.initializer.remove(tensor)
    # The shapes are those of removed values; every runtime infers its own.
    del result.graph.value_info[:]
    result.producer_name, result.producer_version = source.producer_name, source.producer_version
    write_metadata(result, card)
