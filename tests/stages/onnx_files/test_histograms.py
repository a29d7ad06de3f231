"""What ranges read from one histogram must hold, whatever the values."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.onnx_files.histograms import BINS, Histograms

VALUES = arrays(np.float32, 200, elements=st.floats(-1000.0, 1000.0, width=32))


def _of(values: np.ndarray) -> Histograms:
    found = Histograms(values.min(keepdims=True), values.max(keepdims=True))
    found.add(0, values)
    return found


@settings(deadline=None, max_examples=50)
@given(values=VALUES)
def test_ranges_of_percentiles_lie_within_one_another_and_within_the_extremes(values: np.ndarray) -> None:
    found = _of(values)
    ends = [found.percentile(percentile) for percentile in (90.0, 99.0, 99.9, 100.0)]
    for (low, high), (wider_low, wider_high) in itertools.pairwise(ends):
        assert wider_low[0] <= low[0] <= high[0] <= wider_high[0]
    low, high = ends[-1]
    assert values.min() <= low[0]
    assert high[0] <= values.max()
    step = 2.0 * np.abs(values).max() / BINS
    assert low[0] - values.min() <= 1.01 * step
    assert values.max() - high[0] <= 1.01 * step


@settings(deadline=None, max_examples=50)
@given(values=VALUES, percentile=st.floats(60.0, 100.0))
def test_a_percentile_holds_its_share(values: np.ndarray, percentile: float) -> None:
    low, high = _of(values).percentile(percentile)
    step = 2.0 * float(np.abs(values).max()) / BINS
    inside = ((values >= low[0] - step) & (values <= high[0] + step)).mean()
    assert inside >= percentile / 100.0 - 1e-9


@settings(deadline=None, max_examples=10)
@given(values=VALUES)
def test_entropy_stays_within_the_extremes(values: np.ndarray) -> None:
    low, high = _of(values).entropy()
    assert values.min() <= low[0] <= high[0] <= values.max()


def test_a_tensor_that_never_changes_keeps_its_value() -> None:
    found = _of(np.full(10, 3.0, np.float32))
    for low, high in (found.percentile(99.0), found.entropy()):
        assert (low[0], high[0]) == (3.0, 3.0)
