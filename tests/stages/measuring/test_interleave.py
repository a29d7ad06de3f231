"""Two targets in turns: the ratio, its interval and the verdict."""

from __future__ import annotations

import numpy as np
import pytest

from stages.measuring.interleave import Rounds, compare, order, verdict

Launches = list[tuple[Rounds, Rounds]]


def launches(rng: np.random.Generator, ratio: float, *, noise: float = 0.05, drift: float = 0.0) -> Launches:
    """Two launches of 20 rounds; the machine slows by `drift` from the first round to the last."""
    launches: Launches = []
    for _ in range(2):
        sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for index in range(20):
            slow = 1e6 * (1.0 + drift * index / 20 + 0.02 * rng.standard_normal())
            for side, factor in zip(sides, (1.0, ratio), strict=True):
                side.append((slow * factor * (1 + noise * np.abs(rng.standard_normal(15)))).astype(np.int64))
        launches.append(sides)
    return launches


def test_equal_targets_are_hardly_ever_called_different() -> None:
    rng = np.random.default_rng(0)
    verdicts = [compare(launches(rng, 1.0), resamples=200).verdict for _ in range(60)]
    assert verdicts.count("cannot tell") >= 58


def test_a_tenth_more_is_found_in_spite_of_a_drift() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        ratio = compare(launches(rng, 1.1, drift=0.5), resamples=200)
        assert ratio.verdict == "slower"
        assert ratio.interval[0] <= ratio.value <= ratio.interval[1]
        assert ratio.value == pytest.approx(1.1, abs=0.04)
    assert compare(launches(rng, 0.8), resamples=200).verdict == "faster"


def test_a_difference_that_one_launch_alone_shows_does_not_count() -> None:
    rng = np.random.default_rng(2)
    odd = [launches(rng, 1.0)[0], launches(rng, 1.12)[0]]
    ratio = compare(odd, resamples=200)
    assert ratio.verdict == "cannot tell"
    assert ratio.interval[0] < 1.01 < 1.1 < ratio.interval[1]


def test_verdicts_need_an_interval_without_1_and_a_shift_above_2_percent() -> None:
    assert verdict(0.9, (0.85, 0.95)) == "faster"
    assert verdict(1.1, (1.05, 1.2)) == "slower"
    assert verdict(1.1, (0.99, 1.2)) == "cannot tell"
    assert verdict(1.015, (1.01, 1.02)) == "cannot tell"


def test_swapping_the_two_inverts_the_ratio() -> None:
    given = launches(np.random.default_rng(3), 1.3)
    there, back = (compare(order, resamples=200) for order in (given, [(b, a) for a, b in given]))
    assert there.value == pytest.approx(1 / back.value)
    assert there.interval[0] == pytest.approx(1 / back.interval[1], rel=0.01)


def test_the_turns_alternate_and_unpaired_rounds_are_refused() -> None:
    assert order(4) == [(0, 1), (1, 0), (0, 1), (1, 0)]
    samples = np.array([1, 2, 3])
    refused: list[Launches] = [[], [([], [])], [([samples], [samples, samples])]]
    for given in refused:
        with pytest.raises(ValueError, match="as many rounds"):
            compare(given, resamples=10)
