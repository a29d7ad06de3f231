"""Whether a freshly built target computes what its source computes.

A coarse net, on a few real images: it catches a wrong layout, a lost normalisation, a misread operator or an
overflow. The measure stage measures what a precision costs in accuracy, on all test images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.errors import StageError
from stages.runtimes.base import Session, Source
from stages.runtimes.images import as_input, proof_images

LIMITS = {"fp32": 0.01, "fp16": 0.2, "bf16": 0.3, "int8": 1.5}
"""Largest root-mean-square logit difference, as a share of the spread of the source's logits: the default.
Unrelated logits come to about 1.4. Each INT8 kernel rounds and saturates in its own way, which may cost
accuracy but is no misreading: only nonsense is refused there, the rest is measured."""

ROWS_SHARE = 1.0 / 3.0
"""Rows of one target may differ from batch to batch by this share of the limit."""

DOUBTFUL = 0.3
"""A larger difference gets a line in the log."""

BATCHES = (1, 2, 7)

REAL_IMAGES = 64

SPREAD = 1e-6
"""Logits of a source that differ by less than this from image to image prove nothing."""


@dataclass(frozen=True)
class Agreement:
    """How far a target's logits are from its source's.

    Attributes:
        max_abs: the largest difference of all logits.
        rms: the root mean square of the differences.
        reference_std: the spread (standard deviation) of the source's logits.
        top1_agreement: the share of images with equal decisions, 0..1.
        images: how many were compared.
        rows_rms: the root mean square by which rows at smaller batches differ from those at the largest.
    """

    max_abs: float
    rms: float
    reference_std: float
    top1_agreement: float
    images: int = 0
    rows_rms: float = 0.0

    @property
    def relative(self) -> float:
        """`rms` in units of the source's spread."""
        return self.rms / max(self.reference_std, 1e-6)

    @property
    def rows_relative(self) -> float:
        """`rows_rms` in units of the source's spread."""
        return self.rows_rms / max(self.reference_std, 1e-6)


@dataclass(frozen=True)
class Limits:
    """What an `Agreement` must keep.

    Attributes:
        relative: the largest `Agreement.relative`.
        top1_agreement: the least share of equal decisions on real images, 0..1.
    """

    relative: float
    top1_agreement: float = 0.0


def source_logits(onnx: Path | bytes, source: Source, images: np.ndarray) -> np.ndarray:
    """Return a file's logits by ONNX Runtime, without graph optimisation: exactly the graph of the file.

    Args:
        onnx: the file, or its bytes.
        source: how the file is fed.
        images: uint8 (n, H, W, C).

    Returns:
        float32 (n, classes).
    """
    from stages.onnx_files.sessions import open_session

    session = open_session(onnx, optimise=False)
    name = session.get_inputs()[0].name
    logits: np.ndarray = session.run(["logits"], {name: as_input(images, source)})[0]
    return logits.astype(np.float32)


def compare(logits: np.ndarray, reference: np.ndarray) -> Agreement:
    """Compare two arrays of logits (n, classes); a value that is not finite makes the difference infinite."""
    difference = np.abs(logits.astype(np.float64) - reference.astype(np.float64))
    finite = bool(np.isfinite(difference).all())
    return Agreement(
        max_abs=float(difference.max()) if finite else float("inf"),
        rms=float(np.sqrt(np.mean(difference**2))) if finite else float("inf"),
        reference_std=float(reference.std()),
        top1_agreement=float((logits.argmax(1) == reference.argmax(1)).mean()),
    )


def batches_within(batch_min: int, batch_max: int) -> tuple[int, ...]:
    """Return the batch sizes to try: 1, 2 and 7 if the target takes them, else its smallest and largest."""
    within = tuple(batch for batch in BATCHES if batch_min <= batch <= batch_max)
    return within or tuple(sorted({batch_min, batch_max}))


def check(
    session: Session, source: Source, batches: tuple[int, ...], name: str, limits: Limits | None = None
) -> Agreement:
    """Compare a loaded target with its source, and with itself batch by batch.

    The images are the source's real ones and two generated ones; without real ones, generated ones.

    Args:
        session: the loaded target.
        source: what it was built from.
        batches: the batch sizes to try.
        name: what errors name.
        limits: None: the precision's defaults.

    Raises:
        StageError: they differ beyond the limits, or an image's logits depend on its batch.
    """
    agreement = find_agreement(session, source, batches, name)
    fault = agreement_fault(agreement, source, batches, name, limits or Limits(LIMITS[source.precision]))
    if fault:
        raise fault
    return agreement


