"""Stratified splits that depend only on labels and seed.

NumPy promises never to change the random streams in use here (MT19937, `RandomState`), so a
split is the same for all library versions.
"""

from __future__ import annotations

import numpy as np

TEST_STREAM, VALIDATION_STREAM = 1, 2
"""Numbers of random streams: cuts of a set with equal seeds are independent."""


def stratified(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Choose a share of the images, equal for all classes.

    Args:
        labels: Integers (N,).
        fraction: The share, in 0..1.
        seed: Determines the choice.

    Returns:
        Sorted int64 indices. A class of n images contributes `n * fraction`, rounded up or down so that the
        total is `N * fraction`, rounded, but at least one image.
    """
    return _choose(labels, fraction, seed, stream=0, leave=0)


def cut(
    labels: np.ndarray, fraction: float, seed: int, stream: int, leave: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Cut off a share of the images, equal for all classes.

    Like `stratified`, but at least `leave` images of every class remain: each class needs one more.

    Args:
        labels: Integers (N,).
        fraction: The share, in 0..1.
        seed: Determines the choice.
        stream: Number of the random stream; cuts with equal seeds and different streams are independent.
        leave: How many images of each class remain at least.

    Returns:
        The remaining indices and the cut ones, each sorted, int64.
    """
    part = _choose(labels, fraction, seed, stream=stream, leave=leave)
    rest = np.ones(len(labels), bool)
    rest[part] = False
    return np.flatnonzero(rest), part


def _choose(labels: np.ndarray, fraction: float, seed: int, *, stream: int, leave: int) -> np.ndarray:
    classes, members = np.unique(labels, return_inverse=True)
    counts = np.bincount(members, minlength=len(classes))
    shares = np.clip(_shares(counts, fraction), 1, np.maximum(counts - leave, 1))
    order = np.argsort(members, kind="stable")
    chosen = []
    for label, indices, number in zip(classes, np.split(order, np.cumsum(counts)[:-1]), shares, strict=True):
        # Each class has its own random stream: more images of a class do not change the choice in another.
        sequence = np.random.SeedSequence([seed, stream, int(label)])
        random = np.random.RandomState(np.random.MT19937(sequence))
        chosen.append(random.permutation(indices)[:number])
    return np.sort(np.concatenate(chosen)).astype(np.int64) if chosen else np.empty(0, np.int64)


def _shares(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Round the classes' shares to integers by largest remainders; the first of equal remainders wins."""
    exact = np.round(counts * fraction, 9)
    shares = np.floor(exact).astype(np.int64)
    total = int(np.floor(np.round(counts.sum() * fraction, 9) + 0.5))
    largest = np.argsort(shares - exact, kind="stable")[: max(0, total - int(shares.sum()))]
    shares[largest] += 1
    return shares
