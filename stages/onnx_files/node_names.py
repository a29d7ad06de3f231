"""Select nodes of an ONNX graph by the patterns of a profile. Does not import onnx."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.errors import UsageError

if TYPE_CHECKING:
    import onnx

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with weights: they do nearly all the computing, and users most often select them."""


def matching_nodes(model: onnx.ModelProto, patterns: Sequence[str], key: str) -> set[str]:
    """Return the names of the nodes that match any of the patterns.

    Args:
        model: The graph.
        patterns: Shell wildcards on node names.
        key: The profile's key of the patterns, such as `quantize.exclude`, for the message.

    Raises:
        UsageError: If a pattern matches nothing; the hint lists the nearest names.
    """
    names = [node.name for node in model.graph.node]
    chosen: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise _no_match(model, names, pattern, key)
        chosen.update(matched)
    return chosen


def _no_match(model: onnx.ModelProto, names: list[str], pattern: str, key: str) -> UsageError:
    weighted = [node.name for node in model.graph.node if node.op_type in WEIGHTED]
    near = difflib.get_close_matches(pattern.strip("*?"), names, n=5, cutoff=0.4) or weighted[:5]
    return UsageError(
        f"{key}: no node of the student matches {pattern!r}.",
        where=f"stage {key.partition('.')[0]}, profile key {key}",
        why=f"the student has {len(names)} nodes, named after its modules",
        hint=f"use one of them, e.g. {', '.join(near)}; wildcards are *, ? and […]",
    )
