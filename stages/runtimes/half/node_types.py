"""Convert the nodes of a float graph to a 16-bit type, with a cast where a node takes the other type."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.runtimes.half.kinds import Half
from stages.runtimes.half.magnitudes import elem_type, float_initialisers

if TYPE_CHECKING:
    import onnx

FP32_OPERATORS = frozenset(
    {
        "LayerNormalization", "InstanceNormalization", "GroupNormalization", "BatchNormalization",
        "RMSNormalization", "LpNormalization", "MeanVarianceNormalization",
        "Softmax", "LogSoftmax", "Exp", "Log", "Pow", "Sqrt", "Reciprocal",
        "GlobalAveragePool", "ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare",
        "ReduceLogSumExp", "CumSum",
        "Cast", "CastLike", "Constant", "ConstantOfShape", "Range", "RandomNormal",
        "RandomUniform", "RandomNormalLike", "RandomUniformLike", "EyeLike", "If", "Loop", "Scan",
    }
)  # fmt: skip
"""Operators that stay in fp32.

Normalisations, exponentials and sums, and operators whose result type an attribute fixes.
"""


@dataclass
class WeightCounts:
    """Counts of the weights in the 16-bit type.

    Attributes:
        total: Number of weights in the type.
        flushed: Number of nonzero weights that became zero.
        subnormal: Number of weights below the type's smallest normal number: they lost digits.
    """

    total: int = 0
    flushed: int = 0
    subnormal: int = 0


def convert_nodes(
    model: onnx.ModelProto, float_nodes: set[int], half: Half
) -> tuple[onnx.ModelProto, set[int], WeightCounts]:
    """Convert every node but `float_nodes` to the 16-bit type where its operator takes the type.

    The file's inputs and outputs keep their types.

    Args:
        model: The float model, with the types of all its values.
        float_nodes: Indices of the nodes that stay in fp32.
        half: The 16-bit type.

    Returns:
        The new model, the indices of the converted nodes, and the counts of the weights.
    """
    import onnx

    builder = _GraphBuilder(model, half)
    for index, node in enumerate(model.graph.node):
        builder.add(index, node, stays_float=index in float_nodes)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for part in (result.graph.node, result.graph.initializer, result.graph.value_info):
        del part[:]
    result.graph.node.extend(builder.nodes)
    result.graph.initializer.extend(builder.initialisers())
    return result, builder.converted, builder.weights


def captured_names(graph: onnx.GraphProto) -> set[str]:
    """Return the values that the bodies of If, Loop and Scan take from outside: they are not converted."""
    bodies = [
        body
        for node in graph.node
        for attribute in node.attribute
        for body in ([attribute.g] if attribute.HasField("g") else attribute.graphs)
    ]
    used = {name for body in bodies for node in body.node for name in node.input}
    return used.union(*(captured_names(body) for body in bodies))


@dataclass
class _GraphBuilder:
    """The new graph, built node by node."""

    model: onnx.ModelProto
    half: Half
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    converted: set[int] = field(default_factory=set)
    weights: WeightCounts = field(default_factory=WeightCounts)

    def __post_init__(self) -> None:
        import onnx

        graph, real = self.model.graph, onnx.TensorProto.FLOAT
        self._float_weights = {tensor.name: tensor for tensor in float_initialisers(graph)}
        infos = (*graph.value_info, *graph.input, *graph.output)
        self._floats = {info.name for info in infos if elem_type(info) == real} | set(self._float_weights)
        self._outputs = {info.name for info in graph.output}
        self._halves: set[str] = set()
        self._casts: set[str] = set()
        captured = captured_names(graph)
        self._used = {name: tensor for name, tensor in self._float_weights.items() if name in captured}

    def add(self, index: int, original: onnx.NodeProto, *, stays_float: bool) -> None:
        """Append a node, in the 16-bit type unless it stays float, and the casts that it needs."""
        import onnx

        node = onnx.NodeProto()
        node.CopyFrom(original)
        inputs, outputs = (
            (set[int](), set[int]()) if stays_float else _half_positions(node, self.model, self.half)
        )
        inputs = {position for position in inputs if node.input[position] in self._floats}
        outputs = {position for position in outputs if node.output[position] in self._floats}
        for position, name in enumerate(node.input):
            if name in self._floats:
                node.input[position] = self._typed_name(name, half=position in inputs)
        self.nodes.append(node)
        if inputs or outputs:
            self.converted.add(index)
        for position in outputs:
            name = node.output[position]
            self._halves.add(name)
            if name in self._outputs:
                node.output[position] = self._name(name, half=True)
                self._cast(node.output[position], name, onnx.TensorProto.FLOAT)

    def initialisers(self) -> list[onnx.TensorProto]:
        """Return the initialisers that the new graph reads."""
        graph = self.model.graph
        others = [tensor for tensor in graph.initializer if tensor.name not in self._float_weights]
        return [*others, *self._used.values()]

    def _name(self, name: str, *, half: bool) -> str:
        return f"{name}__{self.half.name if half else 'fp32'}"

    def _typed_name(self, name: str, *, half: bool) -> str:
        """Return the name of the float value `name` in this type; add the cast or the weight it needs."""
        import onnx

        if name in self._float_weights:
            return self._weight(name) if half else self._whole_weight(name)
        if (name in self._halves) == half:
            return self._name(name, half=True) if half and name in self._outputs else name
        if not half and name in self._outputs:
            return name  # the file's own output, cast back where it is computed
        cast = self._name(name, half=half)
        if cast not in self._casts:
            self._cast(name, cast, self.half.elem_type if half else onnx.TensorProto.FLOAT)
        return cast

    def _cast(self, name: str, cast: str, kind: int) -> None:
        import onnx

        self._casts.add(cast)
        self.nodes.append(onnx.helper.make_node("Cast", [name], [cast], name=f"{cast}_cast", to=kind))

    def _whole_weight(self, name: str) -> str:
        self._used[name] = self._float_weights[name]
        return name

    def _weight(self, name: str) -> str:
        import onnx

        short = self._name(name, half=True)
        if short not in self._used:
            values = onnx.numpy_helper.to_array(self._float_weights[name])
            small = self.half.rounded(values)
            zero, present = small == 0, values != 0
            below = np.abs(small.astype(np.float32)) < np.float32(self.half.smallest_normal)
            self.weights.total += values.size
            self.weights.flushed += int((zero & present).sum())
            self.weights.subnormal += int((below & ~zero).sum())
            self._used[short] = onnx.numpy_helper.from_array(small, short)
        return short


def _half_positions(node: onnx.NodeProto, model: onnx.ModelProto, half: Half) -> tuple[set[int], set[int]]:
    """Return the positions of the inputs and outputs that the operator takes in the 16-bit type.

    Both sets are empty if the node has to stay in fp32.
    """
    import onnx

    if node.domain not in ("", "ai.onnx") or node.op_type in FP32_OPERATORS | half.refused:
        return set(), set()
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return set(), set()
    allowed = {rule.type_param_str: set(rule.allowed_type_strs) for rule in schema.type_constraints}

    def positions(count: int, formals: Iterable[Any]) -> set[int]:
        known = [half.tensor_type in allowed.get(formal.type_str, {formal.type_str}) for formal in formals]
        return {position for position in range(count) if known and known[min(position, len(known) - 1)]}

    inputs = positions(len(node.input), schema.inputs)
    outputs = positions(len(node.output), schema.outputs)
    if node.op_type == "Resize":
        inputs -= {1, 2}  # the region and the scales are positions, not values
    return inputs, outputs
