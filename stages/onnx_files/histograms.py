"""Histograms of activations, from which several ranges are read: one pass over the images serves all.

A tensor's histogram is symmetric around zero, so that it serves percentiles, which look at either end, and
entropy, which looks at absolute values: folded in the middle it is their histogram.
"""

from __future__ import annotations

import numpy as np

BINS = 8192
"""Of a histogram from the largest absolute value's negative to its positive. Zero begins the upper half."""

ENTROPY_BINS = 2048
ENTROPY_LEVELS = 128
ENTROPY_STRIDE = 8
"""Bins of absolute values, levels of INT8 on one side of zero, and bins between two candidates. With as many
bins as levels nothing could be found, and the range would be that of the extremes."""


class Histograms:
    """Of many tensors whose extremes are known; a tensor that never changes is left out.

    low, high: float32 (tensors,), the extremes. Memory: 64 KiB a tensor, however many images are added.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self.low, self.high = low.astype(np.float64), high.astype(np.float64)
        self.largest = np.maximum(np.abs(self.low), np.abs(self.high))
        self.counts = np.zeros((len(low), BINS), dtype=np.int64)

    def add(self, index: int, values: np.ndarray) -> None:
        """values: any shape, of the tensor at `index`."""
        if self.low[index] == self.high[index]:
            return
        half = np.float32(BINS / 2)
        # Divided first: a factor for the tiniest of ranges would overflow.
        places = (values.ravel() / np.float32(self.largest[index]) * half + half).astype(np.int32)
        np.clip(places, 0, BINS - 1, out=places)
        self.counts[index] += np.bincount(places, minlength=BINS)

    def percentile(self, percentile: float) -> tuple[np.ndarray, np.ndarray]:
        """float64 (tensors,) twice: the range that holds so many per cent, as much cut off at either end."""
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
        """float64 (tensors,) twice: the range whose 8-bit form loses least information."""
        half = BINS // 2
        folded = self.counts[:, half:] + self.counts[:, half - 1 :: -1]
        merged = folded.reshape(len(folded), ENTROPY_BINS, -1).sum(axis=2)
        kept = np.array([entropy_bins(count) / ENTROPY_BINS for count in merged], dtype=np.float64)
        return np.maximum(self.low, -kept * self.largest), np.minimum(self.high, kept * self.largest)


def entropy_bins(count: np.ndarray) -> int:
    """How many of the histogram's bins to keep, so that 128 levels tell most of what it told.

    count: int64 (bins,), of absolute values from 0 up. What lies beyond the kept bins is clipped
    into the last. The first bin, which ReLU fills with zeros, counts like its neighbour.
    """
    count = count.astype(np.float64)
    if len(count) > 1:
        count[0] = count[1]
    if not count.any():
        return len(count)
    candidates = range(ENTROPY_LEVELS, len(count) + 1, ENTROPY_STRIDE)
    return min(candidates, key=lambda kept: (_divergence(count, kept), -kept))


def _divergence(count: np.ndarray, kept: int) -> float:
    """Kullback-Leibler divergence of the clipped histogram from its form on 128 levels."""
    reference = count[:kept].copy()
    occupied = reference > 0
    reference[-1] += count[kept:].sum()
    if not occupied.any():
        return float("inf")
    level = np.arange(kept) * ENTROPY_LEVELS // kept
    mass = np.bincount(level, weights=count[:kept], minlength=ENTROPY_LEVELS)
    spread = np.bincount(level, weights=occupied, minlength=ENTROPY_LEVELS)
    coarse = np.where(occupied, mass[level] / np.maximum(spread[level], 1.0), 0.0)
    wanted, had = reference / reference.sum(), coarse / coarse.sum()
    both = wanted > 0
    if (had[both] <= 0).any():
        return float("inf")
    return float(np.sum(wanted[both] * np.log(wanted[both] / had[both])))
