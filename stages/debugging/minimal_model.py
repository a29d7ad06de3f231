"""Write the smallest model that shows a divergence, with its inputs and the expected results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from stages.debugging.bisecting import Finding, Values, nearest_compared
from stages.onnx_files.graphs import Graph

SUSPECT, REFERENCE, README = "suspect.onnx", "reference.onnx", "README.md"


@dataclass(frozen=True)
class Case:
    """Two compared graphs.

    Attributes:
        title: The step's name, "reference -> suspect".
        finding: The comparison's result.
        graph: The suspect's graph.
        reference_graph: The reference's graph; None if the reference is no ONNX file.
        suspect: Computes values of the suspect.
        reference: Computes values of the reference.
        tolerance: The comparison's tolerance.
    """

    title: str
    finding: Finding
    graph: Graph
    reference_graph: Graph | None
    suspect: Values
    reference: Values
    tolerance: float


def write_minimal(case: Case, folder: Path) -> None:
    """Write the minimal model of a divergence into an empty folder.

    The folder contains the part of the suspect's graph (`suspect.onnx`), the suspect's values of its inputs,
    the results of the suspect (`found.npy`) and of the reference (`expected.npy`), and a README. If the same
    part of the reference takes the same inputs, it contains `reference.onnx` too.

    Args:
        case: The comparison, with a divergence.
        folder: The folder; it need not exist.
    """
    first = case.finding.first
    assert first is not None
    compared = {layer.value: layer for layer in case.finding.layers}
    boundary = nearest_compared(case.graph, first.value, compared)
    inputs = [*boundary, *_graph_inputs(case.graph, first.value, set(boundary))]
    values = case.suspect([*inputs, first.value])
    (folder / "inputs").mkdir(parents=True)
    for position, name in enumerate(inputs):
        np.save(folder / "inputs" / f"{position}.npy", values[name])
    expected = case.reference([first.reference])[first.reference]
    np.save(folder / "found.npy", values[first.value])
    np.save(folder / "expected.npy", expected)
    onnx.save(cut(case.graph, inputs, first.value, values), str(folder / SUSPECT))
    counterparts = [compared[name].reference if name in compared else name for name in inputs]
    has_reference = case.reference_graph is not None and _write_reference(
        case.reference_graph, counterparts, first.reference, case.reference, folder
    )
    (folder / README).write_text(_readme(case, inputs, has_reference), encoding="utf-8")


def cut(
    graph: Graph, inputs: Sequence[str], output: str, values: Mapping[str, np.ndarray]
) -> onnx.ModelProto:
    """Return the part of a graph from `inputs` to `output`.

    Args:
        graph: The graph.
        inputs: Names of the part's inputs.
        output: Name of the part's output.
        values: The values of the inputs and the output, for their types and shapes.
    """
    nodes = sorted(_needed_nodes(graph, output, set(inputs)))
    read = {name for position in nodes for name in graph.nodes[position].input} - set(inputs)
    result = onnx.ModelProto()
    result.CopyFrom(graph.model)
    del result.graph.node[:], result.graph.initializer[:], result.graph.input[:]
    del result.graph.output[:], result.graph.value_info[:], result.functions[:]
    result.graph.node.extend(graph.nodes[position] for position in nodes)
    result.graph.initializer.extend(tensor for tensor in graph.model.graph.initializer if tensor.name in read)
    result.graph.input.extend(_info(name, values[name]) for name in inputs)
    result.graph.output.append(_info(output, values[output]))
    return result


def _info(name: str, value: np.ndarray) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(name, kind, list(value.shape))


def _needed_nodes(graph: Graph, output: str, inputs: set[str]) -> set[int]:
    needed: set[int] = set()
    open_ends = [output]
    while open_ends:
        name = open_ends.pop()
        if name in inputs or name not in graph.producers or graph.producers[name] in needed:
            continue
        needed.add(graph.producers[name])
        open_ends.extend(graph.nodes[graph.producers[name]].input)
    return needed


def _graph_inputs(graph: Graph, output: str, boundary: set[str]) -> list[str]:
    """Return the graph's own inputs that the part reads."""
    read = {
        name for position in _needed_nodes(graph, output, boundary) for name in graph.nodes[position].input
    }
    return [name for name in graph.inputs if name in read]


def _write_reference(
    graph: Graph, inputs: Sequence[str], output: str, reference: Values, folder: Path
) -> bool:
    nodes = _needed_nodes(graph, output, set(inputs))
    read = {name for position in nodes for name in graph.nodes[position].input}
    if not nodes or output in inputs or not set(inputs) <= {*graph.producers, *graph.inputs}:
        return False
    if any(name in graph.inputs and name not in inputs for name in read):
        return False  # it would need more inputs than the suspect's part
    if len(set(inputs)) < len(inputs):
        return False
    onnx.save(cut(graph, inputs, output, reference([*inputs, output])), str(folder / REFERENCE))
    return True


def _readme(case: Case, inputs: Sequence[str], has_reference: bool) -> str:
    first = case.finding.first
    assert first is not None
    arrays = " ".join(f"--inputs inputs/{position}.npy" for position in range(len(inputs)))
    lines = [
        f"# {first.node}: the first layer that diverges",
        "",
        f"{case.title}: the values `{first.value}` of the node `{first.node}` ({first.op}) differ by at most "
        f"{first.max_abs:.4g}, in root mean square {first.relative:.4g} of their spread "
        f"({first.spread:.4g}); "
        f"{case.tolerance:g} is tolerated. {first.not_finite} of them are not finite where the reference is.",
        "",
        "| file | content |",
        "| --- | --- |",
        f"| `{SUSPECT}` | the part of the suspect from the last values that agree to these |",
        *([f"| `{REFERENCE}` | the same part of the reference |"] if has_reference else []),
        *(f"| `inputs/{position}.npy` | the suspect's `{name}` |" for position, name in enumerate(inputs)),
        "| `found.npy` | the suspect's result |",
        f"| `expected.npy` | the reference's result (`{first.reference}`) |",
        "",
        "## Reproduce it",
        "",
    ]
    if has_reference:
        lines += ["    kdpipe debug --onnx suspect.onnx --against reference.onnx " + arrays, ""]
    feeds = ", ".join(f"{name!r}: np.load('inputs/{position}.npy')" for position, name in enumerate(inputs))
    lines += [
        "In Python, with ONNX Runtime:",
        "",
        "    import numpy as np, onnxruntime as ort",
        "    options = ort.SessionOptions()",
        "    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL",
        f"    session = ort.InferenceSession('{SUSPECT}', options, providers=['CPUExecutionProvider'])",
        f"    found = session.run(None, {{{feeds}}})[0]",
        "    print(np.abs(found.astype('f8') - np.load('expected.npy')).max())",
        "",
    ]
    return "\n".join(lines)


def differing_weights(case: Case) -> list[tuple[str, float]]:
    """Return the first diverging node's weights that differ in the reference: name and largest difference."""
    first = case.finding.first
    if first is None or case.reference_graph is None:
        return []
    differences = []
    for name in case.graph.nodes[first.position].input:
        suspect_tensor, reference_tensor = (
            case.graph.constants.get(name),
            case.reference_graph.constants.get(name),
        )
        if suspect_tensor is None or reference_tensor is None:
            continue
        own, other = numpy_helper.to_array(suspect_tensor), numpy_helper.to_array(reference_tensor)
        if own.shape == other.shape and own.size and not np.array_equal(own, other):
            difference = np.abs(own.astype(np.float64) - other.astype(np.float64)).max()
            differences.append((name, float(difference)))
    return differences
