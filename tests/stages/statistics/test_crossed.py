from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from stages.statistics.crossed import crossed_gain, gain, holm, image_bootstrap, paired_t
from stages.statistics.intervals import mcnemar, paired_bootstrap


def simulated(
    random: np.random.Generator, seeds: int, images: int, spread: tuple[float, float, float]
) -> np.ndarray:
    """(seeds, images) differences with mean 0: deviations of seeds, images and their interplay."""
    of_seeds, of_images, rest = spread
    return (
        of_seeds * random.standard_normal((seeds, 1))
        + of_images * random.standard_normal((1, images))
        + rest * random.standard_normal((seeds, images))
    )


@pytest.mark.long
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(
    "spread",
    [(0.05, 0.3, 0.5), (0.0, 0.3, 0.5), (0.02, 0.5, 0.2), (0.0, 0.0, 1.0), (0.2, 0.1, 0.1)],
    ids=["both", "images", "about equal", "interplay", "seeds"],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(
    seeds: int, spread: tuple[float, float, float]
) -> None:
    """1,000 comparisons whose true gain is 0: 95 % less three standard errors of that count."""
    random = np.random.default_rng(seeds)
    held = 0
    for _ in range(1000):
        (low, high), _ = crossed_gain(simulated(random, seeds, 150, spread))
        held += low <= 0.0 <= high
    assert held >= 950 - 3 * 6.9


@pytest.mark.long
def test_the_images_alone_would_promise_too_much() -> None:
    """Why seeds are counted: with deviations of 1 point between seeds the images' interval misses."""
    random = np.random.default_rng(0)
    held = {"crossed": 0, "images": 0}
    for _ in range(200):
        chance = np.clip(0.9 + 0.02 * random.standard_normal((3, 1)), 0, 1)
        method = random.random((3, 2000)) < chance
        result = gain(method, random.random((3, 2000)) < 0.9)
        held["crossed"] += result.interval[0] <= 0.0 <= result.interval[1]
        held["images"] += result.images_interval[0] <= 0.0 <= result.images_interval[1]
    assert held["crossed"] >= 180
    assert held["images"] < 150


def test_the_interval_by_hand() -> None:
    differences = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    by_seeds = np.var([0.5, 0.0, 1.0], ddof=1) / 3
    by_images = np.var([2 / 3, 1 / 3], ddof=1) / 2
    half = np.sqrt(stats.t.ppf(0.975, 2) ** 2 * by_seeds + stats.t.ppf(0.975, 1) ** 2 * by_images)
    interval, _ = crossed_gain(differences)
    assert interval == pytest.approx((0.5 - half, 0.5 + half))


@given(st.integers(0, 10_000), st.floats(-0.3, 0.3))
def test_the_p_value_is_the_interval_s(seed: int, shift: float) -> None:
    differences = simulated(np.random.default_rng(seed), 3, 40, (0.05, 0.3, 0.3)) + shift
    _, p_value = crossed_gain(differences)
    assert 0.0 < p_value <= 1.0
    low, high = crossed_gain(differences, confidence=1.0 - p_value)[0]
    assert min(abs(low), abs(high)) == pytest.approx(0.0, abs=1e-6)
    low, high = crossed_gain(differences)[0]
    assert (p_value < 0.05) == (not low <= 0.0 <= high)


def test_equal_students_gain_nothing() -> None:
    same = np.ones((3, 50), dtype=bool)
    result = gain(same, same)
    assert (result.mean, result.interval, result.p_value) == (0.0, (0.0, 0.0), 1.0)
    assert (result.seeds_interval, result.seeds_p) == ((0.0, 0.0), 1.0)
    assert result.images_interval == (0.0, 0.0)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9).filter(lambda values: np.std(values) > 1e-3))
def test_the_t_test_is_scipy_s(values: list[float]) -> None:
    interval, p_value = paired_t(np.array(values))
    expected = stats.ttest_1samp(values, 0.0)
    assert p_value == pytest.approx(expected.pvalue, abs=1e-9)
    assert interval == pytest.approx(tuple(expected.confidence_interval(0.95)), abs=1e-9)


def test_one_seed_has_the_images_alone() -> None:
    random = np.random.default_rng(2)
    method, other = random.random((1, 300)) < 0.9, random.random((1, 300)) < 0.8
    result = gain(method, other)
    assert result.interval == result.images_interval == paired_bootstrap(method[0], other[0])
    assert result.p_value == mcnemar(method[0], other[0])
    assert result.seeds_interval is None
    assert result.seeds_p is None


def test_the_bootstrap_is_that_of_resampled_images() -> None:
    random = np.random.default_rng(3)
    differences = random.integers(-1, 2, (3, 120))
    means = differences.mean(axis=0)
    slow = [means[random.integers(0, 120, 120)].mean() for _ in range(4000)]
    expected = np.quantile(slow, [0.025, 0.975])
    assert image_bootstrap(differences) == pytest.approx(tuple(expected), abs=0.012)
    assert image_bootstrap(differences) == image_bootstrap(differences)


@pytest.mark.long
@given(st.integers(0, 1000))
def test_swapping_the_two_turns_the_sign(seed: int) -> None:
    random = np.random.default_rng(seed)
    method, other = random.random((3, 30)) < 0.8, random.random((3, 30)) < 0.7
    there, back = gain(method, other), gain(other, method)
    assert there.mean == -back.mean
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]))
    assert there.p_value == pytest.approx(back.p_value)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_monotone_and_never_smaller(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(larger >= p for larger, p in zip(adjusted, p_values, strict=True))
    ordered = [adjusted[index] for index in np.argsort(p_values, kind="stable")]
    assert ordered == sorted(ordered)


@pytest.mark.parametrize("shapes", [((2, 5), (3, 5)), ((0, 5), (0, 5)), ((2, 1), (2, 1))])
def test_what_cannot_be_compared_is_refused(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="same seeds"):
        gain(np.ones(shapes[0], bool), np.ones(shapes[1], bool))
