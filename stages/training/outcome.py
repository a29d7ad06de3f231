"""What a training returns, and its best epoch so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

Weights = dict[str, Tensor]
"""A state dict on the CPU."""

Row = dict[str, float]
"""One epoch's figures by column of `history.csv` (docs/reference/artefacts.md)."""


@dataclass
class BestEpoch:
    """The epoch whose weights are the result so far; epoch 0 if none is trained yet."""

    epoch: int = 0
    val_top1: float = -1.0
    val_loss: float = math.inf
    weights: Weights = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The result of a training; the task's network holds the weights of the best epoch.

    Attributes:
        best_epoch: From 1; 0 if no epoch was trained and the network keeps its starting weights.
        val_top1: Top-1 accuracy of the best epoch on the validation images, in per cent.
        val_loss: Mean cross-entropy of the best epoch on the validation images.
        history: One row an epoch, columns as in docs/reference/artefacts.md.
        images_per_s: Median over the epochs that this process trained, without validation; 0 without one.
        seconds_per_epoch: Median like `images_per_s`.
        bottleneck: "reading" or "computing"; empty if this process trained no epoch.
        last_val_top1: Top-1 accuracy after the last epoch, in per cent.
        last_weights: Weights after the last epoch, on the CPU.
    """

    best_epoch: int
    val_top1: float
    val_loss: float
    history: list[Row]
    images_per_s: float
    seconds_per_epoch: float
    bottleneck: str
    last_val_top1: float
    last_weights: Weights = field(repr=False)
