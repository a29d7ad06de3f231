"""Gates judged on what a device left, for targets that the host may never have run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.gating.on_devices import judge_there
from stages.gating.settings import GateSettings
from stages.measuring.scorecard import top1

IMAGES = 400
LABELS = np.arange(IMAGES) % 10


def wrong(count: int) -> np.ndarray:
    """The true classes, but others of the first so many images."""
    return np.where(np.arange(IMAGES) < count, (LABELS + 1) % 10, LABELS).astype(np.int32)


@pytest.fixture
def there(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """An engine built on a device, wrong on 44 images where the float student is on 4 and the teacher on
    none; and one that could not be built there."""
    (tmp_path / "predictions").mkdir()
    classes = {
        "labels": LABELS,
        "float_student": wrong(4),
        "float_teacher": wrong(0),
        "tensorrt-int8": wrong(44),
    }
    for name, found in classes.items():
        np.save(tmp_path / "predictions" / f"{name}.npy", found)
    engine = {"target": "tensorrt-int8", "size_bytes": 3_000_000, **top1(wrong(44), LABELS)}
    absent = {"target": "tensorrt-fp16", "top1": None, "why_not": "no room there"}
    rows = [{"model": "student", **one} for one in (engine, absent)]
    return tmp_path, {"rows": rows, "settings": {"batch_sizes": [1], "threads": [1]}}


def judged(there: tuple[Path, dict[str, Any]], **gate: Any) -> list[dict[str, Any]]:
    return judge_there([GateSettings(**gate).model_dump(mode="json")], *there)


@pytest.mark.parametrize(
    ("gate", "value", "status"),
    [
        ({"metric": "accuracy_drop", "max": 5}, 10.0, "missed"),
        ({"metric": "accuracy_drop", "max": 10}, 10.0, "undecided"),
        ({"metric": "accuracy_drop", "max": 20, "against": "teacher"}, 11.0, "passed"),
        ({"metric": "accuracy", "min": 80}, 89.0, "passed"),
        ({"metric": "agreement", "min": 95}, 90.0, "missed"),
        ({"metric": "size_mb", "max": 2}, 3.0, "missed"),
    ],
)
def test_an_engine_is_judged_by_what_was_found_there(
    there: tuple[Path, dict[str, Any]], gate: dict[str, Any], value: float, status: str
) -> None:
    (found,) = judged(there, **gate)
    assert found["target"] == "tensorrt-int8"
    assert (found["value"], found["status"]) == (value, status)


def test_limits_on_latency_and_memory_are_the_host_s(there: tuple[Path, dict[str, Any]]) -> None:
    for metric in ("latency_p50_ms", "latency_p99_ms", "slowdown", "peak_memory_mb"):
        assert judged(there, metric=metric, max=1) == []


def test_what_was_not_measured_there_is_undecided(there: tuple[Path, dict[str, Any]]) -> None:
    (found,) = judged(there, metric="accuracy", min=80, target="tensorrt-fp16")
    assert found["status"] == "undecided"
    assert "no room there" in found["said"]
