"""Pair the values of one graph with their counterparts in another.

A converter keeps the names of most values and inserts conversions between them. The rules follow from that:

* values pair by name,
* the result of a QuantizeLinear and DequantizeLinear, or of a Cast, corresponds to its input,
* a dequantized weight corresponds to the float weight,
* the remaining outputs pair by position.
"""

from __future__ import annotations

from onnx import TensorProto

from stages.onnx_files.graphs import Graph
from stages.runtimes.half.kinds import ROUNDED

Pairs = dict[str, tuple[str, ...]]
"""By value of the suspect: the values of the reference that it may correspond to (the nearest counts)."""

_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "Cast")
_SUFFIXES = ("_DequantizeLinear_Output", "__fp16", "__bf16", "__fp32")
"""Suffixes that ONNX Runtime's quantizer and kdpipe's 16-bit conversions add to converted values' names."""

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def pair_by_name(reference: Graph, suspect: Graph) -> Pairs:
    """Return the counterparts of the suspect's values, without those that only round."""
    known = {*reference.values, *reference.inputs, *reference.constants}
    counterparts = {name: name for name in (*suspect.inputs, *suspect.constants) if name in known}
    counterparts |= dict(zip(suspect.inputs, reference.inputs, strict=False))
    pairs: Pairs = {}
    for node in suspect.nodes:
        for name in filter(None, node.output):
            if name in suspect.constants:
                continue
            counterpart = name if name in known else _base_name(name, known)
            if counterpart is None and node.op_type in _CONVERSIONS and node.input[0] in counterparts:
                counterpart = counterparts[node.input[0]]
            if counterpart is None:
                continue
            counterparts[name] = counterpart
            if name in known or node.op_type != "QuantizeLinear":  # else its integers have no counterpart
                pairs[name] = (counterpart,)
    for name, output in zip(suspect.outputs, reference.outputs, strict=False):
        pairs.setdefault(name, (output,))
    return {name: candidates for name, candidates in pairs.items() if not _rounds(suspect, name)}


def _base_name(name: str, known: set[str]) -> str | None:
    for suffix in _SUFFIXES:
        if name.endswith(suffix) and name.removesuffix(suffix) in known:
            return name.removesuffix(suffix)
    return None


def _rounds(graph: Graph, name: str) -> bool:
    """Return whether the value is an intended rounding.

    This is a cast to integers, or to 16 bits where a float of the same numbers follows.
    """
    if name.endswith(ROUNDED):
        return True
    node = graph.nodes[graph.producers[name]]
    return node.op_type == "Cast" and all(
        attribute.i not in _FLOATS for attribute in node.attribute if attribute.name == "to"
    )
