"""The largest absolute values of a network's weights, and of its activations on images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import StageError
from stages.runtimes.base import Source
from stages.runtimes.images import as_input

if TYPE_CHECKING:
    import onnx


def weight_magnitudes(model: onnx.ModelProto) -> dict[str, float]:
    """Return the largest absolute value of each float weight, by name.

    Raises:
        StageError: If a weight holds NaN or infinity.
    """
    from onnx import numpy_helper

    magnitudes = {}
    for tensor in float_initialisers(model.graph):
        values = numpy_helper.to_array(tensor)
        if not np.isfinite(values).all():
            raise StageError(
                "a weight is not a finite number",
                where=tensor.name,
                why="found NaN or infinity: the training diverged",
                hint="train with a lower learning rate or with clip_grad: 1.0",
            )
        magnitudes[tensor.name] = magnitude(values)
    return magnitudes


def activation_magnitudes(model: onnx.ModelProto, source: Source, images: np.ndarray) -> dict[str, float]:
    """Return the largest absolute value of each float activation on the images, by name.

    ONNX Runtime runs the graph node by node. The value is infinite if any number is infinite or NaN.

    Args:
        model: The model, with the types of all its values.
        source: The file's description.
        images: uint8 (n, H, W, C).
    """
    import onnx

    from stages.onnx_files.sessions import open_session

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    infos = (*model.graph.output, *model.graph.value_info)
    names = [info.name for info in infos if elem_type(info) == onnx.TensorProto.FLOAT]
    if not names:
        return {}
    probe.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    session = open_session(probe.SerializeToString(), optimise=False)
    input_name = session.get_inputs()[0].name
    largest = dict.fromkeys(names, 0.0)
    # One image at a time: the activations of a large network take much memory.
    for index in range(len(images)):
        values = session.run(names, {input_name: as_input(images[index : index + 1], source)})
        for name, value in zip(names, values, strict=True):
            largest[name] = max(largest[name], magnitude(value))
    return largest


def magnitude(values: np.ndarray) -> float:
    """Return the largest absolute value: infinite if any value is infinite or NaN, 0 for an empty array."""
    if not values.size:
        return 0.0
    largest = max(float(values.max()), -float(values.min()))
    return largest if np.isfinite(largest) else float("inf")


def elem_type(info: onnx.ValueInfoProto) -> int:
    """Return the value's element type, a number of `TensorProto.DataType`."""
    return int(info.type.tensor_type.elem_type)


def float_initialisers(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Return the float32 initialisers of a graph."""
    import onnx

    return [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
