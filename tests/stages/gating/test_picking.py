"""The one function that names the target to ship."""

from __future__ import annotations

from typing import Any

import pytest

from stages.gating.picking import pick


def row(target: str, top1: float | None, p50_ms: float, size: int = 1000, **more: Any) -> dict[str, Any]:
    runtime, _, precision = target.rpartition("-")
    built = top1 is not None
    entry = {"batch": 1, "threads": 1, "p50_ms": p50_ms, "p50_ci_ms": [0.99 * p50_ms, 1.01 * p50_ms]}
    return {
        "model": "student",
        "target": target,
        "runtime": runtime,
        "precision": precision,
        "top1": top1,
        "latency": [entry] if built else [],
        "size_bytes": size,
        "why_not": None if built else "there is no GPU",
        **more,
    }


def gate(target: str, status: str, metric: str = "accuracy_drop", limit: float = 5.0) -> dict[str, Any]:
    said = f"{target}: {metric} was judged"
    return {"target": target, "status": status, "metric": metric, "limit": limit, "value": 1.0, "said": said}


def why(found: dict[str, Any]) -> dict[str, str]:
    return {one["target"]: one["why"] for one in found["rejected"]}


def test_the_fastest_that_is_accurate_enough() -> None:
    rows = [
        row("onnxruntime-fp32", 98.0, 0.5),
        row("onnxruntime-int8", 97.5, 0.3),
        row("openvino-int8", 96.5, 0.1),
        row("tensorrt-fp16", None, 0.0),
    ]
    found = pick(rows, float_top1=98.0)
    assert found["target"] == "onnxruntime-int8"
    assert found["reason"].startswith("lowest p50 (0.300 ms at batch 1, 1 thread)")
    assert why(found) == {
        "onnxruntime-fp32": "is slower: p50 0.500 ms against 0.300 ms",
        "openvino-int8": "loses 1.50 points against the float student",
    }
    assert found["unmeasured"] == [{"target": "tensorrt-fp16", "why": "there is no GPU"}]


def test_an_int8_slower_than_its_float_is_never_picked() -> None:
    rows = [
        row("onnxruntime-fp32", 97.9, 0.5),
        row("openvino-fp32", 97.9, 0.9),
        row("openvino-int8", 97.9, 0.95),
    ]
    found = pick(rows, float_top1=98.0)
    assert found["target"] == "onnxruntime-fp32"
    assert "not faster than openvino-fp32" in why(found)["openvino-int8"]
    alone = pick(rows[1:], float_top1=98.0, judgements=[gate("openvino-fp32", "missed")])
    assert alone["target"] is None, "not even where nothing else is left"


def test_an_int8_that_loses_more_than_is_allowed_against_its_float_is_never_picked() -> None:
    rows = [row("onnxruntime-fp32", 98.6, 0.5), row("onnxruntime-int8", 97.2, 0.3)]
    assert (
        why(pick(rows, float_top1=98.0))["onnxruntime-int8"] == "loses 1.40 points against onnxruntime-fp32"
    )
    passed = [gate("onnxruntime-int8", "passed", limit=2.0)]
    assert pick(rows, float_top1=98.0, judgements=passed)["target"] == "onnxruntime-int8"
    tight = [gate("onnxruntime-int8", "passed", limit=1.0)]
    assert pick(rows, float_top1=98.0, judgements=tight)["target"] == "onnxruntime-fp32"


def test_an_int8_that_is_kept_out_tells_how_many_of_its_layers_stayed_float() -> None:
    layers = ["stem/Conv", "blocks.0/Conv", "blocks.1/Conv", "head/Gemm"]
    rows = [
        row("onnxruntime-fp32", 98.0, 0.5),
        row("onnxruntime-int8", 96.0, 0.3, float_layers=layers),
        row("openvino-fp32", 98.0, 0.6),
        row("openvino-int8", 98.0, 0.7, float_layers=layers[:1]),
        row("tensorrt-fp32", 98.2, 0.8),
        row("tensorrt-int8", 97.1, 0.7, float_layers=[]),
    ]
    said = why(pick(rows, float_top1=98.0))
    assert said["onnxruntime-int8"] == (
        "loses 2.00 points against the float student; "
        "4 of its layers stayed in float (stem/Conv, blocks.0/Conv, blocks.1/Conv, …)"
    )
    assert said["openvino-int8"].endswith("; 1 of its layers stayed in float (stem/Conv)")
    assert said["tensorrt-int8"].endswith("points against tensorrt-fp32; none of its layers stayed in float")


