"""Intervals of percentiles, held against resampling written out and against known distributions."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from stages.statistics import percentiles
from stages.statistics.percentiles import (
    bootstrap_ci_ns,
    draw_block_counts,
    percentile_ns,
    resampled_percentiles,
)


def test_resampled_percentiles_are_those_of_the_samples_drawn() -> None:
    rng = np.random.default_rng(0)
    blocks = [rng.integers(0, 10**6, size=size) for size in (7, 12, 5, 9)]
    counts = draw_block_counts(rng, 4, 6, 50)
    assert (counts.sum(axis=1) == 6).all()
    resampled = resampled_percentiles(blocks, counts, (50, 90, 99))
    for row, times in zip(resampled, counts, strict=True):
        drawn = np.sort(np.concatenate([np.tile(b, t) for b, t in zip(blocks, times, strict=True)]))
        assert row.tolist() == [percentile_ns(drawn, percent) for percent in (50, 90, 99)]


def test_many_samples_are_ranked_finely_enough() -> None:
    rng = np.random.default_rng(1)
    ns = rng.lognormal(math.log(1e6), 0.3, size=30_000).astype(np.int64)
    by_percent = resampled_percentiles([ns], np.ones((1, 1)), (50, 90, 99))[0]
    for value, percent in zip(by_percent, (50, 90, 99), strict=True):
        at_or_below = (ns <= value).mean() * 100
        assert at_or_below == pytest.approx(percent, abs=0.15)


def _correlated(rng: np.random.Generator, n: int, rho: float) -> np.ndarray:
    """Log-normal with median 1e6, neighbours correlated by rho."""
    noise = rng.standard_normal(n)
    state = np.empty(n)
    state[0] = noise[0]
    for index in range(1, n):
        state[index] = rho * state[index - 1] + math.sqrt(1 - rho * rho) * noise[index]
    return np.exp(math.log(1e6) + 0.1 * state).astype(np.int64)


@pytest.mark.long
@pytest.mark.parametrize("rho", [0.0, 0.8], ids=["independent", "correlated"])
def test_intervals_hold_the_truth_about_as_often_as_they_say(rho: float) -> None:
    """100 runs of 1,200 samples whose percentiles are known; 95 % less four standard errors."""
    rng = np.random.default_rng(2)
    truth = [math.exp(math.log(1e6) + 0.1 * NormalDist().inv_cdf(q)) for q in (0.5, 0.9, 0.99)]
    hits = np.zeros(3)
    for _ in range(100):
        spans = bootstrap_ci_ns(_correlated(rng, 1200, rho), (50, 90, 99), resamples=300)
        hits += [low <= value <= high for (low, high), value in zip(spans, truth, strict=True)]
    assert hits.min() >= 86, hits


def test_a_block_grows_with_what_neighbours_have_in_common() -> None:
    rng = np.random.default_rng(3)
    assert percentiles.block_length(_correlated(rng, 1000, 0.0)) <= 14
    assert percentiles.block_length(_correlated(rng, 1000, 0.95)) > 40
    assert percentiles.block_length(np.full(1000, 7)) == 10, "equal samples have no order"


def test_long_runs_take_no_long_time_and_no_much_memory() -> None:
    ns = np.random.default_rng(4).integers(10**5, 10**6, size=200_000)
    (low, high), _ = bootstrap_ci_ns(ns, (50, 99), resamples=2000)
    assert low <= 550_000 <= high
    assert (high - low) / 550_000 < 0.02
