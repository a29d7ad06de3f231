"""timm's learning-rate schedules by the names of the profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler

from pipeline.errors import UsageError
from stages.training.settings import Schedule


def create_scheduler(
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    epochs: int = 20,
    learning_rate: float = 1e-3,
    schedule: Schedule = "cosine",
    warmup_epochs: float = 0.0,
    decay_epochs: Sequence[int] = (),
    decay_rate: float = 0.1,
    min_learning_rate: float = 0.0,
    section: str = "train",
) -> Scheduler:
    """Return timm's schedule; call its `step_update(updates)` after every update.

    All schedules run in updates, so that warm-up is smooth; multistep and step still decay at the
    ends of epochs. Constant is a step schedule whose first step is after the end.

    Args:
        optimizer: The optimiser whose learning rate the schedule sets.
        steps: Updates in an epoch.
        epochs: Passes over the training images.
        learning_rate: Peak learning rate.
        schedule: cosine, multistep, step or constant.
        warmup_epochs: Length of the linear warm-up, in epochs.
        decay_epochs: Epochs after which multistep decays; for step the first entry is the interval.
        decay_rate: Factor at each decay.
        min_learning_rate: Last learning rate of cosine.
        section: The recipe's section of the profile, for the message.

    Raises:
        UsageError: The schedule is unknown, or is multistep or step without decay epochs.
    """
    if schedule not in get_args(Schedule):
        raise UsageError(
            f"Unknown learning-rate schedule {schedule!r}",
            where=f"{section}.schedule",
            why=f"the schedules are {', '.join(get_args(Schedule))}",
            hint=f"--set {section}.schedule=cosine",
        )
    if schedule in ("multistep", "step") and not decay_epochs:
        raise UsageError(
            f"The schedule {schedule} needs decay_epochs",
            where=f"{section}.decay_epochs",
            hint=f"--set {section}.decay_epochs=[{max(1, epochs // 2)}]",
        )
    warmup = round(warmup_epochs * steps)
    total = max(1, epochs * steps)
    shared: dict[str, Any] = {"warmup_t": warmup, "t_in_epochs": False}
    # Warm-up starts at the first increment: an update with rate 0 would learn nothing.
    shared["warmup_lr_init"] = learning_rate / (warmup + 1) if warmup else 0.0
    if schedule == "cosine":
        return CosineLRScheduler(
            optimizer,
            # The decay takes the updates after the warm-up; at least one, as timm demands.
            t_initial=max(1, total - warmup),
            lr_min=min(min_learning_rate, learning_rate),
            warmup_prefix=True,
            **shared,
        )
    if schedule == "multistep":
        return MultiStepLRScheduler(
            optimizer,
            # timm counts a milestone at t as passed at t + 1 (bisect_right(milestones, t + 1)).
            decay_t=[epoch * steps + 1 for epoch in sorted(decay_epochs)],
            decay_rate=decay_rate,
            warmup_prefix=False,
            **shared,
        )
    interval = decay_epochs[0] * steps if schedule == "step" else total + 1
    return StepLRScheduler(optimizer, decay_t=interval, decay_rate=decay_rate, warmup_prefix=False, **shared)
