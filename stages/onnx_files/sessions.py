"""Running an ONNX file on the CPU, to prove it and to judge it (never to time it)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from stages.onnx_files.metadata import INPUT, LOGITS, feed
from stages.onnx_files.session_options import CPU, session_options

RUN_BATCH = 64
"""Images a step; results do not depend on it."""


class Batches(Protocol):
    """Images by index, as a split of the data set holds them."""

    def batch(self, indices: np.ndarray) -> np.ndarray: ...


def open_session(model: bytes | Path, *, optimise: bool = True) -> ort.InferenceSession:
    """A session on the CPU provider alone, on all cores this process may use.

    optimise: False runs the graph node by node as it is written.
    Raises onnxruntime's own exceptions if the file is refused.
    """
    options = session_options(optimization="all" if optimise else "none")
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(source, options, providers=[CPU])


def run_logits(
    session: ort.InferenceSession,
    images: Batches,
    indices: np.ndarray,
    card: Mapping[str, Any],
    *,
    batch: int = RUN_BATCH,
    told: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """The logits of the images at `indices`, in that order: float32 (n, classes).

    Images are read and run `batch` at a time. told: called with the number of images done.
    """
    found: list[np.ndarray] = []
    for start in range(0, len(indices), batch):
        chosen = indices[start : start + batch]
        found.append(session.run([LOGITS], {INPUT: feed(images.batch(chosen), card)})[0])
        told(start + len(chosen))
    return np.concatenate(found) if found else np.zeros((0, len(card["classes"])), dtype=np.float32)
