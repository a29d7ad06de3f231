from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stages.training.moving_average import MovingAverage


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
    average = MovingAverage(network, 0.9)
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
    average = MovingAverage(network, 0.5)
    _change(network)
    average.update(100)
    trained = {name: value.clone() for name, value in network.state_dict().items()}
    averaged = {name: value.clone() for name, value in average.values.items()}
    assert not torch.equal(trained["0.weight"], averaged["0.weight"])
    parameters = list(network.parameters())
    with average.applied():
        for name, value in network.state_dict().items():
            assert torch.equal(value, averaged[name]), name
    for name, value in network.state_dict().items():
        assert torch.equal(value, trained[name]), name
    # The optimiser holds these very objects.
    assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))


class _Tied(nn.Module):
    """Three layers of which any two may be one layer, share a parameter, or share running statistics."""

    def __init__(self, ties: set[str]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = (nn.BatchNorm1d(3) for _ in range(3))
        if "layer" in ties:
            self.second = self.first
        if "parameter" in ties:
            self.third.weight = self.first.weight
        if "within" in ties:
            self.third.bias = self.third.weight
        if "buffer" in ties:
            self.third.running_mean = self.first.running_mean
        if "counter" in ties:
            self.third.num_batches_tracked = self.first.num_batches_tracked

    def forward(self, rows: Tensor) -> Tensor:
        answers: Tensor = self.third(self.second(self.first(rows)))
        return answers


TIES = ("layer", "parameter", "within", "buffer", "counter")


@settings(deadline=None, max_examples=40)
@given(
    ties=st.sets(st.sampled_from(TIES)),
    actions=st.lists(st.sampled_from(("update", "judge")), min_size=1, max_size=12),
)
def test_tied_tensors_are_averaged_and_given_back_like_any_other(ties: set[str], actions: list[str]) -> None:
    network = _Tied(ties)
    average = MovingAverage(network, 0.9)
    objects = network.state_dict(keep_vars=True)
    expected = {name: value.tolist() for name, value in network.state_dict().items()}
    updates = 0
    for action in actions:
        if action == "update":
            updates += 1
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(torch.randn_like(parameter))
            network(torch.randn(4, 3))
            average.update(updates)
            _take_in(expected, network, min(0.9, (1 + updates) / (10 + updates)))
            continue
        before = {name: value.clone() for name, value in network.state_dict().items()}
        with average.applied():
            _assert_close(network.state_dict(), expected)
        for name, value in network.state_dict().items():
            assert torch.equal(value, before[name]), name
    _assert_close(average.values, expected)
    after = network.state_dict(keep_vars=True)
    assert all(after[name] is tensor for name, tensor in objects.items()), "an optimiser holds these objects"


def _take_in(expected: dict[str, list[float] | float], network: nn.Module, decay: float) -> None:
    """The definition, number by number, for every name on its own."""
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            pairs = zip(expected[name], value.tolist(), strict=True)  # type: ignore[arg-type]
            expected[name] = [decay * old + (1 - decay) * new for old, new in pairs]
        else:
            expected[name] = value.item()


def _assert_close(values: dict[str, Tensor], expected: dict[str, list[float] | float]) -> None:
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert value.tolist() == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


def test_a_checkpoint_of_tied_tensors_is_restored() -> None:
    average = MovingAverage(_Tied({"layer", "parameter"}), 0.5)
    stored = {name: value + 1 for name, value in average.values.items()}
    average.load(stored)
    for name, value in average.values.items():
        assert torch.equal(value, stored[name]), name
