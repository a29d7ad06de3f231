"""The metadata of an ONNX file, and the input array that it takes.

The facts are beside the file in `student.json` (the card) and inside it as metadata, with equal content.
Imports only numpy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import onnx

InputKind = Literal["uint8_nhwc", "float32_nchw"]
"""A file's input: uint8 (n, H, W, C) from the decoder, or float32 (n, C, H, W), normalised."""

INPUT = "input"
LOGITS = "logits"
PROBABILITIES = "probabilities"
BATCH = "batch"
"""The names of the graph's input, its outputs and its dynamic dimension."""

_KEYS = {"classes": "kdpipe.classes", "preprocessing": "kdpipe.preprocessing", "input": "kdpipe.input"}


def feed(images: np.ndarray, card: Mapping[str, Any]) -> np.ndarray:
    """Convert decoded images to the array that the file's input takes.

    Args:
        images: uint8 (n, H, W, C), from the decoder.
        card: `student.json` or `teacher.json`; its `input` and `preprocessing` decide.

    Returns:
        The unchanged bytes for a file that contains the preprocessing, else `(x * scale - mean) / std` as
        float32 (n, C, H, W).
    """
    if card["input"] == "uint8_nhwc":
        return np.ascontiguousarray(images)
    facts = card["preprocessing"]
    mean = np.asarray(facts["mean"], dtype=np.float32)
    std = np.asarray(facts["std"], dtype=np.float32)
    normalised = (images.astype(np.float32) * np.float32(facts["scale"]) - mean) / std
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))


def image_shape(card: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the shape (H, W, C) of one image for the network of this card."""
    facts = card["preprocessing"]
    return (facts["image_size"], facts["image_size"], facts["channels"])


def write_metadata(model: onnx.ModelProto, card: Mapping[str, Any]) -> None:
    """Replace the model's metadata with the card's classes, preprocessing and input, as JSON."""
    del model.metadata_props[:]
    for field, key in sorted(_KEYS.items()):
        entry = model.metadata_props.add()
        entry.key = key
        entry.value = json.dumps(card[field], ensure_ascii=False, sort_keys=True)


def read_metadata(model: onnx.ModelProto) -> dict[str, Any]:
    """Return `classes`, `preprocessing` and `input` from the metadata that `write_metadata` wrote.

    Raises:
        ValueError: If the file does not contain them.
    """
    written = {entry.key: entry.value for entry in model.metadata_props}
    absent = sorted(key for key in _KEYS.values() if key not in written)
    if absent:
        raise ValueError(f"the ONNX file has no metadata {', '.join(absent)}")
    return {field: json.loads(written[key]) for field, key in _KEYS.items()}
