"""Faults in a profile's gates: all at once, each at its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ProfileError
from pipeline.profile.loading import load

HEAD = """\
data: {name: digits}
teacher: {model: test_resnet}
student: {model: test_efficientnet}
targets: [onnxruntime-fp32, onnxruntime-int8, openvino-int8]
measure: {batch_sizes: [1, 8]}
gates:
"""


def faults(folder: Path, *gates: str) -> list[tuple[int, str]]:
    file = folder / "gated.yaml"
    file.write_text(HEAD + "".join(f"  - {gate}\n" for gate in gates), encoding="utf-8")
    with pytest.raises(ProfileError) as raised:
        load(file)
    return [(fault.line, fault.message) for fault in raised.value.faults]


def test_each_gate_that_is_wrong_in_itself_is_reported(tmp_path: Path) -> None:
    messages = faults(
        tmp_path,
        "{metric: accuracy_drop, max: 1.0}",
        "{metric: size_mb}",
        "{metric: accuracy, max: 97}",
        "{metric: agreement, min: 970}",
        "{metric: latency_p50_ms, max: 2, against: teacher}",
        "{metric: size_mb, max: 2, batch: 1}",
        "{metric: latency_p95_ms, max: 2}",
    )
    assert [line for line, _ in messages] == [8, 9, 10, 11, 12, 13]
    for (_, message), words in zip(
        messages,
        (
            "set max",
            "takes min",
            "0 to 100 %",
            "does not take against",
            "does not take batch",
            "latency_p50_ms",
        ),
        strict=True,
    ):
        assert words in message


def test_what_the_rest_of_the_profile_rules_out_is_reported_all_at_once(tmp_path: Path) -> None:
    messages = faults(
        tmp_path,
        "{metric: latency_p50_ms, target: onnxruntime-int9, max: 2}",
        "{metric: latency_p50_ms, target: tensorrt-*, max: 2}",
        "{metric: latency_p50_ms, batch: 4, threads: 2, max: 2}",
        "{metric: latency_p99_ms, max: 2}",
        "{metric: agreement, min: 90}",
        "{metric: agreement, min: 80, against: student}",
    )
    assert [line for line, _ in messages] == [7, 8, 9, 9, 10, 12]
    text = " | ".join(message for _, message in messages)
    assert "did you mean onnxruntime-int8?" in text
    assert "4 is not in measure.batch_sizes [1, 8]" in text
    assert "2 is not in measure.threads [1]" in text
    assert "latency_p99_ms needs 459 samples, but measure.min_samples is 50" in text
    assert "gates.5: it limits the same as gates.4" in text


def test_gates_that_can_be_judged_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "gated.yaml"
    gates = [
        "{metric: accuracy_drop, max: 1}",
        "{metric: latency_p99_ms, batch: 8, target: '*-int8', max: 5}",
    ]
    file.write_text(HEAD + "".join(f"  - {gate}\n" for gate in gates), encoding="utf-8")
    loaded = load(file, ["measure.min_samples=459"])
    assert [gate["target"] for gate in loaded.sections["gates"]] == ["*", "*-int8"]
    assert loaded.place("gates.1").startswith(f"{file}:8:")
