"""Histograms of activations: one pass over the images provides the ranges of several methods.

A tensor's histogram is symmetric around zero. Percentiles use both ends; entropy uses absolute values, whose
histogram is this one folded in the middle.
"""

from __future__ import annotations

import numpy as np

BINS = 8192
"""Bins from minus to plus the largest absolute value. The upper half begins at zero."""

ENTROPY_BINS = 2048
ENTROPY_LEVELS = 128
ENTROPY_STRIDE = 8
"""Bins of absolute values, INT8 levels on one side of zero, and bins between two candidates.

With as many bins as levels no candidate would be better than the extremes.
"""


class Histograms:
    """Histograms of many tensors with known extremes.

    A tensor that never changes has no histogram. Memory: 64 KiB a tensor for any number of images.

    Args:
        low: float32 (tensors,), the lowest values.
        high: float32 (tensors,), the highest values.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self.low, self.high = low.astype(np.float64), high.astype(np.float64)
        self.largest = np.maximum(np.abs(self.low), np.abs(self.high))
        self.counts = np.zeros((len(low), BINS), dtype=np.int64)

    def add(self, index: int, values: np.ndarray) -> None:
        """Add values, of any shape, to the histogram of the tensor at `index`."""
        if self.low[index] == self.high[index]:
            return
        half = np.float32(BINS / 2)
        # Divide first: a factor for a tiny range would overflow.
        bins = (values.ravel() / np.float32(self.largest[index]) * half + half).astype(np.int32)
        np.clip(bins, 0, BINS - 1, out=bins)
        self.counts[index] += np.bincount(bins, minlength=BINS)

    def percentile(self, percentile: float) -> tuple[np.ndarray, np.ndarray]:
        """Return each tensor's range that holds so many per cent of its values.

        Equal shares are cut off at both ends. Low and high ends: float64 (tensors,) each.
        """
        cut = (100.0 - percentile) / 200.0
        low, high = self.low.copy(), self.high.copy()
        for index, count in enumerate(self.counts):
            if not count.any():
                continue
            edges = np.linspace(-self.largest[index], self.largest[index], BINS + 1)
            share = np.cumsum(count) / count.sum()
            first = int(np.searchsorted(share, cut, side="right"))
            last = int(np.searchsorted(share, 1.0 - cut, side="left"))
            low[index] = max(low[index], edges[min(first, last)])
            high[index] = min(high[index], edges[min(last, BINS - 1) + 1])
        return low, high

    def entropy(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each tensor's range with the least divergence of its 8-bit form.

        Low and high ends: float64 (tensors,) each.
        """
        half = BINS // 2
        folded = self.counts[:, half:] + self.counts[:, half - 1 :: -1]
        merged = folded.reshape(len(folded), ENTROPY_BINS, -1).sum(axis=2)
        share = np.array([entropy_bins(count) / ENTROPY_BINS for count in merged], dtype=np.float64)
        return np.maximum(self.low, -share * self.largest), np.minimum(self.high, share * self.largest)


def entropy_bins(count: np.ndarray) -> int:
    """Return the number of bins whose form on 128 levels diverges least from the histogram.

    Values beyond these bins are clipped into the last. The first bin, which ReLU fills with zeros, counts
    like its neighbour.

    Args:
        count: int64 (bins,), a histogram of absolute values from 0 up.
    """
    count = count.astype(np.float64)
    if len(count) > 1:
        count[0] = count[1]
    if not count.any():
        return len(count)
    candidates = range(ENTROPY_LEVELS, len(count) + 1, ENTROPY_STRIDE)
    return min(candidates, key=lambda bins: (_divergence(count, bins), -bins))


def _divergence(count: np.ndarray, bins: int) -> float:
    """Return the Kullback-Leibler divergence of the clipped histogram from its form on 128 levels."""
    reference = count[:bins].copy()
    occupied = reference > 0
    reference[-1] += count[bins:].sum()
    if not occupied.any():
        return float("inf")
    level = np.arange(bins) * ENTROPY_LEVELS // bins
    mass = np.bincount(level, weights=count[:bins], minlength=ENTROPY_LEVELS)
    spread = np.bincount(level, weights=occupied, minlength=ENTROPY_LEVELS)
    coarse = np.where(occupied, mass[level] / np.maximum(spread[level], 1.0), 0.0)
    exact, approximate = reference / reference.sum(), coarse / coarse.sum()
    both = exact > 0
    if (approximate[both] <= 0).any():
        return float("inf")
    return float(np.sum(exact[both] * np.log(exact[both] / approximate[both])))
