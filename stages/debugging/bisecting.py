"""The first layer of a graph whose values go wrong, and stay wrong.

Every value of the suspect that has a counterpart in the reference is compared on the same images. A
layer *diverges* if the root mean square of the differences exceeds `tolerance` times the spread of
the reference's values, or if it has NaN or infinities where the reference has numbers. It *counts*
only if the difference lives on: from it a way leads to an output that diverges, through layers that
differ by at least a quarter of the tolerance (or that have no counterpart). A quarter, because a sum
with values that are right (a residual) makes a difference relatively small for a while. What differs but
is healed further on (a ReLU that was folded into a quantizer's clipping, rounding noise that is averaged
away) is counted, no more. The first divergence is the earliest layer that counts, in topological order:
what goes into it agrees, or differs by what heals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from stages.debugging.pairing import Pairs
from stages.onnx_files.graphs import Graph, chunks

Values = Callable[[Sequence[str]], Mapping[str, np.ndarray]]
"""Gives the values of these names, on the same images every time."""

CARRIED = 0.25
"""Share of the tolerance below which a difference counts as healed."""

AROUND = 4
"""Layers shown before the first divergence, and after it."""


@dataclass(frozen=True)
class Layer:
    """One value of the suspect beside its counterpart.

    max_abs: largest difference. relative: root mean square of the differences over `spread`. spread:
    standard deviation of the reference's values (their root mean square if they are all equal).
    largest: of the reference's absolute values. not_finite: NaN and infinities where the reference
    has numbers. from_inputs: largest `relative` of the compared values that go into its node.
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
        told = {
            name: _json_number(value) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }
        return {**told, "shape": list(self.shape)}


@dataclass(frozen=True)
class Finding:
    """layers: all that were compared, in topological order. first: the first that counts, or None.
    healed: how many diverge but do not count. without: values of the suspect without a counterpart."""

    layers: tuple[Layer, ...]
    first: Layer | None
    healed: int
    without: int

    def around(self) -> tuple[Layer, ...]:
        """The layers about the first divergence; of a healthy pair the ones that differ most."""
        if self.first is None:
            worst = sorted(self.layers, key=lambda layer: -layer.relative)[: 2 * AROUND]
            return tuple(sorted(worst, key=lambda layer: layer.position))
        place = self.layers.index(self.first)
        return self.layers[max(0, place - AROUND) : place + AROUND + 1]


def bisect(
    graph: Graph, pairs: Pairs, reference: Values, suspect: Values, *, tolerance: float, batch: int
) -> Finding:
    """graph: the suspect's. batch: images behind the values, for the size of a run."""
    names = [name for name in graph.values if name in pairs]
    found: dict[str, Layer] = {}
    for chunk in chunks(graph, names, batch):
        wanted = reference(list(dict.fromkeys(other for name in chunk for other in pairs[name])))
        given = suspect(chunk)
        for name in chunk:
            layer = _nearest(graph, name, given, wanted, pairs[name], tolerance)
            if layer is not None:
                found[name] = layer
    found = {
        name: replace(layer, from_inputs=_from_inputs(graph, layer, found)) for name, layer in found.items()
    }
    lives = _lives_on(graph, found, CARRIED * tolerance)
    diverging = [layer for layer in found.values() if layer.diverges]
    counting = [layer for layer in diverging if lives[layer.value]]
    return Finding(
        layers=tuple(found.values()),
        first=counting[0] if counting else None,
        healed=len(diverging) - len(counting),
        without=len(graph.values) - len(found),
    )


def _nearest(
    graph: Graph,
    name: str,
    given: Mapping[str, np.ndarray],
    wanted: Mapping[str, np.ndarray],
    candidates: Sequence[str],
    tolerance: float,
) -> Layer | None:
    """None where nothing has the same shape: then they are not counterparts after all."""
    if name not in given:
        return None
    layers = [
        _layer(graph, name, other, wanted[other], given[name], tolerance)
        for other in candidates
        if other in wanted and wanted[other].shape == given[name].shape and given[name].size
    ]
    return min(layers, key=lambda layer: layer.relative, default=None)


def _layer(
    graph: Graph, name: str, other: str, wanted: np.ndarray, given: np.ndarray, tolerance: float
) -> Layer:
    reference, value = wanted.astype(np.float64), given.astype(np.float64)
    lost = np.isfinite(reference) & ~np.isfinite(value)
    both = np.isfinite(reference) & np.isfinite(value)
    difference = np.abs(reference - value, where=both, out=np.zeros_like(reference))
    numbers = reference[np.isfinite(reference)]
    spread, size = (float(numbers.std()), float(np.sqrt(np.mean(numbers**2)))) if numbers.size else (0.0, 0.0)
    yardstick = spread if spread > 1e-6 * size else size or 1.0
    rms = float(np.sqrt(np.mean(difference**2)))
    relative = float("inf") if lost.any() else rms / yardstick
    position = graph.producers[name]
    return Layer(
        position=position,
        node=graph.name_of(position),
        op=graph.nodes[position].op_type,
        value=name,
        reference=other,
        shape=tuple(given.shape),
        max_abs=float("inf") if lost.any() else float(difference.max()),
        relative=relative,
        spread=yardstick,
        largest=float(np.abs(numbers).max()) if numbers.size else 0.0,
        not_finite=int(lost.sum()),
        diverges=not relative <= tolerance,
    )


def _lives_on(graph: Graph, found: Mapping[str, Layer], least: float) -> dict[str, bool]:
    """For every value: whether a difference in it reaches an output that diverges, never below `least`."""
    outputs = set(graph.outputs)
    lives: dict[str, bool] = {}
    for name in reversed([name for node in graph.nodes for name in node.output if name]):
        layer = found.get(name)
        if layer is not None and layer.relative <= least:
            lives[name] = False
            continue
        if name in outputs and layer is not None and layer.diverges:
            lives[name] = True
            continue
        lives[name] = any(
            lives.get(result, False)
            for reader in graph.readers.get(name, ())
            for result in graph.nodes[reader].output
        )
    return lives


def _from_inputs(graph: Graph, layer: Layer, found: Mapping[str, Layer]) -> float | None:
    """Looks through what has no counterpart to the nearest values that have one."""
    nearest = [found[name].relative for name in nearest_compared(graph, layer.value, found)]
    return max(nearest, default=None)


def nearest_compared(graph: Graph, value: str, found: Mapping[str, Layer]) -> list[str]:
    """The compared values that a value is computed from, each by a way without another between."""
    nearest: dict[str, None] = {}
    seen: set[str] = set()
    open_ends = list(graph.nodes[graph.producers[value]].input)
    while open_ends:
        name = open_ends.pop(0)
        if name in seen or name not in graph.producers:
            continue
        seen.add(name)
        if name in found:
            nearest[name] = None
        else:
            open_ends.extend(graph.nodes[graph.producers[name]].input)
    return list(nearest)


def _json_number(value: float) -> float | None:
    """JSON knows no infinity: null, and `not_finite` tells."""
    return float(f"{value:.4g}") if np.isfinite(value) else None
