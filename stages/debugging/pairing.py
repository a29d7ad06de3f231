"""Which value of one graph stands for which value of another.

A converter keeps the names of most values and puts conversions between them. So values pair by
name; what a QuantizeLinear and DequantizeLinear, or a Cast, hands on stands for what went in; a
dequantized weight stands for the float weight; outputs that are left pair by their place.
"""

from __future__ import annotations

from onnx import TensorProto

from stages.onnx_files.graphs import Graph
from stages.runtimes.half.kinds import ROUNDED

Pairs = dict[str, tuple[str, ...]]
"""By value of the suspect: the values of the reference that it may stand for (the nearest counts)."""

_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "Cast")
_SUFFIXES = ("_DequantizeLinear_Output", "__fp16", "__bf16", "__fp32")
"""What ONNX Runtime's quantizer and kdpipe's 16-bit conversions add to the name of what they convert."""

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def pair_by_name(reference: Graph, suspect: Graph) -> Pairs:
    known = {*reference.values, *reference.inputs, *reference.constants}
    stands_for = {name: name for name in (*suspect.inputs, *suspect.constants) if name in known}
    stands_for |= dict(zip(suspect.inputs, reference.inputs, strict=False))
    pairs: Pairs = {}
    for node in suspect.nodes:
        for name in filter(None, node.output):
            if name in suspect.constants:
                continue
            found = name if name in known else _bare(name, known)
            if found is None and node.op_type in _CONVERSIONS and node.input[0] in stands_for:
                found = stands_for[node.input[0]]
            if found is None:
                continue
            stands_for[name] = found
            if name in known or node.op_type != "QuantizeLinear":  # else its integers have no counterpart
                pairs[name] = (found,)
    for name, counterpart in zip(suspect.outputs, reference.outputs, strict=False):
        pairs.setdefault(name, (counterpart,))
    return {name: found for name, found in pairs.items() if not _rounds(suspect, name)}


def _bare(name: str, known: set[str]) -> str | None:
    for suffix in _SUFFIXES:
        if name.endswith(suffix) and name.removesuffix(suffix) in known:
            return name.removesuffix(suffix)
    return None


def _rounds(graph: Graph, name: str) -> bool:
    """A cast to integers, or to 16 bits where a float of the same numbers follows: it is the rounding that
    was asked for."""
    if name.endswith(ROUNDED):
        return True
    node = graph.nodes[graph.producers[name]]
    return node.op_type == "Cast" and all(
        attribute.i not in _FLOATS for attribute in node.attribute if attribute.name == "to"
    )
