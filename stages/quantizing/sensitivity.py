"""How much each layer of an INT8 file hurts: every layer quantized alone, in a graph that is float elsewhere.

Alone, and not "all but this one": the error of one layer is then measured from nothing, while leaving
one out of fifty changes a sum whose rounding is of the same size; and a graph with one quantized layer is
made and run in a fraction of the time. Squares of the errors add up nearly enough to rank layers by;
whether a list of them helps is measured on the whole file afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.onnx_files.float_layers import quantized_layers
from stages.onnx_files.macs import macs_by_node
from stages.onnx_files.quantizing import quantized
from stages.onnx_files.sessions import open_session, run_logits
from stages.quantizing.bench import Bench, content
from stages.quantizing.making import Made, likeness

MOST_GROUPS = 64
"""So many layers are measured one by one; of more, those of one module are taken together."""


@dataclass(frozen=True)
class Layer:
    """Weighted nodes that are measured together, mostly one.

    macs_share: of the multiply-accumulates in all weighted nodes, 0..1. agreement, rms: of the logits with
    these nodes alone quantized, as in `Made`.
    """

    nodes: tuple[str, ...]
    macs_share: float
    agreement: float
    rms: float

    def told(self) -> dict[str, Any]:
        return {
            "layers": list(self.nodes),
            "macs_share": round(self.macs_share, 4),
            "agreement": self.agreement,
            "logit_rms_relative_to_std": self.rms,
        }


def ranked(made: Made, bench: Bench) -> list[Layer]:
    """The quantized layers of a file, the one that hurts most first.

    Looks at the first `quantize.sensitivity_images` of the held-out images, which are balanced over the
    classes as the whole is.
    """
    chosen = bench.holdout[: bench.settings.sensitivity_images]
    reference = bench.float_holdout[: len(chosen)]
    macs = macs_by_node(made.source)
    everything = {node.name for node in made.source.graph.node}
    groups = grouped(quantized_layers(made.model), MOST_GROUPS)
    found = []
    for done, nodes in enumerate(groups):
        bench.progress.update(done, len(groups), "layers", measuring=f"{made.recipe.name}, {nodes[0]}")
        model = quantized(
            made.source,
            made.ranges,
            made.recipe,
            per_channel=bench.settings.per_channel,
            skipped=everything.difference(nodes),
            card=bench.card,
        )
        session = open_session(content(model), optimise=made.optimise)
        logits = run_logits(session, bench.data.train.images, chosen, bench.card)
        share = sum(macs[node] for node in nodes) / sum(macs.values())
        found.append(Layer(nodes, share, *likeness(logits, reference)))
    return sorted(found, key=lambda layer: -layer.rms)


def grouped(names: Sequence[str], most: int) -> list[tuple[str, ...]]:
    """Names such as `blocks.0.conv/Conv`, each for itself; if there are more than `most`, those of one module
    together, of one module above that, and so on; at last neighbours in even parts."""
    depth = max((_depth(name) for name in names), default=0)
    for parts in range(depth, 0, -1):
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(_module(name, parts), []).append(name)
        if len(groups) <= most:
            return [tuple(group) for group in groups.values()]
    size = -(-len(names) // most)
    return [tuple(names[start : start + size]) for start in range(0, len(names), size)]


def _depth(name: str) -> int:
    return len(name.replace("/", ".").split("."))


def _module(name: str, parts: int) -> str:
    return ".".join(name.replace("/", ".").split(".")[:parts])
