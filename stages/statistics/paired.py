"""Intervals that gates are judged with: paired accuracies, and percentiles of raw latencies."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from scipy.special import bdtr  # type: ignore[import-untyped]

from stages.statistics.percentiles import Interval, bootstrap_ci_ns

RESAMPLES = 1000

HALVINGS = 60
"""Bisections of -1..1: far below the 1e-9 that a share of images can mean."""


def paired_interval(first: np.ndarray, second: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """Score interval of mean(first) - mean(second) over the same images.

    Tango, Statistics in Medicine, 1998. first, second: bool (n), whether each image was classified rightly.
    All differences that McNemar's
    test in its score form would not refute. Unlike a bootstrap it has a width where the two never
    differ: 500 images without a difference do not prove that there is none. Raises ValueError for unequal
    or empty arrays.
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"results for the same images are needed, found {first.shape} and {second.shape}")
    gained = int(np.count_nonzero(first & ~second))
    lost = int(np.count_nonzero(~first & second))
    n, seen = len(first), (gained - lost) / len(first)
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)

    def end(towards: float) -> float:
        inside, outside = seen, towards
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2.0
            if abs(_score(gained, lost, n, middle)) <= z:
                inside = middle
            else:
                outside = middle
        return inside

    return end(-1.0), end(1.0)


def _score(gained: int, lost: int, n: int, difference: float) -> float:
    """Standard errors between what was seen and a supposed difference, the rest by maximum likelihood."""
    middle = -gained - lost + (2 * n - gained + lost) * difference
    last = -lost * difference * (1.0 - difference)
    share = (math.sqrt(max(0.0, middle * middle - 8.0 * n * last)) - middle) / (4.0 * n)
    variance = n * (2.0 * share + difference * (1.0 - difference))
    distance = gained - lost - n * difference
    if variance <= 0.0:
        return 0.0 if abs(distance) < 1e-9 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def percentile_interval(ns: np.ndarray, percent: int, written: Interval | None) -> Interval:
    """95 % interval of a percentile of the samples (n,) in order, in their unit.

    The wider, at each end, of two: by order statistics, which holds for any distribution but takes
    samples for independent; and `written`, a bootstrap over blocks of neighbours that measuring left,
    which does not, but cannot see beyond the largest samples. Without `written`, blocks are drawn here.
    Raises ValueError where n does not carry the upper end (p90: 36 samples, p99: 368).
    """
    ordered = np.sort(ns)
    n = len(ordered)
    below = bdtr(np.arange(n), n, percent / 100.0)  # P(at most k samples lie below the percentile)
    enough = np.flatnonzero(below >= 0.975)
    if not len(enough):
        raise ValueError(f"{n} samples do not carry an interval of p{percent}")
    low = ordered[max(0, int(np.count_nonzero(below <= 0.025)) - 1)]
    high = ordered[int(enough[0])]
    drawn = written or bootstrap_ci_ns(ns, (percent,), resamples=RESAMPLES)[0]
    return min(float(low), drawn[0]), max(float(high), drawn[1])