def test_a_missed_gate_excludes_and_an_undecided_one_stands_back() -> None:
    rows = [row("a-fp32", 98.0, 0.1), row("b-fp32", 98.0, 0.2), row("c-fp32", 98.0, 0.3)]
    judgements = [gate("a-fp32", "missed"), gate("b-fp32", "undecided"), gate("c-fp32", "passed")]
    found = pick(rows, float_top1=98.0, judgements=judgements)
    assert found["target"] == "c-fp32"
    assert found["undecided"] == []
    assert "passed the gate" in found["reason"]
    assert why(found)["a-fp32"].startswith("misses a gate")
    assert why(found)["b-fp32"].startswith("has an undecided gate")
    unsure = pick(rows[:2], float_top1=98.0, judgements=judgements)
    assert unsure["target"] == "b-fp32", "rather than none, and said"
    assert unsure["undecided"] == ["accuracy_drop was judged"]


def test_what_cannot_be_told_apart_in_speed_is_chosen_by_accuracy_then_size() -> None:
    rows = [
        row("a-fp32", 97.5, 0.100),
        row("b-fp32", 98.0, 0.1015, size=10),
        row("c-fp32", 98.0, 0.1015, size=5),
    ]
    found = pick(rows, float_top1=98.0)
    assert found["target"] == "c-fp32"
    assert "cannot be distinguished from the lowest" in found["reason"]
    assert "less accurate: 97.50 % against 98.00 %" in why(found)["a-fp32"]
    assert "larger" in why(found)["b-fp32"]
    apart = [row("a-fp32", 97.5, 0.100), row("b-fp32", 98.0, 0.105)]
    assert pick(apart, float_top1=98.0)["target"] == "a-fp32"


@pytest.mark.parametrize(
    ("verdict", "int8_top1", "shipped"),
    [
        ("faster", 97.9, "onnxruntime-int8"),
        ("slower", 98.0, "onnxruntime-fp32"),
        ("cannot tell", 97.9, "onnxruntime-fp32"),
        ("cannot tell", 98.0, "onnxruntime-int8"),
    ],
)
def test_timing_in_turns_says_more_than_two_p50(verdict: str, int8_top1: float, shipped: str) -> None:
    """By the two p50 alone the INT8 file would be as fast; it is the smaller one."""
    rows = [row("onnxruntime-fp32", 98.0, 0.2, size=9), row("onnxruntime-int8", int8_top1, 0.199, size=3)]
    student = {"model": "student"}
    turns = {
        "first": {**student, "target": "onnxruntime-fp32"},
        "second": {**student, "target": "onnxruntime-int8"},
        "batch": 1,
        "threads": 1,
        "ratio": 1.08,
        "verdict": verdict,
    }
    found = pick(rows, float_top1=98.0, comparisons=[turns])
    assert found["target"] == shipped
    elsewhere = {**turns, "batch": 8, "verdict": "slower"}
    twice_as_fast = [rows[0], row("onnxruntime-int8", 97.9, 0.1)]
    other = pick(twice_as_fast, float_top1=98.0, comparisons=[elsewhere])
    assert other["target"] == "onnxruntime-int8"


def in_turns(first: str, second: str, ratio: float, verdict: str) -> dict[str, Any]:
    sides = {
        side: {"model": "student", "target": name} for side, name in (("first", first), ("second", second))
    }
    return {**sides, "batch": 1, "threads": 1, "ratio": ratio, "verdict": verdict}


def test_a_target_proven_faster_in_turns_is_the_faster_one_whatever_the_two_p50_say() -> None:
    rows = [row("onnxruntime-fp32", 98.0, 5.0), row("onnxruntime-int8", 97.5, 5.2)]
    turns = [in_turns("onnxruntime-fp32", "onnxruntime-int8", 0.8, "faster")]
    found = pick(rows, float_top1=98.0, comparisons=turns)
    assert found["target"] == "onnxruntime-int8"
    assert found["reason"].startswith("fastest, as timed in turns (5.200 ms at batch 1, 1 thread) of the")
    assert why(found)["onnxruntime-fp32"] == (
        "is slower: timed in turns, onnxruntime-int8 takes 0.80 times its p50"
    )


def test_of_several_proven_faster_the_one_with_the_least_ratio_counts_as_the_fastest() -> None:
    rows = [
        row("onnxruntime-fp32", 98.0, 5.0),
        row("onnxruntime-int8", 97.5, 5.6),
        row("onnxruntime-bf16", 97.9, 5.1),
        row("openvino-fp32", 97.8, 5.65),
    ]
    turns = [
        in_turns("onnxruntime-fp32", "onnxruntime-int8", 0.6, "faster"),
        in_turns("onnxruntime-fp32", "onnxruntime-bf16", 0.9, "faster"),
    ]
    found = pick([rows[0], rows[1], rows[3]], float_top1=98.0, comparisons=turns)
    assert found["target"] == "openvino-fp32", "its p50 cannot be told from that of the fastest"
    assert "cannot be distinguished from that of the fastest (like onnxruntime-int8)" in found["reason"]
    assert "onnxruntime-int8 takes 0.60 times its p50" in why(found)["onnxruntime-fp32"]
    both = pick(rows[:3], float_top1=98.0, comparisons=turns)
    assert why(both)["onnxruntime-fp32"].endswith("takes 0.60 times its p50")


