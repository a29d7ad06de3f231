"""Whether a graph converted to a 16-bit type computes what it computed before.

ONNX Runtime has hardly a 16-bit kernel for CPUs, and where it puts casts around a node itself it drops
the rounding between two such nodes, so that no overflow shows. Here every rounding is written into the
graph: values are computed in fp32 and rounded, as tensor cores do it, which add up in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import StageError
from stages.runtimes.base import Source
from stages.runtimes.half.kinds import HALVES, ROUNDED, Half
from stages.runtimes.half.ranges import activation_magnitudes, elem_type
from stages.runtimes.parity import compare, source_logits

if TYPE_CHECKING:
    import onnx


def prove(
    whole: onnx.ModelProto,
    converted: onnx.ModelProto,
    half: Half,
    source: Source,
    images: np.ndarray,
    known: Mapping[str, float],
    limit: float,
) -> None:
    """Raises StageError if a value of the converted graph is not finite on the images where it is in the
    float graph, or if the logits differ by more than `limit` of their spread (root mean square).

    images: uint8 (n, H, W, C). known: by name, the largest absolute values of the float graph on them.
    """
    computed = as_computed(converted)
    _require_finite(computed, half, source, images, known)
    reference = source_logits(whole.SerializeToString(), source, images)
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
    keep = "name the nodes that cannot bear it in build.keep_float (kdpipe debug PROFILE finds them)"
    if half.name == "fp16":
        return f"take the bf16 target, which has fp32's range, or {keep}"
    return f"take the fp16 target, which has three more binary digits, or {keep}"


def as_computed(converted: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph for ONNX Runtime on a CPU: each node computes in fp32, and what had a 16-bit type is
    rounded to it. Values keep their names; every one of them is float32, so all of them can be looked at.
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
    """A node, and behind it the casts that round what it gives."""
    import onnx

    node = onnx.NodeProto()
    node.CopyFrom(original)
    nodes = [node]
    for place, name in enumerate(original.output):
        if name not in narrow:
            continue
        rounded = f"{name}{ROUNDED}"
        if node.op_type == "Cast":
            node.output[place] = rounded
        else:
            node.output[place] = f"{name}__unrounded"
            nodes.append(onnx.helper.make_node("Cast", [node.output[place]], [rounded], to=narrow[name]))
        nodes.append(onnx.helper.make_node("Cast", [rounded], [name], to=onnx.TensorProto.FLOAT))
    return nodes


def _widened(tensor: onnx.TensorProto, types: set[int]) -> onnx.TensorProto:
    import onnx

    if tensor.data_type not in types:
        return tensor
    return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _require_finite(
    computed: onnx.ModelProto, half: Half, source: Source, images: np.ndarray, known: Mapping[str, float]
) -> None:
    found = activation_magnitudes(computed, source, images)
    for node in computed.graph.node:
        for name in node.output:
            lost = name in known and np.isfinite(known[name]) and not np.isfinite(found.get(name, 0.0))
            if lost:
                raise StageError(
                    f"the {half.name} form of the model gives numbers that are not finite",
                    where=f"{source.onnx.name}, node {_real_name(computed, name)}",
                    why=f"{name} reaches {known[name]:.4g} in fp32 on {len(images)} images, "
                    f"and {half.name} ends at {half.largest:.4g}; it is the first to become infinite or NaN",
                    hint=remedy(half),
                )


def _real_name(computed: onnx.ModelProto, value: str) -> str:
    """The node that computes a value, not the casts that round it."""
    producers = {name: node for node in computed.graph.node for name in node.output}
    node = producers[value]
    while node.op_type == "Cast" and not node.name and node.input[0] in producers:
        node = producers[node.input[0]]
    return node.name or f"{node.op_type} that gives {value}"
