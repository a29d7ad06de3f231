"""Percentiles of latencies and how sure they are. Light: numpy alone.

Latencies are autocorrelated (clock changes, neighbours, a queue), so intervals come from a bootstrap over
blocks of consecutive samples (moving blocks: Kuensch, Annals of Statistics, 1989), never from single ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

FEWEST = {50: 7, 90: 44, 95: 90, 99: 459}
"""Fewest samples for a distribution-free upper bound of a percentile at 99 % confidence: the
smallest n with 1 - q**n >= 0.99."""

BINS = 1000
"""Ranks are told apart to 1 / BINS in a resample: exact up to so many samples."""

MOST_STARTS = 1000
"""Block starts that resamples draw from; of longer runs, so many evenly spread ones."""

MOST_DRAWN = 4_000_000
"""Samples in all blocks together, at most (memory)."""

Interval = tuple[float, float]


def percentile_ns(ordered: np.ndarray, percent: float) -> float:
    """Nearest-rank percentile of sorted samples (n,)."""
    return float(ordered[max(0, math.ceil(percent / 100.0 * len(ordered)) - 1)])


def carried(ordered: np.ndarray, percent: int) -> float | None:
    """The percentile of sorted samples (n,), None if there are too few of them for it."""
    return percentile_ns(ordered, percent) if len(ordered) >= FEWEST[percent] else None


def block_length(ns: np.ndarray) -> int:
    """Samples in a bootstrap block: n^(1/3), longer where neighbours go together, at most n / 5.

    Twice the time over which ranks are correlated (1 + 2 * the sum of the autocorrelations up to
    the first one that is lost in noise, below 2 / sqrt(n)); ranks, so that no outlier hides it.
    """
    n = len(ns)
    shortest = max(1, round(n ** (1.0 / 3.0)))
    if n < 10:
        return shortest
    _, place, times = np.unique(ns, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(times) - times / 2.0)[place]  # equal samples share their mean rank
    centred = ranks - ranks.mean()
    if not centred.any():
        return shortest
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.abs(np.fft.rfft(centred, size)) ** 2
    correlation = np.fft.irfft(spectrum, size)[: n // 2]
    correlation = correlation / correlation[0]
    lost = np.flatnonzero(correlation < 2.0 / math.sqrt(n))
    time = 1.0 + 2.0 * float(correlation[1 : int(lost[0]) if len(lost) else n // 2].sum())
    return max(shortest, min(n // 5, math.ceil(2.0 * time)))


def bootstrap_ci_ns(
    ns: np.ndarray, percents: Sequence[float], *, resamples: int, seed: int = 0
) -> list[Interval]:
    """95 % interval of each percentile by the moving-block bootstrap; ns: samples (n,) in order.

    Each interval holds the samples' own percentile, also where a trend keeps it from all resamples.
    """
    n = len(ns)
    if n < 2:
        only = float(ns[0]) if n else math.nan
        return [(only, only)] * len(percents)
    length = block_length(ns)
    possible = n - length + 1
    kept = min(possible, MOST_STARTS, max(50, MOST_DRAWN // length))
    starts = np.unique(np.linspace(0, possible - 1, kept).astype(np.int64))
    rng = np.random.default_rng(seed)
    blocks = [ns[start : start + length] for start in starts]
    counts = draw(rng, len(starts), math.ceil(n / length), resamples)
    found = resampled_percentiles(blocks, counts, percents)
    ordered = np.sort(ns)
    spans = []
    for index, percent in enumerate(percents):
        (low, high), own = interval(found[:, index]), percentile_ns(ordered, percent)
        spans.append((min(low, own), max(high, own)))
    return spans


def draw(rng: np.random.Generator, blocks: int, drawn: int, resamples: int) -> np.ndarray:
    """(resamples, blocks): how often each block is in each resample of `drawn` blocks."""
    chosen = rng.integers(0, blocks, size=(resamples, drawn))
    flat = chosen + blocks * np.arange(resamples)[:, None]
    return np.bincount(flat.ravel(), minlength=resamples * blocks).reshape(resamples, blocks)


def resampled_percentiles(
    blocks: Sequence[np.ndarray], counts: np.ndarray, percents: Sequence[float]
) -> np.ndarray:
    """(resamples, percents) nearest-rank percentiles, resamples given by `counts` (resamples, blocks).

    A resample's ranks follow from how often each block was drawn and how many of the block's
    samples lie in each of at most `BINS` ranges of values: a matrix product instead of sorting.
    """
    lengths = [len(block) for block in blocks]
    together = np.concatenate(blocks)
    ordered = np.unique(together)
    if len(ordered) > BINS:
        # The quantiles of all samples, so that a range holds about as many samples as another.
        by_rank = np.sort(together)
        last = np.unique(np.linspace(0, len(by_rank) - 1, BINS).astype(np.int64))
        ordered = np.unique(by_rank[last])
    place = np.searchsorted(ordered, together, side="left")
    owner = np.repeat(np.arange(len(blocks)), lengths)
    shape = (len(blocks), len(ordered))
    held = np.bincount(owner * shape[1] + place, minlength=shape[0] * shape[1]).reshape(shape)
    below = np.cumsum(counts.astype(np.float64) @ held.astype(np.float64), axis=1)
    found = np.empty((len(counts), len(percents)))
    for index, percent in enumerate(percents):
        rank = np.ceil(percent / 100.0 * below[:, -1])
        found[:, index] = ordered[np.minimum((below < rank[:, None]).sum(axis=1), shape[1] - 1)]
    return found


def interval(values: np.ndarray) -> Interval:
    """The middle 95 % of bootstrap values."""
    low, high = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)
