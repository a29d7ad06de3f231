"""Puts the roundings of an INT8 file into the PyTorch network that it was exported from.

A node is named after the module it comes from, and what that module gives on real images tells whether
it is the one. An activation is rounded where a module leaves it, so that all who read it see it
rounded as in the file, or, where no module leaves it (a mean over a map), where a layer takes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from stages.models.recording import evaluation_mode
from stages.onnx_files.graphs import chunks, read_graph, values_of
from stages.onnx_files.metadata import INPUT
from stages.quantization_aware.reading import RoundedFile, RoundedWeight, module_of

SAME = 1e-3
"""Largest difference between a module's tensor and the graph's, as a share of the largest value."""


@dataclass(frozen=True)
class Places:
    """Where a file's roundings are felt in a network.

    left: activation -> the module whose result it is. taken: activation -> the modules whose input
    it is. weights: node -> module. capped: activations that a Clip bounds in the network and only their
    grid in the file. absent_activations, absent_weights: what has no counterpart, by its name in the
    graph.
    """

    left: Mapping[str, str]
    taken: Mapping[str, tuple[str, ...]]
    weights: Mapping[str, str]
    capped: frozenset[str]
    absent_activations: tuple[str, ...]
    absent_weights: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """How much is simulated, and by name what is not."""
        return {
            "activations": len(self.left) + len(self.taken),
            "weights": len(self.weights),
            "activations_not_simulated": sorted(self.absent_activations),
            "weights_not_simulated": sorted(self.absent_weights),
        }


def find_places(
    network: nn.Module, file: RoundedFile, graph: onnx.ModelProto, fed: np.ndarray, images: Tensor
) -> Places:
    """Where each rounding of the file belongs in the network; activations of modules that run several
    times have no place.

    network: folded, float. graph: the float graph that the file was made from. fed, images: a few
    images as the graph and as the network take them, the latter on the network's device.
    """
    producers = {name: module_of(node.name) for node in graph.graph.node for name in node.output}
    values = _values(graph, tuple(file.grids), fed)
    leaves = {name: tuple(_outwards(producers.get(name, ""))) for name in file.grids}
    same = _matches(network, images, values, leaves, file.readers)
    left = {
        name: next(path for path in paths if ("left", path, name) in same)
        for name, paths in leaves.items()
        if any(("left", path, name) in same for path in paths)
    }
    taken = {
        name: tuple(path for path in paths if ("taken", path, name) in same)
        for name, paths in file.readers.items()
        if name not in left and any(("taken", path, name) in same for path in paths)
    }
    weights = {weight.node: weight.module for weight in file.weights if _is_its(weight, network)}
    return Places(
        left=left,
        taken=taken,
        weights=weights,
        capped=_capped(file, graph),
        absent_activations=tuple(name for name in file.grids if name not in left and name not in taken),
        absent_weights=tuple(weight.node for weight in file.weights if weight.node not in weights),
    )


def _capped(file: RoundedFile, graph: onnx.ModelProto) -> frozenset[str]:
    """Activations behind a Clip (ReLU6) that the quantizer has left out: their grid cuts where it would."""
    clipped = {name for node in graph.graph.node if node.op_type == "Clip" for name in node.output}
    return frozenset(name for name in file.grids if name in clipped and file.made_by.get(name) != "Clip")


def _values(graph: onnx.ModelProto, names: tuple[str, ...], fed: np.ndarray) -> dict[str, Tensor]:
    """What these values of the float graph are for the images."""
    read = read_graph(graph)
    found: dict[str, Tensor] = {}
    for piece in chunks(read, names, len(fed)):
        values = values_of(read, piece, {INPUT: fed})
        found |= {name: torch.from_numpy(values[name]) for name in piece}
    return found


def _outwards(path: str) -> Iterator[str]:
    """The module and those around it, without the network itself, whose result are the logits."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _matches(
    network: nn.Module,
    images: Tensor,
    values: Mapping[str, Tensor],
    leaves: Mapping[str, tuple[str, ...]],
    readers: Mapping[str, tuple[str, ...]],
) -> set[tuple[str, str, str]]:
    """("left" or "taken", module, activation) of what is the same, of modules that run once a pass."""
    candidates = {"left": _by_module(leaves), "taken": _by_module(readers)}
    calls: Counter[str] = Counter()
    same: set[tuple[str, str, str]] = set()

    def look(side: str, path: str, shown: Any) -> None:
        for name in candidates[side].get(path, ()):
            if isinstance(shown, Tensor) and _same(shown, values[name]):
                same.add((side, path, name))

    def taking(path: str, given: tuple[Any, ...]) -> None:
        calls[path] += 1
        look("taken", path, given[0] if given else None)

    handles = [
        handle
        for path, module in network.named_modules()
        for handle in (
            module.register_forward_pre_hook(lambda _, given, path=path: taking(path, given)),
            module.register_forward_hook(lambda _, __, result, path=path: look("left", path, result)),
        )
    ]
    try:
        with evaluation_mode(network), torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return {match for match in same if calls[match[1]] == 1}


def _by_module(modules: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, paths in modules.items():
        for path in paths:
            found.setdefault(path, []).append(name)
    return found


def _same(shown: Tensor, value: Tensor) -> bool:
    if shown.shape != value.shape:
        return False
    difference = (shown.detach().float().cpu() - value).abs().max()
    return bool(difference <= SAME * value.abs().max())


def _is_its(weight: RoundedWeight, network: nn.Module) -> bool:
    """Whether the module computes with this very weight, and not with one made from its own."""
    try:
        module = network.get_submodule(weight.module)
    except AttributeError:
        return False
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return False
    own = module.weight.detach().float().cpu().numpy()
    step = np.abs(weight.values).max() / weight.levels
    # A product has the weight of a linear layer transposed, which a square one's shape does not tell.
    forms = [form for form in (weight.values, weight.values.T) if form.shape == own.shape]
    return any(np.abs(form - own).max() <= 0.51 * step for form in forms)
