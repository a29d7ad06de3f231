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
from stages.onnx_files.histograms import Histograms
from stages.onnx_files.metadata import INPUT
from stages.onnx_files.sessions import open_session

GROUP = 16
"""Images whose extremes are taken together by moving_average, before the mean over the groups."""

ALIKE = 1e-3
"""Of a range: a quarter of one of its 255 steps."""

_LOW, _HIGH = ":min", ":max"


@dataclass(frozen=True)
class Method:
    """A way to find the range of an activation.

    minmax: the lowest and the highest value of all. moving_average: the mean over groups of 16
    images of the groups' extremes, which one odd image moves little. percentile: the range that
    holds `percentile` per cent of the values, as much cut off at either end. entropy: the range
    whose 8-bit form loses least information (Kullback-Leibler divergence; S. Migacz, "8-bit
    inference with TensorRT", GTC 2017).
    """

    name: str
    percentile: float = 100.0

    def __str__(self) -> str:
        return f"percentile {self.percentile:g}" if self.name == "percentile" else self.name


@dataclass(frozen=True)
class Ranges:
    """low, high: float64 (tensors,) in the order of `tensors`. method: how they were found."""

    tensors: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    method: Method

    def constant(self) -> list[str]:
        """Tensors that are the same number for every image: they carry nothing."""
        return [
            name for name, low, high in zip(self.tensors, self.low, self.high, strict=True) if low == high
        ]

    def alike(self, other: Ranges) -> bool:
        """Whether no end differs by more than `ALIKE` of its range: INT8 files made of both are the same,
        but for a rounding here and there."""
        width = np.maximum(self.high - self.low, other.high - other.low)
        moved = np.maximum(np.abs(self.low - other.low), np.abs(self.high - other.high))
        return bool((moved <= ALIKE * width).all())


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
    model: onnx.ModelProto, tensors: Sequence[str], feeds: Feeds, methods: Sequence[Method]
) -> dict[Method, Ranges]:
    """The range of each tensor over the images by each of the methods, in the order of `methods`.

    The images are run once for extremes, and once more if a method needs histograms, however many do.

    Raises StageError if a tensor takes a value that is not finite, or the input never changes.
    """
    lows, highs = _extremes(model, tensors, feeds)
    _require_usable(tensors, lows, highs)
    low, high = lows.min(axis=0), highs.max(axis=0)
    histograms = Histograms(low, high)
    if any(method.name in ("percentile", "entropy") for method in methods):
        for values in _activations(model, tensors, feeds):
            for index, value in enumerate(values):
                histograms.add(index, value)
    found = {}
    for method in methods:
        if method.name == "minmax":
            span = low, high
        elif method.name == "moving_average":
            span = _grouped(lows, np.min), _grouped(highs, np.max)
        elif method.name == "percentile":
            span = histograms.percentile(method.percentile)
        elif method.name == "entropy":
            span = histograms.entropy()
        else:
            raise ValueError(f"no calibration method is called {method.name!r}")
        low_ends, high_ends = (side.astype(np.float64) for side in span)
        found[method] = Ranges(tuple(tensors), low_ends, high_ends, method)
    return found


def _grouped(extremes: np.ndarray, extreme: Callable[..., np.ndarray]) -> np.ndarray:
    """float32 (tensors,): the mean over groups of images of the groups' extremes."""
    starts = range(0, len(extremes), GROUP)
    return np.mean([extreme(extremes[start : start + GROUP], axis=0) for start in starts], axis=0)


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
            hint="the network overflows: lower the learning rate, or set clip_grad, and train again",
        )
    if (lows.min(axis=0) == highs.max(axis=0)).all():
        raise StageError(
            "No activation of the network ever changes.",
            where="stage quantize, calibration",
            why=f"all {len(tensors)} tensors are constant over {len(lows)} training images",
            hint="the network is untrained, or the images are blank",
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
