"""Scheduled arrivals: what a stall and a queue do to latencies that count from when they were due."""

from __future__ import annotations

import time

import numpy as np
import pytest

from stages.measuring import open_loop


def test_schedules() -> None:
    regular = open_loop.schedule_ns(100.0, 2.0, "regular")
    assert len(regular) == 200
    assert set(np.diff(regular)) == {10_000_000}
    random = open_loop.schedule_ns(100.0, 50.0, "poisson")
    gaps = np.diff(random)
    assert gaps.mean() == pytest.approx(1e7, rel=0.05)
    assert gaps.std() == pytest.approx(1e7, rel=0.06), "exponential gaps"
    assert (random == open_loop.schedule_ns(100.0, 50.0, "poisson")).all()


@pytest.mark.long
def test_a_stall_is_felt_by_all_that_were_due_meanwhile() -> None:
    """One call of 100 stalls 0.2 s. A closed loop would show one slow sample; 20 requests were due."""
    calls = [0]

    def call() -> None:
        calls[0] += 1
        time.sleep(0.2 if calls[0] == 30 else 0.0005)

    served = open_loop.serve(call, open_loop.schedule_ns(100.0, 1.0, "regular"))
    assert len(served) == 100
    due, started, done = served.T
    assert (started >= due).all()
    assert ((done - started) > 1e8).sum() == 1, "one service took long"
    assert ((done - due) > 5e7).sum() >= 10, "many requests waited for it"


def served(service_ns: int, rate: float, count: int = 600) -> np.ndarray:
    """Rows as `serve` gives them, of a server that always takes the same time."""
    due = open_loop.schedule_ns(rate, count / rate, "poisson")
    rows, free = [], 0
    for due_at in due.tolist():
        started = max(due_at, free)
        free = started + service_ns
        rows.append((due_at, started, free))
    return np.array(rows)


def test_latency_is_wait_and_service() -> None:
    rows = served(5_000_000, 120.0)
    entry = open_loop.summarise(rows, 600, rate_per_s=120.0, arrivals="poisson", resamples=100)
    assert entry["utilisation"] == pytest.approx(0.6)
    assert entry["service_p50_ms"] == 5.0
    assert entry["p50_ms"] == pytest.approx(np.sort(rows[:, 2] - rows[:, 0])[299] * 1e-6)
    assert entry["p99_ms"] > 10 > entry["service_p50_ms"], "the queue is in the tail"
    assert entry["p99_ci_ms"][0] <= entry["p99_ms"] <= entry["p99_ci_ms"][1]
    assert entry["wait_p99_ms"] == pytest.approx(entry["p99_ms"] - 5.0)
    assert 0.4 < entry["queued_share"] < 0.75, "with random arrivals, as often as the server is busy"
    assert entry["flags"] == []


def test_an_overloaded_server_has_no_percentiles() -> None:
    entry = open_loop.summarise(
        served(5_000_000, 250.0), 600, rate_per_s=250.0, arrivals="poisson", resamples=100
    )
    assert entry["flags"] == ["overloaded"]
    assert entry["p50_ms"] is None
    assert entry["wait_p50_ms"] is None
    assert entry["achieved_per_s"] == pytest.approx(200, rel=0.02)


def test_a_hopeless_queue_is_given_up_and_told() -> None:
    due = open_loop.schedule_ns(1000.0, 0.1, "regular")
    rows = open_loop.serve(lambda: time.sleep(0.02), due)
    # A sleep may last longer on a busy machine, never shorter: no more than this many fit in before the end.
    assert 1 <= len(rows) <= open_loop.MAX_SCHEDULE_LENGTHS * 0.1 / 0.02 + 1
    entry = open_loop.summarise(rows, len(due), rate_per_s=1000.0, arrivals="regular", resamples=100)
    assert entry["unserved"] == 100 - len(rows) > 0
    assert "overloaded" in entry["flags"]
