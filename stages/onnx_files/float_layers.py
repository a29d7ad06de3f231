"""List the layers of an INT8 file that compute in float, read from its graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from stages.onnx_files.node_names import WEIGHTED
from stages.onnx_files.quantizing import float_nodes

REASON_UNKNOWN = "the quantizer left it in float"


def quantized_layers(model: onnx.ModelProto) -> list[str]:
    """Return the names of the weighted nodes of a Q/DQ graph with 8-bit inputs, in graph order."""
    return [name for name, floats in _weighted(model).items() if not floats]


def float_layers(model: onnx.ModelProto, why: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the weighted nodes of a Q/DQ graph that compute in float, in graph order.

    Args:
        model: The Q/DQ graph.
        why: Known reasons by node name.

    Returns:
        Mappings of `layer` (the node's name) and `why` (the reason).
    """
    return [
        {"layer": name, "why": why.get(name, REASON_UNKNOWN)}
        for name, floats in _weighted(model).items()
        if floats
    ]


def names_left_float(file: Path) -> list[str]:
    """Return the student's own weighted nodes that compute in float in an INT8 file, in graph order."""
    own = float_nodes(model := onnx.load(file), [])
    return [name for name, floats in _weighted(model).items() if floats and name not in own]


def _weighted(model: onnx.ModelProto) -> dict[str, bool]:
    """Return for each weighted node whether an input is float."""
    conversions = {
        name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    return {
        node.name: not conversions.issuperset(node.input[:2])
        for node in model.graph.node
        if node.op_type in WEIGHTED
    }
