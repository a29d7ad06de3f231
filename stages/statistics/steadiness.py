"""Test whether latencies are in a steady state. Light: numpy only."""

from __future__ import annotations

import math

import numpy as np

DRIFT = 0.02
"""Relative shift between the medians of the first and the last third that counts as drift."""

BLOCKS = 30
"""Blocks for the trend test."""

STEADY_RULE = (
    f"the medians of the first and last third differ by at most {DRIFT:.0%}, or a Mann-Kendall test on "
    f"{BLOCKS} block medians finds no trend (p >= 0.01)"
)
"""The rule of `is_steady` in words, for the scorecard."""


def is_steady(ns: np.ndarray) -> bool:
    """Return whether the samples (n,) show no drift.

    They are steady if the medians of the first and last third differ by at most `DRIFT`. If these differ by
    more, they are steady if the block medians show no monotone trend (Mann-Kendall, p >= 0.01): a machine
    whose speed jumps up and down is noisy, not warming up. Fewer than nine samples are not steady.
    """
    if len(ns) < 9:
        return False
    third = len(ns) // 3
    first, last = float(np.median(ns[:third])), float(np.median(ns[-third:]))
    if abs(last - first) <= DRIFT * first:
        return True
    return mann_kendall_p(block_medians(ns, BLOCKS)) >= 0.01


def block_medians(ns: np.ndarray, blocks: int) -> np.ndarray:
    """Return the medians of consecutive blocks of nearly equal length: (min(blocks, n),) float64."""
    return np.asarray([np.median(part) for part in np.array_split(ns, min(blocks, len(ns)))])


def mann_kendall_p(values: np.ndarray) -> float:
    """Return the two-sided p-value of the Mann-Kendall trend test (normal approximation, ties counted)."""
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
