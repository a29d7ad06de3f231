"""measure: the scorecard of real targets, held against what the files really give."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from stages.data import load as data
from tests.stages.line import Line


@pytest.fixture(scope="module")
def scorecard(measured_line: Line) -> dict[str, Any]:
    text = (measured_line.folder / "measure" / "scorecard.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def test_the_teacher_comes_first_and_every_target_has_a_row(scorecard: dict[str, Any]) -> None:
    named = [(row["model"], row["target"]) for row in scorecard["rows"]]
    assert named == [
        ("teacher", "onnxruntime-fp32"),
        ("student", "onnxruntime-fp32"),
        ("student", "onnxruntime-int8"),
        ("student", "tensorrt-fp16"),
    ]


def test_accuracy_is_that_of_the_very_file(measured_line: Line, scorecard: dict[str, Any]) -> None:
    """Recomputed here with nothing but ONNX Runtime, the shipped file and the test images."""
    test = data.load(measured_line.profile.data).test
    images = test.images.batch(np.arange(len(test)))
    for row in scorecard["rows"]:
        if row["runtime"] != "onnxruntime":
            continue
        file = next((measured_line.folder / "build" / row["model"] / row["target"]).glob("*.onnx"))
        assert hashlib.sha256(file.read_bytes()).hexdigest() == row["sha256"]
        assert file.stat().st_size == row["size_bytes"]
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        predicted = session.run(["logits"], {"input": images})[0].argmax(1)
        assert row["top1"] == pytest.approx(100 * (predicted == test.labels).mean(), abs=0.2)
        assert row["top1_ci"][0] <= row["top1"] <= row["top1_ci"][1]


def test_latency_entries_match_the_raw_samples(measured_line: Line, scorecard: dict[str, Any]) -> None:
    for row in scorecard["rows"]:
        if not row["latency"]:
            continue
        assert [(e["batch"], e["threads"]) for e in row["latency"]] == [(1, 1), (4, 1)]
        for entry in row["latency"]:
            name = f"{row['model']}-{row['target']}-b{entry['batch']}-t{entry['threads']}.npy"
            raw = np.load(measured_line.folder / "measure" / "samples" / name)
            assert raw.dtype == np.int64
            assert len(raw) == entry["n"] >= 20
            assert entry["p50_ms"] == pytest.approx(np.sort(raw)[-(-len(raw) // 2) - 1] * 1e-6)
            assert entry["p50_ci_ms"][0] <= entry["p50_ms"] <= entry["p50_ci_ms"][1]
        assert row["latency"][1]["p50_ms"] > row["latency"][0]["p50_ms"], "four images take longer than one"


def test_memory_size_speed_and_machine_are_stated(scorecard: dict[str, Any]) -> None:
    teacher, student = scorecard["rows"][:2]
    assert teacher["speedup"] == 1.0
    ratio = teacher["latency"][0]["p50_ms"] / student["latency"][0]["p50_ms"]
    assert student["speedup"] == pytest.approx(ratio, rel=1e-3)
    for row in (teacher, student):
        assert row["peak_memory_bytes"] > row["memory_over_idle_bytes"] > 0
        assert row["load_ms"] > 0
        assert row["first_inference_ms"] > 0
        assert row["effective_precision"]
    assert scorecard["machine"]["cpu"]
    assert int(scorecard["machine"]["cores"]) >= 1
    assert student["clock"] == "time.perf_counter_ns"


def test_every_measurement_tells_its_cores_its_warm_up_and_its_health(scorecard: dict[str, Any]) -> None:
    for row in scorecard["rows"]:
        for entry in row["latency"]:
            assert len(entry["cores"]) == entry["threads"], "bound to as many cores as it has threads"
            assert entry["warmup"]["calls"] >= 10
            assert entry["cpu_p50_ms"] > 0
            assert entry["gpu"] is None, "a CPU runtime"
            used = entry["energy"]
            assert (used["joules_per_image"] is None) == bool(used["why_not"])
            assert {"contended_by", "throttled_by", "load_average"} <= set(entry["health"])
            assert ("contended" in entry["flags"]) == bool(entry["health"]["contended_by"])
            assert (entry["p99_ms"] is None) == (entry["n"] < 459) == (entry["p99_ci_ms"] is None)
            assert (entry["p90_ms"] is None) == (entry["n"] < 44) == (entry["p90_ci_ms"] is None)
            if entry["p90_ms"] is not None:
                assert entry["p90_ci_ms"][0] <= entry["p90_ms"] <= entry["p90_ci_ms"][1]
    assert "Mann-Kendall" in scorecard["steady_state_rule"]


def test_cpu_times_lie_beside_the_samples(measured_line: Line) -> None:
    samples = measured_line.folder / "measure" / "samples"
    wall = np.load(samples / "student-onnxruntime-fp32-b4-t1.npy")
    cpu = np.load(samples / "student-onnxruntime-fp32-b4-t1-cpu.npy")
    assert cpu.shape == wall.shape
    assert 0 < np.median(cpu) <= 1.05 * np.median(wall)


def test_targets_of_a_runtime_are_timed_in_turns(measured_line: Line, scorecard: dict[str, Any]) -> None:
    pairs = {
        tuple(f"{side['model']} {side['target']}" for side in (pair["first"], pair["second"])): pair
        for pair in scorecard["comparisons"]
    }
    assert list(pairs) == [
        ("teacher onnxruntime-fp32", "student onnxruntime-fp32"),
        ("teacher onnxruntime-fp32", "student onnxruntime-int8"),
        ("student onnxruntime-fp32", "student onnxruntime-int8"),
    ]
    for pair in pairs.values():
        assert pair["ratio_ci"][0] <= pair["ratio"] <= pair["ratio_ci"][1]
        assert pair["ratio"] == pytest.approx(pair["p50_ms"][1] / pair["p50_ms"][0], rel=1e-3)
        assert pair["verdict"] in ("faster", "slower", "cannot tell")
        assert min(pair["n"]) >= pair["launches"] * pair["rounds"] * 3
        _tells_its_health(pair)
    raw = np.load(
        measured_line.folder
        / "measure"
        / "samples"
        / "turns-student-onnxruntime-fp32-student-onnxruntime-int8-b1-t1.npy"
    )
    assert len(raw) == sum(pairs["student onnxruntime-fp32", "student onnxruntime-int8"]["n"])


def test_latency_under_arrivals(measured_line: Line, scorecard: dict[str, Any]) -> None:
    for row in scorecard["rows"]:
        if not row["latency"]:
            continue
        (entry,) = row["open_loop"]
        assert (entry["rate_per_s"], entry["n"]) == (100.0, 30)
        raw = np.load(
            measured_line.folder / "measure" / "samples" / f"{row['model']}-{row['target']}-b1-t1-at100.npy"
        )
        assert raw.shape == (30, 3)
        assert entry["service_p50_ms"] == pytest.approx(np.sort(raw[:, 2] - raw[:, 1])[14] * 1e-6)
        assert entry["p99_ms"] is None, "30 requests carry no p99"
        _tells_its_health(entry)


def _tells_its_health(entry: dict[str, Any]) -> None:
    health = entry["health"]
    assert {"wall_over_cpu", "others_share", "steal_share", "load_average", "clock_mhz"} <= set(health)
    assert health["wall_over_cpu"] > 0
    assert health["involuntary_switches_per_s"] >= 0
    assert ("contended" in entry["flags"]) == bool(health["contended_by"])


def test_agreement_with_teacher_and_float(scorecard: dict[str, Any]) -> None:
    teacher, student, int8, _ = scorecard["rows"]
    assert teacher["agreement"] >= 99.5, "the teacher's own file agrees with the teacher"
    assert student["agreement_with_float"] >= 99.5
    assert 0 <= int8["agreement"] <= 100


def test_what_could_not_be_built_says_why_and_how_to_fix_it(scorecard: dict[str, Any]) -> None:
    row = scorecard["rows"][3]
    assert not row["built"]
    assert row["why_not"]
    assert row["hint"]
    assert row["top1"] is None
    assert row["latency"] == []


def test_golden_outputs_are_those_of_the_file(measured_line: Line) -> None:
    golden = measured_line.folder / "measure" / "golden"
    inputs, labels = np.load(golden / "inputs.npy"), np.load(golden / "labels.npy")
    assert inputs.dtype == np.uint8
    assert len(inputs) == len(labels) == 12
    assert len(np.unique(labels)) == 10, "every class is there before one comes twice"
    file = next((measured_line.folder / "build" / "student" / "onnxruntime-int8").glob("*.onnx"))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    expected = np.load(golden / "student-onnxruntime-int8.npy")
    np.testing.assert_allclose(session.run(["logits"], {"input": inputs})[0], expected, atol=1e-3)


def test_the_class_of_every_test_image_is_kept(measured_line: Line, scorecard: dict[str, Any]) -> None:
    folder = measured_line.folder / "measure" / "predictions"
    labels = np.load(folder / "labels.npy")
    np.testing.assert_array_equal(labels, data.load(measured_line.profile.data).test.labels)
    judged = json.loads((measured_line.folder / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    for row in scorecard["rows"]:
        if row["top1"] is not None:
            predicted = np.load(folder / f"{row['model']}-{row['target']}.npy")
            assert 100 * (predicted == labels).mean() == pytest.approx(row["top1"], abs=1e-3)
            before = np.asarray(judged[row["model"]]["predictions"])
            assert 100 * (predicted == before).mean() == pytest.approx(row["agreement_with_float"], abs=1e-3)
            cost = row["against_float"]
            assert cost["images"] == len(labels)
            assert cost["points"] == pytest.approx(row["top1"] - judged[row["model"]]["top1"], abs=1e-3)
            assert cost["lost"] == ((predicted != labels) & (before == labels)).sum()
            assert cost["ci"][0] <= cost["points"] <= cost["ci"][1]


def test_what_distillation_gave_is_in_the_scorecard(scorecard: dict[str, Any]) -> None:
    gain = scorecard["distillation"]
    assert gain["gain_ci"][0] <= gain["gain_points"] <= gain["gain_ci"][1]
    assert gain["verdict"] in ("better", "worse", "cannot tell")


def test_no_machine_path_in_the_artefact(measured_line: Line) -> None:
    folder = measured_line.folder / "measure"
    for file in (path for path in folder.rglob("*.json") if path.is_file()):
        assert str(Path.home()) not in file.read_text(encoding="utf-8")
        assert str(measured_line.folder) not in file.read_text(encoding="utf-8")
