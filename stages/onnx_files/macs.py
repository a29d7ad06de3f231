"""Count the multiply-accumulates of each weighted node of a graph."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx

from stages.onnx_files.quantizing import WEIGHTED


def macs_by_node(model: onnx.ModelProto) -> dict[str, int]:
    """Return the multiply-accumulates of one image in each weighted node, by name.

    Args:
        model: The graph with shapes inferred; a dimension without a number, such as the batch, counts as 1.
    """
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    shapes = {
        value.name: [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim] for value in values
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    return {node.name: _macs(node, shapes) for node in model.graph.node if node.op_type in WEIGHTED}


def _macs(node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> int:
    first, second = (shapes.get(name, []) for name in node.input[:2])
    result = shapes.get(node.output[0], [])
    if not first or not second or not result:
        return 1
    if node.op_type == "Conv":  # weight (out, in / groups, ...): each output value sums over in / groups
        return math.prod(result) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":  # weight (in, out / groups, ...): each input value is spread
        return math.prod(first) * math.prod(second[1:])
    transposed = node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(result) * first[0 if transposed else -1]
