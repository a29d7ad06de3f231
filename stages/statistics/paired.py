"""The intervals that gates use: of paired accuracies, and of percentiles of raw latencies."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from scipy.special import bdtr  # type: ignore[import-untyped]

from stages.statistics.percentiles import Interval, bootstrap_ci_ns

RESAMPLES = 1000
"""Bootstrap resamples where the scorecard contains no interval."""

HALVINGS = 60
"""Bisections of -1..1: the error is far below 1e-9, a finer step than any share of images has."""


def paired_interval(first: np.ndarray, second: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """Return the score interval of mean(first) - mean(second) over the same images.

    It contains all differences that McNemar's test in its score form does not reject (Tango, Statistics in
    Medicine, 1998). Unlike a bootstrap it has a width where the two never differ: 500 images without a
    difference do not prove that there is none.

    Args:
        first: bool (n), whether each image was classified correctly.
        second: The same of the other classifier.
        confidence: Of the interval.

    Raises:
        ValueError: The shapes differ, or there is no image.
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"results for the same images are needed, found {first.shape} and {second.shape}")
    gained = int(np.count_nonzero(first & ~second))
    lost = int(np.count_nonzero(~first & second))
    n, observed = len(first), (gained - lost) / len(first)
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)

    def end(towards: float) -> float:
        inside, outside = observed, towards
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2.0
            if abs(_score(gained, lost, n, middle)) <= z:
                inside = middle
            else:
                outside = middle
        return inside

    return end(-1.0), end(1.0)


def _score(gained: int, lost: int, n: int, difference: float) -> float:
    """Return the standard errors between the observed difference and a hypothetical one.

    The nuisance parameter is estimated by maximum likelihood under the hypothesis.
    """
    middle = -gained - lost + (2 * n - gained + lost) * difference
    last = -lost * difference * (1.0 - difference)
    share = (math.sqrt(max(0.0, middle * middle - 8.0 * n * last)) - middle) / (4.0 * n)
    variance = n * (2.0 * share + difference * (1.0 - difference))
    distance = gained - lost - n * difference
    if variance <= 0.0:
        return 0.0 if abs(distance) < 1e-9 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def percentile_interval(ns: np.ndarray, percent: int, written: Interval | None) -> Interval:
    """Return the 95 % interval of a percentile, in the unit of the samples.

    At each end it is the wider of two intervals. The one by order statistics holds for any distribution but
    assumes independent samples. The block bootstrap does not assume this, but cannot exceed the largest
    samples.

    Args:
        ns: Samples (n,) in the order in which they were taken.
        percent: The percentile.
        written: The block bootstrap's interval in the scorecard; None: it is computed here.

    Raises:
        ValueError: n is too small for the upper end (p90 needs 36 samples, p99 368).
    """
    ordered = np.sort(ns)
    n = len(ordered)
    below = bdtr(np.arange(n), n, percent / 100.0)  # P(at most k samples are below the percentile)
    enough = np.flatnonzero(below >= 0.975)
    if not len(enough):
        raise ValueError(f"{n} samples are too few for an interval of p{percent}")
    low = ordered[max(0, int(np.count_nonzero(below <= 0.025)) - 1)]
    high = ordered[int(enough[0])]
    drawn = written or bootstrap_ci_ns(ns, (percent,), resamples=RESAMPLES)[0]
    return min(float(low), drawn[0]), max(float(high), drawn[1])
