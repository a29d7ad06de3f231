"""One epoch of a training, and its validation.

No value is copied from the device inside an epoch: sums of losses stay there and are read once,
at the end.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from timm.scheduler.scheduler import Scheduler
from torch import Tensor

from stages.training.augmentation import Augmentation, RandomViews
from stages.training.evaluation import predict_logits, top1_and_loss
from stages.training.moving_average import MovingAverage
from stages.training.outcome import Row
from stages.training.progress import ProgressSlice
from stages.training.seeds import derive_seed, epoch_order
from stages.training.supply import Normalise, Supply
from stages.training.tasks import Task

VALIDATION_BATCH_SIZE = 256
"""Smallest batch of a validation: without gradients there is room for more images than in training."""


@dataclass(frozen=True)
class TrainingRun:
    """What one training consists of, and does not change while it runs.

    Attributes:
        fabric: Device, precision and processes.
        task: What is trained, on the device.
        module: The task as Fabric has set it up (compiled, synchronised): (labels, indices, images...)
            to (logits, losses).
        optimizer: The optimiser.
        fabric_optimizer: The same optimiser as Fabric has set it up; it makes the updates.
        schedule: Sets the learning rate after every update.
        average: Moving average of the weights, or None.
        training: Training images.
        validation: Validation images.
        normalises: For each image input of the task, its normalisation.
        augment: Random changes of the training images.
        epochs: Passes over the training images.
        steps: Updates in an epoch.
        batch_size: Images a step, over all devices.
        label_smoothing: Share of the target that is spread over all classes, 0..1.
        clip_grad: Largest norm of the gradient, or None.
        seed: Seed of views, orders and dropout.
        section: The recipe's section of the profile, for messages.
        progress: Where progress is reported.
    """

    fabric: Fabric
    task: Task
    module: Callable[..., tuple[Tensor, Tensor]]
    optimizer: torch.optim.Optimizer
    fabric_optimizer: Any
    schedule: Scheduler
    average: MovingAverage | None
    training: Supply
    validation: Supply
    normalises: list[Normalise]
    augment: Augmentation
    epochs: int
    steps: int
    batch_size: int
    label_smoothing: float
    clip_grad: float | None
    seed: int
    section: str
    progress: ProgressSlice

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next update."""
        return float(self.optimizer.param_groups[0]["lr"])


def train_epoch(run: TrainingRun, epoch: int, figures: dict[str, float | str]) -> Row:
    """Train on every training image once.

    Args:
        run: The training.
        epoch: The epoch, from 1.
        figures: Figures to show beside the progress.

    Returns:
        The epoch's row of the history; the columns of the validation are NaN.
    """
    fabric, task, device = run.fabric, run.task, run.fabric.device
    local_batch = run.batch_size // fabric.world_size
    order = _local_order(run, epoch)
    indices = torch.from_numpy(order).to(device)
    factors = _loss_factors(run, epoch)
    views = RandomViews(
        run.augment,
        seed=run.seed,
        epoch=epoch,
        rank=fabric.global_rank,
        device=device,
        fill=run.normalises[0].fill,
    )
    # Dropout and stochastic depth draw from the global generator.
    torch.manual_seed(derive_seed(run.seed, epoch, "network", fabric.global_rank))
    # MPS has no float64.
    sums_dtype = torch.float32 if device.type == "mps" else torch.float64
    sums = torch.zeros(3 + len(task.names), dtype=sums_dtype, device=device)
    first_rate = run.learning_rate
    task.train()

    for step, (images, labels) in enumerate(run.training.batches(local_batch, order=order)):
        view = views(images, labels)
        inputs = _normalised(view.images, run.normalises[: task.views])
        batch_indices = indices[step * local_batch : (step + 1) * local_batch]

        logits, losses = run.module(view.labels, batch_indices, *inputs)
        label_loss = task.label_weight * view.cross_entropy(logits, run.label_smoothing)
        weighted_losses = losses * factors[step]
        loss = label_loss + weighted_losses.sum()

        run.fabric_optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        if run.clip_grad is not None:
            # error_if_nonfinite would copy the norm to the host; `fit` checks the losses of the epoch.
            fabric.clip_gradients(
                run.module, run.fabric_optimizer, max_norm=run.clip_grad, error_if_nonfinite=False
            )
        run.fabric_optimizer.step()

        updates = (epoch - 1) * run.steps + step + 1
        run.schedule.step_update(updates)
        if run.average is not None:
            run.average.update(updates)
        accuracy = (logits.detach().argmax(dim=1) == view.labels).float().mean()
        sums += torch.cat([torch.stack([loss, label_loss, accuracy]), weighted_losses]).detach()
        run.progress.update(updates * run.batch_size, epoch=epoch, **figures)

    means = fabric.all_reduce(sums, reduce_op="sum") / (fabric.world_size * run.steps)
    return _row(epoch, first_rate, means.tolist(), task.names)


def validate(run: TrainingRun, average: MovingAverage | None) -> tuple[float, float]:
    """Judge the weights on the validation images.

    The first process does so, because its running statistics are those of the result.

    Args:
        run: The training.
        average: The moving average, if its weights are to be judged instead of the network's.

    Returns:
        Top-1 accuracy in per cent, and the mean cross-entropy; the same in every process.
    """
    result = (0.0, 0.0)
    if run.fabric.is_global_zero:
        with average.applied() if average is not None else contextlib.nullcontext():
            logits = predict_logits(
                run.task.network,
                run.validation,
                run.normalises[0],
                batch_size=max(run.batch_size, VALIDATION_BATCH_SIZE),
                autocast=run.fabric.autocast,
            )
        result = top1_and_loss(logits, torch.from_numpy(run.validation.labels))
    top1, loss = run.fabric.broadcast(result)
    return top1, loss


def _local_order(run: TrainingRun, epoch: int) -> np.ndarray:
    """Return this process's part of every batch, int64: all processes share one order."""
    fabric, steps = run.fabric, run.steps
    order = epoch_order(run.training.count, run.seed, epoch)[: steps * run.batch_size]
    by_process = order.reshape(steps, fabric.world_size, run.batch_size // fabric.world_size)
    return np.ascontiguousarray(by_process[:, fabric.global_rank].ravel())


def _loss_factors(run: TrainingRun, epoch: int) -> Tensor:
    """Return every step's factors, float32 (steps, losses), in one transfer to the device."""
    task, steps = run.task, run.steps
    factors = [task.factors(epoch - 1 + step / steps) for step in range(steps)]
    return torch.tensor(factors, dtype=torch.float32, device=run.fabric.device).reshape(
        steps, len(task.names)
    )


def _normalised(images: Tensor, normalises: list[Normalise]) -> list[Tensor]:
    """Return the view as each network takes it; networks with equal constants share one tensor."""
    first = normalises[0](images)
    return [first] + [
        first if normalise.preprocessing == normalises[0].preprocessing else normalise(images)
        for normalise in normalises[1:]
    ]


def _row(epoch: int, learning_rate: float, means: list[float], names: tuple[str, ...]) -> Row:
    """Return the row of the history; means: of loss, label loss, accuracy and each weighted loss."""
    loss, label_loss, accuracy, *weighted_losses = means
    row = {
        "epoch": float(epoch),
        "learning_rate": learning_rate,
        "train_loss": loss,
        "train_top1": 100.0 * accuracy,
        # In the order of docs/reference/artefacts.md; the validation sets these two.
        "val_loss": math.nan,
        "val_top1": math.nan,
    }
    if names:
        row["loss_labels"] = label_loss
        row |= {f"loss_{name}": mean for name, mean in zip(names, weighted_losses, strict=True)}
    return row
