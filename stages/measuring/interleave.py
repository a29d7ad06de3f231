"""Two targets measured in turns, and whether one is faster. Light: numpy alone.

Two figures taken one after the other differ by whatever the machine did in between. Here both are loaded
in processes of their own that take turns (A B, B A, A B, ...), so that a slow minute strikes both, and
each launch starts both afresh, since where a process lies in memory shifts its speed for its whole
life.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stages.statistics.percentiles import draw, interval, percentile_ns, resampled_percentiles

SHIFT = 0.02
"""A ratio nearer to 1 than this is no difference, however sure it is."""

SpeedVerdict = Literal["faster", "slower", "cannot tell"]

Rounds = Sequence[np.ndarray]
"""Samples (n,) of each round, in order."""


@dataclass(frozen=True)
class Ratio:
    """p50 of the second target over that of the first, with its 95 % interval and what it says."""

    value: float
    interval: tuple[float, float]
    verdict: SpeedVerdict


def compare(launches: Sequence[tuple[Rounds, Rounds]], *, resamples: int, seed: int = 0) -> Ratio:
    """How much longer the second target takes than the first.

    launches: of each launch the rounds of the first and of the second, which ran in turns. The value
    is the ratio of the medians of all samples. Within a launch the interval comes from resampling the
    pairs of rounds; the stated interval spans those of all launches, so a difference counts only
    if each launch shows it. Raises ValueError without launches or with unpaired rounds.
    """
    if not launches or any(len(first) != len(second) or not first for first, second in launches):
        raise ValueError("each launch needs as many rounds of the first target as of the second")
    rng = np.random.default_rng(seed)
    spans = []
    for first, second in launches:
        counts = draw(rng, len(first), len(first), resamples)
        below, above = (resampled_percentiles(rounds, counts, (50,))[:, 0] for rounds in (first, second))
        spans.append(interval(above / below))
    medians = [
        percentile_ns(np.sort(np.concatenate([one for pair in launches for one in pair[side]])), 50)
        for side in (0, 1)
    ]
    value = medians[1] / medians[0]
    low, high = min(value, *(low for low, _ in spans)), max(value, *(high for _, high in spans))
    return Ratio(value, (low, high), verdict(value, (low, high)))


def verdict(value: float, span: tuple[float, float]) -> SpeedVerdict:
    """What a ratio says of the second target: an interval that holds 1, or a shift of at most `SHIFT`,
    cannot tell."""
    if span[1] < 1.0 and value < 1.0 - SHIFT:
        return "faster"
    return "slower" if span[0] > 1.0 and value > 1.0 + SHIFT else "cannot tell"


def order(rounds: int) -> list[tuple[int, int]]:
    """Who goes first in each pair of rounds: (0, 1), (1, 0), (0, 1), ... so that a drift cancels."""
    return [(0, 1) if index % 2 == 0 else (1, 0) for index in range(rounds)]
