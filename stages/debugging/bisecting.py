"""Find the first layer of a graph whose values go wrong and stay wrong.

Every value of the suspect that has a counterpart in the reference is compared on the same images.

* A layer *diverges* if the root mean square of the differences exceeds `tolerance` times the spread of the
  reference's values, or if it has NaN or infinities where the reference has numbers.
* A divergence *counts* only if it persists: a path leads from the layer to an output that diverges, through
  layers that differ by at least a quarter of the tolerance (or that have no counterpart). The limit is a
  quarter because a sum with correct values (a residual) makes a difference relatively small for some layers.
* Other divergences are *healed* further on, for example a ReLU that was folded into a quantizer's clipping,
  or rounding noise that is averaged away. They are only counted.

The first divergence is the earliest layer that counts, in topological order: its inputs agree, or their
differences heal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from stages.debugging.pairing import Pairs
from stages.onnx_files.graphs import Graph, chunks

Values = Callable[[Sequence[str]], Mapping[str, np.ndarray]]
"""Computes the values of these names, on the same images every time."""

HEALED_SHARE = 0.25
"""Share of the tolerance below which a difference is healed."""

CONTEXT_LAYERS = 4
"""Layers that are listed before the first divergence, and after it."""


@dataclass(frozen=True)
class LayerDifference:
    """The differences of one value of the suspect from its counterpart.

    Attributes:
        position: The node's position in the suspect's graph.
        node: The node's name.
        op: The node's operator.
        value: The value's name in the suspect.
        reference: The counterpart's name in the reference.
        shape: The value's shape.
        max_abs: Largest difference.
        relative: Root mean square of the differences over `spread`.
        spread: Standard deviation of the reference's values (their root mean square if all are equal).
        largest: Largest absolute value of the reference.
        not_finite: Number of NaN and infinities where the reference has numbers.
        diverges: Whether `relative` exceeds the tolerance.
        from_inputs: Largest `relative` of the node's nearest compared inputs; None without any.
    """

    position: int
    node: str
    op: str
    value: str
    reference: str
    shape: tuple[int, ...]
    max_abs: float
    relative: float
    spread: float
    largest: float
    not_finite: int
    diverges: bool
    from_inputs: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the fields with four digits, JSON-ready."""
        fields = {
            name: _json_number(value) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }
        return {**fields, "shape": list(self.shape)}


@dataclass(frozen=True)
class Finding:
    """The result of comparing two graphs.

    Attributes:
        layers: All compared layers in topological order.
        first: The first divergence that counts, or None.
        healed: Number of layers that diverge but do not count.
        without: Number of the suspect's values without a counterpart.
    """

    layers: tuple[LayerDifference, ...]
    first: LayerDifference | None
    healed: int
    without: int

    def around(self) -> tuple[LayerDifference, ...]:
        """Return the layers near the first divergence; for a healthy pair, those that differ most."""
        if self.first is None:
            worst = sorted(self.layers, key=lambda layer: -layer.relative)[: 2 * CONTEXT_LAYERS]
            return tuple(sorted(worst, key=lambda layer: layer.position))
        index = self.layers.index(self.first)
        return self.layers[max(0, index - CONTEXT_LAYERS) : index + CONTEXT_LAYERS + 1]


def bisect(
    graph: Graph, pairs: Pairs, reference: Values, suspect: Values, *, tolerance: float, batch: int
) -> Finding:
    """Compare the values of two graphs and find the first divergence.

    Args:
        graph: The suspect's graph.
        pairs: The counterparts of the suspect's values.
        reference: Computes values of the reference.
        suspect: Computes values of the suspect.
        tolerance: Largest root mean square difference, as a share of the reference's spread.
        batch: Number of images that the values are computed on, to limit the size of a run.
    """
    names = [name for name in graph.values if name in pairs]
    layers: dict[str, LayerDifference] = {}
    for chunk in chunks(graph, names, batch):
        reference_values = reference(list(dict.fromkeys(other for name in chunk for other in pairs[name])))
        suspect_values = suspect(chunk)
        for name in chunk:
            layer = _nearest(graph, name, suspect_values, reference_values, pairs[name], tolerance)
            if layer is not None:
                layers[name] = layer
    layers = {
        name: replace(layer, from_inputs=_from_inputs(graph, layer, layers)) for name, layer in layers.items()
    }
    persists = _persistence(graph, layers, HEALED_SHARE * tolerance)
    diverging = [layer for layer in layers.values() if layer.diverges]
    counting = [layer for layer in diverging if persists[layer.value]]
    return Finding(
        layers=tuple(layers.values()),
        first=counting[0] if counting else None,
        healed=len(diverging) - len(counting),
        without=len(graph.values) - len(layers),
    )


