"""Intervals and tests of a gain in accuracy over a few seeds and many images. Light: numpy and scipy.special.

Two methods are trained from the same S seeds and judged on the same N images. d[s, i] is 1 if only the first
was right, -1 if only the second was right, 0 otherwise. Seeds and images are two samples: with other seeds or
other images the mean would differ. They are crossed, because every network classifies every image. With

    d[s, i] = gain + a[s] + b[i] + e[s, i],

    variance of the mean = var(a) / S + var(b) / N + var(e) / (S N).

`crossed_gain` estimates it as (variance of the seeds' means) / S + (variance of the images' means) / N, each
with its sample variance. In expectation this counts var(e) / (S N) twice, so it is too large rather than too
small. The pigeonhole bootstrap, which resamples both (Owen, The pigeonhole bootstrap, Annals of Applied
Statistics, 2007), errs to the same side. The two terms have S - 1 and N - 1 degrees of freedom; with few
seeds the first is very uncertain. The interval's half width is

    sqrt(t(S - 1)^2 * variance by seeds + t(N - 1)^2 * variance by images),

where t are quantiles of Student's distribution. It has at least the stated confidence for any two variances
(Banerjee, Sankhya 1960); one quantile for an estimated number of degrees of freedom (Satterthwaite) has not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit  # type: ignore[import-untyped]

from stages.statistics.intervals import mcnemar, paired_bootstrap

Interval = tuple[float, float]


@dataclass(frozen=True)
class Gain:
    """A gain in accuracy with its intervals and p-values.

    Attributes:
        mean: The gain as a share of the images, -1..1.
        interval: Of the gain, over seeds and images; with one seed over the images only.
        p_value: Two-sided, over the same.
        seeds_interval: By Student's paired t over the seeds' gains; None with one seed.
        seeds_p: p-value of that test; None with one seed.
        images_interval: By bootstrap over the images, of the difference averaged over the seeds.
    """

    mean: float
    interval: Interval
    p_value: float
    seeds_interval: Interval | None
    seeds_p: float | None
    images_interval: Interval


def gain(method: np.ndarray, other: np.ndarray, *, confidence: float = 0.95) -> Gain:
    """Return the gain of one method over another.

    With one seed the interval is a bootstrap and the test an exact McNemar test, both over the images.

    Args:
        method: bool (S, N), whether each seed's network classified each image correctly.
        other: The same of the other method.
        confidence: Of the intervals.

    Raises:
        ValueError: The shapes differ, or there is no seed or fewer than two images.
    """
    if method.shape != other.shape or method.ndim != 2 or not len(method) or method.shape[1] < 2:
        raise ValueError(
            "the same seeds (one at least) and images (two at least) are needed, found shapes "
            f"{method.shape} and {other.shape}"
        )
    differences = method.astype(np.int64) - other.astype(np.int64)
    mean = float(differences.mean())
    if len(method) == 1:
        images = paired_bootstrap(method[0], other[0], confidence=confidence)
        return Gain(mean, images, mcnemar(method[0], other[0]), None, None, images)
    interval, p_value = crossed_gain(differences, confidence=confidence)
    seeds, seeds_p = paired_t(differences.mean(axis=1), confidence=confidence)
    images = image_bootstrap(differences, confidence=confidence)
    return Gain(mean, interval, p_value, seeds, seeds_p, images)


def crossed_gain(differences: np.ndarray, *, confidence: float = 0.95) -> tuple[Interval, float]:
    """Return interval and two-sided p-value of the mean of crossed differences (module docstring).

    The p-value is 1 minus the largest confidence at which the interval excludes 0.

    Args:
        differences: (S, N), S and N at least 2.
        confidence: Of the interval.
    """
    seeds, images = differences.shape
    mean = float(differences.mean())
    by_seeds = float(differences.mean(axis=1).var(ddof=1)) / seeds
    by_images = float(differences.mean(axis=0).var(ddof=1)) / images

    def half_width(tail: float) -> float:
        return math.hypot(
            _quantile(seeds - 1, tail) * math.sqrt(by_seeds),
            _quantile(images - 1, tail) * math.sqrt(by_images),
        )

    half = half_width((1.0 - confidence) / 2.0)
    low, high = math.log(1e-300), math.log(0.5)  # of the tail at which the half width is |mean|
    for _ in range(80):
        middle = (low + high) / 2.0
        low, high = (middle, high) if half_width(math.exp(middle)) > abs(mean) else (low, middle)
    p_value = 1.0 if mean == 0.0 else min(1.0, 2.0 * math.exp(high))
    return (mean - half, mean + half), p_value


def paired_t(differences: np.ndarray, *, confidence: float = 0.95) -> tuple[Interval, float]:
    """Return Student's interval and two-sided p-value of the mean of paired differences (S,), S >= 2."""
    count = len(differences)
    mean, error = float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(count)
    half = _quantile(count - 1, (1.0 - confidence) / 2.0) * error
    if error == 0.0:
        return (mean, mean), 1.0 if mean == 0.0 else 0.0
    return (mean - half, mean + half), float(2.0 * stdtr(count - 1, -abs(mean) / error))


def image_bootstrap(
    differences: np.ndarray, *, resamples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Return the percentile bootstrap interval of a mean difference, over resamples of the images.

    An image's sum over the seeds takes few values, so a resample is one multinomial draw of how often each
    value occurs: this is exactly the bootstrap (Efron, 1979). All seeds are in every resample.

    Args:
        differences: Whole numbers (S, N).
        resamples: How many resamples.
        seed: Of the random generator.
        confidence: Of the interval.
    """
    seeds, images = differences.shape
    values, counts = np.unique(differences.sum(axis=0), return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(images, counts / images, size=resamples)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(drawn @ values / (images * seeds), [tail, 1.0 - tail])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of several tests adjusted for their number (Holm, 1979), in the order given.

    The probability that any true hypothesis has an adjusted p-value below 0.05 is at most 5 %, whatever the
    dependence between the tests.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _quantile(degrees: int, tail: float) -> float:
    return float(-stdtrit(degrees, tail))
