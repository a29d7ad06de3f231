"""A summary of the engine inspector's report, from the JSON of TensorRT 10 and of 11. Light."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

MOST_NAMES = 20
"""The largest number of named layers that stayed in floats; their count is complete."""

WEIGHTED = ("convolution", "deconvolution", "matrixmultiply", "matrix_multiply", "gemm", "fullyconnected")
"""Kinds of layers (`LayerType` or `ParameterType`) in which nearly all the arithmetic is."""

TYPES = (
    ("uint8", "uint8"), ("int8", "int8"), ("fp8", "fp8"), ("bf16", "bf16"), ("bfloat", "bf16"),
    ("fp16", "fp16"), ("half", "fp16"),
    ("fp32", "fp32"), ("float", "fp32"), ("int32", "int32"), ("int64", "int64"), ("bool", "bool"),
)  # fmt: skip
"""A word in the inspector's type or format, and our name for it; the first match counts."""


def summary(text: str) -> dict[str, Any]:
    """Return a summary of an engine's layers.

    A tensor's type is in `Format/Datatype` until TensorRT 10 and has a field of its own in 11. An engine
    built with less than DETAILED verbosity lists only names: then only `layers` is known.

    Args:
        text: the inspector's JSON.

    Returns:
        `layers` (how many), `by_kind`, `by_type` (of their first output), `weighted` (the types that layers
        with weights compute in), and the count and names of those that stayed in floats.
    """
    try:
        layers = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        layers = []
    detailed = [layer for layer in layers if isinstance(layer, dict)]
    weighted = [(layer, _computes_in(layer)) for layer in detailed if _is_weighted(layer)]
    floats = [_name(layer) for layer, kind in weighted if kind in ("fp32", "fp16", "bf16")]
    outputs = [output for layer in detailed for output in _first(layer, "Outputs")]
    return {
        "layers": len(layers),
        "by_kind": _counted(str(layer.get("LayerType", "unknown")) for layer in detailed),
        "by_type": _counted(_type_of(_type_text(output)) for output in outputs),
        "weighted": _counted(kind for _, kind in weighted),
        "weighted_in_floats": len(floats),
        "weighted_in_floats_named": floats[:MOST_NAMES],
    }


def _is_weighted(layer: dict[str, Any]) -> bool:
    kinds = (str(layer.get(field, "")).lower() for field in ("LayerType", "ParameterType"))
    return "Weights" in layer or any(kind.removeprefix("cask") in WEIGHTED for kind in kinds)


def _computes_in(layer: dict[str, Any]) -> str:
    """Return the type of the weights, else of the first input: an INT8 layer may well write floats."""
    weights = layer.get("Weights")
    if isinstance(weights, dict) and weights.get("Type"):
        return _type_of(str(weights["Type"]))
    return next((_type_of(_type_text(tensor)) for tensor in _first(layer, "Inputs")), "other")


def _first(layer: dict[str, Any], edge: str) -> list[dict[str, Any]]:
    return [tensor for tensor in layer.get(edge) or [] if isinstance(tensor, dict)][:1]


def _type_text(tensor: dict[str, Any]) -> str:
    fields = ("DataType", "Datatype", "Format/Datatype", "Format/DataType", "Format")
    return str(next((tensor[field] for field in fields if tensor.get(field)), ""))


def _type_of(text: str) -> str:
    lower = text.lower()
    return next((name for word, name in TYPES if word in lower), "other")


def _name(layer: dict[str, Any]) -> str:
    """Return the ONNX nodes that the layer consists of, if it lists them; else its own name."""
    nodes = re.findall(r"\[ONNX Layer: ([^\]]+)\]", str(layer.get("Metadata", "")))
    return " + ".join(nodes) or str(layer.get("Name", "unnamed"))


def _counted(names: Any) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
