"""What engines are built from on a device: ONNX files as TensorRT takes them, made here."""

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
    """Writes `TARGET.onnx` for each TensorRT target into `output`.

    inputs: the folders of `export` and `quantize`. fp16 and bf16 are put into the graph here, for the device
    builds strongly typed and may have nothing but TensorRT; of the settings (None: the defaults) that
    conversion's count. Raises StageError if a graph cannot be converted.
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
