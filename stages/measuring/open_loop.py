"""Latency under load: requests arrive on a schedule, whether or not the previous one is done.

A closed loop sends a request only after the last answer, so a stall delays later requests and is not measured
(coordinated omission). Here latency counts from the moment at which a request was due: the time that it waits
behind others is included. One server, one queue, first come first served.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from pipeline.heartbeat import ProgressCallback, ignore_progress
from stages.measuring.latency import collector_off, ms
from stages.statistics.percentiles import MIN_SAMPLES, bootstrap_ci_ns, percentile_ns, supported_percentile

MAX_SLEEP_S = 5.0
"""Maximum length of one sleep before an arrival."""

SPIN_S = 0.0005
"""The last time before an arrival is spent in a busy loop, because a sleep ends late."""

MAX_SCHEDULE_LENGTHS = 3.0
"""Serving stops after this many times the schedule's length, even if requests are left."""

MAX_UTILISATION = 0.95
"""Share of the time at work; above it, one server has no useful steady state."""

Arrivals = Literal["poisson", "regular"]


def schedule_ns(rate_per_s: float, duration_s: float, arrivals: Arrivals, seed: int = 0) -> np.ndarray:
    """Return when requests are due: int64 (max(1, round(rate * duration)),), nanoseconds from the start.

    Args:
        rate_per_s: Mean arrivals per second.
        duration_s: Length of the schedule.
        arrivals: `poisson`: exponential gaps, like those of many independent users. `regular`: equal gaps,
            like those of a camera.
        seed: Of the random generator.
    """
    count = max(1, round(rate_per_s * duration_s))
    mean_ns = 1e9 / rate_per_s
    if arrivals == "regular":
        gaps = np.full(count, mean_ns)
    else:
        gaps = np.random.default_rng(seed).exponential(mean_ns, count)
    return np.cumsum(gaps).astype(np.int64)


def serve(
    call: Callable[[], None], due_ns: np.ndarray, serving: ProgressCallback = ignore_progress
) -> np.ndarray:
    """Serve requests when they are due, one at a time.

    Args:
        call: One inference.
        due_ns: When each request is due, nanoseconds from the start, ascending.
        serving: Called with the seconds done and planned, after each request and while none is due.

    Returns:
        int64 (served, 3): when each request was due, started and done, nanoseconds from the start. Fewer rows
        than requests if serving stopped early (`MAX_SCHEDULE_LENGTHS`).
    """
    rows = np.empty((len(due_ns), 3), dtype=np.int64)
    limit_ns = int(MAX_SCHEDULE_LENGTHS * int(due_ns[-1]))
    served, planned_s = 0, int(due_ns[-1]) * 1e-9
    with collector_off():
        origin = time.perf_counter_ns()
        for due in due_ns.tolist():
            now = time.perf_counter_ns() - origin
            while (ahead_s := (due - now) * 1e-9) > SPIN_S:
                time.sleep(min(ahead_s - SPIN_S, MAX_SLEEP_S))
                now = time.perf_counter_ns() - origin
                if ahead_s > MAX_SLEEP_S:
                    serving(now * 1e-9, planned_s)
            while now < due:
                now = time.perf_counter_ns() - origin
            call()
            rows[served] = due, now, time.perf_counter_ns() - origin
            served += 1
            serving(rows[served - 1, 2] * 1e-9, planned_s)
            if rows[served - 1, 2] > limit_ns:
                break
    return rows[:served]


def summarise(
    rows: np.ndarray, due: int, *, rate_per_s: float, arrivals: Arrivals, resamples: int
) -> dict[str, Any]:
    """Return one entry of a scorecard row's `open_loop` list.

    Latency = done - due = wait + service. A server that is at work more than `MAX_UTILISATION` of the time,
    or that stopped early, is `overloaded`: its queue grows as long as requests arrive. Its percentiles would
    depend on the schedule's length, so they are null.

    Args:
        rows: What `serve` returned.
        due: Number of requests in the schedule.
        rate_per_s: Mean arrivals per second.
        arrivals: Kind of gaps.
        resamples: Bootstrap resamples of an interval.
    """
    latency, wait, service = rows[:, 2] - rows[:, 0], rows[:, 1] - rows[:, 0], rows[:, 2] - rows[:, 1]
    # By the scheduled rate: an overloaded server lowers the achieved rate to its own.
    utilisation = float(service.mean()) * rate_per_s * 1e-9
    overloaded = utilisation > MAX_UTILISATION or len(rows) < due
    ordered, waits = np.sort(latency), np.sort(wait)
    entry: dict[str, Any] = {
        "rate_per_s": rate_per_s,
        "arrivals": arrivals,
        "n": len(rows),
        "unserved": due - len(rows),
        "achieved_per_s": round(len(rows) / (int(rows[-1, 2]) * 1e-9), 3),
        "utilisation": round(utilisation, 4),
        "queued_share": round(float((rows[1:, 0] < rows[:-1, 2]).mean()), 4) if len(rows) > 1 else 0.0,
        "service_p50_ms": ms(percentile_ns(np.sort(service), 50)),
    }
    spans = bootstrap_ci_ns(latency, (50, 90, 99), resamples=resamples)
    for percent, span in zip((50, 90, 99), spans, strict=True):
        value = None if overloaded else supported_percentile(ordered, percent)
        entry[f"p{percent}_ms"] = None if value is None else ms(value)
        entry[f"p{percent}_ci_ms"] = None if value is None else [ms(end) for end in span]
        waited = None if overloaded else supported_percentile(waits, percent)
        entry[f"wait_p{percent}_ms"] = None if waited is None else ms(waited)
    flags = ["overloaded"] * overloaded + ["tail under-sampled"] * (len(rows) < MIN_SAMPLES[99])
    return {**entry, "flags": flags}
