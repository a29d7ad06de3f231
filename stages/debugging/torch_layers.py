"""What the layers of a PyTorch network give, beside the nodes of the ONNX graph exported from it.

Nodes are named after modules (`layer1.0.conv1/Conv`). A module's result stands beside the last
node of that module. A module without a node of its own (a normalisation that was folded into the
convolution before it, a dropout) passes its result on to the module whose result it takes;
then the convolution's own result has no counterpart in the graph any more.
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
    """The result of every module by its path, and for each the module whose result it takes as it is.

    images: uint8 (n,H,W,C). The whole network's logits stand under ''. The normalised images, resized
    as the network takes them, stand under `preprocessing`.
    """
    results: dict[str, Tensor] = {}
    takes: dict[str, str] = {}
    made_by: dict[int, str] = {}
    kept: list[Tensor] = []  # so that no two tensors share an id
    repeated: set[str] = set()
    normalising: dict[str, str] = {}

    def keep(path: str, module: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        if not isinstance(result, Tensor):
            return
        if path in results:
            repeated.add(path)  # one module, several nodes: which is which cannot be told
            return
        if given and isinstance(given[0], Tensor) and id(given[0]) in made_by:
            takes[path] = made_by[id(given[0])]
        kept.append(result)
        results[path] = result.clone()  # a later activation may work in place
        made_by[id(result)] = path

    def before(path: str, module: nn.Module, given: tuple[Any, ...]) -> None:
        if not given or not isinstance(given[0], Tensor):
            return
        if hasattr(module, "running_mean") and id(given[0]) in made_by:
            normalising[path] = made_by[id(given[0])]
        outer = path.rpartition(".")[0]
        if outer in normalising and id(given[0]) not in made_by:
            # timm's normalisations hold their activation: what that is given is what was normalised.
            kept.append(given[0])
            results.setdefault(f"{outer}:normalised", given[0].clone())
            takes.setdefault(f"{outer}:normalised", normalising[outer])

    handles = [
        module.register_forward_pre_hook(lambda module, given, path=path: before(path, module, given))
        for path, module in network.named_modules()
    ]
    handles += [
        module.register_forward_hook(
            lambda module, given, result, path=path: keep(path, module, given, result)
        )
        for path, module in network.named_modules()
    ]
    shown = torch.from_numpy(feed(images, {**card, "input": "float32_nchw"}))
    side = card["preprocessing"].get("network_size")
    with torch.inference_mode():
        shown = shown if side is None else resize_to(shown, side)
        results[_NORMALISED] = shown.clone()
        try:
            network.eval()(shown)
        finally:
            for handle in handles:
                handle.remove()
    once = {path: result.float().numpy() for path, result in results.items() if path not in repeated}
    return once, {path: source for path, source in takes.items() if path in once and source in once}


def pair_with_modules(
    graph: Graph, network: nn.Module, known: Collection[str], takes: Mapping[str, str]
) -> Pairs:
    """By value of the graph: the paths of the modules whose result it may be, of those that are known."""
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
    swallowed = {
        source
        for path, source in takes.items()
        if path not in normalising and hasattr(modules.get(path), "running_mean")
    }
    for path in known:
        place = path
        while place not in last and place in takes:
            place = takes[place]
        if place in last and not (path in swallowed and path in last):
            candidates.setdefault(last[place], []).append(path)
    candidates.setdefault(LOGITS, []).append("")
    if _NORMALISED in last:
        candidates[last[_NORMALISED]] = [_NORMALISED]
    return {
        value: tuple(dict.fromkeys(paths)) for value, paths in candidates.items() if value in graph.producers
    }
