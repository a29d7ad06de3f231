"""An evaluation pass: what a network answers to every image of a split."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.models.card import ModelCard
from stages.training.fabric import Compute
from stages.training.supply import Normalise, Supply


def logits(
    network: nn.Module,
    supply: Supply,
    normalise: Normalise,
    *,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    tell: Callable[[int], None] | None = None,
) -> Tensor:
    """float32 (images, classes) on the CPU, in the split's order.

    The network is judged in evaluation mode and left in the mode it was in. `tell` is given the
    number of images done after each batch.
    """
    was_training = network.training
    network.eval()
    answers: list[Tensor] = []
    done = 0
    try:
        # no_grad rather than inference_mode: a compiled network refuses inference tensors.
        with torch.no_grad(), autocast():
            for images, labels in supply.batches(batch_size):
                answers.append(network(normalise(images)).float())
                done += len(labels)
                if tell is not None:
                    tell(done)
    finally:
        network.train(was_training)
    # One read-back for the whole split.
    return torch.cat(answers).cpu()


def logits_by_card(
    network: nn.Module,
    card: ModelCard,
    supply: Supply,
    compute: Compute,
    *,
    batch_size: int,
    tell: Callable[[int], None] | None = None,
) -> Tensor:
    """As `logits`, in the network's own precision and fed by its own card's constants."""
    network.to(compute.device)
    if compute.channels_last:
        network.to(memory_format=torch.channels_last)
    normalise = Normalise(card.preprocessing, compute.device, channels_last=compute.channels_last)
    return logits(network, supply, normalise, batch_size=batch_size, tell=tell)


def top1_and_loss(answers: Tensor, labels: Tensor) -> tuple[float, float]:
    """Share of right answers in per cent and mean cross-entropy; (n, classes) and int64 (n)."""
    right = (answers.argmax(dim=1) == labels).sum().item()
    return 100.0 * right / len(labels), functional.cross_entropy(answers.double(), labels).item()
