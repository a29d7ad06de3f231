"""Latency in a closed loop: samples and their statistics.

Sampling is closed-loop and single-stream: the next inference starts when the previous one is done. So the
figures are service times, without the waiting time in a queue (open_loop.py). No sample is clipped, and a
percentile for which there are too few samples is null.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.heartbeat import ProgressCallback, ignore_progress
from stages.measuring.contention import Watch
from stages.statistics.percentiles import MIN_SAMPLES, bootstrap_ci_ns, percentile_ns, supported_percentile
from stages.statistics.steadiness import is_steady

WARMUP_CALLS = 10
"""Minimum number of warm-up calls, besides the minimum time."""

WARMUP_WINDOW = 9
"""Minimum number of the latest warm-up calls that must show no drift."""

CLOCK_STEPS = 50
"""A sample lasts at least this many steps of the clock; shorter calls are repeated within one sample."""

LOOK_EVERY_S = 0.25
"""Interval at which the machine's state is recorded during sampling."""


@dataclass(frozen=True)
class Warmup:
    """The warm-up before the first sample.

    Attributes:
        calls: Number of calls.
        seconds: How long they took.
        steady: Whether the latest half of them passed `is_steady`.
    """

    calls: int
    seconds: float
    steady: bool


@dataclass(frozen=True)
class Samples:
    """Raw latencies and the state of the machine while they were taken.

    Attributes:
        ns: int64 (n,), nanoseconds per inference, in order.
        cpu_ns: int64 (n,), CPU time of all threads of this process, nanoseconds per inference.
        steady: Whether the samples passed the steady-state test.
        inner_loops: Inferences in one sample.
        warmup: The warm-up.
        inferences: All inferences after the warm-up, those of dropped samples included.
        seconds: How long these took.
        health: What `Watch.end` returned; empty without a watch.
    """

    ns: np.ndarray
    cpu_ns: np.ndarray
    steady: bool
    inner_loops: int
    warmup: Warmup
    inferences: int
    seconds: float
    health: dict[str, Any]


