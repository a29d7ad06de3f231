"""An exponential moving average of a network, which then is judged and kept in its stead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The average of a network's weights and running statistics.

    The decay rises as (1 + updates) / (10 + updates) up to `decay`, so that a short training is
    not an average with its random start. Counters are copied, not averaged.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        # The network's own tensors, by name: they stay the same objects throughout the training.
        self._live: dict[str, Tensor] = dict(network.state_dict(keep_vars=True))
        self.values = {name: value.detach().clone() for name, value in self._live.items()}
        self._floats = [name for name, value in self.values.items() if value.is_floating_point()]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Takes in the network's weights after its `updates`-th update (from 1)."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(
            [self.values[name] for name in self._floats],
            [self._live[name] for name in self._floats],
            1.0 - decay,
        )
        for name in self.values.keys() - set(self._floats):
            self.values[name].copy_(self._live[name])

    def load(self, values: dict[str, Tensor]) -> None:
        """Goes on from the values of a checkpoint."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network holds the average meanwhile: storages change places, nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, value in self.values.items():
            live = self._live[name]
            live.data, value.data = value.data, live.data
