"""Percentiles of latencies and their intervals. Light: numpy only.

Latencies are autocorrelated (clock changes, other processes, a queue), so intervals are bootstrapped over
blocks of consecutive samples (moving blocks: Kuensch, Annals of Statistics, 1989), not over single samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

MIN_SAMPLES = {50: 7, 90: 44, 95: 90, 99: 459}
"""Minimum number of samples for a distribution-free upper bound of a percentile at 99 % confidence: the
smallest n with 1 - q**n >= 0.99."""

BINS = 1000
"""Resolution of ranks in a resample is 1 / BINS: exact up to this many distinct samples."""

MAX_BLOCK_STARTS = 1000
"""Maximum number of block starts to draw from; they are evenly spread over longer runs."""

MAX_DRAWN_SAMPLES = 4_000_000
"""Maximum number of samples in all blocks together (memory)."""

Interval = tuple[float, float]


def percentile_ns(ordered: np.ndarray, percent: float) -> float:
    """Return the nearest-rank percentile of sorted samples (n,), in their unit."""
    return float(ordered[max(0, math.ceil(percent / 100.0 * len(ordered)) - 1)])


def supported_percentile(ordered: np.ndarray, percent: int) -> float | None:
    """Return the percentile of sorted samples (n,); None for fewer than `MIN_SAMPLES` of them."""
    return percentile_ns(ordered, percent) if len(ordered) >= MIN_SAMPLES[percent] else None


def block_length(ns: np.ndarray) -> int:
    """Return the number of samples in a bootstrap block: n^(1/3), more if they are autocorrelated.

    Twice the correlation time of the ranks, at most n / 5. The correlation time is 1 + 2 * the sum of the
    autocorrelations up to the first one below the noise, 2 / sqrt(n). Ranks are used because outliers would
    hide the correlation.

    Args:
        ns: Samples (n,) in the order in which they were taken.
    """
    n = len(ns)
    shortest: int = max(1, round(n ** (1.0 / 3.0)))
    if n < 10:
        return shortest
    _, inverse, times = np.unique(ns, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(times) - times / 2.0)[inverse]  # equal samples share their mean rank
    centred = ranks - ranks.mean()
    if not centred.any():
        return shortest
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.abs(np.fft.rfft(centred, size)) ** 2
    correlation = np.fft.irfft(spectrum, size)[: n // 2]
    correlation = correlation / correlation[0]
    noise = np.flatnonzero(correlation < 2.0 / math.sqrt(n))
    correlation_time = 1.0 + 2.0 * float(correlation[1 : int(noise[0]) if len(noise) else n // 2].sum())
    return max(shortest, min(n // 5, math.ceil(2.0 * correlation_time)))


def bootstrap_ci_ns(
    ns: np.ndarray, percents: Sequence[float], *, resamples: int, seed: int = 0
) -> list[Interval]:
    """Return the 95 % interval of each percentile by the moving-block bootstrap, in nanoseconds.

    Each interval contains the samples' own percentile, even if a trend keeps it out of all resamples.

    Args:
        ns: Samples (n,) in the order in which they were taken, nanoseconds.
        percents: The percentiles.
        resamples: How many resamples.
        seed: Of the random generator.
    """
    n = len(ns)
    if n < 2:
        only = float(ns[0]) if n else math.nan
        return [(only, only)] * len(percents)
    length = block_length(ns)
    possible = n - length + 1
    count = min(possible, MAX_BLOCK_STARTS, max(50, MAX_DRAWN_SAMPLES // length))
    starts = np.unique(np.linspace(0, possible - 1, count).astype(np.int64))
    rng = np.random.default_rng(seed)
    blocks = [ns[start : start + length] for start in starts]
    counts = draw_block_counts(rng, len(starts), math.ceil(n / length), resamples)
    resampled = resampled_percentiles(blocks, counts, percents)
    ordered = np.sort(ns)
    spans = []
    for index, percent in enumerate(percents):
        (low, high), own = central_interval(resampled[:, index]), percentile_ns(ordered, percent)
        spans.append((min(low, own), max(high, own)))
    return spans


def draw_block_counts(rng: np.random.Generator, blocks: int, drawn: int, resamples: int) -> np.ndarray:
    """Return (resamples, blocks) int64: how often each block is in each resample of `drawn` blocks."""
    chosen = rng.integers(0, blocks, size=(resamples, drawn))
    flat = chosen + blocks * np.arange(resamples)[:, None]
    return np.bincount(flat.ravel(), minlength=resamples * blocks).reshape(resamples, blocks)


def resampled_percentiles(
    blocks: Sequence[np.ndarray], counts: np.ndarray, percents: Sequence[float]
) -> np.ndarray:
    """Return the nearest-rank percentiles of each resample: (resamples, percents) float64.

    A resample's ranks follow from how often each block was drawn and how many of the block's samples are in
    each of at most `BINS` ranges of values: a matrix product instead of sorting.

    Args:
        blocks: The samples of each block.
        counts: (resamples, blocks), how often each block is in each resample.
        percents: The percentiles.
    """
    lengths = [len(block) for block in blocks]
    samples = np.concatenate(blocks)
    ordered = np.unique(samples)
    if len(ordered) > BINS:
        # Quantiles of all samples: each range then has about the same number of samples.
        by_rank = np.sort(samples)
        last = np.unique(np.linspace(0, len(by_rank) - 1, BINS).astype(np.int64))
        ordered = np.unique(by_rank[last])
    bins = np.searchsorted(ordered, samples, side="left")
    owner = np.repeat(np.arange(len(blocks)), lengths)
    shape = (len(blocks), len(ordered))
    histograms = np.bincount(owner * shape[1] + bins, minlength=shape[0] * shape[1]).reshape(shape)
    below = np.cumsum(counts.astype(np.float64) @ histograms.astype(np.float64), axis=1)
    percentiles = np.empty((len(counts), len(percents)))
    for index, percent in enumerate(percents):
        rank = np.ceil(percent / 100.0 * below[:, -1])
        percentiles[:, index] = ordered[np.minimum((below < rank[:, None]).sum(axis=1), shape[1] - 1)]
    return percentiles


def central_interval(values: np.ndarray) -> Interval:
    """Return the range of the middle 95 % of bootstrap values (n,)."""
    low, high = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)
