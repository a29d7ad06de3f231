"""The ONNX files that a device builds its engines from, prepared here for TensorRT."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from stages.runtimes import registry
from stages.runtimes.base import Source
from stages.runtimes.settings import BuildSettings
from stages.runtimes.tensorrt import family as tensorrt_family


def prepare(
    targets: Iterable[str], inputs: Mapping[str, Path], output: Path, settings: BuildSettings | None = None
) -> None:
    """Write `TARGET.onnx` for each target into `output`.

    fp16 and bf16 are put into the graph here: the device builds strongly typed, and may have nothing but
    TensorRT.

    Args:
        targets: names of TensorRT targets.
        inputs: the folders of `export` and `quantize`.
        output: where the files go.
        settings: those of the conversion to 16 bits count; None: the defaults.

    Raises:
        StageError: a graph cannot be converted.
    """
    card = json.loads((inputs["export"] / "student.json").read_text(encoding="utf-8"))
    preprocessing = card["preprocessing"]
    size = preprocessing["image_size"]
    images = inputs["export"] / "images.npy"
    for target in targets:
        runtime = registry.check_target(target)
        precision = registry.target_parts(target)[1]
        quantized = inputs["quantize"] / f"student.int8.{runtime.recipe}.onnx"
        source = Source(
            onnx=quantized if precision == "int8" else inputs["export"] / "student.onnx",
            precision=precision,
            image_shape=(size, size, preprocessing["channels"]),
            input=card["input"],
            mean=tuple(preprocessing["mean"]),
            std=tuple(preprocessing["std"]),
            images=images if images.is_file() else None,
        )
        model, _ = tensorrt_family.prepare(source, settings)
        (output / f"{target}.onnx").write_bytes(model.SerializeToString(deterministic=True))