def _nearest(
    graph: Graph,
    name: str,
    suspect_values: Mapping[str, np.ndarray],
    reference_values: Mapping[str, np.ndarray],
    candidates: Sequence[str],
    tolerance: float,
) -> LayerDifference | None:
    """Compare a value with its nearest candidate; return None if no candidate has the same shape."""
    if name not in suspect_values:
        return None
    layers = [
        _difference(graph, name, other, reference_values[other], suspect_values[name], tolerance)
        for other in candidates
        if other in reference_values
        and reference_values[other].shape == suspect_values[name].shape
        and suspect_values[name].size
    ]
    return min(layers, key=lambda layer: layer.relative, default=None)


def _difference(
    graph: Graph,
    name: str,
    other: str,
    reference_value: np.ndarray,
    suspect_value: np.ndarray,
    tolerance: float,
) -> LayerDifference:
    reference, value = reference_value.astype(np.float64), suspect_value.astype(np.float64)
    lost = np.isfinite(reference) & ~np.isfinite(value)
    both = np.isfinite(reference) & np.isfinite(value)
    difference = np.abs(reference - value, where=both, out=np.zeros_like(reference))
    numbers = reference[np.isfinite(reference)]
    spread, size = (float(numbers.std()), float(np.sqrt(np.mean(numbers**2)))) if numbers.size else (0.0, 0.0)
    yardstick = spread if spread > 1e-6 * size else size or 1.0
    rms = float(np.sqrt(np.mean(difference**2)))
    relative = float("inf") if lost.any() else rms / yardstick
    position = graph.producers[name]
    return LayerDifference(
        position=position,
        node=graph.name_of(position),
        op=graph.nodes[position].op_type,
        value=name,
        reference=other,
        shape=tuple(value.shape),
        max_abs=float("inf") if lost.any() else float(difference.max()),
        relative=relative,
        spread=yardstick,
        largest=float(np.abs(numbers).max()) if numbers.size else 0.0,
        not_finite=int(lost.sum()),
        diverges=not relative <= tolerance,
    )


def _persistence(graph: Graph, layers: Mapping[str, LayerDifference], least: float) -> dict[str, bool]:
    """Return for every value whether its difference reaches an output that diverges, never below `least`."""
    outputs = set(graph.outputs)
    persists: dict[str, bool] = {}
    for name in reversed([name for node in graph.nodes for name in node.output if name]):
        layer = layers.get(name)
        if layer is not None and layer.relative <= least:
            persists[name] = False
            continue
        if name in outputs and layer is not None and layer.diverges:
            persists[name] = True
            continue
        persists[name] = any(
            persists.get(result, False)
            for reader in graph.readers.get(name, ())
            for result in graph.nodes[reader].output
        )
    return persists


def _from_inputs(graph: Graph, layer: LayerDifference, layers: Mapping[str, LayerDifference]) -> float | None:
    """Return the largest relative difference of the nearest compared values that the layer reads."""
    nearest = [layers[name].relative for name in nearest_compared(graph, layer.value, layers)]
    return max(nearest, default=None)


def nearest_compared(graph: Graph, value: str, layers: Mapping[str, LayerDifference]) -> list[str]:
    """Return the nearest compared values that a value is computed from.

    Args:
        graph: The suspect's graph.
        value: The value's name.
        layers: The compared values by name.

    Returns:
        The names of the values with a path to `value` without another compared value on it.
    """
    nearest: dict[str, None] = {}
    seen: set[str] = set()
    open_ends = list(graph.nodes[graph.producers[value]].input)
    while open_ends:
        name = open_ends.pop(0)
        if name in seen or name not in graph.producers:
            continue
        seen.add(name)
        if name in layers:
            nearest[name] = None
        else:
            open_ends.extend(graph.nodes[graph.producers[name]].input)
    return list(nearest)


def _json_number(value: float) -> float | None:
    """Return None for infinity, which JSON does not have; `not_finite` counts it."""
    return float(f"{value:.4g}") if np.isfinite(value) else None
