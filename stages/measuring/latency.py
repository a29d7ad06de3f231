"""Latency: samples taken honestly, and what can be said from them.

Sampling is closed-loop and single-stream: the next inference starts when the last one is done, so
the figures are service times, not what a queue in front of the device would add.
Statistics follow one rule: nothing is clipped, and no percentile is given that the number of
samples does not carry.
"""

from __future__ import annotations

import gc
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

WARMUP_CALLS = 10
"""Fewest calls before samples count, besides the shortest time."""

CLOCK_STEPS = 50
"""A sample lasts at least this many steps of the clock; shorter calls are looped inside one."""

DRIFT = 0.02
"""Relative shift between the medians of the first and the last third that counts as drift."""

BLOCKS = 30
"""Blocks for the trend test and, at most, for the length of a bootstrap block."""

FEWEST = {50: 7, 90: 44, 95: 90, 99: 459}
"""Fewest samples for a distribution-free upper bound of a percentile at 99 % confidence: the
smallest n with 1 - q**n >= 0.99."""

CONTENDED = 1.1
"""Wall time over CPU time of a one-thread run above which something else used the core."""


@dataclass(frozen=True)
class Samples:
    """Raw latencies in order (int64 nanoseconds per inference) and what went on meanwhile.

    cpu_ns: CPU time of this process over all samples; wall_ns: their wall time;
    involuntary_switches: how often the kernel took the core away; steady: whether the samples
    passed the steady-state test; inner_loops: inferences inside one sample.
    """

    ns: np.ndarray
    wall_ns: int
    cpu_ns: int
    involuntary_switches: int
    steady: bool
    inner_loops: int


