"""Looks into one pass of a network: in evaluation mode, and at what its pooling is fed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Every part in evaluation mode, and afterwards each as it was."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextlib.contextmanager
def reading(classifier: nn.Module | None) -> Iterator[list[Tensor]]:
    """While it lasts, notes what the classifier is given, call by call."""
    inputs: list[Tensor] = []
    if classifier is None:
        yield inputs
        return
    hook = classifier.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        yield inputs
    finally:
        hook.remove()


@contextlib.contextmanager
def watching(
    model: nn.Module, pooling: nn.Module | None, seen: list[Tensor], vectors: list[Tensor], in_parts: bool
) -> Iterator[None]:
    """Notes what goes into and comes out of the pooling, or, without one, into the last linear layer.

    For one pass only: a hook that stays would be copied with the model (an EMA), and would hold on to
    the pass's graph."""
    if pooling is not None:

        def note(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs[0].ndim == 4:
                seen[:] = [inputs[0], output]

        hook = pooling.register_forward_hook(note)
    else:
        linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        if not linear:
            yield
            return
        hook = linear[-1].register_forward_pre_hook(
            lambda _, inputs: vectors.__setitem__(slice(None), inputs)
        )
    try:
        yield
    finally:
        hook.remove()


def reads_the_mean(inputs: list[Tensor], shown: Tensor) -> bool:
    """Whether the classifier's one input is the map's spatial mean."""
    if len(inputs) != 1 or shown.numel() == 0 or shown.is_meta:
        return False
    vector, mean = inputs[0].flatten(1), shown.mean((2, 3))
    if vector.shape != mean.shape or not bool(mean.abs().max() > 0):
        return False
    return bool(torch.allclose(vector, mean, rtol=1e-3, atol=1e-5 * float(mean.abs().max())))
