"""Export a PyTorch classifier to one ONNX graph: preprocessing, network, probabilities."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from pipeline.errors import StageError
from stages.models.network_input import MatrixResize
from stages.onnx_files.metadata import (
    BATCH,
    INPUT,
    LOGITS,
    PROBABILITIES,
    InputKind,
    image_shape,
    write_metadata,
)
from stages.onnx_files.quiet import quiet
from stages.onnx_files.tidying import tidy

SINGLE_FILE_LIMIT = 1_500_000_000
"""Bytes of weights that fit one file: protobuf allows 2 GiB, and graph optimisers need room."""

_NETWORK = "network."
_EXAMPLE_BATCH = 2


@dataclass(frozen=True)
class Exported:
    """An ONNX graph, and the network's parameters that it reads.

    Attributes:
        model: The graph.
        graph_parameters: Number of parameter elements that the graph reads, counted before the exporter folds
            normalisations into convolutions and merges equal tensors.
        network_parameters: Number of elements of all the network's parameters.
        unread: Names of the parameters that the graph does not read.
    """

    model: onnx.ModelProto
    graph_parameters: int
    network_parameters: int
    unread: tuple[str, ...]


class _Preprocessing(nn.Module):
    """Preprocessing from uint8 (n, H, W, C) to float32 (n, C, H, W).

    Computes `(x * scale - mean) / std` as one gain and one offset. The cast comes first: it is the only
    operation on uint8 that TensorRT supports.
    """

    gain: Tensor
    offset: Tensor

    def __init__(self, facts: Mapping[str, Any]) -> None:
        super().__init__()
        mean, std = np.asarray(facts["mean"], np.float64), np.asarray(facts["std"], np.float64)
        self.register_buffer("gain", torch.from_numpy(facts["scale"] / std).float())
        self.register_buffer("offset", torch.from_numpy(-mean / std).float())
        self.resize = _resize(facts)

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalised and resized images."""
        return self.resize((images.float() * self.gain + self.offset).permute(0, 3, 1, 2))


class _WithPreprocessing(nn.Module):
    def __init__(self, network: nn.Module, facts: Mapping[str, Any]) -> None:
        super().__init__()
        self.preprocessing = _Preprocessing(facts)
        self.network = network
        self.probabilities = nn.Softmax(dim=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and probabilities, each (n, classes)."""
        logits = self.network(self.preprocessing(images))
        return logits, self.probabilities(logits)


class _Plain(nn.Module):
    def __init__(self, network: nn.Module, facts: Mapping[str, Any]) -> None:
        super().__init__()
        self.preprocessing = _resize(facts)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (n, classes)."""
        return self.network(self.preprocessing(images))


def _resize(facts: Mapping[str, Any]) -> nn.Module:
    """Return the resize to the network's own size, if it has one. It commutes with the normalisation."""
    side = facts.get("network_size")
    return nn.Identity() if side is None else MatrixResize(facts["image_size"], side)


def export_network(
    network: nn.Module, card: Mapping[str, Any], *, role: str, opset: int, batch_max: int
) -> Exported:
    """Export a classifier to one self-contained ONNX graph with a dynamic batch.

    Equal weights give equal bytes.

    Args:
        network: Maps float32 (n, C, H, W) to logits (n, classes). It is moved to the CPU and set to eval
            mode, float32 and contiguous memory.
        card: `model.json` with `input` added; `input` decides whether the graph contains the preprocessing.
        role: "teacher" or "student", for messages.
        opset: ONNX operator set.
        batch_max: Upper bound that the batch dimension declares.

    Raises:
        StageError: If the network cannot be exported, is too large, or has weights that are not finite.
    """
    network = network.eval().cpu().float().to(memory_format=torch.contiguous_format)
    name = str(card.get("model", type(network).__name__))
    _require_exportable(network, role, name)
    kind: InputKind = card["input"]
    height, width, channels = image_shape(card)
    if kind == "uint8_nhwc":
        wrapped: nn.Module = _WithPreprocessing(network, card["preprocessing"])
        example = torch.zeros((_EXAMPLE_BATCH, height, width, channels), dtype=torch.uint8)
        outputs = [LOGITS, PROBABILITIES]
    else:
        wrapped = _Plain(network, card["preprocessing"])
        example = torch.zeros((_EXAMPLE_BATCH, channels, height, width))
        outputs = [LOGITS]
    wrapped.eval()
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                wrapped,
                (example,),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=({0: torch.export.Dim(BATCH, min=1, max=batch_max)},),
                input_names=[INPUT],
                output_names=outputs,
                external_data=False,
                optimize=False,
                verify=False,
                verbose=False,
            )
            assert program is not None
            read = {value.name for value in program.model.graph.initializers.values()}
            program.optimize()
            model = program.model_proto
    except Exception as error:  # the exporter raises its own classes, torch's, and plain Python's
        raise StageError(
            f"The {role} {name} cannot be exported to ONNX.",
            where="stage export",
            why=_innermost(error),
            hint=f"choose another {role}.model, or another export.opset; "
            "a network must not branch on the values of its tensors",
        ) from error
    tidy(model, strip_prefix=_NETWORK)
    write_metadata(model, card)
    return Exported(model, *_parameters(network, read))


def serialised(model: onnx.ModelProto) -> bytes:
    """Return the bytes of the file. Maps are written in order, so equal graphs give equal bytes."""
    return model.SerializeToString(deterministic=True)


def _require_exportable(network: nn.Module, role: str, name: str) -> None:
    size = 0
    for key, tensor in (*network.named_parameters(), *network.named_buffers()):
        size += tensor.numel() * tensor.element_size()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise StageError(
                f"The weights of the {role} {name} are not all finite numbers.",
                where=f"stage export, weight {key}",
                why="found NaN or infinity: training diverged",
                hint="lower the learning rate, or set clip_grad, and train again",
            )
    if size > SINGLE_FILE_LIMIT:
        raise StageError(
            f"The {role} {name} is too large for a single ONNX file.",
            where="stage export",
            why=f"its weights take {size / 1e9:.2f} GB; a file can hold "
            f"at most {SINGLE_FILE_LIMIT / 1e9:.1f} GB",
            hint=f"choose a smaller {role}.model",
        )


def _parameters(network: nn.Module, read: set[str]) -> tuple[int, int, tuple[str, ...]]:
    """Return the number of elements that the graph reads, that of all elements, and the unread names.

    A tied weight counts once. The unoptimised graph has exactly one initialiser for each weight that the
    program reads, with the weight's own name (one of its names, if it is tied).
    """
    sizes: dict[int, int] = {}
    names: dict[int, list[str]] = {}
    for key, parameter in network.named_parameters(remove_duplicate=False):
        sizes[id(parameter)] = parameter.numel()
        names.setdefault(id(parameter), []).append(key)
    present = {
        identity for identity, keys in names.items() if any(f"{_NETWORK}{key}" in read for key in keys)
    }
    unread = tuple(keys[0] for identity, keys in names.items() if identity not in present)
    return sum(sizes[identity] for identity in present), sum(sizes.values()), unread


def _innermost(error: BaseException) -> str:
    """Return the first cause in a chain of exceptions, with the line of the network's code that raised it."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "torch" not in Path(frame.filename).parts and Path(frame.filename) != Path(__file__)
    ]
    location = f" (in {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{location}"
