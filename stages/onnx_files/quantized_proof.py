"""Prove that an INT8 file is usable: logits differ between images and do not depend on the batch."""

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
"""Largest difference of one file's logits between batches, in standard deviations of the logits.

A value near a rounding boundary may round to the other side.
"""

COLLAPSED = 1e-3
"""Share of the float file's spread below which the INT8 file's logits no longer depend on the image."""


def paired_accuracy(logits: np.ndarray, reference: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the change in top-1 accuracy of a conversion, paired by image.

    Args:
        logits: (n, classes), of the converted file.
        reference: (n, classes), of the file before the conversion.
        labels: int64 (n,).

    Returns:
        The difference in percentage points, its 95 % paired bootstrap interval over the images, and the exact
        McNemar test.
    """
    return paired_difference(logits.argmax(axis=1) == labels, reference.argmax(axis=1) == labels)


def row_by_row(
    model: bytes | Path, images: Batches, logits: np.ndarray, card: Mapping[str, Any], *, optimise: bool
) -> dict[str, Any]:
    """Compare the file's logits at the batches of `BATCHES` with those of larger batches.

    Args:
        model: The INT8 file, or its bytes.
        images: The images.
        logits: (n, classes), of the first n images in larger batches.
        card: The network's card, with `input`.
        optimise: False runs the graph node by node as it is written.

    Returns:
        A JSON-ready mapping with `batches`, `images`, `max_abs` (largest difference of a logit) and
        `max_relative_to_std` (the same over the logits' standard deviation).
    """
    session = open_session(model, optimise=optimise)
    count = min(ROWS, len(logits))
    inputs = feed(images.batch(np.arange(count)), card)
    std = max(float(logits.std()), 1e-12)
    largest = 0.0
    for batch in BATCHES:
        rows = [
            session.run([LOGITS], {INPUT: inputs[start : start + batch]})[0]
            for start in range(0, count, batch)
        ]
        largest = max(largest, compare(logits[:count], np.concatenate(rows), batch=batch).max_abs)
    return {
        "batches": list(BATCHES),
        "images": count,
        "max_abs": float(f"{largest:.3g}"),
        "max_relative_to_std": float(f"{largest / std:.3g}"),
    }


def quantization_fault(
    file: str, logits: np.ndarray, reference: np.ndarray, figures: Mapping[str, Any], *, agreement: float
) -> StageError | None:
    """Return an error for the first of an INT8 file's figures that exceeds its limit, or None.

    Args:
        file: The file's name.
        logits: (n, classes), of the INT8 file on validation images.
        reference: (n, classes), of the float file on the same images.
        figures: `agreement` (per cent) and `row_by_row` of the INT8 file.
        agreement: Least share of equal predictions, in per cent.
    """
    where = f"stage quantize, {file}, {len(logits)} validation images"
    hint = (
        "kdpipe debug PROFILE finds the layer; leave it in float with quantize.exclude, "
        "or try another quantize.method"
    )
    if not np.isfinite(logits).all():
        return StageError(f"{file} gives logits that are not finite.", where=where, hint=hint)
    spread, float_spread = (
        compare(values, values, batch=len(values)).reference_spread for values in (logits, reference)
    )
    if spread <= COLLAPSED * float_spread:
        return StageError(
            f"{file} gives the same logits for every image.",
            where=where,
            why=f"their spread from image to image is {spread:.3g}, the float file's {float_spread:.3g}; "
            f"expected at least {COLLAPSED:g} of that",
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
