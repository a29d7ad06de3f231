"""Real small networks as the export and quantize stages leave them, made once a test session."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import timm
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from stages.runtimes.base import Source
from stages.runtimes.images import as_input, natural_images

MEAN, STD = (0.45, 0.45, 0.45), (0.25, 0.25, 0.25)
CLASSES = 6
SIZES = {"cnn": 24, "mobilenet": 32, "vit": 32}

_FOLDER = Path(tempfile.mkdtemp(prefix="kdpipe-test-networks-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)


class WithPreprocessing(nn.Module):
    """uint8 (n, H, W, C) -> logits and probabilities (n, classes)."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scaled = images.permute(0, 3, 1, 2).float() / 255.0
        logits = self.network((scaled - self.mean) / self.std)
        return logits, logits.softmax(1)


def network(name: str) -> nn.Module:
    """`cnn`, `mobilenet` or `vit`, with statistics as of a trained network, not of a fresh one."""
    torch.manual_seed(0)
    if name == "cnn":
        model: nn.Module = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, CLASSES),
        )
    elif name == "mobilenet":
        model = timm.create_model("mobilenetv3_small_050", num_classes=CLASSES)
    else:
        model = timm.create_model("test_vit", num_classes=CLASSES, img_size=SIZES[name], patch_size=8)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0.0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(0.0, 0.5 / module.in_features**0.5 * 2, generator=generator)
    return model.eval()


@functools.cache
def exported(name: str, *, preprocessing: bool = True) -> Path:
    """The float ONNX file, with preprocessing inside or plain."""
    size = SIZES[name]
    model = network(name)
    if preprocessing:
        model = WithPreprocessing(model).eval()
        example: torch.Tensor = torch.zeros((2, size, size, 3), dtype=torch.uint8)
        outputs = ["logits", "probabilities"]
    else:
        example, outputs = torch.zeros((2, 3, size, size)), ["logits"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The tracing exporter is several times faster; the others come as the export stage makes them.
        if name == "mobilenet":
            traced = _FOLDER / "traced.onnx"
            torch.onnx.export(
                model,
                (example,),
                str(traced),
                dynamo=False,
                opset_version=20,
                input_names=["input"],
                output_names=outputs,
                dynamic_axes={edge: {0: "batch"} for edge in ("input", *outputs)},
            )
            model = onnx.load(str(traced))
        else:
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=20,
                input_names=["input"],
                output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},),
                verbose=False,
            )
            assert program is not None
            model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]
    file = _FOLDER / f"{name}-{'whole' if preprocessing else 'plain'}.onnx"
    onnx.save(model, str(file))
    return file


@functools.cache
def quantized(name: str, recipe: str, *, preprocessing: bool = True) -> Path:
    """The INT8 ONNX file of a recipe, calibrated on generated images."""
    source = exported(name, preprocessing=preprocessing)
    options: dict[str, Any] = {}
    if recipe == "signed":
        options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    file = source.with_name(f"{source.stem}.int8.{recipe}.onnx")
    quantize_static(
        str(source),
        str(file),
        _Calibration(name, preprocessing),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8 if recipe == "signed" else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        # Processors without VNNI saturate on the full range, and these tests run on any.
        reduce_range=True,
        extra_options=options,
        op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add"],
    )
    return file


def source_of(
    name: str, precision: str = "fp32", recipe: str = "signed", *, preprocessing: bool = True
) -> Source:
    if precision == "int8":
        file = quantized(name, recipe, preprocessing=preprocessing)
    else:
        file = exported(name, preprocessing=preprocessing)
    size = SIZES[name]
    return Source(
        onnx=file,
        precision=precision,
        image_shape=(size, size, 3),
        input="uint8_nhwc" if preprocessing else "float32_nchw",
        mean=MEAN,
        std=STD,
    )


def artefacts(folder: Path, *, student: str = "mobilenet", preprocessing: bool = True) -> dict[str, Path]:
    """The folders that export and quantize leave: a CNN as the teacher, `student` beside it."""
    places = {"export": folder / "export", "quantize": folder / "quantize"}
    for place in places.values():
        place.mkdir(parents=True)
    for role, name in (("teacher", "cnn"), ("student", student)):
        shutil.copyfile(exported(name, preprocessing=preprocessing), places["export"] / f"{role}.onnx")
        card = {
            "schema_version": 1,
            "role": role,
            "model": name,
            "classes": [str(label) for label in range(CLASSES)],
            "input": "uint8_nhwc" if preprocessing else "float32_nchw",
            "preprocessing": {
                "image_size": SIZES[name],
                "channels": 3,
                "resize": "bilinear",
                "antialias": True,
                "scale": 1 / 255,
                "mean": list(MEAN),
                "std": list(STD),
            },
        }
        (places["export"] / f"{role}.json").write_text(json.dumps(card), encoding="utf-8")
    for recipe in ("x86", "signed"):
        shutil.copyfile(
            quantized(student, recipe, preprocessing=preprocessing),
            places["quantize"] / f"student.int8.{recipe}.onnx",
        )
    return places


class _Calibration(CalibrationDataReader):
    def __init__(self, name: str, preprocessing: bool) -> None:
        images = natural_images((SIZES[name], SIZES[name], 3), 32, seed=5)
        feeds: np.ndarray = images
        if not preprocessing:
            feeds = as_input(images, source_of(name, preprocessing=False))
        self._feeds = iter([{"input": part} for part in np.split(feeds, 4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)
