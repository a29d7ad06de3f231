"""Every conversion of a small trained student, healthy and with faults planted."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from pipeline.errors import UsageError
from pipeline.stage import Context, Silent
from stages import build
from stages.debugging.line import debug_line
from stages.runtimes.settings import BuildSettings, TargetSettings
from tests.errors import raises
from tests.processes import starts_processes
from tests.stages.onnx_files.trained import MOBILENET, TINY, artefact, digits_settings, folder
from tests.stages.onnx_files.trained_files import exported, quantized

pytestmark = pytest.mark.long

TARGETS = (
    "onnxruntime-fp32", "onnxruntime-int8", "openvino-fp32", "openvino-bf16", "openvino-int8",
    "tensorrt_rtx-fp16", "tensorrt_rtx-bf16",
)  # fmt: skip


def _settings() -> SimpleNamespace:
    return SimpleNamespace(
        data=digits_settings(), targets=[TargetSettings(name=name) for name in TARGETS], build=BuildSettings()
    )


@functools.cache
@starts_processes
def _folders() -> dict[str, Path]:
    signed = quantized(exported())[0]
    places = {
        "train": artefact(TINY),
        "distill": artefact(MOBILENET),
        "export": exported(),
        "quantize": signed,
        "build": folder(),
    }
    inputs = {name: places[name] for name in ("export", "quantize")}
    build.run(Context(settings=_settings(), inputs=inputs, output=places["build"], work=folder()))
    return places


def _debug(
    output: Path, model: str = "student", target: str | None = None, **changed: Path
) -> dict[str, dict[str, Any]]:
    asked = {"model": model, "target": target, "tolerance": None, "images": 16}
    found = debug_line(_settings(), {**_folders(), **changed}, asked, output, Silent())
    assert found["healthy"] == all(step["healthy"] for step in found["steps"])
    return {step["step"]: step for step in found["steps"]}


def test_a_sound_line_is_healthy_step_by_step(tmp_path: Path) -> None:
    steps = _debug(tmp_path / "out")
    assert list(steps) == [
        "PyTorch -> student.onnx",
        "student.onnx -> onnxruntime-fp32",
        "student.onnx -> student.int8.x86.onnx",
        "student.int8.x86.onnx -> onnxruntime-int8",
        "student.onnx -> openvino-fp32",
        "student.onnx -> openvino-bf16",
        "student.onnx -> student.int8.signed.onnx",
        "student.int8.signed.onnx -> openvino-int8",
        "student.onnx -> its fp16 form",
        "student.onnx -> tensorrt_rtx-fp16",
        "student.onnx -> its bf16 form",
        "student.onnx -> tensorrt_rtx-bf16",
    ]
    for name, step in steps.items():
        assert step["healthy"], (name, step)
        if step["status"] != "skipped":
            assert step["compared"] > 50, name
    assert steps["student.onnx -> openvino-fp32"]["shipped_relative"] < 1e-3
    assert not (tmp_path / "out").exists()
    teacher = _debug(tmp_path / "out", "teacher")
    assert list(teacher) == ["PyTorch -> teacher.onnx", "teacher.onnx -> onnxruntime-fp32"]


@pytest.mark.parametrize("place", ["blocks.1.1.conv_pwl/Conv", "conv_stem/Conv", "classifier/Gemm"])
def test_a_wrong_weight_of_the_exported_file_is_found_beside_pytorch(place: str, tmp_path: Path) -> None:
    copy = tmp_path / "export"
    shutil.copytree(exported(), copy)
    model = onnx.load(copy / "student.onnx")
    node = next(node for node in model.graph.node if node.name == place)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] += 3.0
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, copy / "student.onnx")
    steps = _debug(tmp_path / "out", target="onnxruntime-fp32", export=copy)
    step = steps["PyTorch -> student.onnx"]
    found = step["first"]
    assert found["node"] == place
    case = onnx.load(tmp_path / "out" / "torch" / "suspect.onnx")
    assert place in [node.name for node in case.graph.node]


def test_a_target_that_the_profile_does_not_have_is_a_mistake(tmp_path: Path) -> None:
    with raises(UsageError, what="no target openvino-fp16"):
        _debug(tmp_path / "out", target="openvino-fp16")
