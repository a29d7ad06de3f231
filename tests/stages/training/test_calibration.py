from __future__ import annotations

import numpy as np
import pytest

from stages.training.calibration import expected_calibration_error


def _slow(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    """As the paper writes it: bin by bin, image by image."""
    error = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = [
            (float(c), bool(r))
            for c, r in zip(confidence, right, strict=True)
            if low < c <= high or (number == 0 and c == 0.0)
        ]
        if inside:
            accuracy = sum(r for _, r in inside) / len(inside)
            mean = sum(c for c, _ in inside) / len(inside)
            error += len(inside) / len(confidence) * abs(accuracy - mean)
    return error


@pytest.mark.parametrize("bins", [2, 10, 15])
def test_it_is_the_papers_formula(bins: int) -> None:
    random = np.random.default_rng(bins)
    confidence = random.beta(4, 1, 500)
    confidence[:3] = [0.0, 0.5, 1.0]
    right = random.random(500) < confidence * 0.8
    error = expected_calibration_error(confidence, right, bins)
    assert error == pytest.approx(_slow(confidence, right, bins))
    assert error > 0.05


def test_known_values() -> None:
    sure = np.ones(4)
    assert expected_calibration_error(sure, np.ones(4, bool), 15) == 0.0
    assert expected_calibration_error(sure, np.zeros(4, bool), 15) == 1.0
    assert expected_calibration_error(np.full(4, 0.75), np.array([True, True, True, False]), 15) == 0.0


def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="no image"):
        expected_calibration_error(np.zeros(0), np.zeros(0, bool), 15)
