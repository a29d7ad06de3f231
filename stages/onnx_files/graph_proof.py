"""Whether an exported file is what was asked for: looked at, and run at several batches."""

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
"""Batches a file is run at: 1, the exporter's example, and a prime that no shape divides by accident."""

_EXPORT_AGAIN = "export another architecture, or report this one: the exporter lost what was asked of it"


def prove_graph(model: onnx.ModelProto, card: Mapping[str, Any], *, role: str, opset: int) -> bytes:
    """The file's bytes, once it is proven to be what was asked for.

    Checks the graph with onnx's full checker, its dimensions, operator set and weights, that the
    installed ONNX Runtime takes it, and that it runs at the batches of `BATCHES` with the shapes
    that it declares and finite results. Raises StageError naming what is wrong.
    """
    name = f"The {role}'s ONNX file"
    _require_asked(model, card, name, opset)
    content = serialised(model)
    if len(content) > SINGLE_FILE_LIMIT:
        raise StageError(
            f"{name} is too large.",
            where="stage export",
            why=f"found {len(content) / 1e9:.2f} GB, at most {SINGLE_FILE_LIMIT / 1e9:.1f} GB fit one file",
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


def _require_asked(model: onnx.ModelProto, card: Mapping[str, Any], name: str, opset: int) -> None:
    height, width, channels = image_shape(card)
    classes = len(card["classes"])
    uint8 = card["input"] == "uint8_nhwc"
    asked: dict[str, tuple[object, ...]] = {
        INPUT: (BATCH, height, width, channels) if uint8 else (BATCH, channels, height, width),
        LOGITS: (BATCH, classes),
    }
    if uint8:
        asked[PROBABILITIES] = (BATCH, classes)
    found = {value.name: _shape(value) for value in (*model.graph.input, *model.graph.output)}
    if found != asked:
        raise StageError(
            f"{name} does not have the inputs and outputs that were asked for.",
            where="stage export",
            why=f"found {_told(found)}; expected {_told(asked)}"
            + (
                ": the network fixes the batch in its code (a view or reshape with a number)"
                if found.get(INPUT, ("",))[0] != BATCH
                else ""
            ),
            hint=_EXPORT_AGAIN,
        )
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": opset}:
        raise StageError(
            f"{name} has another operator set than was asked for.",
            where="stage export",
            why=f"found {opsets}, expected {{'': {opset}}}",
            hint="set export.opset: 20",
        )
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and not np.isfinite(numpy_helper.to_array(tensor)).all():
            raise StageError(
                f"{name} holds weights that are not finite.",
                where=f"stage export, initialiser {tensor.name}",
                why="found NaN or infinity: a normalisation with variance near zero was folded",
                hint="train longer, or choose another architecture",
            )


def _require_running(content: bytes, card: Mapping[str, Any], name: str, opset: int) -> None:
    try:
        session = open_session(content)
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise StageError(
            f"{name} is refused by the installed ONNX Runtime {ort.__version__}.",
            where="stage export",
            why=first_line(error),
            hint=f"set export.opset below {opset}, or update onnxruntime",
        ) from error
    generator = np.random.default_rng(0)
    outputs = [value.name for value in session.get_outputs()]
    for batch in BATCHES:
        images = generator.integers(0, 256, (batch, *image_shape(card)), dtype=np.uint8)
        try:
            found = session.run(outputs, {INPUT: feed(images, card)})
        except Exception as error:  # see above
            raise StageError(
                f"{name} declares a dynamic batch but does not run at batch {batch}.",
                where="stage export",
                why=first_line(error),
                hint=_EXPORT_AGAIN,
            ) from error
        for output, value in zip(outputs, found, strict=True):
            expected = (batch, len(card["classes"]))
            if value.shape != expected or not np.isfinite(value).all():
                raise StageError(
                    f"{name} gives a wrong result at batch {batch}.",
                    where=f"stage export, output {output}",
                    why=f"found shape {value.shape}, expected {expected}"
                    if value.shape != expected
                    else "found values that are not finite",
                    hint=_EXPORT_AGAIN,
                )


def _shape(value: onnx.ValueInfoProto) -> tuple[object, ...]:
    return tuple(
        dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else None)
        for dim in value.type.tensor_type.shape.dim
    )


def _told(shapes: Mapping[str, tuple[object, ...]]) -> str:
    return ", ".join(f"{name} ({', '.join(str(dim) for dim in shape)})" for name, shape in shapes.items())
