"""What an INT8 file rounds, read from its Q/DQ nodes: the only source for what a fine-tune simulates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from stages.onnx_files.node_names import WEIGHTED
from stages.onnx_files.quantizing import PASSED_THROUGH
from stages.quantization_aware.rounding import Grid

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class RoundedWeight:
    """The rounded weight of one node.

    Attributes:
        node: Name of the node.
        module: Path of the module that the node is named after.
        values: float32, the weight as the node reads it.
        levels: Steps from zero to the largest value.
        per_channel: Whether each output channel has its scale.
    """

    node: str
    module: str
    values: np.ndarray
    levels: int
    per_channel: bool


@dataclass(frozen=True)
class RoundedFile:
    """The roundings of an INT8 file; activations have their names in the float graph.

    Attributes:
        grids: The grid of each rounded activation.
        forwarded_from: By activation that a node only passes on (a reshape, a split), the activation that it
            reads; both have the same grid.
        readers: By activation, paths of the modules whose nodes read it as their first input.
        weights: The rounded weights.
        producer_types: By activation, the type of the node that computes it.
    """

    grids: Mapping[str, Grid]
    forwarded_from: Mapping[str, str]
    readers: Mapping[str, tuple[str, ...]]
    weights: tuple[RoundedWeight, ...]
    producer_types: Mapping[str, str]

    def origin(self, name: str) -> str:
        """Return the activation from whose range this activation's grid comes."""
        while name in self.forwarded_from:
            name = self.forwarded_from[name]
        return name


def read_rounding(model: onnx.ModelProto) -> RoundedFile:
    """Return what a Q/DQ graph of the stage quantize rounds."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    grids = {
        node.input[0]: _grid(node, constants)
        for node in model.graph.node
        if node.op_type == _Q and node.input[0] not in constants
    }
    forwarded_from: dict[str, str] = {}
    readers: dict[str, list[str]] = {}
    weights: list[RoundedWeight] = []
    for node in model.graph.node:
        read = _rounded_activation(node.input[0], producers) if node.input else None
        if read is not None and read in grids:
            readers.setdefault(read, []).append(module_of(node.name))
            if node.op_type in PASSED_THROUGH:
                # All outputs: a split passes its grid on to every part.
                forwarded_from |= {name: read for name in node.output if grids.get(name) == grids[read]}
        if node.op_type in WEIGHTED and (weight := _weight(node, producers, constants)) is not None:
            weights.append(weight)
    return RoundedFile(
        grids,
        forwarded_from,
        {name: tuple(dict.fromkeys(paths)) for name, paths in readers.items()},
        tuple(weights),
        {name: producers[name].op_type for name in grids if name in producers},
    )


def module_of(node: str) -> str:
    """Return the module that a node is named after: `layer1.0.conv1` for `layer1.0.conv1/Conv`."""
    return node.rpartition("/")[0]


def _grid(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> Grid:
    zero_point = constants[node.input[2]]
    limits = np.iinfo(zero_point.dtype)
    return Grid(float(constants[node.input[1]]), int(zero_point), int(limits.min), int(limits.max))


def _rounded_activation(name: str, producers: Mapping[str, onnx.NodeProto]) -> str | None:
    """Return the activation that the Q/DQ pair before this value rounds; None without such a pair."""
    last = producers.get(name)
    if last is None or last.op_type != _DQ or last.input[0] not in producers:
        return None
    return str(producers[last.input[0]].input[0])


def _weight(
    node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto], constants: Mapping[str, np.ndarray]
) -> RoundedWeight | None:
    dequantize = producers.get(node.input[1])
    if dequantize is None or dequantize.op_type != _DQ or dequantize.input[0] not in constants:
        return None
    steps, scale = constants[dequantize.input[0]].astype(np.float32), constants[dequantize.input[1]]
    shape = [1] * steps.ndim
    if scale.size > 1:
        axis = next((attribute.i for attribute in dequantize.attribute if attribute.name == "axis"), 1)
        shape[axis] = -1
    levels = int(np.abs(steps).max(initial=0.0))
    values = steps * scale.reshape(shape)
    return RoundedWeight(node.name, module_of(node.name), values, levels, scale.size > 1) if levels else None
