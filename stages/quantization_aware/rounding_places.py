"""Which modules of a PyTorch network the roundings of its INT8 file belong to.

A node is named after the module it comes from, and the module's result on real images confirms it. An
activation is rounded in the result of a module, so that all readers see it rounded like in the file. If no
module returns it (a mean over a map), it is rounded in the input of the layers that read it.
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
from stages.quantization_aware.rounded_file import RoundedFile, RoundedWeight, module_of

TOLERANCE = 1e-3
"""Largest difference between a module's tensor and the graph's, as a share of the largest value."""


@dataclass(frozen=True)
class RoundingPlaces:
    """The modules at which a network simulates a file's roundings; names are those of the float graph.

    Attributes:
        outputs: By activation, the module whose result it is.
        inputs: By activation, the modules whose input it is.
        weights: By node, the module with its weight.
        capped: Activations that a Clip bounds in the network, but only their grid in the file.
        absent_activations: Activations without a module.
        absent_weights: Nodes without a module.
    """

    outputs: Mapping[str, str]
    inputs: Mapping[str, tuple[str, ...]]
    weights: Mapping[str, str]
    capped: frozenset[str]
    absent_activations: tuple[str, ...]
    absent_weights: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return how many roundings are simulated, and the names of those that are not."""
        return {
            "activations": len(self.outputs) + len(self.inputs),
            "weights": len(self.weights),
            "activations_not_simulated": sorted(self.absent_activations),
            "weights_not_simulated": sorted(self.absent_weights),
        }


def find_rounding_places(
    network: nn.Module,
    file: RoundedFile,
    graph: onnx.ModelProto,
    graph_input: np.ndarray,
    images: Tensor,
) -> RoundingPlaces:
    """Return the module for each rounding of a file.

    Activations of modules that run several times in a pass have no module.

    Args:
        network: The folded network, float.
        file: The file's roundings.
        graph: The float graph that the file was quantized from.
        graph_input: A few images as the graph takes them.
        images: The same images as the network takes them, on its device.
    """
    producers = {name: module_of(node.name) for node in graph.graph.node for name in node.output}
    values = _values(graph, tuple(file.grids), graph_input)
    candidates = {name: tuple(_enclosing_modules(producers.get(name, ""))) for name in file.grids}
    matches = _matches(network, images, values, candidates, file.readers)
    outputs = {
        name: next(path for path in paths if ("output", path, name) in matches)
        for name, paths in candidates.items()
        if any(("output", path, name) in matches for path in paths)
    }
    inputs = {
        name: tuple(path for path in paths if ("input", path, name) in matches)
        for name, paths in file.readers.items()
        if name not in outputs and any(("input", path, name) in matches for path in paths)
    }
    weights = {weight.node: weight.module for weight in file.weights if _has_weight(network, weight)}
    return RoundingPlaces(
        outputs=outputs,
        inputs=inputs,
        weights=weights,
        capped=_capped(file, graph),
        absent_activations=tuple(name for name in file.grids if name not in outputs and name not in inputs),
        absent_weights=tuple(weight.node for weight in file.weights if weight.node not in weights),
    )


def _capped(file: RoundedFile, graph: onnx.ModelProto) -> frozenset[str]:
    """Return activations behind a Clip (ReLU6) that the quantizer has left out: their grid cuts instead."""
    clipped = {name for node in graph.graph.node if node.op_type == "Clip" for name in node.output}
    return frozenset(
        name for name in file.grids if name in clipped and file.producer_types.get(name) != "Clip"
    )


def _values(graph: onnx.ModelProto, names: tuple[str, ...], graph_input: np.ndarray) -> dict[str, Tensor]:
    """Return these values of the float graph for the images."""
    parsed = read_graph(graph)
    tensors: dict[str, Tensor] = {}
    for chunk in chunks(parsed, names, len(graph_input)):
        values = values_of(parsed, chunk, {INPUT: graph_input})
        tensors |= {name: torch.from_numpy(values[name]) for name in chunk}
    return tensors


def _enclosing_modules(path: str) -> Iterator[str]:
    """Yield the module and those around it, without the network itself, whose result are the logits."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _matches(
    network: nn.Module,
    images: Tensor,
    values: Mapping[str, Tensor],
    producers: Mapping[str, tuple[str, ...]],
    readers: Mapping[str, tuple[str, ...]],
) -> set[tuple[str, str, str]]:
    """Return ("output" or "input", module, activation) of equal tensors, for modules that run once a pass."""
    candidates = {"output": _by_module(producers), "input": _by_module(readers)}
    calls: Counter[str] = Counter()
    matches: set[tuple[str, str, str]] = set()

    def compare(side: str, path: str, tensor: Any) -> None:
        for name in candidates[side].get(path, ()):
            if isinstance(tensor, Tensor) and _is_equal(tensor, values[name]):
                matches.add((side, path, name))

    def compare_input(path: str, inputs: tuple[Any, ...]) -> None:
        calls[path] += 1
        compare("input", path, inputs[0] if inputs else None)

    handles = [
        handle
        for path, module in network.named_modules()
        for handle in (
            module.register_forward_pre_hook(lambda _, inputs, path=path: compare_input(path, inputs)),
            module.register_forward_hook(lambda _, __, result, path=path: compare("output", path, result)),
        )
    ]
    try:
        with evaluation_mode(network), torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return {match for match in matches if calls[match[1]] == 1}


def _by_module(modules: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    activations: dict[str, list[str]] = {}
    for name, paths in modules.items():
        for path in paths:
            activations.setdefault(path, []).append(name)
    return activations


def _is_equal(tensor: Tensor, value: Tensor) -> bool:
    if tensor.shape != value.shape:
        return False
    difference = (tensor.detach().float().cpu() - value).abs().max()
    return bool(difference <= TOLERANCE * value.abs().max())


def _has_weight(network: nn.Module, weight: RoundedWeight) -> bool:
    """Return whether the module computes with this very weight, and not with one derived from its own."""
    try:
        module = network.get_submodule(weight.module)
    except AttributeError:
        return False
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return False
    own = module.weight.detach().float().cpu().numpy()
    step = np.abs(weight.values).max() / weight.levels
    # A MatMul has the weight of a linear layer transposed, which the shape does not show if it is square.
    forms = [form for form in (weight.values, weight.values.T) if form.shape == own.shape]
    return any(np.abs(form - own).max() <= 0.51 * step for form in forms)
