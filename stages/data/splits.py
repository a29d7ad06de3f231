"""Stratified splits, fixed by a seed alone.

The random streams (MT19937, `RandomState`) are those that NumPy promises never to change, so a
split outlives library versions.
"""

from __future__ import annotations

import numpy as np

TEST_STREAM, VALIDATION_STREAM = 1, 2
"""Of random numbers: the cuts of a set with one seed do not depend on each other."""


def stratified(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Chooses about `fraction` of the images, of every class alike.

    labels: whole numbers (N,). Returns sorted int64 indices. From a class of n images either neighbour
    of `n * fraction` is taken, so that the total is `N * fraction` rounded, but never fewer than one.
    """
    return _chosen(labels, fraction, seed, stream=0, leave=0)


def cut(
    labels: np.ndarray, fraction: float, seed: int, stream: int, leave: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts `fraction` of the images off, of every class alike: (the rest, the part), sorted indices.

    Like `stratified`, but at least `leave` images of every class stay behind: it needs one more.
    stream: tells cuts with the same seed apart.
    """
    part = _chosen(labels, fraction, seed, stream=stream, leave=leave)
    rest = np.ones(len(labels), bool)
    rest[part] = False
    return np.flatnonzero(rest), part


def _chosen(labels: np.ndarray, fraction: float, seed: int, *, stream: int, leave: int) -> np.ndarray:
    classes, members = np.unique(labels, return_inverse=True)
    counts = np.bincount(members, minlength=len(classes))
    take = _shares(counts, fraction)
    take = np.clip(take, 1, np.maximum(counts - leave, 1))
    order = np.argsort(members, kind="stable")
    chosen = []
    for label, indices, number in zip(classes, np.split(order, np.cumsum(counts)[:-1]), take, strict=True):
        # Each class has a random stream of its own: more images of one do not move another's.
        sequence = np.random.SeedSequence([seed, stream, int(label)])
        random = np.random.RandomState(np.random.MT19937(sequence))
        chosen.append(random.permutation(indices)[:number])
    return np.sort(np.concatenate(chosen)).astype(np.int64) if chosen else np.empty(0, np.int64)


def _shares(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Whole shares of each class by largest remainders; of equal remainders the first class's wins."""
    exact = np.round(counts * fraction, 9)
    shares = np.floor(exact).astype(np.int64)
    total = int(np.floor(np.round(counts.sum() * fraction, 9) + 0.5))
    largest = np.argsort(shares - exact, kind="stable")[: max(0, total - int(shares.sum()))]
    shares[largest] += 1
    return shares
