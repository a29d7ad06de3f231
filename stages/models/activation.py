"""The maps of a network before the activation that ends them.

Which activation that is, is found by running one image: the layer whose output is the very tensor that
the network shows, unchanged since. Where none ends a map (MobileNetV2's linear bottlenecks, the blocks of
a pre-norm transformer, a plain residual sum) there is nothing to be found. An activation that is a
function rather than a layer is not seen.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

LIBRARIES = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")
"""Where classes of activations are defined."""


@dataclass(frozen=True)
class Ending:
    """One call of an activation in a pass. module: its name. call: 0 for its first one in the pass."""

    module: str
    call: int


@dataclass(frozen=True)
class Noted:
    """What a call gave. version: of the tensor then; torch counts what is done to it in place."""

    ending: Ending
    output: Tensor
    version: int


@contextlib.contextmanager
def noting_activations(model: nn.Module) -> Iterator[list[Noted]]:
    """While it lasts, every call of an activation is noted. For one pass: it holds on to the outputs."""
    noted: list[Noted] = []
    calls: Counter[str] = Counter()

    def note(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                noted.append(Noted(Ending(name, calls[name]), output, output._version))
            calls[name] += 1

        return hook

    hooks = [
        part.register_forward_hook(note(name))
        for name, part in model.named_modules()
        if type(part).__module__ in LIBRARIES
    ]
    try:
        yield noted
    finally:
        for hook in hooks:
            hook.remove()


def ending_of(shown: Tensor, noted: list[Noted]) -> Ending | None:
    """The call that gave the map; None if none did, or the map was changed after it (a sum in place)."""
    for one in reversed(noted):
        if one.output is shown:
            return one.ending if one.version == shown._version else None
    return None


@contextlib.contextmanager
def inputs_of(model: nn.Module, endings: Collection[Ending]) -> Iterator[dict[Ending, Tensor]]:
    """While it lasts, notes what goes into these calls, kept from activations that work in place."""
    seen: dict[Ending, Tensor] = {}
    calls: Counter[str] = Counter()

    def keep(name: str) -> Any:
        def hook(part: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            ending = Ending(name, calls[name])
            calls[name] += 1
            if ending not in endings:
                return None
            seen[ending] = inputs[0]
            return (inputs[0].clone(), *inputs[1:]) if getattr(part, "inplace", False) else None

        return hook

    names = {ending.module for ending in endings}
    hooks = [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in sorted(names)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
