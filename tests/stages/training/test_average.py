from __future__ import annotations

import torch
from torch import nn

from stages.training.average import Average


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def _change(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    network(torch.randn(4, 1, 5, 5))  # moves the running statistics


def test_it_is_the_moving_average_with_a_rising_decay() -> None:
    network = _network()
    average = Average(network, 0.9)
    expected = {name: value.double().clone() for name, value in network.state_dict().items()}
    for update in range(1, 200, 9):
        _change(network)
        average.update(update)
        decay = min(0.9, (1 + update) / (10 + update))
        for name, value in network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    for name, value in average.values.items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), expected[name], atol=1e-4), name
    assert average.values["1.num_batches_tracked"] == network.state_dict()["1.num_batches_tracked"]
    assert any("running_mean" in name for name in average.values)


def test_it_takes_the_networks_place_and_gives_it_back() -> None:
    network = _network()
    average = Average(network, 0.5)
    _change(network)
    average.update(100)
    trained = {name: value.clone() for name, value in network.state_dict().items()}
    averaged = {name: value.clone() for name, value in average.values.items()}
    assert not torch.equal(trained["0.weight"], averaged["0.weight"])
    parameters = list(network.parameters())
    with average.in_place():
        for name, value in network.state_dict().items():
            assert torch.equal(value, averaged[name]), name
    for name, value in network.state_dict().items():
        assert torch.equal(value, trained[name]), name
    # The optimiser holds these very objects.
    assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))
