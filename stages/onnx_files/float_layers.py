"""Which layers of an INT8 file compute in float, read from its graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from stages.onnx_files.node_names import WEIGHTED
from stages.onnx_files.quantizing import float_nodes

REFUSED = "the quantizer leaves it so"


def quantized_layers(model: onnx.ModelProto) -> list[str]:
    """Names of the weighted nodes of a Q/DQ graph that are given 8 bits, in graph order."""
    return [name for name, floats in _weighted(model).items() if not floats]


def float_layers(model: onnx.ModelProto, why: Mapping[str, str]) -> list[dict[str, str]]:
    """The weighted nodes of a Q/DQ graph that compute in float, in graph order: `layer` and `why`.

    Read from the graph itself; `why` by node name is what was wanted.
    """
    return [
        {"layer": name, "why": why.get(name, REFUSED)} for name, floats in _weighted(model).items() if floats
    ]


def names_left_float(file: Path) -> list[str]:
    """Names of the student's own weighted nodes that compute in float in an INT8 file, in graph order."""
    own = float_nodes(model := onnx.load(file), [])
    return [name for name, floats in _weighted(model).items() if floats and name not in own]


def _weighted(model: onnx.ModelProto) -> dict[str, bool]:
    """Whether each weighted node is given floats."""
    conversions = {
        name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    return {
        node.name: not conversions.issuperset(node.input[:2])
        for node in model.graph.node
        if node.op_type in WEIGHTED
    }
