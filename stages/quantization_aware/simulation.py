"""A network that computes with the roundings of an INT8 file while it is fine-tuned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from stages.quantization_aware.rounded_file import RoundedFile
from stages.quantization_aware.rounding import Rounding, WeightRounding
from stages.quantization_aware.rounding_places import RoundingPlaces

ROUNDINGS = "simulated_roundings"
"""Name of the submodule with the roundings of activations: they are trained, moved and saved with the
network's weights."""


@dataclass(frozen=True)
class Simulation:
    """A network under simulated rounding.

    Attributes:
        network: The network.
        roundings: By activation of the float graph.
        handles: The hooks that round.
    """

    network: nn.Module
    roundings: dict[str, Rounding]
    handles: tuple[RemovableHandle, ...]

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Return, by activation, the range for which the quantizer makes the present grid."""
        return {name: rounding.range() for name, rounding in self.roundings.items()}

    def remove(self) -> None:
        """Remove all roundings; the network keeps the float weights that it has learned."""
        for handle in self.handles:
            handle.remove()
        delattr(self.network, ROUNDINGS)
        for module in list(self.network.modules()):
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


def simulate(
    network: nn.Module, file: RoundedFile, places: RoundingPlaces, *, learn_ranges: bool
) -> Simulation:
    """Make a network compute with a file's roundings, in place.

    The hooks run before those of the methods' observers, which therefore see what the file computes.

    Args:
        network: The folded network, float.
        file: The file's roundings.
        places: The modules that they belong to.
        learn_ranges: Whether the scales of activations are parameters. Those of capped activations never
            are: with a wider grid the file would no longer cut where the network still does.
    """
    by_node = {weight.node: weight for weight in file.weights}
    for node, path in places.weights.items():
        rounding = WeightRounding(by_node[node].levels, per_channel=by_node[node].per_channel)
        parametrize.register_parametrization(network.get_submodule(path), "weight", rounding)
    roundings: dict[str, Rounding] = {}
    by_origin: dict[str, Rounding] = {}
    handles: list[RemovableHandle] = []
    for name in (*places.outputs, *places.inputs):
        origin = file.origin(name)
        if origin not in by_origin:
            learn = learn_ranges and origin not in places.capped
            by_origin[origin] = Rounding(file.grids[origin], learn=learn)
            # The origin needs a range even if no module returns it: the file takes the grid from it.
            roundings[origin] = by_origin[origin]
        roundings[name] = by_origin[origin]
        if name in places.outputs:
            module = network.get_submodule(places.outputs[name])
            handles.append(module.register_forward_hook(_round_result(by_origin[origin])))
        for path in places.inputs.get(name, ()):
            module = network.get_submodule(path)
            handles.append(module.register_forward_pre_hook(_round_input(by_origin[origin])))
    network.add_module(ROUNDINGS, nn.ModuleList(by_origin.values()))
    return Simulation(network, roundings, tuple(handles))


def _round_result(rounding: Rounding) -> Callable[..., Any]:
    return lambda _, __, result: rounding(result)


def _round_input(rounding: Rounding) -> Callable[..., Any]:
    return lambda _, inputs: (rounding(inputs[0]), *inputs[1:])
