"""Context managers for a pass: evaluation mode, and records of the pooling's or classifier's inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Set all parts to evaluation mode within the block; restore each part's mode afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextlib.contextmanager
def record_inputs(classifier: nn.Module | None) -> Iterator[list[Tensor]]:
    """Record the classifier's inputs within the block.

    Yields:
        The inputs so far, in the order of the calls; it stays empty if `classifier` is None.
    """
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
def record_pooling(
    model: nn.Module, pooling: nn.Module | None, pooled: list[Tensor], vectors: list[Tensor]
) -> Iterator[None]:
    """Record the pooling's input and output within the block.

    Without a pooling, record the last linear layer's input. Use it for a single pass: a hook that stays would
    be copied with the model (for an exponential moving average), and would keep the pass's graph in memory.

    Args:
        model: The network.
        pooling: Its pooling, if it has one.
        pooled: Gets the pooling's input (B, C, H, W) and its output.
        vectors: Gets the last linear layer's inputs if `pooling` is None.
    """
    if pooling is not None:

        def record(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs[0].ndim == 4:
                pooled[:] = [inputs[0], output]

        hook = pooling.register_forward_hook(record)
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


def is_spatial_mean(inputs: list[Tensor], feature_map: Tensor) -> bool:
    """Return whether the classifier has a single input and it is the map's spatial mean."""
    if len(inputs) != 1 or feature_map.numel() == 0 or feature_map.is_meta:
        return False
    vector, mean = inputs[0].flatten(1), feature_map.mean((2, 3))
    if vector.shape != mean.shape or not bool(mean.abs().max() > 0):
        return False
    return bool(torch.allclose(vector, mean, rtol=1e-3, atol=1e-5 * float(mean.abs().max())))
