"""An ONNX graph as debugging looks at it: who makes a value, who reads it, and what it gives."""

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
"""At most so many intermediate outputs, and numbers in them, are asked of one run."""

_UNKNOWN_ELEMENTS = 2**20


@dataclass(frozen=True)
class Graph:
    """A model without local functions. producers: value -> its node's position. readers: value -> the
    positions of the nodes that take it. constants: what initialisers and Constant nodes hold."""

    model: onnx.ModelProto
    producers: Mapping[str, int]
    readers: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, onnx.TensorProto]

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        return self.model.graph.node

    @property
    def inputs(self) -> tuple[str, ...]:
        """What a run has to be given."""
        return tuple(value.name for value in self.model.graph.input if value.name not in self.constants)

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(value.name for value in self.model.graph.output)

    @property
    def values(self) -> tuple[str, ...]:
        """The results of all nodes but constants, in topological order."""
        return tuple(
            name for node in self.nodes for name in node.output if name and name not in self.constants
        )

    def name_of(self, position: int) -> str:
        """A node's name; one without is told by its operator and place."""
        node = self.nodes[position]
        return node.name or f"{node.op_type}_{position}"


def read_graph(file: Path | onnx.ModelProto) -> Graph:
    """Raises UsageError if the file is missing or is no ONNX file."""
    if isinstance(file, Path):
        try:
            model = onnx.load(file)
        except Exception as error:  # protobuf's, onnx's and the operating system's
            raise UsageError(
                "The ONNX file cannot be read",
                where=str(file),
                why=(str(error).splitlines() or [type(error).__name__])[0],
                hint="name an .onnx file as a converter wrote it, with its external data beside it",
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
    return Graph(model, producers, {name: tuple(found) for name, found in readers.items()}, constants)


def values_of(graph: Graph, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What these values are for the given inputs, by ONNX Runtime node by node, unoptimised.

    Values that the graph is given, or holds as constants, are simply handed back.
    """
    known = {name: np.asarray(feeds[name]) for name in names if name in feeds}
    known |= {
        name: onnx.numpy_helper.to_array(graph.constants[name]) for name in names if name in graph.constants
    }
    asked = [name for name in dict.fromkeys(names) if name not in known]
    if not asked:
        return known
    tapped = onnx.ModelProto()
    tapped.CopyFrom(graph.model)
    present = set(graph.outputs)
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked if name not in present)
    session = open_session(tapped.SerializeToString(), optimise=False)
    return known | dict(zip(asked, session.run(asked, dict(feeds)), strict=True))


def chunks(graph: Graph, names: Sequence[str], batch: int) -> Iterator[list[str]]:
    """The names in order, in pieces that one run can give without filling the memory."""
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
    """Numbers in each value whose shape is known but for the batch."""
    try:
        inferred = onnx.shape_inference.infer_shapes(graph.model)
    except Exception:  # private operators: then nothing is known but what the file says
        inferred = graph.model
    return {
        value.name: math.prod(dim.dim_value or batch for dim in value.type.tensor_type.shape.dim)
        for value in (*inferred.graph.value_info, *inferred.graph.output)
        if value.type.tensor_type.HasField("shape")
    }
