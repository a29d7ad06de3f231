"""Pair the results of a PyTorch network's modules with the nodes of the exported ONNX graph.

Nodes are named after modules (`layer1.0.conv1/Conv`). A module's result corresponds to the last node of that
module. The result of a module without a node (a dropout, or a normalisation that was folded into the
convolution before it) corresponds to the last node of the module whose result it takes. The folded
convolution's own result then has no counterpart in the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stages.debugging.pairing import Pairs
from stages.models.network_input import resize_to
from stages.onnx_files.graphs import Graph
from stages.onnx_files.metadata import LOGITS, feed

_NORMALISED = "preprocessing"


def layer_values(
    network: nn.Module, images: np.ndarray, card: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Compute the result of every module, and find the module whose result it takes unchanged.

    Args:
        network: The network; it is set to eval mode.
        images: uint8 (n, H, W, C).
        card: The network's card.

    Returns:
        The results by the modules' paths, and for each path that of the module whose result it takes. The
        path '' has the logits; `preprocessing` has the normalised images in the network's input size.
    """
    results: dict[str, Tensor] = {}
    takes: dict[str, str] = {}
    producers: dict[int, str] = {}
    references: list[Tensor] = []  # so that no two tensors share an id
    repeated: set[str] = set()
    normalising: dict[str, str] = {}

    def record_result(path: str, inputs: tuple[Any, ...], result: Any) -> None:
        if not isinstance(result, Tensor):
            return
        if path in results:
            repeated.add(path)  # one module, several nodes: they cannot be distinguished
            return
        if inputs and isinstance(inputs[0], Tensor) and id(inputs[0]) in producers:
            takes[path] = producers[id(inputs[0])]
        references.append(result)
        results[path] = result.clone()  # a later activation may work in place
        producers[id(result)] = path

    def record_input(path: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not inputs or not isinstance(inputs[0], Tensor):
            return
        if hasattr(module, "running_mean") and id(inputs[0]) in producers:
            normalising[path] = producers[id(inputs[0])]
        outer = path.rpartition(".")[0]
        if outer in normalising and id(inputs[0]) not in producers:
            # timm's normalisations contain their activation: its input is the normalised value.
            references.append(inputs[0])
            results.setdefault(f"{outer}:normalised", inputs[0].clone())
            takes.setdefault(f"{outer}:normalised", normalising[outer])

    handles = [
        module.register_forward_pre_hook(lambda module, inputs, path=path: record_input(path, module, inputs))
        for path, module in network.named_modules()
    ]
    handles += [
        module.register_forward_hook(
            lambda _module, inputs, result, path=path: record_result(path, inputs, result)
        )
        for path, module in network.named_modules()
    ]
    normalised = torch.from_numpy(feed(images, {**card, "input": "float32_nchw"}))
    side = card["preprocessing"].get("network_size")
    with torch.inference_mode():
        network_input = normalised if side is None else resize_to(normalised, side)
        results[_NORMALISED] = network_input.clone()
        try:
            network.eval()(network_input)
        finally:
            for handle in handles:
                handle.remove()
    unique = {path: result.float().numpy() for path, result in results.items() if path not in repeated}
    return unique, {path: source for path, source in takes.items() if path in unique and source in unique}


def pair_with_modules(
    graph: Graph, network: nn.Module, known: Collection[str], takes: Mapping[str, str]
) -> Pairs:
    """Return the modules whose result each value of the graph may be.

    Args:
        graph: The exported graph.
        network: The network.
        known: Paths of the modules with a known result.
        takes: By path, the module whose result a module takes.
    """
    last: dict[str, str] = {}
    normalising = {
        node.name.rpartition("/")[0] for node in graph.nodes if node.op_type == "BatchNormalization"
    }
    for node in graph.nodes:
        path = node.name.rpartition("/")[0]
        if not node.output or node.output[0] in graph.constants:
            continue
        while path:
            last[path] = node.output[0]
            path = path.rpartition(".")[0]
    candidates: dict[str, list[str]] = {}
    modules = dict(network.named_modules())
    folded = {
        source
        for path, source in takes.items()
        if path not in normalising and hasattr(modules.get(path), "running_mean")
    }
    for path in known:
        source = path
        while source not in last and source in takes:
            source = takes[source]
        if source in last and not (path in folded and path in last):
            candidates.setdefault(last[source], []).append(path)
    candidates.setdefault(LOGITS, []).append("")
    if _NORMALISED in last:
        candidates[last[_NORMALISED]] = [_NORMALISED]
    return {
        value: tuple(dict.fromkeys(paths)) for value, paths in candidates.items() if value in graph.producers
    }