def sample(
    call: Callable[[], None],
    *,
    warmup_s: float,
    duration_s: float,
    max_duration_s: float,
    min_samples: int,
    warmup_max_s: float = 5.0,
    watch: Watch | None = None,
    between: Callable[[], None] | None = None,
    warming: ProgressCallback = ignore_progress,
    sampling: ProgressCallback = ignore_progress,
) -> Samples:
    """Warm up to steady state, then sample until the samples are steady.

    Samples are taken for `duration_s` and at least `min_samples`. If they still drift, the oldest third is
    dropped and sampling goes on, up to `max_duration_s` in all. The garbage collector is off during sampling.

    Args:
        call: One inference.
        warmup_s: Minimum warm-up.
        duration_s: Minimum sampling time.
        max_duration_s: Maximum sampling time; `min_samples` are taken even if it is over.
        min_samples: Minimum number of samples.
        warmup_max_s: Maximum warm-up.
        watch: Records the machine's state.
        between: Called once after the warm-up, before the first sample.
        warming: Called between warm-up calls with the seconds done and planned.
        sampling: The same between samples.

    Example:
        >>> samples = sample(lambda: None, warmup_s=0.0, duration_s=0.01, max_duration_s=0.02, min_samples=9)
        >>> samples.ns.dtype
        dtype('int64')
    """
    warmup, shortest_ns = warm_up(call, warmup_s=warmup_s, warmup_max_s=warmup_max_s, warming=warming)
    loops = max(1, math.ceil(CLOCK_STEPS * clock_step_ns() / max(shortest_ns, 1)))
    if between:
        between()
    wall: list[int] = []
    cpu: list[int] = []
    inferences = 0
    with collector_off():
        if watch:
            watch.begin()
        began = time.perf_counter()
        deadline, next_look = duration_s, LOOK_EVERY_S
        while True:
            cpu_before = time.process_time_ns()
            before = time.perf_counter_ns()
            for _ in range(loops):
                call()
            spent = time.perf_counter_ns() - before
            cpu.append((time.process_time_ns() - cpu_before) // loops)
            wall.append(spent // loops)
            inferences += loops
            elapsed = time.perf_counter() - began
            if elapsed >= max_duration_s and len(wall) >= min_samples:
                break
            if elapsed >= deadline and len(wall) >= min_samples:
                if is_steady(np.asarray(wall)):
                    break
                del wall[: len(wall) // 3], cpu[: len(cpu) // 3]
                deadline = elapsed + duration_s / 3
            if elapsed >= next_look:
                if watch:
                    watch.look()
                sampling(elapsed, max(deadline, elapsed))
                next_look = elapsed + LOOK_EVERY_S
        seconds = time.perf_counter() - began
    ns, cpu_ns = np.asarray(wall, dtype=np.int64), np.asarray(cpu, dtype=np.int64)
    return Samples(
        ns=ns,
        cpu_ns=cpu_ns,
        steady=is_steady(ns),
        inner_loops=loops,
        warmup=warmup,
        inferences=inferences,
        seconds=seconds,
        health=watch.end(wall_over_cpu(ns, cpu_ns)) if watch else {},
    )


def warm_up(
    call: Callable[[], None],
    *,
    warmup_s: float,
    warmup_max_s: float,
    warming: ProgressCallback = ignore_progress,
) -> tuple[Warmup, int]:
    """Call until the latencies are steady.

    At least `WARMUP_CALLS` calls and `warmup_s`; then until the latest half of the calls (at least
    `WARMUP_WINDOW`) shows no drift by `is_steady`, or until `warmup_max_s` have passed.

    Args:
        call: One inference.
        warmup_s: Minimum warm-up.
        warmup_max_s: Maximum warm-up.
        warming: Called between calls with the seconds done and planned.

    Returns:
        The warm-up, and the shortest call in nanoseconds.
    """
    times: list[int] = []
    started = time.perf_counter()
    next_test, steady = warmup_s, False
    while True:
        before = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - before)
        seconds = time.perf_counter() - started
        warming(seconds, max(warmup_max_s, seconds))
        if len(times) < WARMUP_CALLS or seconds < next_test:
            continue
        latest = np.asarray(times[-max(WARMUP_WINDOW, len(times) // 2) :])
        steady = is_steady(latest)
        if steady or seconds >= warmup_max_s:
            return Warmup(len(times), round(seconds, 4), steady), min(times)
        next_test = seconds * 1.2


@contextmanager
def collector_off() -> Iterator[None]:
    """Switch the garbage collector off while samples are taken."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def clock_step_ns() -> int:
    """Return the smallest step of `perf_counter_ns` in a short trial, at least 1 ns."""
    steps = []
    for _ in range(20):
        before = time.perf_counter_ns()
        after = before
        while after == before:
            after = time.perf_counter_ns()
        steps.append(after - before)
    return max(1, min(steps))


def wall_over_cpu(ns: np.ndarray, cpu_ns: np.ndarray) -> float | None:
    """Return total wall time over total CPU time; None if no CPU time was counted."""
    cpu = int(cpu_ns.sum())
    return round(int(ns.sum()) / cpu, 3) if cpu else None


def bootstrap_p50_ci_ns(ns: np.ndarray, *, resamples: int, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the median of samples (n,) in order, by the moving-block bootstrap."""
    return bootstrap_ci_ns(ns, (50,), resamples=resamples, seed=seed)[0]


def summarise(samples: Samples, *, batch: int, threads: int, resamples: int) -> dict[str, Any]:
    """Return one entry of the scorecard's `latency` list, times in milliseconds.

    A percentile for which there are too few samples is null, and so is its interval. `flags` lists what makes
    the figures doubtful: `not steady`, `warm-up not steady`, `contended`, `throttled`, `tail under-sampled`.

    Args:
        samples: Of `sample`.
        batch: Images of an inference.
        threads: CPU threads.
        resamples: Bootstrap resamples of an interval.
    """
    ordered, ordered_cpu = np.sort(samples.ns), np.sort(samples.cpu_ns)
    n = len(ordered)
    intervals = bootstrap_ci_ns(samples.ns, (50, 90, 99), resamples=resamples)
    mean = float(ordered.mean())
    median = percentile_ns(ordered, 50)
    quartiles = percentile_ns(ordered, 75) - percentile_ns(ordered, 25)
    flags = ["not steady"] * (not samples.steady)
    flags += ["warm-up not steady"] * (not samples.warmup.steady)
    flags += samples.health.get("flags", [])
    flags += ["tail under-sampled"] * (n < MIN_SAMPLES[99])
    entry: dict[str, Any] = {
        "batch": batch,
        "threads": threads,
        "n": n,
        "inner_loops": samples.inner_loops,
        "min_ms": ms(float(ordered[0])),
        "mean_ms": ms(mean),
        "p50_ms": ms(median),
        "p50_ci_ms": [ms(end) for end in intervals[0]],
    }
    for percent, span in ((90, intervals[1]), (95, None), (99, intervals[2])):
        value = supported_percentile(ordered, percent)
        entry[f"p{percent}_ms"] = None if value is None else ms(value)
        if span:
            entry[f"p{percent}_ci_ms"] = None if value is None else [ms(end) for end in span]
    return {
        **entry,
        "max_ms": ms(float(ordered[-1])),
        "cv": round(float(ordered.std()) / mean, 4) if mean else 0.0,
        "iqr_over_p50": round(quartiles / median, 4) if median else 0.0,
        "cpu_p50_ms": ms(percentile_ns(ordered_cpu, 50)),
        "wall_over_cpu": wall_over_cpu(samples.ns, samples.cpu_ns),
        "throughput_ips": round(batch / (mean * 1e-9), 2),
        "warmup": {
            "calls": samples.warmup.calls,
            "seconds": samples.warmup.seconds,
            "steady": samples.warmup.steady,
        },
        "health": {name: value for name, value in samples.health.items() if name != "flags"},
        "flags": flags,
    }


def ms(ns: float) -> float:
    """Return nanoseconds as milliseconds, rounded to the nanosecond."""
    return round(ns * 1e-6, 6)