def test_a_gate_on_accuracy_takes_the_place_of_the_budget() -> None:
    rows = [row("a-fp32", 95.0, 0.1), row("b-fp32", 98.0, 0.2)]
    assert pick(rows, float_top1=98.0)["target"] == "b-fp32"
    own = [gate("a-fp32", "passed", "accuracy", 94.0), gate("a-fp32", "passed", "size_mb", 9.0)]
    assert pick(rows, float_top1=98.0, judgements=own)["target"] == "a-fp32"
    size_alone = [gate("a-fp32", "passed", "size_mb", 9.0)]
    assert pick(rows, float_top1=98.0, judgements=size_alone)["target"] == "b-fp32"


def test_the_front_holds_what_nothing_beats() -> None:
    rows = [
        row("a-fp32", 98.0, 0.3, size=9),
        row("b-int8", 97.0, 0.1, size=5),
        row("c-fp32", 98.0, 0.4, size=9),
        row("d-fp32", 97.0, 0.4, size=4),
    ]
    front = pick(rows, float_top1=98.0)["front"]
    assert [one["target"] for one in front] == ["b-int8", "a-fp32", "d-fp32"]


def test_batch_1_counts_wherever_it_stands() -> None:
    fast_at_8 = row("a-fp32", 98.0, 0.0)
    fast_at_8["latency"] = [
        {"batch": 8, "threads": 1, "p50_ms": 0.1},
        {"batch": 1, "threads": 1, "p50_ms": 0.4},
    ]
    slow_at_8 = row("b-fp32", 98.0, 0.0)
    slow_at_8["latency"] = [
        {"batch": 8, "threads": 1, "p50_ms": 0.9},
        {"batch": 1, "threads": 1, "p50_ms": 0.2},
    ]
    assert pick([fast_at_8, slow_at_8], float_top1=98.0)["target"] == "b-fp32"


def test_nothing_measured_is_said() -> None:
    found = pick([row("tensorrt-fp16", None, 0.0)], float_top1=98.0)
    assert found["target"] is None
    assert found["reason"] == "no target was measured"


def timed(target: str, *entries: tuple[int, float]) -> dict[str, Any]:
    """Measured at batches and p50."""
    one = row(target, 98.0, 1.0)
    (entry,) = one["latency"]
    spans = [{"batch": batch, "p50_ms": p50, "p50_ci_ms": [0.99 * p50, 1.01 * p50]} for batch, p50 in entries]
    return {**one, "latency": [{**entry, **span} for span in spans]}


def test_targets_are_compared_at_a_batch_that_all_of_them_ran() -> None:
    rows = [
        timed("onnxruntime-fp32", (8, 8.0), (4, 3.9), (2, 2.0)),
        timed("tensorrt-fp32", (4, 4.5), (2, 1.0)),
        timed("openvino-fp32", (8, 8.8), (4, 4.2)),
        row("ncnn-fp32", None, 0.0),
    ]
    found = pick(rows, float_top1=98.0)
    assert found["target"] == "onnxruntime-fp32"
    assert found["reason"].startswith("lowest p50 (3.900 ms at batch 4, 1 thread)")
    assert why(found)["tensorrt-fp32"] == "is slower: p50 4.500 ms against 3.900 ms"
    assert [one["p50_ms"] for one in found["front"]] == [3.9]
    assert [one["target"] for one in found["unmeasured"]] == ["ncnn-fp32"]


def test_batch_1_goes_first_and_what_ran_at_other_batches_alone_is_not_compared() -> None:
    rows = [timed("onnxruntime-fp32", (8, 8.0), (1, 1.0)), timed("ncnn-fp32", (1, 2.0))]
    assert pick(rows, float_top1=98.0)["target"] == "onnxruntime-fp32"
    nothing_in_common = [timed("ncnn-fp32", (1, 2.0)), timed("a-fp32", (8, 8.0)), timed("b-fp32", (8, 9.0))]
    found = pick(nothing_in_common, float_top1=98.0)
    assert found["target"] == "a-fp32"
    assert found["unmeasured"] == [
        {"target": "ncnn-fp32", "why": "not measured at batch 8, unlike the others"}
    ]
