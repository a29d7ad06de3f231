"""Sampling and statistics of latencies, against hand-computed and slow references."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import machine
from stages.measuring import latency
from stages.measuring.latency import Samples, Warmup
from stages.statistics import percentiles, steadiness


def test_nearest_rank_percentiles_by_hand() -> None:
    ordered = np.array([10, 20, 30, 40, 50])
    assert percentiles.percentile_ns(ordered, 50) == 30
    assert percentiles.percentile_ns(ordered, 90) == 50
    assert percentiles.percentile_ns(ordered, 20) == 10
    assert percentiles.percentile_ns(ordered, 21) == 20


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=200), st.floats(0.1, 100.0))
def test_percentile_is_a_sample_with_enough_at_or_below(values: list[int], percent: float) -> None:
    ordered = np.sort(np.array(values))
    percentile = percentiles.percentile_ns(ordered, percent)
    assert percentile in values
    assert (ordered <= percentile).mean() >= percent / 100.0 - 1e-12


def test_fewest_samples_are_those_of_the_binomial_bound() -> None:
    for percent, fewest in percentiles.MIN_SAMPLES.items():
        share = percent / 100.0
        assert 1 - share**fewest >= 0.99
        assert 1 - share ** (fewest - 1) < 0.99


def test_mann_kendall_sees_a_trend_and_no_trend() -> None:
    assert steadiness.mann_kendall_p(np.arange(30.0)) < 1e-6
    assert steadiness.mann_kendall_p(np.ones(30)) == 1.0
    alternating = np.array([1.0, 2.0] * 15)
    assert steadiness.mann_kendall_p(alternating) > 0.05


def test_mann_kendall_score_by_hand() -> None:
    # 1 3 2 4: pairs up 5, down 1: S = 4; variance 4*3*13/18; z = 3 / sqrt(8.667)
    z = 3 / math.sqrt(4 * 3 * 13 / 18)
    expected = math.erfc(z / math.sqrt(2))
    assert steadiness.mann_kendall_p(np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(expected)


def test_steady_and_drifting_samples_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 2000, size=600)
    flat = (1_000_000 + noise).astype(np.int64)
    warming = (np.linspace(1_300_000, 1_000_000, 600) + noise).astype(np.int64)
    assert steadiness.is_steady(flat)
    assert not steadiness.is_steady(warming)
    assert not steadiness.is_steady(flat[:5]), "too few samples prove nothing"


def test_interval_of_the_median_covers_it_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    rounds = 60
    for _ in range(rounds):
        ns = rng.lognormal(math.log(1e6), 0.2, size=300).astype(np.int64)
        low, high = latency.bootstrap_p50_ci_ns(ns, resamples=200)
        hits += low <= 1e6 <= high
    assert hits / rounds > 0.85


@settings(max_examples=25)
@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=60))
def test_interval_is_ordered_within_the_samples_and_repeatable(values: list[int]) -> None:
    ns = np.array(values, dtype=np.int64)
    low, high = latency.bootstrap_p50_ci_ns(ns, resamples=100)
    assert ns.min() <= low <= high <= ns.max()
    assert (low, high) == latency.bootstrap_p50_ci_ns(ns, resamples=100)


def test_correlated_samples_widen_the_interval() -> None:
    """Blocks of equal values carry less information than as many independent ones."""
    rng = np.random.default_rng(2)
    independent = rng.normal(1e6, 1e5, size=1000).astype(np.int64)
    correlated = np.repeat(rng.normal(1e6, 1e5, size=50), 20).astype(np.int64)
    width = [high - low for low, high in map(_interval, (independent, correlated))]
    assert width[1] > 1.5 * width[0]


def _interval(ns: np.ndarray) -> tuple[float, float]:
    return latency.bootstrap_p50_ci_ns(ns, resamples=300)


def test_sampling_times_the_call_and_leaves_the_warm_up_out() -> None:
    calls: list[float] = []

    def call() -> None:
        # The first calls are slow, as a runtime's are; they must not show in the samples.
        time.sleep(0.02 if len(calls) < 5 else 0.002)
        calls.append(time.perf_counter())

    samples = latency.sample(call, warmup_s=0.0, duration_s=0.2, max_duration_s=0.6, min_samples=20)
    assert len(samples.ns) >= 20
    assert samples.ns.dtype == np.int64
    assert samples.ns.min() >= 2_000_000
    assert np.median(samples.ns) < 15_000_000
    assert len(calls) >= len(samples.ns) * samples.inner_loops + latency.WARMUP_CALLS


def test_very_short_calls_are_looped_inside_a_sample() -> None:
    samples = latency.sample(lambda: None, warmup_s=0.0, duration_s=0.01, max_duration_s=0.05, min_samples=10)
    assert samples.inner_loops > 1


def make_samples(ns: np.ndarray, *, cpu_ns: np.ndarray | None = None, **facts: object) -> Samples:
    given: dict[str, object] = {
        "steady": True,
        "inner_loops": 1,
        "warmup": Warmup(10, 0.2, True),
        "inferences": len(ns),
        "seconds": 1.0,
        "health": {},
        **facts,
    }
    return Samples(ns=ns, cpu_ns=ns if cpu_ns is None else cpu_ns, **given)  # type: ignore[arg-type]


def test_a_percentile_that_the_samples_do_not_carry_is_left_out() -> None:
    few = make_samples(np.arange(1, 101, dtype=np.int64) * 1000)
    entry = latency.summarise(few, batch=2, threads=1, resamples=100)
    assert entry["p50_ms"] == pytest.approx(0.05)
    assert entry["p90_ms"] == pytest.approx(0.09)
    assert entry["p90_ci_ms"][0] <= 0.09 <= entry["p90_ci_ms"][1]
    assert entry["p99_ms"] is None
    assert entry["p99_ci_ms"] is None
    assert "tail under-sampled" in entry["flags"]
    assert entry["throughput_ips"] == pytest.approx(2 / 50.5e-6, rel=1e-3)
    entry = latency.summarise(
        make_samples(np.arange(1, 1001, dtype=np.int64) * 1000), batch=1, threads=1, resamples=100
    )
    assert entry["p99_ms"] == pytest.approx(0.99)
    assert entry["p99_ci_ms"][0] <= 0.99 <= entry["p99_ci_ms"][1]


def test_cpu_time_stands_beside_wall_time() -> None:
    ns = np.full(500, 1_500_000, dtype=np.int64)
    entry = latency.summarise(
        make_samples(ns, cpu_ns=np.full(500, 1_000_000)), batch=1, threads=1, resamples=100
    )
    assert entry["cpu_p50_ms"] == 1.0
    assert entry["wall_over_cpu"] == 1.5


def test_what_was_not_steady_says_so() -> None:
    ns = np.full(500, 1_000_000, dtype=np.int64)
    doubtful = make_samples(
        ns, steady=False, warmup=Warmup(4000, 5.0, False), health={"flags": ["contended"]}
    )
    entry = latency.summarise(doubtful, batch=1, threads=1, resamples=100)
    assert entry["flags"] == ["not steady", "warm-up not steady", "contended"]
    assert entry["warmup"] == {"calls": 4000, "seconds": 5.0, "steady": False}
    assert latency.summarise(make_samples(ns), batch=1, threads=1, resamples=100)["flags"] == []


def test_the_warm_up_goes_on_until_latencies_stand_still() -> None:
    """Each call is a fifth faster than the one before, down to 1 ms."""
    calls = [0]

    def call() -> None:
        time.sleep(0.001 + 0.03 * 0.8 ** calls[0])
        calls[0] += 1

    warmup, _ = latency.warm_up(call, warmup_s=0.01, warmup_max_s=5.0)
    assert warmup.steady
    assert warmup.calls > latency.WARMUP_CALLS + 2
    assert warmup.seconds < 5.0


def test_a_warm_up_that_never_settles_ends_and_says_so() -> None:
    calls = [0]

    def call() -> None:
        time.sleep(0.005 * 1.5 ** calls[0])  # far apart, also on a busy machine
        calls[0] += 1

    warmup, _ = latency.warm_up(call, warmup_s=0.0, warmup_max_s=0.3)
    assert not warmup.steady
    assert warmup.seconds >= 0.3
    assert warmup.calls == latency.WARMUP_CALLS, "ten calls last longer than the maximum"


def test_work_of_another_process_on_the_same_core_is_seen() -> None:
    """A real neighbour: a busy loop bound to the core on which the samples are taken."""
    core = max(machine.allowed_cores())
    worker = f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass"
    neighbour = subprocess.Popen([sys.executable, "-c", worker])
    try:
        time.sleep(0.3)
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(core)], capture_output=True, text=True, check=True
        )
    finally:
        neighbour.kill()
        neighbour.wait()
    health = json.loads(done.stdout)
    assert "contended" in health["flags"]
    assert any("involuntary context switches" in sign for sign in health["contended_by"])
    assert any("other processes took" in sign for sign in health["contended_by"])


MEASURED = """
import json, os, sys
core = int(sys.argv[1])
os.sched_setaffinity(0, [core])
from stages.measuring import latency
from stages.measuring.contention import Watch
found = latency.sample(lambda: sum(range(20000)), warmup_s=0.1, duration_s=1.0, max_duration_s=1.0,
                       min_samples=50, warmup_max_s=0.2, watch=Watch((core,), 1))
print(json.dumps(found.health))
"""
