"""Whether an INT8 file is fit to go on with: it tells images apart, and it minds its batches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import StageError
from stages.onnx_files.metadata import INPUT, LOGITS, feed
from stages.onnx_files.parity import BATCHES, ROWS, compare
from stages.onnx_files.sessions import Batches, open_session
from stages.statistics.intervals import paired_difference

ROWS_LIMIT = 0.1
"""Rows of one file may differ from batch to batch by so many standard deviations of the logits: a
rounding that falls to the other side."""

COLLAPSED = 1e-3
"""Share of the float file's spread under which an INT8 file has lost the image."""


def paired_accuracy(found: np.ndarray, reference: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """What a conversion cost in top-1 accuracy, image by image.

    found, reference: logits (n, classes) of the converted file and of the one before. Points of
    per cent, the 95 % paired bootstrap interval over the images, and the exact McNemar test.
    """
    return paired_difference(found.argmax(axis=1) == labels, reference.argmax(axis=1) == labels)


def row_by_row(
    model: bytes | Path, images: Batches, together: np.ndarray, card: Mapping[str, Any], *, optimise: bool
) -> dict[str, Any]:
    """How far the file's rows at the batches of `BATCHES` are from `together`, the logits (n, classes) of
    the same images in larger batches."""
    session = open_session(model, optimise=optimise)
    count = min(ROWS, len(together))
    shown = feed(images.batch(np.arange(count)), card)
    std = max(float(together.std()), 1e-12)
    largest = 0.0
    for batch in BATCHES:
        rows = [
            session.run([LOGITS], {INPUT: shown[start : start + batch]})[0]
            for start in range(0, count, batch)
        ]
        largest = max(largest, compare(together[:count], np.concatenate(rows), batch=batch).max_abs)
    return {
        "batches": list(BATCHES),
        "images": count,
        "max_abs": float(f"{largest:.3g}"),
        "max_relative_to_std": float(f"{largest / std:.3g}"),
    }


def quantization_fault(
    file: str, logits: np.ndarray, reference: np.ndarray, figures: Mapping[str, Any], *, agreement: float
) -> StageError | None:
    """What of an INT8 file's figures exceeds its limit, or None. agreement: least, per cent."""
    where = f"stage quantize, {file}, {len(logits)} validation images"
    hint = (
        "kdpipe debug PROFILE finds the layer; leave it in float with quantize.exclude, "
        "or try another quantize.method"
    )
    if not np.isfinite(logits).all():
        return StageError(f"{file} gives logits that are not finite.", where=where, hint=hint)
    found, before = (
        compare(values, values, batch=len(values)).reference_spread for values in (logits, reference)
    )
    if found <= COLLAPSED * before:
        return StageError(
            f"{file} gives the same logits for every image.",
            where=where,
            why=f"they spread by {found:.3g} from image to image, the float file's by {before:.3g}; at least "
            f"{COLLAPSED:g} of that is expected",
            hint=hint,
        )
    if figures["agreement"] < agreement:
        return StageError(
            f"{file} predicts other classes than the float file.",
            where=where,
            why=f"{figures['agreement']:.1f} % of the predictions agree, expected at least {agreement:g} % "
            "(quantize.agreement)",
            hint=hint,
        )
    rows = figures["row_by_row"]
    if not rows["max_relative_to_std"] <= ROWS_LIMIT:
        return StageError(
            f"{file} gives an image other logits in another batch.",
            where=where,
            why=f"found a logit off by {rows['max_relative_to_std']:.3g} of the logits' standard deviation "
            f"at batches {', '.join(map(str, rows['batches']))}, at most {ROWS_LIMIT:g} is tolerated",
            hint=hint,
        )
    return None
