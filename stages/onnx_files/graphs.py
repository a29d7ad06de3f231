"""An ONNX graph with the producer and the readers of each value, and a way to compute any value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from pipeline.errors import UsageError
from stages.onnx_files.sessions import open_session

CHUNK_TENSORS = 64
CHUNK_ELEMENTS = 2**25
"""Largest number of intermediate outputs in one run, and of numbers in them."""

_UNKNOWN_ELEMENTS = 2**20


@dataclass(frozen=True)
class Graph:
    """A model without local functions, with indexes by value name.

    Attributes:
        model: The model.
        producers: The position of the node that computes each value.
        readers: The positions of the nodes that read each value.
        constants: The tensors of the initialisers and Constant nodes.
    """

    model: onnx.ModelProto
    producers: Mapping[str, int]
    readers: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, onnx.TensorProto]

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """Return the nodes in topological order."""
        return self.model.graph.node

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return the names of the inputs that a run requires."""
        return tuple(value.name for value in self.model.graph.input if value.name not in self.constants)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the outputs."""
        return tuple(value.name for value in self.model.graph.output)

    @property
    def values(self) -> tuple[str, ...]:
        """Return the names of all nodes' results but constants, in topological order."""
        return tuple(
            name for node in self.nodes for name in node.output if name and name not in self.constants
        )

    def name_of(self, position: int) -> str:
        """Return a node's name; a node without a name gets its operator and position."""
        node = self.nodes[position]
        return node.name or f"{node.op_type}_{position}"


def read_graph(file: Path | onnx.ModelProto) -> Graph:
    """Load an ONNX file, or copy a model, and index its values.

    Raises:
        UsageError: If the file is missing or is no ONNX file.
    """
    if isinstance(file, Path):
        try:
            model = onnx.load(file)
        except Exception as error:  # protobuf's, onnx's and the operating system's
            raise UsageError(
                "The ONNX file cannot be read",
                where=str(file),
                why=(str(error).splitlines() or [type(error).__name__])[0],
                hint="pass an .onnx file, with its external data in the same folder",
            ) from error
    else:
        model = onnx.ModelProto()
        model.CopyFrom(file)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producers: dict[str, int] = {}
    readers: dict[str, list[int]] = {}
    for position, node in enumerate(model.graph.node):
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
        for name in filter(None, node.output):
            producers[name] = position
        for name in filter(None, node.input):
            readers.setdefault(name, []).append(position)
    return Graph(model, producers, {name: tuple(nodes) for name, nodes in readers.items()}, constants)


def values_of(graph: Graph, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute values with ONNX Runtime, node by node and unoptimised.

    Args:
        graph: The graph.
        names: Names of values; inputs and constants of the graph are returned as they are.
        feeds: The graph's inputs by name.

    Returns:
        The values by name.
    """
    known = {name: np.asarray(feeds[name]) for name in names if name in feeds}
    known |= {
        name: onnx.numpy_helper.to_array(graph.constants[name]) for name in names if name in graph.constants
    }
    computed = [name for name in dict.fromkeys(names) if name not in known]
    if not computed:
        return known
    probe = onnx.ModelProto()
    probe.CopyFrom(graph.model)
    present = set(graph.outputs)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in computed if name not in present)
    session = open_session(probe.SerializeToString(), optimise=False)
    return known | dict(zip(computed, session.run(computed, dict(feeds)), strict=True))


def chunks(graph: Graph, names: Sequence[str], batch: int) -> Iterator[list[str]]:
    """Yield the names in order, in pieces that fit into memory in one run.

    Args:
        graph: The graph of the values.
        names: Names of values.
        batch: Images in a run.
    """
    sizes = _sizes(graph, batch)
    piece: list[str] = []
    elements = 0
    for name in names:
        size = sizes.get(name, _UNKNOWN_ELEMENTS)
        if piece and (len(piece) == CHUNK_TENSORS or elements + size > CHUNK_ELEMENTS):
            yield piece
            piece, elements = [], 0
        piece.append(name)
        elements += size
    if piece:
        yield piece


def _sizes(graph: Graph, batch: int) -> dict[str, int]:
    """Return the number of elements of each value whose shape is known, with the batch filled in."""
    try:
        inferred = onnx.shape_inference.infer_shapes(graph.model)
    except Exception:  # private operators: then only the shapes in the file are known
        inferred = graph.model
    return {
        value.name: math.prod(dim.dim_value or batch for dim in value.type.tensor_type.shape.dim)
        for value in (*inferred.graph.value_info, *inferred.graph.output)
        if value.type.tensor_type.HasField("shape")
    }
