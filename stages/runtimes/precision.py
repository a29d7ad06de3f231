"""Converts an ONNX file to fp16, as strongly typed TensorRT wants it: in the graph.

Weights and activations become fp16; the file's inputs and outputs keep their types. What stays in
fp32: operators whose inner sums or exponentials overflow or cancel in fp16, the preprocessing
before the first layer, and whatever surrounds a value that comes near fp16's largest number on
real and generated images. All of it is reported.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import StageError
from stages.runtimes.base import Source
from stages.runtimes.images import as_input, proof_images
from stages.runtimes.parity import LIMITS, compare, source_logits

if TYPE_CHECKING:
    import onnx

HALF_MAX = 65504.0
HALF_TINY = 2.0**-24
ACTIVATION_LIMIT = HALF_MAX / 4
"""Real images may reach higher than generated ones: a factor of four is kept in hand."""

KEPT_FLOAT = frozenset(
    {
        "LayerNormalization", "InstanceNormalization", "GroupNormalization", "BatchNormalization",
        "RMSNormalization", "LpNormalization", "MeanVarianceNormalization",
        "Softmax", "LogSoftmax", "Exp", "Log", "Pow", "Sqrt", "Reciprocal",
        "ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp",
        "CumSum", "Cast", "CastLike", "Constant", "ConstantOfShape", "Range", "RandomNormal",
        "RandomUniform", "RandomNormalLike", "RandomUniformLike", "EyeLike", "If", "Loop", "Scan",
    }
)  # fmt: skip
"""Normalisations, exponentials and sums, and operators whose result type an attribute fixes."""

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass
class HalfReport:
    """What the conversion did. `kept_for_range`: nodes left in fp32 because of a weight or an
    activation beyond fp16's range. `flushed_weights`: share of the weights that became zero."""

    nodes: int = 0
    half_nodes: int = 0
    kept_for_range: list[str] = field(default_factory=list)
    flushed_weights: float = 0.0

    def facts(self) -> dict[str, Any]:
        return {
            "nodes": self.nodes,
            "fp16_nodes": self.half_nodes,
            "fp32_for_range": sorted(self.kept_for_range),
            "weights_flushed_to_zero": float(f"{self.flushed_weights:.3g}"),
        }


def to_half(model: onnx.ModelProto, source: Source) -> tuple[onnx.ModelProto, HalfReport]:
    """The fp16 form of a float model, proved against it by ONNX Runtime on real and generated images.

    Raises StageError if a weight is not finite or the converted file computes something else.
    """
    images = proof_images(source, 16)
    half, report = convert_to_half(model, source, images)
    _prove(model, half, source, images)
    return half, report


def convert_to_half(
    model: onnx.ModelProto, source: Source, images: np.ndarray
) -> tuple[onnx.ModelProto, HalfReport]:
    """As `to_half`, not yet proved: what it computes may be wrong. images: uint8 (n, H, W, C), on
    which activations beyond fp16's range are looked for."""
    import onnx

    _refuse_quantised(model)
    model = onnx.shape_inference.infer_shapes(_plain(model), strict_mode=True)
    report = HalfReport(nodes=len(model.graph.node))
    wide = _wide_tensors(model, source, images) | _wide_weights(model)
    float_nodes = _preprocessing_nodes(model.graph)
    for index, node in enumerate(model.graph.node):
        if wide.intersection((*node.input, *node.output)):
            float_nodes.add(index)
            report.kept_for_range.append(node.name or f"{node.op_type}_{index}")
    half = _convert(model, float_nodes, report)
    onnx.checker.check_model(half, full_check=True)
    return half, report


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


