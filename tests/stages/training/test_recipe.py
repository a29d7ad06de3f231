from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.errors import UsageError
from stages.training import recipe as recipes
from stages.training.settings import TrainSettings
from tests.errors import raises


def _rates(steps: int, **settings: Any) -> list[float]:
    """The learning rate of every update."""
    recipe = TrainSettings(**settings)
    layer = nn.Linear(2, 2)
    optimizer = recipes.optimizer(recipe, layer)
    schedule = recipes.scheduler(recipe, optimizer, steps)
    rates = []
    for update in range(recipe.epochs * steps):
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


@pytest.mark.parametrize("decay_norms", [False, True])
def test_biases_and_norms_are_exempt_from_weight_decay_unless_asked(decay_norms: bool) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimizer = recipes.optimizer(TrainSettings(weight_decay=0.1, decay_norms=decay_norms), network)
    decayed = {
        id(parameter)
        for group in optimizer.param_groups
        if group["weight_decay"] > 0
        for parameter in group["params"]
    }
    for parameter in network.parameters():
        assert (id(parameter) in decayed) == (decay_norms or parameter.ndim > 1)


@pytest.mark.parametrize("name", ["adamw", "sgd", "momentum", "lamb", "muon", "RMSprop"])
def test_timms_optimisers_take_a_step(name: str) -> None:
    recipes.check(TrainSettings(optimizer=name), "train")


def test_momentum_reaches_the_optimiser() -> None:
    optimizer = recipes.optimizer(TrainSettings(optimizer="sgd", momentum=0.75), nn.Linear(2, 2))
    assert optimizer.param_groups[0]["momentum"] == 0.75


def test_sgd_goes_without_momentum() -> None:
    optimizer = recipes.optimizer(TrainSettings(optimizer="sgd", momentum=0.0), nn.Linear(2, 2))
    assert not optimizer.param_groups[0]["nesterov"]


def test_an_unknown_optimiser_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(UsageError) as caught:
        recipes.check(TrainSettings(optimizer="adamww"), "distill")
    assert "adamw" in caught.value.why
    assert caught.value.where == "distill.optimizer"


def test_an_optimiser_that_needs_second_derivatives_is_refused() -> None:
    with raises(UsageError, what="adahessian"):
        recipes.check(TrainSettings(optimizer="adahessian"), "train")


def test_fused_and_plain_kernels_agree() -> None:
    weights = []
    for fused in (True, False):
        torch.manual_seed(0)
        layer = nn.Linear(8, 8)
        optimizer = recipes.optimizer(TrainSettings(), layer, fused=fused)
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.ones(2, 8)).square().sum().backward()
            optimizer.step()
        weights.append(layer.weight.detach())
    assert torch.allclose(weights[0], weights[1], atol=1e-6)
