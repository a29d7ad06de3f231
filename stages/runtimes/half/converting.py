"""Converts an ONNX file to fp16 or bf16, as strongly typed TensorRT wants it: in the graph.

Weights and activations get the 16-bit type; the file's inputs and outputs keep theirs. What stays in
fp32: operators whose inner sums or exponentials overflow or cancel in 16 bits, the preprocessing
before the first layer, the nodes that the profile names (`build.keep_float`), and whatever surrounds a
value that comes near the type's largest number on real and generated images. All of it is reported.
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
from stages.runtimes.half.node_types import Weights, captured_names, give_types
from stages.runtimes.half.proof import prove
from stages.runtimes.half.ranges import activation_magnitudes, weight_magnitudes
from stages.runtimes.images import proof_images
from stages.runtimes.parity import LIMITS

if TYPE_CHECKING:
    import onnx

IN_HAND = 4.0
"""An activation stays in fp32 from a quarter of the type's largest number on: other images reach higher."""

MANY_KEPT = 0.05
"""From this share of the nodes on, what fp16's range keeps in fp32 is worth a line in the log."""


@dataclass(frozen=True)
class Kept:
    """A node left in fp32 for its range: the largest value at it, and where that stands."""

    node: str
    tensor: str
    magnitude: float


@dataclass(frozen=True)
class HalfReport:
    """What the conversion did.

    nodes: of the graph. half_nodes: of these, in the 16-bit type. kept_for_range: nodes left in fp32
    because of a weight or an activation. kept_on_request: nodes that the profile names. kept_by_kind:
    how many nodes of an operator still give fp32, whatever the reason. largest: the activation with the
    largest value behind the preprocessing, on `images` images. weights: what became of them.
    """

    half: Half
    nodes: int
    half_nodes: int
    kept_for_range: tuple[Kept, ...]
    kept_on_request: tuple[str, ...]
    kept_by_kind: Mapping[str, int]
    largest: Kept
    images: int
    weights: Weights = field(default_factory=Weights)

    def facts(self) -> dict[str, Any]:
        """JSON-ready, for build.json."""
        name, weights = self.half.name, self.weights
        return {
            "nodes": self.nodes,
            f"{name}_nodes": self.half_nodes,
            "fp32_for_range": [_told(kept) for kept in self.kept_for_range],
            "fp32_on_request": list(self.kept_on_request),
            "fp32_by_operator": dict(sorted(self.kept_by_kind.items())),
            "largest_activation": _told(self.largest),
            "largest_number": float(f"{self.half.largest:.6g}"),
            "images": self.images,
            "weights": weights.total,
            "weights_flushed_to_zero": float(f"{weights.flushed / max(weights.total, 1):.3g}"),
            "weights_made_subnormal": weights.subnormal,
            "advice": self.advice(),
        }

    def advice(self) -> str:
        """A sentence if the range of fp16 keeps many nodes in fp32, else empty."""
        kept = len(self.kept_for_range)
        if self.half.name != "fp16" or kept < MANY_KEPT * self.nodes:
            return ""
        top = max(self.kept_for_range, key=lambda one: one.magnitude)
        return (
            f"{kept} of {self.nodes} nodes stay in fp32 for their range ({top.tensor} reaches "
            f"{top.magnitude:.3g}, fp16 ends at {self.half.largest:g}); a bf16 target needs none of that"
        )


def to_half(
    model: onnx.ModelProto,
    source: Source,
    keep_float: Sequence[str] = (),
    *,
    limit: float | None = None,
    note: Callable[[str], None] | None = None,
) -> tuple[onnx.ModelProto, HalfReport]:
    """The form of a float model in `source.precision` (fp16 or bf16), proved against it on real and
    generated images.

    keep_float: shell wildcards on names of nodes that stay in fp32. limit: largest difference of the logits,
    as a share of their spread; None: the precision's own. note: takes what a failed proof says, in place of
    an error.

    Raises UsageError if a wildcard matches nothing, StageError if a weight is not finite, the file is
    quantized, or the converted file gives infinities or computes something else.
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
    """As `to_half`, not yet proved: what it computes may be wrong. images: uint8 (n, H, W, C), on
    which activations beyond the type's range are looked for."""
    converted, report, _ = _convert(model, source, images, keep_float)
    return converted, report


def _convert(
    model: onnx.ModelProto, source: Source, images: np.ndarray, keep_float: Sequence[str]
) -> tuple[onnx.ModelProto, HalfReport, dict[str, float]]:
    """The converted graph, the report, and the largest values of all activations of the float graph."""
    import onnx

    half = HALVES[source.precision]
    _refuse_quantized(model, half)
    asked = matching_nodes(model, keep_float, "build.keep_float")
    model = _with_opset(_plain(model), half)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    activations, weights = activation_magnitudes(model, source, images), weight_magnitudes(model)
    wide = {name: value for name, value in activations.items() if not value <= half.largest / IN_HAND}
    wide |= {name: value for name, value in weights.items() if value > half.largest}
    ranged = _kept_for_range(model.graph, wide)
    requested = {index for index, node in enumerate(model.graph.node) if node.name in asked}
    before = _preprocessing_nodes(model.graph)
    floats = before | _captured_nodes(model.graph) | requested | set(ranged)
    converted, half_nodes, counts = give_types(model, floats, half)
    onnx.checker.check_model(converted, full_check=True)
    still = [node for index, node in enumerate(model.graph.node) if index not in half_nodes]
    report = HalfReport(
        half=half,
        nodes=len(model.graph.node),
        half_nodes=len(half_nodes),
        kept_for_range=tuple(ranged.values()),
        kept_on_request=tuple(sorted(asked)),
        kept_by_kind=Counter(node.op_type for node in still if activations.keys() & set(node.output)),
        largest=_largest(model.graph, activations, before),
        images=len(images),
        weights=counts,
    )
    return converted, report, activations


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without local functions, Constant nodes (they become initialisers) and stale types."""
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
    """In an operator set whose convolutions take the type."""
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


def _refuse_quantized(model: onnx.ModelProto, half: Half) -> None:
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise StageError(
            f"a quantized file cannot become {half.name}",
            why="it holds QuantizeLinear nodes, expected a float file",
        )


def _preprocessing_nodes(graph: onnx.GraphProto) -> set[int]:
    """Nodes before the first layer with weights: exact pixels cost nothing there."""
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


def _kept_for_range(graph: onnx.GraphProto, wide: Mapping[str, float]) -> dict[int, Kept]:
    """By index, the nodes at a value beyond the type's range, with the largest value there."""
    kept = {}
    for index, node in enumerate(graph.node):
        at = [name for name in (*node.input, *node.output) if name in wide]
        if at:
            top = max(at, key=lambda name: wide[name])
            kept[index] = Kept(node.name or f"{node.op_type}_{index}", top, wide[top])
    return kept


def _largest(graph: onnx.GraphProto, activations: Mapping[str, float], before: set[int]) -> Kept:
    """Of the network's own activations: pixels before the first layer are not among them."""
    within = [
        Kept(node.name, name, activations[name])
        for index, node in enumerate(graph.node)
        for name in node.output
        if index not in before and name in activations
    ]
    return max(within, key=lambda one: one.magnitude, default=Kept("", "", 0.0))


def _told(kept: Kept) -> dict[str, Any]:
    """Three digits: the last ones vary from processor to processor, and build.json must not."""
    finite = np.isfinite(kept.magnitude)
    magnitude = float(f"{kept.magnitude:.3g}") if finite else None
    return {"node": kept.node, "tensor": kept.tensor, "magnitude": magnitude}