def _refuse_quantised(model: onnx.ModelProto) -> None:
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise StageError(
            "a quantised file cannot become fp16", why="it holds QuantizeLinear nodes, expected a float file"
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


def _wide_weights(model: onnx.ModelProto) -> set[str]:
    """Names of weights that fp16 cannot hold; raises StageError for weights that are not numbers."""
    from onnx import numpy_helper

    wide = set()
    for tensor in _float_initialisers(model.graph):
        values = numpy_helper.to_array(tensor)
        if not np.isfinite(values).all():
            raise StageError(
                "a weight is not a finite number",
                where=tensor.name,
                why="found NaN or infinity: the training diverged",
                mend="train with a lower learning rate or with clip_grad: 1.0",
            )
        if values.size and float(np.abs(values).max()) > HALF_MAX:
            wide.add(tensor.name)
    return wide


def _wide_tensors(model: onnx.ModelProto, source: Source, images: np.ndarray) -> set[str]:
    """Names of float activations that exceed ACTIVATION_LIMIT on these images."""
    import onnx
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    present = {output.name for output in probe.graph.output}
    names = [
        info.name
        for info in probe.graph.value_info
        if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and info.name not in present
    ]
    probe.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = session.get_inputs()[0].name
    wide: set[str] = set()
    # One image at a time: all activations of a large network are a lot already.
    for index in range(len(images)) if names else ():
        values = session.run(names, {given: as_input(images[index : index + 1], source)})
        wide.update(
            name
            for name, value in zip(names, values, strict=True)
            if value.size and not float(np.abs(value).max()) <= ACTIVATION_LIMIT
        )
    return wide


def _convert(model: onnx.ModelProto, float_nodes: set[int], report: HalfReport) -> onnx.ModelProto:
    """Types the graph node by node; a cast is inserted where a value is wanted in the other type."""
    import onnx
    from onnx import TensorProto, helper

    graph = model.graph
    is_float = {info.name for info in graph.value_info if _elem_type(info) == TensorProto.FLOAT}
    is_float |= {info.name for info in (*graph.input, *graph.output) if _elem_type(info) == TensorProto.FLOAT}
    weights = {tensor.name: tensor for tensor in _float_initialisers(graph)}
    is_float |= set(weights)
    outputs = {info.name for info in graph.output}
    native_half: set[str] = set()
    converted: dict[tuple[str, bool], str] = {}
    used_weights: dict[str, onnx.TensorProto] = {}
    flushed = total = 0
    nodes: list[onnx.NodeProto] = []

    def wanted(name: str, half: bool) -> str:
        """The name under which the float value `name` is to be had in this type."""
        nonlocal flushed, total
        if name in weights:
            if not half:
                used_weights[name] = weights[name]
                return name
            as_half = f"{name}__fp16"
            if as_half not in used_weights:
                values = onnx.numpy_helper.to_array(weights[name])
                small = values.astype(np.float16)
                flushed += int(((small == 0) & (values != 0)).sum())
                total += values.size
                used_weights[as_half] = onnx.numpy_helper.from_array(small, as_half)
            return as_half
        if (name in native_half) == half:
            return f"{name}__fp16" if half and name in outputs else name
        if not half and name in outputs:
            return name  # the file's own output, cast back below where it is computed
        if (name, half) not in converted:
            cast = f"{name}__{'fp16' if half else 'fp32'}"
            kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
            nodes.append(helper.make_node("Cast", [name], [cast], name=f"{cast}_cast", to=kind))
            converted[name, half] = cast
        return converted[name, half]

    for index, original in enumerate(graph.node):
        node = onnx.NodeProto()
        node.CopyFrom(original)
        half_inputs, half_outputs = (
            _half_places(node, model) if index not in float_nodes else (set[int](), set[int]())
        )
        float_data = [place for place in half_inputs if node.input[place] in is_float]
        half = bool(float_data) or any(node.output[place] in is_float for place in half_outputs)
        for place, name in enumerate(node.input):
            if name in is_float:
                node.input[place] = wanted(name, half and place in half_inputs)
        nodes.append(node)
        if not half:
            continue
        report.half_nodes += 1
        for place, name in enumerate(node.output):
            if name in is_float and place in half_outputs:
                native_half.add(name)
                if name in outputs:
                    node.output[place] = f"{name}__fp16"
                    nodes.append(
                        helper.make_node(
                            "Cast", [f"{name}__fp16"], [name], name=f"{name}_cast", to=TensorProto.FLOAT
                        )
                    )
    report.flushed_weights = flushed / total if total else 0.0

    others = [tensor for tensor in graph.initializer if tensor.name not in weights]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for part in (result.graph.node, result.graph.initializer, result.graph.value_info):
        del part[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend([*others, *used_weights.values()])
    return result


def _half_places(node: onnx.NodeProto, model: onnx.ModelProto) -> tuple[set[int], set[int]]:
    """Places of a node's inputs and outputs that its operator takes as fp16; none if it has to
    stay in fp32."""
    import onnx

    if node.domain not in ("", "ai.onnx") or node.op_type in KEPT_FLOAT:
        return set(), set()
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return set(), set()
    allowed = {rule.type_param_str: set(rule.allowed_type_strs) for rule in schema.type_constraints}

    def takes_half(formal: Any) -> bool:
        return "tensor(float16)" in allowed.get(formal.type_str, {formal.type_str})

    def places(count: int, formals: Iterable[Any]) -> set[int]:
        known = list(formals)
        return {place for place in range(count) if known and takes_half(known[min(place, len(known) - 1)])}

    inputs = places(len(node.input), schema.inputs)
    outputs = places(len(node.output), schema.outputs)
    if node.op_type == "Resize":
        inputs -= {1, 2}  # the region and the scales are positions, not values
    return inputs, outputs


def _prove(whole: onnx.ModelProto, half: onnx.ModelProto, source: Source, images: np.ndarray) -> None:
    reference = source_logits(whole.SerializeToString(), source, images)
    found = source_logits(half.SerializeToString(), source, images)
    agreement = compare(found, reference)
    if agreement.relative > LIMITS["fp16"] and agreement.max_abs > 1e-3:
        raise StageError(
            "the fp16 form of the model computes something else than the model",
            where=source.onnx.name,
            why=f"logits differ by {agreement.rms:.3g} (root mean square), {agreement.relative:.0%} of their "
            f"spread; {LIMITS['fp16']:.0%} is the limit",
            mend="leave the fp16 target out, or train with weight decay so that activations stay small",
        )


def _elem_type(info: onnx.ValueInfoProto) -> int:
    return int(info.type.tensor_type.elem_type)


def _float_initialisers(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    import onnx

    return [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
