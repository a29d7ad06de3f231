"""The calibration error: how far a network's confidence is from its accuracy."""

from __future__ import annotations

import numpy as np


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    """Return the expected calibration error (ECE), 0..1 (Guo et al., 2017).

    Over equal-width bins of confidence, it is the mean distance of accuracy from confidence, weighted by the
    images in the bin.

    Args:
        confidence: Float (n), the predicted class's probability.
        right: Bool (n), whether the prediction is right.
        bins: Number of bins; bin k holds the confidences in (k / bins, (k + 1) / bins], and the first
            bin 0 as well.

    Raises:
        ValueError: There is no image.
    """
    if not len(confidence):
        raise ValueError("the calibration error of no image is not defined")
    bin_of_image = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    surplus = np.bincount(bin_of_image, weights=confidence - right.astype(np.float64), minlength=bins)
    return float(np.abs(surplus).sum() / len(confidence))
