"""Run an ONNX file on the CPU, to prove it and to measure its accuracy (never its latency)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from stages.onnx_files.metadata import INPUT, LOGITS, feed
from stages.onnx_files.session_options import CPU, session_options

RUN_BATCH = 64
"""Images in a run; results do not depend on it."""


class Batches(Protocol):
    """Images by index, such as a split of the data set."""

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at `indices`: uint8 (n, H, W, C)."""
        ...


def open_session(model: bytes | Path, *, optimise: bool = True) -> ort.InferenceSession:
    """Create a session with only the CPU provider, on all cores that this process may use.

    Args:
        model: An ONNX file, or its bytes.
        optimise: False runs the graph node by node as it is written.

    Raises:
        Exception: ONNX Runtime's own exceptions, if it cannot load the file.
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
    on_progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Compute the logits of the images at `indices`, in that order.

    Args:
        session: The file's session.
        images: The images.
        indices: int64 (n,).
        card: The network's card, with `input`.
        batch: Images that are read and run at a time.
        on_progress: Called with the number of images done.

    Returns:
        float32 (n, classes).
    """
    parts: list[np.ndarray] = []
    for start in range(0, len(indices), batch):
        chosen = indices[start : start + batch]
        parts.append(session.run([LOGITS], {INPUT: feed(images.batch(chosen), card)})[0])
        if on_progress is not None:
            on_progress(start + len(chosen))
    return np.concatenate(parts) if parts else np.zeros((0, len(card["classes"])), dtype=np.float32)
