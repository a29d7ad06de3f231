"""The block on INT8 files, from calibration.json alone."""

from __future__ import annotations

from typing import Any

import pytest

from stages.reporting.int8 import calibration_doubts, int8_rows


def _calibration(layers: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "images": {"doubts": ["2 of 64 calibration images are blank: they add nothing to the ranges."]},
        "files": {
            "x86": {
                "file": "student.int8.x86.onnx",
                "calibration": {"method": "percentile 99.99"},
                "budget": {"missed": True},
                "float_layers": layers,
                "agreement": 97.25,
                "holdout": {"agreement": 98.0},
                "logit_rms_relative_to_std": 0.0812,
                "against_float": {"points": -1.5, "ci": [-2.25, -0.75]},
            }
        },
    }


def test_what_stayed_in_float_is_counted_by_reason_and_named() -> None:
    layers = [{"layer": f"{name}/Conv", "why": "sensitivity"} for name in "ab"]
    (row,) = int8_rows(_calibration([*layers, {"layer": "head/Gemm", "why": "quantize.exclude"}]))
    assert row["float_layers"] == "2 (sensitivity), 1 (quantize.exclude): a/Conv, b/Conv, head/Gemm"
    assert row["missed"]
    assert row["cells"] == ["97.2", "98.0", "0.0812", "-1.50", "-2.25 to -0.75"]
    (many,) = int8_rows(_calibration([{"layer": f"l{index}", "why": "sensitivity"} for index in range(15)]))
    assert many["float_layers"].endswith("l11 and 3 more")
    (none,) = int8_rows(_calibration([]))
    assert none["float_layers"] == "none"


@pytest.mark.parametrize(
    ("tuned", "told"),
    [
        (None, "percentile 99.99"),
        ({"kept": False}, "percentile 99.99"),
        ({"kept": True}, "percentile 99.99, then fine-tuned under its rounding"),
    ],
)
def test_a_file_of_a_fine_tuned_network_is_told(tuned: dict[str, Any] | None, told: str) -> None:
    calibration = _calibration([])
    calibration["files"]["x86"]["quantization_aware"] = tuned
    assert int8_rows(calibration)[0]["method"] == told


def test_doubts_are_handed_on_and_a_run_without_int8_has_no_block() -> None:
    assert len(calibration_doubts(_calibration([]))) == 1
    nothing: dict[str, Any] = {"needed": False, "why": "no target has precision int8"}
    assert not int8_rows(nothing)
    assert not calibration_doubts(nothing)
