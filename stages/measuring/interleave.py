"""Which of two targets timed in turns is faster. Light: numpy only.

Two latencies measured one after the other differ by whatever the machine did in between. Here each target is
loaded in its own process, and the processes take turns (A B, B A, A B, ...), so a slow minute affects both.
Each launch starts both processes anew: the memory layout of a process shifts its speed for its whole life.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stages.statistics.percentiles import (
    central_interval,
    draw_block_counts,
    percentile_ns,
    resampled_percentiles,
)

MIN_SHIFT = 0.02
"""A ratio closer to 1 than this counts as no difference, however narrow its interval is."""

SpeedVerdict = Literal["faster", "slower", "cannot tell"]

Rounds = Sequence[np.ndarray]
"""Samples (n,) of each round, in order."""


@dataclass(frozen=True)
class Ratio:
    """p50 of the second target over that of the first.

    Attributes:
        value: The ratio; above 1 the second target is slower.
        interval: 95 %, low and high.
        verdict: About the second target.
    """

    value: float
    interval: tuple[float, float]
    verdict: SpeedVerdict


def compare(launches: Sequence[tuple[Rounds, Rounds]], *, resamples: int, seed: int = 0) -> Ratio:
    """Return how much longer the second target takes than the first.

    The value is the ratio of the medians of all samples. Each launch's interval comes from resampling its
    pairs of rounds. The interval returned spans those of all launches, so a difference counts only if each
    launch shows it.

    Args:
        launches: For each launch the rounds of the first and of the second target, which ran in turns.
        resamples: Bootstrap resamples of an interval.
        seed: Of the random generator.

    Raises:
        ValueError: There is no launch, or a launch has unpaired rounds.
    """
    if not launches or any(len(first) != len(second) or not first for first, second in launches):
        raise ValueError("each launch needs as many rounds of the first target as of the second")
    rng = np.random.default_rng(seed)
    spans = []
    for first, second in launches:
        counts = draw_block_counts(rng, len(first), len(first), resamples)
        below, above = (resampled_percentiles(rounds, counts, (50,))[:, 0] for rounds in (first, second))
        spans.append(central_interval(above / below))
    medians = [
        percentile_ns(np.sort(np.concatenate([ns for pair in launches for ns in pair[side]])), 50)
        for side in (0, 1)
    ]
    value = medians[1] / medians[0]
    low, high = min(value, *(low for low, _ in spans)), max(value, *(high for _, high in spans))
    return Ratio(value, (low, high), verdict(value, (low, high)))


def verdict(value: float, span: tuple[float, float]) -> SpeedVerdict:
    """Return whether the second target is faster or slower, by the ratio and its interval.

    Undecided if the interval contains 1, or if the ratio differs from 1 by at most `MIN_SHIFT`.
    """
    if span[1] < 1.0 and value < 1.0 - MIN_SHIFT:
        return "faster"
    return "slower" if span[0] > 1.0 and value > 1.0 + MIN_SHIFT else "cannot tell"


def order(rounds: int) -> list[tuple[int, int]]:
    """Return the order of the two targets in each pair of rounds: (0, 1), (1, 0), ...: a drift cancels."""
    return [(0, 1) if index % 2 == 0 else (1, 0) for index in range(rounds)]
