"""Give an exported graph readable names, and remove the machine's paths.

The exporter numbers nodes and values and writes stack traces (paths of the machine) into the file. `tidy`
names every node after its module, `layer1.0.conv1/Conv`. Patterns can then select nodes, and equal weights
give equal bytes.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping

import onnx
from onnx import AttributeProto, NodeProto

_SCOPES = "pkg.torch.onnx.name_scopes"
_NO_SCOPE = "_empty_nn_module_stack_from_metadata_hook"
_FOLDED_BIAS = ".weight_bias"
"""Suffix of the bias of a folded normalisation in the exporter: `conv1.weight_bias`."""

_WEIGHT_INPUT = 1


def tidy(model: onnx.ModelProto, *, strip_prefix: str) -> None:
    """Rename nodes, values and initialisers after the network's modules, and drop all notes, in place.

    The graph's inputs and outputs keep their names.

    Args:
        model: The exported graph.
        strip_prefix: The part of every module path that kdpipe's own wrapper added (`network.`).
    """
    graph = model.graph
    initialisers = {
        tensor.name: _without(tensor.name, strip_prefix).replace(_FOLDED_BIAS, ".bias")
        for tensor in graph.initializer
    }
    used: Counter[str] = Counter()
    renamed = dict(initialisers)
    interface = {value.name for value in (*graph.input, *graph.output)}
    for node in graph.node:
        path = _module_path(node, initialisers, strip_prefix)
        node.name = _unique(f"{path}/{node.op_type}" if path else node.op_type, used)
        for position, name in enumerate(node.input):
            if name in initialisers and "." not in name and renamed[name] == name:
                renamed[name] = f"{node.name}:{position}"
        for position, name in enumerate(node.output):
            if name and name not in interface:
                renamed[name] = node.name if position == 0 else f"{node.name}:out{position}"
    if not any(_has_subgraph(node) for node in graph.node):
        _rename_values(graph, {old: new for old, new in renamed.items() if old not in interface})
    _drop_notes(model)


def _module_path(node: NodeProto, initialisers: Mapping[str, str], prefix: str) -> str:
    """Return the path of the module that a node comes from.

    A convolution with a folded normalisation has the normalisation's path; its weight has the right one.
    """
    if len(node.input) > _WEIGHT_INPUT:
        weight = initialisers.get(node.input[_WEIGHT_INPUT], "")
        if weight.endswith(".weight"):
            return weight.removesuffix(".weight")
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes = ast.literal_eval(entry.value)
            path = scopes[-2] if len(scopes) > 1 else ""
            return "" if path == _NO_SCOPE else _without(path, prefix)
    return ""


def _without(name: str, prefix: str) -> str:
    return "" if name == prefix.rstrip(".") else name.removeprefix(prefix)


def _unique(name: str, used: Counter[str]) -> str:
    used[name] += 1
    return name if used[name] == 1 else f"{name}_{used[name]}"


def _has_subgraph(node: NodeProto) -> bool:
    return any(attribute.type == AttributeProto.GRAPH for attribute in node.attribute)


def _rename_values(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
        for position, name in enumerate(node.output):
            node.output[position] = renamed.get(name, name)
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for value in graph.value_info:
        value.name = renamed.get(value.name, value.name)


def _drop_notes(model: onnx.ModelProto) -> None:
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.doc_string = ""
        del part.metadata_props[:]
