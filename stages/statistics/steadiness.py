"""Whether latencies have settled. Light: numpy alone."""

from __future__ import annotations

import math

import numpy as np

DRIFT = 0.02
"""Relative shift between the medians of the first and the last third that counts as drift."""

BLOCKS = 30
"""Blocks for the trend test."""

RULE = (
    f"the medians of the first and last third differ by at most {DRIFT:.0%}, or a Mann-Kendall test on "
    f"{BLOCKS} block medians finds no trend (p >= 0.01)"
)
"""`is_steady` in words, as the scorecard states it."""


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
