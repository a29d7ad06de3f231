"""What an INT8 file rounds, read from its Q/DQ nodes: the one truth of what a fine-tune simulates."""

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
    """The weight of one node. module: the path that the node is named after. values: float32, as
    the node is given them. levels: steps from zero to the largest. per_channel: a scale for each
    output channel.
    """

    node: str
    module: str
    values: np.ndarray
    levels: int
    per_channel: bool


@dataclass(frozen=True)
class RoundedFile:
    """grids: by the float graph's name of each activation that is rounded. like: activations that a node
    hands on from another, whose grid is theirs. readers: by activation, the modules whose nodes are
    given it as their first input. weights: of nodes with a rounded weight. made_by: by activation, the type
    of the node whose result it is.
    """

    grids: Mapping[str, Grid]
    like: Mapping[str, str]
    readers: Mapping[str, tuple[str, ...]]
    weights: tuple[RoundedWeight, ...]
    made_by: Mapping[str, str]

    def origin(self, name: str) -> str:
        """The activation whose grid this one has."""
        while name in self.like:
            name = self.like[name]
        return name


def read_rounding(model: onnx.ModelProto) -> RoundedFile:
    """What a Q/DQ graph, as the stage quantize writes it, rounds."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    grids = {
        node.input[0]: _grid(node, constants)
        for node in model.graph.node
        if node.op_type == _Q and node.input[0] not in constants
    }
    like: dict[str, str] = {}
    readers: dict[str, list[str]] = {}
    weights: list[RoundedWeight] = []
    for node in model.graph.node:
        given = _undone(node.input[0], producers) if node.input else None
        if given is not None and given in grids:
            readers.setdefault(given, []).append(module_of(node.name))
            if node.op_type in PASSED_THROUGH:
                # All of them: a split hands its grid on to every part.
                like |= {left: given for left in node.output if grids.get(left) == grids[given]}
        if node.op_type in WEIGHTED and (weight := _weight(node, producers, constants)) is not None:
            weights.append(weight)
    return RoundedFile(
        grids,
        like,
        {name: tuple(dict.fromkeys(paths)) for name, paths in readers.items()},
        tuple(weights),
        {name: producers[name].op_type for name in grids if name in producers},
    )


def module_of(node: str) -> str:
    """The module that a node is named after: `layer1.0.conv1` of `layer1.0.conv1/Conv`."""
    return node.rpartition("/")[0]


def _grid(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> Grid:
    zero_point = constants[node.input[2]]
    ends = np.iinfo(zero_point.dtype)
    return Grid(float(constants[node.input[1]]), int(zero_point), int(ends.min), int(ends.max))


def _undone(name: str, producers: Mapping[str, onnx.NodeProto]) -> str | None:
    """The activation that a Q/DQ pair before this value rounds."""
    last = producers.get(name)
    if last is None or last.op_type != _DQ or last.input[0] not in producers:
        return None
    return str(producers[last.input[0]].input[0])


def _weight(
    node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto], constants: Mapping[str, np.ndarray]
) -> RoundedWeight | None:
    back = producers.get(node.input[1])
    if back is None or back.op_type != _DQ or back.input[0] not in constants:
        return None
    whole, scale = constants[back.input[0]].astype(np.float32), constants[back.input[1]]
    shape = [1] * whole.ndim
    if scale.size > 1:
        axis = next((attribute.i for attribute in back.attribute if attribute.name == "axis"), 1)
        shape[axis] = -1
    levels = int(np.abs(whole).max(initial=0.0))
    values = whole * scale.reshape(shape)
    return RoundedWeight(node.name, module_of(node.name), values, levels, scale.size > 1) if levels else None
