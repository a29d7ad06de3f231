"""Compare two ONNX files on the same inputs, and find where their values begin to differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from pipeline.errors import UsageError
from stages.debugging.bisecting import bisect
from stages.debugging.minimal_model import Case
from stages.debugging.pairing import pair_by_name
from stages.debugging.step_report import conclude
from stages.onnx_files.graphs import Graph, read_graph, values_of

TOLERANCE = 1e-3


def debug_pair(
    suspect: Path, reference: Path, inputs: list[str], tolerance: float | None, output: Path
) -> dict[str, Any]:
    """Compare two ONNX files, and write a minimal model if they diverge.

    Args:
        suspect: The ONNX file that may be wrong.
        reference: The ONNX file that is right.
        inputs: `FILE.npy`, in the order of the graph's inputs, or `NAME=FILE.npy`.
        tolerance: The tolerance; None uses `TOLERANCE`.
        output: The folder of the minimal model.

    Returns:
        The JSON-ready result, with one step.

    Raises:
        UsageError: If a file cannot be read or does not fit the graph.
    """
    graph, other = read_graph(suspect), read_graph(reference)
    arrays = _arrays(inputs, graph, suspect)
    feeds = _as_typed(graph, arrays)
    # The reference gets the same arrays: by name where it has the name, else by position.
    reference_arrays = {
        name: arrays[name] if name in arrays else list(arrays.values())[position]
        for position, name in enumerate(other.inputs)
        if name in arrays or position < len(arrays)
    }
    reference_feeds = _as_typed(other, reference_arrays)
    for compared, arrays_by_name, file in ((graph, feeds, suspect), (other, reference_feeds, reference)):
        _require_running(compared, arrays_by_name, file)
    limit = TOLERANCE if tolerance is None else tolerance
    step = compare_graphs(
        f"{reference.name} -> {suspect.name}", graph, feeds, other, reference_feeds, limit, output
    )
    return {"healthy": step["healthy"], "steps": [step]}


def compare_graphs(
    title: str,
    graph: Graph,
    feeds: Mapping[str, np.ndarray],
    other: Graph,
    other_feeds: Mapping[str, np.ndarray],
    tolerance: float,
    output: Path,
) -> dict[str, Any]:
    """Compare a graph with its reference in ONNX Runtime, node by node.

    Args:
        title: The step's name.
        graph: The suspect's graph.
        feeds: The suspect's inputs by name.
        other: The reference's graph.
        other_feeds: The reference's inputs by name.
        tolerance: Largest root mean square difference of a layer, as a share of the reference's spread.
        output: The folder of the minimal model.

    Returns:
        The step's JSON-ready report.
    """
    batch = max((len(array) for array in feeds.values() if array.ndim), default=1)
    case = Case(
        title=title,
        finding=bisect(
            graph,
            pair_by_name(other, graph),
            lambda names: values_of(other, names, other_feeds),
            lambda names: values_of(graph, names, feeds),
            tolerance=tolerance,
            batch=batch,
        ),
        graph=graph,
        reference_graph=other,
        suspect=lambda names: values_of(graph, names, feeds),
        reference=lambda names: values_of(other, names, other_feeds),
        tolerance=tolerance,
    )
    return conclude(case, output)


def _arrays(inputs: list[str], graph: Graph, file: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for position, argument in enumerate(inputs):
        name, equals, path = argument.partition("=")
        if not equals:
            path = argument
            name = graph.inputs[position] if position < len(graph.inputs) else ""
        if name not in graph.inputs:
            raise UsageError(
                f"--inputs {argument}: {file.name} has no such input",
                where=str(file),
                why=f"its inputs are {', '.join(graph.inputs)}",
                hint="give one .npy for each, in this order, or NAME=FILE.npy",
            )
        try:
            arrays[name] = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UsageError(
                "The inputs cannot be read", where=path, why=str(error), hint="pass a file of numpy.save"
            ) from error
    absent = [name for name in graph.inputs if name not in arrays]
    if absent:
        raise UsageError(
            f"{file.name} needs more inputs than were given",
            where=str(file),
            why=f"nothing was given for {', '.join(absent)}",
            hint="add --inputs NAME=FILE.npy for each",
        )
    return arrays


def _as_typed(graph: Graph, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays in the types of the graph's inputs: an fp16 file gets the same numbers in fp16."""
    types = {value.name: value.type.tensor_type.elem_type for value in graph.model.graph.input}
    return {
        name: np.ascontiguousarray(array, dtype=helper.tensor_dtype_to_np_dtype(types[name]))
        for name, array in arrays.items()
    }


def _require_running(graph: Graph, feeds: Mapping[str, np.ndarray], file: Path) -> None:
    try:
        values_of(graph, graph.outputs, feeds)
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise UsageError(
            f"{file.name} does not run on these inputs",
            where=str(file),
            why=(str(error).splitlines() or [type(error).__name__])[0],
            hint="give arrays of the shapes that its inputs declare",
        ) from error
