"""How far a network's confidence is from its accuracy."""

from __future__ import annotations

import numpy as np


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    """ECE, 0..1 (Guo et al., 2017): over equal-width bins of confidence, the mean distance of
    accuracy from confidence, weighted by the images in the bin.

    confidence: float (n), the predicted class's probability. right: bool (n). Bin k of `bins`
    holds the confidences in (k / bins, (k + 1) / bins], and the first one 0 as well.
    """
    if not len(confidence):
        raise ValueError("the calibration error of no image is not defined")
    which = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    surplus = np.bincount(which, weights=confidence - right.astype(np.float64), minlength=bins)
    return float(np.abs(surplus).sum() / len(confidence))
