"""The recipe as timm's objects: optimiser and learning-rate schedule by the names of the profile."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from pipeline.errors import UsageError
from stages.training.settings import RecipeSettings

_FUSED = ("adam", "adamw", "sgd", "nesterov", "momentum")
"""timm's names for PyTorch's own optimisers that have a fused kernel on CPU and CUDA: one pass over
the weights instead of eight."""


def check(recipe: RecipeSettings, section: str) -> None:
    """Raises UsageError for an optimiser that cannot be made here. `section`: train or distill."""
    with torch.random.fork_rng(devices=[]):
        probe = nn.Linear(2, 2)
    try:
        trial = optimizer(recipe, probe, section=section)
        # One real update: some need a closure or second derivatives, which the loop does not give.
        probe(torch.ones(1, 2)).sum().backward()
        trial.step()
    except (ImportError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"The optimiser {recipe.optimizer!r} cannot be made",
            where=f"{section}.optimizer",
            why=str(error) or type(error).__name__,
            hint=f"--set {section}.optimizer=adamw",
        ) from error


def optimizer(
    recipe: RecipeSettings, module: nn.Module, *, section: str = "train", fused: bool = True
) -> torch.optim.Optimizer:
    """timm's optimiser over every parameter of `module` that learns.

    Parameters of one dimension (biases, norms, temperatures) are exempt from weight decay, and so
    are those that the network names itself (`no_weight_decay`: position embeddings); with
    `decay_norms` none is.
    Raises UsageError with the nearest names for an unknown one.
    """
    name = recipe.optimizer.lower()
    known = list_optimizers()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        raise UsageError(
            f"Unknown optimiser {recipe.optimizer!r}",
            where=f"{section}.optimizer",
            why=f"timm's nearest names: {', '.join(near)}" if near else "timm has none of a similar name",
            hint=f"--set {section}.optimizer={near[0] if near else 'adamw'}",
        )
    options: dict[str, Any] = {"fused": True} if fused and name in _FUSED else {}
    if name in ("sgd", "nesterov") and recipe.momentum == 0.0:
        options["nesterov"] = False  # PyTorch refuses Nesterov's form of no momentum
    # timm hands the momentum on to those optimisers only that have one.
    return create_optimizer_v2(
        module,
        opt=name,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        momentum=recipe.momentum,
        filter_bias_and_bn=not recipe.decay_norms,
        **options,
    )


def scheduler(recipe: RecipeSettings, optimizer: torch.optim.Optimizer, steps: int) -> Scheduler:
    """timm's schedule, stepped by `step_update(updates)` after every update.

    steps: updates in an epoch. All schedules run in updates, so that warm-up is smooth; multistep
    and step decay at epochs' ends none the less. Constant is a step that never comes.
    """
    warmup = round(recipe.warmup_epochs * steps)
    total = max(1, recipe.epochs * steps)
    shared: dict[str, Any] = {"warmup_t": warmup, "t_in_epochs": False}
    # Warm-up starts at the first increment: an update with rate 0 would learn nothing.
    shared["warmup_lr_init"] = recipe.learning_rate / (warmup + 1) if warmup else 0.0
    if recipe.schedule == "cosine":
        return CosineLRScheduler(
            optimizer,
            # The decay takes what the warm-up leaves; at least one update, as timm demands.
            t_initial=max(1, total - warmup),
            lr_min=min(recipe.min_learning_rate, recipe.learning_rate),
            warmup_prefix=True,
            **shared,
        )
    if recipe.schedule == "multistep":
        return MultiStepLRScheduler(
            optimizer,
            # timm counts a milestone at t as passed at t + 1 (bisect_right(milestones, t + 1)).
            decay_t=[epoch * steps + 1 for epoch in sorted(recipe.decay_epochs)],
            decay_rate=recipe.decay_rate,
            warmup_prefix=False,
            **shared,
        )
    interval = recipe.decay_epochs[0] * steps if recipe.schedule == "step" else total + 1
    return StepLRScheduler(
        optimizer, decay_t=interval, decay_rate=recipe.decay_rate, warmup_prefix=False, **shared
    )
