"""Latency under load: requests arrive on a schedule, whether or not the last one is done.

A closed loop waits for an answer before it asks again, so a stall delays the questions and goes
unseen (coordinated omission). Here each latency counts from the moment the request was due, so that
what a request waits behind others is part of it. One server, one queue, first come first served.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from pipeline.heartbeat import Told, unheard
from stages.measuring.latency import collector_off, ms
from stages.statistics.percentiles import FEWEST, bootstrap_ci_ns, carried, percentile_ns

REST_S = 5.0
"""Longest sleep at a time while an arrival is waited for."""

SPIN_S = 0.0005
"""The last stretch before an arrival is waited for awake: a sleep wakes up late."""

CUT_OFF = 3.0
"""A queue that is not through after this many times the schedule's length is given up."""

FULL = 0.95
"""Share of the time at work above which one server has no steady state worth its name."""

Arrivals = Literal["poisson", "regular"]


def schedule_ns(rate_per_s: float, duration_s: float, arrivals: Arrivals, seed: int = 0) -> np.ndarray:
    """When requests are due, int64 nanoseconds from the start: (round(rate * duration), at least 1).

    `poisson`: gaps drawn from the exponential distribution, as of many independent users; `regular`:
    equal gaps, as of a camera.
    """
    count = max(1, round(rate_per_s * duration_s))
    mean_ns = 1e9 / rate_per_s
    if arrivals == "regular":
        gaps = np.full(count, mean_ns)
    else:
        gaps = np.random.default_rng(seed).exponential(mean_ns, count)
    return np.cumsum(gaps).astype(np.int64)


def serve(call: Callable[[], None], due_ns: np.ndarray, serving: Told = unheard) -> np.ndarray:
    """int64 (served, 3): due, started, done of each request in nanoseconds from the start.

    Fewer than were due come back if the queue is given up (`CUT_OFF`). serving: called with the seconds done
    and planned, after each request and while none is due.
    """
    rows = np.empty((len(due_ns), 3), dtype=np.int64)
    limit_ns = int(CUT_OFF * int(due_ns[-1]))
    served, planned_s = 0, int(due_ns[-1]) * 1e-9
    with collector_off():
        origin = time.perf_counter_ns()
        for due in due_ns.tolist():
            now = time.perf_counter_ns() - origin
            while (ahead_s := (due - now) * 1e-9) > SPIN_S:
                time.sleep(min(ahead_s - SPIN_S, REST_S))
                now = time.perf_counter_ns() - origin
                if ahead_s > REST_S:
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
    """One entry of a scorecard row's `open_loop` list, from what `serve` returned.

    due: how many requests the schedule had. Latency = done - due = wait + service. A server that is
    at work more than `FULL` of the time, or was given up, is `overloaded`: its queue grows for as
    long as it is watched, so its percentiles would tell of the schedule's length and are null.
    """
    latency, wait, service = rows[:, 2] - rows[:, 0], rows[:, 1] - rows[:, 0], rows[:, 2] - rows[:, 1]
    # Against the asked rate, not the achieved one, which an overloaded server holds down to its own.
    utilisation = float(service.mean()) * rate_per_s * 1e-9
    overloaded = utilisation > FULL or len(rows) < due
    ordered, waits = np.sort(latency), np.sort(wait)
    found: dict[str, Any] = {
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
        value = None if overloaded else carried(ordered, percent)
        found[f"p{percent}_ms"] = None if value is None else ms(value)
        found[f"p{percent}_ci_ms"] = None if value is None else [ms(end) for end in span]
        waited = None if overloaded else carried(waits, percent)
        found[f"wait_p{percent}_ms"] = None if waited is None else ms(waited)
    flags = ["overloaded"] * overloaded + ["tail under-sampled"] * (len(rows) < FEWEST[99])
    return {**found, "flags": flags}
