from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest  # type: ignore[import-untyped]

from stages.statistics.intervals import mcnemar, paired_bootstrap, verdict, wilson_interval


@given(st.integers(1, 5000), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_agrees_with_scipy(total: int, share: float, confidence: float) -> None:
    correct = round(total * share)
    expected = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    assert wilson_interval(correct, total, confidence=confidence) == pytest.approx(
        (expected.low, expected.high), abs=1e-9
    )


def test_wilson_has_a_width_at_the_ends() -> None:
    low, high = wilson_interval(20, 20)
    assert high == 1.0
    assert low == pytest.approx(0.8389, abs=1e-4)
    assert wilson_interval(0, 20)[0] == 0.0


@pytest.mark.parametrize("counts", [(1, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_share(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="correct"):
        wilson_interval(*counts)


def _results(gained: int, lost: int, same: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.array([True] * gained + [False] * lost + [True] * same)
    second = np.array([False] * gained + [True] * lost + [True] * same)
    return first, second


def test_the_bootstrap_is_that_of_resampled_images() -> None:
    first, second = _results(30, 12, 158)
    random = np.random.default_rng(1)
    difference = first.astype(float) - second.astype(float)
    slow = [difference[random.integers(0, 200, 200)].mean() for _ in range(4000)]
    expected = np.quantile(slow, [0.025, 0.975])
    assert paired_bootstrap(first, second) == pytest.approx(tuple(expected), abs=0.011)
    assert paired_bootstrap(first, second) == paired_bootstrap(first, second)


def test_results_that_never_differ_have_no_interval() -> None:
    first, second = _results(0, 0, 50)
    assert paired_bootstrap(first, second) == (0.0, 0.0)
    assert mcnemar(first, second) == 1.0


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    p_value = mcnemar(*_results(gained, lost, 5))
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert p_value == pytest.approx(expected, abs=1e-12)


def test_mcnemar_takes_a_whole_imagenet() -> None:
    assert mcnemar(*_results(6000, 5500, 38500)) == pytest.approx(binomtest(6000, 11500).pvalue, rel=1e-6)


def test_verdicts() -> None:
    assert verdict(0.1, 0.4) == "better"
    assert verdict(-0.4, -0.1) == "worse"
    assert verdict(-0.1, 0.4) == "cannot tell"
    assert verdict(0.0, 0.4) == "cannot tell"


def test_results_of_different_images_are_refused() -> None:
    with pytest.raises(ValueError, match="same images"):
        mcnemar(np.ones(3, bool), np.ones(4, bool))
