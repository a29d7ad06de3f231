"""Intervals and tests of accuracies. Light: numpy only."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, Literal

import numpy as np

Verdict = Literal["better", "worse", "cannot tell"]


def wilson_interval(correct: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a proportion, 0..1 (Wilson, 1927).

    Unlike the normal approximation it stays inside 0..1 and has a width at 0 and at 1.

    Raises:
        ValueError: 0 <= correct <= total and total > 0 do not hold.

    Example:
        >>> low, high = wilson_interval(90, 100)
        >>> round(low, 3), round(high, 3)
        (0.826, 0.945)
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"0 <= correct <= total and total > 0 must hold, found {correct} of {total}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    share = correct / total
    shrunk = 1.0 + z * z / total
    centre = (share + z * z / (2.0 * total)) / shrunk
    half = z / shrunk * (share * (1.0 - share) / total + z * z / (4.0 * total * total)) ** 0.5
    # Exact at the ends, where rounding would leave 1e-17.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == total else min(1.0, centre + half)
    return low, high


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of mean(first) - mean(second) over the same images.

    An image's difference is -1, 0 or 1, so a resample of the images is one multinomial draw of those three
    counts: this is exactly the bootstrap (Efron, 1979), not an approximation of it.

    Args:
        first: bool (n), whether each image was classified correctly.
        second: The same of the other classifier.
        resamples: How many resamples.
        seed: Of the random generator.
        confidence: Of the interval.

    Raises:
        ValueError: The shapes differ, or there is no image.
    """
    first, second = _paired(first, second)
    gained = int(np.count_nonzero(first & ~second))
    lost = int(np.count_nonzero(~first & second))
    count = len(first)
    shares = np.array([gained, lost, count - gained - lost], dtype=np.float64) / count
    drawn = np.random.default_rng(seed).multinomial(count, shares, size=resamples)
    differences = (drawn[:, 0] - drawn[:, 1]) / count
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(differences, [tail, 1.0 - tail])
    return float(low), float(high)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Return the exact two-sided p-value of "both are equally often right" (McNemar, 1947; binomial form).

    Only images count on which the two differ: under the hypothesis either is right with probability 1/2.

    Args:
        first: bool (n), whether each image was classified correctly.
        second: The same of the other classifier.

    Raises:
        ValueError: The shapes differ, or there is no image.
    """
    first, second = _paired(first, second)
    gained = int(np.count_nonzero(first & ~second))
    lost = int(np.count_nonzero(~first & second))
    differing, fewer = gained + lost, min(gained, lost)
    # Integers are not rounded, whatever the number of images.
    ways = term = 1
    for chosen in range(1, fewer + 1):
        term = term * (differing - chosen + 1) // chosen
        ways += term
    p_value: float = min(1.0, 2 * ways / 2**differing)
    return p_value


def paired_difference(right: np.ndarray, before: np.ndarray) -> dict[str, Any]:
    """Return the effect of a change on accuracy, image by image, ready for JSON.

    Args:
        right: bool (n), whether each image was classified correctly after the change.
        before: The same before it.

    Returns:
        `images` (n), `points` (difference in per cent), `ci` (its 95 % paired bootstrap interval), `p_value`
        (exact McNemar), `gained` and `lost` (images), `verdict`.

    Raises:
        ValueError: The shapes differ, or there is no image.
    """
    right, before = _paired(right, before)
    low, high = paired_bootstrap(right, before)
    return {
        "images": len(right),
        "points": round(100.0 * (float(right.mean()) - float(before.mean())), 4),
        "ci": [round(100.0 * low, 4), round(100.0 * high, 4)],
        "p_value": float(f"{mcnemar(right, before):.3g}"),
        "gained": int(np.count_nonzero(right & ~before)),
        "lost": int(np.count_nonzero(~right & before)),
        "verdict": verdict(low, high),
    }


def verdict(low: float, high: float) -> Verdict:
    """Return the verdict of a gain by its interval: undecided if the interval contains 0."""
    if low > 0.0:
        return "better"
    return "worse" if high < 0.0 else "cannot tell"


def _paired(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            f"two results for the same images are needed, found shapes {first.shape} and {second.shape}"
        )
    return first.astype(bool), second.astype(bool)
