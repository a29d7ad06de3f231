"""The stage quantize, on files of networks that were really trained."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from pipeline.errors import StageError, UsageError
from stages import quantize
from stages.onnx_files.calibration import draw
from stages.onnx_files.lint import tensorrt_ready
from stages.onnx_files.metadata import feed, read_metadata
from stages.onnx_files.quantized_proof import paired_accuracy, quantization_fault
from stages.runtimes.settings import TargetSettings
from tests.errors import raises
from tests.stages.onnx_files.trained import digits
from tests.stages.onnx_files.trained_files import (
    BOTH,
    Notes,
    exported,
    exported_cnn,
    quantize_context,
    quantized,
)

pytestmark = pytest.mark.long

SIGNED, X86 = "student.int8.signed.onnx", "student.int8.x86.onnx"

NETWORKS = {"mobilenet": exported, "cnn": exported_cnn}


def _files(network: str = "mobilenet") -> Path:
    return quantized(NETWORKS[network]())[0]


def _report(folder: Path) -> dict[str, object]:
    report: dict[str, object] = json.loads((folder / "calibration.json").read_text())
    return report


def _top1(path: Path) -> tuple[np.ndarray, float]:
    test = digits().test
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input": test.images.batch(np.arange(len(test)))})
    return logits.argmax(axis=1), float((logits.argmax(axis=1) == test.labels).mean())


@pytest.mark.parametrize(
    ("targets", "files"),
    [
        (["onnxruntime-int8"], ["x86"]),
        (["openvino-int8", "onnxruntime-fp32"], ["signed"]),
        (["tensorrt-int8", "tensorrt_rtx-int8"], ["signed"]),
        (["tensorrt-int8", "onnxruntime-int8"], ["x86", "signed"]),
        (["tensorrt-fp16", "onnxruntime-fp32"], []),
    ],
)
def test_only_what_the_targets_need_is_made(targets: list[str], files: list[str]) -> None:
    recipes = quantize.needed_recipes([TargetSettings(name=name) for name in targets])
    assert [recipe.name for recipe in recipes] == files


def test_an_unknown_runtime_is_a_fault_of_the_profile() -> None:
    with raises(UsageError, what="onnxruntim"):
        quantize.needed_recipes([TargetSettings(name="onnxruntim-int8")])


def test_without_int8_targets_it_says_so_and_leaves_nothing_else() -> None:
    context = quantize_context(exported(), ("onnxruntime-fp32",))
    assert quantize.run(context) == {"files": 0}
    assert [path.name for path in context.output.iterdir()] == ["calibration.json"]
    assert _report(context.output) == {
        "schema_version": 1,
        "needed": False,
        "why": "no target has precision int8",
    }


@pytest.mark.parametrize("network", list(NETWORKS))
@pytest.mark.parametrize("file", [X86, SIGNED])
def test_int8_files_predict_as_the_float_file_and_are_smaller(network: str, file: str) -> None:
    source = NETWORKS[network]() / "student.onnx"
    path = _files(network) / file
    before, accuracy = _top1(source)
    after, left = _top1(path)
    assert (before == after).mean() > 0.95
    assert left > accuracy - 0.03
    assert path.stat().st_size < 0.5 * source.stat().st_size


@pytest.mark.parametrize("network", list(NETWORKS))
def test_calibration_json_tells_what_was_done(network: str) -> None:
    folder, metrics = quantized(NETWORKS[network]())
    report = _report(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["calibration.json", SIGNED, X86]
    images = report["images"]
    assert isinstance(images, dict)
    assert images["count"] == 64
    assert {entry["images"] for entry in images["per_class"]} == {6, 7}
    assert abs(images["normalised_mean"][0]) < 0.2
    files = report["files"]
    assert isinstance(files, dict)
    for name, file in (("x86", X86), ("signed", SIGNED)):
        figures = files[name]
        assert figures["size_bytes"] == (folder / file).stat().st_size == metrics[f"{name}_size_bytes"]
        assert figures["agreement"] == metrics[f"{name}_agreement"] > 95
        assert 0 < figures["logit_rms_relative_to_std"] < 0.3
        assert figures["quantize_nodes"] > 0
        lost = figures["against_float"]
        assert lost["ci"][0] <= lost["points"] <= lost["ci"][1]
        assert lost["points"] == pytest.approx(figures["top1"] - report["float_top1"], abs=1e-3)
        assert lost["images"] == report["validation_images"]
        assert figures["row_by_row"]["max_relative_to_std"] < 0.1
        assert figures["passed"]
    assert files["signed"]["lint"] == []
    assert files["x86"]["lint"] is None


def test_calibration_sees_training_images_alone_and_the_same_ones_each_time() -> None:
    data = digits()
    chosen = draw(data.train.labels, 64, 0)
    pixels = data.train.images.batch(chosen).astype(np.float64) / 255
    images = _report(_files())["images"]
    assert isinstance(images, dict)
    assert images["mean"] == [pytest.approx(pixels.mean(), abs=1e-6)]
    assert images["std"] == [pytest.approx(pixels.std(), abs=1e-6)]


def test_the_signed_file_is_fit_for_tensorrt_and_the_other_is_not() -> None:
    assert tensorrt_ready(_files() / SIGNED) == []
    findings = tensorrt_ready(_files() / X86)
    assert any("int32 bias" in finding for finding in findings)
    assert any("uint8, expected int8" in finding for finding in findings)


@pytest.mark.parametrize("network", list(NETWORKS))
def test_tensorrt_s_own_parser_takes_the_signed_file_and_refuses_the_other(network: str) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    program = (
        "import sys, tensorrt_rtx as trt\n"
        "logger = trt.Logger(trt.Logger.ERROR)\n"
        "network = trt.Builder(logger).create_network(0)\n"
        "parser = trt.OnnxParser(network, logger)\n"
        "taken = parser.parse(open(sys.argv[1], 'rb').read())\n"
        "print([parser.get_error(i).desc() for i in range(parser.num_errors)], file=sys.stderr)\n"
        "sys.exit(0 if taken else 3)\n"
    )
    codes = [
        subprocess.run([sys.executable, "-c", program, str(_files(network) / file)], check=False).returncode
        for file in (SIGNED, X86)
    ]
    assert codes == [0, 3]


@pytest.mark.parametrize("file", [X86, SIGNED])
def test_pixels_logits_and_probabilities_stay_float(file: str) -> None:
    graph = onnx.load(_files() / file).graph
    producers = {name: node for node in graph.node for name in node.output}
    assert producers["logits"].op_type == "Gemm"
    assert producers["probabilities"].input[0] == "logits"
    for node in graph.node:
        ours = node.name.startswith(("preprocessing/", "probabilities/"))
        if ours and node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            assert not any(
                producers[name].op_type == "DequantizeLinear" for name in node.input if name in producers
            )


@pytest.mark.parametrize("file", [X86, SIGNED])
def test_the_file_keeps_its_facts_and_drops_the_tools(file: str) -> None:
    model = onnx.load(_files() / file)
    onnx.checker.check_model(model, full_check=True)
    float_model = onnx.load(exported() / "student.onnx")
    assert read_metadata(model) == read_metadata(float_model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert model.producer_name == float_model.producer_name
    assert not model.graph.doc_string


@pytest.mark.parametrize("file", [X86, SIGNED])
def test_weights_keep_to_seven_bits_with_one_scale_a_channel(file: str) -> None:
    """Full weights saturate on x86 processors without VNNI."""
    model = onnx.load(_files() / file)
    weights = [
        tensor
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1
    ]
    assert len(weights) > 30
    assert max(np.abs(numpy_helper.to_array(tensor).astype(int)).max() for tensor in weights) == 64
    scales = {tensor.name: tensor for tensor in model.graph.initializer}
    stem = next(tensor for tensor in weights if "conv_stem" in tensor.name)
    reader = next(node for node in model.graph.node if stem.name in node.input)
    assert list(scales[reader.input[1]].dims) == [stem.dims[0]]


def test_one_scale_for_a_whole_weight_if_asked(tmp_path: Path) -> None:
    context = quantize_context(exported_cnn(), BOTH, per_channel=False)
    quantize.run(context)
    for file in (X86, SIGNED):
        graph = onnx.load(context.output / file).graph
        assert all(np.prod(t.dims, dtype=int) == 1 for t in graph.initializer if t.name.endswith("_scale"))


def test_equal_work_gives_equal_files() -> None:
    context = quantize_context(exported())
    quantize.run(context)
    for path in context.output.iterdir():
        assert path.read_bytes() == (_files() / path.name).read_bytes()


def test_excluded_nodes_stay_float() -> None:
    context = quantize_context(exported_cnn(), exclude=["first.*", "head/Gemm"])
    quantize.run(context)
    names = set(_report(context.output)["float_nodes"])  # type: ignore[call-overload]
    assert {"first.0/Conv", "head/Gemm"} <= names
    for file in (X86, SIGNED):
        model = onnx.load(context.output / file)
        kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        assert kinds["first.0.weight"] == kinds["head.weight"] == TensorProto.FLOAT
        assert "second.0.weight" not in kinds


def test_a_pattern_that_matches_nothing_names_what_is_near() -> None:
    context = quantize_context(exported_cnn(), exclude=["frist.0/Conv*"])
    with raises(UsageError, what=r"frist\.0/Conv") as caught:
        quantize.run(context)
    assert "first.0/Conv" in caught.value.hint
    assert list(context.output.iterdir()) == []


def test_a_plain_graph_is_calibrated_with_normalised_images() -> None:
    folder = exported(preprocessing=False)
    context = quantize_context(folder)
    metrics = quantize.run(context)
    assert metrics["x86_agreement"] > 95
    assert metrics["signed_agreement"] > 95
    card = json.loads((folder / "student.json").read_text())
    images = feed(digits().test.images.batch(np.arange(5)), card)
    session = ort.InferenceSession(str(context.output / X86), providers=["CPUExecutionProvider"])
    assert session.run(None, {"input": images})[0].shape == (5, 10)


def test_the_methods_find_different_ranges() -> None:
    ends = {}
    for method in ("minmax", "moving_average", "percentile", "entropy"):
        context = quantize_context(exported_cnn(), ("onnxruntime-int8",), method=method, percentile=99.0)
        quantize.run(context)
        (ranges,) = _report(context.output)["ranges"].values()  # type: ignore[attr-defined]
        ends[method] = ranges["stem.0/Conv"]
    widths = {method: high - low for method, (low, high) in ends.items()}
    assert len(set(widths.values())) == 4
    assert widths["minmax"] == max(widths.values())


def test_poor_agreement_is_said_loudly_and_is_no_failure() -> None:
    notes = Notes()
    bad: dict[str, Any] = {"method": "percentile", "percentile": 51.0, "agreement": 0.0}
    context = quantize_context(exported(), notes=notes, **bad)
    metrics = quantize.run(context)
    assert metrics["x86_agreement"] < 80
    assert any("WARNING" in note and "quantize.method" in note for note in notes.notes)


def test_agreement_below_the_profile_s_limit_fails_unless_proofs_are_off() -> None:
    bad: dict[str, Any] = {"method": "percentile", "percentile": 51.0}
    with raises(StageError, what="predicts other classes than the float file") as caught:
        quantize.run(quantize_context(exported(), **bad))
    assert "expected at least 50 % (quantize.agreement)" in caught.value.why
    bad["agreement"] = 90.0
    with raises(StageError, what="predicts other classes than the float file") as caught:
        quantize.run(quantize_context(exported(), **bad))
    assert "expected at least 90 % (quantize.agreement)" in caught.value.why
    assert "kdpipe debug PROFILE" in caught.value.hint
    notes = Notes()
    context = quantize_context(exported(), notes=notes, prove=False, **bad)
    quantize.run(context)
    files: Any = _report(context.output)["files"]
    assert not files["x86"]["passed"]
    assert any("written all the same" in note for note in notes.notes)


def test_a_file_that_lost_the_image_fails() -> None:
    reference = np.random.default_rng(0).normal(size=(20, 10))
    figures = {"agreement": 100.0, "row_by_row": {"max_relative_to_std": 0.0, "batches": [1]}}
    same = np.repeat(reference[:1], 20, axis=0)
    for logits, what in ((same, "same logits for every image"), (reference * np.nan, "not finite")):
        fault = quantization_fault("student.int8.x86.onnx", logits, reference, figures, agreement=0.0)
        assert fault is not None
        assert what in fault.what
    assert quantization_fault("file", reference, reference, figures, agreement=99.0) is None


def test_what_a_conversion_cost_is_counted_image_by_image() -> None:
    labels = np.zeros(100, dtype=np.int64)
    reference, converted = np.eye(10)[np.zeros(100, dtype=int)], np.eye(10)[np.repeat([0, 1], [90, 10])]
    cost = paired_accuracy(converted, reference, labels)
    assert (cost["points"], cost["gained"], cost["lost"], cost["verdict"]) == (-10.0, 0, 10, "worse")
    assert cost["p_value"] == pytest.approx(2 / 2**10, rel=1e-2)


def test_good_agreement_is_not_talked_about() -> None:
    notes = Notes()
    quantize.run(quantize_context(exported_cnn(), notes=notes))
    assert notes.notes == []


def test_images_are_training_images_and_what_is_chosen_is_chosen_on_others() -> None:
    data = digits()
    images: Any = _report(_files())["images"]
    drawn, held = images["indices"], images["holdout_indices"]
    assert (len(drawn), len(held)) == (64, 64) == (images["count"], images["holdout"])
    assert not set(drawn) & set(held)
    assert max(drawn + held) < len(data.train)
    assert images["drawn_from"] == "train"
    assert images["validation_compared"] == len(data.validation)
    assert (images["blank"], images["in_holdout"], images["doubts"]) == (0, 0, [])


def test_auto_tries_every_method_and_takes_the_one_that_agrees_best() -> None:
    notes = Notes()
    context = quantize_context(exported_cnn(), notes=notes, method="auto", images=40)
    quantize.run(context)
    report: Any = _report(context.output)
    for name, file in (("x86", X86), ("signed", SIGNED)):
        calibration = report["files"][name]["calibration"]
        rows = calibration["tried"]
        assert [row["method"] for row in rows] == [
            "moving_average",
            "minmax",
            "percentile 99.9",
            "percentile 99.99",
            "percentile 99.999",
            "entropy",
        ]
        tried = [row for row in rows if row["same_ranges_as"] is None]
        assert len(tried) >= 4
        best = max(tried, key=lambda row: (row["agreement"], -row["logit_rms_relative_to_std"]))
        assert best["chosen"]
        assert [row["method"] for row in rows if row["chosen"]] == [calibration["method"]]
        assert report["files"][name]["holdout"]["agreement"] == best["agreement"]
        assert calibration["method"] in report["ranges"]
        assert any(file in note and f"calibrated by {calibration['method']}" in note for note in notes.notes)


def test_a_method_with_the_ranges_of_another_is_told_and_not_tried() -> None:
    notes = Notes()
    context = quantize_context(
        exported_cnn(), ("onnxruntime-int8",), notes=notes, method="auto", images=10, holdout=20
    )
    quantize.run(context)
    rows: Any = _report(context.output)["files"]["x86"]["calibration"]["tried"]  # type: ignore[index]
    minmax = next(row for row in rows if row["method"] == "minmax")
    assert minmax["same_ranges_as"] == "moving_average", "ten images are one group"
    assert minmax["agreement"] is None
    assert any("minmax has the ranges of moving_average" in note for note in notes.notes)


def test_what_a_file_loses_is_held_against_the_budget() -> None:
    files: Any = _report(_files())["files"]
    for figures in files.values():
        budget, cost = figures["budget"], figures["against_float"]
        assert budget["lost"] == -cost["points"]
        assert budget["lost_ci"] == [-cost["ci"][1], -cost["ci"][0]]
        assert budget["missed"] == (budget["lost"] > budget["points"])
