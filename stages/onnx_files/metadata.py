"""What an ONNX file says of itself, and how images are fed to it.

The facts travel beside the file as `student.json` (the card) and inside it as metadata; both say
the same. Light: numpy alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import onnx

InputKind = Literal["uint8_nhwc", "float32_nchw"]
"""How a file takes images: uint8 (n,H,W,C) as decoded, or float32 (n,C,H,W) already normalised."""

INPUT = "input"
LOGITS = "logits"
PROBABILITIES = "probabilities"
BATCH = "batch"
"""The names of the graph's input, its outputs and its dynamic dimension."""

_KEYS = {"classes": "kdpipe.classes", "preprocessing": "kdpipe.preprocessing", "input": "kdpipe.input"}


def feed(images: np.ndarray, card: Mapping[str, Any]) -> np.ndarray:
    """uint8 (n,H,W,C) as decoded -> the array that the file's input takes.

    card: `student.json` or `teacher.json`: its `input` and `preprocessing` decide. A file with the
    preprocessing inside gets the bytes as they are; a plain one `(x * scale - mean) / std` as
    float32 (n,C,H,W).
    """
    if card["input"] == "uint8_nhwc":
        return np.ascontiguousarray(images)
    facts = card["preprocessing"]
    mean = np.asarray(facts["mean"], dtype=np.float32)
    std = np.asarray(facts["std"], dtype=np.float32)
    normalised = (images.astype(np.float32) * np.float32(facts["scale"]) - mean) / std
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))


def image_shape(card: Mapping[str, Any]) -> tuple[int, int, int]:
    """(H, W, C) of one image that the network of this card takes."""
    facts = card["preprocessing"]
    return (facts["image_size"], facts["image_size"], facts["channels"])


def write_metadata(model: onnx.ModelProto, card: Mapping[str, Any]) -> None:
    """Leaves exactly the card's classes, preprocessing and input in the model's metadata, as JSON."""
    del model.metadata_props[:]
    for field, key in sorted(_KEYS.items()):
        entry = model.metadata_props.add()
        entry.key = key
        entry.value = json.dumps(card[field], ensure_ascii=False, sort_keys=True)


def read_metadata(model: onnx.ModelProto) -> dict[str, Any]:
    """`classes`, `preprocessing` and `input` as `write_metadata` left them.

    Raises ValueError if the file does not hold them.
    """
    written = {entry.key: entry.value for entry in model.metadata_props}
    absent = sorted(key for key in _KEYS.values() if key not in written)
    if absent:
        raise ValueError(f"the ONNX file has no metadata {', '.join(absent)}")
    return {field: json.loads(written[key]) for field, key in _KEYS.items()}
