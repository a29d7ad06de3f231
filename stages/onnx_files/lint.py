"""Check a Q/DQ file against the limits of TensorRT's ONNX parser. Needs only onnx.

Each rule matches a known refusal or silent error of the parser: it takes only signed INT8 with zero point 0,
and no quantized bias.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

OPSET_LEAST = 19
"""The first operator set whose Q/DQ nodes TensorRT reads in full."""

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_STANDARD_DOMAINS = ("", "ai.onnx")
_WEIGHT_INPUT = 1
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def tensorrt_ready(path: Path) -> list[str]:
    """Return a sentence for each reason that TensorRT cannot use this file; empty if it can."""
    model = onnx.load(path, load_external_data=False)
    graph = _Graph.of(model)
    return [
        *_opset(model),
        *_single_file(model),
        *_batch(model),
        *(finding for node in graph.nodes if node.op_type in (_Q, _DQ) for finding in _pair(node, graph)),
        *(finding for node in graph.nodes if node.op_type in _WEIGHTED for finding in _weight(node, graph)),
    ]


@dataclass(frozen=True)
class _Graph:
    """A graph with indexes by value name.

    Attributes:
        nodes: The nodes.
        constants: The tensor of every initialiser and Constant node.
        producers: The node that computes each value.
    """

    nodes: tuple[NodeProto, ...]
    constants: Mapping[str, TensorProto]
    producers: Mapping[str, NodeProto]

    @staticmethod
    def of(model: onnx.ModelProto) -> _Graph:
        """Index a model's graph."""
        nodes = tuple(model.graph.node)
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        constants |= {
            node.output[0]: attribute.t
            for node in nodes
            for attribute in node.attribute
            if node.op_type == "Constant" and attribute.name == "value"
        }
        return _Graph(nodes, constants, {name: node for node in nodes for name in node.output})

    def hidden(self, name: str) -> bool:
        """Return whether an Identity node is between a constant and its use."""
        node = self.producers.get(name)
        if node is None or node.op_type != "Identity":
            return False
        return node.input[0] in self.constants or self.hidden(node.input[0])


def _opset(model: onnx.ModelProto) -> Iterator[str]:
    for entry in model.opset_import:
        if entry.domain not in _STANDARD_DOMAINS:
            yield f"It imports the operator set {entry.domain!r}, which is not one of ONNX's own."
        elif entry.version < OPSET_LEAST:
            yield f"Its operator set is {entry.version}, expected at least {OPSET_LEAST}."


def _single_file(model: onnx.ModelProto) -> Iterator[str]:
    outside = [
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data
    ]
    if outside:
        yield f"It is not a single file: {len(outside)} weights are outside of it, {outside[0]} first."


def _batch(model: onnx.ModelProto) -> Iterator[str]:
    initialisers = {tensor.name for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        if value.name in initialisers:
            continue
        dims = value.type.tensor_type.shape.dim
        if not dims or not dims[0].dim_param:
            yield f"The batch dimension of {value.name} is not symbolic."


def _pair(node: NodeProto, graph: _Graph) -> Iterator[str]:
    """Check a Q or DQ node: signed 8 bits, zero point 0, constant scales."""
    source = graph.constants.get(node.input[0])
    if node.op_type == _DQ and source is not None and source.data_type == TensorProto.INT32:
        yield f"{node.name} dequantizes an int32 bias; biases must be float."
        return
    if any(graph.hidden(name) for name in node.input if name):
        yield f"An Identity node hides a constant of {node.name}."
        return
    scale = graph.constants.get(node.input[1])
    if scale is None:
        yield f"The scale of {node.name} is not a constant."
    elif not (numpy_helper.to_array(scale) > 0).all():
        yield f"A scale of {node.name} is not above zero."
    elif np.size(numpy_helper.to_array(scale)) > 1 and source is None and node.op_type == _Q:
        yield f"{node.name} quantizes an activation with several scales, expected one."
    yield from _zero_point(node, graph, source)


def _zero_point(node: NodeProto, graph: _Graph, source: TensorProto | None) -> Iterator[str]:
    if len(node.input) > 2 and node.input[2]:
        zero = graph.constants.get(node.input[2])
        if zero is None:
            yield f"The zero point of {node.name} is not a constant."
        elif zero.data_type != TensorProto.INT8:
            yield f"The zero point of {node.name} is {_type_name(zero.data_type)}, expected int8."
        elif numpy_helper.to_array(zero).any():
            yield f"The zero point of {node.name} is not zero."
        return
    output_type = next((a.i for a in node.attribute if a.name == "output_dtype"), TensorProto.UINT8)
    if node.op_type == _Q and output_type != TensorProto.INT8:
        yield f"{node.name} has no zero point and so quantizes to {_type_name(output_type)}, expected int8."
    if node.op_type == _DQ and source is not None and source.data_type != TensorProto.INT8:
        yield f"{node.name} dequantizes {_type_name(source.data_type)}, expected int8."


def _weight(node: NodeProto, graph: _Graph) -> Iterator[str]:
    """Check the weight of a convolution or product: not hidden, and scaled along its output channels."""
    name = node.input[_WEIGHT_INPUT]
    if graph.hidden(name):
        yield f"An Identity node hides the weight of {node.name}."
        return
    producer = graph.producers.get(name)
    if producer is None or producer.op_type != _DQ or producer.input[0] not in graph.constants:
        return
    scale, weight = graph.constants.get(producer.input[1]), graph.constants[producer.input[0]]
    if scale is None or np.prod(scale.dims, dtype=int) <= 1:
        return
    rank = len(weight.dims)
    axis = next((a.i for a in producer.attribute if a.name == "axis"), 1) % rank
    expected = _output_axis(node, rank)
    if axis != expected:
        yield (
            f"The weight of {node.name} has its scales along axis {axis}; its output channels "
            f"are axis {expected}."
        )


def _output_axis(node: NodeProto, rank: int) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        transposed = next((a.i for a in node.attribute if a.name == "transB"), 0)
        return 0 if transposed else 1
    return rank - 1


def _type_name(kind: int) -> str:
    return str(helper.tensor_dtype_to_np_dtype(kind))
