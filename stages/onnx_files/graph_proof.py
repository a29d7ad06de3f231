"""Prove that an exported file has the requested form and runs at several batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper

from pipeline.errors import StageError, first_line
from stages.onnx_files.exporting import SINGLE_FILE_LIMIT, serialised
from stages.onnx_files.metadata import BATCH, INPUT, LOGITS, PROBABILITIES, feed, image_shape
from stages.onnx_files.sessions import open_session

BATCHES = (1, 2, 7)
"""Batches of the test runs: 1, the exporter's example, and a prime that no shape divides by accident."""

_UNSUPPORTED = "choose another architecture, or report this one: the exporter does not support it"


def prove_graph(model: onnx.ModelProto, card: Mapping[str, Any], *, role: str, opset: int) -> bytes:
    """Check an exported graph and return the file's bytes.

    Checks the dimensions, the operator set and the weights, runs onnx's full checker, and runs the graph in
    the installed ONNX Runtime at the batches of `BATCHES`: results have the declared shapes and are finite.

    Args:
        model: The exported graph.
        card: The network's card, with `input`.
        role: "teacher" or "student", for messages.
        opset: The requested operator set.

    Raises:
        StageError: If a check fails.
    """
    name = f"The {role}'s ONNX file"
    _require_requested(model, card, name, opset)
    content = serialised(model)
    if len(content) > SINGLE_FILE_LIMIT:
        raise StageError(
            f"{name} is too large.",
            where="stage export",
            why=f"found {len(content) / 1e9:.2f} GB, expected at most {SINGLE_FILE_LIMIT / 1e9:.1f} GB",
            hint=f"choose a smaller {role}.model",
        )
    try:
        onnx.checker.check_model(content, full_check=True)
    except Exception as error:  # the checker and the shape inference raise unrelated classes
        raise StageError(
            f"{name} is not valid ONNX.",
            where="stage export",
            why=first_line(error),
            hint="choose another export.opset (20 is accepted most widely)",
        ) from error
    _require_running(content, card, name, opset)
    return content


def _require_requested(model: onnx.ModelProto, card: Mapping[str, Any], name: str, opset: int) -> None:
    height, width, channels = image_shape(card)
    classes = len(card["classes"])
    uint8 = card["input"] == "uint8_nhwc"
    expected: dict[str, tuple[object, ...]] = {
        INPUT: (BATCH, height, width, channels) if uint8 else (BATCH, channels, height, width),
        LOGITS: (BATCH, classes),
    }
    if uint8:
        expected[PROBABILITIES] = (BATCH, classes)
    shapes = {value.name: _shape(value) for value in (*model.graph.input, *model.graph.output)}
    if shapes != expected:
        raise StageError(
            f"{name} does not have the requested inputs and outputs.",
            where="stage export",
            why=f"found {_shapes_text(shapes)}; expected {_shapes_text(expected)}"
            + (
                ": the network fixes the batch in its code (a view or reshape with a number)"
                if shapes.get(INPUT, ("",))[0] != BATCH
                else ""
            ),
            hint=_UNSUPPORTED,
        )
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": opset}:
        raise StageError(
            f"{name} has another operator set than requested.",
            where="stage export",
            why=f"found {opsets}, expected {{'': {opset}}}",
            hint="set export.opset: 20",
        )
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and not np.isfinite(numpy_helper.to_array(tensor)).all():
            raise StageError(
                f"{name} contains weights that are not finite.",
                where=f"stage export, initialiser {tensor.name}",
                why="found NaN or infinity: a normalisation with variance near zero was folded",
                hint="train longer, or choose another architecture",
            )


def _require_running(content: bytes, card: Mapping[str, Any], name: str, opset: int) -> None:
    try:
        session = open_session(content)
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise StageError(
            f"{name} cannot be loaded by the installed ONNX Runtime {ort.__version__}.",
            where="stage export",
            why=first_line(error),
            hint=f"set export.opset below {opset}, or update onnxruntime",
        ) from error
    generator = np.random.default_rng(0)
    outputs = [value.name for value in session.get_outputs()]
    for batch in BATCHES:
        images = generator.integers(0, 256, (batch, *image_shape(card)), dtype=np.uint8)
        try:
            results = session.run(outputs, {INPUT: feed(images, card)})
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise StageError(
                f"{name} declares a dynamic batch but does not run at batch {batch}.",
                where="stage export",
                why=first_line(error),
                hint=_UNSUPPORTED,
            ) from error
        for output, value in zip(outputs, results, strict=True):
            expected = (batch, len(card["classes"]))
            if value.shape != expected or not np.isfinite(value).all():
                raise StageError(
                    f"{name} gives a wrong result at batch {batch}.",
                    where=f"stage export, output {output}",
                    why=f"found shape {value.shape}, expected {expected}"
                    if value.shape != expected
                    else "found values that are not finite",
                    hint=_UNSUPPORTED,
                )


def _shape(value: onnx.ValueInfoProto) -> tuple[object, ...]:
    return tuple(
        dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else None)
        for dim in value.type.tensor_type.shape.dim
    )


def _shapes_text(shapes: Mapping[str, tuple[object, ...]]) -> str:
    return ", ".join(f"{name} ({', '.join(str(dim) for dim in shape)})" for name, shape in shapes.items())
