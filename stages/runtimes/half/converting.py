"""Convert an ONNX file to fp16 or bf16 in the graph itself, which strongly typed TensorRT requires.

Weights and activations get the 16-bit type; the file's inputs and outputs keep theirs. These nodes stay in
fp32:

* operators whose inner sums or exponentials overflow or cancel in 16 bits,
* the preprocessing before the first layer,
* the nodes that the profile lists in `build.keep_float`,
* the nodes at a value that comes near the type's largest number on real and generated images.

`HalfReport` reports them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import StageError
from stages.onnx_files.node_names import WEIGHTED, matching_nodes
from stages.runtimes.base import Source
from stages.runtimes.half.kinds import HALVES, Half
from stages.runtimes.half.magnitudes import activation_magnitudes, weight_magnitudes
from stages.runtimes.half.node_types import WeightCounts, captured_names, convert_nodes
from stages.runtimes.half.proof import prove
from stages.runtimes.images import proof_images
from stages.runtimes.parity import LIMITS

if TYPE_CHECKING:
    import onnx

HEADROOM = 4.0
"""An activation above the type's largest number over this factor stays in fp32: other images reach higher."""

BF16_ADVICE_SHARE = 0.05
"""Share of nodes left in fp32 for fp16's range from which the report recommends bf16."""


@dataclass(frozen=True)
class NodeMagnitude:
    """The largest value at a node.

    Attributes:
        node: The node's name.
        tensor: The name of the input or output that holds the value.
        magnitude: The largest absolute value; infinite if a value is infinite or NaN.
    """

    node: str
    tensor: str
    magnitude: float


@dataclass(frozen=True)
class HalfReport:
    """The result of a conversion, in figures.

    Attributes:
        half: The 16-bit type.
        nodes: Number of nodes in the graph.
        half_nodes: Number of nodes in the 16-bit type.
        fp32_for_range: Nodes left in fp32 because of the range of a weight or an activation.
        fp32_on_request: Names of the nodes that the profile keeps in fp32.
        fp32_by_operator: Number of nodes whose output is still fp32 for any reason, by operator.
        largest: The activation with the largest value after the preprocessing, on `images` images.
        images: Number of images that the activations were measured on.
        weights: Counts of the converted weights.
    """

    half: Half
    nodes: int
    half_nodes: int
    fp32_for_range: tuple[NodeMagnitude, ...]
    fp32_on_request: tuple[str, ...]
    fp32_by_operator: Mapping[str, int]
    largest: NodeMagnitude
    images: int
    weights: WeightCounts = field(default_factory=WeightCounts)

    def facts(self) -> dict[str, Any]:
        """Return the report's JSON-ready fields for build.json."""
        name, weights = self.half.name, self.weights
        return {
            "nodes": self.nodes,
            f"{name}_nodes": self.half_nodes,
            "fp32_for_range": [_as_json(entry) for entry in self.fp32_for_range],
            "fp32_on_request": list(self.fp32_on_request),
            "fp32_by_operator": dict(sorted(self.fp32_by_operator.items())),
            "largest_activation": _as_json(self.largest),
            "largest_number": float(f"{self.half.largest:.6g}"),
            "images": self.images,
            "weights": weights.total,
            "weights_flushed_to_zero": float(f"{weights.flushed / max(weights.total, 1):.3g}"),
            "weights_made_subnormal": weights.subnormal,
            "advice": self.advice(),
        }

    def advice(self) -> str:
        """Return a sentence if fp16's range keeps many nodes in fp32, else an empty string."""
        count = len(self.fp32_for_range)
        if self.half.name != "fp16" or count < BF16_ADVICE_SHARE * self.nodes:
            return ""
        top = max(self.fp32_for_range, key=lambda entry: entry.magnitude)
        return (
            f"{count} of {self.nodes} nodes stay in fp32 for their range ({top.tensor} reaches "
            f"{top.magnitude:.3g}, fp16 ends at {self.half.largest:g}); a bf16 target needs none of these"
        )


def to_half(
    model: onnx.ModelProto,
    source: Source,
    keep_float: Sequence[str] = (),
    *,
    limit: float | None = None,
    note: Callable[[str], None] | None = None,
) -> tuple[onnx.ModelProto, HalfReport]:
    """Convert a float model to `source.precision` and compare both on real and generated images.

    Args:
        model: The float model; it stays unchanged.
        source: The file's description; its precision is fp16 or bf16.
        keep_float: Shell wildcards on names of nodes that stay in fp32.
        limit: Largest root mean square difference of the logits, as a share of their spread; None uses the
            precision's own limit.
        note: Receives the message of a failed proof; None raises the error instead.

    Returns:
        The converted model and its report.

    Raises:
        UsageError: If a wildcard matches nothing.
        StageError: If a weight is not finite, the file is quantized, or the converted file gives infinities
            or computes something else.
    """
    images = proof_images(source, 16)
    converted, report, known = _convert(model, source, images, keep_float)
    half = report.half
    try:
        prove(model, converted, half, source, images, known, LIMITS[half.name] if limit is None else limit)
    except StageError as fault:
        if note is None:
            raise
        note(f"{fault.what}: {fault.why}; kept all the same (build.prove: false)")
    return converted, report


