from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.errors import UsageError
from stages.training.optimizers import check_optimizer, create_optimizer
from tests.errors import raises


@pytest.mark.parametrize("decay_norms", [False, True])
def test_biases_and_norms_are_exempt_from_weight_decay_unless_asked(decay_norms: bool) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimizer = create_optimizer(network, weight_decay=0.1, decay_norms=decay_norms)
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
    check_optimizer(name)


def test_momentum_reaches_the_optimiser() -> None:
    optimizer = create_optimizer(nn.Linear(2, 2), "sgd", momentum=0.75)
    assert optimizer.param_groups[0]["momentum"] == 0.75


def test_sgd_goes_without_momentum() -> None:
    optimizer = create_optimizer(nn.Linear(2, 2), "sgd", momentum=0.0)
    assert not optimizer.param_groups[0]["nesterov"]


def test_an_unknown_optimiser_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(UsageError) as caught:
        check_optimizer("adamww", section="distill")
    assert "adamw" in caught.value.why
    assert caught.value.where == "distill.optimizer"


def test_an_optimiser_that_needs_second_derivatives_is_refused() -> None:
    with raises(UsageError, what="adahessian"):
        check_optimizer("adahessian")


def test_fused_and_plain_kernels_agree() -> None:
    weights = []
    for fused in (True, False):
        torch.manual_seed(0)
        layer = nn.Linear(8, 8)
        optimizer = create_optimizer(layer, fused=fused)
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.ones(2, 8)).square().sum().backward()
            optimizer.step()
        weights.append(layer.weight.detach())
    assert torch.allclose(weights[0], weights[1], atol=1e-6)
