"""Whether a precision pays: the verdict by hand, and the reasons from what builders and runtimes tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.reporting import payoff

LABELS = np.arange(400, dtype=np.int32) % 10


def _row(target: str, **more: Any) -> dict[str, Any]:
    runtime, _, precision = target.rpartition("-")
    return {
        "model": "student",
        "target": target,
        "runtime": runtime,
        "precision": precision,
        "top1": 90.0,
        "size_bytes": 1000 if precision == "fp32" else 250,
        "latency": [{"p50_ms": 2.0 if precision == "fp32" else 1.0}],
        "effective_precision": precision,
        "facts": {},
        **more,
    }


def _found(
    folder: Path, *, verdict: str = "slower", wrong: int = 0, in_turns: bool = True, facts: Any = None
) -> dict[str, Any]:
    (folder / "predictions").mkdir()
    np.save(folder / "predictions" / "labels.npy", LABELS)
    np.save(folder / "predictions" / "student-r-fp32.npy", LABELS)
    predicted = LABELS.copy()
    predicted[:wrong] += 1
    np.save(folder / "predictions" / "student-r-int8.npy", predicted)
    turns = {
        "first": {"model": "student", "target": "r-fp32"},
        "second": {"model": "student", "target": "r-int8"},
        "ratio": 1.31,
        "ratio_ci": [1.2, 1.4],
        "verdict": verdict,
        "flags": [],
    }
    scorecard = {
        "rows": [_row("r-fp32"), _row("r-int8"), _row("other-int8"), {**_row("r-fp32"), "model": "teacher"}],
        "comparisons": [turns] if in_turns else [],
    }
    build = {"targets": [{"model": "student", "target": "r-int8", "facts": facts or {}}]}
    (found,) = payoff.rows(scorecard, build, folder)
    return found


@pytest.mark.parametrize(
    ("verdict", "wrong", "pays"),
    [
        ("faster", 0, "pays"),
        ("faster", 40, "faster and less accurate"),
        ("slower", 0, "does not pay: slower"),
        ("cannot tell", 0, "does not pay: not measurably faster"),
        ("slower", 40, "does not pay: slower and less accurate"),
    ],
)
def test_the_verdict(verdict: str, wrong: int, pays: str, tmp_path: Path) -> None:
    found = _found(tmp_path, verdict=verdict, wrong=wrong)
    assert (found["target"], found["against"], found["pays"]) == ("r-int8", "r-fp32", pays)
    assert found["accuracy"]["points"] == -wrong / 4
    assert found["size_ratio"] == 0.25
    assert bool(found["why"]) == (pays != "pays")
    (shown,) = payoff.table([found])
    assert shown["cells"][:2] == ["1.310", "1.200 to 1.400"]
    assert shown["pays"] == (pays == "pays")


def test_without_turns_nobody_can_tell(tmp_path: Path) -> None:
    found = _found(tmp_path, in_turns=False)
    assert found["speed"]["ratio"] == 0.5
    assert found["pays"].startswith("does not pay: not measurably faster")
    assert payoff.table([found])[0]["cells"][1] == "not timed in turns"


LAYERS = {
    "layers": 9,
    "by_kind": {"CaskConvolution": 6, "Reformat": 3},
    "weighted": {"fp16": 2, "int8": 4},
    "weighted_in_floats": 7,
    "weighted_in_floats_named": ["a", "b", "c", "d", "e", "f"],
}


@pytest.mark.parametrize(
    ("target", "facts", "effective", "parts"),
    [
        (
            "onnxruntime-int8",
            {"integer_operators": 3, "operators": 40, "float_layers": 5, "conversions": 12},
            "int8",
            [
                "3 of 40 operators run in integers",
                "5 layers with weights stayed in floats",
                "12 operators only",
            ],
        ),
        ("onnxruntime-int8", {}, "fp32", ["nothing runs in int8: the precision in force is fp32"]),
        (
            "openvino-int8",
            {"integer_layers": "5 of 9"},
            "int8+bf16",
            ["5 of 9 layers with weights run in integ"],
        ),
        (
            "tensorrt-int8",
            {"engine_layers": LAYERS},
            "int8+fp32",
            ["2 fp16, 4 int8", "7 stayed in floats: a, b, c, d, e and 2 more", "3 layers only change"],
        ),
        (
            "tensorrt-fp16",
            {"fp16": {"nodes": 50, "fp16_nodes": 30, "fp32_for_range": [{}, {}]}},
            "fp16",
            ["30 of 50 nodes are fp16", "2 of them for their range"],
        ),
        (
            "tensorrt-int8",
            {"engine_layers": None, "engine_layers_why_not": "only a machine with a GPU can"},
            "int8+fp32",
            ["is not known: only a machine with a GPU can"],
        ),
        ("unknown-int8", {}, "int8", ["unknown does not report which layers run in int8"]),
    ],
)
def test_the_reasons(target: str, facts: dict[str, Any], effective: str, parts: list[str]) -> None:
    said = "; ".join(payoff.reasons(_row(target, effective_precision=effective), facts))
    for part in parts:
        assert part in said