def convert_to_half(
    model: onnx.ModelProto, source: Source, images: np.ndarray, keep_float: Sequence[str] = ()
) -> tuple[onnx.ModelProto, HalfReport]:
    """Convert a model like `to_half`, without the proof: its results may be wrong.

    Args:
        model: The float model; it stays unchanged.
        source: The file's description; its precision is fp16 or bf16.
        images: uint8 (n, H, W, C), the images that activations beyond the type's range are measured on.
        keep_float: Shell wildcards on names of nodes that stay in fp32.

    Returns:
        The converted model and its report.

    Raises:
        UsageError: If a wildcard matches nothing.
        StageError: If a weight is not finite or the file is quantized.
    """
    converted, report, _ = _convert(model, source, images, keep_float)
    return converted, report


def _convert(
    model: onnx.ModelProto, source: Source, images: np.ndarray, keep_float: Sequence[str]
) -> tuple[onnx.ModelProto, HalfReport, dict[str, float]]:
    """Return the converted graph, the report, and the largest value of each float activation."""
    import onnx

    half = HALVES[source.precision]
    _require_float(model, half)
    requested_names = matching_nodes(model, keep_float, "build.keep_float")
    model = _with_opset(_plain(model), half)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    activations, weights = activation_magnitudes(model, source, images), weight_magnitudes(model)
    wide = {name: value for name, value in activations.items() if not value <= half.largest / HEADROOM}
    wide |= {name: value for name, value in weights.items() if value > half.largest}
    beyond_range = _nodes_beyond_range(model.graph, wide)
    requested = {index for index, node in enumerate(model.graph.node) if node.name in requested_names}
    before = _preprocessing_nodes(model.graph)
    floats = before | _captured_nodes(model.graph) | requested | set(beyond_range)
    converted, half_nodes, counts = convert_nodes(model, floats, half)
    onnx.checker.check_model(converted, full_check=True)
    fp32_nodes = [node for index, node in enumerate(model.graph.node) if index not in half_nodes]
    report = HalfReport(
        half=half,
        nodes=len(model.graph.node),
        half_nodes=len(half_nodes),
        fp32_for_range=tuple(beyond_range.values()),
        fp32_on_request=tuple(sorted(requested_names)),
        fp32_by_operator=Counter(
            node.op_type for node in fp32_nodes if activations.keys() & set(node.output)
        ),
        largest=_largest(model.graph, activations, before),
        images=len(images),
        weights=counts,
    )
    return converted, report, activations


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without local functions and stale types; Constant nodes become initialisers."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if copy.functions:
        copy = onnx.inliner.inline_local_functions(copy)
    del copy.graph.value_info[:]
    constants = [node for node in copy.graph.node if node.op_type == "Constant"]
    for node in constants:
        (attribute,) = node.attribute
        if attribute.name == "value":
            copy.graph.initializer.append(attribute.t)
            copy.graph.initializer[-1].name = node.output[0]
            copy.graph.node.remove(node)
    return copy


def _with_opset(model: onnx.ModelProto, half: Half) -> onnx.ModelProto:
    """Return the model in an operator set whose convolutions take the type."""
    import onnx

    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset >= half.least_opset:
        return model
    try:
        return onnx.version_converter.convert_version(model, half.least_opset)
    except RuntimeError as error:
        raise StageError(
            f"the file cannot be brought to the operator set that {half.name} needs",
            why=f"found {opset}, expected {half.least_opset} or more: {error}",
            hint=f"export with it: --set export.opset={half.least_opset}",
        ) from error


def _require_float(model: onnx.ModelProto, half: Half) -> None:
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise StageError(
            f"a quantized file cannot become {half.name}",
            why="the file contains QuantizeLinear nodes, expected a float file",
        )


def _preprocessing_nodes(graph: onnx.GraphProto) -> set[int]:
    """Return the nodes before the first layer with weights: exact pixels cost nothing there."""
    behind: set[str] = set()
    before: set[int] = set()
    for index, node in enumerate(graph.node):
        if node.op_type in WEIGHTED or behind.intersection(node.input):
            behind.update(node.output)
        else:
            before.add(index)
    return before


def _captured_nodes(graph: onnx.GraphProto) -> set[int]:
    captured = captured_names(graph)
    return {index for index, node in enumerate(graph.node) if captured.intersection(node.output)}


def _nodes_beyond_range(graph: onnx.GraphProto, wide: Mapping[str, float]) -> dict[int, NodeMagnitude]:
    """Return the nodes at a value in `wide`, by index, with the largest value there."""
    nodes = {}
    for index, node in enumerate(graph.node):
        at = [name for name in (*node.input, *node.output) if name in wide]
        if at:
            top = max(at, key=lambda name: wide[name])
            nodes[index] = NodeMagnitude(node.name or f"{node.op_type}_{index}", top, wide[top])
    return nodes


def _largest(graph: onnx.GraphProto, activations: Mapping[str, float], before: set[int]) -> NodeMagnitude:
    """Return the largest of the network's own activations, without the pixels before the first layer."""
    within = [
        NodeMagnitude(node.name, name, activations[name])
        for index, node in enumerate(graph.node)
        for name in node.output
        if index not in before and name in activations
    ]
    return max(within, key=lambda entry: entry.magnitude, default=NodeMagnitude("", "", 0.0))


def _as_json(entry: NodeMagnitude) -> dict[str, Any]:
    """Round to three digits: further digits vary between processors, and build.json must not."""
    finite = np.isfinite(entry.magnitude)
    magnitude = float(f"{entry.magnitude:.3g}") if finite else None
    return {"node": entry.node, "tensor": entry.tensor, "magnitude": magnitude}
