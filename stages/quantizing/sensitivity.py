"""How much accuracy each layer of an INT8 file costs: one layer is quantized at a time, the rest is float.

The opposite, one float layer in an INT8 file, would change a sum of fifty roundings by one of them, which
is less than the noise. A graph with one quantized layer is also made and run in a fraction of the time. The
squares of the errors add up nearly enough to rank the layers; whether a list of float layers helps is
measured on the whole file afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.onnx_files.float_layers import quantized_layers
from stages.onnx_files.macs import macs_by_node
from stages.onnx_files.quantizing import quantized
from stages.onnx_files.sessions import open_session, run_logits
from stages.quantizing.quantized_file import QuantizedFile, compare_logits
from stages.quantizing.reference import FloatReference, model_bytes

MAX_GROUPS = 64
"""Up to so many layers are measured one by one; of more, those of one module are measured together."""


@dataclass(frozen=True)
class LayerSensitivity:
    """What quantizing one layer costs, or a few layers that are measured together.

    Attributes:
        nodes: Names of the weighted nodes.
        macs_share: Their share of the multiply-accumulates in all weighted nodes, 0..1.
        agreement: Per cent of the images with the float file's class if only these nodes are quantized.
        relative_rms: Root mean square of the logits' error, as a share of the standard deviation of the
            float logits.
    """

    nodes: tuple[str, ...]
    macs_share: float
    agreement: float
    relative_rms: float

    def as_json(self) -> dict[str, Any]:
        """Return the figures, JSON-ready."""
        return {
            "layers": list(self.nodes),
            "macs_share": round(self.macs_share, 4),
            "agreement": self.agreement,
            "logit_rms_relative_to_std": self.relative_rms,
        }


def rank_layers(file: QuantizedFile, reference: FloatReference) -> list[LayerSensitivity]:
    """Measure the quantized layers of a file, and sort them by their cost, the most expensive first.

    The images are the first `quantize.sensitivity_images` of the held-out images; like all of them, they are
    balanced over the classes.

    Args:
        file: The INT8 file.
        reference: Images and float logits.
    """
    indices = reference.holdout[: reference.settings.sensitivity_images]
    float_logits = reference.float_holdout[: len(indices)]
    macs = macs_by_node(file.source)
    all_nodes = {node.name for node in file.source.graph.node}
    groups = group_layers(quantized_layers(file.model), MAX_GROUPS)
    layers = []
    for done, nodes in enumerate(groups):
        reference.progress.update(done, len(groups), "layers", measuring=f"{file.recipe.name}, {nodes[0]}")
        model = quantized(
            file.source,
            file.ranges,
            file.recipe,
            per_channel=reference.settings.per_channel,
            skipped=all_nodes.difference(nodes),
            card=reference.card,
        )
        session = open_session(model_bytes(model), optimise=file.optimise)
        logits = run_logits(session, reference.data.train.images, indices, reference.card)
        share = sum(macs[node] for node in nodes) / sum(macs.values())
        layers.append(LayerSensitivity(nodes, share, *compare_logits(logits, float_logits)))
    return sorted(layers, key=lambda layer: -layer.relative_rms)


def group_layers(names: Sequence[str], limit: int) -> list[tuple[str, ...]]:
    """Group layers so that there are at most `limit` groups.

    Up to `limit` layers are a group each. Of more, layers of one module form a group, then of one module
    above that, and so on; at last, neighbours form groups of equal size.

    Args:
        names: Names such as `blocks.0.conv/Conv`, in graph order.
        limit: Largest number of groups.
    """
    depth = max((_depth(name) for name in names), default=0)
    for parts in range(depth, 0, -1):
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(_module(name, parts), []).append(name)
        if len(groups) <= limit:
            return [tuple(group) for group in groups.values()]
    size = -(-len(names) // limit)
    return [tuple(names[start : start + size]) for start in range(0, len(names), size)]


def _depth(name: str) -> int:
    return len(name.replace("/", ".").split("."))


def _module(name: str, parts: int) -> str:
    return ".".join(name.replace("/", ".").split(".")[:parts])
