from __future__ import annotations

import math
from typing import Any

import pytest
from torch import nn

from pipeline.errors import UsageError
from stages.training.optimizers import create_optimizer
from stages.training.schedules import create_scheduler
from tests.errors import raises


def _rates(steps: int, *, epochs: int, learning_rate: float, **arguments: Any) -> list[float]:
    """Return the learning rate of every update."""
    optimizer = create_optimizer(nn.Linear(2, 2), learning_rate=learning_rate)
    schedule = create_scheduler(optimizer, steps, epochs=epochs, learning_rate=learning_rate, **arguments)
    rates = []
    for update in range(epochs * steps):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step_update(update + 1)
    return rates


def test_cosine_goes_down_from_peak_to_minimum_step_by_step() -> None:
    rates = _rates(5, epochs=4, learning_rate=0.1, min_learning_rate=0.01)
    expected = [0.01 + 0.09 * 0.5 * (1 + math.cos(math.pi * t / 20)) for t in range(20)]
    assert rates == pytest.approx(expected)


def test_warm_up_rises_linearly_to_the_peak_and_cosine_takes_the_rest() -> None:
    rates = _rates(4, epochs=3, learning_rate=0.1, warmup_epochs=1.0)
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[-1] == pytest.approx(0.05 * (1 + math.cos(math.pi * 7 / 8)))


def test_multistep_decays_when_the_named_epochs_are_over() -> None:
    rates = _rates(3, epochs=5, learning_rate=1.0, schedule="multistep", decay_epochs=[4, 2])
    assert rates == pytest.approx([1.0] * 6 + [0.1] * 6 + [0.01] * 3)


def test_step_decays_at_every_interval() -> None:
    rates = _rates(2, epochs=6, learning_rate=1.0, schedule="step", decay_epochs=[2], decay_rate=0.5)
    assert rates == pytest.approx([1.0] * 4 + [0.5] * 4 + [0.25] * 4)


def test_constant_stays_after_its_warm_up() -> None:
    rates = _rates(2, epochs=3, learning_rate=1.0, schedule="constant", warmup_epochs=0.5)
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize("schedule", ["step", "multistep"])
def test_a_schedule_without_its_epochs_is_refused(schedule: str) -> None:
    with raises(UsageError, what=f"{schedule} needs decay_epochs"):
        _rates(2, epochs=3, learning_rate=1.0, schedule=schedule)


def test_an_unknown_schedule_is_answered_with_the_known_ones() -> None:
    with raises(UsageError, what="'cosin'") as caught:
        _rates(2, epochs=3, learning_rate=1.0, schedule="cosin")
    assert "cosine, multistep, step, constant" in caught.value.why
