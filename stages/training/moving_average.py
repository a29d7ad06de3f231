"""An exponential moving average of a network; with `ema` set it is the result of the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """The exponential moving average of a network's weights and running statistics.

    The decay rises as (1 + updates) / (10 + updates) up to `decay`, so that a short training is
    not an average with its random start. Counters are copied, not averaged. A tensor that the network
    has under several names (tied weights, a shared layer) is averaged and swapped once.

    Args:
        network: The network in training.
        decay: Largest share of the old average in an update, 0..1.

    Attributes:
        values: The average under every name of the network's state dict; tied names share one tensor.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        # The network's own tensors: they stay the same objects throughout the training.
        named: dict[str, Tensor] = dict(network.state_dict(keep_vars=True))
        live = {id(tensor): tensor for tensor in named.values()}
        averages = {number: tensor.detach().clone() for number, tensor in live.items()}
        self.values = {name: averages[id(tensor)] for name, tensor in named.items()}
        self._pairs = [(tensor, averages[number]) for number, tensor in live.items()]
        self._averaged = [pair for pair in self._pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in self._pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Average in the network's weights after its `updates`-th update (from 1)."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(
            [average for _, average in self._averaged],
            [live for live, _ in self._averaged],
            1.0 - decay,
        )
        for live, average in self._copied:
            average.copy_(live)

    def load(self, values: dict[str, Tensor]) -> None:
        """Continue from the values of a checkpoint."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the network inside the `with` block; storages are swapped, not copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for live, average in self._pairs:
            live.data, average.data = average.data, live.data
