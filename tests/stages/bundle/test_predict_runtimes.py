"""The bundle's program runs targets of every runtime, or says why it cannot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from pipeline.stage import Silent
from stages.bundle import predict
from stages.runtimes import parity, registry
from stages.runtimes.base import Source
from stages.runtimes.images import natural_images
from stages.runtimes.settings import BuildSettings
from tests.stages.runtimes.networks import CLASSES, MEAN, STD, source_of


def _bundle(folder: Path, target: str, source: Source, **facts_of_target: int) -> Path:
    """A bundle of one target, whose files the caller puts into the folder that is returned."""
    models = folder / "models" / target
    models.mkdir(parents=True)
    shutil.copyfile(Path(predict.__file__), folder / "predict.py")
    (folder / "labels.txt").write_text("\n".join(map(str, range(CLASSES))), encoding="utf-8")
    height, _, channels = source.image_shape
    facts = {"image_size": height, "channels": channels, "resize": "bilinear", "scale": 1 / 255}
    entry = {"runtime": target.rpartition("-")[0], "batch_max": 1, "top1": None, **facts_of_target}
    manifest = {
        "default_target": target,
        "input": source.input,
        "preprocessing": {**facts, "mean": MEAN, "std": STD},
        "targets": {target: entry},
        "files": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return models


def _predict(folder: Path, images: np.ndarray) -> subprocess.CompletedProcess[str]:
    np.save(folder / "images.npy", images)
    command = [sys.executable, "-I", "predict.py", "images.npy", "--json", "--top", str(CLASSES)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("preprocessing", [True, False])
def test_ncnn_gives_the_probabilities_of_the_source(
    precision: str, preprocessing: bool, tmp_path: Path
) -> None:
    runtime = registry.get("ncnn")
    if not runtime.ability_to_build().can:
        pytest.skip(runtime.ability_to_build().why_not)
    source = source_of("cnn", precision, preprocessing=preprocessing)
    models = _bundle(tmp_path, f"ncnn-{precision}", source)
    runtime.build(source, models, BuildSettings(), Silent(), tmp_path / "work")
    images = natural_images(source.image_shape, 5)
    done = _predict(tmp_path, images)
    assert done.returncode == 0, done.stderr
    predictions: list[list[dict[str, Any]]] = json.loads(done.stdout)["predictions"]
    expected = predict.softmax(parity.source_logits(source.onnx, source, images))
    for row, row_expected in zip(predictions, expected, strict=True):
        by_label = {int(entry["label"]): entry["probability"] for entry in row}
        np.testing.assert_allclose([by_label[label] for label in range(CLASSES)], row_expected, atol=1e-3)


@pytest.mark.parametrize("images", [1, 8, 11])
def test_a_file_for_larger_batches_is_given_none_that_is_smaller(images: int, tmp_path: Path) -> None:
    source = source_of("cnn")
    models = _bundle(tmp_path, "onnxruntime-fp32", source, batch_min=8, batch_max=8)
    model = onnx.load(str(source.onnx))
    del model.graph.value_info[:]
    for edge in (*model.graph.input, *model.graph.output):
        edge.type.tensor_type.shape.dim[0].dim_value = 8
    onnx.save(model, str(models / "model.onnx"))
    pixels = natural_images(source.image_shape, images)
    done = _predict(tmp_path, pixels)
    assert done.returncode == 0, done.stderr
    predictions: list[list[dict[str, Any]]] = json.loads(done.stdout)["predictions"]
    expected = parity.source_logits(source.onnx, source, pixels).argmax(axis=1)
    assert [int(row[0]["label"]) for row in predictions] == expected.tolist()


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="onnxruntime-gpu is installed"
)
def test_a_gpu_target_does_not_run_on_the_cpu_unasked(tmp_path: Path) -> None:
    source = source_of("cnn")
    models = _bundle(tmp_path, "onnxruntime_cuda-fp32", source)
    shutil.copyfile(source.onnx, models / "model.onnx")
    sidecar = {"provider": "CUDAExecutionProvider", "options": {"use_tf32": "0"}}
    (models / "provider.json").write_text(json.dumps(sidecar), encoding="utf-8")
    done = _predict(tmp_path, natural_images(source.image_shape, 1))
    assert done.returncode == 4
    assert "the installed ONNX Runtime has no CUDAExecutionProvider" in done.stderr


PACKAGE = """
import sys

import numpy as np


class SessionOptions:
    pass


class InferenceSession:
    def __init__(self, file, options, providers, enable_fallback):
        self.found = providers[0][0] if "tensorrt" in sys.modules else "CPUExecutionProvider"

    def get_providers(self):
        return [self.found]

    def run(self, names, feed):
        return [np.zeros((len(feed["input"]), CLASSES), np.float32)]


def get_available_providers():
    return ["TensorrtExecutionProvider"]


def preload_dlls():
    pass
""".replace("CLASSES", str(CLASSES))
"""Stands in for onnxruntime-gpu, which needs a GPU: its provider finds TensorRT's libraries only where the
tensorrt package has loaded them before."""


@pytest.mark.parametrize(
    ("tensorrt", "code"),
    [("", 0), ("raise OSError('no libnvinfer')", 4), (None, 4)],
    ids=["", "broken", "none"],
)
def test_tensorrts_libraries_are_loaded_for_its_provider(
    tensorrt: str | None, code: int, tmp_path: Path
) -> None:
    source = source_of("cnn")
    models = _bundle(tmp_path, "onnxruntime_tensorrt-fp32", source)
    shutil.copyfile(source.onnx, models / "model.onnx")
    sidecar: dict[str, Any] = {"provider": "TensorrtExecutionProvider", "options": {}}
    (models / "provider.json").write_text(json.dumps(sidecar), encoding="utf-8")
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "onnxruntime.py").write_text(PACKAGE, encoding="utf-8")
    if tensorrt is not None:
        (packages / "tensorrt.py").write_text(tensorrt, encoding="utf-8")
    np.save(tmp_path / "images.npy", natural_images(source.image_shape, 1))
    done = subprocess.run(
        [sys.executable, "predict.py", "images.npy"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    if code:
        assert "ONNX Runtime cannot load TensorrtExecutionProvider here" in done.stderr
