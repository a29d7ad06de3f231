"""The range of every activation of a graph, found by running calibration images through it.

One image at a time: what is found does not depend on a batch size, and memory holds the
activations of one image, however many images there are. Extremes are taken inside the graph;
the histogram methods pass over the images a second time, now that the extremes are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from pipeline.errors import StageError
from stages.onnx_files.metadata import INPUT
from stages.onnx_files.sessions import open_session

GROUP = 16
"""Images whose extremes are taken together by moving_average, before the mean over the groups."""

BINS = 4096
"""Histogram bins of percentile, over a tensor's whole range."""

ENTROPY_BINS = 2048
ENTROPY_LEVELS = 128
ENTROPY_STRIDE = 8
"""Bins of absolute values, levels of INT8 on one side of zero, and bins between two candidates."""

_LOW, _HIGH = ":min", ":max"


@dataclass(frozen=True)
class Ranges:
    """low, high: float64 (tensors,) in the order of `tensors`."""

    tensors: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray

    def constant(self) -> list[str]:
        """Tensors that are the same number for every image: they carry nothing."""
        return [
            name for name, low, high in zip(self.tensors, self.low, self.high, strict=True) if low == high
        ]


Feeds = Callable[[], Iterable[np.ndarray]]
"""Gives the calibration images anew each time: one array a run, batch 1, as the input takes it."""


def float_activations(model: onnx.ModelProto, op_types: Sequence[str], skipped: set[str]) -> tuple[str, ...]:
    """Names of the float tensors at the nodes of these types, in graph order, without weights.

    model: with shapes inferred. skipped: names of nodes that do not count.
    """
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    floats -= {tensor.name for tensor in model.graph.initializer}
    found = dict.fromkeys(
        name
        for node in model.graph.node
        if node.op_type in op_types and node.name not in skipped
        for name in (*node.input, *node.output)
        if name in floats
    )
    return tuple(found)


def find_ranges(
    model: onnx.ModelProto, tensors: Sequence[str], feeds: Feeds, *, method: str, percentile: float
) -> Ranges:
    """The range of each tensor over the images, by one of four methods.

    minmax: the lowest and the highest value of all. moving_average: the mean over groups of 16
    images of the groups' extremes, which one odd image moves little. percentile: the range that
    holds `percentile` per cent of the values, as much cut off at either end. entropy: the range
    whose 8-bit form loses least information (Kullback-Leibler divergence; S. Migacz, "8-bit
    inference with TensorRT", GTC 2017).

    Raises StageError if a tensor takes a value that is not finite, or the input never changes.
    """
    lows, highs = _extremes(model, tensors, feeds)
    _require_usable(tensors, lows, highs)
    low, high = lows.min(axis=0), highs.max(axis=0)
    if method == "moving_average":
        groups = range(0, len(lows), GROUP)
        low = np.mean([lows[start : start + GROUP].min(axis=0) for start in groups], axis=0)
        high = np.mean([highs[start : start + GROUP].max(axis=0) for start in groups], axis=0)
    elif method == "percentile":
        low, high = _by_percentile(model, tensors, feeds, low, high, percentile)
    elif method == "entropy":
        low, high = _by_entropy(model, tensors, feeds, low, high)
    elif method != "minmax":
        raise ValueError(f"no calibration method is called {method!r}")
    return Ranges(tuple(tensors), low.astype(np.float64), high.astype(np.float64))


