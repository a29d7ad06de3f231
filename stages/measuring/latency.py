"""Latency: samples taken honestly, and what can be said from them.

Sampling is closed-loop and single-stream: the next inference starts when the last one is done, so
the figures are service times, not what a queue in front of the device would add (open_loop.py).
Statistics follow one rule: nothing is clipped, and no percentile is given that the number of
samples does not carry.
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

from pipeline.heartbeat import Told, unheard
from stages.measuring.contention import Watch
from stages.statistics.percentiles import FEWEST, bootstrap_ci_ns, carried, percentile_ns
from stages.statistics.steadiness import is_steady

WARMUP_CALLS = 10
"""Fewest calls before samples count, besides the shortest time."""

WARMUP_WINDOW = 9
"""Fewest of the newest warm-up calls that must show no drift."""

CLOCK_STEPS = 50
"""A sample lasts at least this many steps of the clock; shorter calls are looped inside one."""

LOOK_EVERY_S = 0.25
"""How often the machine's state is noted while samples are taken."""


@dataclass(frozen=True)
class Warmup:
    """What went uncounted: calls, seconds, whether the newest half of them passed `is_steady`."""

    calls: int
    seconds: float
    steady: bool


@dataclass(frozen=True)
class Samples:
    """Raw latencies in order (int64 nanoseconds per inference) and what went on meanwhile.

    cpu_ns: CPU time of all threads of this process, per inference, beside each sample. steady:
    whether the samples passed the steady-state test; inner_loops: inferences inside one sample;
    inferences, seconds: all that were run after the warm-up and how long that took, dropped ones
    among them; health: what `Watch.end` returned, empty if nothing watched.
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
    warming: Told = unheard,
    sampling: Told = unheard,
) -> Samples:
    """Warms up to steady state, then times `call` until steady state.

    Samples are taken for `duration_s` and at least `min_samples`; if they still drift, the oldest
    third is dropped and sampling goes on, up to `max_duration_s` in all. The garbage collector is
    off meanwhile.

    between: called once when the warm-up is over, before the first sample.
    warming, sampling: called between calls with the seconds done and planned of each part.
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
    call: Callable[[], None], *, warmup_s: float, warmup_max_s: float, warming: Told = unheard
) -> tuple[Warmup, int]:
    """Calls until steady; returns what that took and the shortest call in nanoseconds.

    The rule: at least `WARMUP_CALLS` calls and `warmup_s`; then on until the newest half of the
    calls (at least `WARMUP_WINDOW`) shows no drift by `is_steady`, or `warmup_max_s` have passed.
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
        newest = np.asarray(times[-max(WARMUP_WINDOW, len(times) // 2) :])
        steady = is_steady(newest)
        if steady or seconds >= warmup_max_s:
            return Warmup(len(times), round(seconds, 4), steady), min(times)
        next_test = seconds * 1.2


@contextmanager
def collector_off() -> Iterator[None]:
    """No garbage collection while samples are taken."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def clock_step_ns() -> int:
    """Smallest step of `perf_counter_ns` seen in a short trial, at least 1 ns."""
    steps = []
    for _ in range(20):
        before = time.perf_counter_ns()
        after = before
        while after == before:
            after = time.perf_counter_ns()
        steps.append(after - before)
    return max(1, min(steps))


def wall_over_cpu(ns: np.ndarray, cpu_ns: np.ndarray) -> float | None:
    """Total wall time over total CPU time; None where no CPU time was counted."""
    cpu = int(cpu_ns.sum())
    return round(int(ns.sum()) / cpu, 3) if cpu else None


def bootstrap_p50_ci_ns(ns: np.ndarray, *, resamples: int, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the median by the moving-block bootstrap."""
    return bootstrap_ci_ns(ns, (50,), resamples=resamples, seed=seed)[0]


def summarise(samples: Samples, *, batch: int, threads: int, resamples: int) -> dict[str, Any]:
    """One entry of the scorecard's `latency` list, times in milliseconds.

    A percentile that the number of samples does not carry is null, and so is its interval. `flags`
    lists what makes the figures doubtful: `not steady`, `warm-up not steady`, `contended`,
    `throttled`, `tail under-sampled`.
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
    flags += ["tail under-sampled"] * (n < FEWEST[99])
    found: dict[str, Any] = {
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
        value = carried(ordered, percent)
        found[f"p{percent}_ms"] = None if value is None else ms(value)
        if span:
            found[f"p{percent}_ci_ms"] = None if value is None else [ms(end) for end in span]
    return {
        **found,
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
    return round(ns * 1e-6, 6)
