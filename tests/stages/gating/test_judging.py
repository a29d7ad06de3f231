"""Gates judged on artefacts' files: on the right side, beyond noise, or not to be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.gating.judging import Measured, judge, verdict
from stages.gating.settings import GateSettings
from stages.statistics.intervals import wilson_interval

IMAGES = 1000
LABELS = np.arange(IMAGES) % 10


def wrong_at(*ranges: range) -> np.ndarray:
    """The true classes, but others at these images."""
    predicted = LABELS.copy()
    for images in ranges:
        predicted[list(images)] = (predicted[list(images)] + 1) % 10
    return predicted


def latency(batch: int, threads: int, p50_ms: float, **more: Any) -> dict[str, Any]:
    entry = {"batch": batch, "threads": threads, "n": 500, "p50_ms": p50_ms, "p90_ms": None, "p99_ms": None}
    span = [0.9 * p50_ms, 1.1 * p50_ms]
    return {**entry, "min_ms": 0.8 * p50_ms, "p50_ci_ms": span, "flags": [], **more}


@pytest.fixture
def measured(tmp_path: Path) -> Measured:
    """A float student with 50 errors, a teacher with 20; a fp32 file as the student, and an INT8 one with 30
    more errors; a target that could not be built."""
    (tmp_path / "predictions").mkdir()
    (tmp_path / "samples").mkdir()
    student, teacher = wrong_at(range(50)), wrong_at(range(20))
    int8 = wrong_at(range(80))
    for name, predicted in (("fp32", student), ("int8", int8)):
        np.save(tmp_path / "predictions" / f"student-onnxruntime-{name}.npy", predicted.astype(np.int32))
    np.save(tmp_path / "predictions" / "labels.npy", LABELS.astype(np.int32))
    rows = []
    for name, predicted, p50_ms in (("fp32", student, 2.0), ("int8", int8, 1.0)):
        right = int((predicted == LABELS).sum())
        rows.append(
            {
                "model": "student",
                "target": f"onnxruntime-{name}",
                "top1": 100 * right / IMAGES,
                "top1_ci": [100 * end for end in wilson_interval(right, IMAGES)],
                "latency": [latency(1, 1, p50_ms), latency(1, 2, p50_ms / 2), latency(8, 1, 6 * p50_ms)],
                "size_bytes": 2_000_000,
                "peak_memory_bytes": 80_000_000,
            }
        )
    absent = {"model": "student", "target": "tensorrt-fp16", "top1": None, "why_not": "there is no GPU"}
    baseline = {**rows[0], "model": "teacher", "top1": 0.0}
    card = {
        "rows": [baseline, *rows, absent],
        "settings": {"batch_sizes": [1, 8, 64], "threads": [1, 2]},
    }
    judged = {"student": {"predictions": student.tolist()}, "teacher": {"predictions": teacher.tolist()}}
    return Measured(tmp_path, card, judged)


def judged(measured: Measured, **gate: Any) -> dict[str, dict[str, Any]]:
    return {one["target"]: one for one in judge([GateSettings(**gate)], measured)}


@pytest.mark.parametrize(
    ("limit", "interval", "status"),
    [
        (2.0, (1.0, 1.9), "passed"),
        (2.0, (1.0, 2.0), "passed"),
        (2.0, (1.0, 2.1), "undecided"),
        (2.0, (2.0, 2.1), "undecided"),
        (2.0, (2.1, 2.2), "missed"),
        (2.0, None, "passed"),
        (1.49, None, "missed"),
    ],
)
def test_missed_means_the_whole_interval_lies_beyond(
    limit: float, interval: tuple[float, float] | None, status: str
) -> None:
    assert verdict(GateSettings(metric="latency_p50_ms", max=limit), 1.5, interval) == status
    at_least = GateSettings(metric="accuracy", min=100 - limit)
    turned = (100 - interval[1], 100 - interval[0]) if interval else None
    assert verdict(at_least, 98.5, turned) == status


@pytest.mark.parametrize(
    ("limit", "flags", "status"),
    [
        (1.0, [], "missed"),
        (1.0, ["contended"], "missed"),
        (1.7, [], "missed"),
        (1.7, ["contended"], "undecided"),
    ],
)
def test_a_disturbed_latency_is_missed_only_if_even_its_shortest_sample_is_beyond(
    measured: Measured, limit: float, flags: list[str], status: str
) -> None:
    """A p50 of 2 ms [1.8, 2.2] whose shortest sample took 1.6."""
    measured.scorecard["rows"][1]["latency"][0]["flags"] = flags
    found = judged(measured, metric="latency_p50_ms", max=limit)["onnxruntime-fp32"]
    assert found["status"] == status
    assert ("disturbed" in found["said"]) == (status == "undecided")


def test_a_slowdown_is_the_ratio_to_the_earlier_bundle_alone(measured: Measured) -> None:
    def compared(first: str, ratio: float, of: str = "onnxruntime-int8") -> dict[str, Any]:
        sides = {
            "first": {"model": first, "target": of},
            "second": {"model": "student", "target": "onnxruntime-int8"},
        }
        return {**sides, "ratio": ratio, "ratio_ci": [ratio - 0.02, ratio + 0.03], "flags": ["contended"]}

    entries = [
        compared("student", 0.5, "onnxruntime-fp32"),
        compared("reference", 1.1),
        compared("teacher", 0.2),
    ]
    told = Measured(measured.folder, {**measured.scorecard, "comparisons": entries}, measured.evaluation)
    int8 = judged(told, metric="slowdown", max=5)["onnxruntime-int8"]
    assert (int8["value"], int8["interval"], int8["status"]) == (10.0, [8.0, 13.0], "missed")
    assert int8["flags"] == ["contended"]
    assert judged(told, metric="slowdown", max=9)["onnxruntime-int8"]["status"] == "undecided"
    alone = judged(told, metric="slowdown", max=5)["onnxruntime-fp32"]
    assert alone["status"] == "undecided"
    assert "has no such target" in alone["why"]


def test_a_drop_is_judged_image_by_image(measured: Measured) -> None:
    """3 points with 30 images changed: as pairs that is certain, by two separate intervals it is not."""
    found = judged(measured, metric="accuracy_drop", max=1.5)
    assert found["onnxruntime-fp32"]["status"] == "passed"
    int8 = found["onnxruntime-int8"]
    assert int8["status"] == "missed"
    assert int8["value"] == 3.0
    low, high = int8["interval"]
    assert 1.5 < low < 3.0 < high < 4.5
    assert judged(measured, metric="accuracy_drop", max=2.5)["onnxruntime-int8"]["status"] == "undecided"
    assert judged(measured, metric="accuracy_drop", max=5)["onnxruntime-int8"]["status"] == "passed"


def test_a_drop_against_the_teacher_counts_the_student_s_own(measured: Measured) -> None:
    found = judged(measured, metric="accuracy_drop", max=4, against="teacher")
    assert found["onnxruntime-fp32"]["value"] == 3.0
    assert found["onnxruntime-int8"]["value"] == 6.0
    assert found["onnxruntime-int8"]["status"] == "missed"
    assert "against the teacher is 6 [" in found["onnxruntime-int8"]["said"]


def test_agreement_counts_equal_classes_right_or_wrong(measured: Measured) -> None:
    found = judged(measured, metric="agreement", min=99.5)
    assert found["onnxruntime-fp32"]["value"] == 100.0
    assert found["onnxruntime-fp32"]["status"] == "passed"
    assert found["onnxruntime-int8"]["value"] == 97.0
    assert found["onnxruntime-int8"]["status"] == "missed"


def test_a_latency_is_taken_at_its_batch_and_threads(measured: Measured) -> None:
    def of(**gate: Any) -> tuple[Any, Any]:
        one = judged(measured, metric="latency_p50_ms", target="*-int8", **gate)["onnxruntime-int8"]
        return one["value"], one["status"]

    assert of(max=1.2) == (1.0, "passed")
    assert of(max=1.05) == (1.0, "undecided")
    assert of(max=0.8) == (1.0, "missed")
    assert of(max=0.8, threads=2) == (0.5, "passed")
    assert of(max=0.8, batch=8) == (6.0, "missed")
    assert of(max=100, batch=64) == (None, "undecided"), "no engine took that batch"


def test_p99_is_judged_on_the_raw_samples(measured: Measured) -> None:
    ns = np.r_[np.full(490, 1_000_000), np.full(10, 9_000_000)].astype(np.int64)
    np.save(
        measured.folder / "samples" / "student-onnxruntime-int8-b1-t1.npy",
        np.random.default_rng(0).permutation(ns),
    )
    measured.rows[1]["latency"][0].update(p99_ms=9.0, flags=["contended", "tail under-sampled"])
    found = judged(measured, metric="latency_p99_ms", max=5.0, target="onnxruntime-*")
    assert found["onnxruntime-int8"]["interval"] == [1.0, 9.0], "two per cent of the calls took nine"
    assert found["onnxruntime-int8"]["status"] == "undecided"
    assert found["onnxruntime-int8"]["said"].endswith("(measured while contended)")
    assert found["onnxruntime-fp32"]["why"] == "500 samples are too few for p99"


def test_sizes_are_exact(measured: Measured) -> None:
    assert judged(measured, metric="size_mb", max=2)["onnxruntime-int8"]["status"] == "passed"
    assert judged(measured, metric="size_mb", max=1.99)["onnxruntime-int8"]["status"] == "missed"
    memory = judged(measured, metric="peak_memory_mb", max=79)["onnxruntime-fp32"]
    assert (memory["status"], memory["value"], memory["interval"]) == ("missed", 80.0, None)


def test_accuracy_is_judged_with_its_own_interval(measured: Measured) -> None:
    assert judged(measured, metric="accuracy", min=93)["onnxruntime-fp32"]["status"] == "passed"
    assert judged(measured, metric="accuracy", min=94.5)["onnxruntime-fp32"]["status"] == "undecided"
    assert judged(measured, metric="accuracy", min=94.5)["onnxruntime-int8"]["status"] == "missed"


def test_what_was_not_measured_cannot_pass(measured: Measured) -> None:
    assert set(judged(measured, metric="size_mb", max=9)) == {"onnxruntime-fp32", "onnxruntime-int8"}
    for target in ("tensorrt-fp16", "tensorrt-*"):
        one = judged(measured, metric="size_mb", max=9, target=target)["tensorrt-fp16"]
        assert one["status"] == "undecided"
        assert "there is no GPU" in one["said"]
