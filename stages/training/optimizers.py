"""timm's optimisers by the names of the profile."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from pipeline.errors import UsageError

_FUSED = ("adam", "adamw", "sgd", "nesterov", "momentum")
"""timm's names for PyTorch's own optimisers that have a fused kernel on CPU and CUDA: one pass over
the weights instead of eight."""


def check_optimizer(optimizer: str = "adamw", *, section: str = "train", **options: Any) -> None:
    """Raise UsageError for an optimiser that `fit` cannot use.

    Args:
        optimizer: timm's name.
        section: The recipe's section of the profile, for the message.
        options: Further arguments of `create_optimizer`.
    """
    with torch.random.fork_rng(devices=[]):
        probe = nn.Linear(2, 2)
    try:
        trial = create_optimizer(probe, optimizer, section=section, **options)
        # One real update: some need a closure or second derivatives, which the loop does not provide.
        probe(torch.ones(1, 2)).sum().backward()
        trial.step()
    except (ImportError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"The optimiser {optimizer!r} cannot be created",
            where=f"{section}.optimizer",
            why=str(error) or type(error).__name__,
            hint=f"--set {section}.optimizer=adamw",
        ) from error


def create_optimizer(
    module: nn.Module,
    optimizer: str = "adamw",
    *,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.05,
    decay_norms: bool = False,
    momentum: float = 0.9,
    fused: bool = True,
    section: str = "train",
) -> torch.optim.Optimizer:
    """Return timm's optimiser over every trainable parameter of `module`.

    Parameters of one dimension (biases, norms, temperatures) are exempt from weight decay, and so
    are those that the network lists itself (`no_weight_decay`: position embeddings); with
    `decay_norms` none is.

    Args:
        module: The module to train.
        optimizer: timm's name, in any case.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay.
        decay_norms: Whether weight decay applies to biases and norms too.
        momentum: Momentum, for optimisers that have one.
        fused: Whether to use a fused kernel where PyTorch has one.
        section: The recipe's section of the profile, for the message.

    Raises:
        UsageError: timm has no optimiser of this name; the message lists the nearest names.
    """
    name = optimizer.lower()
    known = list_optimizers()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        raise UsageError(
            f"Unknown optimiser {optimizer!r}",
            where=f"{section}.optimizer",
            why=f"timm's nearest names: {', '.join(near)}" if near else "timm has none of a similar name",
            hint=f"--set {section}.optimizer={near[0] if near else 'adamw'}",
        )
    options: dict[str, Any] = {"fused": True} if fused and name in _FUSED else {}
    if name in ("sgd", "nesterov") and momentum == 0.0:
        options["nesterov"] = False  # PyTorch refuses Nesterov's form without momentum
    # timm passes the momentum only to those optimisers that have one.
    created: torch.optim.Optimizer = create_optimizer_v2(
        module,
        opt=name,
        lr=learning_rate,
        weight_decay=weight_decay,
        momentum=momentum,
        filter_bias_and_bn=not decay_norms,
        **options,
    )
    return created
