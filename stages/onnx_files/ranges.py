"""Measure the range of every activation of a graph on calibration images.

Images are run one at a time: the ranges do not depend on a batch size, and memory holds the activations of
only one image. Extremes are computed inside the graph; the histogram methods need them and run the images a
second time.
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
"""Images in a group of moving_average; it averages the groups' extremes."""

EQUAL_TOLERANCE = 1e-3
"""Share of a range: a quarter of one of its 255 steps."""

_LOW, _HIGH = ":min", ":max"


@dataclass(frozen=True)
class Method:
    """A calibration method: a way to choose the range of an activation.

    * `minmax`: the lowest and the highest value.
    * `moving_average`: the mean of the extremes of groups of 16 images; one outlier changes it little.
    * `percentile`: the range that holds `percentile` per cent of the values, with equal shares cut off at
      both ends.
    * `entropy`: the range whose 8-bit form has the least Kullback-Leibler divergence (S. Migacz, "8-bit
      inference with TensorRT", GTC 2017).
    """

    name: str
    percentile: float = 100.0

    def __str__(self) -> str:
        return f"percentile {self.percentile:g}" if self.name == "percentile" else self.name


@dataclass(frozen=True)
class Ranges:
    """The ranges of a graph's activations.

    Attributes:
        tensors: The tensors' names.
        low: float64 (tensors,), the low ends.
        high: float64 (tensors,), the high ends.
        method: The calibration method.
    """

    tensors: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    method: Method

    def constant(self) -> list[str]:
        """Return the names of the tensors that hold one number for every image: they carry no information."""
        return [
            name for name, low, high in zip(self.tensors, self.low, self.high, strict=True) if low == high
        ]

    def alike(self, other: Ranges) -> bool:
        """Return whether no end differs by more than `EQUAL_TOLERANCE` of its range.

        INT8 files with such ranges are equal apart from a few roundings.
        """
        width = np.maximum(self.high - self.low, other.high - other.low)
        shift = np.maximum(np.abs(self.low - other.low), np.abs(self.high - other.high))
        return bool((shift <= EQUAL_TOLERANCE * width).all())


Feeds = Callable[[], Iterable[np.ndarray]]
"""Iterates over the calibration images from the start: one array a run, batch 1, in the input's format."""


def float_activations(model: onnx.ModelProto, op_types: Sequence[str], skipped: set[str]) -> tuple[str, ...]:
    """Return the names of the float activations at the nodes of these types, in graph order.

    Args:
        model: The graph with shapes inferred.
        op_types: Operators.
        skipped: Names of nodes to ignore.
    """
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    floats -= {tensor.name for tensor in model.graph.initializer}
    names = dict.fromkeys(
        name
        for node in model.graph.node
        if node.op_type in op_types and node.name not in skipped
        for name in (*node.input, *node.output)
        if name in floats
    )
    return tuple(names)


def find_ranges(
    model: onnx.ModelProto, tensors: Sequence[str], feeds: Feeds, methods: Sequence[Method]
) -> dict[Method, Ranges]:
    """Return the ranges of the tensors over the images by each method, in the order of `methods`.

    The images are run once for extremes, and once more if any method needs histograms.

    Args:
        model: The float graph.
        tensors: Names of float tensors.
        feeds: The calibration images.
        methods: The calibration methods.

    Raises:
        StageError: If a tensor has a value that is not finite, or no tensor ever changes.
    """
    lows, highs = _extremes(model, tensors, feeds)
    _require_usable(tensors, lows, highs)
    low, high = lows.min(axis=0), highs.max(axis=0)
    histograms = Histograms(low, high)
    if any(method.name in ("percentile", "entropy") for method in methods):
        for values in _activations(model, tensors, feeds):
            for index, value in enumerate(values):
                histograms.add(index, value)
    ranges = {}
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
        ranges[method] = Ranges(tuple(tensors), low_ends, high_ends, method)
    return ranges


def _grouped(extremes: np.ndarray, extreme: Callable[..., np.ndarray]) -> np.ndarray:
    """Return the mean of the extremes of groups of images: float32 (tensors,)."""
    starts = range(0, len(extremes), GROUP)
    return np.mean([extreme(extremes[start : start + GROUP], axis=0) for start in starts], axis=0)


def _extremes(model: onnx.ModelProto, tensors: Sequence[str], feeds: Feeds) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest value of each tensor in each image: float32 (images, tensors)."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    for name in tensors:
        for suffix, reduction in ((_LOW, "ReduceMin"), (_HIGH, "ReduceMax")):
            probe.graph.node.append(
                helper.make_node(reduction, [name], [name + suffix], name=name + suffix, keepdims=0)
            )
            probe.graph.output.append(helper.make_tensor_value_info(name + suffix, TensorProto.FLOAT, []))
    session = open_session(probe.SerializeToString(), optimise=False)
    outputs = [name + suffix for suffix in (_LOW, _HIGH) for name in tensors]
    rows = [np.array(session.run(outputs, {INPUT: image}), dtype=np.float32) for image in feeds()]
    extremes = np.stack(rows)
    return extremes[:, : len(tensors)], extremes[:, len(tensors) :]


def _require_usable(tensors: Sequence[str], lows: np.ndarray, highs: np.ndarray) -> None:
    finite = np.isfinite(lows).all(axis=0) & np.isfinite(highs).all(axis=0)
    if not finite.all():
        bad = [name for name, good in zip(tensors, finite, strict=True) if not good]
        raise StageError(
            "Calibration measured values that are not finite.",
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
    """Yield the values of every tensor for each image."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    for name in tensors:
        # A new name, since a graph's input cannot be its output too.
        probe.graph.node.append(helper.make_node("Identity", [name], [name + _HIGH], name=name + _HIGH))
        probe.graph.output.append(helper.make_tensor_value_info(name + _HIGH, TensorProto.FLOAT, None))
    session = open_session(probe.SerializeToString(), optimise=False)
    outputs = [name + _HIGH for name in tensors]
    for image in feeds():
        yield session.run(outputs, {INPUT: image})