def _extremes(model: onnx.ModelProto, tensors: Sequence[str], feeds: Feeds) -> tuple[np.ndarray, np.ndarray]:
    """float32 (images, tensors): the lowest and the highest value of each tensor in each image."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    for name in tensors:
        for suffix, reduction in ((_LOW, "ReduceMin"), (_HIGH, "ReduceMax")):
            probed.graph.node.append(
                helper.make_node(reduction, [name], [name + suffix], name=name + suffix, keepdims=0)
            )
            probed.graph.output.append(helper.make_tensor_value_info(name + suffix, TensorProto.FLOAT, []))
    session = open_session(probed.SerializeToString(), optimise=False)
    outputs = [name + suffix for suffix in (_LOW, _HIGH) for name in tensors]
    rows = [np.array(session.run(outputs, {INPUT: image}), dtype=np.float32) for image in feeds()]
    found = np.stack(rows)
    return found[:, : len(tensors)], found[:, len(tensors) :]


def _require_usable(tensors: Sequence[str], lows: np.ndarray, highs: np.ndarray) -> None:
    finite = np.isfinite(lows).all(axis=0) & np.isfinite(highs).all(axis=0)
    if not finite.all():
        bad = [name for name, good in zip(tensors, finite, strict=True) if not good]
        raise StageError(
            "Calibration met values that are not finite.",
            where=f"stage quantize, tensor {bad[0]}" + (f" and {len(bad) - 1} more" if len(bad) > 1 else ""),
            why="found NaN or infinity in the float file on training images",
            mend="the network overflows: lower the learning rate, or set clip_grad, and train again",
        )
    if (lows.min(axis=0) == highs.max(axis=0)).all():
        raise StageError(
            "No activation of the network ever changes.",
            where="stage quantize, calibration",
            why=f"all {len(tensors)} tensors are constant over {len(lows)} training images",
            mend="the network is untrained, or the images are blank",
        )


def _activations(model: onnx.ModelProto, tensors: Sequence[str], feeds: Feeds) -> Iterable[list[np.ndarray]]:
    """For each image the values of every tensor."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    for name in tensors:
        # A fresh name, since a graph's input cannot be its output too.
        probed.graph.node.append(helper.make_node("Identity", [name], [name + _HIGH], name=name + _HIGH))
        probed.graph.output.append(helper.make_tensor_value_info(name + _HIGH, TensorProto.FLOAT, None))
    session = open_session(probed.SerializeToString(), optimise=False)
    outputs = [name + _HIGH for name in tensors]
    for image in feeds():
        yield session.run(outputs, {INPUT: image})


def _by_percentile(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    feeds: Feeds,
    low: np.ndarray,
    high: np.ndarray,
    percentile: float,
) -> tuple[np.ndarray, np.ndarray]:
    counts = np.zeros((len(tensors), BINS), dtype=np.int64)
    for values in _activations(model, tensors, feeds):
        for index, value in enumerate(values):
            if low[index] < high[index]:
                counts[index] += np.histogram(value, BINS, (low[index], high[index]))[0]
    cut = (100.0 - percentile) / 200.0
    found_low, found_high = low.astype(np.float64), high.astype(np.float64)
    for index, count in enumerate(counts):
        if not count.any():
            continue
        edges = np.linspace(low[index], high[index], BINS + 1)
        share = np.cumsum(count) / count.sum()
        first = int(np.searchsorted(share, cut, side="right"))
        last = int(np.searchsorted(share, 1.0 - cut, side="left"))
        found_low[index], found_high[index] = edges[min(first, last)], edges[min(last, BINS - 1) + 1]
    return found_low, found_high


def _by_entropy(
    model: onnx.ModelProto, tensors: Sequence[str], feeds: Feeds, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    largest = np.maximum(np.abs(low), np.abs(high)).astype(np.float64)
    counts = np.zeros((len(tensors), ENTROPY_BINS), dtype=np.int64)
    for values in _activations(model, tensors, feeds):
        for index, value in enumerate(values):
            if low[index] < high[index]:
                counts[index] += np.histogram(np.abs(value), ENTROPY_BINS, (0.0, largest[index]))[0]
    threshold = np.array([entropy_bins(count) / ENTROPY_BINS for count in counts], dtype=np.float64) * largest
    return np.maximum(low, -threshold), np.minimum(high, threshold)


def entropy_bins(count: np.ndarray) -> int:
    """How many of the histogram's bins to keep, so that 128 levels tell most of what it told.

    count: int64 (bins,), of absolute values from 0 up. What lies beyond the kept bins is clipped
    into the last. The first bin, which ReLU fills with zeros, counts like its neighbour.
    """
    count = count.astype(np.float64)
    if len(count) > 1:
        count[0] = count[1]
    if not count.any():
        return len(count)
    candidates = range(ENTROPY_LEVELS, len(count) + 1, ENTROPY_STRIDE)
    return min(candidates, key=lambda kept: (_divergence(count, kept), -kept))


def _divergence(count: np.ndarray, kept: int) -> float:
    """Kullback-Leibler divergence of the clipped histogram from its form on 128 levels."""
    reference = count[:kept].copy()
    occupied = reference > 0
    reference[-1] += count[kept:].sum()
    if not occupied.any():
        return float("inf")
    level = np.arange(kept) * ENTROPY_LEVELS // kept
    mass = np.bincount(level, weights=count[:kept], minlength=ENTROPY_LEVELS)
    spread = np.bincount(level, weights=occupied, minlength=ENTROPY_LEVELS)
    coarse = np.where(occupied, mass[level] / np.maximum(spread[level], 1.0), 0.0)
    wanted, had = reference / reference.sum(), coarse / coarse.sum()
    both = wanted > 0
    if (had[both] <= 0).any():
        return float("inf")
    return float(np.sum(wanted[both] * np.log(wanted[both] / had[both])))
