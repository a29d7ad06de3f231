"""One layer made to hurt is identified, left in float, and reported with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from stages import quantize
from stages.onnx_files.macs import macs_by_node
from stages.onnx_files.quantizing import prepare
from stages.quantizing.sensitivity import group_layers
from tests.stages.onnx_files.trained import folder
from tests.stages.onnx_files.trained_files import Notes, exported_cnn, quantize_context

pytestmark = pytest.mark.long

SICK = "second.0/Conv"
GOAL = 90.0
"""Far enough from the agreement of either file (about 80 and 94 %) for the arithmetic of any processor."""

RUN: dict[str, Any] = {
    "sensitivity": "missed",
    "sensitivity_images": 32,
    "goal_agreement": GOAL,
    "max_float_share": 0.5,  # the network has two large layers, and one is to stay float
}


def _with_an_outlier(factor: float = 3000.0) -> Path:
    """The small CNN with a channel into its second block that is huge, and weighs next to nothing there:
    the same function, but its range leaves no steps to the other channels."""
    place = folder()
    for name in ("student.onnx", "student.json"):
        (place / name).write_bytes((exported_cnn() / name).read_bytes())
    model = onnx.load(place / "student.onnx")
    node = next(node for node in model.graph.node if node.name == SICK)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weight = tensors[node.input[1]]
    values = numpy_helper.to_array(weight).copy()
    values[:, 0] /= factor
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    size = values.shape[1]
    scale = np.ones((1, size, 1, 1), np.float32)
    scale[0, 0] = factor
    model.graph.initializer.append(numpy_helper.from_array(scale, "outlier"))
    position = list(model.graph.node).index(node)
    model.graph.node.insert(
        position, onnx.helper.make_node("Mul", [node.input[0], "outlier"], ["huge"], name="outlier/Mul")
    )
    node.input[0] = "huge"
    onnx.save(model, place / "student.onnx")
    return place


def _quantized(notes: Notes | None = None, **settings: Any) -> tuple[dict[str, Any], Path]:
    context = quantize_context(
        _with_an_outlier(), ("openvino-int8",), notes=notes, **{**RUN, "agreement": 0.0, **settings}
    )
    quantize.run(context)
    report: dict[str, Any] = json.loads((context.output / "calibration.json").read_text())
    return report["files"]["signed"], context.output


def test_the_layer_that_hurts_is_left_in_float_and_no_other() -> None:
    notes = Notes()
    bad, _ = _quantized(sensitivity="never")
    good, output = _quantized(notes)
    assert bad["holdout"]["agreement"] < GOAL
    assert bad["sensitivity"] is None
    assert good["holdout"]["agreement"] >= GOAL
    assert good["agreement"] > bad["agreement"]
    report = good["sensitivity"]
    assert report["layers"][0]["layers"] == [SICK]
    assert (
        report["layers"][0]["logit_rms_relative_to_std"]
        > 5 * report["layers"][1]["logit_rms_relative_to_std"]
    )
    assert report["left_float"] == [SICK]
    assert good["float_layers"] == [{"layer": SICK, "why": "sensitivity"}]
    assert any(f"{GOAL:g} % is the goal" in why for why in report["why"])
    held = [attempt for attempt in report["tried"] if attempt["holds"]]
    assert held[0]["layers"] == [SICK]
    assert any(SICK in note and "stay in float" in note for note in notes.notes)
    graph = onnx.load(output / "student.int8.signed.onnx").graph
    assert {node.name: node for node in graph.node}[SICK].input[0] == "huge"


def test_a_layer_that_is_too_much_of_the_work_is_not_left_in_float() -> None:
    figures, _ = _quantized(max_float_share=0.05)
    assert SICK not in figures["sensitivity"]["left_float"]
    assert all(attempt["macs_share"] <= 0.05 for attempt in figures["sensitivity"]["tried"])


def test_what_the_user_excluded_is_told_as_that() -> None:
    figures, _ = _quantized(exclude=[SICK])
    assert figures["float_layers"] == [{"layer": SICK, "why": "quantize.exclude"}]
    assert figures["sensitivity"] is None, "the file is within its limits"


def test_always_measures_and_leaves_a_good_file_alone() -> None:
    context = quantize_context(exported_cnn(), ("onnxruntime-int8",), **{**RUN, "sensitivity": "always"})
    quantize.run(context)
    figures = json.loads((context.output / "calibration.json").read_text())["files"]["x86"]
    report = figures["sensitivity"]
    assert [len(layer["layers"]) for layer in report["layers"]] == [1] * 4
    errors = [layer["logit_rms_relative_to_std"] for layer in report["layers"]]
    assert errors == sorted(errors, reverse=True)
    assert (report["tried"], report["left_float"], figures["float_layers"]) == ([], [], [])
    assert sum(layer["macs_share"] for layer in report["layers"]) == pytest.approx(1.0, abs=1e-3)


def test_the_work_of_each_node_is_that_of_one_image() -> None:
    macs = macs_by_node(prepare(onnx.load(exported_cnn() / "student.onnx")))
    assert macs == {
        "stem.0/Conv": 16 * 16 * 24 * 9,
        "first.0/Conv": 8 * 8 * 24 * 24 * 9,
        "second.0/Conv": 8 * 8 * 24 * 24 * 9,
        "head/Gemm": 24 * 10,
    }


def test_many_layers_are_taken_together_by_module() -> None:
    names = [f"blocks.{block}.{part}/Conv" for block in range(5) for part in ("a", "b", "c")] + ["head/Gemm"]
    assert group_layers(names, 16) == [(name,) for name in names]
    assert [len(group) for group in group_layers(names, 10)] == [3, 3, 3, 3, 3, 1]
    assert [len(group) for group in group_layers(names, 3)] == [15, 1]
    flat = [f"conv{index}" for index in range(10)]
    for most in range(1, 11):
        groups = group_layers(flat, most)
        assert [name for group in groups for name in group] == flat
        assert len(groups) <= most
