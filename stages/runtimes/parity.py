"""Whether a freshly built target computes what its source computes.

A coarse net: it catches a wrong layout, a lost normalisation, an operator misread or an overflow.
What a precision costs on real images is measured by the measure stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import StageError
from stages.runtimes.base import Session, Source
from stages.runtimes.images import as_input, natural_images

LIMITS = {"fp32": 0.01, "fp16": 0.2, "int8": 1.5}
"""Largest root-mean-square logit difference, as a share of the spread of the source's logits.
Unrelated logits come to about 1.4. INT8 kernels round and saturate each in their own way, which
may cost accuracy but is no misreading: only nonsense is refused there, the rest is measured."""

DOUBTFUL = 0.3
"""From here on a difference is worth a line in the log."""

BATCHES = (1, 2, 7)


@dataclass(frozen=True)
class Agreement:
    """Over all logits compared: the largest difference, the root mean square of the differences
    and the spread (standard deviation) of the reference, and the share of equal decisions."""

    max_abs: float
    rms: float
    reference_std: float
    top1_agreement: float

    @property
    def relative(self) -> float:
        """`rms` in units of the reference's spread."""
        return self.rms / max(self.reference_std, 1e-6)


def source_logits(onnx: Path | bytes, source: Source, images: np.ndarray) -> np.ndarray:
    """float32 (n, classes) by ONNX Runtime, with no graph optimisation: what the file says."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        onnx if isinstance(onnx, bytes) else str(onnx), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    logits: np.ndarray = session.run(["logits"], {name: as_input(images, source)})[0]
    return logits.astype(np.float32)


def compare(found: np.ndarray, reference: np.ndarray) -> Agreement:
    """Two (n, classes) arrays of logits; a value that is not finite makes the difference infinite."""
    difference = np.abs(found.astype(np.float64) - reference.astype(np.float64))
    finite = bool(np.isfinite(difference).all())
    return Agreement(
        max_abs=float(difference.max()) if finite else float("inf"),
        rms=float(np.sqrt(np.mean(difference**2))) if finite else float("inf"),
        reference_std=float(reference.std()),
        top1_agreement=float((found.argmax(1) == reference.argmax(1)).mean()),
    )


def batches_within(batch_min: int, batch_max: int) -> tuple[int, ...]:
    """The batch sizes tried: 1, 2 and 7 as far as the target takes them, else its own ends."""
    within = tuple(batch for batch in BATCHES if batch_min <= batch <= batch_max)
    return within or tuple(sorted({batch_min, batch_max}))


def check(session: Session, source: Source, batches: tuple[int, ...], name: str) -> Agreement:
    """Compares a loaded target with its source on generated images, batch by batch.

    Raises StageError if they differ grossly, or if the target changes its mind with the batch.
    """
    images = natural_images(source.image_shape, max(batches))
    reference = source_logits(source.onnx, source, images)
    limit = LIMITS[source.precision]
    worst: Agreement | None = None
    for batch in batches:
        found = session.logits(images[:batch])
        if found.shape != reference[:batch].shape:
            raise StageError(
                f"{name} gives logits of another shape than its source",
                where=f"batch {batch}",
                why=f"found {found.shape}, expected {reference[:batch].shape}",
                mend="export the model again and build from that: kdpipe build PROFILE",
            )
        # The spread of one image's logits says little: that of all images is the yardstick.
        agreement = compare(found, reference[:batch])
        agreement = Agreement(
            agreement.max_abs, agreement.rms, float(reference.std()), agreement.top1_agreement
        )
        if agreement.relative > limit and agreement.max_abs > 1e-4:
            raise StageError(
                f"{name} does not compute what its source computes",
                where=f"batch {batch}",
                why=f"logits differ by {agreement.rms:.3g} (root mean square), {agreement.relative:.0%} of "
                f"their spread; {limit:.0%} is the limit for {source.precision}",
                mend="leave this target out, or choose another precision for it",
            )
        if worst is None or agreement.relative > worst.relative:
            worst = agreement
    assert worst is not None
    return worst
