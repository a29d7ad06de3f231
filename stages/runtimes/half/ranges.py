"""How large a network's values become: its weights as they are, its activations on images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import StageError
from stages.runtimes.base import Source
from stages.runtimes.images import as_input

if TYPE_CHECKING:
    import onnx


def weight_magnitudes(model: onnx.ModelProto) -> dict[str, float]:
    """By name of a float weight its largest absolute value; raises StageError for one that is no number."""
    from onnx import numpy_helper

    found = {}
    for tensor in float_initialisers(model.graph):
        values = numpy_helper.to_array(tensor)
        if not np.isfinite(values).all():
            raise StageError(
                "a weight is not a finite number",
                where=tensor.name,
                why="found NaN or infinity: the training diverged",
                hint="train with a lower learning rate or with clip_grad: 1.0",
            )
        found[tensor.name] = magnitude(values)
    return found


def activation_magnitudes(model: onnx.ModelProto, source: Source, images: np.ndarray) -> dict[str, float]:
    """By name of a float activation its largest absolute value on the images; infinite if any is
    infinite or NaN.

    model: with the types of all its values. images: uint8 (n, H, W, C). Executed by ONNX Runtime, node
    by node.
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
    given = session.get_inputs()[0].name
    largest = dict.fromkeys(names, 0.0)
    # One image at a time: all activations of a large network are a lot already.
    for index in range(len(images)):
        values = session.run(names, {given: as_input(images[index : index + 1], source)})
        for name, value in zip(names, values, strict=True):
            largest[name] = max(largest[name], magnitude(value))
    return largest


def magnitude(values: np.ndarray) -> float:
    """The largest absolute value; infinite if any value is infinite or NaN, 0 if there is none."""
    if not values.size:
        return 0.0
    largest = max(float(values.max()), -float(values.min()))
    return largest if np.isfinite(largest) else float("inf")


def elem_type(info: onnx.ValueInfoProto) -> int:
    return int(info.type.tensor_type.elem_type)


def float_initialisers(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    import onnx

    return [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
