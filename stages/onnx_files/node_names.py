"""Nodes of an ONNX graph that a profile names by pattern. Light: imports no onnx."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.errors import UsageError

if TYPE_CHECKING:
    import onnx

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Where nearly all the work is: what a user most likely means to name."""


def matching_nodes(model: onnx.ModelProto, patterns: Sequence[str], key: str) -> set[str]:
    """Names of the nodes that any of the patterns matches.

    patterns: shell wildcards on node names. key: of the profile, `quantize.exclude`, for the message.
    Raises UsageError for a pattern that matches nothing, with the nearest names.
    """
    names = [node.name for node in model.graph.node]
    chosen: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise _matches_nothing(model, names, pattern, key)
        chosen.update(matched)
    return chosen


def _matches_nothing(model: onnx.ModelProto, names: list[str], pattern: str, key: str) -> UsageError:
    weighted = [node.name for node in model.graph.node if node.op_type in WEIGHTED]
    near = difflib.get_close_matches(pattern.strip("*?"), names, n=5, cutoff=0.4) or weighted[:5]
    return UsageError(
        f"{key}: no node of the student matches {pattern!r}.",
        where=f"stage {key.partition('.')[0]}, profile key {key}",
        why=f"the student has {len(names)} nodes, named after its modules",
        hint=f"name one of them, e.g. {', '.join(near)}; wildcards are *, ? and […]",
    )
