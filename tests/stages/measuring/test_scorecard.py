"""What the scorecard says of rows beside each other."""

from __future__ import annotations

from typing import Any

from stages.measuring import scorecard


def _row(*entries: tuple[int, int, float]) -> dict[str, Any]:
    """Measured at batches and threads, with p50."""
    names = ("batch", "threads", "p50_ms")
    return {"latency": [dict(zip(names, entry, strict=True)) for entry in entries]}


def test_speed_is_told_by_equal_batches_and_threads() -> None:
    teacher = _row((8, 1, 16.0), (1, 1, 2.0), (8, 2, 9.0))
    assert scorecard.speedup(_row((8, 1, 4.0), (1, 1, 1.0)), teacher) == 4.0
    assert scorecard.speedup(_row((1, 1, 2.0)), teacher) == 1.0, "one that takes a single image alone"
    assert scorecard.speedup(_row((8, 2, 4.0)), teacher) == 2.25
    assert scorecard.speedup(teacher, teacher) == 1.0


def test_without_an_equal_batch_nothing_is_said_of_speed() -> None:
    assert scorecard.speedup(_row((1, 1, 2.0)), _row((8, 1, 16.0))) is None
    assert scorecard.speedup(_row(), _row((8, 1, 16.0))) is None
    assert scorecard.speedup(_row((1, 1, 2.0)), None) is None
