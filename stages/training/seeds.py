"""Seeds and orders that depend on nothing but the training's seed, the epoch and the purpose."""

from __future__ import annotations

import numpy as np


def derive_seed(seed: int, epoch: int, purpose: str, rank: int = 0) -> int:
    """Return a 63-bit seed for one purpose in one epoch; neighbouring epochs and ranks share nothing."""
    words = [seed, epoch, rank, *purpose.encode()]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the epoch's order of the training images: int64 (count), the same in every process."""
    return np.random.default_rng(derive_seed(seed, epoch, "order")).permutation(count)
