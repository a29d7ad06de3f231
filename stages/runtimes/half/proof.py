"""Prove that a graph converted to a 16-bit type computes what it computed before.

ONNX Runtime has few 16-bit kernels for CPUs. Where it inserts casts around a node itself, it drops the
rounding between two such nodes, which hides overflows. Therefore every rounding becomes explicit casts in the
graph: values are computed in fp32 and rounded, the way tensor cores do, which accumulate in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import StageError
from stages.runtimes.base import Source
from stages.runtimes.half.kinds import HALVES, ROUNDED, Half
from stages.runtimes.half.magnitudes import activation_magnitudes, elem_type
from stages.runtimes.parity import compare, source_logits

if TYPE_CHECKING:
    import onnx


def prove(
    float_model: onnx.ModelProto,
    converted: onnx.ModelProto,
    half: Half,
    source: Source,
    images: np.ndarray,
    magnitudes: Mapping[str, float],
    limit: float,
) -> None:
    """Raise an error unless the converted graph agrees with the float graph on the images.

    Args:
        float_model: The float model.
        converted: The model in the 16-bit type.
        half: The 16-bit type.
        source: The file's description.
        images: uint8 (n, H, W, C).
        magnitudes: Largest absolute values of the float graph on these images, by value name.
        limit: Largest root mean square difference of the logits, as a share of their spread.

    Raises:
        StageError: If a value is finite in the float graph and not in the converted one, or if the logits
            differ by more than `limit`.
    """
    computed = as_computed(converted)
    _require_finite(computed, half, source, images, magnitudes)
    reference = source_logits(float_model.SerializeToString(), source, images)
    agreement = compare(source_logits(computed.SerializeToString(), source, images), reference)
    if agreement.relative > limit and agreement.max_abs > 1e-3:
        raise StageError(
            f"the {half.name} form of the model computes something else than the model",
            where=source.onnx.name,
            why=f"logits differ by {agreement.rms:.3g} (root mean square), {agreement.relative:.3g} of "
            f"their spread; {limit:g} is the limit (build.limit_{half.name})",
            hint=remedy(half),
        )


def remedy(half: Half) -> str:
    """Return the hint for a model that does not work in this type."""
    keep = "list the nodes that need fp32 in build.keep_float (kdpipe debug PROFILE finds them)"
    if half.name == "fp16":
        return f"use the bf16 target, which has fp32's range, or {keep}"
    return f"use the fp16 target, which has three more binary digits, or {keep}"


def as_computed(converted: onnx.ModelProto) -> onnx.ModelProto:
    """Return an equivalent fp32 graph with explicit roundings, for ONNX Runtime on a CPU.

    Each node computes in fp32; every value that had a 16-bit type is rounded to it. Values keep their names,
    and all of them are float32, so each can be an output.
    """
    import onnx

    types = {half.elem_type for half in HALVES.values()}
    typed = onnx.shape_inference.infer_shapes(converted)
    graph = typed.graph
    narrow = {info.name: elem_type(info) for info in graph.value_info if elem_type(info) in types}
    result = onnx.ModelProto()
    result.CopyFrom(typed)
    for part in (result.graph.node, result.graph.value_info, result.graph.initializer):
        del part[:]
    result.graph.initializer.extend(_widened(tensor, types) for tensor in graph.initializer)
    for original in graph.node:
        result.graph.node.extend(_rounding(original, narrow))
    return onnx.shape_inference.infer_shapes(result)


def _rounding(original: onnx.NodeProto, narrow: Mapping[str, int]) -> list[onnx.NodeProto]:
    """Return the node, followed by the casts that round its outputs."""
    import onnx

    node = onnx.NodeProto()
    node.CopyFrom(original)
    nodes = [node]
    for position, name in enumerate(original.output):
        if name not in narrow:
            continue
        rounded = f"{name}{ROUNDED}"
        if node.op_type == "Cast":
            node.output[position] = rounded
        else:
            node.output[position] = f"{name}__unrounded"
            nodes.append(onnx.helper.make_node("Cast", [node.output[position]], [rounded], to=narrow[name]))
        nodes.append(onnx.helper.make_node("Cast", [rounded], [name], to=onnx.TensorProto.FLOAT))
    return nodes


def _widened(tensor: onnx.TensorProto, types: set[int]) -> onnx.TensorProto:
    import onnx

    if tensor.data_type not in types:
        return tensor
    return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _require_finite(
    computed: onnx.ModelProto, half: Half, source: Source, images: np.ndarray, magnitudes: Mapping[str, float]
) -> None:
    rounded = activation_magnitudes(computed, source, images)
    for node in computed.graph.node:
        for name in node.output:
            lost = (
                name in magnitudes
                and np.isfinite(magnitudes[name])
                and not np.isfinite(rounded.get(name, 0.0))
            )
            if lost:
                raise StageError(
                    f"the {half.name} form of the model gives numbers that are not finite",
                    where=f"{source.onnx.name}, node {_computing_node(computed, name)}",
                    why=f"{name} reaches {magnitudes[name]:.4g} in fp32 on {len(images)} images, "
                    f"and {half.name} ends at {half.largest:.4g}; it is the first to become infinite or NaN",
                    hint=remedy(half),
                )


def _computing_node(computed: onnx.ModelProto, value: str) -> str:
    """Return the name of the node that computes a value, not of the casts that round it."""
    producers = {name: node for node in computed.graph.node for name in node.output}
    node = producers[value]
    while node.op_type == "Cast" and not node.name and node.input[0] in producers:
        node = producers[node.input[0]]
    return node.name or f"{node.op_type} that computes {value}"
