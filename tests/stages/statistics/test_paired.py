"""The intervals that gates are judged with hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.statistics.paired import paired_interval, percentile_interval

Z2 = 1.959963984540054**2


def pairs(gained: int, lost: int, same: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.array([True] * gained + [False] * lost + [True] * same)
    second = np.array([False] * gained + [True] * lost + [True] * same)
    return first, second


@pytest.mark.parametrize("n", [1, 20, 500])
def test_files_that_never_differ_may_still_differ_a_little(n: int) -> None:
    """With nothing seen in n images the score interval is Wilson's for 0 of n, to both sides."""
    assert paired_interval(*pairs(0, 0, n)) == pytest.approx((-Z2 / (n + Z2), Z2 / (n + Z2)), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 300))
def test_swapping_the_two_turns_the_interval_round(gained: int, lost: int, same: int) -> None:
    first, second = pairs(gained, lost, same)
    low, high = paired_interval(first, second)
    assert -1.0 <= low <= (gained - lost) / len(first) <= high <= 1.0
    assert paired_interval(second, first) == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize(("gaining", "losing", "n"), [(0.05, 0.02, 200), (0.01, 0.01, 540), (0.03, 0.0, 540)])
def test_the_truth_lies_inside_as_often_as_promised(gaining: float, losing: float, n: int) -> None:
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        gained, lost, same = draw.multinomial(n, [gaining, losing, 1 - gaining - losing])
        low, high = paired_interval(*pairs(gained, lost, same))
        held += low <= gaining - losing <= high
    assert 0.91 <= held / 400 <= 0.99


def test_results_for_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="the same images"):
        paired_interval(np.ones(3, bool), np.ones(4, bool))


@pytest.mark.long
@pytest.mark.parametrize(("n", "percent"), [(60, 90), (500, 99)])
def test_a_percentile_of_a_long_tail_lies_inside(n: int, percent: int) -> None:
    draw = np.random.default_rng(2)
    truth = -np.log(1 - percent / 100)
    held = sum(
        low <= truth <= high
        for low, high in (percentile_interval(draw.exponential(size=n), percent, None) for _ in range(60))
    )
    assert held >= 54


def test_what_measuring_left_only_ever_widens_it() -> None:
    samples = np.random.default_rng(3).exponential(size=500)
    low, high = percentile_interval(samples, 90, None)
    assert percentile_interval(samples, 90, (low - 1, high + 1)) == (low - 1, high + 1)
    ordered = np.sort(samples)
    narrow = percentile_interval(samples, 90, (ordered[449], ordered[449]))
    assert narrow[0] <= ordered[437], "as by order statistics alone"
    assert narrow[1] >= ordered[462]


def test_too_few_samples_carry_no_p99() -> None:
    with pytest.raises(ValueError, match="367 samples"):
        percentile_interval(np.arange(367.0), 99, None)
    low, high = percentile_interval(np.arange(368.0), 99, None)
    assert low < 364 < high == 367