def sample(
    call: Callable[[], None],
    *,
    warmup_s: float,
    duration_s: float,
    max_duration_s: float,
    min_samples: int,
) -> Samples:
    """Warms up, then times `call` until steady state.

    At least `WARMUP_CALLS` calls and `warmup_s` go uncounted. Then samples are taken for
    `duration_s` and at least `min_samples`; if they still drift, the oldest third is dropped and
    sampling goes on, up to `max_duration_s` in all. The garbage collector is off meanwhile.
    """
    started = time.perf_counter()
    calls = 0
    shortest = math.inf
    while calls < WARMUP_CALLS or time.perf_counter() - started < warmup_s:
        before = time.perf_counter_ns()
        call()
        shortest = min(shortest, time.perf_counter_ns() - before)
        calls += 1
    loops = max(1, math.ceil(CLOCK_STEPS * clock_step_ns() / max(shortest, 1)))

    samples: list[int] = []
    wall = cpu = 0
    switches = _involuntary_switches()
    collecting = gc.isenabled()
    gc.disable()
    try:
        began = time.perf_counter()
        deadline = duration_s
        while True:
            cpu_before = time.process_time_ns()
            before = time.perf_counter_ns()
            for _ in range(loops):
                call()
            spent = time.perf_counter_ns() - before
            cpu += time.process_time_ns() - cpu_before
            wall += spent
            samples.append(spent // loops)
            elapsed = time.perf_counter() - began
            if elapsed >= max_duration_s and len(samples) >= min_samples:
                break
            if elapsed >= deadline and len(samples) >= min_samples:
                if is_steady(np.asarray(samples)):
                    break
                del samples[: len(samples) // 3]
                deadline = elapsed + duration_s / 3
    finally:
        if collecting:
            gc.enable()
    ns = np.asarray(samples, dtype=np.int64)
    return Samples(
        ns=ns,
        wall_ns=wall,
        cpu_ns=cpu,
        involuntary_switches=_involuntary_switches() - switches,
        steady=is_steady(ns),
        inner_loops=loops,
    )


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


def is_steady(ns: np.ndarray) -> bool:
    """Whether the samples (n,) show no drift.

    Steady: the medians of the first and last third differ by at most `DRIFT`, or, if they differ
    by more, the block medians show no monotone trend (Mann-Kendall, p >= 0.01): a machine that
    jumps to and fro is noisy, not warming up.
    """
    if len(ns) < 9:
        return False
    third = len(ns) // 3
    first, last = float(np.median(ns[:third])), float(np.median(ns[-third:]))
    if abs(last - first) <= DRIFT * first:
        return True
    return mann_kendall_p(block_medians(ns, BLOCKS)) >= 0.01


def block_medians(ns: np.ndarray, blocks: int) -> np.ndarray:
    """Medians of consecutive blocks of nearly equal length: (min(blocks, n),) float64."""
    return np.asarray([np.median(part) for part in np.array_split(ns, min(blocks, len(ns)))])


def mann_kendall_p(values: np.ndarray) -> float:
    """Two-sided p-value of the Mann-Kendall trend test (normal approximation, ties counted)."""
    n = len(values)
    if n < 4:
        return 1.0
    score = float(np.sign(values[None, :] - values[:, None])[np.triu_indices(n, 1)].sum())
    _, counts = np.unique(values, return_counts=True)
    ties = float((counts * (counts - 1) * (2 * counts + 5)).sum())
    variance = (n * (n - 1) * (2 * n + 5) - ties) / 18.0
    if variance <= 0.0:
        return 1.0
    z = (score - math.copysign(1.0, score)) / math.sqrt(variance) if score else 0.0
    return math.erfc(abs(z) / math.sqrt(2.0))


def percentile_ns(ordered: np.ndarray, percent: float) -> float:
    """Nearest-rank percentile of sorted samples (n,)."""
    return float(ordered[max(0, math.ceil(percent / 100.0 * len(ordered)) - 1)])


def bootstrap_p50_ci_ns(ns: np.ndarray, *, resamples: int, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the median by a moving-block bootstrap.

    Latencies are autocorrelated (clock changes, neighbours), so whole blocks of consecutive
    samples are drawn; a block has about n^(1/3) samples, at least n / 1000. Of long runs at most
    2,000 evenly spread block starts' worth of samples enter each resample.
    """
    n = len(ns)
    if n < 2:
        only = float(ns[0]) if n else math.nan
        return only, only
    length = max(1, round(n ** (1.0 / 3.0)), n // 1000)
    blocks = math.ceil(n / length)
    rng = np.random.default_rng(seed)
    offsets = np.arange(length)
    medians = np.empty(resamples)
    for index in range(resamples):
        starts = rng.integers(0, n - length + 1, size=blocks)
        drawn = ns[(starts[:, None] + offsets).ravel()[:n]]
        middle = (n - 1) // 2
        medians[index] = np.partition(drawn, middle)[middle]
    low, high = np.quantile(medians, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


def summarise(samples: Samples, *, batch: int, threads: int, resamples: int) -> dict[str, Any]:
    """One entry of the scorecard's `latency` list, times in milliseconds.

    A percentile that the number of samples does not carry is null. `flags` lists what makes the
    figures doubtful: `not steady`, `contended`, `tail under-sampled`.
    """
    ordered = np.sort(samples.ns)
    n = len(ordered)

    def carried(percent: int) -> float | None:
        return _ms(percentile_ns(ordered, percent)) if n >= FEWEST[percent] else None

    low, high = bootstrap_p50_ci_ns(samples.ns, resamples=resamples)
    mean = float(ordered.mean())
    median = percentile_ns(ordered, 50)
    wall_over_cpu = samples.wall_ns / samples.cpu_ns if samples.cpu_ns else None
    flags = []
    if not samples.steady:
        flags.append("not steady")
    if threads == 1 and wall_over_cpu is not None and wall_over_cpu > CONTENDED:
        flags.append("contended")
    if n < FEWEST[99]:
        flags.append("tail under-sampled")
    return {
        "batch": batch,
        "threads": threads,
        "n": n,
        "inner_loops": samples.inner_loops,
        "min_ms": _ms(float(ordered[0])),
        "mean_ms": _ms(mean),
        "p50_ms": _ms(median),
        "p50_ci_ms": [_ms(low), _ms(high)],
        "p90_ms": carried(90),
        "p95_ms": carried(95),
        "p99_ms": carried(99),
        "max_ms": _ms(float(ordered[-1])),
        "cv": round(float(ordered.std()) / mean, 4) if mean else 0.0,
        "wall_over_cpu": round(wall_over_cpu, 3) if wall_over_cpu is not None else None,
        "involuntary_switches": samples.involuntary_switches,
        "throughput_ips": round(batch / (mean * 1e-9), 2),
        "flags": flags,
    }


def _ms(ns: float) -> float:
    return round(ns * 1e-6, 6)


def _involuntary_switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
