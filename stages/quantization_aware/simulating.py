"""A network that computes with the roundings of an INT8 file, while it is fine-tuned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from stages.quantization_aware.placing import Places
from stages.quantization_aware.reading import RoundedFile
from stages.quantization_aware.rounding import Rounding, WeightRounding

ROUNDINGS = "simulated_roundings"
"""Name of the part of the network that holds the roundings of activations: they are trained, moved and
kept with its weights."""


@dataclass(frozen=True)
class Simulation:
    """A network under simulated rounding. roundings: by activation of the float graph."""

    network: nn.Module
    roundings: dict[str, Rounding]
    handles: tuple[RemovableHandle, ...]

    def ranges(self) -> dict[str, tuple[float, float]]:
        """By activation, the range from which the quantizer makes the grid that it is rounded to now."""
        return {name: rounding.range() for name, rounding in self.roundings.items()}

    def end(self) -> None:
        """Takes all roundings out: what is left are the float weights as they were learnt."""
        for handle in self.handles:
            handle.remove()
        delattr(self.network, ROUNDINGS)
        for module in list(self.network.modules()):
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


def simulate(network: nn.Module, file: RoundedFile, places: Places, *, learn_ranges: bool) -> Simulation:
    """Makes the network, folded and float, compute with the file's roundings; works in place.

    Hooks come before those of the methods' observers, which so see what the file would compute.
    learn_ranges: whether the scales of activations are parameters; those of capped ones never are: with a
    wider grid the file would no longer cut where the network still does.
    """
    by_node = {weight.node: weight for weight in file.weights}
    for node, path in places.weights.items():
        rounding = WeightRounding(by_node[node].levels, per_channel=by_node[node].per_channel)
        parametrize.register_parametrization(network.get_submodule(path), "weight", rounding)
    roundings: dict[str, Rounding] = {}
    shared: dict[str, Rounding] = {}
    handles: list[RemovableHandle] = []
    for name in (*places.left, *places.taken):
        origin = file.origin(name)
        if origin not in shared:
            learn = learn_ranges and origin not in places.capped
            shared[origin] = Rounding(file.grids[origin], learn=learn)
            # Wherever it is felt: the file has its grid from the range of the origin.
            roundings[origin] = shared[origin]
        roundings[name] = shared[origin]
        if name in places.left:
            module = network.get_submodule(places.left[name])
            handles.append(module.register_forward_hook(_result_by(shared[origin])))
        for path in places.taken.get(name, ()):
            module = network.get_submodule(path)
            handles.append(module.register_forward_pre_hook(_input_by(shared[origin])))
    network.add_module(ROUNDINGS, nn.ModuleList(shared.values()))
    return Simulation(network, roundings, tuple(handles))


def _result_by(rounding: Rounding) -> Callable[..., Any]:
    return lambda _, __, result: rounding(result)


def _input_by(rounding: Rounding) -> Callable[..., Any]:
    return lambda _, given: (rounding(given[0]), *given[1:])
