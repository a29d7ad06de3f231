"""Which nodes stay in float, and why."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from stages.onnx_files.quantizing import float_nodes

BUILT_IN = "kdpipe's own: pixels and probabilities lose too much in 8 bits"
EXCLUDED = "quantize.exclude"
SENSITIVE = "sensitivity"


def profile_float_nodes(model: onnx.ModelProto, patterns: Sequence[str]) -> dict[str, str]:
    """Return the nodes that stay in float whatever the images are, with the reason.

    Args:
        model: The prepared float graph.
        patterns: Shell wildcards on node names (`quantize.exclude`).

    Raises:
        UsageError: A pattern matches no node.
    """
    built_in = float_nodes(model, [])
    names = sorted(float_nodes(model, patterns))
    return {name: BUILT_IN if name in built_in else EXCLUDED for name in names}
