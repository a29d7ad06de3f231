"""Which nodes stay in float, and why."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from stages.onnx_files.quantizing import float_nodes

OWN = "kdpipe's own: pixels and probabilities lose too much in 8 bits"
EXCLUDED = "quantize.exclude"
SENSITIVE = "sensitivity"


def kept_by_the_profile(model: onnx.ModelProto, patterns: Sequence[str]) -> dict[str, str]:
    """Names of the nodes that stay float whatever the images say, with the reason.

    Raises UsageError for a pattern that matches no node.
    """
    own = float_nodes(model, [])
    return {name: OWN if name in own else EXCLUDED for name in sorted(float_nodes(model, patterns))}