def find_agreement(session: Session, source: Source, batches: tuple[int, ...], name: str) -> Agreement:
    """Return the figures of `check`, without a verdict.

    Raises:
        StageError: the logits have another shape than the source's, or the source gives all images the same
            logits: then equality proves nothing.
    """
    largest = max(batches)
    images = proof_images(source, max(2, largest if source.images is None else REAL_IMAGES))
    if len(images) < largest:
        images = np.resize(images, (largest, *images.shape[1:]))
    reference = source_logits(source.onnx, source, images)
    _require_spread(reference, source, name)

    def run(batch: int, first: int) -> np.ndarray:
        logits = session.logits(np.ascontiguousarray(images[first : first + batch]))
        expected = (batch, *reference.shape[1:])
        if logits.shape != expected:
            raise StageError(
                f"{name} gives logits of another shape than its source",
                where=f"batch {batch}",
                why=f"found {logits.shape}, expected {expected}",
                hint="export the model again and build from that: kdpipe build PROFILE",
            )
        return logits

    logits = np.zeros(reference.shape, np.float64)
    for start in range(0, len(images), largest):
        first = min(start, len(images) - largest)  # a full batch to the last: an engine may require that
        logits[first : first + largest] = run(largest, first)
    overall = compare(logits, reference)
    worst, rows_rms = overall, 0.0
    for batch in batches:
        rows = run(batch, 0)
        rows_rms = max(rows_rms, compare(rows, logits[:batch]).rms)
        part = compare(rows, reference[:batch])
        if part.rms > worst.rms:
            worst = part
    # The spread of one image's logits means little, and so does the share of equal decisions among one or
    # two images: these figures are of all images.
    return replace(
        worst,
        reference_std=float(reference.std()),
        top1_agreement=overall.top1_agreement,
        images=len(images),
        rows_rms=rows_rms,
    )


def agreement_fault(
    agreement: Agreement, source: Source, batches: tuple[int, ...], name: str, limits: Limits
) -> StageError | None:
    """Return an error if a figure exceeds its limit, else None. Differences under 1e-4 always pass."""
    kind = "generated" if source.images is None else "real"
    where = f"{agreement.images} {kind} images, batches {', '.join(map(str, batches))}"
    hint = (
        f"kdpipe debug PROFILE --target {name.split()[-1]} finds the layer; "
        "leave this target out, or choose another precision for it"
    )
    if agreement.relative > limits.relative and agreement.max_abs > 1e-4:
        return StageError(
            f"{name} does not compute what its source computes",
            where=where,
            why=f"logits differ by {agreement.rms:.3g} (root mean square), {agreement.relative:.0%} of "
            f"their spread; {limits.relative:.0%} is the limit for {source.precision} "
            f"(build.limit_{source.precision}), {agreement.top1_agreement:.0%} of the predictions agree",
            hint=hint,
        )
    if agreement.rows_relative > limits.relative * ROWS_SHARE and agreement.rows_rms > 1e-4:
        return StageError(
            f"{name} gives an image other logits in another batch",
            where=where,
            why=f"rows differ by {agreement.rows_rms:.3g} (root mean square), {agreement.rows_relative:.1%} "
            f"of the logits' spread; {limits.relative * ROWS_SHARE:.1%} is the limit for {source.precision}",
            hint=hint,
        )
    if source.images is not None and agreement.top1_agreement < limits.top1_agreement:
        return StageError(
            f"{name} predicts other classes than its source",
            where=where,
            why=f"{agreement.top1_agreement:.0%} of the predictions agree, expected at least "
            f"{limits.top1_agreement:.0%} (build.agreement)",
            hint=hint,
        )
    return None


def _require_spread(reference: np.ndarray, source: Source, name: str) -> None:
    spread = float(np.sqrt(reference.astype(np.float64).var(axis=0).mean()))
    if not spread > SPREAD:
        raise StageError(
            f"The file that {name} is built from gives the same logits for every image",
            where=source.onnx.name,
            why=f"they spread by {spread:.3g} from image to image, expected above {SPREAD:g}: agreement "
            "with it would prove nothing",
            hint="train it (epochs above 0); kdpipe debug PROFILE finds where a conversion lost the image",
        )
