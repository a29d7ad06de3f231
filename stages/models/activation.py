"""A network's maps before their final activation.

A pass of an image determines a map's final activation: the layer whose output is the same tensor as
the map, unchanged since. Some maps have no final activation: MobileNetV2's linear bottlenecks, the blocks of
a pre-norm transformer, a plain residual sum. Activations that are functions, not layers, are not detected.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

ACTIVATION_MODULES = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")
"""The modules that define activation layers."""


@dataclass(frozen=True)
class ActivationCall:
    """A call of an activation layer in a pass.

    Attributes:
        module: The layer's path in the network.
        call: The number of the call in the pass, from 0.
    """

    module: str
    call: int


@dataclass(frozen=True)
class RecordedOutput:
    """The output of an activation's call.

    Attributes:
        activation: The call.
        output: Its output.
        version: The output's version at the call; torch counts in-place changes of a tensor.
    """

    activation: ActivationCall
    output: Tensor
    version: int


@contextlib.contextmanager
def record_activations(model: nn.Module) -> Iterator[list[RecordedOutput]]:
    """Record all calls of activation layers within the block.

    Use it for a single pass: the records keep the outputs in memory.

    Yields:
        The recorded outputs so far, in the order of the calls.
    """
    recorded: list[RecordedOutput] = []
    calls: Counter[str] = Counter()

    def record_calls_of(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                recorded.append(RecordedOutput(ActivationCall(name, calls[name]), output, output._version))
            calls[name] += 1

        return hook

    hooks = [
        part.register_forward_hook(record_calls_of(name))
        for name, part in model.named_modules()
        if type(part).__module__ in ACTIVATION_MODULES
    ]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


def final_activation(feature_map: Tensor, recorded: list[RecordedOutput]) -> ActivationCall | None:
    """Return the activation call whose output is the map.

    Returns:
        The call; None if there is none, or if the map changed after it (an in-place sum).
    """
    for record in reversed(recorded):
        if record.output is feature_map:
            return record.activation if record.version == feature_map._version else None
    return None


@contextlib.contextmanager
def record_activation_inputs(
    model: nn.Module, activations: Collection[ActivationCall]
) -> Iterator[dict[ActivationCall, Tensor]]:
    """Record the inputs of these activation calls within the block.

    In-place activations get a copy, so that the recorded input does not change.

    Yields:
        The inputs so far, by call.
    """
    inputs_by_call: dict[ActivationCall, Tensor] = {}
    calls: Counter[str] = Counter()

    def record_inputs_of(name: str) -> Any:
        def hook(part: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            activation = ActivationCall(name, calls[name])
            calls[name] += 1
            if activation not in activations:
                return None
            inputs_by_call[activation] = inputs[0]
            return (inputs[0].clone(), *inputs[1:]) if getattr(part, "inplace", False) else None

        return hook

    names = {activation.module for activation in activations}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(record_inputs_of(name)) for name in sorted(names)
    ]
    try:
        yield inputs_by_call
    finally:
        for hook in hooks:
            hook.remove()
