"""An evaluation pass: a network's logits for every image of a split, and what follows from them."""

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


def predict_logits(
    network: nn.Module,
    supply: Supply,
    normalise: Normalise,
    *,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    on_progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Return a network's logits for every image of a split.

    The network is in evaluation mode for the pass; afterwards it is in its former mode.

    Args:
        network: The network, on the supply's device.
        supply: The images.
        normalise: The network's normalisation.
        batch_size: Images a step.
        autocast: Context of the forward passes, for mixed precision.
        on_progress: Called after each batch with the number of images done.

    Returns:
        float32 (images, classes) on the CPU, in the split's order.
    """
    was_training = network.training
    network.eval()
    parts: list[Tensor] = []
    done = 0
    try:
        # no_grad rather than inference_mode: a compiled network refuses inference tensors.
        with torch.no_grad(), autocast():
            for images, labels in supply.batches(batch_size):
                parts.append(network(normalise(images)).float())
                done += len(labels)
                if on_progress is not None:
                    on_progress(done)
    finally:
        network.train(was_training)
    # One copy to the host for the whole split.
    return torch.cat(parts).cpu()


def predict_logits_by_card(
    network: nn.Module,
    card: ModelCard,
    supply: Supply,
    compute: Compute,
    *,
    batch_size: int,
    on_progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Return a stored network's logits, in its own precision and with its own card's normalisation.

    Args:
        network: The network; moved to the device.
        card: The network's card.
        supply: The images.
        compute: Device and memory format.
        batch_size: Images a step.
        on_progress: Called after each batch with the number of images done.

    Returns:
        float32 (images, classes) on the CPU, in the split's order.
    """
    network.to(compute.device)
    if compute.channels_last:
        network.to(memory_format=torch.channels_last)
    normalise = Normalise(card.preprocessing, compute.device, channels_last=compute.channels_last)
    return predict_logits(network, supply, normalise, batch_size=batch_size, on_progress=on_progress)


def top1_and_loss(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the top-1 accuracy in per cent, and the mean cross-entropy.

    Args:
        logits: Float (n, classes).
        labels: int64 (n).
    """
    right = (logits.argmax(dim=1) == labels).sum().item()
    return 100.0 * right / len(labels), functional.cross_entropy(logits.double(), labels).item()
